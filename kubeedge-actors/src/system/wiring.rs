//! Who answers what: contracts, the check at start, and the ports that come out of it.

use super::{
    Component, Figure, Meter, Overflow, Port, Topic,
    again::Again,
    figures::Figures,
    port::{Door, Gate},
    shard::Router,
    topic::{Feed, Listener, Policy, Shelf},
};
use actix::{Handler, Message};
use std::{
    any::{Any, TypeId, type_name},
    collections::{HashMap, HashSet},
    fmt,
    hash::Hash,
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError},
};

/// A type's name without its path: `kubeedge_proto::v1::ApplyState` is `ApplyState`.
pub(crate) fn short_name(full: &'static str) -> &'static str {
    let path_end = full.find('<').unwrap_or(full.len());
    full[..path_end].rfind("::").map_or(full, |colons| &full[colons + 2..])
}

/// A message type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    id: TypeId,
    name: &'static str,
}

impl Kind {
    fn of<M: Message + 'static>() -> Self {
        Self { id: TypeId::of::<M>(), name: short_name(type_name::<M>()) }
    }
}

/// Makes the door of one message type from the gates of a component's shards, mostly one; boxed as `Arc<dyn Door<M>>`.
/// `None`: there are several, and nothing says which is meant.
type MakeDoor<A> = Box<dyn Fn(&[Arc<Gate<A>>]) -> Option<Box<dyn Any + Send + Sync>>>;

/// Makes a component the listener of one event: boxed as `Arc<dyn Listener<M>>`, and its buffer if it has one.
type MakeListener<A> = Box<dyn FnOnce(&Arc<Gate<A>>) -> (Box<dyn Any + Send + Sync>, Option<Arc<dyn Feed<A>>>)>;

/// The messages that component `A` answers and asks, announces and hears; filled in by [`Component::contract`].
pub struct Contract<A: Component> {
    answers: Vec<(Kind, MakeDoor<A>)>,
    listens: Vec<(Kind, MakeListener<A>)>,
    needs: Needs,
    component: PhantomData<fn(A)>,
}

/// What a component sends, and what it needs somebody to announce.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    asks: Vec<Kind>,
    may_ask: Vec<Kind>,
    announces: Vec<Kind>,
    announced: Vec<Kind>,
}

impl Needs {
    pub(crate) fn ask<M: Message + Send + 'static>(&mut self) {
        self.asks.push(Kind::of::<M>());
    }

    pub(crate) fn announce<M: Message + Send + 'static>(&mut self) {
        self.announces.push(Kind::of::<M>());
    }
}

impl<A: Component> Contract<A> {
    pub(crate) fn of_component() -> Self {
        let mut contract =
            Self { answers: Vec::new(), listens: Vec::new(), needs: Needs::default(), component: PhantomData };
        A::contract(&mut contract);
        contract
    }

    /// This component answers `M`; nobody else in the system may.
    pub fn answers<M>(&mut self) -> &mut Self
    where
        A: Handler<M>,
        M: Message + Send + 'static,
        M::Result: Send,
    {
        self.answers.push((Kind::of::<M>(), Box::new(|gates| one_of(gates).map(only::<A, M>))));
        self
    }

    /// This component answers `M`; where it is sharded ([`SystemBuilder::sharded`](super::SystemBuilder::sharded)), the
    /// shard of the message's key does, for a key always the same.
    pub fn answers_by<M, K>(&mut self, key: fn(&M) -> K) -> &mut Self
    where
        A: Handler<M>,
        M: Message + Send + 'static,
        M::Result: Send,
        K: Hash + 'static,
    {
        let make: MakeDoor<A> = Box::new(move |gates| {
            let router = || -> Arc<dyn Door<M>> { Arc::new(Router { shards: gates.into(), key }) };
            Some(one_of(gates).map_or_else(|| Box::new(router()) as Box<_>, only::<A, M>))
        });
        self.answers.push((Kind::of::<M>(), make));
        self
    }

