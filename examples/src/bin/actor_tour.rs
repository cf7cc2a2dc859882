//! The actor kit alone, in seven stops: wiring, ports, topics, supervision, the watchdog, observation, ordered stop. Nothing
//! of KubeEdge runs.
//!
//! `actor_tour` prints what it does; it needs nothing and takes a second.

#![allow(clippy::print_stdout, reason = "its output is for a person")]

use std::time::Duration;

use actix::{AtomicResponse, Handler, Message, ResponseActFuture, WrapFuture};
use anyhow::Result;
use kubeedge_actors::system::{
    Component, Context, Contract, Overflow, Port, Ports, RestartPolicy, Stage, System, metrics,
};

const DEADLINE: Duration = Duration::from_secs(5);

/// A measurement comes in. Nobody waits for an answer.
#[derive(Message)]
#[rtype(result = "()")]
struct Measured(f64);

/// Has the sensor find its zero, which it never does.
#[derive(Message)]
#[rtype(result = "()")]
struct Calibrate;

/// An event: nobody answers it, everybody who listens hears it.
#[derive(Message, Clone)]
#[rtype(result = "()")]
struct Weather(&'static str);

/// Keeps a value and answers how many there are.
#[derive(Message)]
#[rtype(result = "usize")]
struct Keep(f64);

/// Answers the mean of everything kept.
#[derive(Message)]
#[rtype(result = "Option<f64>")]
struct Mean;

/// Where measurements come in. Its contract says what it answers and what it asks.
struct Sensor {
    keep: Port<Keep>,
}

impl actix::Actor for Sensor {
    type Context = Context<Self>;
}

impl Component for Sensor {
    const NAME: &'static str = "sensor";
    const STAGE: Stage = Stage::Source;
    const CAPACITY: usize = 4;
    /// Without progress for this long it is stuck.
    const HEARTBEAT: Duration = Duration::from_millis(600);

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<Measured>().answers::<Calibrate>().asks::<Keep>();
    }
}

impl Handler<Measured> for Sensor {
    /// A future with the component in hand: an ordered stop waits for it.
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, Measured(value): Measured, _: &mut Context<Self>) -> Self::Result {
        assert!(value.is_finite(), "{value} is no measurement");
        let keep = self.keep.clone();
        Box::pin(
            async move {
                match keep.ask(Keep(value), DEADLINE).await {
                    Ok(count) => println!("  kept {value}, that is {count}"),
                    Err(error) => println!("  {value} was not kept: {error}"),
                }
            }
            .into_actor(self),
        )
    }
}

impl Handler<Calibrate> for Sensor {
    /// A future that keeps every other message out until it ends.
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, _: Calibrate, _: &mut Context<Self>) -> Self::Result {
        AtomicResponse::new(Box::pin(std::future::pending().into_actor(self)))
    }
}

/// Shows the weather. Nobody waits for it: it is content with the newest.
struct Display;

impl actix::Actor for Display {
    type Context = Context<Self>;
}

impl Component for Display {
    const NAME: &'static str = "display";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.listens::<Weather>(Overflow::newest_per_key(1, |_| ()));
    }
}

impl Handler<Weather> for Display {
    type Result = ();

    fn handle(&mut self, Weather(what): Weather, _: &mut Context<Self>) {
        println!("  the display shows {what}");
    }
}

/// What keeps them.
#[derive(Default)]
struct Archive(Vec<f64>);

impl actix::Actor for Archive {
    type Context = Context<Self>;
}

impl Component for Archive {
    const NAME: &'static str = "archive";
    const STAGE: Stage = Stage::Store;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<Keep>().answers::<Mean>();
    }

    fn stop(&mut self, _: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        println!("  the archive closes with {} values", self.0.len());
        Box::pin(actix::fut::ready(()))
    }
}

impl Handler<Keep> for Archive {
    type Result = usize;

    fn handle(&mut self, Keep(value): Keep, _: &mut Context<Self>) -> usize {
        self.0.push(value);
        self.0.len()
    }
}

impl Handler<Mean> for Archive {
    type Result = Option<f64>;

    fn handle(&mut self, _: Mean, _: &mut Context<Self>) -> Option<f64> {
        let count = u32::try_from(self.0.len()).ok().filter(|count| *count > 0)?;
        Some(self.0.iter().sum::<f64>() / f64::from(count))
    }
}

fn main() -> Result<()> {
    actix_rt::System::new().block_on(tour())
}

async fn tour() -> Result<()> {
    println!("1. A wiring fault is an error at start, not a message lost at night:");
    let alone = System::builder("half").component(|ports: &Ports| Sensor { keep: ports.port() }).start();
    if let Err(error) = alone {
        println!("  {error}");
    }

    println!("2. Whole, it starts. Ports are typed and bounded; an ask has a deadline:");
    let system = System::builder("tour")
        .component(|ports: &Ports| Sensor { keep: ports.port() })
        .component(|_: &Ports| Display)
        .component(|_: &Ports| Archive::default())
        .asks::<Calibrate>()
        .announces::<Weather>()
        .asks::<Measured>()
        .asks::<Mean>()
        .restart_policy(RestartPolicy { base: Duration::from_millis(50), ..RestartPolicy::default() })
        .start()?;
    let (measured, mean) = (system.port::<Measured>(), system.port::<Mean>());
    measured.ask(Measured(20.0), DEADLINE).await?;
    measured.ask(Measured(22.0), DEADLINE).await?;
    println!("  the mean is {:?}", mean.ask(Mean, DEADLINE).await?);
    let refused = (0..10).filter(|_| measured.try_tell(Measured(24.0)).is_err()).count();
    println!("  of 10 told at once, {refused} were refused and handed back: its queue holds 4");

    println!("3. An event goes to everybody who listens, by each listener's own rule for what it has no time for:");
    let weather = system.topic::<Weather>();
    for what in ["rain", "snow", "sun"] {
        weather.announce(Weather(what)).await;
    }
    tokio::task::yield_now().await;

    println!("4. A component that panics is built again in place; its queue and its neighbours stay:");
    let asked = measured.ask(Measured(f64::NAN), DEADLINE).await;
    println!("  who asked is told: {asked:?}");
    measured.ask(Measured(26.0), DEADLINE).await?;

    println!("5. So is one that awaits for ever: it misses its heartbeat, and who asked is told:");
    let stuck = system.port::<Calibrate>().ask(Calibrate, DEADLINE).await;
    println!("  {stuck:?}");
    measured.ask(Measured(27.0), DEADLINE).await?;

    println!("6. What happened can be seen from outside, and scraped:");
    for one in system.observe() {
        let (name, superseded) = (one.name, one.dropped.superseded);
        println!("  {name}: {} handled, {} panics, {} restarts", one.handled, one.panics, one.restarts);
        println!("  {name}: {} times stuck, {superseded} events superseded", one.stuck);
    }
    for one in system.parked() {
        println!("  {} was parked by {}: {}", one.message, one.component, one.panic);
    }
    for line in metrics::open_metrics(&system)?.lines().filter(|line| line.starts_with("kubeedge_actor_restarts")) {
        println!("  {line}");
    }

    println!("7. It stops in order, sources first, stores last; what is queued is finished:");
    measured.tell(Measured(28.0)).await?;
    for (name, exit) in system.stop(DEADLINE).await {
        println!("  {name}: {exit}");
    }
    Ok(())
}
