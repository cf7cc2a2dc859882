//! The model: a cluster, a controller whose view of it lags, and an edge that stores what it is told.

use std::collections::BTreeMap;

use super::*;

/// An object's place: which kind, which name.
pub(super) type Place = (usize, u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) uid: u64,
    pub(super) version: u64,
}

/// One change of the cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) place: Place,
    pub(super) uid: u64,
    pub(super) gone: bool,
}

pub(super) fn kinds() -> [ResourceType; 2] {
    [resource::config_maps(), resource::pods()]
}

pub(super) fn kind_of(type_: Option<&ResourceType>) -> usize {
    kinds().iter().position(|kind| Some(kind) == type_).expect("a kind of the model")
}

pub(super) fn place_of(type_: Option<&ResourceType>, key: Option<&ObjectKey>) -> Place {
    (kind_of(type_), key.expect("a key").name[1..].parse().expect("a name of the model"))
}

pub(super) fn key((_, name): Place) -> Option<ObjectKey> {
    Some(ObjectKey::new("ns", format!("n{name}")))
}

impl World {
    // ---- the cluster and its controller

    pub(super) fn change_cluster(&mut self) {
        let place = self.place();
        let version = self.history.last().map_or(1, |change| change.version + 1);
        let change = match self.objects.get(&place) {
            Some(object) if self.rng.random_bool(0.4) => {
                self.ended.insert(object.uid, version);
                Change { version, place, uid: object.uid, gone: true }
            }
            Some(object) => Change { version, place, uid: object.uid, gone: false },
            None => {
                self.uids += 1;
                Change { version, place, uid: self.uids, gone: false }
            }
        };
        apply(&mut self.objects, change);
        self.history.push(change);
    }

    /// The controller hears of the next change, and passes it on when the node is there.
    pub(super) fn controller_sees(&mut self) {
        let Some(change) = self.history.get(self.seen).copied() else { return };
        self.seen += 1;
        apply(&mut self.view, change);
        let body = if change.gone {
            Body::ObjectTombstone(ObjectTombstone {
                r#type: Some(kinds()[change.place.0].clone()),
                key: key(change.place),
                uid: change.uid.to_string(),
                resource_version: change.version.to_string(),
            })
        } else {
            Body::ObjectUpsert(upsert(change.place, Object { uid: change.uid, version: change.version }))
        };
        let envelope = self.envelope(body);
        if let Some(link) = &mut self.link
            && link.registered
        {
            link.mailbox.push_back(envelope);
            if change.gone {
                link.told.insert(change.uid);
            }
        }
    }

    /// Another replica of the cloud takes over, whose view is older.
    pub(super) fn controller_goes_back(&mut self) {
        self.seen = self.rng.random_range(0..=self.seen);
        self.view.clear();
        for change in &self.history[..self.seen] {
            apply(&mut self.view, *change);
        }
    }

