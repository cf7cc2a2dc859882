//! A Kubernetes API server for standalone mode: a faithful subset, persistent, on actix-web.

pub mod kind;
pub mod kinds;
mod merge_keys;
pub mod patch;
pub mod status;
