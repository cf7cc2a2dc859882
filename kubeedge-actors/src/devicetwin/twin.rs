//! The twins of one device, and what a request does to them. Pure.
//!
//! A local change (MQTT, a mapper) counts the edge's version up. A change of the cloud carries versions, and is refused
//! when either of them is behind: then the edge's value stands and is told to the cloud again. A request is applied as a
//! whole or not at all.

use std::collections::BTreeMap;

use kubeedge_proto::v1::{AttributeRecord, DeviceRecord, ObjectKey, PropertyValue, TwinRecord, TwinSideRecord};

use super::wire::{MsgAttr, MsgTwin, TwinValue, Twins, TypeMetadata, ValueMetadata, Version, Wrong, check_type};

/// Twins of one device, tombstones included.
pub const MAX_TWINS: usize = 4096;
/// Attributes of one device.
pub const MAX_ATTRIBUTES: usize = 1024;
/// The type of a twin that was deleted; its versions stay.
pub const DELETED: &str = "deleted";

/// One device as DeviceTwin knows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Device {
    /// Its name.
    pub key: ObjectKey,
    /// The uid of the Device object; a device recreated under its name is another one.
    pub uid: String,
    /// By name.
    pub twins: BTreeMap<String, TwinRecord>,
    /// As told last.
    pub state: Option<String>,
    /// RFC 3339; empty while it was never seen.
    pub last_online_time: String,
    /// By name.
    pub attributes: BTreeMap<String, AttributeRecord>,
}

/// Whose change it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An application's or a mapper's, on this node.
    Local,
    /// The cloud's, with its versions.
    Cloud,
}

/// What a request did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// For `update/result`: what is so now of what was asked for, without versions.
    pub result: Twins,
    /// For `update/document`: before and after, of what changed.
    pub document: BTreeMap<String, (Option<MsgTwin>, Option<MsgTwin>)>,
    /// The cloud's versions were behind: these are the edge's own, to be told again. `None`: the edge has no such twin.
    pub conflicts: Twins,
}

impl Outcome {
    /// Whether anything has to be written.
    pub fn is_change(&self) -> bool {
        !self.document.is_empty()
    }
}

impl Device {
    /// A device without twins.
    pub fn new(key: ObjectKey, uid: String) -> Self {
        Self { key, uid, ..Self::default() }
    }

    /// As it is on disk.
    pub fn of(record: DeviceRecord) -> Option<Self> {
        Some(Self {
            key: record.key?,
            uid: record.uid,
            twins: record.twins.into_iter().map(|twin| (twin.name.clone(), twin)).collect(),
            state: record.state,
            last_online_time: record.last_online_time,
            attributes: record.attributes.into_iter().map(|one| (one.name.clone(), one)).collect(),
        })
    }

    /// For the disk.
    pub fn record(&self) -> DeviceRecord {
        DeviceRecord {
            key: Some(self.key.clone()),
            uid: self.uid.clone(),
            twins: self.twins.values().cloned().collect(),
            state: self.state.clone(),
            last_online_time: self.last_online_time.clone(),
            attributes: self.attributes.values().cloned().collect(),
        }
    }