    pub(super) fn desired(&mut self) -> DesiredState {
        let as_of = self.seen.checked_sub(1).map_or(0, |last| self.history[last].version);
        let kinds = kinds().into_iter().enumerate().map(|(kind, type_)| {
            let complete = self.complete[kind];
            let objects = self.view.iter().filter(|(place, _)| place.0 == kind);
            let objects: Vec<ObjectUpsert> = objects
                .filter(|_| complete || self.rng.random_bool(0.5))
                .map(|(place, object)| upsert(*place, *object))
                .collect();
            // A list that is not complete says nothing by its version, whatever that is.
            DesiredKind { r#type: Some(type_), complete, as_of, objects }
        });
        DesiredState { kinds: kinds.collect() }
    }

    // ---- the edge

    pub(super) fn entries(&self, kind: usize) -> Vec<InventoryEntry> {
        let held = self.held.iter().filter(|(place, _)| place.0 == kind);
        held.map(|(place, object)| InventoryEntry {
            key: key(*place),
            uid: object.uid.to_string(),
            projection_hash: object.version,
            resource_version: object.version.to_string(),
        })
        .collect()
    }

    pub(super) fn hello(&mut self) -> Hello {
        self.connections += 1;
        let digests = kinds().into_iter().enumerate().map(|(kind, type_)| {
            let entries = self.entries(kind);
            KindDigest {
                r#type: Some(type_),
                count: entries.len() as u32,
                digest: kind_digest(&entries).to_vec().into(),
                max_resource_version: self.highest[kind],
                bookmark: String::new(),
            }
        });
        Hello {
            instance_id: vec![1; 16].into(),
            connection: self.connections,
            last_epoch: self.last_epoch,
            kinds: digests.collect(),
            ..Default::default()
        }
    }

    /// The edge's store takes a State message.
    pub(super) fn edge_stores(&mut self, envelope: &Envelope) -> Settled {
        self.settled.insert(envelope.id.clone());
        match envelope.body.as_ref() {
            Some(Body::ObjectUpsert(ObjectUpsert { object: Some(object), .. })) => {
                let place = place_of(object.r#type.as_ref(), object.key.as_ref());
                let new = Object { uid: object.uid.parse().expect("a uid"), version: object.version() };
                self.highest[place.0] = self.highest[place.0].max(new.version);
                if let Some(old) = self.held.get(&place) {
                    if old.version > new.version || *old == new {
                        return Settled::superseded();
                    }
                    if old.uid != new.uid {
                        self.ends(old.uid, "replaced");
                    }
                }
                self.held.insert(place, new);
                Settled::applied()
            }
            Some(Body::ObjectTombstone(gone)) => {
                let place = place_of(gone.r#type.as_ref(), gone.key.as_ref());
                let uid: u64 = gone.uid.parse().expect("a uid");
                if self.held.get(&place).is_none_or(|object| object.uid != uid) {
                    return Settled::superseded();
                }
                self.ends(uid, "deleted");
                self.deletions += 1;
                self.held.remove(&place);
                Settled::applied()
            }
            other => panic!("the edge was sent {other:?}"),
        }
    }

    /// The promise: nothing ends at the edge that has not ended in the cluster.
    pub(super) fn ends(&self, uid: u64, how: &str) {
        assert!(self.ended.contains_key(&uid), "uid {uid} was {how} at the edge and is still desired");
    }

    /// From here on absence means absence: so everything desired as of then is there. What had ended is not, unless the
    /// controller has said so in this session and its word has yet to arrive: that errs on the side of what runs.
    pub(super) fn edge_completes(&mut self, complete: &v1::InventoryComplete) {
        let kind = kind_of(complete.r#type.as_ref());
        self.completions += 1;
        self.highest[kind] = self.highest[kind].max(complete.as_of);
        let mut then = BTreeMap::new();
        for change in self.history.iter().take_while(|change| change.version <= complete.as_of) {
            apply(&mut then, *change);
        }
        for (place, object) in then.iter().filter(|(place, _)| place.0 == kind) {
            let held = self.held.get(place);
            let there = held.is_some_and(|held| held.uid == object.uid && held.version >= object.version);
            let ended = self.ended.contains_key(&object.uid);
            assert!(there || ended, "complete as of {}, but of {place:?} {object:?} there is {held:?}", complete.as_of);
        }
        for (place, held) in self.held.iter().filter(|(place, _)| place.0 == kind) {
            let ended = self.ended.get(&held.uid);
            let told = self.link.as_ref().is_some_and(|link| link.told.contains(&held.uid));
            let late = ended.is_some_and(|at| *at <= complete.as_of);
            assert!(told || !late, "complete as of {}, but {place:?} {held:?} ended at {ended:?}", complete.as_of);
        }
    }
}

pub(super) fn apply(objects: &mut BTreeMap<Place, Object>, change: Change) {
    if change.gone {
        objects.remove(&change.place);
    } else {
        objects.insert(change.place, Object { uid: change.uid, version: change.version });
    }
}

pub(super) fn upsert(place: Place, object: Object) -> ObjectUpsert {
    // One in sixteen versions is big enough to go in chunks.
    let size = if object.version.is_multiple_of(16) { 70_000 } else { 20 };
    ObjectUpsert {
        object: Some(KubeObject {
            r#type: Some(kinds()[place.0].clone()),
            key: key(place),
            uid: object.uid.to_string(),
            resource_version: object.version.to_string(),
            json: vec![b' '; size].into(),
            projection_hash: object.version,
        }),
        ..ObjectUpsert::default()
    }
}
