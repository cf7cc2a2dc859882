//! The system: building, starting, observing and stopping a set of components.

use super::{
    Component, Exit, Figure, Observation, Parked, Port, Ports, RestartPolicy, Shard, Stage, Topic, WiringError,
    WiringFault,
    launch::{Here, Sharded, There, Unwired},
    parked::Lot,
    port::Watched,
    restart::stage_share,
    vitals::{Command, Commons},
    watchdog::{self, Blocked, WhenBlocked},
    wiring::{Needs, Registry},
};
use actix::Message;
use actix_rt::ArbiterHandle;
use futures_util::future::join_all;
use std::{collections::HashSet, future::Future, sync::Arc, time::Duration};
use tokio::{
    sync::{OnceCell, watch},
    time::{Instant, timeout_at},
};

/// How long the stop that follows a component's final failure may take.
const STOP_AFTER_FAILURE: Duration = Duration::from_secs(10);

/// How long a component that was told to go may take to be dropped; longer, and its arbiter itself is stuck.
const DROP_GRACE: Duration = Duration::from_secs(1);

/// A set of components, wired.
pub struct SystemBuilder {
    name: String,
    components: Vec<Box<dyn Unwired>>,
    outside: Needs,
    policy: RestartPolicy,
    dice: fn() -> f64,
    stop_after_failure: Duration,
    when_blocked: Option<WhenBlocked>,
}

impl SystemBuilder {
    /// Adds a component for the arbiter that starts the system. The factory runs at start, after wiring, and again
    /// after each failure.
    pub fn component<A, F>(mut self, factory: F) -> Self
    where
        A: Component,
        F: Fn(&Ports) -> A + 'static,
    {
        self.components.push(Box::new(Here(A::NAME, factory)));
        self
    }

    /// Adds a component under another name than its type's, so that a system can hold several of one type.
    #[cfg(any(test, feature = "test-kit"))]
    pub(crate) fn component_named<A, F>(mut self, name: &'static str, factory: F) -> Self
    where
        A: Component,
        F: Fn(&Ports) -> A + 'static,
    {
        self.components.push(Box::new(Here(name, factory)));
        self
    }

    /// Adds a component that lives on another arbiter. A wiring fault or a panic of its factory cannot be returned by
    /// [`start`](Self::start): it ends the component as `Failed`, and with it the system.
    pub fn component_on<A, F>(mut self, arbiter: &ArbiterHandle, factory: F) -> Self
    where
        A: Component,
        F: Fn(&Ports) -> A + Send + 'static,
    {
        self.components.push(Box::new(There(factory, arbiter.clone())));
        self
    }

    /// Adds a component several times, one shard on each of these arbiters: for work that is split by a key, such as
    /// the sessions of nodes, over the cores. Every message it answers needs a key
    /// ([`Contract::answers_by`](super::Contract::answers_by)): its port leads to the shard of that key. Events are
    /// heard by every shard.
    ///
    /// The shards are named `<NAME>/0`, `<NAME>/1` ...; each has a queue, a restart budget and metrics of its own.
    /// Wiring faults and panics of the factory end the shard, as with [`component_on`](Self::component_on).
    pub fn sharded<A, F>(mut self, arbiters: &[ArbiterHandle], factory: F) -> Self
    where
        A: Component,
        F: Fn(&Ports, Shard) -> A + Clone + Send + 'static,
    {
        self.components.push(Box::new(Sharded(factory, arbiters.to_vec())));
        self
    }

    /// Declares that the program around the system sends `M` through [`System::port`]: checked at start.
    pub fn asks<M: Message + Send + 'static>(mut self) -> Self {
        self.outside.ask::<M>();
        self
    }

