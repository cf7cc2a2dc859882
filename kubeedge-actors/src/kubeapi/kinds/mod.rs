//! The rows of the kinds that a node holds, and the cells that several kinds print.

pub(crate) mod cells;
mod config;
#[cfg(feature = "metaserver")]
mod device;
mod node;
mod pod;
mod volume;

pub(crate) use config::{CONFIG_MAP, SECRET};
#[cfg(feature = "metaserver")]
pub(crate) use device::{DEVICE, DEVICE_MODEL, RULE};
pub(crate) use node::NODE;
pub(crate) use pod::POD;
#[cfg(feature = "apiserver")]
pub(crate) use volume::size;
pub(crate) use volume::{PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM};
