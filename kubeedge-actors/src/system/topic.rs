//! Events: one announcement, heard by every component that listens.
//!
//! A listener that is waited for ([`Overflow::wait`]) has the event in its queue, in order with everything else that
//! is sent to it. Any other keeps events in a buffer of its own beside its queue, and loses what does not fit.

use super::{
    Component,
    buffer::{Buffer, Latest, LatestPerKey, Loss},
    letter::{Envelope, Letter},
    port::Gate,
    queue::Refusal,
    trace::Trace,
    vitals::Vitals,
};
use actix::{Handler, Message};
use futures_util::future::join_all;
use std::{
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What becomes of an event whose listener has no room for it.
pub struct Overflow<M>(pub(crate) Policy<M>);

pub(crate) enum Policy<M> {
    Wait,
    Lose(Box<dyn Buffer<Told<M>>>),
}

/// An event in a buffer, with what its announcer was part of.
pub(crate) struct Told<M> {
    event: M,
    trace: Option<Trace>,
}

impl<M: Send + 'static> Overflow<M> {
    /// Nothing is lost: the event goes into the component's queue, and who announces waits for room there.
    pub fn wait() -> Self {
        Self(Policy::Wait)
    }

    /// Nobody waits: the listener keeps the newest `capacity` events (at least 1) and loses the oldest.
    pub fn drop_oldest(capacity: usize) -> Self {
        Self(Policy::Lose(Box::new(Latest::new(capacity))))
    }

    /// Nobody waits: the listener keeps the newest event of each key, and of at most `capacity` keys (at least 1). Of
    /// more keys it loses the one that has waited longest.
    pub fn newest_per_key<K: Clone + Eq + Hash + Send + 'static>(capacity: usize, key: fn(&M) -> K) -> Self {
        Self(Policy::Lose(Box::new(LatestPerKey::new(capacity, move |told: &Told<M>| key(&told.event)))))
    }
}

impl<M> fmt::Debug for Overflow<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Policy::Wait => "Overflow::wait",
            Policy::Lose(_) => "Overflow::lose",
        })
    }
}

/// An event that was not announced at once: a listener that must not lose it has no room.
#[derive(PartialEq, Eq, thiserror::Error)]
#[error("the queue of {listener}, which listens, is full")]
pub struct NoRoom<M> {
    /// Who has no room.
    pub listener: &'static str,
    /// The event; nobody has heard it.
    pub event: M,
}

/// Without the event: it may be a secret, and need not be `Debug`.
impl<M> fmt::Debug for NoRoom<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NoRoom").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// A place for one event, held until it is filled.
type Place<'a, M> = Box<dyn FnOnce(M) + Send + 'a>;

/// A component, seen by an event it listens to.
pub(crate) trait Listener<M>: Send + Sync {
    /// A place for one event, or the listener's name if it has none now.
    fn place(&self) -> Result<Place<'_, M>, &'static str>;
    /// Waits for room, first come first served.
    fn hear(&self, event: M) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// Who is waited for hears by its queue.
impl<A, M> Listener<M> for Gate<A>
where
    A: Component + Handler<M>,
    M: Message<Result = ()> + Send + 'static,
{
    fn place(&self) -> Result<Place<'_, M>, &'static str> {
        match self.queue().try_reserve() {
            Ok(room) => Ok(Box::new(move |event| room.send(Envelope::letter(event, None)))),
            Err(Refusal::Full) => Err(self.name()),
            Err(Refusal::Closed) => Ok(Box::new(|_| self.vitals().lost(Loss::Stopped))),
        }
    }

    fn hear(&self, event: M) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            match self.queue().reserve().await {
                Ok(room) => room.send(Envelope::letter(event, None)),
                Err(_) => self.vitals().lost(Loss::Stopped),
            }
        })
    }
}

/// A listener's buffer beside its queue.
pub(crate) struct Shelf<M> {
    kept: Mutex<Kept<M>>,
    vitals: Arc<Vitals>,
}

struct Kept<M> {
    events: Box<dyn Buffer<Told<M>>>,
    open: bool,
}

impl<M> Shelf<M> {
    pub(crate) fn new(events: Box<dyn Buffer<Told<M>>>, vitals: Arc<Vitals>) -> Self {
        Self { kept: Mutex::new(Kept { events, open: true }), vitals }
    }

    fn kept(&self) -> MutexGuard<'_, Kept<M>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, event: M) {
        let mut kept = self.kept();
        if !kept.open {
            return self.vitals.lost(Loss::Stopped);
        }
        match kept.events.put(Told { event, trace: Trace::current() }) {
            Some(loss) => self.vitals.lost(loss),
            None => self.vitals.buffered(1, 0),
        }
        let first = kept.events.len() == 1;
        drop(kept);
        // With more in it the component knows already.
        if first {
            self.vitals.wake();
        }
    }
}

impl<M: Send> Listener<M> for Shelf<M> {
    fn place(&self) -> Result<Place<'_, M>, &'static str> {
        Ok(Box::new(|event| self.put(event)))
    }

    fn hear(&self, event: M) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.put(event);
        Box::pin(std::future::ready(()))
    }
}

/// A buffer beside a component's queue, seen by the component.
pub(crate) trait Feed<A: Component>: Send + Sync {
    fn take(&self) -> Option<Letter<A>>;
    /// Takes nothing new.
    fn close(&self);
}

impl<A, M> Feed<A> for Shelf<M>
where
    A: Component + Handler<M>,
    M: Message<Result = ()> + Send + 'static,
{
    fn take(&self) -> Option<Letter<A>> {
        let mut kept = self.kept();
        let Told { event, trace } = kept.events.take()?;
        self.vitals.buffered(0, 1);
        drop(kept);
        Some(Envelope::letter_of(event, trace))
    }

    fn close(&self) {
        self.kept().open = false;
    }
}

