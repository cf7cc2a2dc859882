//! Edged: the part of the node that runs pods.

pub mod cri;
#[cfg(any(test, feature = "fake-runtime"))]
pub mod fake;
pub mod labels;
pub mod lifecycle;
pub mod runtime;
pub mod status;