    /// This component answers `M`, as with [`answers`](Self::answers); and if its handler crashes, the next life begins
    /// with the same message, and its asker waits on. Crashes it that too, the message is parked
    /// ([`System::parked`](super::System::parked)) and its asker told.
    ///
    /// Its handler may run twice: that must do no harm. It costs one clone a message. An answer given by a future is
    /// not repeated when that future crashes.
    ///
    /// ```
    /// use actix::{Actor, Handler, Message};
    /// use kubeedge_actors::system::{AskError, Component, Context, Contract, Ports, Stage, System};
    /// use std::time::Duration;
    ///
    /// /// To set a valve twice does no more than to set it once.
    /// #[derive(Clone, Debug, Message, PartialEq)]
    /// #[rtype(result = "u32")]
    /// struct Set(u32);
    ///
    /// /// What it knows of the valve is wrong in its first life.
    /// struct Valve {
    ///     limit: Option<u32>,
    /// }
    ///
    /// impl Actor for Valve {
    ///     type Context = Context<Self>;
    /// }
    ///
    /// impl Component for Valve {
    ///     const NAME: &'static str = "valve";
    ///     const STAGE: Stage = Stage::Processor;
    ///
    ///     fn contract(contract: &mut Contract<Self>) {
    ///         contract.answers_again::<Set>();
    ///     }
    /// }
    ///
    /// impl Handler<Set> for Valve {
    ///     type Result = u32;
    ///
    ///     fn handle(&mut self, Set(percent): Set, _: &mut Context<Self>) -> u32 {
    ///         let limit = self.limit.expect("the limit is known");
    ///         assert!(percent <= limit, "{percent} % would break the pipe");
    ///         percent
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// actix_rt::System::new().block_on(async {
    ///     let first = std::cell::Cell::new(true);
    ///     let factory = move |_: &Ports| Valve { limit: if first.replace(false) { None } else { Some(80) } };
    ///     let system = System::builder("plant").component(factory).asks::<Set>().start()?;
    ///     let valve = system.port::<Set>();
    ///     // The first life crashes over it, the second answers: who asks sees nothing of it.
    ///     assert_eq!(valve.ask(Set(50), Duration::from_secs(5)).await, Ok(50));
    ///     assert_eq!(system.observe()[0].panics, 1);
    ///     // This one crashes both lives, and is parked.
    ///     assert_eq!(valve.ask(Set(90), Duration::from_secs(5)).await, Err(AskError::Crashed));
    ///     assert_eq!(system.take_parked::<Set>(), [Set(90)]);
    ///     Ok(())
    /// })
    /// # }
    /// ```
    pub fn answers_again<M>(&mut self) -> &mut Self
    where
        A: Handler<M>,
        M: Message + Clone + Send + 'static,
        M::Result: Send,
    {
        let make: MakeDoor<A> = Box::new(|gates| {
            let door: Arc<dyn Door<M>> = Arc::new(Again(Arc::clone(one_of(gates)?)));
            Some(Box::new(door))
        });
        self.answers.push((Kind::of::<M>(), make));
        self
    }

