//! The link module.
