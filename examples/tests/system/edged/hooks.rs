//! Hooks, sidecars and deadlines of containers that run.

use jiff::SignedDuration;

use super::*;

/// A page that writes down what it is asked for.
const PAGE: &str = "#!/bin/sh\necho $QUERY_STRING >> /said/log\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'";

impl Node {
    pub(super) async fn sidecars_and_hooks_keep_their_order(&self) {
        // Every container writes down what it does, and when.
        let say = |what: &str| format!("echo {what} >> /order/log");
        let until_asked = |name: &str| {
            let bye = say(&format!("{name}-ends"));
            format!("trap '{bye}; exit 0' TERM; {}; touch /tmp/up; while true; do sleep 0.1; done", say(name))
        };
        let sidecar = |name: &str| {
            json!({
                "name": name, "image": self.image, "restartPolicy": "Always",
                "command": ["/bin/sh", "-c", until_asked(name)],
                "startupProbe": {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1},
                "volumeMounts": [{"name": "order", "mountPath": "/order"}],
            })
        };
        let containers = [json!({
            "name": "main", "command": ["/bin/sh", "-c", until_asked("main")],
            "lifecycle": {
                "postStart": {"exec": {"command": ["/bin/sh", "-c", say("post-start")]}},
                "preStop": {"exec": {"command": ["/bin/sh", "-c", say("pre-stop")]}},
            },
            "volumeMounts": [{"name": "order", "mountPath": "/order"}],
        })];
        let folder = self.root.parent().unwrap().join("order");
        std::fs::create_dir(&folder).unwrap();
        let pod = self.pod("ordered", &containers, |pod| {
            pod["spec"]["initContainers"] = json!([sidecar("one"), sidecar("two")]);
            pod["spec"]["terminationGracePeriodSeconds"] = 20.into();
            pod["spec"]["volumes"] = json!([{"name": "order", "hostPath": {"path": folder, "type": "Directory"}}]);
        });
        let looked = self.look_after(&pod).await;
        let status = looked.until(|status| ready(status) == 1).await;
        let sidecars = status["initContainerStatuses"].as_array().unwrap();
        assert!(sidecars.iter().all(|status| status["started"] == true && status["ready"] == true), "{sidecars:?}");
        looked.delete(&pod, 20).await;
        let log = std::fs::read_to_string(folder.join("log")).unwrap();
        let mut order: Vec<&str> = log.lines().collect();
        // The hook runs beside its container's own start.
        order[2..4].sort_unstable();
        let expected = ["one", "two", "main", "post-start", "pre-stop", "main-ends", "two-ends", "one-ends"];
        assert_eq!(order, expected);
        self.nothing_is_left(&pod).await;
    }

