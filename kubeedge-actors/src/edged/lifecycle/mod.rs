//! The life of a pod on this node, as pure functions.
//!
//! [`decide`] looks at what is wanted, what the runtime has and what happened before, and says what to do next. It is
//! level-triggered: after each step the worker looks again, so it does not matter who did what in between, nor whether
//! edgecore was restarted half-way. What holds for every history of faults (the tests of this module check it):
//!
//! - there is never a second ready sandbox of a pod, and no container starts while an instance of it may run;
//! - what its restart policy ends stays ended;
//! - a pod ends in order: containers, network, containers' remains, sandbox, volumes, report;
//! - with a runtime that works again, every pod comes to run, to its end, or to nothing.

mod decide;
mod failure;
mod history;
mod plan;
mod sizes;
#[cfg(test)]
mod tests;
mod verdict;

pub(crate) use decide::misfits;
pub use decide::{Action, Decision, Fitting, Input, StopCause, VolumeState, Wait, Want, decide};
pub use failure::PodFailure;
pub use history::{
    CRASH_FIRST, CRASH_MAX, CRASH_RESET, ContainerHistory, Failure, History, Reason, Step, StepFailure, later,
};
pub use plan::{
    ContainerPlan, DEFAULT_GRACE_SECONDS, InvalidPod, PodPlan, ReadinessGate, RestartPolicy, Role, container,
    ephemeral_target,
};
pub(crate) use sizes::quantities;
pub use sizes::{PendingResize, Resize, Resources, Sizes};
pub use verdict::{
    Initialization, Verdict, current_sandbox, deadline, initialization, instances, is_expired, is_over, newest, verdict,
};
