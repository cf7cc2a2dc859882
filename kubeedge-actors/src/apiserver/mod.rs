//! A Kubernetes API server for standalone mode: a faithful subset, persistent, on actix-web.
//!
//! - **Job**: serve the kinds of the table in [`kinds`] to kubectl, kube-rs and `EdgeController` as a Kubernetes API
//!   server does: create, get, list, watch, update, patch, delete, status, binding, eviction, tokens, tables.
//! - **Stored**: every object, and the resourceVersion, in the store; on disk before the client has its answer.
//! - **Bounds**: bodies 3 MiB; the event log of each kind 4096 events and 16 MiB; open watches [`Config::max_watches`];
//!   a watch holds a position and not a queue, and ends with `410 Expired` when the log has left it behind.
//! - **Not served**: server-side apply (415), custom resources. Answers are JSON; bodies are JSON, or protobuf for what
//!   kubectl sends that way.
//!
//! A request goes `http` → `auth` → `request` → `verbs` → `storage`; controllers react to the same event log.

use std::sync::Arc;

use tokio::sync::Semaphore;

pub mod discovery;
pub mod kind;
pub mod kinds;
pub mod openapi;
pub mod patch;
pub mod status;

mod admission;
mod auth;
mod body;
mod clock;
mod controllers;
mod documents;
mod http;
mod kubeconfig;
mod merge_keys;
mod meta;
mod negotiate;
mod object;
mod protobuf;
mod request;
mod selector;
mod server;
mod storage;
mod strategy;
mod table;
mod verbs;
mod watch;

pub use kubeconfig::write_kubeconfig;
pub use server::{Config, Handle, Listen, Server, StartError};

use auth::{AdminToken, User};
use storage::Storage;

/// What every request sees.
pub(crate) struct Api {
    storage: Arc<Storage>,
    admin: AdminToken,
    /// PEM of the authority that signed the server's certificate.
    root_ca: String,
    /// Seconds since 1970.
    clock: fn() -> i64,
    watches: Arc<Semaphore>,
}

impl Api {
    fn now(&self) -> i64 {
        (self.clock)()
    }

    /// Who holds this token.
    fn authenticate(&self, token: &str) -> Option<User> {
        self.admin.is(token).then(User::admin)
    }
}
