//! Who answers what: contracts, the check at start, and the ports that come out of it.

use super::{
    Component, Port,
    port::{Door, Gate},
};
use actix::{Handler, Message};
use std::{
    any::{Any, TypeId, type_name},
    collections::HashMap,
    fmt,
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

/// Makes the door of one message type from a component's gate; boxed as `Arc<dyn Door<M>>`.
type MakeDoor<A> = fn(&Arc<Gate<A>>) -> Box<dyn Any + Send + Sync>;

/// The messages that component `A` answers and asks; filled in by [`Component::contract`].
pub struct Contract<A: Component> {
    answers: Vec<(Kind, MakeDoor<A>)>,
    needs: Needs,
    component: PhantomData<fn(A)>,
}

/// What a component sends.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    asks: Vec<Kind>,
    may_ask: Vec<Kind>,
}

impl Needs {
    pub(crate) fn ask<M: Message + Send + 'static>(&mut self) {
        self.asks.push(Kind::of::<M>());
    }
}

impl<A: Component> Contract<A> {
    pub(crate) fn of_component() -> Self {
        let mut contract = Self { answers: Vec::new(), needs: Needs::default(), component: PhantomData };
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
        let make: MakeDoor<A> = |gate| {
            let door: Arc<dyn Door<M>> = Arc::<Gate<A>>::clone(gate);
            Box::new(door)
        };
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

    pub(crate) fn into_needs(self) -> Needs {
        self.needs
    }
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

/// Who answers each message of a system.
#[derive(Default)]
pub(crate) struct Registry {
    doors: HashMap<TypeId, (&'static str, Box<dyn Any + Send + Sync>)>,
}

impl Registry {
    /// Enters what `A` answers; faults are collected.
    pub(crate) fn enter<A: Component>(
        &mut self,
        contract: &Contract<A>,
        gate: &Arc<Gate<A>>,
        faults: &mut Vec<WiringFault>,
    ) {
        let name = gate.name();
        for (kind, make) in &contract.answers {
            match self.doors.get(&kind.id) {
                Some((first, _)) => {
                    faults.push(WiringFault::AnsweredTwice { first, second: name, message: kind.name });
                }
                None => drop(self.doors.insert(kind.id, (name, make(gate)))),
            }
        }
    }

    /// Checks that everything `asker` needs is answered.
    pub(crate) fn check(&self, asker: &'static str, needs: &Needs, faults: &mut Vec<WiringFault>) {
        let unanswered = needs.asks.iter().filter(|kind| !self.doors.contains_key(&kind.id));
        faults.extend(unanswered.map(|kind| WiringFault::Unanswered { asker, message: kind.name }));
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

/// The ports a component's contract entitles it to; handed to its factory.
#[derive(Clone)]
pub struct Ports(Arc<PortsOf>);

struct PortsOf {
    owner: &'static str,
    needs: Needs,
    registry: Arc<Registry>,
    undeclared: Mutex<Vec<&'static str>>,
}

impl Ports {
    pub(crate) fn new(owner: &'static str, needs: Needs, registry: Arc<Registry>) -> Self {
        Self(Arc::new(PortsOf { owner, needs, registry, undeclared: Mutex::new(Vec::new()) }))
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
        self.0.undeclared.lock().unwrap_or_else(PoisonError::into_inner).push(kind.name);
        Port::nowhere()
    }

    /// The faults of the factory calls so far.
    pub(crate) fn faults(&self) -> Vec<WiringFault> {
        let undeclared = self.0.undeclared.lock().unwrap_or_else(PoisonError::into_inner);
        undeclared.iter().map(|message| WiringFault::Undeclared { asker: self.0.owner, message }).collect()
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