    /// This component sends `M` (asks or tells): without somebody who answers it the system does not start.
    pub fn asks<M: Message + Send + 'static>(&mut self) -> &mut Self {
        self.needs.ask::<M>();
        self
    }

    /// This component sends `M` if somebody answers it; see [`Ports::optional`].
    pub fn may_ask<M: Message + Send + 'static>(&mut self) -> &mut Self {
        self.needs.may_ask.push(Kind::of::<M>());
        self
    }

    /// This component announces `M` to everybody who listens, nobody included; see [`Ports::topic`].
    pub fn announces<M: Message<Result = ()> + Clone + Send + 'static>(&mut self) -> &mut Self {
        self.needs.announce::<M>();
        self
    }

    /// This component hears `M` whenever it is announced: without somebody who announces it the system does not start.
    /// Others may hear it too.
    pub fn listens<M>(&mut self, overflow: Overflow<M>) -> &mut Self
    where
        A: Handler<M>,
        M: Message<Result = ()> + Clone + Send + 'static,
    {
        self.needs.announced.push(Kind::of::<M>());
        self.may_listen(overflow)
    }

    /// This component hears `M` if somebody announces it.
    pub fn may_listen<M>(&mut self, overflow: Overflow<M>) -> &mut Self
    where
        A: Handler<M>,
        M: Message<Result = ()> + Clone + Send + 'static,
    {
        let make: MakeListener<A> = Box::new(|gate| match overflow.0 {
            Policy::Wait => {
                let listener: Arc<dyn Listener<M>> = Arc::<Gate<A>>::clone(gate);
                (Box::new(listener), None)
            }
            Policy::Lose(events) => {
                let shelf = Arc::new(Shelf::new(events, Arc::clone(gate.vitals())));
                let listener: Arc<dyn Listener<M>> = Arc::<Shelf<M>>::clone(&shelf);
                (Box::new(listener), Some(shelf))
            }
        });
        self.listens.push((Kind::of::<M>(), make));
        self
    }
}

/// The only one.
fn one_of<A: Component>(gates: &[Arc<Gate<A>>]) -> Option<&Arc<Gate<A>>> {
    if let [gate] = gates { Some(gate) } else { None }
}

/// The door of a component that is there once.
fn only<A, M>(gate: &Arc<Gate<A>>) -> Box<dyn Any + Send + Sync>
where
    A: Component + Handler<M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    let door: Arc<dyn Door<M>> = Arc::<Gate<A>>::clone(gate);
    Box::new(door)
}

/// Why a system does not start: every fault found, each with the names of both sides.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct WiringError {
    /// At least one.
    pub faults: Vec<WiringFault>,
}

/// One fault of the wiring.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WiringFault {
    /// A message nobody answers.
    #[error("{asker} asks {message}, which no component answers: add a component whose contract answers it")]
    Unanswered {
        /// Who asks.
        asker: &'static str,
        /// The message type.
        message: &'static str,
    },
    /// A message two components answer.
    #[error("{first} and {second} both answer {message}: one message has one answer")]
    AnsweredTwice {
        /// The component added first.
        first: &'static str,
        /// The component added second.
        second: &'static str,
        /// The message type.
        message: &'static str,
    },
    /// An event nobody announces.
    #[error(
        "{listener} listens to {event}, which no component announces: add one whose contract announces it, or \
             say `contract.may_listen`"
    )]
    Unannounced {
        /// Who listens.
        listener: &'static str,
        /// The event type.
        event: &'static str,
    },
    /// A component answers what is announced: it would never hear it.
    #[error("{announcer} announces {event}, which {answerer} answers: say `contract.listens` there")]
    AnsweredAndAnnounced {
        /// Who announces.
        announcer: &'static str,
        /// Who answers.
        answerer: &'static str,
        /// The event type.
        event: &'static str,
    },
    /// A factory took a topic that its component's contract does not name.
    #[error(
        "{announcer} takes the topic of {event}, which its contract does not name: \
             add `contract.announces::<{event}>()`"
    )]
    UndeclaredTopic {
        /// Whose factory.
        announcer: &'static str,
        /// The event type.
        event: &'static str,
    },
    /// Two components of one name.
    #[error("two components are named {name}")]
    NamedTwice {
        /// The name.
        name: &'static str,
    },
    /// A factory took a port that its component's contract does not name.
    #[error("{asker} takes a port for {message}, which its contract does not name: add `contract.asks::<{message}>()`")]
    Undeclared {
        /// Whose factory.
        asker: &'static str,
        /// The message type.
        message: &'static str,
    },
    /// A message to a component that is there several times, without a key.
    #[error("{component} is sharded, and {message} has no key to find its shard by: say `contract.answers_by` there")]
    NoKey {
        /// Which component.
        component: &'static str,
        /// The message type.
        message: &'static str,
    },
    /// A component is sharded over no arbiter at all.
    #[error("{component} is sharded over no arbiter: give it at least one")]
    NoShard {
        /// Which component.
        component: &'static str,
    },
    /// A constructor panicked.
    #[error("{component} could not be built: its constructor panicked: {text}")]
    Unbuildable {
        /// Whose constructor.
        component: &'static str,
        /// The text of the panic.
        text: String,
    },
    /// The arbiter a component was placed on has ended.
    #[error("{component} could not be placed: its arbiter has ended")]
    NoArbiter {
        /// Which component.
        component: &'static str,
    },
}

