//! The Device Mapper Interface: what mappers call, and what they are called with.

pub mod bucket;
pub mod caller;
pub mod checks;
pub mod convert;
mod reflection;
pub mod server;
