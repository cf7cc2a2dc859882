//! The runtime dies under load.

use super::*;

impl Node {
    pub(super) async fn a_runtime_that_dies_under_load_costs_no_pod(&self, containerd: &mut PrivateContainerd) {
        let sleeping = |name: &str| {
            let container = json!({"name": "main", "command": ["/bin/sleep", "1000"],
                "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}});
            self.pod(name, &[container], |_| {})
        };
        let settled = [sleeping("settled-0"), sleeping("settled-1")];
        let mut before = Vec::new();
        for pod in &settled {
            let looked = self.look_after(pod).await;
            let status = looked.until(|status| ready(status) == 1).await;
            before.push((looked, container(&status, "main")["containerID"].clone()));
        }
        let leaving = self.pod("leaving", &[json!({"name": "main", "command": ["/bin/sleep", "1000"]})], |_| {});
        let left = self.look_after(&leaving).await;
        left.until(|status| ready(status) == 1).await;

        // Some pods are being made, one is being taken away.
        let coming = [sleeping("coming-0"), sleeping("coming-1"), sleeping("coming-2")];
        let mut looked = Vec::new();
        for pod in &coming {
            looked.push(self.look_after(pod).await);
        }
        let ends = left.delete(&leaving, 1);
        let dies = async {
            // As soon as the runtime has begun with one of them.
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            while self.runtime.list_pods().await.unwrap().len() < settled.len() + 2 {
                tick.tick().await;
            }
            containerd.crash().await.unwrap();
        };
        tokio::join!(ends, dies);
        self.nothing_is_left(&leaving).await;
        for (looked, id) in &before {
            let status = looked.until(|status| ready(status) == 1).await;
            assert_eq!(container(&status, "main")["containerID"], *id, "what ran runs on");
        }
        for looked in &looked {
            looked.until(|status| ready(status) == 1).await;
        }
        let all = before.into_iter().map(|(looked, _)| looked).zip(&settled).chain(looked.into_iter().zip(&coming));
        for (looked, pod) in all {
            looked.delete(pod, 1).await;
            self.nothing_is_left(pod).await;
        }
    }
}
