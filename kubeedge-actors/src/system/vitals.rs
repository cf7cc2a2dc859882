//! What is known about a component from outside its arbiter: counters, phase, exit, and the way to tell it to stop.

use super::{Exit, Parked, Stage, buffer::Loss, heartbeat::Heartbeats, parked::Lot};
use std::{
    any::Any,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
    time::Duration,
};
use tokio::sync::watch;

/// Where a component is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It handles messages.
    Running,
    /// It failed and waits to be built again; its queue takes messages until it is full.
    BackingOff,
    /// It takes no new messages and finishes what it has.
    Stopping,
    /// It is gone.
    Exited,
}

/// A component as seen from outside, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// The component's name.
    pub name: &'static str,
    /// Its place in the stop order.
    pub stage: Stage,
    /// Where it is in its life.
    pub phase: Phase,
    /// How it ended, once it has.
    pub exit: Option<Exit>,
    /// Messages in its queue.
    pub queued: usize,
    /// Messages its queue holds at most.
    pub capacity: usize,
    /// Events in its buffers beside the queue ([`Overflow`](super::Overflow)).
    pub buffered: usize,
    /// Events that were announced and did not reach it.
    pub dropped: Drops,
    /// Asynchronous replies under way.
    pub in_hand: usize,
    /// Messages taken from its queue and handled, the ones that crashed or had expired included.
    pub handled: u64,
    /// Asks that were not handled because nobody waited for the answer any more.
    pub expired: u64,
    /// Asks that ended without an answer.
    pub unanswered: u64,
    /// Panics, in handlers, futures and replies.
    pub panics: u64,
    /// Messages that crashed their handler and are not tried again ([`System::parked`](super::System::parked)).
    pub parked: u64,
    /// Times it was built again.
    pub restarts: u64,
    /// Times it was found to make no progress ([`Component::HEARTBEAT`](super::Component::HEARTBEAT)).
    pub stuck: u64,
    /// How long it has held its arbiter without giving it back, as far as that is seen from outside; zero for a turn
    /// that has lasted less than half a second or so.
    pub blocking: Duration,
    /// Mean time a message held the arbiter: the synchronous part of its handler, in a sample of the messages.
    pub mean_handling: Duration,
}

/// Events that a listener lost, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Its buffer was full, and they were the oldest.
    pub overflow: u64,
    /// A newer event of the same key came before they were handled.
    pub superseded: u64,
    /// It was stopping or had ended.
    pub stopped: u64,
}

/// What a component has been told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Command {
    Run = 0,
    Stop = 1,
    Abort = 2,
}

/// A life that made no progress is to be ended.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) life: u64,
    /// How long it made none, at least.
    pub(crate) stood: Duration,
    pub(crate) text: String,
}

