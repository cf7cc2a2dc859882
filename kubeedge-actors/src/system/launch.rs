//! From a factory to a running component, on this arbiter or another.

use super::{
    Component, Contract, Ports, RestartPolicy, Shard, WiringFault,
    context::panic_text,
    driver::{Factory, Plan, Shell},
    letter::Letter,
    port::{Gate, Watched},
    queue::{Receiver, queue},
    shard::shard_name,
    topic::Feeds,
    vitals::{Commons, Vitals},
    wiring::{Needs, Registry},
};
use actix_rt::ArbiterHandle;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::Arc,
};

/// A component that is yet to be wired.
pub(crate) trait Unwired {
    /// Makes its queue, or one for each of its shards, and enters what it answers.
    fn enter(
        self: Box<Self>,
        registry: &mut Registry,
        commons: &Arc<Commons>,
        faults: &mut Vec<WiringFault>,
    ) -> Vec<Entered>;
}

/// A component whose queue exists: others can be wired to it.
pub(crate) struct Entered {
    pub(crate) name: &'static str,
    pub(crate) watched: Arc<dyn Watched>,
    pub(crate) needs: Needs,
    pub(crate) build: Box<dyn FnOnce(Ports, RestartPolicy) -> Result<Built, WiringFault>>,
}

/// A component that is there, and begins when this is called.
pub(crate) type Built = Box<dyn FnOnce() -> Result<(), WiringFault>>;

