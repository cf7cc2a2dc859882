//! The API server: objects, their versions, a log to watch, backups to be restored from.

use std::collections::{BTreeMap, BTreeSet};

use kubeedge_actors::edgecontroller::writes::{Refused, Request};
use kubeedge_proto::resource;
use serde_json::{Value, json};

use super::faults::Fault;

pub const NAMESPACE: &str = "ns";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Config,
    Pod,
}

pub type Place = (Kind, usize);

pub fn name_of((kind, number): Place) -> String {
    match kind {
        Kind::Config => format!("c{number}"),
        Kind::Pod => format!("p{number}"),
    }
}

pub fn place_of(name: &str) -> Place {
    let number = name[1..].parse().expect("a name of the model");
    if name.starts_with('c') { (Kind::Config, number) } else { (Kind::Pod, number) }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub uid: String,
    pub version: u64,
    pub content: u64,
    pub big: bool,
    pub node: &'static str,
    pub names: Vec<usize>,
    pub deleting: bool,
    /// Who reported last (box), its count, and by which session.
    pub status: Option<(usize, u64, u64)>,
}

impl Object {
    pub fn value(&self, place: Place) -> Value {
        let mut meta = json!({
            "namespace": NAMESPACE, "name": name_of(place), "uid": self.uid,
            "resourceVersion": self.version.to_string(), "labels": {"content": self.content.to_string()},
        });
        match place.0 {
            Kind::Config => {
                let data = if self.big { "x".repeat(40_000) } else { String::new() };
                json!({"metadata": meta, "data": {"key": data}})
            }
            Kind::Pod => {
                if self.deleting {
                    meta["deletionTimestamp"] = "2027-01-15T08:00:00Z".into();
                    meta["deletionGracePeriodSeconds"] = 1.into();
                }
                let volumes: Vec<Value> = (self.names.iter())
                    .map(|number| json!({"name": format!("v{number}"), "configMap": {"name": format!("c{number}")}}))
                    .collect();
                let containers = json!([{"name": "c", "image": "i"}]);
                json!({"metadata": meta, "spec": {"nodeName": self.node, "containers": containers, "volumes": volumes}})
            }
        }
    }
}

/// One change, for those who watch. `gone`: the object as it was last.
#[derive(Clone, Debug)]
pub struct Change {
    pub version: u64,
    pub place: Place,
    pub object: Object,
    pub gone: bool,
}

#[derive(Clone, Debug)]
struct Snapshot {
    incarnation: u64,
    version: u64,
    log: usize,
    objects: BTreeMap<Place, Object>,
}

pub struct Api {
    /// uid of `kube-system`.
    pub cluster: String,
    pub version: u64,
    pub objects: BTreeMap<Place, Object>,
    pub log: Vec<Change>,
    /// Counts restores: a watch of an older one is broken.
    pub incarnation: u64,
    snapshots: Vec<Snapshot>,
    uids: u64,
    /// Uids that somebody ended or told to end.
    pub ended: BTreeSet<String>,
    /// Uids that a restore has lost, with the version from which on that counts.
    pub lost: BTreeMap<String, u64>,
    /// The highest version ever given.
    pub highest: u64,
    /// Kubernetes Events by name.
    pub events: BTreeMap<String, Value>,
    /// Lists and watches fail.
    pub lists_fail: bool,
    /// What the next write that somebody waits for is answered.
    pub refuses: Option<(u16, Fault)>,
}

impl Api {
    pub fn new(cluster: &str) -> Self {
        Self {
            cluster: cluster.into(),
            version: 100,
            objects: BTreeMap::new(),
            log: Vec::new(),
            incarnation: 0,
            snapshots: Vec::new(),
            uids: 0,
            ended: BTreeSet::new(),
            lost: BTreeMap::new(),
            highest: 100,
            events: BTreeMap::new(),
            lists_fail: false,
            refuses: None,
        }
    }

    fn put(&mut self, place: Place, mut object: Object) {
        self.version += 1;
        self.highest = self.highest.max(self.version);
        object.version = self.version;
        self.log.push(Change { version: self.version, place, object: object.clone(), gone: false });
        self.objects.insert(place, object);
    }

    pub fn create(&mut self, place: Place, node: &'static str, names: Vec<usize>, content: u64, big: bool) {
        self.uids += 1;
        let uid = format!("{}-{}-{}", self.cluster, self.uids, self.incarnation);
        self.put(place, Object { uid, version: 0, content, big, node, names, deleting: false, status: None });
    }

