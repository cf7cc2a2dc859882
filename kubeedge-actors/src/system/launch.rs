//! From a factory to a running component, on this arbiter or another.

use super::{
    Component, Contract, Ports, RestartPolicy, WiringFault,
    context::panic_text,
    driver::{Factory, Plan, Shell},
    letter::Letter,
    port::{Gate, Watched},
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
use tokio::sync::mpsc;

/// A component that is yet to be wired.
pub(crate) trait Unwired {
    /// Makes its queue and enters what it answers.
    fn enter(
        self: Box<Self>,
        registry: &mut Registry,
        commons: &Arc<Commons>,
        faults: &mut Vec<WiringFault>,
    ) -> Entered;
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

/// What exists of a component before it is built.
struct Entrance<A: Component> {
    queue: mpsc::Receiver<Letter<A>>,
    feeds: Feeds<A>,
    gate: Arc<Gate<A>>,
    vitals: Arc<Vitals>,
    needs: Needs,
}

fn entrance<A: Component>(
    name: &'static str,
    registry: &mut Registry,
    commons: &Arc<Commons>,
    faults: &mut Vec<WiringFault>,
) -> Entrance<A> {
    let vitals = Arc::new(Vitals::new(name, A::STAGE, Arc::clone(commons)));
    // P-BOUNDED-QUEUE
    let (sender, queue) = mpsc::channel(A::CAPACITY.max(1));
    let gate = Arc::new(Gate::new(sender, Arc::clone(&vitals)));
    let (needs, feeds) = registry.enter(Contract::<A>::of_component(), &gate, faults);
    let feeds = Feeds::new(feeds, Arc::clone(&vitals));
    Entrance { queue, feeds, gate, vitals, needs }
}

fn construct<A: Component>(factory: &dyn Fn(&Ports) -> A, ports: &Ports) -> Result<A, WiringFault> {
    catch_unwind(AssertUnwindSafe(|| factory(ports)))
        .map_err(|panic| WiringFault::Unbuildable { component: A::NAME, text: panic_text(&*panic).to_owned() })
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
    ) -> Entered {
        let name = self.0;
        let Entrance { queue, feeds, gate, vitals, needs } = entrance::<A>(name, registry, commons, faults);
        let build = Box::new(move |ports: Ports, policy| {
            let factory: Factory<A> = Rc::new(self.1);
            let component = construct(&*factory, &ports)?;
            let plan = Plan { queue, feeds, factory, ports, policy, vitals };
            Ok(Box::new(move || {
                actix_rt::spawn(Shell::new(component, plan));
                Ok(())
            }) as Built)
        });
        Entered { name, watched: gate, needs, build }
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
    ) -> Entered {
        let Entrance { queue, feeds, gate, vitals, needs } = entrance::<A>(A::NAME, registry, commons, faults);
        let build = Box::new(move |ports: Ports, policy| {
            let There(factory, arbiter) = *self;
            Ok(Box::new(move || {
                let placed = arbiter.spawn_fn(move || {
                    let factory: Factory<A> = Rc::new(factory);
                    // Too late to refuse the start: the fault ends the component and with it the system.
                    let built = construct(&*factory, &ports);
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
                if placed { Ok(()) } else { Err(WiringFault::NoArbiter { component: A::NAME }) }
            }) as Built)
        });
        Entered { name: A::NAME, watched: gate, needs, build }
    }
}