    /// Declares that the program around the system announces `M` through [`System::topic`].
    pub fn announces<M: Message<Result = ()> + Clone + Send + 'static>(mut self) -> Self {
        self.outside.announce::<M>();
        self
    }

    /// How failed components are built again.
    pub fn restart_policy(mut self, policy: RestartPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Takes the place of the randomness in waits before a rebuild.
    #[cfg(test)]
    pub(crate) fn dice(mut self, dice: fn() -> f64) -> Self {
        self.dice = dice;
        self
    }

    /// How long the stop may take that follows a component's final failure. Default 10 s.
    pub fn stop_after_failure(mut self, deadline: Duration) -> Self {
        self.stop_after_failure = deadline;
        self
    }

    /// What to do about a component that has blocked its arbiter for twice its
    /// [`HEARTBEAT`](Component::HEARTBEAT), on the watchdog's own thread. By default nothing: the component counts as
    /// ended and the system stops in order, which it cannot if it was started on that arbiter. A program on one arbiter
    /// ends its process here, for somebody to start it again.
    pub fn when_blocked(mut self, tell: impl Fn(&Blocked) + Send + Sync + 'static) -> Self {
        self.when_blocked = Some(Arc::new(tell));
        self
    }

    /// Checks the wiring, builds every component and starts them, in a running actix system.
    pub fn start(self) -> Result<System, WiringError> {
        let commons = Arc::new(Commons { failures: watch::Sender::new(None), lot: Lot::default(), dice: self.dice });
        let mut registry = Registry::default();
        let mut faults = Vec::new();
        let mut entered = Vec::with_capacity(self.components.len());
        let mut names = HashSet::new();
        for component in self.components {
            for component in component.enter(&mut registry, &commons, &mut faults) {
                if !names.insert(component.name) {
                    faults.push(WiringFault::NamedTwice { name: component.name });
                }
                entered.push(component);
            }
        }
        registry.announced_by(&self.outside);
        for component in &entered {
            registry.check(component.name, &component.needs, &mut faults);
        }
        registry.check("the program around the system", &self.outside, &mut faults);
        if !faults.is_empty() {
            return Err(WiringError { faults });
        }

        let registry = Arc::new(registry);
        let mut components = Vec::with_capacity(entered.len());
        let mut built = Vec::with_capacity(entered.len());
        let mut all_ports = Vec::with_capacity(entered.len());
        for component in entered {
            let ports = Ports::new(component.name, component.needs, Arc::clone(&registry));
            match (component.build)(ports.clone(), self.policy) {
                Ok(begin) => built.push(begin),
                Err(fault) => faults.push(fault),
            }
            faults.extend(ports.faults());
            components.push(component.watched);
            all_ports.push(ports);
        }
        if !faults.is_empty() {
            return Err(WiringError { faults });
        }

        let system = System(Arc::new(Inner {
            name: self.name,
            components,
            ports: all_ports,
            registry,
            commons,
            exits: OnceCell::new(),
        }));
        for begin in built {
            if let Err(fault) = begin() {
                // What has begun is told to go; nobody waits for it.
                system.0.components.iter().for_each(|component| component.vitals().order(Command::Abort));
                return Err(WiringError { faults: vec![fault] });
            }
        }
        actix_rt::spawn(system.clone().stop_when_failed(self.stop_after_failure));
        watchdog::guard(&system.0.name, &system.0.components, self.when_blocked.as_ref());
        actix_rt::spawn(watchdog::watch(system.0.components.clone()));
        tracing::info!(system = system.0.name, components = system.0.components.len(), "started");
        Ok(system)
    }
}

/// A running set of components. Cheap to clone; dropping it stops nothing.
#[derive(Clone)]
pub struct System(Arc<Inner>);

struct Inner {
    name: String,
    components: Vec<Arc<dyn Watched>>,
    ports: Vec<Ports>,
    registry: Arc<Registry>,
    commons: Arc<Commons>,
    exits: OnceCell<Vec<(&'static str, Exit)>>,
}

impl System {
    /// Begins a system; the name is for logs.
    pub fn builder(name: impl Into<String>) -> SystemBuilder {
        SystemBuilder {
            name: name.into(),
            components: Vec::new(),
            outside: Needs::default(),
            policy: RestartPolicy::default(),
            dice: rand::random,
            stop_after_failure: STOP_AFTER_FAILURE,
            when_blocked: None,
        }
    }

    /// The port for `M`. If no component answers it, that is logged and the port refuses every message as stopped:
    /// declare it with [`SystemBuilder::asks`] to have it checked at start.
    pub fn port<M>(&self) -> Port<M>
    where
        M: Message + Send + 'static,
        M::Result: Send,
    {
        self.0.registry.port().unwrap_or_else(|| {
            tracing::error!(system = self.0.name, message = std::any::type_name::<M>(), "no component answers it");
            Port::nowhere()
        })
    }

    /// The topic of `M`, for the program around the system; declare it with [`SystemBuilder::announces`]. If nobody in
    /// the system announces `M` either, that is logged, for then listeners are not checked at start.
    pub fn topic<M: Message<Result = ()> + Clone + Send + 'static>(&self) -> Topic<M> {
        if !self.0.registry.announces::<M>() {
            tracing::error!(system = self.0.name, event = std::any::type_name::<M>(), "nobody declared to announce it");
        }
        self.0.registry.topic()
    }

    /// Puts a fault into the queue of the component of this name; `false` when there is none, or no room.
    #[cfg(any(test, feature = "test-kit"))]
    pub(crate) fn sabotage(&self, component: &str, fault: super::testing::Fault) -> bool {
        self.0.components.iter().any(|one| one.vitals().name == component && one.sabotage(fault.clone()))
    }

