//! The edged module.

pub mod downward;
pub mod env;
mod expansion;
pub mod facts;
pub mod objects;
pub mod quantity;
pub mod resources;
pub mod volumes;

pub use expansion::expand;