/// A component for this arbiter, with the name it has in this system.
pub(crate) struct Here<F>(pub(crate) &'static str, pub(crate) F);

/// A component for another arbiter.
pub(crate) struct There<F>(pub(crate) F, pub(crate) ArbiterHandle);

/// A component with a shard on each of these arbiters.
pub(crate) struct Sharded<F>(pub(crate) F, pub(crate) Vec<ArbiterHandle>);

/// What exists of a component, or of one shard of it, before it is built.
struct Entrance<A: Component> {
    name: &'static str,
    queue: Receiver<Letter<A>>,
    feeds: Feeds<A>,
    gate: Arc<Gate<A>>,
    vitals: Arc<Vitals>,
    needs: Needs,
}

/// Makes the queues of a component of this name, one for each of these shards of it.
fn entrances<A: Component>(
    name: &'static str,
    shards: &[&'static str],
    registry: &mut Registry,
    commons: &Arc<Commons>,
    faults: &mut Vec<WiringFault>,
) -> Vec<Entrance<A>> {
    let (gates, queues): (Vec<_>, Vec<_>) = shards
        .iter()
        .map(|shard| {
            let vitals = Arc::new(Vitals::new(shard, A::STAGE, Arc::clone(commons)));
            // P-BOUNDED-QUEUE
            let (sender, queue) = queue(A::CAPACITY);
            (Arc::new(Gate::new(sender, vitals)), queue)
        })
        .unzip();
    registry.answered_by(name, &Contract::<A>::of_component(), &gates, faults);
    let entered = gates.into_iter().zip(queues).map(|(gate, queue)| {
        let vitals = Arc::clone(gate.vitals());
        let (needs, feeds) = registry.enter(Contract::<A>::of_component(), &gate);
        let feeds = Feeds::new(feeds, Arc::clone(&vitals));
        Entrance { name: vitals.name, queue, feeds, gate, vitals, needs }
    });
    entered.collect()
}

fn construct<A: Component>(name: &'static str, factory: &dyn Fn(&Ports) -> A, ports: &Ports) -> Result<A, WiringFault> {
    catch_unwind(AssertUnwindSafe(|| factory(ports)))
        .map_err(|panic| WiringFault::Unbuildable { component: name, text: panic_text(&*panic).to_owned() })
}

impl<A: Component> Entrance<A> {
    /// Built and run by this arbiter.
    fn here(self, factory: impl Fn(&Ports) -> A + 'static) -> Entered {
        let Entrance { name, queue, feeds, gate, vitals, needs } = self;
        let build = Box::new(move |ports: Ports, policy| {
            let factory: Factory<A> = Rc::new(factory);
            let component = construct(name, &*factory, &ports)?;
            let plan = Plan { queue, feeds, factory, ports, policy, vitals };
            Ok(Box::new(move || {
                actix_rt::spawn(Shell::new(component, plan));
                Ok(())
            }) as Built)
        });
        Entered { name, watched: gate, needs, build }
    }

    /// Built and run by another.
    fn there(self, factory: impl Fn(&Ports) -> A + Send + 'static, arbiter: ArbiterHandle) -> Entered {
        let Entrance { name, queue, feeds, gate, vitals, needs } = self;
        let build = Box::new(move |ports: Ports, policy| {
            Ok(Box::new(move || {
                let placed = arbiter.spawn_fn(move || {
                    let factory: Factory<A> = Rc::new(factory);
                    // Too late to refuse the start: the fault ends the component and with it the system.
                    let built = construct(name, &*factory, &ports);
                    let faults = ports.faults();
                    match (built, faults.first()) {
                        (Ok(component), None) => {
                            let plan = Plan { queue, feeds, factory, ports, policy, vitals };
                            actix_rt::spawn(Shell::new(component, plan));
                        }
                        (Err(fault), _) => vitals.exited(super::Exit::Failed(fault.to_string())),
                        (_, Some(fault)) => vitals.exited(super::Exit::Failed(fault.to_string())),
                    }
                });
                if placed { Ok(()) } else { Err(WiringFault::NoArbiter { component: name }) }
            }) as Built)
        });
        Entered { name, watched: gate, needs, build }
    }
}

impl<A, F> Unwired for Here<F>
where
    A: Component,
    F: Fn(&Ports) -> A + 'static,
{
    fn enter(
        self: Box<Self>,
        registry: &mut Registry,
        commons: &Arc<Commons>,
        faults: &mut Vec<WiringFault>,
    ) -> Vec<Entered> {
        let Here(name, factory) = *self;
        // One name, one entrance.
        let entrance = entrances::<A>(name, &[name], registry, commons, faults).pop();
        entrance.map(|entrance| entrance.here(factory)).into_iter().collect()
    }
}

impl<A, F> Unwired for There<F>
where
    A: Component,
    F: Fn(&Ports) -> A + Send + 'static,
{
    fn enter(
        self: Box<Self>,
        registry: &mut Registry,
        commons: &Arc<Commons>,
        faults: &mut Vec<WiringFault>,
    ) -> Vec<Entered> {
        let There(factory, arbiter) = *self;
        let entrance = entrances::<A>(A::NAME, &[A::NAME], registry, commons, faults).pop();
        entrance.map(|entrance| entrance.there(factory, arbiter)).into_iter().collect()
    }
}

impl<A, F> Unwired for Sharded<F>
where
    A: Component,
    F: Fn(&Ports, Shard) -> A + Clone + Send + 'static,
{
    fn enter(
        self: Box<Self>,
        registry: &mut Registry,
        commons: &Arc<Commons>,
        faults: &mut Vec<WiringFault>,
    ) -> Vec<Entered> {
        let Sharded(factory, arbiters) = *self;
        let of = arbiters.len();
        if of == 0 {
            faults.push(WiringFault::NoShard { component: A::NAME });
            return Vec::new();
        }
        let names: Vec<_> = (0..of).map(|index| shard_name(A::NAME, index)).collect();
        let entrances = entrances::<A>(A::NAME, &names, registry, commons, faults);
        let placed = entrances.into_iter().zip(arbiters).enumerate().map(|(index, (entrance, arbiter))| {
            let (factory, shard) = (factory.clone(), Shard { index, of });
            entrance.there(move |ports: &Ports| factory(ports, shard), arbiter)
        });
        placed.collect()
    }
}
