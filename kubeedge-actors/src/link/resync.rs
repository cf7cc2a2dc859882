//! What to send after a reconnect: the difference between what is desired and what the edge holds.
//!
//! **Deletion is never inferred from ignorance**: absence counts only in a complete list, at a resourceVersion at least as
//! new as what the edge has seen, of the cluster that the edge is pinned to.

use std::collections::{BTreeMap, HashMap, HashSet};

use kubeedge_proto::{
    digest::kind_digest,
    v1::{DesiredKind, InventoryComplete, InventoryEntry, ObjectKey, ObjectTombstone, ObjectUpsert, ResourceType},
};

use super::ids::{ObjectId, TypeId, version_number};

/// What the edge holds of a kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Held {
    /// Exactly what is desired: the digests are equal.
    Same,
    /// These.
    Entries(Vec<InventoryEntry>),
}

/// One kind, both sides of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// What is desired.
    pub desired: DesiredKind,
    /// What the edge holds.
    pub held: Held,
    /// The highest resourceVersion of this kind that the edge has seen; 0 when none.
    pub seen: u64,
}

/// What was sent for a name since the desired set was asked for. It may be newer than that set, or older: the two come
/// different ways.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    present: Option<(String, u64)>,
    gone: HashSet<String>,
}

impl Touched {
    /// An upsert of this uid and version was sent.
    pub fn upsert(&mut self, uid: &str, version: u64) {
        self.gone.remove(uid);
        self.present = Some((uid.to_owned(), version));
    }

    /// A tombstone of this uid was sent. It says nothing about another uid under the same name.
    pub fn tombstone(&mut self, uid: &str) {
        self.gone.insert(uid.to_owned());
        self.present.take_if(|(present, _)| present == uid);
    }

    /// Whether a desired object of this uid and version must not be sent: what is gone stays gone until an upsert is
    /// submitted, and of two versions of one name the newer stands.
    fn overrules(&self, uid: &str, version: u64) -> bool {
        self.gone.contains(uid) || self.present.as_ref().is_some_and(|(_, present)| *present >= version)
    }

    /// Whether what was sent decides about a held object of this uid.
    fn covers(&self, uid: &str) -> bool {
        self.gone.contains(uid) || self.present.as_ref().is_some_and(|(present, _)| present == uid)
    }
}

/// One thing to send.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Desired and not held in this version.
    Upsert(ObjectUpsert),
    /// Held and not desired.
    Tombstone(ObjectTombstone),
    /// The kind is complete after the steps before.
    Complete(InventoryComplete),
}

/// What to send, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// In the order to send them.
    pub steps: Vec<Step>,
    /// Entries the edge keeps although they are not desired as far as is known: too little is known to end them.
    pub kept: usize,
    /// A complete list is older than what the edge has seen: compare again with a newer one.
    pub stale: bool,
}

/// What others need comes first: configuration and models before pods and devices.
pub fn rank(type_: &ResourceType) -> u8 {
    match type_.resource.as_str() {
        "nodes" => 0,
        "secrets" | "configmaps" | "serviceaccounts" | "devicemodels" => 1,
        "pods" | "devices" => 3,
        _ => 2,
    }
}

/// The digest of a desired set, for comparison with the edge's.
pub fn digest_of(desired: &DesiredKind) -> [u8; 32] {
    let entries: Vec<InventoryEntry> = desired
        .objects
        .iter()
        .filter_map(|upsert| upsert.object.as_ref())
        .map(|object| InventoryEntry {
            key: object.key.clone(),
            uid: object.uid.clone(),
            projection_hash: object.projection_hash,
            resource_version: String::new(),
        })
        .collect();
    kind_digest(&entries)
}

fn identity(type_: &TypeId, key: Option<&ObjectKey>) -> ObjectId {
    let (namespace, name) = key.map_or(("", ""), |key| (&key.namespace, &key.name));
    ObjectId { type_: type_.clone(), namespace: namespace.into(), name: name.into() }
}

/// Computes what to send. What was sent meanwhile stands, see [`Touched`].
///
/// Order: upserts, needed kinds first (a replaced object's end right before its successor); then deletions the other
/// way round; then the completions.
pub fn difference(kinds: Vec<Kind>, touched: &HashMap<ObjectId, Touched>, same_cluster: bool) -> Difference {
    let mut kinds = kinds;
    kinds.sort_by_key(|kind| kind.desired.r#type.as_ref().map_or(u8::MAX, rank));
    let mut upserts = Vec::new();
    let mut deletions: Vec<Vec<Step>> = Vec::new();
    let mut completions = Vec::new();
    let mut kept = 0;
    let mut stale = false;
    for Kind { desired, held, seen } in kinds {
        let Some(type_) = desired.r#type else { continue };
        let id = TypeId::of(&type_);
        let trusted = same_cluster && desired.complete && desired.as_of >= seen;
        stale |= same_cluster && desired.complete && !trusted;
        let as_of = desired.as_of.to_string();
        let tombstone = |entry: &InventoryEntry| {
            Step::Tombstone(ObjectTombstone {
                r#type: Some(type_.clone()),
                key: entry.key.clone(),
                uid: entry.uid.clone(),
                resource_version: as_of.clone(),
            })
        };
        let is_same = held == Held::Same;
        let mut there: BTreeMap<ObjectId, InventoryEntry> = match held {
            Held::Same => BTreeMap::new(),
            Held::Entries(entries) => {
                entries.into_iter().map(|entry| (identity(&id, entry.key.as_ref()), entry)).collect()
            }
        };
        let mut names = HashSet::new();
        for upsert in desired.objects {
            let Some(object) = &upsert.object else { continue };
            let name = identity(&id, object.key.as_ref());
            if touched.get(&name).is_some_and(|touched| touched.overrules(&object.uid, object.version())) {
                continue;
            }
            let entry = there.remove(&name);
            names.insert(name);
            match entry {
                _ if is_same => {}
                Some(entry) if entry.uid == object.uid && entry.projection_hash == object.projection_hash => {}
                Some(entry) if entry.uid != object.uid && trusted => {
                    upserts.push(tombstone(&entry));
                    upserts.push(Step::Upsert(upsert));
                }
                // Another object under this name. It was read, so it is there; but in a cluster other than the
                // pinned one, or from a cache that lags behind the edge, that is no reason to end what runs.
                Some(entry)
                    if entry.uid != object.uid
                        && !(same_cluster && version_number(&entry.resource_version) < object.version()) =>
                {
                    kept += 1;
                }
                _ => upserts.push(Step::Upsert(upsert)),
            }
        }
        let mut ends = Vec::new();
        for (name, entry) in there {
            if touched.get(&name).is_some_and(|touched| touched.covers(&entry.uid)) {
                continue;
            }
            if trusted {
                ends.push(tombstone(&entry));
            } else {
                kept += 1;
            }
        }
        deletions.push(ends);
        if trusted {
            let sent = touched.iter().filter(|(name, touched)| name.type_ == id && touched.present.is_some());
            names.extend(sent.map(|(name, _)| name.clone()));
            let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
            completions.push(Step::Complete(InventoryComplete { r#type: Some(type_), as_of: desired.as_of, count }));
        }
    }
    let mut steps = upserts;
    steps.extend(deletions.into_iter().rev().flatten());
    steps.extend(completions);
    Difference { steps, kept, stale }
}
