//! The controllers of group `apps`: ReplicaSets, Deployments, DaemonSets and StatefulSets make and end their pods.
//!
//! Each is a pure function of a family (an object, what belongs to it, what it depends on) to a plan, and this shell:
//! it decides without the turn to write, and when there is something to do once more in the turn, so that what is
//! written was decided from what is. There is no cache that could be stale, hence none of the expectations that
//! Kubernetes' controllers keep. An object is looked at again only when something of its family has changed, or at the
//! time that its plan named.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::super::object::{Key, Object, add_type, metadata};
use super::super::request::Target;
use super::super::status::Status;
use super::super::storage::{Change, KindId, Storage, Writer};
use super::super::verbs::create::admitted;
use super::super::verbs::delete::{DeleteOptions, Plan as Deletion, plan};
use super::super::{Api, clock, meta};
use super::{Again, PAUSE, RETRY, run};
use crate::apiserver::kinds::fields::text;

mod daemonset;
mod deployment;
mod family;
mod hash;
mod pods;
mod replicaset;
mod revisions;
mod statefulset;

use family::{Family, Nodes};

/// Pods that one look makes or deletes for one object at most; the next look goes on. Kubernetes' number.
const BURST: usize = 500;
/// Names tried for a new object whose name is made up, before its creation counts as refused.
const NAMES_TRIED: usize = 8;

/// A kind that a plan writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Resource {
    Pods,
    ReplicaSets,
    Deployments,
    DaemonSets,
    StatefulSets,
    Revisions,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq)]
enum Action {
    /// Make it, as if a client had sent it.
    Create(Resource, Value),
    /// Store this state of it.
    Put(Resource, Value),
    /// Delete it, as if a client had asked.
    Delete(Resource, Value),
    /// Tell of the object in hand: type, reason, message.
    Event(&'static str, &'static str, String),
}

/// What there is to do for one object.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    actions: Vec<Action>,
    /// When to look again although nothing has changed, seconds since 1970.
    at: Option<i64>,
}

impl Plan {
    /// Looks again at `at`, or before.
    fn again(&mut self, at: Option<i64>) {
        self.at = [self.at, at].into_iter().flatten().min();
    }
}

/// A decision about one family: at a time, and with the reason why its creations were refused, if they were.
type Decide = fn(&Family, i64, Option<&str>) -> Plan;

/// Finds what is around an object.
type Gather = fn(&Storage, Kinds, &Object, &Value) -> Vec<(Resource, Arc<Object>)>;

/// The ids of the kinds.
#[derive(Clone, Copy)]
struct Kinds {
    pods: KindId,
    sets: KindId,
    deployments: KindId,
    daemon_sets: KindId,
    stateful_sets: KindId,
    revisions: KindId,
    events: KindId,
    namespaces: KindId,
    nodes: KindId,
}

impl Kinds {
    fn of(storage: &Storage) -> Option<Self> {
        let apps = |plural| storage.find("apps", "v1", plural);
        Some(Self {
            pods: storage.core("pods")?,
            sets: apps("replicasets")?,
            deployments: apps("deployments")?,
            daemon_sets: apps("daemonsets")?,
            stateful_sets: apps("statefulsets")?,
            revisions: apps("controllerrevisions")?,
            events: storage.core("events")?,
            namespaces: storage.core("namespaces")?,
            nodes: storage.core("nodes")?,
        })
    }

    fn id(&self, resource: Resource) -> KindId {
        match resource {
            Resource::Pods => self.pods,
            Resource::ReplicaSets => self.sets,
            Resource::Deployments => self.deployments,
            Resource::DaemonSets => self.daemon_sets,
            Resource::StatefulSets => self.stateful_sets,
            Resource::Revisions => self.revisions,
        }
    }
}

/// One of the controllers.
#[derive(Clone, Copy)]
struct Controller {
    name: &'static str,
    /// Whose objects it looks after.
    of: Resource,
    /// Kinds whose changes wake it, beside its own.
    wakes: &'static [Resource],
    /// Whether it decides by the nodes.
    nodes: bool,
    /// The kind it makes under names of its own choice.
    names: Option<Resource>,
    gather: Gather,
    decide: Decide,
}

