//! Ways to change an object by saying only what changes.

pub mod strategic;