/// The first component whose failure ended it: the reason the system stops.
pub(crate) type Failures = watch::Sender<Option<(&'static str, Exit)>>;

/// What the components of a system share.
pub(crate) struct Commons {
    pub(crate) failures: Failures,
    pub(crate) lot: Lot,
    /// Uniform in [0, 1): the part of its ceiling that a wait before a rebuild takes.
    pub(crate) dice: fn() -> f64,
}

pub(crate) struct Vitals {
    pub(crate) name: &'static str,
    pub(crate) stage: Stage,
    phase: AtomicU8,
    command: AtomicU8,
    task: Mutex<Option<Waker>>,
    in_hand: AtomicUsize,
    in_hand_watched: AtomicBool,
    // Written by the component's own task only, so a load and a store do.
    turns: AtomicU64,
    free: AtomicU64,
    handled: AtomicU64,
    timed: AtomicU64,
    busy_nanos: AtomicU64,
    expired: AtomicU64,
    unanswered: AtomicU64,
    panics: AtomicU64,
    parked: AtomicU64,
    restarts: AtomicU64,
    buffered: AtomicUsize,
    overflow: AtomicU64,
    superseded: AtomicU64,
    stopped: AtomicU64,
    // Written by the watchdog.
    stuck: AtomicU64,
    blocking_nanos: AtomicU64,
    condemned: AtomicBool,
    verdict: Mutex<Option<Verdict>>,
    pub(crate) heartbeats: Heartbeats,
    exit: watch::Sender<Option<Exit>>,
    commons: Arc<Commons>,
}

/// Adds to a counter that only one task writes.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl Vitals {
    pub(crate) fn new(name: &'static str, stage: Stage, commons: Arc<Commons>) -> Self {
        Self {
            name,
            stage,
            phase: AtomicU8::new(Phase::Running as u8),
            command: AtomicU8::new(Command::Run as u8),
            task: Mutex::new(None),
            in_hand: AtomicUsize::new(0),
            in_hand_watched: AtomicBool::new(false),
            turns: AtomicU64::new(0),
            free: AtomicU64::new(0),
            handled: AtomicU64::new(0),
            timed: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            parked: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            buffered: AtomicUsize::new(0),
            overflow: AtomicU64::new(0),
            superseded: AtomicU64::new(0),
            stopped: AtomicU64::new(0),
            stuck: AtomicU64::new(0),
            blocking_nanos: AtomicU64::new(0),
            condemned: AtomicBool::new(false),
            verdict: Mutex::new(None),
            heartbeats: Heartbeats::default(),
            exit: watch::Sender::new(None),
            commons,
        }
    }

    // ---- for the component's own task

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// A turn of the component, or of one of its replies; it ends with what this returns.
    pub(crate) fn turn(&self) -> Turn<'_> {
        self.turn_changes();
        Turn(self)
    }

    /// A turn begins or ends.
    #[inline]
    pub(crate) fn turn_changes(&self) {
        add(&self.turns, 1);
    }

    /// No exclusive future keeps the component from its own turn.
    #[inline]
    pub(crate) fn free(&self) {
        add(&self.free, 1);
    }

    /// The verdict on the present life, if there is one.
    #[inline]
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        if self.condemned.load(Ordering::Relaxed) { self.take_verdict() } else { None }
    }

    #[cold]
    fn take_verdict(&self) -> Option<Verdict> {
        self.condemned.store(false, Ordering::Relaxed);
        let verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner).take();
        verdict.filter(|verdict| verdict.life == self.life() && self.phase() == Phase::Running)
    }

    /// How long the turn that ends now was seen to last, if it was seen from outside at all.
    #[inline]
    pub(crate) fn take_blocking(&self) -> Option<Duration> {
        if self.blocking_nanos.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(Duration::from_nanos(self.blocking_nanos.swap(0, Ordering::Relaxed))).filter(|held| !held.is_zero())
    }

    #[inline]
    pub(crate) fn handled(&self, letters: u64) {
        add(&self.handled, letters);
    }

    /// Of the messages handled, these took so long.
    pub(crate) fn timed(&self, letters: u64, took: Duration) {
        add(&self.timed, letters);
        add(&self.busy_nanos, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn expired(&self) {
        add(&self.expired, 1);
    }

    pub(crate) fn restarted(&self) {
        self.heartbeats.clear();
        add(&self.restarts, 1);
    }

    pub(crate) fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dice(&self) -> f64 {
        (self.commons.dice)()
    }

    /// A message is not tried again.
    pub(crate) fn park(&self, report: Parked, body: Option<Box<dyn Any + Send>>) {
        self.parked.fetch_add(1, Ordering::Relaxed);
        self.commons.lot.park(report, body);
    }

    /// Remembers the task to wake for a command or an ended reply.
    pub(crate) fn listen(&self, waker: &Waker) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
    }

    #[inline]
    pub(crate) fn command(&self) -> Command {
        match self.command.load(Ordering::SeqCst) {
            0 => Command::Run,
            1 => Command::Stop,
            _ => Command::Abort,
        }
    }

    #[inline]
    pub(crate) fn in_hand(&self) -> usize {
        self.in_hand.load(Ordering::SeqCst)
    }

    /// Asks to be woken when a reply ends; look at `in_hand` again afterwards.
    pub(crate) fn watch_in_hand(&self) {
        self.in_hand_watched.store(true, Ordering::SeqCst);
    }

    /// The component is gone. To be called before its queue is dropped, so that askers learn why.
    pub(crate) fn exited(&self, exit: Exit) {
        self.set_phase(Phase::Exited);
        // Who does not make it in an ordered stop brings nobody down: that is on its way.
        if exit.escalates() && (exit != Exit::Stuck || self.command() == Command::Run) {
            let _ = self.commons.failures.send_if_modified(|first| {
                let is_first = first.is_none();
                if is_first {
                    *first = Some((self.name, exit.clone()));
                }
                is_first
            });
        }
        self.exit.send_replace(Some(exit));
    }

    // ---- for the watchdog

    /// Odd while a turn lasts.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    pub(crate) fn free_turns(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    pub(crate) fn handled_so_far(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    pub(crate) fn buffered_now(&self) -> usize {
        self.buffered.load(Ordering::Relaxed)
    }

    /// Counts the lives of the component.
    pub(crate) fn life(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    pub(crate) fn seen_blocking(&self, held: Duration) {
        let held = u64::try_from(held.as_nanos()).unwrap_or(u64::MAX);
        if self.blocking_nanos.load(Ordering::Relaxed) != held {
            self.blocking_nanos.store(held, Ordering::Relaxed);
        }
    }

    /// The component makes no progress: its life is to end as soon as it has a turn.
    pub(crate) fn condemn(&self, verdict: Verdict) {
        self.stuck.fetch_add(1, Ordering::Relaxed);
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(verdict);
        self.condemned.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// The component blocks its arbiter for good: it counts as ended, and ends if it ever comes back.
    pub(crate) fn give_up(&self) {
        self.exited(Exit::Stuck);
        self.order(Command::Abort);
    }

    // ---- for everybody

    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::BackingOff,
            2 => Phase::Stopping,
            _ => Phase::Exited,
        }
    }

    pub(crate) fn unanswered(&self) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
    }

    /// An event that did not reach the component.
    pub(crate) fn lost(&self, loss: Loss) {
        let counter = match loss {
            Loss::Overflow => &self.overflow,
            Loss::Superseded => &self.superseded,
            Loss::Stopped => &self.stopped,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Events that came into a buffer and went out of it. Called with the buffer locked, so that none goes before it
    /// came.
    pub(crate) fn buffered(&self, came: usize, went: usize) {
        self.buffered.fetch_add(came.wrapping_sub(went), Ordering::Relaxed);
    }

    /// Tells the component to stop or to be dropped; never takes back a stronger command.
    pub(crate) fn order(&self, command: Command) {
        self.command.fetch_max(command as u8, Ordering::SeqCst);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            task.wake_by_ref();
        }
    }

    pub(crate) fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.subscribe()
    }

    pub(crate) fn observe(&self, queued: usize, capacity: usize) -> Observation {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Observation {
            name: self.name,
            stage: self.stage,
            phase: self.phase(),
            exit: self.exit.borrow().clone(),
            queued,
            capacity,
            buffered: self.buffered.load(Ordering::Relaxed),
            dropped: Drops {
                overflow: count(&self.overflow),
                superseded: count(&self.superseded),
                stopped: count(&self.stopped),
            },
            in_hand: self.in_hand(),
            handled: count(&self.handled),
            expired: count(&self.expired),
            unanswered: count(&self.unanswered),
            panics: count(&self.panics),
            parked: count(&self.parked),
            restarts: count(&self.restarts),
            stuck: count(&self.stuck),
            blocking: Duration::from_nanos(count(&self.blocking_nanos)),
            mean_handling: Duration::from_nanos(count(&self.busy_nanos).checked_div(count(&self.timed)).unwrap_or(0)),
        }
    }
}

/// A turn that its arbiter gave a component.
pub(crate) struct Turn<'a>(&'a Vitals);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.turn_changes();
    }
}

/// One asynchronous reply under way.
pub(crate) struct InHand(Arc<Vitals>);

impl InHand {
    pub(crate) fn new(vitals: &Arc<Vitals>) -> Self {
        vitals.in_hand.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(vitals))
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.in_hand.fetch_sub(1, Ordering::SeqCst);
        if self.0.in_hand_watched.load(Ordering::SeqCst) && self.0.in_hand_watched.swap(false, Ordering::SeqCst) {
            self.0.wake();
        }
    }
}