const CONTROLLERS: [Controller; 4] = [
    Controller {
        name: "replicaset-controller",
        of: Resource::ReplicaSets,
        wakes: &[Resource::Pods],
        nodes: false,
        names: None,
        gather: family::of_replica_set,
        decide: replicaset::decide,
    },
    Controller {
        name: "deployment-controller",
        of: Resource::Deployments,
        wakes: &[Resource::ReplicaSets, Resource::Pods],
        nodes: false,
        names: Some(Resource::ReplicaSets),
        gather: family::of_deployment,
        decide: deployment::decide,
    },
    Controller {
        name: "daemonset-controller",
        of: Resource::DaemonSets,
        wakes: &[Resource::Pods, Resource::Revisions],
        nodes: true,
        names: Some(Resource::Revisions),
        gather: family::of_revisioned,
        decide: daemonset::decide,
    },
    Controller {
        name: "statefulset-controller",
        of: Resource::StatefulSets,
        wakes: &[Resource::Pods, Resource::Revisions],
        nodes: false,
        names: Some(Resource::Revisions),
        gather: family::of_revisioned,
        decide: statefulset::decide,
    },
];

/// Starts them.
pub(super) fn start(api: &Arc<Api>, tasks: &mut JoinSet<()>) {
    let Some(kinds) = Kinds::of(&api.storage) else { return };
    for controller in CONTROLLERS {
        let wakes = controller.wakes.iter().chain([&controller.of]).map(|resource| kinds.id(*resource));
        let wakes = wakes.chain(controller.nodes.then_some(kinds.nodes)).collect();
        let looks = Arc::new(Looks::default());
        tasks.spawn(run(controller.name, api.clone(), wakes, PAUSE, move |api| {
            let looks = looks.clone();
            async move { reconcile(&api, kinds, &controller, &looks).await }
        }));
    }
}

/// When each object was looked at with nothing to do: what its family was then, and until when that holds.
#[derive(Debug, Default)]
struct Looks {
    settled: Mutex<HashMap<String, (u64, Option<i64>)>>,
    /// Why a creation for an object was refused last, which is told once.
    refused: Mutex<HashMap<String, String>>,
    nodes: Nodes,
}

impl Looks {
    fn is_settled(&self, uid: &str, family: u64, now: i64) -> bool {
        let known = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(uid).is_some_and(|(seen, until)| *seen == family && until.is_none_or(|until| now < until))
    }

    fn settled(&self, uid: &str, family: u64, until: Option<i64>) {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), (family, until));
    }

    /// Notes why something was refused, or that nothing is any more; says whether that is new.
    fn note_refused(&self, uid: &str, why: Option<&str>) -> bool {
        let mut known = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => known.insert(uid.to_owned(), why.to_owned()).is_none_or(|before| before != why),
            None => known.remove(uid).is_some(),
        }
    }

    /// Forgets what does not exist any more; gives the earliest time at which something is to be looked at.
    fn keep(&self, uids: &[&str]) -> Option<i64> {
        let exists = |uid: &String| uids.contains(&uid.as_str());
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| exists(uid));
        let mut known = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|uid, _| exists(uid));
        known.values().filter_map(|(_, until)| *until).min()
    }
}

/// Looks at every object of a controller.
async fn reconcile(api: &Arc<Api>, kinds: Kinds, controller: &Controller, looks: &Looks) -> Result<Again, Status> {
    let (_, owners) = api.storage.list(kinds.id(controller.of), None);
    let mut refused = false;
    if controller.nodes {
        looks.nodes.refresh(&api.storage, kinds.nodes);
    }
    for owner in &owners {
        let Some(seen) = look(api, kinds, controller, looks, &owner.key) else { continue };
        let now = api.now();
        if looks.is_settled(&owner.uid, seen.version, now) {
            continue;
        }
        let plan = (controller.decide)(&seen.family, now, None);
        if plan.actions.is_empty() {
            looks.settled(&owner.uid, seen.version, plan.at);
            continue;
        }
        refused |= act(api, kinds, controller, looks, &owner.key).await?;
    }
    let uids: Vec<&str> = owners.iter().map(|owner| owner.uid.as_str()).collect();
    let due = looks.keep(&uids).map(|at| Duration::from_secs(u64::try_from(at - api.now()).unwrap_or(0)));
    let retry = refused.then_some(RETRY);
    Ok([due, retry].into_iter().flatten().min().map_or(Again::OnChange, Again::After))
}

