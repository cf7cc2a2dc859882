//! The metamanager module.
