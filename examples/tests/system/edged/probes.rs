//! Probes of containers that run.

use super::{servers::Server, *};

impl Node {
    /// Runs a command in a pod's container; what it printed.
    pub(super) async fn exec(&self, pod: &str, container: &str, script: &str) -> String {
        let observed = self.runtime.observe(&format!("uid-of-{pod}")).await.unwrap();
        let newest = observed.instances.into_iter().filter(|i| i.name == container).max_by_key(|i| i.attempt).unwrap();
        let command = ["sh", "-c", script].map(str::to_owned);
        let output = self.runtime.exec_sync(&newest.id, &command, LIMIT).await.unwrap();
        assert_eq!(output.exit_code, 0, "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub(super) async fn probes_decide_who_is_ready_and_who_is_restarted(&self) {
        let serve = "mkdir /www; echo fine > /www/health; sleep 1; httpd -f -p 8080 -h /www & \
                     echo $! > /tmp/httpd; while true; do sleep 1000; done";
        let containers = [
            json!({
                "name": "web", "command": ["/bin/sh", "-c", serve], "ports": [{"name": "http", "containerPort": 8080}],
                "startupProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1, "failureThreshold": 30},
                "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1,
                    "failureThreshold": 1, "successThreshold": 2},
                "livenessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 2,
                    "terminationGracePeriodSeconds": 1},
            }),
            json!({
                "name": "slow", "command": ["/bin/sleep", "1000"],
                "readinessProbe": {"exec": {"command": ["sleep", "100"]}, "periodSeconds": 2},
            }),
        ];
        let pod = self.pod("probed", &containers, |pod| pod["spec"]["terminationGracePeriodSeconds"] = 30.into());
        let looked = self.look_after(&pod).await;
        let web = |status: &Value, field: &str| container(status, "web")[field].clone();
        let status = looked.until(|status| web(status, "started") == true).await;
        assert_eq!((web(&status, "ready"), ready(&status)), (json!(false), 0));
        looked.hears(|told| told.starts_with("spec.containers{web} Unhealthy: Readiness probe failed: ")).await;
        looked
            .hears(|told| {
                told == "spec.containers{slow} Unhealthy: Readiness probe failed: command timed out: \
                         \"sleep 100\" timed out after 1s"
            })
            .await;

        self.exec("probed", "web", "touch /tmp/ready").await;
        looked.until(|status| web(status, "ready") == true).await;
        self.exec("probed", "web", "rm /tmp/ready").await;
        let status = looked.until(|status| web(status, "ready") == false).await;
        assert_eq!(web(&status, "restartCount"), 0);

        // The server dies and the container does not: only its probe can tell. It does not end when asked to, either.
        let before = std::time::Instant::now();
        self.exec("probed", "web", "kill $(cat /tmp/httpd)").await;
        let status = looked.until(|status| web(status, "restartCount") == 1 && web(status, "started") == true).await;
        assert_eq!(web(&status, "lastState")["terminated"]["exitCode"], 137);
        assert!(before.elapsed() < Duration::from_secs(20), "the probe has a grace period of its own");
        looked.hears(|told| told.starts_with("spec.containers{web} Unhealthy: Liveness probe failed: dial tcp ")).await;
        looked
            .hears(|told| {
                told == "spec.containers{web} Killing: Container web failed liveness probe, will be restarted"
            })
            .await;
        assert_eq!(container(&status, "slow")["restartCount"], 0);

        looked.delete(&pod, 1).await;
        self.nothing_is_left(&pod).await;
    }
    pub(super) async fn https_and_grpc_probes_ask_servers(&self) {
        let (https, grpc) = (Server::https().await, Server::grpc("app").await);
        // On the node's network a pod's address is the node's.
        let container = |name: &str, mut probe: Value| {
            probe["periodSeconds"] = 1.into();
            probe["failureThreshold"] = 1.into();
            json!({"name": name, "command": ["/bin/sleep", "1000"], "readinessProbe": probe})
        };
        let page = json!({"httpGet": {"scheme": "HTTPS", "port": https.port, "path": "/healthz"}});
        let containers =
            [container("https", page), container("grpc", json!({"grpc": {"port": grpc.port, "service": "app"}}))];
        let pod = self.pod("asked", &containers, |pod| pod["spec"]["hostNetwork"] = true.into());
        let looked = self.look_after(&pod).await;
        for told in [
            "spec.containers{https} Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 503",
            "spec.containers{grpc} Unhealthy: Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")",
        ] {
            looked.hears(|heard| heard == told).await;
        }
        https.turns(true);
        looked.until(|status| ready(status) == 1 && super::container(status, "https")["ready"] == true).await;
        grpc.turns(true);
        looked.until(|status| ready(status) == 2).await;
        https.turns(false);
        looked.until(|status| ready(status) == 1 && super::container(status, "grpc")["ready"] == true).await;
        looked.delete(&pod, 1).await;
        self.nothing_is_left(&pod).await;
    }
}
