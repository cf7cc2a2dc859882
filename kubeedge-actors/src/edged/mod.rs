//! The edged module.

pub mod downward;
pub mod env;
mod expansion;
pub mod facts;
pub mod objects;
pub mod quantity;

pub use expansion::expand;
