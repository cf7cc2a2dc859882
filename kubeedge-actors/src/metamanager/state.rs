//! What MetaManager knows and decides. Pure: what has to be on disk comes out, what became of it goes back in.
//!
//! Memory follows the disk: no digest and no answer tells what a power cut could still take back.

use std::collections::{HashMap, HashSet};

use kubeedge_proto::v1::{
    BoxRecord, CompleteInventory, KindRecord, KubeObject, ObjectKey, ObjectReference, ObjectTombstone, ObjectUpsert,
    ObjectsChanged, ResourceType, SessionStarted, Settled, StoreDescription, envelope::Body,
};

use super::index::{Decision, Entry, Index};

/// Objects of all kinds on one node at most: beyond it the cloud is refused, and says so.
const MAX_OBJECTS: usize = 100_000;

/// The state behind the tables.
#[derive(Default)]
pub struct State {
    /// What is on disk.
    pub index: Index,
    /// The box's own record.
    pub this_box: BoxRecord,
    /// Keys whose change is being committed, or told after that.
    writing: HashSet<(ResourceType, ObjectKey)>,
    /// Records of kinds that are complete, being committed: later records of these kinds are no less than that.
    completing: HashMap<ResourceType, KindRecord>,
}

/// What one message changes: to be committed as one, then given to [`State::applied`].
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Type of the object.
    pub type_: ResourceType,
    /// Its key.
    pub key: ObjectKey,
    /// The object to be put under its key; `None`: to be taken off.
    pub object: Option<KubeObject>,
    /// The record of its kind.
    pub record: KindRecord,
    /// To be told when it is on disk, in this order.
    pub news: Vec<ObjectsChanged>,
}

/// What becomes of a message that changes nothing now.
#[derive(Clone, Debug, PartialEq)]
pub enum Instead {
    /// Its answer.
    Answer(Settled),
    /// It needs what is being written: apply it again when that commit is over.
    Later(Box<Body>),
}

impl State {
    /// What is on disk.
    pub fn load(
        this_box: BoxRecord,
        kinds: impl Iterator<Item = KindRecord>,
        objects: impl Iterator<Item = KubeObject>,
    ) -> Self {
        let mut index = Index::default();
        kinds.for_each(|record| index.load_kind(&record));
        for object in objects {
            if let (Some(type_), Some(key)) = (&object.r#type, &object.key) {
                index.set(type_, key, Some(Entry::of(&object)));
            }
        }
        Self { index, this_box, ..Self::default() }
    }

    /// What a State message of the cloud changes.
    pub fn apply(&mut self, body: Option<Body>) -> Result<Change, Instead> {
        match body {
            Some(Body::ObjectUpsert(upsert)) => {
                if self.waits(&upsert) {
                    return Err(Instead::Later(Box::new(Body::ObjectUpsert(upsert))));
                }
                self.upsert(upsert).map_err(Instead::Answer)
            }
            Some(Body::ObjectTombstone(tombstone)) => self.tombstone(tombstone).map_err(Instead::Answer),
            _ => Err(Instead::Answer(Settled::rejected(501, "MetaManager takes no State of this type"))),
        }
    }