/// Who answers each message of a system, and who listens to each event.
#[derive(Default)]
pub(crate) struct Registry {
    doors: HashMap<TypeId, (&'static str, Box<dyn Any + Send + Sync>)>,
    listeners: HashMap<TypeId, Vec<Box<dyn Any + Send + Sync>>>,
    announced: HashSet<TypeId>,
}

impl Registry {
    /// Enters what a component of this name answers, through these gates of its shards; faults are collected.
    pub(crate) fn answered_by<A: Component>(
        &mut self,
        name: &'static str,
        contract: &Contract<A>,
        gates: &[Arc<Gate<A>>],
        faults: &mut Vec<WiringFault>,
    ) {
        for (kind, make) in &contract.answers {
            match (self.doors.get(&kind.id), make(gates)) {
                (Some((first, _)), _) => {
                    faults.push(WiringFault::AnsweredTwice { first, second: name, message: kind.name });
                }
                (None, Some(door)) => drop(self.doors.insert(kind.id, (name, door))),
                (None, None) => faults.push(WiringFault::NoKey { component: name, message: kind.name }),
            }
        }
    }

    /// Enters what a component, or one shard of it, hears and announces.
    pub(crate) fn enter<A: Component>(
        &mut self,
        contract: Contract<A>,
        gate: &Arc<Gate<A>>,
    ) -> (Needs, Vec<Arc<dyn Feed<A>>>) {
        let mut feeds = Vec::new();
        for (kind, make) in contract.listens {
            let (listener, feed) = make(gate);
            self.listeners.entry(kind.id).or_default().push(listener);
            feeds.extend(feed);
        }
        self.announced_by(&contract.needs);
        (contract.needs, feeds)
    }

    /// Enters what somebody announces.
    pub(crate) fn announced_by(&mut self, needs: &Needs) {
        self.announced.extend(needs.announces.iter().map(|kind| kind.id));
    }

    /// Checks that everything `asker` needs is answered or announced.
    pub(crate) fn check(&self, asker: &'static str, needs: &Needs, faults: &mut Vec<WiringFault>) {
        let unanswered = needs.asks.iter().filter(|kind| !self.doors.contains_key(&kind.id));
        faults.extend(unanswered.map(|kind| WiringFault::Unanswered { asker, message: kind.name }));
        let unannounced = needs.announced.iter().filter(|kind| !self.announced.contains(&kind.id));
        faults.extend(unannounced.map(|kind| WiringFault::Unannounced { listener: asker, event: kind.name }));
        let answered = needs.announces.iter().filter_map(|kind| Some((kind.name, self.doors.get(&kind.id)?.0)));
        faults.extend(answered.map(|(event, answerer)| WiringFault::AnsweredAndAnnounced {
            announcer: asker,
            answerer,
            event,
        }));
    }

    pub(crate) fn topic<M: Message<Result = ()> + Clone + Send + 'static>(&self) -> Topic<M> {
        let listeners = self.listeners.get(&TypeId::of::<M>()).into_iter().flatten();
        Topic::new(listeners.filter_map(|listener| listener.downcast_ref::<Arc<dyn Listener<M>>>()).cloned().collect())
    }

