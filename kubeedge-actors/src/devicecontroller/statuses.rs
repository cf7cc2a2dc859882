//! Which DeviceStatuses there are, and what is to be done about them. Pure.
//!
//! Each Device has a DeviceStatus of its name that belongs to it, by its uid. One that is missing is made, whoever took it
//! away; one of an earlier device of that name goes first; one that belongs to no device is taken over, without what it
//! says. One that says nothing is filled again from what its node knows: the node is asked, once in a session.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::Value;

use super::desired::Key;
use crate::{
    controllers::objects::{key_of, text},
    device::GROUP,
};

/// A DeviceStatus, as far as it is kept here.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Its uid.
    pub uid: String,
    /// The uid of the Device that it belongs to.
    pub owner: Option<String>,
    /// The properties that it has something to say of.
    pub properties: BTreeSet<String>,
    /// It has a state.
    pub state: bool,
}

impl Status {
    /// As it is in the API server.
    pub fn of(object: &Value) -> Self {
        let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten();
        let mut devices = owners.filter(|owner| {
            let group = text(owner, "/apiVersion").split('/').next();
            owner["kind"] == "Device" && group == Some(GROUP)
        });
        let twins = object.pointer("/status/twins").and_then(Value::as_array).into_iter().flatten();
        Self {
            uid: text(object, "/metadata/uid").to_owned(),
            owner: devices.next().map(|owner| text(owner, "/uid").to_owned()),
            properties: twins.map(|twin| text(twin, "/propertyName").to_owned()).collect(),
            state: object.pointer("/status/state").is_some_and(|state| !state.is_null()),
        }
    }

    fn says_nothing(&self) -> bool {
        self.properties.is_empty() && !self.state
    }
}

/// A Device, as it is asked about here.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// Its name.
    pub key: &'a Key,
    /// Its uid.
    pub uid: &'a str,
    /// The node that it hangs on; empty: on none.
    pub node: &'a str,
}

/// Something to do about one DeviceStatus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// There is none of this Device.
    Make {
        /// The Device.
        key: Key,
        /// Its uid.
        uid: String,
    },
    /// It belongs to no Device: this one's it becomes.
    Adopt {
        /// The Device.
        key: Key,
        /// Its uid.
        uid: String,
        /// The DeviceStatus that it was decided about.
        status: String,
    },
    /// It belongs to a Device of this name that was there before.
    Remove {
        /// The Device.
        key: Key,
        /// The DeviceStatus that it was decided about.
        status: String,
    },
    /// It says nothing: the node may know more.
    Ask {
        /// The Device.
        key: Key,
        /// Its uid.
        uid: String,
        /// Who is asked.
        node: String,
    },
}

/// Where a report of a Device may be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// Into this one.
    Here(Status),
    /// No DeviceStatus is known: into one that is there by then, or a new one.
    Anywhere,
    /// One of an earlier Device has the name still.
    Taken,
}

/// All DeviceStatuses.
#[derive(Debug, Default)]
pub struct Statuses {
    /// `None` before the first list: nothing is missing then.
    known: Option<HashMap<Key, Status>>,
    /// Something is being done about them.
    busy: HashSet<Key>,
    /// The session in which the node was asked, and about which DeviceStatus; of those that still say nothing.
    asked: HashMap<Key, (u64, String)>,
}

impl Statuses {
    /// A complete list.
    pub fn replaced(&mut self, objects: &[Value]) {
        let known: HashMap<Key, Status> = objects.iter().map(|object| (key_of(object), Status::of(object))).collect();
        self.asked.retain(|key, _| known.contains_key(key));
        self.known = Some(known);
    }

    /// One was added or modified.
    pub fn applied(&mut self, object: &Value) {
        let (key, status) = (key_of(object), Status::of(object));
        if !status.says_nothing() {
            self.asked.remove(&key);
        }
        self.known.get_or_insert_default().insert(key, status);
    }

    /// One was deleted.
    pub fn deleted(&mut self, object: &Value) {
        let key = key_of(object);
        self.asked.remove(&key);
        self.known.get_or_insert_default().remove(&key);
    }

