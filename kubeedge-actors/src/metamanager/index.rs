//! What is on disk, by key, and what an incoming message does to it. Pure.

use std::collections::{BTreeMap, HashMap};

use kubeedge_proto::{
    digest::kind_digest,
    v1::{InventoryEntry, KindDigest, KindRecord, KubeObject, ObjectKey, ObjectTombstone, ResourceType},
};

/// What the index remembers of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// uid of the object on disk.
    pub uid: String,
    /// Its resourceVersion, as text and as the number that orders versions of one uid.
    pub version: (String, u64),
    /// The cloud's hash of it.
    pub projection_hash: u64,
}

/// What a message does.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Put it on disk. The object whose uid is named ended by this, and its end is told first.
    Put {
        /// uid of an object of the same name that is replaced.
        replaces: Option<String>,
    },
    /// It is there already.
    Same,
    /// Take it off the disk.
    Delete,
    /// Something newer is there, or nothing to delete.
    Superseded,
}

/// The index of all kinds.
#[derive(Default)]
pub struct Index {
    kinds: HashMap<ResourceType, Kind>,
}

#[derive(Default)]
struct Kind {
    objects: BTreeMap<(String, String), Entry>,
    complete: bool,
    as_of: u64,
    bookmark: String,
    max_resource_version: u64,
}

impl Index {
    /// Takes in a kind's record as it is on disk.
    pub fn load_kind(&mut self, record: &KindRecord) {
        let Some(type_) = &record.r#type else { return };
        let kind = self.kinds.entry(type_.clone()).or_default();
        kind.complete = record.complete;
        kind.as_of = record.as_of;
        kind.bookmark = record.bookmark.clone();
        kind.max_resource_version = kind.max_resource_version.max(record.max_resource_version);
    }

    /// A kind's state up to a version has been seen.
    pub fn set_bookmark(&mut self, type_: &ResourceType, bookmark: String) {
        self.kinds.entry(type_.clone()).or_default().bookmark = bookmark;
    }

    /// Sets what is on disk under a key.
    pub fn set(&mut self, type_: &ResourceType, key: &ObjectKey, entry: Option<Entry>) {
        let kind = self.kinds.entry(type_.clone()).or_default();
        let at = (key.namespace.clone(), key.name.clone());
        match entry {
            Some(entry) => {
                kind.max_resource_version = kind.max_resource_version.max(entry.version.1);
                kind.objects.insert(at, entry);
            }
            None => {
                kind.objects.remove(&at);
            }
        }
    }

    /// Objects may be missing here that are wanted: absence means nothing until the cloud has said again what there is.
    pub fn doubt(&mut self) {
        self.kinds.values_mut().for_each(|kind| kind.complete = false);
    }

    /// A version of this kind has come, whatever becomes of it.
    pub fn saw(&mut self, type_: &ResourceType, version: u64) {
        let kind = self.kinds.entry(type_.clone()).or_default();
        kind.max_resource_version = kind.max_resource_version.max(version);
    }

    /// The entry under a key.
    pub fn get(&self, type_: &ResourceType, key: &ObjectKey) -> Option<&Entry> {
        self.kinds.get(type_)?.objects.get(&(key.namespace.clone(), key.name.clone()))
    }

    /// What an incoming version does (`P-NEWER-WINS`). It is current as of its own version, or of that of the list it was
    /// found in (`as_of`), whichever is higher: an object that is older than what is here, but was found in a list that
    /// is newer, is no straggler. The API server was restored from a backup, and that is the object now.
    pub fn upsert(&self, type_: &ResourceType, key: &ObjectKey, object: &KubeObject, as_of: u64) -> Decision {
        let Some(old) = self.get(type_, key) else { return Decision::Put { replaces: None } };
        let same_uid = old.uid == object.uid;
        if same_uid && object.version() == old.version.1 && object.projection_hash == old.projection_hash {
            return Decision::Same;
        }
        if object.version().max(as_of) < old.version.1 {
            return Decision::Superseded;
        }
        Decision::Put { replaces: (!same_uid).then(|| old.uid.clone()) }
    }

    /// What a tombstone does: it ends exactly the uid it names.
    pub fn tombstone(&self, type_: &ResourceType, key: &ObjectKey, gone: &ObjectTombstone) -> Decision {
        match self.get(type_, key) {
            Some(old) if !gone.uid.is_empty() && old.uid == gone.uid => Decision::Delete,
            _ => Decision::Superseded,
        }
    }

    /// Whether absence of an object of this kind means anything.
    pub fn is_complete(&self, type_: &ResourceType) -> bool {
        self.kinds.get(type_).is_some_and(|kind| kind.complete)
    }

    /// How many objects of a kind there are.
    pub fn count(&self, type_: &ResourceType) -> usize {
        self.kinds.get(type_).map_or(0, |kind| kind.objects.len())
    }