    pub(crate) fn announces<M: Message + 'static>(&self) -> bool {
        self.announced.contains(&TypeId::of::<M>())
    }

    pub(crate) fn port<M>(&self) -> Option<Port<M>>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let (_, door) = self.doors.get(&TypeId::of::<M>())?;
        Some(Port::new(Arc::clone(door.downcast_ref::<Arc<dyn Door<M>>>()?)))
    }
}

/// The ports and topics a component's contract entitles it to; handed to its factory.
#[derive(Clone)]
pub struct Ports(Arc<PortsOf>);

struct PortsOf {
    owner: &'static str,
    needs: Needs,
    registry: Arc<Registry>,
    undeclared: Mutex<Vec<WiringFault>>,
    figures: Figures,
}

impl Ports {
    pub(crate) fn new(owner: &'static str, needs: Needs, registry: Arc<Registry>) -> Self {
        Self(Arc::new(PortsOf { owner, needs, registry, undeclared: Mutex::default(), figures: Figures::default() }))
    }

    /// The port for `M`, which the contract names with [`Contract::asks`]. If it does not, the system does not start
    /// ([`WiringFault::Undeclared`]); until then the port refuses every message as stopped.
    pub fn port<M>(&self) -> Port<M>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let kind = Kind::of::<M>();
        let declared = self.0.needs.asks.iter().any(|asked| asked.id == kind.id);
        declared.then(|| self.0.registry.port()).flatten().unwrap_or_else(|| self.refuse(kind))
    }

    /// The port for `M`, named with [`Contract::may_ask`] (or `asks`), if a component of this system answers it.
    pub fn optional<M>(&self) -> Option<Port<M>>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        let kind = Kind::of::<M>();
        let mut declared = self.0.needs.may_ask.iter().chain(&self.0.needs.asks);
        if declared.any(|asked| asked.id == kind.id) { self.0.registry.port() } else { Some(self.refuse(kind)) }
    }

    fn refuse<M>(&self, kind: Kind) -> Port<M>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        tracing::error!(component = self.0.owner, message = kind.name, "a port that the contract does not name");
        self.undeclared(WiringFault::Undeclared { asker: self.0.owner, message: kind.name });
        Port::nowhere()
    }

    /// The topic of `M`, which the contract names with [`Contract::announces`]. If it does not, the system does not
    /// start ([`WiringFault::UndeclaredTopic`]); until then nobody hears what is announced.
    pub fn topic<M: Message<Result = ()> + Clone + Send + 'static>(&self) -> Topic<M> {
        let kind = Kind::of::<M>();
        if self.0.needs.announces.iter().any(|announced| announced.id == kind.id) {
            return self.0.registry.topic();
        }
        tracing::error!(component = self.0.owner, event = kind.name, "a topic that the contract does not name");
        self.undeclared(WiringFault::UndeclaredTopic { announcer: self.0.owner, event: kind.name });
        Topic::new(Vec::new())
    }

    /// Where the component writes a number about itself, which [`System::figures`](super::System::figures) tells.
    pub fn meter(&self, figure: Figure) -> Meter {
        self.0.figures.meter(figure)
    }

    /// The owner, and what it wrote.
    pub(crate) fn figures(&self) -> (&'static str, Vec<(Figure, u64)>) {
        (self.0.owner, self.0.figures.read())
    }

    fn undeclared(&self, fault: WiringFault) {
        self.0.undeclared.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
    }

    /// The faults of the factory calls so far.
    pub(crate) fn faults(&self) -> Vec<WiringFault> {
        self.0.undeclared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports").field("owner", &self.0.owner).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::short_name;

    #[test]
    fn a_message_is_named_without_its_path() {
        assert_eq!(short_name("kubeedge_proto::v1::ApplyState"), "ApplyState");
        assert_eq!(short_name("a::b::Boxed<c::d::Inner>"), "Boxed<c::d::Inner>");
        assert_eq!(short_name("u8"), "u8");
    }
}