    pub fn change(&mut self, place: Place, change: impl FnOnce(&mut Object)) {
        if let Some(mut object) = self.objects.get(&place).cloned() {
            change(&mut object);
            if object.deleting {
                self.ended.insert(object.uid.clone());
            }
            self.put(place, object);
        }
    }

    pub fn remove(&mut self, place: Place) {
        if let Some(object) = self.objects.remove(&place) {
            self.version += 1;
            self.highest = self.highest.max(self.version);
            self.ended.insert(object.uid.clone());
            self.log.push(Change { version: self.version, place, object, gone: true });
        }
    }

    /// Time passes in the cluster: versions rise for other reasons, too.
    pub fn bump(&mut self, by: u64) {
        self.version += by;
        self.highest = self.highest.max(self.version);
    }

    pub fn snapshot(&mut self) {
        self.snapshots.push(Snapshot {
            incarnation: self.incarnation,
            version: self.version,
            log: self.log.len(),
            objects: self.objects.clone(),
        });
    }

    /// What a list says: now, or as of a snapshot. With the version and where a watch goes on.
    pub fn list(&self, older: Option<usize>) -> (BTreeMap<Place, Object>, u64, usize) {
        let usable: Vec<&Snapshot> = self.snapshots.iter().filter(|it| it.incarnation == self.incarnation).collect();
        match older.filter(|_| !usable.is_empty()).map(|number| usable[number % usable.len()]) {
            Some(snapshot) => (snapshot.objects.clone(), snapshot.version, snapshot.log),
            None => (self.objects.clone(), self.version, self.log.len()),
        }
    }

    pub fn restore(&mut self, number: usize) -> bool {
        if self.snapshots.is_empty() {
            return false;
        }
        let snapshot = self.snapshots[number % self.snapshots.len()].clone();
        let from = self.highest;
        for (place, object) in &self.objects {
            if snapshot.objects.get(place).is_none_or(|old| old.uid != object.uid) {
                self.lost.insert(object.uid.clone(), from);
            }
        }
        // What had ended and is back may end all the same: the word of it may be on its way.
        for object in snapshot.objects.values() {
            self.lost.remove(&object.uid);
        }
        self.incarnation += 1;
        self.version = snapshot.version;
        self.objects = snapshot.objects;
        self.log.clear();
        self.snapshots.clear();
        true
    }

    /// Carries out a request of the cloud's. `epoch`: of the session it is for.
    pub fn carry_out(&mut self, request: &Request, epoch: u64) -> Result<Value, Refused> {
        let refused = |code, message: &str| Err(Refused { code, message: message.into() });
        match request {
            Request::Get(_, key) => match self.objects.get(&place_of(&key.name)) {
                Some(object) => Ok(object.value(place_of(&key.name))),
                None => refused(404, "not found"),
            },
            Request::PatchStatus(type_, key, patch) => {
                assert_eq!(*type_, resource::pods());
                let place = place_of(&key.name);
                let Some(object) = self.objects.get(&place).cloned() else { return refused(404, "not found") };
                if patch["metadata"]["uid"] != object.uid {
                    return refused(409, "uid");
                }
                let version = &patch["metadata"]["resourceVersion"];
                if version.as_str().is_some_and(|version| version.parse() != Ok(object.version)) {
                    return refused(409, "resourceVersion");
                }
                let message = patch["status"]["message"].as_str().expect("the model's status has a message");
                let (from, count) = message.split_once(':').expect("a box and its count");
                let status = (from.parse().expect("a box"), count.parse().expect("a count"), epoch);
                if let Some((box_, last, by)) = object.status {
                    promise!(
                        by <= epoch,
                        "P-SUPERSEDED-WRITES-NOTHING",
                        "session {epoch} wrote over what session {by} had written of {}",
                        object.uid
                    );
                    promise!(
                        box_ != status.0 || last <= status.1,
                        "P-STATE-AS-IF-ONCE",
                        "the status of {} went back from {last} to {}",
                        object.uid,
                        status.1
                    );
                }
                self.change(place, |object| object.status = Some(status));
                Ok(self.objects[&place].value(place))
            }
            Request::DeletePod(key, uid) => {
                let place = place_of(&key.name);
                match self.objects.get(&place) {
                    None => refused(404, "not found"),
                    Some(object) if object.uid != *uid => refused(409, "uid"),
                    Some(_) => {
                        self.remove(place);
                        Ok(Value::Null)
                    }
                }
            }
        }
    }
}
