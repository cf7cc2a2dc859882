//! Edged: the part of the node that runs pods.

pub mod credentials;
pub mod cri;
pub mod downward;
pub mod env;
mod expansion;
pub mod facts;
#[cfg(any(test, feature = "fake-runtime"))]
pub mod fake;
pub mod image_name;
pub mod labels;
pub mod lifecycle;
pub mod node;
pub mod objects;
pub mod provision;
pub mod quantity;
pub mod registrar;
pub mod relist;
pub mod resources;
pub mod runtime;
pub mod source;
pub mod status;
pub mod volumes;
pub mod worker;

pub use expansion::expand;