    pub(super) async fn hooks_ask_for_pages_and_wait(&self) {
        let folder = self.root.parent().unwrap().join("said");
        std::fs::create_dir(&folder).unwrap();
        let mounts = json!([{"name": "said", "mountPath": "/said"}]);
        let serve = "mkdir -p /www/cgi-bin; echo \"$PAGE\" > /www/cgi-bin/say; chmod 755 /www/cgi-bin/say; \
                     httpd -f -p 8080 -h /www & trap 'exit 0' TERM; while true; do sleep 0.1; done";
        // It is there before the others, and goes after them.
        let page = json!({
            "name": "page", "image": self.image, "restartPolicy": "Always", "command": ["/bin/sh", "-c", serve],
            "env": [{"name": "PAGE", "value": PAGE}], "volumeMounts": mounts,
            "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 30},
        });
        let until_asked = |name: &str, lifecycle: Value| {
            let ends = format!("trap 'echo {name} >> /said/log; exit 0' TERM");
            let script = format!("{ends}; touch /tmp/up; while true; do sleep 0.1; done");
            json!({"name": name, "command": ["/bin/sh", "-c", script], "volumeMounts": mounts, "lifecycle": lifecycle,
                "startupProbe": {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1}})
        };
        let asks = |what: &str| json!({"httpGet": {"port": 8080, "path": format!("/cgi-bin/say?{what}")}});
        let containers = [
            until_asked("asks", json!({"postStart": asks("post-start"), "preStop": asks("pre-stop")})),
            until_asked("waits", json!({"postStart": {"sleep": {"seconds": 1}}, "preStop": {"sleep": {"seconds": 3}}})),
            until_asked("fails", json!({"preStop": {"exec": {"command": ["/bin/false"]}}})),
            until_asked("nobody", json!({"preStop": {"httpGet": {"port": 9}}})),
        ];
        let pod = self.pod("calling", &containers, |pod| {
            pod["spec"]["initContainers"] = json!([page]);
            pod["spec"]["terminationGracePeriodSeconds"] = 20.into();
            pod["spec"]["volumes"] = json!([{"name": "said", "hostPath": {"path": folder, "type": "Directory"}}]);
        });
        let looked = self.look_after(&pod).await;
        looked.until(|status| ready(status) == containers.len()).await;
        let said = || std::fs::read_to_string(folder.join("log")).unwrap();
        assert_eq!(said(), "post-start\n");
        let observed = self.runtime.observe("uid-of-calling").await.unwrap();
        let started = |name: &str| observed.instances.iter().find(|one| one.name == name).unwrap().started_at.unwrap();
        let apart = started("fails").duration_since(started("waits"));
        assert!(apart >= SignedDuration::from_secs(1), "the next container was started {apart:#} after it");

        let (before, reports) = (std::time::Instant::now(), Arc::clone(&looked.reports));
        looked.delete(&pod, 20).await;
        let took = before.elapsed();
        assert!((3..20).contains(&took.as_secs()), "a hook that waits 3 s of 20 s, and {took:?} until the end");
        let said = said();
        let order: Vec<&str> = said.lines().collect();
        let at = |line: &str| order.iter().position(|said| *said == line);
        assert!(order.len() == 6 && at("pre-stop") < at("asks") && order[5] == "waits", "{order:?}");
        // Whatever became of its hook, a container ends.
        for name in ["fails", "nobody"] {
            assert!(at(name).is_some(), "{name} was not asked to end: {order:?}");
            let told = format!("spec.containers{{{name}}} FailedPreStopHook: PreStopHook failed");
            let all = reports.told.lock().unwrap();
            assert!(all.contains(&told), "{all:#?}");
        }
        self.nothing_is_left(&pod).await;
    }

    pub(super) async fn a_failed_hook_and_a_deadline_are_said(&self) {
        let failing = |name: &str, hook: Value| json!({"name": name, "command": ["/bin/sleep", "1000"], "lifecycle": {"postStart": hook}});
        let failing = [
            failing("hook", json!({"exec": {"command": ["/bin/false"]}})),
            failing("page", json!({"httpGet": {"port": 9, "path": "/x"}})),
        ];
        let late = json!({"name": "late", "command": ["/bin/sleep", "1000"]});
        let hook = self.pod("hook", &failing, |_| {});
        let deadline = self.pod("deadline", &[late], |pod| pod["spec"]["activeDeadlineSeconds"] = 2.into());
        let (looked, limited) = (self.look_after(&hook).await, self.look_after(&deadline).await);
        let waits = |status: &Value, name: &str, why: &str| {
            let waiting = &container(status, name)["state"]["waiting"];
            waiting["reason"] == "PostStartHookError"
                && waiting["message"].as_str().is_some_and(|said| said.contains(why))
        };
        looked
            .until(|status| {
                waits(status, "hook", "Exec lifecycle hook (/bin/false) for Container \"hook\" failed")
                    && waits(status, "page", "HTTP lifecycle hook (/x) for Container \"page\" failed")
            })
            .await;
        for name in ["hook", "page"] {
            let told = format!("spec.containers{{{name}}} FailedPostStartHook: PostStartHook failed");
            looked.hears(|heard| heard == told).await;
        }
        let status = limited.until(|status| status["phase"] == "Failed").await;
        assert_eq!(status["reason"], "DeadlineExceeded");
        limited
            .hears(|told| told == " DeadlineExceeded: Pod was active on the node longer than the specified deadline")
            .await;
        assert!(container(&status, "late")["state"]["terminated"]["exitCode"].as_i64() > Some(0), "{status}");
        for (looked, pod) in [(looked, hook), (limited, deadline)] {
            looked.delete(&pod, 1).await;
            self.nothing_is_left(&pod).await;
        }
    }
}
