//! The actor kit: components, the ports between them, supervision and ordered stop.
//!
//! actix is the engine; this is what it leaves open. A [`Component`] is an actix actor with a name, a factory and a
//! [`Contract`]; a [`Port`] is the bounded, typed way to whoever answers a message, a [`Topic`] the one to everybody who
//! listens to an event; a [`System`] checks at start that
//! every ask has exactly one answer and every listener somebody who announces, builds a component again in place when it fails, with its queue kept, and stops
//! everything in order.
//!
//! `docs/runtime-semantics.md` lists each guarantee with the test that proves it, and what is not guaranteed.
//!
//! ```
//! use actix::{Handler, Message};
//! use kubeedge_actors::system::{Component, Context, Contract, Exit, Ports, Stage, System};
//! use std::time::Duration;
//!
//! #[derive(Message)]
//! #[rtype(result = "u64")]
//! struct Add(u64);
//!
//! #[derive(Default)]
//! struct Counter(u64);
//!
//! impl actix::Actor for Counter {
//!     type Context = Context<Self>;
//! }
//!
//! impl Component for Counter {
//!     const NAME: &'static str = "counter";
//!     const STAGE: Stage = Stage::Processor;
//!
//!     fn contract(contract: &mut Contract<Self>) {
//!         contract.answers::<Add>();
//!     }
//! }
//!
//! impl Handler<Add> for Counter {
//!     type Result = u64;
//!
//!     fn handle(&mut self, Add(n): Add, _ctx: &mut Context<Self>) -> u64 {
//!         self.0 += n;
//!         self.0
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! actix_rt::System::new().block_on(async {
//!     let system = System::builder("example").component(|_: &Ports| Counter::default()).asks::<Add>().start()?;
//!     let add = system.port::<Add>();
//!     add.tell(Add(40)).await?;
//!     assert_eq!(add.ask(Add(2), Duration::from_secs(1)).await?, 42);
//!     assert_eq!(system.stop(Duration::from_secs(1)).await, [("counter", Exit::Stopped)]);
//!     Ok(())
//! })
//! # }
//! ```

mod again;
mod buffer;
mod component;
mod context;
mod driver;
mod figures;
mod handle;
mod heartbeat;
mod launch;
mod letter;
#[cfg(feature = "metrics")]
pub mod metrics;
mod observed;
mod parked;
mod port;
mod progress;
mod queue;
mod restart;
mod shard;
mod topic;
pub mod trace;
mod vitals;
mod watchdog;
mod wiring;

#[cfg(any(test, feature = "test-kit"))]
pub mod testing;

#[cfg(test)]
mod tests;

pub use component::{Component, Exit, Stage};
pub use context::Context;
pub use figures::{Figure, Meter};
pub use handle::{System, SystemBuilder};
pub use heartbeat::Heartbeat;
pub use observed::Observed;
pub use parked::Parked;
pub use port::{AskError, Port, TellError, TryTellError};
pub use restart::RestartPolicy;
pub use shard::Shard;
pub use topic::{NoRoom, Overflow, Topic};
pub use vitals::{Drops, Observation, Phase};
pub use watchdog::Blocked;
pub use wiring::{Contract, Ports, WiringError, WiringFault};