    /// Whether something that is needed is being written, or being taken off.
    fn waits(&self, upsert: &ObjectUpsert) -> bool {
        upsert.needs.iter().any(|needed| {
            let (Some(type_), Some(key)) = (&needed.r#type, &needed.key) else { return false };
            self.writing.contains(&(type_.clone(), key.clone()))
        })
    }

    fn upsert(&mut self, upsert: ObjectUpsert) -> Result<Change, Settled> {
        let ObjectUpsert { object, needs, as_of } = upsert;
        let object = object.ok_or_else(|| Settled::rejected(400, "an ObjectUpsert carries no object"))?;
        let (Some(type_), Some(key)) = (object.r#type.clone(), object.key.clone()) else {
            return Err(Settled::rejected(400, "an object has no type or key"));
        };
        if object.uid.is_empty() {
            return Err(Settled::rejected(400, format!("{type_} {key} has no uid")));
        }
        self.not_writing(&type_, &key)?;
        let replaces = match self.index.upsert(&type_, &key, &object, as_of) {
            Decision::Put { replaces } => replaces,
            Decision::Same => return Err(Settled::applied()),
            Decision::Delete | Decision::Superseded => return Err(Settled::superseded()),
        };
        if let Some(missing) = needs.iter().find(|needed| !self.has(needed)) {
            let name = missing.key.as_ref().map(ToString::to_string).unwrap_or_default();
            let text = format!("{type_} {key} needs {name} in version {} on disk first", missing.resource_version);
            return Err(Settled::rejected(503, text));
        }
        if self.index.get(&type_, &key).is_none() && self.index.count(&type_) >= MAX_OBJECTS {
            return Err(Settled::rejected(507, format!("this node holds {MAX_OBJECTS} objects of {type_} already")));
        }
        let mut news = Vec::new();
        if let Some(uid) = replaces {
            news.push(gone(&type_, &key, uid));
        }
        self.index.saw(&type_, object.version());
        news.push(ObjectsChanged {
            r#type: Some(type_.clone()),
            key: Some(key.clone()),
            uid: object.uid.clone(),
            object: Some(object.clone()),
        });
        Ok(self.change(type_, key, Some(object), news))
    }

    fn tombstone(&mut self, tombstone: ObjectTombstone) -> Result<Change, Settled> {
        let (Some(type_), Some(key)) = (tombstone.r#type.clone(), tombstone.key.clone()) else {
            return Err(Settled::rejected(400, "an ObjectTombstone names no object"));
        };
        self.not_writing(&type_, &key)?;
        if self.index.tombstone(&type_, &key, &tombstone) != Decision::Delete {
            return Err(Settled::superseded());
        }
        let news = vec![gone(&type_, &key, tombstone.uid)];
        Ok(self.change(type_, key, None, news))
    }

    fn change(
        &mut self,
        type_: ResourceType,
        key: ObjectKey,
        object: Option<KubeObject>,
        news: Vec<ObjectsChanged>,
    ) -> Change {
        self.writing.insert((type_.clone(), key.clone()));
        let record = self.record(&type_);
        Change { type_, key, object, record, news }
    }

    /// The record of a kind, as it stands when all commits that are under way are done.
    fn record(&self, type_: &ResourceType) -> KindRecord {
        let mut record = self.index.record(type_);
        if let Some(completing) = self.completing.get(type_) {
            record.complete = true;
            record.as_of = record.as_of.max(completing.as_of);
            record.max_resource_version = record.max_resource_version.max(completing.max_resource_version);
        }
        record
    }

    /// The commit of a change is over: what the cloud is told, and then what is told here. Its key stays taken until that
    /// has been, so that nobody is told of an older object after a newer one: then comes [`State::told`].
    pub fn applied(&mut self, change: Change, committed: Result<(), String>) -> (Settled, Vec<ObjectsChanged>) {
        let Change { type_, key, object, news, .. } = change;
        let entry = object.as_ref().map(Entry::of);
        let answer = settled(committed);
        if answer.code == 0 {
            self.index.set(&type_, &key, entry);
        }
        let news = if answer.code == 0 { news } else { Vec::new() };
        (answer, news)
    }

    /// What followed from a change of this object has been told, if anything did.
    pub fn told(&mut self, type_: ResourceType, key: ObjectKey) {
        self.writing.remove(&(type_, key));
    }

    /// A message that overtook its own first copy, by a new connection: it is compared again.
    fn not_writing(&self, type_: &ResourceType, key: &ObjectKey) -> Result<(), Settled> {
        if self.writing.contains(&(type_.clone(), key.clone())) {
            return Err(Settled::rejected(
                503,
                format!("an earlier message about {type_} {key} is still being written"),
            ));
        }
        Ok(())
    }

    /// Whether what is needed is on disk, in this or a newer version or with the same content (`P-NEEDS-FIRST`).
    fn has(&self, needed: &ObjectReference) -> bool {
        let (Some(type_), Some(key)) = (&needed.r#type, &needed.key) else { return true };
        let version = needed.resource_version.parse().unwrap_or(0);
        let there = |entry: &Entry| entry.version.1 >= version || entry.projection_hash == needed.projection_hash;
        self.index.get(type_, key).is_some_and(there)
    }

    /// What is to be on disk before anything of a session is applied; then comes [`State::session_kept`]. The first
    /// cluster is pinned, another one is refused (`P-CLUSTER-PINNED`).
    pub fn session_started(&self, session: &SessionStarted) -> Result<BoxRecord, Settled> {
        let pinned = &self.this_box.cluster_uid;
        if !pinned.is_empty() && *pinned != session.cluster_uid {
            let text = format!(
                "this box belongs to cluster {pinned}, the cloud speaks for {}: nothing of it is applied",
                session.cluster_uid
            );
            return Err(Settled::rejected(409, text));
        }
        let (cluster_uid, last_epoch) = (session.cluster_uid.clone(), session.epoch);
        Ok(BoxRecord { cluster_uid, last_epoch, ..self.this_box.clone() })
    }

    /// Whether the session may be used. Without its pin on disk it may not: a power cut could let another cluster in. An
    /// epoch that is not on disk is no reason, as the cloud counts as well.
    pub fn session_kept(&mut self, record: BoxRecord, committed: Result<(), String>) -> Settled {
        let pinned = self.this_box.cluster_uid == record.cluster_uid;
        let answer = settled(committed);
        if answer.code == 0 || pinned {
            self.this_box.cluster_uid = record.cluster_uid;
            self.this_box.last_epoch = self.this_box.last_epoch.max(record.last_epoch);
            return Settled::applied();
        }
        answer
    }

    /// The record of a kind that is complete, to be committed; then comes [`State::completed`].
    pub fn complete(&mut self, message: CompleteInventory) -> Result<KindRecord, Settled> {
        let Some((complete, type_)) = message.complete.and_then(|complete| {
            let type_ = complete.r#type.clone()?;
            Some((complete, type_))
        }) else {
            return Err(Settled::rejected(400, "an InventoryComplete names no kind"));
        };
        if message.cluster_uid != self.this_box.cluster_uid {
            let text = format!(
                "cluster {} is not the one this box belongs to ({}): nothing is concluded from absence",
                message.cluster_uid, self.this_box.cluster_uid
            );
            return Err(Settled::rejected(409, text));
        }
        if complete.count as usize != self.index.count(&type_) {
            // A change may have overtaken the frame; the digest of the next hello settles it.
            tracing::debug!(%type_, cloud = complete.count, here = self.index.count(&type_), "counts differ");
        }
        let mut record = self.record(&type_);
        record.complete = true;
        record.as_of = record.as_of.max(complete.as_of);
        record.max_resource_version = record.max_resource_version.max(complete.as_of);
        self.completing.insert(type_, record.clone());
        Ok(record)
    }

    /// The commit of the record of a complete kind is over; whether it is complete now.
    pub fn completed(&mut self, record: &KindRecord, committed: Result<(), String>) -> Settled {
        if let Some(type_) = &record.r#type
            && self.completing.get(type_) == Some(record)
        {
            self.completing.remove(type_);
        }
        let answer = settled(committed);
        if answer.code == 0 {
            // The bookmark may have gone on meanwhile.
            let bookmark = record.r#type.as_ref().map(|type_| self.index.record(type_).bookmark).unwrap_or_default();
            self.index.load_kind(&KindRecord { bookmark, ..record.clone() });
        }
        answer
    }

    /// The record of a kind up to a version, to be committed.
    pub fn bookmarked(&mut self, type_: &ResourceType, version: String) -> KindRecord {
        let record = KindRecord { bookmark: version, ..self.record(type_) };
        self.index.set_bookmark(type_, record.bookmark.clone());
        record
    }

    /// What the next hello says. The connection it is for has been counted before. A kind that is being written has no
    /// digest: what is on its way to the disk may be there or not, and the cloud is to compare each object of it.
    pub fn describe(&self) -> StoreDescription {
        let mut kinds = self.index.digests();
        for kind in &mut kinds {
            if self.writing.iter().any(|(type_, _)| Some(type_) == kind.r#type.as_ref()) {
                kind.digest.clear();
            }
        }
        StoreDescription {
            instance_id: self.this_box.instance_id.clone(),
            cluster_uid: self.this_box.cluster_uid.clone(),
            last_epoch: self.this_box.last_epoch,
            connection: self.this_box.connection,
            kinds,
        }
    }
}

/// What whoever asked for a commit is told.
pub fn settled(committed: Result<(), String>) -> Settled {
    match committed {
        Ok(()) => Settled::applied(),
        Err(error) => Settled::rejected(507, format!("the edge's store refused it: {error}")),
    }
}

fn gone(type_: &ResourceType, key: &ObjectKey, uid: String) -> ObjectsChanged {
    ObjectsChanged { r#type: Some(type_.clone()), key: Some(key.clone()), uid, object: None }
}

#[cfg(test)]
mod tests {
    use kubeedge_proto::{resource, v1::InventoryComplete};

    use super::*;

    fn object(type_: ResourceType, name: &str, version: u64) -> KubeObject {
        KubeObject {
            r#type: Some(type_),
            key: Some(ObjectKey::new("ns", name)),
            uid: format!("u-{name}"),
            resource_version: version.to_string(),
            projection_hash: version,
            ..KubeObject::default()
        }
    }

    fn upsert(object: KubeObject, needs: &[KubeObject]) -> Option<Body> {
        let needs = needs.iter().map(|it| ObjectReference {
            r#type: it.r#type.clone(),
            key: it.key.clone(),
            uid: it.uid.clone(),
            resource_version: it.resource_version.clone(),
            projection_hash: it.projection_hash,
        });
        Some(Body::ObjectUpsert(ObjectUpsert { object: Some(object), needs: needs.collect(), as_of: 0 }))
    }

    fn answered(instead: Result<Change, Instead>) -> Settled {
        match instead {
            Err(Instead::Answer(settled)) => settled,
            other => panic!("{other:?}"),
        }
    }

    /// P-ACKED-IS-KEPT
    #[test]
    fn a_change_is_known_and_told_when_it_is_on_disk_and_not_before() {
        let mut state = State::default();
        let pod = object(resource::pods(), "a", 5);
        let change = state.apply(upsert(pod.clone(), &[])).unwrap();
        assert!(state.index.inventory(&resource::pods()).is_empty());
        assert_eq!(answered(state.apply(upsert(pod.clone(), &[]))).code, 503, "it is being written");
        let (answer, news) = state.applied(change, Err("full".into()));
        assert_eq!((answer.code, news.len()), (507, 0));
        assert!(state.index.inventory(&resource::pods()).is_empty());
        state.told(resource::pods(), ObjectKey::new("ns", "a"));
        let change = state.apply(upsert(pod.clone(), &[])).unwrap();
        let (answer, news) = state.applied(change, Ok(()));
        assert_eq!((answer, news.len()), (Settled::applied(), 1));
        assert_eq!(answered(state.apply(upsert(pod.clone(), &[]))).code, 503, "it is being told");
        state.told(resource::pods(), ObjectKey::new("ns", "a"));
        assert_eq!(answered(state.apply(upsert(pod, &[]))), Settled::applied(), "it is there already");
    }

    /// P-NEEDS-FIRST
    #[test]
    fn a_pod_waits_for_what_it_needs_and_is_refused_for_now_without_it() {
        let mut state = State::default();
        let (config, newer) = (object(resource::config_maps(), "c", 4), object(resource::config_maps(), "c", 6));
        let pod = object(resource::pods(), "a", 5);
        assert_eq!(answered(state.apply(upsert(pod.clone(), std::slice::from_ref(&config)))).code, 503);
        let change = state.apply(upsert(config.clone(), &[])).unwrap();
        let waits = state.apply(upsert(pod.clone(), std::slice::from_ref(&config)));
        assert!(matches!(waits, Err(Instead::Later(_))), "{waits:?}");
        state.applied(change, Ok(()));
        state.told(resource::config_maps(), ObjectKey::new("ns", "c"));
        assert_eq!(answered(state.apply(upsert(pod.clone(), &[newer]))).code, 503, "an older version will not do");
        assert!(state.apply(upsert(pod, &[config])).is_ok());
    }

    #[test]
    fn a_kind_that_is_being_written_has_no_digest() {
        let mut state = State::default();
        let digest = |state: &State| {
            let kinds = state.describe().kinds;
            kinds.into_iter().find(|kind| kind.r#type == Some(resource::pods())).map(|kind| kind.digest.len())
        };
        assert_eq!(digest(&state), None);
        let change = state.apply(upsert(object(resource::pods(), "a", 5), &[])).unwrap();
        assert_eq!(digest(&state), Some(0));
        state.applied(change, Ok(()));
        state.told(resource::pods(), ObjectKey::new("ns", "a"));
        assert!(digest(&state).is_some_and(|bytes| bytes > 0));
        let _writing = state.apply(upsert(object(resource::config_maps(), "c", 6), &[])).unwrap();
        assert!(digest(&state).is_some_and(|bytes| bytes > 0), "another kind is being written");
    }

    #[test]
    fn a_kind_that_is_complete_stays_so_in_what_is_committed_after_that() {
        let mut state = State::default();
        let complete = InventoryComplete { r#type: Some(resource::pods()), count: 0, as_of: 7 };
        let message = CompleteInventory { complete: Some(complete), ..CompleteInventory::default() };
        let record = state.complete(message).unwrap();
        assert!(!state.index.is_complete(&resource::pods()), "not before it is on disk");
        // Behind it on the way to the disk.
        let change = state.apply(upsert(object(resource::pods(), "a", 8), &[])).unwrap();
        assert!(change.record.complete && change.record.as_of == 7, "{:?}", change.record);
        let bookmarked = state.bookmarked(&resource::pods(), "9".into());
        assert!(bookmarked.complete && bookmarked.bookmark == "9", "{bookmarked:?}");
        assert_eq!(state.completed(&record, Ok(())), Settled::applied());
        assert!(state.index.is_complete(&resource::pods()));
        assert_eq!(state.index.record(&resource::pods()).bookmark, "9");
        let record = state.complete(CompleteInventory {
            complete: Some(InventoryComplete { r#type: Some(resource::secrets()), count: 0, as_of: 7 }),
            ..CompleteInventory::default()
        });
        assert_eq!(state.completed(&record.unwrap(), Err("full".into())).code, 507);
        assert!(!state.index.is_complete(&resource::secrets()));
        let change = state.apply(upsert(object(resource::secrets(), "s", 8), &[])).unwrap();
        assert!(!change.record.complete);
    }

    /// P-CLUSTER-PINNED
    #[test]
    fn a_box_belongs_to_the_first_cluster_whose_name_is_on_its_disk() {
        let session = |epoch, cluster: &str| SessionStarted { epoch, cluster_uid: cluster.into() };
        let mut state = State::default();
        let record = state.session_started(&session(1, "k1")).unwrap();
        assert_eq!(state.session_kept(record, Err("full".into())).code, 507);
        assert!(state.this_box.cluster_uid.is_empty(), "a name that is not on disk binds nobody");
        let record = state.session_started(&session(2, "k1")).unwrap();
        assert_eq!(state.session_kept(record, Ok(())), Settled::applied());
        assert_eq!(state.session_started(&session(3, "k2")).unwrap_err().code, 409);
        let complete = InventoryComplete { r#type: Some(resource::pods()), as_of: 9, count: 0 };
        let message = CompleteInventory { complete: Some(complete), cluster_uid: "k2".into() };
        assert_eq!(state.complete(message).unwrap_err().code, 409);
        let record = state.session_started(&session(4, "k1")).unwrap();
        assert_eq!(state.session_kept(record, Err("full".into())), Settled::applied(), "an epoch may be lost");
        assert_eq!(state.describe().last_epoch, 4);
    }
}