    /// The kind's record as it should be on disk.
    pub fn record(&self, type_: &ResourceType) -> KindRecord {
        let kind = self.kinds.get(type_);
        KindRecord {
            r#type: Some(type_.clone()),
            complete: kind.is_some_and(|kind| kind.complete),
            as_of: kind.map_or(0, |kind| kind.as_of),
            bookmark: kind.map(|kind| kind.bookmark.clone()).unwrap_or_default(),
            max_resource_version: kind.map_or(0, |kind| kind.max_resource_version),
        }
    }

    /// The entries of one kind, in order.
    pub fn inventory(&self, type_: &ResourceType) -> Vec<InventoryEntry> {
        let Some(kind) = self.kinds.get(type_) else { return Vec::new() };
        kind.objects
            .iter()
            .map(|((namespace, name), entry)| InventoryEntry {
                key: Some(ObjectKey { namespace: namespace.clone(), name: name.clone() }),
                uid: entry.uid.clone(),
                projection_hash: entry.projection_hash,
                resource_version: entry.version.0.clone(),
            })
            .collect()
    }

    /// One digest per kind, in the order of their names.
    pub fn digests(&self) -> Vec<KindDigest> {
        let mut types: Vec<&ResourceType> = self.kinds.keys().collect();
        types.sort_by_key(|type_| type_.to_string());
        types
            .into_iter()
            .map(|type_| {
                let entries = self.inventory(type_);
                let record = self.record(type_);
                KindDigest {
                    r#type: Some(type_.clone()),
                    count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
                    digest: kind_digest(&entries).to_vec().into(),
                    max_resource_version: record.max_resource_version,
                    bookmark: record.bookmark,
                }
            })
            .collect()
    }
}

impl Entry {
    /// The entry of an object.
    pub fn of(object: &KubeObject) -> Self {
        Self {
            uid: object.uid.clone(),
            version: (object.resource_version.clone(), object.version()),
            projection_hash: object.projection_hash,
        }
    }
}

#[cfg(test)]
mod tests {
    use kubeedge_proto::resource;
    use proptest::prelude::*;

    use super::*;

    fn object(uid: &str, version: u64) -> KubeObject {
        KubeObject {
            uid: uid.into(),
            resource_version: version.to_string(),
            projection_hash: version,
            ..KubeObject::default()
        }
    }

    fn key() -> ObjectKey {
        ObjectKey::new("ns", "a")
    }

    #[test]
    fn a_tombstone_ends_only_the_uid_it_names() {
        let mut index = Index::default();
        index.set(&resource::pods(), &key(), Some(Entry::of(&object("new", 9))));
        for (uid, decision) in [("new", Decision::Delete), ("old", Decision::Superseded), ("", Decision::Superseded)] {
            let gone = ObjectTombstone { uid: uid.into(), ..ObjectTombstone::default() };
            assert_eq!(index.tombstone(&resource::pods(), &key(), &gone), decision, "{uid:?}");
        }
    }

    #[test]
    fn a_new_uid_ends_the_old_one() {
        let mut index = Index::default();
        index.set(&resource::pods(), &key(), Some(Entry::of(&object("old", 5))));
        assert_eq!(
            index.upsert(&resource::pods(), &key(), &object("new", 9), 0),
            Decision::Put { replaces: Some("old".into()) }
        );
        assert_eq!(index.upsert(&resource::pods(), &key(), &object("older", 4), 4), Decision::Superseded);
    }

    /// P-STATE-AS-IF-ONCE
    #[test]
    fn what_a_newer_list_shows_is_no_straggler_however_low_it_counts() {
        let mut index = Index::default();
        index.set(&resource::pods(), &key(), Some(Entry::of(&object("u", 50))));
        let replaces = Some("u".to_owned());
        assert_eq!(index.upsert(&resource::pods(), &key(), &object("u", 40), 49), Decision::Superseded);
        assert_eq!(index.upsert(&resource::pods(), &key(), &object("u", 40), 50), Decision::Put { replaces: None });
        assert_eq!(index.upsert(&resource::pods(), &key(), &object("v", 40), 50), Decision::Put { replaces });
    }

    #[test]
    fn the_highest_version_seen_outlives_its_object() {
        let mut index = Index::default();
        index.set(&resource::pods(), &key(), Some(Entry::of(&object("u", 50))));
        index.set(&resource::pods(), &key(), None);
        assert_eq!(index.digests()[0].max_resource_version, 50);
        assert_eq!(index.digests()[0].count, 0);
    }

    proptest! {
        /// Applying versions of one uid in any order, with repeats, ends at the newest.
        /// P-NEWER-WINS
        #[test]
        fn versions_converge_in_any_order(versions in prop::collection::vec(1..30u64, 1..40)) {
            let mut index = Index::default();
            for version in &versions {
                let incoming = object("u", *version);
                if let Decision::Put { .. } = index.upsert(&resource::pods(), &key(), &incoming, 0) {
                    index.set(&resource::pods(), &key(), Some(Entry::of(&incoming)));
                }
            }
            let newest = versions.iter().max().copied();
            prop_assert_eq!(index.get(&resource::pods(), &key()).map(|entry| entry.version.1), newest);
        }
    }
}
