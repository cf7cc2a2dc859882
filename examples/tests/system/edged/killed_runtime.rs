//! A container runtime that is killed while pods come up.

use super::*;

const PODS: usize = 6;
/// A deletion with a grace period of 1 s, on a machine that does other things as well.
const DELETED_WITHIN: Duration = Duration::from_secs(20);

impl Node {
    /// `RUNTIME_KILLS=n` does it so many times.
    pub(super) async fn outlives_its_runtime(&self, containerd: &mut PrivateContainerd) {
        let kills = std::env::var("RUNTIME_KILLS").map_or(1, |kills| kills.parse().unwrap());
        for round in 0..kills {
            self.outlives_one_kill(containerd, round).await;
        }
    }

    async fn outlives_one_kill(&self, containerd: &mut PrivateContainerd, round: usize) {
        let main =
            json!({"name": "main", "command": ["/bin/sh", "-c", "trap '' TERM; while true; do sleep 1000; done"]});
        let pods: Vec<_> = (0..PODS)
            .map(|number| self.pod(&format!("k{round}-{number}"), std::slice::from_ref(&main), |_| {}))
            .collect();
        let mut looked = Vec::new();
        for pod in &pods {
            looked.push(self.look_after(pod).await);
        }
        // Some have a sandbox, some a container, some neither.
        let wanted = 1 + round % PODS;
        tokio::time::timeout(LIMIT, async {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            while self.runtime.list_pods().await.unwrap().len() < wanted {
                tick.tick().await;
            }
        })
        .await
        .unwrap();
        containerd.crash().await.unwrap();
        for looked in &looked {
            looked.until(|status| ready(status) == 1).await;
        }
        let deletions = looked.into_iter().zip(&pods).map(async |(looked, pod)| {
            tokio::time::timeout(DELETED_WITHIN, looked.delete(pod, 1)).await.unwrap();
            self.nothing_is_left(pod).await;
        });
        futures_util::future::join_all(deletions).await;
    }
}
