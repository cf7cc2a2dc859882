//! What the runtime tells of itself.

use kubeedge_actors::edged::{
    runtime::RuntimeError,
    runtime_events::{self, Heard},
};
use tokio_util::task::AbortOnDropHandle;

use super::*;

impl Node {
    /// containerd 1.7 and newer do, 1.6 says that it does not: then it is listed every second.
    pub(super) async fn events_are_heard_or_known_not_to_come(&self) {
        let version = self.runtime.version().await.unwrap();
        if version.version.trim_start_matches('v').starts_with("1.6.") {
            let Err(refused) = self.runtime.events().await else { panic!("{version:?} has events") };
            assert!(matches!(refused, RuntimeError::Unimplemented { .. }), "{refused:?}");
            return;
        }
        let (sender, mut heard) = watch::channel(Heard::default());
        let listen = runtime_events::listen(Arc::<CriRuntime>::clone(&self.runtime), sender);
        let _listening = AbortOnDropHandle::new(tokio::spawn(listen));
        let until_asked = "trap 'exit 1' TERM; while true; do sleep 0.2; done";
        let pod = self.pod("heard", &[json!({"name": "main", "command": ["/bin/sh", "-c", until_asked]})], |_| {});
        let looked = self.look_after(&pod).await;
        looked.until(|status| ready(status) == 1).await;
        let more = async |heard: &mut watch::Receiver<Heard>, than: u64| {
            let told = tokio::time::timeout(LIMIT, heard.wait_for(|heard| heard.stands && heard.count > than)).await;
            told.unwrap().unwrap().count
        };
        let count = more(&mut heard, 0).await;
        // It ends by itself: nobody asked the runtime to end it.
        self.exec("heard", "main", "kill -TERM 1").await;
        looked.until(|status| container(status, "main")["restartCount"] == 1).await;
        more(&mut heard, count).await;
        looked.delete(&pod, 1).await;
        self.nothing_is_left(&pod).await;
    }
}
