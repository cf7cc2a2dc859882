//! A kit for tests of components: a system of their own with a stopped clock, neighbours that record, faults on demand.
//!
//! Cargo feature `test-kit`, for `[dev-dependencies]` only.
//!
//! * [`run`] gives a test an actix runtime whose clock stands still and jumps to the next timer when nothing else is to
//!   be done: waits of hours cost nothing.
//! * [`TestSystem`] is a [`System`](super::System) that has to come to a quiet end: [`TestSystem::assert_quiet`] stops
//!   it and fails on every panic, restart, unanswered message and component that does not exit, unless the test said
//!   beforehand that it [expects](TestSystemBuilder::expect) it.
//! * [`Recorder`] is the neighbour that answers one message type, or listens to it: it keeps what it receives and replies from a closure
//!   or a list; it panics, fails or takes its time at the message the test names.
//! * [`Fault`]s go into the queue of the component under test itself.
//!
//! ```
//! use actix::{Handler, Message};
//! use kubeedge_actors::system::testing::{self, Counts, Fault, Recorder, TestSystem};
//! use kubeedge_actors::system::{Component, Context, Contract, Port, Ports, Stage};
//!
//! /// What the component under test asks of somebody else.
//! #[derive(Message, Clone, Debug, PartialEq)]
//! #[rtype(result = "bool")]
//! struct OpenValve(u32);
//!
//! #[derive(Message)]
//! #[rtype(result = "()")]
//! struct Pressure(f64);
//!
//! struct Guard {
//!     valve: Port<OpenValve>,
//! }
//!
//! impl actix::Actor for Guard {
//!     type Context = Context<Self>;
//! }
//!
//! impl Component for Guard {
//!     const NAME: &'static str = "guard";
//!     const STAGE: Stage = Stage::Processor;
//!
//!     fn contract(contract: &mut Contract<Self>) {
//!         contract.answers::<Pressure>().asks::<OpenValve>();
//!     }
//! }
//!
//! impl Handler<Pressure> for Guard {
//!     type Result = ();
//!
//!     fn handle(&mut self, Pressure(bar): Pressure, ctx: &mut Context<Self>) {
//!         if bar > 8.0 && self.valve.try_tell(OpenValve(1)).is_err() {
//!             ctx.fail("the valve takes no orders");
//!         }
//!     }
//! }
//!
//! testing::run(async {
//!     let valve = Recorder::<OpenValve>::answering(|_| true);
//!     let test = TestSystem::builder()
//!         .component(|ports: &Ports| Guard { valve: ports.port() })
//!         .records(&valve)
//!         .asks::<Pressure>()
//!         .expect("guard", Counts { restarts: 1, panics: 1, ..Counts::default() })
//!         .start();
//!
//!     test.tell(Pressure(3.0)).await;
//!     test.inject("guard", Fault::Panic);
//!     test.tell(Pressure(9.0)).await;
//!     assert_eq!(valve.next().await, OpenValve(1));
//!     test.assert_quiet().await;
//!     assert_eq!(valve.count(), 1);
//! });
//! ```

mod fault;
mod quiet;
mod recorder;

#[cfg(test)]
mod tests;

pub use fault::Fault;
pub use quiet::{Counts, TestSystem, TestSystemBuilder};
pub use recorder::Recorder;

use std::{future::Future, time::Duration};

/// How long [`Recorder::next`] and [`TestSystem::ask`] wait before they fail: by the test's clock, so that under
/// [`run`] it passes at once when nothing is left to do.
pub const WITHIN: Duration = Duration::from_secs(60);

/// Runs a test in an actix runtime whose clock stands still, and jumps to the next timer when nothing can go on
/// without it.
///
/// Sockets and files are nothing the clock waits for: a test that uses them takes `#[actix_rt::test]` and real time.
/// With it the rest of this module works as well.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    actix_rt::System::new().block_on(async {
        tokio::time::pause();
        test.await
    })
}
