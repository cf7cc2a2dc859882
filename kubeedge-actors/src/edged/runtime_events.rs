//! The runtime's own events: that something happened to a container or a sandbox.
//!
//! They make the list of what runs ([`super::relist`]) come at once, and rare where nothing happens. None is relied upon:
//! containerd drops what it has no place for, and hands one event to a connection that is gone already.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::sync::watch;

use super::runtime::{Runtime, RuntimeError};

/// A runtime that has events answers the call for them with the first one, one that has none says so at once: after
/// this long without an answer they stand.
const SILENCE: Duration = Duration::from_secs(10);
/// Pause after the stream ended, doubled up to [`PAUSE_MAX`] while no event comes.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A runtime without events is asked this often whether it is another one by now. A kubelet gives up after five tries.
const ASK_AGAIN: Duration = Duration::from_secs(600);

/// What is heard of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Whether the runtime would tell now.
    pub stands: bool,
    /// How many came so far.
    pub count: u64,
}

/// Listens for as long as this future lives.
pub async fn listen(runtime: Arc<dyn Runtime>, heard: watch::Sender<Heard>) {
    let mut pause = PAUSE_FIRST;
    let mut known_to_have_none = false;
    loop {
        let before = heard.borrow().count;
        let ended = follow(&*runtime, &heard).await;
        let told = heard.borrow().count > before;
        heard.send_modify(|heard| heard.stands = false);
        let has_none = matches!(ended, Err(RuntimeError::Unimplemented { .. }));
        match ended {
            Err(_) if has_none && known_to_have_none => {}
            Err(error) if has_none => tracing::info!("what runs is listed every second: {error}"),
            Err(error) => tracing::debug!("the container runtime tells no events for now: {error}"),
            Ok(()) => tracing::debug!("the container runtime's events ended"),
        }
        pause = if told { PAUSE_FIRST } else { pause };
        tokio::time::sleep(if has_none { ASK_AGAIN } else { pause }).await;
        pause = (pause * 2).min(PAUSE_MAX);
        known_to_have_none = has_none;
    }
}

/// Counts events until they end.
async fn follow(runtime: &dyn Runtime, heard: &watch::Sender<Heard>) -> Result<(), RuntimeError> {
    let mut call = runtime.events();
    let answer = tokio::select! {
        answer = &mut call => answer,
        () = tokio::time::sleep(SILENCE) => {
            heard.send_modify(|heard| heard.stands = true);
            call.await
        }
    };
    let mut events = answer?;
    while let Some(event) = events.next().await {
        tracing::trace!(id = event?, "the container runtime tells of a change");
        heard.send_modify(|heard| *heard = Heard { stands: true, count: heard.count + 1 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tokio::time::Instant;

    use super::*;
    use crate::edged::fake::FakeRuntime;

    fn listening(runtime: &FakeRuntime) -> (watch::Receiver<Heard>, tokio_util::task::AbortOnDropHandle<()>) {
        let (sender, receiver) = watch::channel(Heard::default());
        let task = tokio::spawn(listen(Arc::new(runtime.clone()), sender));
        (receiver, tokio_util::task::AbortOnDropHandle::new(task))
    }

    fn runtime() -> FakeRuntime {
        FakeRuntime::new(Arc::new(|| Timestamp::UNIX_EPOCH))
    }

    #[tokio::test(start_paused = true)]
    async fn events_stand_when_they_come_or_nothing_was_refused_for_ten_seconds() {
        let runtime = runtime();
        runtime.offer_events();
        let began = Instant::now();
        let (mut heard, _task) = listening(&runtime);
        heard.wait_for(|heard| heard.stands).await.unwrap();
        assert_eq!((began.elapsed(), heard.borrow().count), (SILENCE, 0));
        runtime.tell("container-1");
        runtime.tell("container-1");
        heard.wait_for(|heard| heard.count == 2).await.unwrap();
        assert!(heard.borrow().stands);
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_without_events_is_asked_again_and_may_have_them_by_then() {
        let runtime = runtime();
        let (mut heard, _task) = listening(&runtime);
        tokio::time::sleep(ASK_AGAIN * 3 / 2).await;
        assert_eq!(runtime.asked_for_events(), 2);
        assert_eq!(*heard.borrow(), Heard::default());
        // It is replaced by another version under a running edgecore.
        runtime.offer_events();
        heard.wait_for(|heard| heard.stands).await.unwrap();
        assert_eq!(runtime.asked_for_events(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ends_is_opened_again_with_growing_pauses() {
        let runtime = runtime();
        runtime.offer_events();
        let (mut heard, _task) = listening(&runtime);
        tokio::time::sleep(SILENCE).await;
        runtime.tell("container-1");
        heard.wait_for(|heard| heard.count == 1).await.unwrap();
        let began = Instant::now();
        runtime.end_events();
        heard.wait_for(|heard| !heard.stands).await.unwrap();
        // One that only ends is tried after 1, 2, 4 ... 60 s: 3 times in 10 s, 14 times in 10 minutes.
        for (seconds, asked) in [(10, 1 + 3), (600, 1 + 14)] {
            let until = began + Duration::from_secs(seconds);
            while Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(100)).await;
                runtime.end_events();
            }
            let made = runtime.asked_for_events();
            assert!((asked - 1..=asked + 1).contains(&made), "{made} calls in {seconds} s");
        }
    }
}
