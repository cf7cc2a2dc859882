//! The rows of the kinds that a node holds, and the cells that several kinds print.

pub(crate) mod cells;
mod config;
mod node;
mod pod;
mod volume;

pub(crate) use config::{CONFIG_MAP, SECRET};
pub(crate) use node::NODE;
pub(crate) use pod::POD;
#[cfg(feature = "apiserver")]
pub(crate) use volume::size;
pub(crate) use volume::{PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM};