/// A family, with a number that changes when any of it does.
struct Seen {
    family: Family,
    version: u64,
}

fn look(api: &Api, kinds: Kinds, controller: &Controller, looks: &Looks, key: &Key) -> Option<Seen> {
    let storage = &api.storage;
    let id = kinds.id(controller.of);
    let object = storage.get(id, key)?;
    let owner = object.value(storage.kind(id));
    let others = (controller.gather)(storage, kinds, &object, &owner);
    let mut hasher = DefaultHasher::new();
    (&object.uid, object.resource_version).hash(&mut hasher);
    let mut family = Family::new(owner);
    let namespace = storage.get(kinds.namespaces, &Key::new("", &key.namespace));
    family.closed = namespace.is_none_or(|namespace| namespace.deleting);
    family.closed.hash(&mut hasher);
    for (resource, object) in others {
        (&object.uid, object.resource_version).hash(&mut hasher);
        family.add(resource, object.value(storage.kind(kinds.id(resource))));
    }
    if controller.nodes {
        family.nodes = looks.nodes.all(&mut hasher);
    }
    if let Some(resource) = controller.names {
        let (_, all) = storage.list(kinds.id(resource), Some(&key.namespace));
        family.taken_names = all.iter().map(|object| object.key.name.clone()).collect();
    }
    Some(Seen { family, version: hasher.finish() })
}

/// Decides in the turn to write and writes; says whether a creation was refused.
async fn act(api: &Arc<Api>, kinds: Kinds, controller: &Controller, looks: &Looks, key: &Key) -> Result<bool, Status> {
    let writer = api.storage.write().await;
    let Some(Seen { family, .. }) = look(api, kinds, controller, looks, key) else { return Ok(false) };
    let turn = Turn { api, kinds, controller, writer: &writer, owner: &family.owner };
    let first = turn.changes((controller.decide)(&family, api.now(), None).actions);
    let uid = text(&family.owner, "/metadata/uid");
    let (changes, refused) = match first {
        Ok(changes) => {
            looks.note_refused(uid, None);
            (changes, false)
        }
        Err(why) => {
            tracing::debug!(controller = controller.name, name = key.name, %why, "a creation is refused");
            // Once more, without creations and with the reason in the status.
            let mut actions = (controller.decide)(&family, api.now(), Some(&why.message)).actions;
            actions.retain(|action| !matches!(action, Action::Create(..)));
            if looks.note_refused(uid, Some(&why.message)) {
                let message = format!("Error creating: {}", why.message);
                actions.push(Action::Event("Warning", "FailedCreate", message));
            }
            (turn.changes(actions)?, true)
        }
    };
    writer.commit(changes).await?;
    Ok(refused)
}

/// The turn to write, for one object.
struct Turn<'a> {
    api: &'a Api,
    kinds: Kinds,
    controller: &'a Controller,
    writer: &'a Writer,
    owner: &'a Value,
}

