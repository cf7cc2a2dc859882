//! The identity module.
