//! Static pods: pods of a folder of manifests on the node, with or without a cloud.
//!
//! [`manifest`] makes a pod of a file, as a kubelet does; [`folder`] looks whether a file has come, changed or gone; the
//! shell gives what it finds to the book and keeps a *mirror pod* of each in the API, so that people see it there. A
//! mirror stands for a pod and is none: deleting it ends nothing, and it comes back.

pub mod folder;
pub mod manifest;
mod shell;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::Pod;

pub use folder::{Folder, Found};
pub(super) use shell::StaticPods;

/// Annotation of a mirror pod: the uid of the static pod that it stands for.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// Annotation of a static pod: its uid.
pub const HASH: &str = "kubernetes.io/config.hash";
/// Annotation of a static pod: where it is from.
pub const SOURCE: &str = "kubernetes.io/config.source";

/// The static pod that a pod of the API stands for, if it is a mirror.
pub fn mirrored(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(MIRROR).map(String::as_str)
}

/// A mirror pod in the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Its uid in the API.
    pub uid: String,
    /// The static pod that it stands for.
    pub of: String,
}

/// The static pods of this node, and the mirror pods that the API has. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Mirrors(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Static pods by uid, with namespace and name.
    pods: BTreeMap<String, (String, String)>,
    /// Mirror pods by namespace and name.
    mirrors: HashMap<(String, String), Mirror>,
}

impl Mirrors {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // Insertions and removals are whole, so a poisoned lock guards whole maps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A static pod is looked after.
    pub fn add(&self, uid: &str, key: (String, String)) {
        self.lock().pods.insert(uid.to_owned(), key);
    }

    /// It has ended.
    pub fn remove(&self, uid: &str) {
        self.lock().pods.remove(uid);
    }

    /// Whether a pod is one of them.
    pub fn is_static(&self, uid: &str) -> bool {
        self.lock().pods.contains_key(uid)
    }

    /// The API has this mirror pod.
    pub fn seen(&self, key: (String, String), mirror: Mirror) {
        self.lock().mirrors.insert(key, mirror);
    }

    /// The API has it no more.
    pub fn gone(&self, key: &(String, String), uid: &str) {
        let mut known = self.lock();
        if known.mirrors.get(key).is_some_and(|mirror| mirror.uid == uid) {
            known.mirrors.remove(key);
        }
    }

    /// The uid in the API under which a pod is reported: its own, its mirror's, or none while it has no mirror.
    pub fn reported_as(&self, uid: &str) -> Option<String> {
        let known = self.lock();
        let Some(key) = known.pods.get(uid) else { return Some(uid.to_owned()) };
        known.mirrors.get(key).filter(|mirror| mirror.of == uid).map(|mirror| mirror.uid.clone())
    }

    /// Static pods that the API has no mirror of.
    pub fn missing(&self) -> Vec<String> {
        let known = self.lock();
        let has = |key: &(String, String), uid: &str| known.mirrors.get(key).is_some_and(|mirror| mirror.of == uid);
        known.pods.iter().filter(|(uid, key)| !has(key, uid)).map(|(uid, _)| uid.clone()).collect()
    }

    /// Mirrors of pods that are not static pods of this node (any more).
    pub fn stale(&self) -> Vec<((String, String), Mirror)> {
        let known = self.lock();
        let mirrors = known.mirrors.iter().filter(|(_, mirror)| !known.pods.contains_key(&mirror.of));
        mirrors.map(|(key, mirror)| (key.clone(), mirror.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_static_pod_is_reported_as_its_mirror() {
        let mirrors = Mirrors::default();
        let key = ("ns".to_owned(), "p-edge-1".to_owned());
        let mirror = |uid: &str, of: &str| Mirror { uid: uid.into(), of: of.into() };
        assert_eq!(mirrors.reported_as("ordinary").as_deref(), Some("ordinary"));
        mirrors.add("s1", key.clone());
        assert_eq!((mirrors.reported_as("s1"), mirrors.missing()), (None, vec!["s1".to_owned()]));
        mirrors.seen(key.clone(), mirror("api-1", "s1"));
        assert_eq!((mirrors.reported_as("s1").as_deref(), mirrors.missing().len()), (Some("api-1"), 0));
        // The file has changed: another pod of that name, and the mirror is still the old one's.
        mirrors.remove("s1");
        mirrors.add("s2", key.clone());
        assert_eq!((mirrors.reported_as("s2"), mirrors.stale().len()), (None, 1));
        mirrors.gone(&key, "another");
        assert_eq!(mirrors.stale().len(), 1);
        mirrors.gone(&key, "api-1");
        assert!(mirrors.stale().is_empty() && mirrors.missing() == ["s2"]);
    }
}