    /// Applies a request as a whole, or says what is wrong and changes nothing.
    pub fn update(&mut self, now_ms: i64, twins: &Twins, origin: Origin) -> Result<Outcome, Wrong> {
        let new = twins.iter().filter(|(name, twin)| twin.is_some() && !self.twins.contains_key(*name)).count();
        if self.twins.len() + new > MAX_TWINS {
            return Err(Wrong::TooMany(format!(
                "the device has {} twins, expected at most {MAX_TWINS}",
                self.twins.len() + new
            )));
        }
        let mut outcome = Outcome::default();
        let mut changed = Vec::with_capacity(twins.len());
        for (name, asked) in twins {
            let known = self.twins.get(name);
            let Some(asked) = asked else {
                let twin = known.ok_or(Wrong::Nothing)?;
                if origin == Origin::Local && twin.optional && twin.r#type != DELETED {
                    changed.push(delete(twin, &mut outcome));
                }
                continue;
            };
            let is_end = asked.metadata.as_ref().is_some_and(|metadata| metadata.type_ == DELETED);
            match (known, origin) {
                (Some(twin), Origin::Cloud) if is_end => changed.extend(delete_by_cloud(twin, asked, &mut outcome)),
                (known, _) => changed.extend(merge(now_ms, name, known, asked, origin, &mut outcome)?),
            }
        }
        self.twins.extend(changed.into_iter().map(|twin| (twin.name.clone(), twin)));
        Ok(outcome)
    }

    /// What the cloud desires of a property, from the Device object. `None`: nothing. True when that is news.
    pub fn desire(&mut self, now_ms: i64, name: &str, type_: &str, desired: Option<&PropertyValue>) -> bool {
        let known = self.twins.get(name).filter(|twin| twin.r#type != DELETED);
        let value = desired.map(|desired| desired.value.clone());
        let expected = known.and_then(|twin| twin.expected.as_ref());
        if known.is_some() && expected.and_then(|expected| expected.value.clone()) == value {
            return false;
        }
        let mut twin = self.twins.get(name).cloned().unwrap_or_else(|| fresh(name));
        if twin.r#type == DELETED || known.is_none() {
            twin.r#type = type_.to_owned();
            twin.optional = false;
        }
        if value.is_some() || expected.is_some() {
            let before = twin.expected.take().unwrap_or_default();
            twin.expected = Some(TwinSideRecord {
                value,
                timestamp_ms: now_ms,
                cloud_version: before.cloud_version + 1,
                edge_version: before.edge_version,
                metadata: desired.map(|desired| desired.metadata.clone()).unwrap_or_default(),
            });
        }
        self.twins.insert(name.to_owned(), twin);
        true
    }

    /// The twins as they are sent, those that are deleted left out.
    pub fn twins(&self) -> Twins {
        self.live().map(|twin| (twin.name.clone(), Some(shown(twin)))).collect()
    }

    /// The expected values that are not the actual ones.
    pub fn delta(&self) -> BTreeMap<String, String> {
        self.live()
            .filter_map(|twin| {
                let expected = value_of(&twin.expected)?;
                let differs = !expected.is_empty() && value_of(&twin.actual) != Some(expected);
                differs.then(|| (twin.name.clone(), expected.to_owned()))
            })
            .collect()
    }

    /// The twins that are not deleted.
    pub fn live(&self) -> impl Iterator<Item = &TwinRecord> {
        self.twins.values().filter(|twin| twin.r#type != DELETED)
    }

    /// Attributes that an application gave; `None` asks for the end of one. What changed.
    pub fn describe(
        &mut self,
        attributes: &BTreeMap<String, Option<MsgAttr>>,
    ) -> Result<BTreeMap<String, Option<MsgAttr>>, Wrong> {
        let mut changed = BTreeMap::new();
        let new = attributes.iter().filter(|(name, asked)| asked.is_some() && !self.attributes.contains_key(*name));
        let count = self.attributes.len() + new.count();
        if count > MAX_ATTRIBUTES {
            let text = format!("the device would have {count} attributes, expected at most {MAX_ATTRIBUTES}");
            return Err(Wrong::TooMany(text));
        }
        for (name, asked) in attributes {
            match (self.attributes.get_mut(name), asked) {
                (Some(known), None) if known.optional => {
                    self.attributes.remove(name);
                    changed.insert(name.clone(), None);
                }
                (_, None) => {}
                (Some(known), Some(asked)) => {
                    let before = known.clone();
                    known.value.clone_from(&asked.value);
                    if let Some(metadata) = &asked.metadata {
                        known.r#type.clone_from(&metadata.type_);
                    }
                    known.optional &= asked.optional.unwrap_or(true);
                    if *known != before {
                        changed.insert(name.clone(), Some(asked.clone()));
                    }
                }
                (None, Some(asked)) => {
                    let record = AttributeRecord {
                        name: name.clone(),
                        value: asked.value.clone(),
                        optional: asked.optional.unwrap_or(true),
                        r#type: asked.metadata.as_ref().map(|metadata| metadata.type_.clone()).unwrap_or_default(),
                    };
                    self.attributes.insert(name.clone(), record);
                    changed.insert(name.clone(), Some(asked.clone()));
                }
            }
        }
        Ok(changed)
    }
}

