//! Hooks, sidecars and deadlines of containers that run.

use super::*;

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

    pub(super) async fn a_failed_hook_and_a_deadline_are_said(&self) {
        let failing = json!({"name": "hook", "command": ["/bin/sleep", "1000"],
            "lifecycle": {"postStart": {"exec": {"command": ["/bin/false"]}}}});
        let late = json!({"name": "late", "command": ["/bin/sleep", "1000"]});
        let hook = self.pod("hook", &[failing], |_| {});
        let deadline = self.pod("deadline", &[late], |pod| pod["spec"]["activeDeadlineSeconds"] = 2.into());
        let (looked, limited) = (self.look_after(&hook).await, self.look_after(&deadline).await);
        let reason = |status: &Value| container(status, "hook")["state"]["waiting"]["reason"].clone();
        looked.until(|status| reason(status) == "PostStartHookError").await;
        looked.hears(|told| told == "spec.containers{hook} FailedPostStartHook: PostStartHook failed").await;
        let status = limited.until(|status| status["phase"] == "Failed").await;
        assert_eq!(status["reason"], "DeadlineExceeded");
        assert!(container(&status, "late")["state"]["terminated"]["exitCode"].as_i64() > Some(0), "{status}");
        for (looked, pod) in [(looked, hook), (limited, deadline)] {
            looked.delete(&pod, 1).await;
            self.nothing_is_left(&pod).await;
        }
    }
}
