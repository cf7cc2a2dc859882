//! A Kubernetes API server for standalone mode: a faithful subset, persistent, on actix-web.
//!
//! - **Job**: serve the kinds of the table in [`kinds`], and those that users define (`custom`), to kubectl, kube-rs and `EdgeController` as a Kubernetes API
//!   server does: create, get, list, watch, update, patch, delete, status, binding, eviction, tokens, tables.
//! - **Stored**: every object, and the resourceVersion, in the store; on disk before the client has its answer.
//! - **Bounds**: bodies 3 MiB; the event log of each kind 4096 events and 16 MiB; open watches [`Config::max_watches`];
//!   a watch holds a position and not a queue, and ends with `410 Expired` when the log has left it behind.
//! - **Not kept**: `pods/log` and `metrics.k8s.io` are read from the nodes' kubelets, or what stands for them; 256 at a time.
//!   `pods/exec`, `pods/attach` and `pods/portforward` are upgraded connections, relayed to them; 512 of these at a time.
//! - **Not served**: server-side apply (415); proxy (501). Answers are JSON; bodies are JSON, or protobuf for Kubernetes'
//!   own kinds.
//!
//! A request goes `http` → `auth` → `request` → `verbs` → `storage`; controllers react to the same event log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub mod discovery;
pub mod kind;
pub mod kinds;
pub mod openapi;
pub mod patch;

mod addresses;
mod admission;
mod auth;
mod body;
mod clock;
mod component;
mod controllers;
mod counted;
mod custom;
mod documents;
mod first_head;
mod http;
mod kubeconfig;
mod kubelet;
mod label_selector;
mod merge_keys;
mod meta;
mod protobuf;
mod request;
mod server;
mod storage;
mod strategy;
mod upgraded;
mod verbs;

pub use crate::kubeapi::status;
use crate::kubeapi::{negotiate, object, selector, table};
pub use addresses::{BadRange, ServiceRange};
pub use component::{ApiServer, WhereServed};
pub use kubeconfig::write_kubeconfig;
pub use server::{Config, Handle, ISSUER, Listen, Server, StartError};

use auth::{AdminToken, User};
use object::Key;
use storage::Storage;

use crate::identity::{Binding, Reference, ServiceAccountTokens};

/// What every request sees.
pub(crate) struct Api {
    storage: Arc<Storage>,
    admin: AdminToken,
    /// PEM of the authority that signed the server's certificate.
    root_ca: String,
    /// Seconds since 1970.
    clock: fn() -> i64,
    watches: Arc<Semaphore>,
    /// Logs and upgraded connections.
    streams: Arc<Semaphore>,
    kubelet_client: Option<Arc<rustls::ClientConfig>>,
    service_range: ServiceRange,
    /// A token for each request whose answer is not written yet.
    requests: TaskTracker,
    counted: counted::Counted,
    tokens: Arc<ServiceAccountTokens>,
    /// Where it listens.
    address: SocketAddr,
}

impl Api {
    /// Every kind in every version that is served: the table's, then the custom ones.
    fn served(&self) -> Vec<&'static kind::Kind> {
        self.storage.served().map(|(_, kind)| kind).collect()
    }

    fn now(&self) -> i64 {
        (self.clock)()
    }

    /// The same as a time.
    fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::try_from(self.now()).unwrap_or_default())
    }

    /// Who holds this token, and for which of `audiences` it was made. The administrator's is for this server alone.
    fn authenticate<'a>(&self, token: &str, audiences: &[&'a str]) -> Option<(User, Vec<&'a str>)> {
        if self.admin.is(token) {
            let own: Vec<&str> = audiences.iter().copied().filter(|one| *one == self.tokens.issuer()).collect();
            return (!own.is_empty()).then(|| (User::admin(), own));
        }
        match self.tokens.verify(token, audiences, self.time()) {
            Ok(claims) => {
                let meant = |audience: &&str| claims.aud.iter().any(|one| one == audience);
                Some((self.account(&claims.kubernetes)?, audiences.iter().copied().filter(meant).collect()))
            }
            Err(error) => {
                tracing::debug!(%error, "a bearer token is refused");
                None
            }
        }
    }

    /// The account of a token, while what the token is bound to exists.
    fn account(&self, binding: &Binding) -> Option<User> {
        let exists = |plural: &str, namespace: &str, reference: &Reference| {
            let found = self.storage.get(self.storage.core(plural)?, &Key::new(namespace, &reference.name));
            found.filter(|object| object.uid == reference.uid).map(|_| ())
        };
        let namespace = binding.namespace.as_str();
        exists("serviceaccounts", namespace, &binding.serviceaccount)?;
        match (&binding.pod, &binding.node) {
            (Some(pod), _) => exists("pods", namespace, pod)?,
            (None, Some(node)) => exists("nodes", "", node)?,
            (None, None) => {}
        }
        Some(User::service_account(namespace, &binding.serviceaccount.name, &binding.serviceaccount.uid))
    }
}