/// The buffers of one component.
pub(crate) struct Feeds<A: Component> {
    feeds: Vec<Arc<dyn Feed<A>>>,
    next: usize,
    vitals: Arc<Vitals>,
}

impl<A: Component> Feeds<A> {
    pub(crate) fn new(feeds: Vec<Arc<dyn Feed<A>>>, vitals: Arc<Vitals>) -> Self {
        Self { feeds, next: 0, vitals }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.feeds.is_empty()
    }

    /// The next event; the buffers take turns.
    pub(crate) fn take(&mut self) -> Option<Letter<A>> {
        for _ in 0..self.feeds.len() {
            self.next = (self.next + 1) % self.feeds.len();
            if let Some(letter) = self.feeds[self.next].take() {
                return Some(letter);
            }
        }
        None
    }

    pub(crate) fn close(&self) {
        self.feeds.iter().for_each(|feed| feed.close());
    }
}

impl<A: Component> Drop for Feeds<A> {
    /// The component is gone: what it has not handled is lost, and counted.
    fn drop(&mut self) {
        self.close();
        while self.take().is_some() {
            self.vitals.lost(Loss::Stopped);
        }
    }
}

/// The way to everybody who listens to `M` in this system. Cheap to clone; usable from any thread.
///
/// It stays valid while listeners are built again. Events of one announcer arrive in order at each listener, if it awaits each
/// before it announces the next.
///
/// ```
/// use actix::{Handler, Message};
/// use kubeedge_actors::system::{Component, Context, Contract, Overflow, Ports, Stage, System};
/// use std::time::Duration;
///
/// #[derive(Clone, Message)]
/// #[rtype(result = "()")]
/// struct Level {
///     tank: &'static str,
///     litres: u32,
/// }
///
/// /// Shows the newest level of each tank, of eight at most: an older one that it had no time for is of no use.
/// #[derive(Default)]
/// struct Panel(Vec<String>);
///
/// impl actix::Actor for Panel {
///     type Context = Context<Self>;
/// }
///
/// impl Component for Panel {
///     const NAME: &'static str = "panel";
///     const STAGE: Stage = Stage::Processor;
///
///     fn contract(contract: &mut Contract<Self>) {
///         contract.listens::<Level>(Overflow::newest_per_key(8, |level| level.tank)).answers::<Shown>();
///     }
/// }
///
/// impl Handler<Level> for Panel {
///     type Result = ();
///
///     fn handle(&mut self, level: Level, _: &mut Context<Self>) {
///         self.0.push(format!("{}: {}", level.tank, level.litres));
///     }
/// }
///
/// #[derive(Message)]
/// #[rtype(result = "Vec<String>")]
/// struct Shown;
///
/// impl Handler<Shown> for Panel {
///     type Result = Vec<String>;
///
///     fn handle(&mut self, _: Shown, _: &mut Context<Self>) -> Vec<String> {
///         self.0.clone()
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// actix_rt::System::new().block_on(async {
///     let system = System::builder("plant").component(|_: &Ports| Panel::default()).announces::<Level>().start()?;
///     let levels = system.topic::<Level>();
///     // The panel has had no turn yet. Nobody waits for it.
///     for (tank, litres) in [("milk", 10), ("whey", 3), ("milk", 11)] {
///         levels.announce(Level { tank, litres }).await;
///     }
///     assert_eq!(system.observe()[0].dropped.superseded, 1);
///     let shown = system.port::<Shown>().ask(Shown, Duration::from_secs(1)).await?;
///     assert_eq!(shown, ["milk: 11", "whey: 3"]);
///     Ok(())
/// })
/// # }
/// ```
pub struct Topic<M> {
    listeners: Arc<[Arc<dyn Listener<M>>]>,
}

impl<M> Clone for Topic<M> {
    fn clone(&self) -> Self {
        Self { listeners: Arc::clone(&self.listeners) }
    }
}

impl<M> fmt::Debug for Topic<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topic<{}>({})", std::any::type_name::<M>(), self.listeners.len())
    }
}

impl<M: Message<Result = ()> + Clone + Send + 'static> Topic<M> {
    pub(crate) fn new(listeners: Vec<Arc<dyn Listener<M>>>) -> Self {
        Self { listeners: listeners.into() }
    }

    /// Whether anybody listens.
    pub fn is_heard(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// Announces to every listener; waits for room only in those that listen with [`Overflow::wait`], and for all of
    /// them at once. A listener that has ended is passed over, and counted in its own `Observation`.
    ///
    /// Dropped before it returns, those without room have not heard the event; the others have.
    pub async fn announce(&self, event: M) {
        let mut full = Vec::new();
        for listener in self.listeners.iter() {
            match listener.place() {
                Ok(place) => place(event.clone()),
                Err(_) => full.push(listener),
            }
        }
        if !full.is_empty() {
            join_all(full.iter().map(|listener| listener.hear(event.clone()))).await;
        }
    }

    /// Announces to every listener, or to none if one that must not lose the event has no room now.
    pub fn try_announce(&self, event: M) -> Result<(), NoRoom<M>> {
        let mut places = Vec::with_capacity(self.listeners.len());
        for listener in self.listeners.iter() {
            match listener.place() {
                Ok(place) => places.push(place),
                Err(listener) => return Err(NoRoom { listener, event }),
            }
        }
        places.into_iter().for_each(|place| place(event.clone()));
        Ok(())
    }
}
