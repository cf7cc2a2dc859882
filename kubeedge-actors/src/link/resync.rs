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

/// What was sent for a name and is not settled, or was sent since the desired set was asked for. It may be newer than that
/// set, or older: the two come different ways. What was sent before the question is known to who answers, unless it counts
/// higher than the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    present: Option<Sent>,
    gone: HashMap<String, Gone>,
    /// The highest version of all of it, and of what was sent before the question.
    highest: u64,
    highest_before: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Sent {
    uid: String,
    version: u64,
    /// Before the desired set was asked for.
    before: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Gone {
    version: u64,
    before: bool,
    /// The edge could not store it.
    failed: bool,
}

impl Touched {
    /// An upsert of this uid was sent, which is the newest up to this version.
    pub fn upsert(&mut self, uid: &str, version: u64) {
        self.gone.remove(uid);
        self.highest = self.highest.max(version);
        self.present = Some(Sent { uid: uid.to_owned(), version, before: false });
    }

    /// A tombstone of this uid was sent. It says nothing about another uid under the same name.
    pub fn tombstone(&mut self, uid: &str, version: u64) {
        self.highest = self.highest.max(version);
        self.gone.insert(uid.to_owned(), Gone { version, before: false, failed: false });
        self.present.take_if(|present| present.uid == uid);
    }

    /// The desired set is asked for: what was sent until now is known to who answers.
    pub fn asked(&mut self) {
        self.highest_before = self.highest;
        self.present.iter_mut().for_each(|present| present.before = true);
        self.gone.values_mut().for_each(|gone| gone.before = true);
    }

    /// The edge could not store the upsert of this uid and version.
    pub fn upsert_failed(&mut self, uid: &str, version: u64) {
        self.present.take_if(|present| present.uid == uid && present.version <= version);
    }

    /// The edge could not store the tombstone of this uid.
    pub fn tombstone_failed(&mut self, uid: &str) {
        if let Some(gone) = self.gone.get_mut(uid) {
            gone.failed = true;
        }
    }

    /// Whether a desired object of this uid and version, found in a list of `as_of`, must not be sent: what is gone stays
    /// gone until an upsert is submitted, and of two versions of one name the newer stands.
    fn overrules(&self, uid: &str, version: u64, as_of: u64) -> bool {
        let known = |before: bool, sent: u64| before && sent <= as_of;
        let gone = self.gone.get(uid).is_some_and(|gone| !known(gone.before, gone.version));
        let newer = |sent: &Sent| sent.version >= version && !known(sent.before, sent.version);
        gone || self.present.as_ref().is_some_and(newer)
    }

    /// Whether something was sent before the question that its answer cannot know of: it has gone back.
    fn is_ahead(&self, as_of: u64) -> bool {
        self.highest_before > as_of
    }

    /// Whether what was sent decides about a held object of this uid that is not in a list of `as_of`.
    fn covers(&self, uid: &str, as_of: u64) -> bool {
        self.gone.get(uid).is_some_and(|gone| !gone.failed)
            || self
                .present
                .as_ref()
                .is_some_and(|present| present.uid == uid && !(present.before && present.version <= as_of))
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

/// The rank of pods and devices, which need the others.
const NEEDING: u8 = 3;

/// What others need comes first: configuration and models before pods and devices.
pub fn rank(type_: &ResourceType) -> u8 {
    match type_.resource.as_str() {
        "nodes" => 0,
        "secrets" | "configmaps" | "serviceaccounts" | "devicemodels" => 1,
        "pods" | "devices" => NEEDING,
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
    let is_trusted = |kind: &Kind| same_cluster && kind.desired.complete && kind.desired.as_of >= kind.seen;
    // What is needed is desired for the sake of those that need it, so it ends only when they are known.
    let needing = |kind: &Kind| kind.desired.r#type.as_ref().is_some_and(|type_| rank(type_) == NEEDING);
    let needing_trusted = kinds.iter().filter(|kind| needing(kind)).all(is_trusted);
    for kind in kinds {
        let own_trusted = is_trusted(&kind);
        let Kind { desired, held, .. } = kind;
        let Some(type_) = desired.r#type else { continue };
        let id = TypeId::of(&type_);
        stale |= same_cluster && desired.complete && !own_trusted;
        let trusted = own_trusted && (needing_trusted || rank(&type_) >= NEEDING);
        // Older than what was sent is as good as older than what was seen.
        let ahead = |(name, touched): (&ObjectId, &Touched)| name.type_ == id && touched.is_ahead(desired.as_of);
        stale |= same_cluster && desired.complete && touched.iter().any(ahead);
        let known_as_of = if same_cluster && desired.complete { desired.as_of } else { 0 };
        let as_of = desired.as_of.to_string();
        let end_of = |key: Option<ObjectKey>, uid: &str| {
            Step::Tombstone(ObjectTombstone {
                r#type: Some(type_.clone()),
                key,
                uid: uid.to_owned(),
                resource_version: as_of.clone(),
            })
        };
        let tombstone = |entry: &InventoryEntry| end_of(entry.key.clone(), &entry.uid);
        let is_same = held == Held::Same;
        let mut there: BTreeMap<ObjectId, InventoryEntry> = match held {
            Held::Same => BTreeMap::new(),
            Held::Entries(entries) => {
                entries.into_iter().map(|entry| (identity(&id, entry.key.as_ref()), entry)).collect()
            }
        };
        let mut names = HashSet::new();
        for mut upsert in desired.objects {
            upsert.as_of = known_as_of;
            let Some(object) = &upsert.object else { continue };
            let name = identity(&id, object.key.as_ref());
            if touched.get(&name).is_some_and(|touched| touched.overrules(&object.uid, object.version(), known_as_of)) {
                // What is held of it is desired all the same, unless a tombstone is on its way.
                if touched.get(&name).is_some_and(|touched| !touched.gone.contains_key(&object.uid)) {
                    if there.get(&name).is_some_and(|entry| entry.uid == object.uid) {
                        there.remove(&name);
                    }
                    names.insert(name);
                }
                continue;
            }
            let entry = there.remove(&name);
            // Something older is on its way there: what is held will not be what is held now.
            let changes = touched.contains_key(&name);
            names.insert(name);
            match entry {
                _ if is_same && !changes => {}
                Some(entry)
                    if entry.uid == object.uid && entry.projection_hash == object.projection_hash && !changes => {}
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
        // What is on its way and is not desired any more ends as well, when it has arrived.
        let on_their_way = touched.iter().filter(|(name, _)| trusted && name.type_ == id && !names.contains(*name));
        for (name, touched) in on_their_way {
            if let Some(sent) = touched.present.as_ref().filter(|sent| sent.before && sent.version <= known_as_of)
                && there.get(name).is_none_or(|entry| entry.uid != sent.uid)
            {
                let key = ObjectKey { namespace: name.namespace.to_string(), name: name.name.to_string() };
                ends.push(end_of(Some(key), &sent.uid));
            }
        }
        for (name, entry) in there {
            if touched.get(&name).is_some_and(|touched| touched.covers(&entry.uid, known_as_of)) {
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
            let present = |touched: &Touched| touched.present.as_ref().is_some_and(|sent| !sent.before);
            let sent = touched.iter().filter(|(name, touched)| name.type_ == id && present(touched));
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

#[cfg(test)]
mod tests {
    use kubeedge_proto::{resource, v1::KubeObject};
    use proptest::prelude::*;

    use super::*;

    fn object(type_: &ResourceType, name: u8, uid: u64, version: u64) -> ObjectUpsert {
        ObjectUpsert {
            object: Some(KubeObject {
                r#type: Some(type_.clone()),
                key: Some(ObjectKey::new("ns", name.to_string())),
                uid: uid.to_string(),
                resource_version: version.to_string(),
                projection_hash: version,
                ..Default::default()
            }),
            ..ObjectUpsert::default()
        }
    }

    fn entry(name: u8, uid: u64, version: u64) -> InventoryEntry {
        InventoryEntry {
            key: Some(ObjectKey::new("ns", name.to_string())),
            uid: uid.to_string(),
            projection_hash: version,
            resource_version: version.to_string(),
        }
    }

    type Rows = BTreeMap<u8, (u64, u64)>;

    fn kind(type_: ResourceType, desired: &Rows, held: &Rows, complete: bool, as_of: u64, seen: u64) -> Kind {
        let objects = desired.iter().map(|(name, (uid, version))| object(&type_, *name, *uid, *version)).collect();
        let entries = held.iter().map(|(name, (uid, version))| entry(*name, *uid, *version)).collect();
        Kind {
            desired: DesiredKind { r#type: Some(type_), complete, as_of, objects },
            held: Held::Entries(entries),
            seen,
        }
    }

    fn rows() -> impl Strategy<Value = Rows> {
        prop::collection::btree_map(0u8..6, (0u64..3, 1u64..20), 0..6)
    }

    proptest! {
        /// Applied in order, the difference makes the edge hold what is desired; nothing is ended that stays.
        /// P-CONVERGES
        #[test]
        fn difference_of_a_trusted_list_leads_to_what_is_desired(desired in rows(), held in rows()) {
            let kinds = vec![kind(resource::pods(), &desired, &held, true, 20, 19)];
            let found = difference(kinds, &HashMap::new(), true);
            let mut at_edge = held.clone();
            let mut completed = false;
            for step in found.steps {
                prop_assert!(!completed, "nothing of the kind comes after its completion");
                match step {
                    Step::Upsert(ObjectUpsert { object, .. }) => {
                        let object = object.unwrap();
                        let name = object.key.as_ref().unwrap().name.parse().unwrap();
                        let new = (object.uid.parse().unwrap(), object.version());
                        let old = at_edge.insert(name, new);
                        prop_assert!(old.is_none_or(|old| old.0 == new.0), "the old uid ends first");
                        prop_assert_ne!(old, Some(new), "what is held is not sent");
                    }
                    Step::Tombstone(gone) => {
                        let name = gone.key.as_ref().unwrap().name.parse().unwrap();
                        let uid: u64 = gone.uid.parse().unwrap();
                        prop_assert_eq!(at_edge.remove(&name).map(|held| held.0), Some(uid));
                        prop_assert_ne!(desired.get(&name).map(|desired| desired.0), Some(uid));
                    }
                    Step::Complete(complete) => {
                        completed = true;
                        prop_assert_eq!((complete.as_of, complete.count as usize), (20, desired.len()));
                    }
                }
            }
            prop_assert!(completed && found.kept == 0 && !found.stale);
            prop_assert_eq!(at_edge, desired);
        }

        /// Without trust there is no tombstone, no completion, and no name passes to another uid out of ignorance.
        /// P-ABSENCE-KNOWN
        #[test]
        fn nothing_ends_by_absence_without_trust(
            desired in rows(), held in rows(), complete in any::<bool>(), same in any::<bool>(), as_of in 0u64..25,
        ) {
            prop_assume!(!(complete && same && as_of >= 19));
            let kinds = vec![kind(resource::pods(), &desired, &held, complete, as_of, 19)];
            let found = difference(kinds, &HashMap::new(), same);
            for step in found.steps {
                let Step::Upsert(ObjectUpsert { object: Some(object), .. }) = step else {
                    return Err(TestCaseError::fail(format!("{step:?}")));
                };
                let name = object.key.as_ref().unwrap().name.parse().unwrap();
                if let Some((uid, version)) = held.get(&name)
                    && object.uid != uid.to_string()
                {
                    prop_assert!(same && object.version() > *version);
                }
            }
            prop_assert_eq!(found.stale, same && complete);
        }
    }

    #[test]
    fn what_others_need_comes_first_and_goes_last() {
        let desired = Rows::from([(1, (1, 1))]);
        let held = Rows::from([(2, (2, 2))]);
        let kinds = [resource::pods(), resource::config_maps(), resource::secrets()];
        let kinds = kinds.map(|type_| kind(type_, &desired, &held, true, 9, 2)).to_vec();
        let steps = difference(kinds, &HashMap::new(), true).steps.into_iter().map(|step| match step {
            Step::Upsert(upsert) => format!("+{}", upsert.object.unwrap().r#type.unwrap().resource),
            Step::Tombstone(gone) => format!("-{}", gone.r#type.unwrap().resource),
            Step::Complete(complete) => format!("={}", complete.r#type.unwrap().resource),
        });
        let expected = [
            "+configmaps",
            "+secrets",
            "+pods",
            "-pods",
            "-secrets",
            "-configmaps",
            "=configmaps",
            "=secrets",
            "=pods",
        ];
        assert_eq!(steps.collect::<Vec<_>>(), expected);
    }
}
