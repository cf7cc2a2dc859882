//! The nodes that may not come any more.
//!
//! A node is revoked by name: what it has is refused in the handshake, its session ends, and no token gives it a new
//! certificate. Readmitted it may join again; the certificates from before stay refused, because they begin before the
//! revocation. A file beside the authority keeps this, not the store: a store that is damaged is made anew, and that
//! must not let anybody in.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kubeedge_proto::NodeName;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use super::{
    IdentityError,
    files::{self, Access},
};

/// How many nodes may be in the list.
const LIMIT: usize = 2_000;
/// Largest file, bytes: that many entries of about 75 bytes and a name, which has 253 at most.
const FILE_LIMIT: u64 = 1024 * 1024;

/// A node that was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokedNode {
    /// Its name.
    pub node: NodeName,
    /// When; certificates that begin before are refused for good.
    pub at: SystemTime,
    /// Whether it may join again.
    pub readmitted: bool,
}

/// A certificate or a join that is refused for a revocation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("node {node} was revoked: `cloudcore node readmit {node}` lets it join again")]
pub struct NodeRevoked {
    /// Its name.
    pub node: NodeName,
}

/// Why a revocation did not come about.
#[derive(Debug, Error)]
pub enum RevocationError {
    /// The list is full.
    #[error("{LIMIT} nodes are in the list of revoked nodes already: begin a new authority")]
    TooMany,
    /// It is not on disk, and so it does not count.
    #[error(transparent)]
    File(#[from] IdentityError),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    /// Unix seconds.
    revoked_at: u64,
    #[serde(default)]
    readmitted: bool,
}

impl Entry {
    fn at(self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.revoked_at)).unwrap_or(UNIX_EPOCH)
    }
}

/// The list. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Revocations(Arc<Inner>);

struct Inner {
    path: Option<PathBuf>,
    nodes: Mutex<BTreeMap<String, Entry>>,
    changed: watch::Sender<()>,
}

impl Revocations {
    /// The list in this file; empty when there is none. One that cannot be read is an error: nobody would be refused.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let nodes = match files::read_at_most(path, FILE_LIMIT)? {
            Some(bytes) => serde_json::from_slice::<BTreeMap<String, Entry>>(&bytes)
                .map_err(|error| files::content(path, format!("no list of revoked nodes: {error}; restore it")))?,
            None => BTreeMap::new(),
        };
        if let Some(bad) = nodes.keys().find(|name| name.parse::<NodeName>().is_err()) {
            return Err(files::content(path, format!("{bad:?} is no node's name")));
        }
        Ok(Self::with(Some(path.to_owned()), nodes))
    }

    /// A list that is not kept: for tests, and clouds that live as long as their process.
    pub fn in_memory() -> Self {
        Self::with(None, BTreeMap::new())
    }

    fn with(path: Option<PathBuf>, nodes: BTreeMap<String, Entry>) -> Self {
        Self(Arc::new(Inner { path, nodes: Mutex::new(nodes), changed: watch::channel(()).0 }))
    }

    /// Refuses a node from now on. It is on disk, and those who watch know it, when this returns.
    pub fn revoke(&self, node: &NodeName, now: SystemTime) -> Result<(), RevocationError> {
        let revoked_at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.change(|nodes| {
            if nodes.len() >= LIMIT && !nodes.contains_key(node.as_str()) {
                return Err(RevocationError::TooMany);
            }
            nodes.insert(node.to_string(), Entry { revoked_at, readmitted: false });
            Ok(true)
        })?;
        tracing::warn!(target: crate::audit::TARGET, %node, "revoked");
        Ok(())
    }

    /// Lets a node join again; false if it is not revoked. Certificates from before stay refused.
    pub fn readmit(&self, node: &NodeName) -> Result<bool, RevocationError> {
        let changed = self.change(|nodes| {
            let entry = nodes.get_mut(node.as_str()).filter(|entry| !entry.readmitted);
            Ok(entry.map(|entry| entry.readmitted = true).is_some())
        })?;
        if changed {
            tracing::warn!(target: crate::audit::TARGET, %node, "readmitted");
        }
        Ok(changed)
    }

    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Entry>) -> Result<bool, RevocationError>,
    ) -> Result<bool, RevocationError> {
        let mut nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = nodes.clone();
        if !change(&mut next)? {
            return Ok(false);
        }
        if let Some(path) = &self.0.path {
            // Names and numbers always have a JSON form.
            let text = serde_json::to_vec_pretty(&next).unwrap_or_default();
            files::write(path, &text, Access::Owner)?;
        }
        *nodes = next;
        drop(nodes);
        self.0.changed.send_replace(());
        Ok(true)
    }

    /// Every node that was ever revoked, by name.
    pub fn list(&self) -> Vec<RevokedNode> {
        let nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |(name, entry): (&String, &Entry)| {
            Some(RevokedNode { node: name.parse().ok()?, at: entry.at(), readmitted: entry.readmitted })
        };
        nodes.iter().filter_map(read).collect()
    }

    /// Whether a certificate that begins at this time still counts (`P-REVOKED-STAYS-OUT`).
    pub fn check(&self, node: &NodeName, begins: SystemTime) -> Result<(), NodeRevoked> {
        match self.entry(node) {
            Some(entry) if !entry.readmitted || begins <= entry.at() => Err(NodeRevoked { node: node.clone() }),
            _ => Ok(()),
        }
    }

    /// Whether a node may have a new certificate, and after which time it has to begin.
    pub fn may_have_one(&self, node: &NodeName) -> Result<Option<SystemTime>, NodeRevoked> {
        match self.entry(node) {
            Some(entry) if !entry.readmitted => Err(NodeRevoked { node: node.clone() }),
            entry => Ok(entry.map(Entry::at)),
        }
    }

    /// Tells when the list has changed.
    pub fn changed(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    fn entry(&self, node: &NodeName) -> Option<Entry> {
        self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(node.as_str()).copied()
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations").field("path", &self.0.path).finish_non_exhaustive()
    }
}