impl Turn<'_> {
    /// What is stored for these actions; `Err` is why something cannot be made.
    fn changes(&self, actions: Vec<Action>) -> Result<Vec<Change>, Status> {
        let mut changes = Vec::new();
        let mut names: Vec<String> = Vec::new();
        for action in actions {
            match action {
                Action::Create(resource, object) => {
                    let object = self.create(resource, object, &names)?;
                    let name = text(&object, "/metadata/name").to_owned();
                    if resource == Resource::Pods {
                        changes.extend(self.event("Normal", "SuccessfulCreate", &format!("Created pod: {name}")));
                    }
                    names.push(name);
                    changes.push(Change::Put(self.kinds.id(resource), object));
                }
                Action::Put(resource, object) => changes.extend(self.put(resource, object)),
                Action::Delete(resource, object) => changes.extend(self.delete(resource, &object)?),
                Action::Event(type_, reason, message) => changes.extend(self.event(type_, reason, &message)),
            }
        }
        Ok(changes)
    }

    /// A new object as the API would store it, under a name that is free.
    fn create(&self, resource: Resource, object: Value, names: &[String]) -> Result<Value, Status> {
        let id = self.kinds.id(resource);
        let target = Target {
            id,
            kind: self.api.storage.kind(id),
            custom: None,
            namespace: Some(text(&object, "/metadata/namespace").to_owned()),
            name: None,
            subresource: None,
        };
        let mut refused = None;
        for _ in 0..NAMES_TRIED {
            match admitted(self.api, self.writer, &target, object.clone()) {
                Ok(made) if names.iter().any(|name| *name == text(&made, "/metadata/name")) => {}
                Ok(mut made) => {
                    add_type(&mut made, target.kind);
                    return Ok(made);
                }
                Err(status)
                    if status.reason == "AlreadyExists" && !text(&object, "/metadata/generateName").is_empty() =>
                {
                    refused = Some(status);
                }
                Err(status) => return Err(status),
            }
        }
        Err(refused.unwrap_or_else(|| Status::internal("no free name was found")))
    }

    /// A changed object; its generation follows its spec. Nothing when it is gone or stays as it is.
    fn put(&self, resource: Resource, mut object: Value) -> Option<Change> {
        let id = self.kinds.id(resource);
        let kind = self.api.storage.kind(id);
        let key = Key::new(text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
        let before =
            self.writer.get(id, &key).filter(|before| before.uid == text(&object, "/metadata/uid"))?.value(kind);
        if before == object {
            return None;
        }
        if kind.has_generation && before["spec"] != object["spec"] {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            metadata(&mut object).insert("generation".into(), generation.into());
        }
        Some(Change::Put(id, object))
    }

    fn delete(&self, resource: Resource, object: &Value) -> Result<Vec<Change>, Status> {
        let id = self.kinds.id(resource);
        let key = Key::new(text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        let uid = text(object, "/metadata/uid");
        let Some(now) = self.writer.get(id, &key).filter(|now| now.uid == uid) else { return Ok(Vec::new()) };
        let kind = self.api.storage.kind(id);
        let options = DeleteOptions { uid: Some(uid.to_owned()), ..DeleteOptions::default() };
        let change = match plan(kind, &now.value(kind), &options, self.api.now())? {
            Deletion::Nothing => return Ok(Vec::new()),
            Deletion::Mark(value) => Change::Put(id, value),
            Deletion::Remove(value) => Change::Delete(id, value),
        };
        let told = (resource == Resource::Pods)
            .then(|| self.event("Normal", "SuccessfulDelete", &format!("Deleted pod: {}", key.name)));
        Ok([Some(change), told.flatten()].into_iter().flatten().collect())
    }

    fn event(&self, type_: &str, reason: &str, message: &str) -> Option<Change> {
        let kind = self.api.storage.kind(self.kinds.events);
        let now = clock::rfc3339(self.api.now());
        let owner = self.owner;
        let name = meta::generated_name(&format!("{}.", text(owner, "/metadata/name")), rand::random::<u32>);
        let mut event = json!({
            "metadata": {
                "name": format!("{name}{:08x}", rand::random::<u32>()),
                "namespace": owner["metadata"]["namespace"], "uid": uuid::Uuid::new_v4().to_string(),
                "creationTimestamp": now,
            },
            "involvedObject": {
                "apiVersion": owner["apiVersion"], "kind": owner["kind"], "namespace": owner["metadata"]["namespace"],
                "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
                "resourceVersion": owner["metadata"]["resourceVersion"],
            },
            "type": type_, "reason": reason, "message": message, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": self.controller.name}, "reportingComponent": self.controller.name,
            "reportingInstance": "",
        });
        add_type(&mut event, kind);
        (kind.default)(&mut event);
        Some(Change::Put(self.kinds.events, event))
    }
}