fn fresh(name: &str) -> TwinRecord {
    TwinRecord { name: name.to_owned(), optional: true, r#type: "string".into(), ..TwinRecord::default() }
}

fn value_of(side: &Option<TwinSideRecord>) -> Option<&str> {
    side.as_ref().and_then(|side| side.value.as_deref())
}

/// A twin as it is sent, without versions.
pub fn shown(twin: &TwinRecord) -> MsgTwin {
    let side = |side: &Option<TwinSideRecord>| {
        let side = side.as_ref().filter(|side| side.value.is_some())?;
        let metadata = Some(ValueMetadata { timestamp: side.timestamp_ms }).filter(|_| side.timestamp_ms != 0);
        Some(TwinValue { value: side.value.clone(), metadata })
    };
    MsgTwin {
        expected: side(&twin.expected),
        actual: side(&twin.actual),
        optional: Some(twin.optional),
        metadata: Some(TypeMetadata { type_: twin.r#type.clone() }),
        expected_version: None,
        actual_version: None,
    }
}

/// A twin as it is told to the cloud.
fn told(twin: &TwinRecord) -> MsgTwin {
    MsgTwin { expected_version: version_of(&twin.expected), actual_version: version_of(&twin.actual), ..shown(twin) }
}

fn version_of(side: &Option<TwinSideRecord>) -> Option<Version> {
    side.as_ref().map(|side| Version { cloud: side.cloud_version, edge: side.edge_version })
}

/// Ends a twin; what is left of it stands against late messages.
fn delete(twin: &TwinRecord, outcome: &mut Outcome) -> TwinRecord {
    let end = |side: &Option<TwinSideRecord>| {
        side.as_ref().map(|side| TwinSideRecord {
            cloud_version: side.cloud_version,
            edge_version: side.edge_version + 1,
            ..TwinSideRecord::default()
        })
    };
    outcome.result.insert(twin.name.clone(), None);
    outcome.document.insert(twin.name.clone(), (Some(shown(twin)), None));
    TwinRecord {
        name: twin.name.clone(),
        expected: end(&twin.expected),
        actual: end(&twin.actual),
        optional: twin.optional,
        r#type: DELETED.into(),
        observed_desired: None,
    }
}

fn delete_by_cloud(twin: &TwinRecord, asked: &MsgTwin, outcome: &mut Outcome) -> Option<TwinRecord> {
    if twin.r#type == DELETED {
        return None;
    }
    let sides = [(&twin.expected, asked.expected_version), (&twin.actual, asked.actual_version)];
    // A side without a version in the request ends with the twin.
    let behind = sides.iter().any(|(side, version)| {
        version.is_some_and(|version| side.as_ref().is_some_and(|side| is_behind(side, version)))
    });
    if behind {
        outcome.conflicts.insert(twin.name.clone(), Some(told(twin)));
        return None;
    }
    let mut ended = delete(twin, outcome);
    outcome.result.remove(&twin.name);
    for (side, version) in [(&mut ended.expected, asked.expected_version), (&mut ended.actual, asked.actual_version)] {
        if let (Some(side), Some(version)) = (side, version) {
            (side.cloud_version, side.edge_version) = (version.cloud, version.edge);
        }
    }
    Some(ended)
}

/// Whether the cloud's versions are behind the edge's (`P-TWIN-CONVERGES`).
fn is_behind(side: &TwinSideRecord, version: Version) -> bool {
    side.cloud_version > version.cloud || side.edge_version > version.edge
}

/// One twin of a request. `None` when nothing changes.
fn merge(
    now_ms: i64,
    name: &str,
    known: Option<&TwinRecord>,
    asked: &MsgTwin,
    origin: Origin,
    outcome: &mut Outcome,
) -> Result<Option<TwinRecord>, Wrong> {
    let was_there = known.is_some_and(|twin| twin.r#type != DELETED);
    let mut twin = known.cloned().unwrap_or_else(|| fresh(name));
    let mut changed = known.is_none();
    let type_ = match (&asked.metadata, was_there) {
        (_, true) => twin.r#type.clone(),
        (Some(metadata), false) if !metadata.type_.is_empty() => metadata.type_.clone(),
        _ => "string".to_owned(),
    };
    // A type that there is not is refused even when no value comes with it.
    check_type(&type_, if type_.starts_with("bool") { "true" } else { "0" })?;
    changed |= twin.r#type != type_;
    twin.r#type = type_;
    let mut conflict = false;
    let sides = [
        (&mut twin.expected, &asked.expected, asked.expected_version),
        (&mut twin.actual, &asked.actual, asked.actual_version),
    ];
    for (side, asked, version) in sides {
        let Some(asked) = asked else { continue };
        let Some(value) = &asked.value else {
            if origin == Origin::Local {
                return Err(Wrong::Body);
            }
            continue;
        };
        check_type(&twin.r#type, value)?;
        let before = side.clone().unwrap_or_default();
        let mut after = TwinSideRecord {
            value: Some(value.clone()),
            timestamp_ms: now_ms,
            cloud_version: before.cloud_version,
            edge_version: before.edge_version + 1,
            metadata: BTreeMap::new().into_iter().collect(),
        };
        if origin == Origin::Cloud {
            let Some(version) = version.filter(|version| !is_behind(&before, *version)) else {
                conflict = true;
                break;
            };
            (after.cloud_version, after.edge_version) = (version.cloud, version.edge);
            after.timestamp_ms = asked.metadata.map_or(now_ms, |metadata| metadata.timestamp);
        }
        *side = Some(after);
        changed = true;
    }
    if conflict {
        outcome.conflicts.insert(name.to_owned(), known.map(told));
        return Ok(None);
    }
    // Once required it stays so.
    let optional = match was_there {
        true => twin.optional && asked.optional.unwrap_or(true),
        false => asked.optional.unwrap_or(true),
    };
    changed |= twin.optional != optional;
    twin.optional = optional;
    if !changed {
        return Ok(None);
    }
    let before = known.filter(|_| was_there).map(shown);
    let now = shown(&twin);
    if origin == Origin::Local {
        let part = MsgTwin {
            expected: now.expected.clone().filter(|_| asked.expected.is_some()),
            actual: now.actual.clone().filter(|_| asked.actual.is_some()),
            ..now.clone()
        };
        outcome.result.insert(name.to_owned(), Some(part));
    }
    outcome.document.insert(name.to_owned(), (before, Some(now)));
    Ok(Some(twin))
}

#[cfg(test)]
mod tests;