    /// What is done about this one is done, or has failed.
    pub fn done(&mut self, key: &Key) {
        self.busy.remove(key);
    }

    /// Where a report of this Device goes.
    pub fn place(&self, key: &Key, device: &str) -> Place {
        match self.known.as_ref().and_then(|known| known.get(key)) {
            Some(status) if status.owner.as_deref() == Some(device) => Place::Here(status.clone()),
            // Nobody's is about to become the Device's: what is written before that would be lost.
            Some(_) => Place::Taken,
            None => Place::Anywhere,
        }
    }

    /// What is to be done now, so much of it at a time (`P-STATUS-OWN`). `session` says in which session a node is.
    pub fn due<'a>(
        &mut self,
        devices: impl Iterator<Item = Owner<'a>>,
        session: impl Fn(&str) -> Option<u64>,
        at_once: usize,
    ) -> Vec<Task> {
        let Some(known) = &self.known else { return Vec::new() };
        let mut tasks = Vec::new();
        for Owner { key, uid, node } in devices {
            if tasks.len() >= at_once {
                break;
            }
            if self.busy.contains(key) {
                continue;
            }
            let (key, uid) = (key.clone(), uid.to_owned());
            let Some(status) = known.get(&key) else {
                tasks.push(Task::Make { key, uid });
                continue;
            };
            match &status.owner {
                None => tasks.push(Task::Adopt { key, uid, status: status.uid.clone() }),
                Some(owner) if *owner != uid => tasks.push(Task::Remove { key, status: status.uid.clone() }),
                Some(_) if status.says_nothing() => {
                    let Some(epoch) = session(node) else { continue };
                    let asking = (epoch, status.uid.clone());
                    if self.asked.get(&key) != Some(&asking) {
                        self.asked.insert(key.clone(), asking);
                        tasks.push(Task::Ask { key, uid, node: node.to_owned() });
                    }
                }
                Some(_) => {}
            }
        }
        let held = tasks.iter().filter_map(|task| match task {
            Task::Make { key, .. } | Task::Adopt { key, .. } | Task::Remove { key, .. } => Some(key.clone()),
            Task::Ask { .. } => None,
        });
        self.busy.extend(held);
        tasks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::devicecontroller::status::made_for;
    use kubeedge_proto::v1::ObjectKey;

    fn key() -> Key {
        ("ns".into(), "d".into())
    }

    /// The DeviceStatus `uid` of the Device `owner`.
    fn object(uid: &str, owner: &str, status: Value) -> Value {
        let mut object = made_for(&ObjectKey::new("ns", "d"), owner, status);
        object["metadata"]["uid"] = uid.into();
        object
    }

    fn due(statuses: &mut Statuses, uid: &str, epoch: Option<u64>) -> Option<Task> {
        let key = key();
        let tasks = statuses.due([Owner { key: &key, uid, node: "n" }].into_iter(), |_| epoch, 10);
        assert!(tasks.len() < 2, "{tasks:?}");
        tasks.into_iter().next()
    }

    #[test]
    fn one_that_is_taken_away_is_made_again_and_filled_by_the_node() {
        let mut statuses = Statuses::default();
        assert_eq!(due(&mut statuses, "u1", Some(1)), None, "what is missing is not known yet");
        let full = object("s1", "u1", json!({"twins": [{"propertyName": "t"}]}));
        statuses.replaced(std::slice::from_ref(&full));
        assert_eq!(due(&mut statuses, "u1", Some(1)), None);
        statuses.deleted(&full);
        assert_eq!(due(&mut statuses, "u1", Some(1)), Some(Task::Make { key: key(), uid: "u1".into() }));
        assert_eq!(due(&mut statuses, "u1", Some(1)), None, "it is being made");
        statuses.applied(&object("s2", "u1", json!({"twins": []})));
        statuses.done(&key());
        assert_eq!(due(&mut statuses, "u1", None), None, "nobody can be asked");
        let ask = Some(Task::Ask { key: key(), uid: "u1".into(), node: "n".into() });
        assert_eq!(due(&mut statuses, "u1", Some(1)), ask);
        assert_eq!(due(&mut statuses, "u1", Some(1)), None, "once in a session");
        assert_eq!(due(&mut statuses, "u1", Some(2)), ask, "and in the next");
        statuses.applied(&object("s2", "u1", json!({"twins": [], "state": "ok"})));
        assert_eq!(due(&mut statuses, "u1", Some(3)), None, "a state is something");
    }

    #[test]
    fn one_of_an_earlier_device_goes_and_nobodys_is_taken_over() {
        let mut statuses = Statuses::default();
        let of_earlier = object("s1", "u1", json!({"twins": [{"propertyName": "t"}]}));
        statuses.replaced(std::slice::from_ref(&of_earlier));
        assert_eq!(statuses.place(&key(), "u2"), Place::Taken, "nothing of the new device is written into it");
        assert!(matches!(statuses.place(&key(), "u1"), Place::Here(status) if status.uid == "s1"));
        assert_eq!(due(&mut statuses, "u2", Some(1)), Some(Task::Remove { key: key(), status: "s1".into() }));
        statuses.deleted(&of_earlier);
        statuses.done(&key());
        assert_eq!(statuses.place(&key(), "u2"), Place::Anywhere);
        assert_eq!(due(&mut statuses, "u2", Some(1)), Some(Task::Make { key: key(), uid: "u2".into() }));

        let mut nobodys = object("s3", "", json!({}));
        nobodys["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "u2"}]);
        statuses.applied(&nobodys);
        statuses.done(&key());
        let adopt = Task::Adopt { key: key(), uid: "u2".into(), status: "s3".into() };
        assert_eq!(due(&mut statuses, "u2", Some(1)), Some(adopt));
    }

    proptest! {
        /// P-STATUS-OWN: whatever happens to DeviceStatuses, doing what is due ends with one that belongs to the Device and is filled.
        #[test]
        fn doing_what_is_due_leads_to_a_filled_status_of_the_device(
            steps in prop::collection::vec((0..6u8, any::<bool>()), 0..40),
        ) {
            let mut statuses = Statuses::default();
            statuses.replaced(&[]);
            // What the API server has.
            let mut there: Option<Value> = None;
            let (mut device, mut next, mut epoch) = (1, 0, 1);
            let full = json!({"twins": [{"propertyName": "t"}]});
            let mut act = |statuses: &mut Statuses, there: &mut Option<Value>, device: i32, epoch: u64| {
                let uid = format!("u{device}");
                let task = due(statuses, &uid, Some(epoch));
                next += 1;
                match &task {
                    Some(Task::Make { .. }) => *there = Some(object(&format!("s{next}"), &uid, json!({"twins": []}))),
                    Some(Task::Adopt { .. }) => {
                        let kept = there.as_ref().map(|was| text(was, "/metadata/uid").to_owned()).unwrap_or_default();
                        *there = Some(object(&kept, &uid, json!({"twins": []})));
                    }
                    Some(Task::Remove { .. }) => statuses.deleted(&there.take().unwrap_or_default()),
                    Some(Task::Ask { .. }) => {
                        if let Some(status) = there { status["status"] = full.clone() }
                    }
                    None => {}
                }
                if let Some(status) = there { statuses.applied(status) }
                statuses.done(&key());
                task
            };
            for (step, at_work) in steps {
                match step {
                    0 => device += 1,
                    1 => if let Some(status) = there.take() { statuses.deleted(&status) },
                    2 => if let Some(status) = &mut there {
                        status["metadata"]["ownerReferences"] = json!([]);
                        statuses.applied(status);
                    },
                    3 => if let Some(status) = &mut there {
                        status["status"] = json!({});
                        statuses.applied(status);
                    },
                    4 => epoch += 1,
                    _ => statuses.replaced(there.as_slice()),
                }
                if at_work {
                    act(&mut statuses, &mut there, device, epoch);
                }
            }
            for _ in 0..5 {
                if act(&mut statuses, &mut there, device, epoch).is_none() {
                    break;
                }
            }
            let end = Status::of(there.as_ref().expect("there is one"));
            prop_assert_eq!(end.owner, Some(format!("u{device}")));
            prop_assert!(end.properties.contains("t"));
        }
    }
}
