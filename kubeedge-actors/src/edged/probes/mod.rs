//! Probes: what a container is asked, when, and what its answers mean.
//!
//! [`spec`] reads them, [`tracker`] counts (pure), [`check`] asks. The task that asks when it is time belongs to the
//! pod's worker and exists only for pods that have probes; between two probes it sleeps on one timer, so a pod that is
//! not asked anything costs nothing. A probe is bounded: by its timeout, by 10 KiB of what is read, by 10 redirects. At
//! most one probe of a kind is under way per container.

pub mod check;
pub mod http;
pub mod spec;
mod tls;
pub mod tracker;

pub use check::{Answer, Asked};
pub use spec::{Check, HttpCheck, ProbeKind, ProbeSpec, Probes};
pub use tracker::{Checked, InstanceProbes};