    /// Every component as it is now, in the order in which they were added.
    pub fn observe(&self) -> Vec<Observation> {
        self.0.components.iter().map(|component| component.observe()).collect()
    }

    /// The messages that crashed their handler last and are not tried again, oldest first, at most 64. All of them are
    /// counted ([`parked_counts`](Self::parked_counts)).
    pub fn parked(&self) -> Vec<Parked> {
        self.0.commons.lot.reports()
    }

    /// How many messages were parked since the start, by component and message type.
    pub fn parked_counts(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.0.commons.lot.counts()
    }

    /// Takes the parked messages of this type that were kept, oldest first: to look at them, or to send them again to a
    /// program that is mended. Kept are those that a component [answers again](super::Contract::answers_again).
    pub fn take_parked<M: 'static>(&self) -> Vec<M> {
        self.0.commons.lot.take()
    }

    /// What every component tells about itself, with its name, in the order in which they were added.
    pub fn figures(&self) -> Vec<(&'static str, Vec<(Figure, u64)>)> {
        self.0.ports.iter().map(Ports::figures).collect()
    }

    /// Resolves when a component has failed more often than its restart budget allows: its name and its exit. The
    /// system stops in order by itself; await [`stop`](Self::stop) for the exits.
    pub fn failed(&self) -> impl Future<Output = (&'static str, Exit)> + Send + use<> {
        let mut failures = self.0.commons.failures.subscribe();
        let keep = Arc::clone(&self.0);
        async move {
            let failed = match failures.wait_for(Option::is_some).await {
                Ok(failed) => failed.clone(),
                Err(_) => None,
            };
            drop(keep);
            match failed {
                Some(failed) => failed,
                None => std::future::pending().await,
            }
        }
    }

    /// Stops every component, stage by stage: sources, processors, links, stores. Each finishes its queue and the
    /// replies under way and runs its `stop`; then the next stage begins.
    ///
    /// The deadline is for all stages together, and no stage may use more than half of what remains while others wait
    /// behind it. Who does not make it is dropped ([`Exit::Stuck`]). A second call waits for the first and returns the
    /// same, in the order in which the components were added.
    pub async fn stop(&self, deadline: Duration) -> Vec<(&'static str, Exit)> {
        self.0.exits.get_or_init(|| self.stop_stages(deadline)).await.clone()
    }

    async fn stop_stages(&self, deadline: Duration) -> Vec<(&'static str, Exit)> {
        tracing::info!(system = self.0.name, ?deadline, "stopping");
        let now = Instant::now();
        let end = now.checked_add(deadline).unwrap_or(now);
        let stages: Vec<Vec<&Arc<dyn Watched>>> = Stage::ORDER
            .iter()
            .map(|stage| self.0.components.iter().filter(|component| component.vitals().stage == *stage).collect())
            .filter(|stage: &Vec<_>| !stage.is_empty())
            .collect();
        for (i, stage) in stages.iter().enumerate() {
            let now = Instant::now();
            let share = stage_share(end.saturating_duration_since(now), stages.len() - 1 - i);
            join_all(stage.iter().map(|component| stop_one(component, now + share))).await;
        }
        self.0
            .components
            .iter()
            .map(|component| {
                let exit = component.vitals().exit().borrow().clone();
                (component.vitals().name, exit.unwrap_or(Exit::Stuck))
            })
            .collect()
    }

    async fn stop_when_failed(self, deadline: Duration) {
        let mut failures = self.0.commons.failures.subscribe();
        let mut exits: Vec<_> = self.0.components.iter().map(|component| component.vitals().exit()).collect();
        let all_ended = join_all(exits.iter_mut().map(|exit| exit.wait_for(Option::is_some)));
        let failed = tokio::select! {
            failed = failures.wait_for(Option::is_some) => failed.ok().and_then(|failed| failed.clone()),
            _ = all_ended => None,
        };
        if let Some((component, exit)) = failed {
            tracing::error!(system = self.0.name, component, %exit, "a component ended for good: the system stops");
            self.stop(deadline).await;
        }
    }
}

impl std::fmt::Debug for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("System").field("name", &self.0.name).finish_non_exhaustive()
    }
}

async fn stop_one(component: &Arc<dyn Watched>, deadline: Instant) {
    let vitals = component.vitals();
    let mut exit = vitals.exit();
    vitals.order(Command::Stop);
    if timeout_at(deadline, exit.wait_for(Option::is_some)).await.is_ok() {
        return;
    }
    tracing::error!(component = vitals.name, "did not stop within its deadline and is dropped");
    vitals.order(Command::Abort);
    let dropped = tokio::time::timeout(DROP_GRACE, exit.wait_for(Option::is_some)).await;
    if dropped.is_err() {
        tracing::error!(component = vitals.name, "cannot even be dropped: its arbiter is stuck");
    }
}
