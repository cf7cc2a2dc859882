//! Heartbeats that a component declares for work of its own, beside its messages.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::progress::{Judgement, Still};

/// Heartbeats a component may have at once.
pub(crate) const MOST: usize = 64;

/// Work that has to go on, seen by the work: a watch, a poll loop, a connection.
///
/// Made by [`Context::heartbeat`](super::Context::heartbeat). Cheap to clone and usable from any thread; a beat is one
/// addition. To drop it is not to end it: work that died without a word is found, too.
///
/// ```
/// use actix::{Actor, AsyncContext, WrapFuture};
/// use kubeedge_actors::system::{Component, Context, Contract, Exit, Ports, RestartPolicy, Stage, System};
/// use std::time::Duration;
///
/// /// Reads a meter every minute: beside its messages, so that the kit cannot see whether it still does.
/// struct Reader;
///
/// impl Actor for Reader {
///     type Context = Context<Self>;
///
///     fn started(&mut self, ctx: &mut Context<Self>) {
///         let reading = ctx.heartbeat("the reading", Duration::from_secs(180));
///         let read = async move {
///             // The third reading never comes back.
///             for _ in 0..2 {
///                 tokio::time::sleep(Duration::from_secs(60)).await;
///                 reading.beat();
///             }
///             std::future::pending::<()>().await;
///         };
///         ctx.spawn(read.into_actor(self));
///     }
/// }
///
/// impl Component for Reader {
///     const NAME: &'static str = "reader";
///     const STAGE: Stage = Stage::Source;
///
///     fn contract(_: &mut Contract<Self>) {}
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// actix_rt::System::new().block_on(async {
///     // For this example the clock jumps, and the reader is not built again.
///     tokio::time::pause();
///     let policy = RestartPolicy { budget: 0, ..RestartPolicy::default() };
///     let system = System::builder("plant").component(|_: &Ports| Reader).restart_policy(policy).start()?;
///     assert_eq!(system.failed().await, ("reader", Exit::Stuck));
///     Ok(())
/// })
/// # }
/// ```
#[derive(Clone)]
pub struct Heartbeat(Arc<Beat>);

impl Heartbeat {
    /// The work goes on.
    pub fn beat(&self) {
        self.0.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// The work is done: no beat is expected any more.
    pub fn end(self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for Heartbeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Heartbeat({} within {:?})", self.0.what, self.0.within)
    }
}

struct Beat {
    what: &'static str,
    within: Duration,
    beats: AtomicU64,
    ended: AtomicBool,
    /// The beats at the last look, and since when they stand still.
    seen: Mutex<(u64, Still)>,
}

/// The heartbeats of one component's present life.
#[derive(Default)]
pub(crate) struct Heartbeats(Mutex<Vec<Arc<Beat>>>);

impl Heartbeats {
    fn beats(&self) -> MutexGuard<'_, Vec<Arc<Beat>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A heartbeat, and whether it is watched: not when there are too many.
    pub(crate) fn begin(&self, what: &'static str, within: Duration, watched: bool) -> (Heartbeat, bool) {
        let beat = Arc::new(Beat {
            what,
            within,
            beats: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            seen: Mutex::default(),
        });
        let mut beats = self.beats();
        beats.retain(|beat| !beat.ended.load(Ordering::Relaxed));
        let watched = watched && beats.len() < MOST;
        if watched {
            beats.push(Arc::clone(&beat));
        }
        (Heartbeat(beat), watched)
    }

    /// A new life: the work of the last one is gone.
    pub(crate) fn clear(&self) {
        self.beats().clear();
    }

    pub(crate) fn shortest(&self) -> Option<Duration> {
        self.beats().iter().map(|beat| beat.within).min()
    }

    /// One round later: the worst judgement, with what was missed and its limit.
    pub(crate) fn look(&self, turns: u64, round: Duration) -> (Judgement, &'static str, Duration) {
        let mut worst = (Judgement::Fine, "", Duration::ZERO);
        let mut beats = self.beats();
        beats.retain(|beat| !beat.ended.load(Ordering::Relaxed));
        for beat in beats.iter() {
            let mut seen = beat.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let beats = beat.beats.load(Ordering::Relaxed);
            let moved = beats != seen.0;
            seen.0 = beats;
            match seen.1.look(moved, turns, round, beat.within) {
                Judgement::Stuck => return (Judgement::Stuck, beat.what, beat.within),
                Judgement::Wake => worst.0 = Judgement::Wake,
                Judgement::Fine => {}
            }
        }
        worst
    }
}
