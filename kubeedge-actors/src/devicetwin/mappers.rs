//! Which mapper has to be told what. Pure.
//!
//! A mapper is called for the devices of its protocol, of several for one protocol the one that registered last. It is
//! told of a model before the first device of it, and of a model's end after the last. What it knows already is not told
//! again.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use kubeedge_proto::{
    dmi,
    v1::{KubeObject, MapperRecord, ObjectKey},
};

use super::dmi::convert::{Device, Model};

/// `<namespace>/<name>`.
pub type Id = String;

/// The id of an object.
pub fn id_of(key: &ObjectKey) -> Id {
    format!("{}/{}", key.namespace, key.name)
}

/// The devices and models of this node, as the cloud wants them.
#[derive(Debug, Default)]
pub struct Catalogue {
    devices: BTreeMap<Id, (Device, u64)>,
    models: BTreeMap<Id, (Model, u64)>,
}

/// A hash of what a mapper is told of an object: its spec.
fn fingerprint(spec: &impl serde::Serialize) -> u64 {
    let mut hasher = DefaultHasher::new();
    // A spec came from JSON.
    serde_json::to_vec(spec).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

impl Catalogue {
    /// Takes a Device in.
    pub fn set_device(&mut self, object: &KubeObject) -> Result<&Device, String> {
        let device = Device::of(object)?;
        let (id, print) = (id_of(&device.key), fingerprint(&device.spec));
        self.devices.insert(id.clone(), (device, print));
        self.device(&id).ok_or(id)
    }

    /// Takes a DeviceModel in; its name comes back.
    pub fn set_model(&mut self, object: &KubeObject) -> Result<Id, String> {
        let model = Model::of(object)?;
        let (id, print) = (id_of(&model.key), fingerprint(&model.spec));
        self.models.insert(id.clone(), (model, print));
        Ok(id)
    }

    /// A device is gone. False when it was not there.
    pub fn remove_device(&mut self, id: &str) -> bool {
        self.devices.remove(id).is_some()
    }

    /// A model is gone.
    pub fn remove_model(&mut self, id: &str) {
        self.models.remove(id);
    }

    /// A device.
    pub fn device(&self, id: &str) -> Option<&Device> {
        self.devices.get(id).map(|(device, _)| device)
    }

    /// All devices.
    pub fn devices(&self) -> impl Iterator<Item = (&Id, &Device)> {
        self.devices.iter().map(|(id, (device, _))| (id, device))
    }

    /// All models' names.
    pub fn models(&self) -> impl Iterator<Item = &Id> {
        self.models.keys()
    }

    /// A model.
    pub fn model(&self, id: &str) -> Option<&Model> {
        self.models.get(id).map(|(model, _)| model)
    }

    /// The model of a device.
    pub fn model_of(&self, device: &Device) -> Option<&Model> {
        self.model(&id_of(&device.model()?))
    }

    /// The devices that a mapper of this protocol is told of: those whose model is there.
    fn wanted<'a>(&'a self, protocol: &'a str) -> impl Iterator<Item = (&'a Id, &'a (Device, u64), &'a (Model, u64))> {
        self.devices.iter().filter(move |(_, (device, _))| device.protocol() == protocol).filter_map(|(id, entry)| {
            let model = self.models.get(&id_of(&entry.0.model()?))?;
            Some((id, entry, model))
        })
    }

    /// Everything a mapper of this protocol is told when it asks, and that it then knows.
    pub fn everything(&self, protocol: &str) -> (Vec<dmi::DeviceModel>, Vec<dmi::Device>, Told) {
        let mut told = Told::default();
        let (mut models, mut devices) = (Vec::new(), Vec::new());
        for (id, (device, print), (model, model_print)) in self.wanted(protocol) {
            let model_id = id_of(&model.key);
            if told.models.insert(model_id, *model_print).is_none() {
                models.push(model.told());
            }
            told.devices.insert(id.clone(), (*print, *model_print));
            devices.push(device.told(model));
        }
        (models, devices, told)
    }

    /// What a mapper of this protocol, which knows this, has still to be told; in this order.
    pub fn missing(&self, protocol: &str, told: &Told) -> Vec<Call> {
        let (mut removed, mut models, mut devices) = (Vec::new(), Vec::new(), Vec::new());
        let (mut wanted, mut wanted_models) = (BTreeSet::new(), BTreeSet::new());
        for (id, (_, print), (model, model_print)) in self.wanted(protocol) {
            wanted.insert(id);
            let model_id = id_of(&model.key);
            match told.models.get(&model_id) {
                _ if wanted_models.contains(&model_id) => {}
                Some(known) if known == model_print => {}
                known => models.push(Call::Model { id: model_id.clone(), new: known.is_none(), print: *model_print }),
            }
            wanted_models.insert(model_id);
            match told.devices.get(id) {
                // Its model's defaults are part of what it is told.
                Some(known) if *known == (*print, *model_print) => {}
                known => {
                    devices.push(Call::Device { id: id.clone(), new: known.is_none(), print: (*print, *model_print) })
                }
            }
        }
        removed.extend(told.devices.keys().filter(|id| !wanted.contains(id)).cloned().map(Call::RemoveDevice));
        let gone = told.models.keys().filter(|id| !wanted_models.contains(*id)).cloned().map(Call::RemoveModel);
        removed.into_iter().chain(models).chain(devices).chain(gone).collect()
    }
}

/// What a mapper has been told, by what it is told from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    models: BTreeMap<Id, u64>,
    devices: BTreeMap<Id, (u64, u64)>,
}

/// One thing to tell a mapper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `RemoveDevice`.
    RemoveDevice(Id),
    /// `CreateDeviceModel`, or `UpdateDeviceModel` when it is not new.
    Model {
        /// Which.
        id: Id,
        /// Not told before.
        new: bool,
        /// What is told.
        print: u64,
    },
    /// `RegisterDevice`, or `UpdateDevice` when it is not new.
    Device {
        /// Which.
        id: Id,
        /// Not told before.
        new: bool,
        /// What is told.
        print: (u64, u64),
    },
    /// `RemoveDeviceModel`.
    RemoveModel(Id),
}

impl Call {
    /// What it is about.
    pub fn id(&self) -> &str {
        match self {
            Call::RemoveDevice(id) | Call::RemoveModel(id) | Call::Model { id, .. } | Call::Device { id, .. } => id,
        }
    }
}

impl Told {
    /// A call was answered: the mapper knows it.
    pub fn done(&mut self, call: Call) {
        match call {
            Call::RemoveDevice(id) => drop(self.devices.remove(&id)),
            Call::RemoveModel(id) => drop(self.models.remove(&id)),
            Call::Model { id, print, .. } => drop(self.models.insert(id, print)),
            Call::Device { id, print, .. } => drop(self.devices.insert(id, print)),
        }
    }
}

/// Mappers that are known at most.
pub const MAX_MAPPERS: usize = 256;

/// The mappers that have registered, in this life of the box or one before.
#[derive(Debug, Default)]
pub struct Mappers {
    by_name: BTreeMap<String, MapperRecord>,
}

impl Mappers {
    /// Takes one in, as it is on disk. Beyond [`MAX_MAPPERS`] another one leaves, which comes back: one that is not called,
    /// since another mapper is for its protocol, or else any; of these the one that registered longest ago.
    pub fn load(&mut self, record: MapperRecord) -> Option<MapperRecord> {
        let name = record.name.clone();
        self.by_name.insert(name.clone(), record);
        if self.by_name.len() <= MAX_MAPPERS {
            return None;
        }
        let called: BTreeSet<&str> = self.called().into_iter().map(|mapper| mapper.name.as_str()).collect();
        let others = self.by_name.values().filter(|mapper| mapper.name != name);
        let leaves = others.min_by_key(|mapper| (called.contains(mapper.name.as_str()), mapper.registration))?;
        let leaves = leaves.name.clone();
        self.by_name.remove(&leaves)
    }

    /// A registration, checked: the record to be kept. A mapper that comes again with another address is called there.
    pub fn register(&self, info: dmi::MapperInfo) -> Result<MapperRecord, String> {
        let wrong = |text: &str| Err(format!("mapper {:?}: {text}", info.name));
        if info.name.is_empty() || info.name.len() > 253 || info.protocol.len() > 253 {
            return wrong("expected a name, and a name and a protocol of at most 253 bytes");
        }
        if info.protocol.is_empty() {
            return wrong("protocol is empty: expected the protocolName of its devices");
        }
        let Ok(address) = std::str::from_utf8(&info.address) else {
            return wrong("address is not text, expected the path of its unix socket");
        };
        let address = address.strip_prefix("unix://").unwrap_or(address);
        // A path of a unix socket has 107 bytes at most.
        let plain = |byte: u8| byte.is_ascii_graphic() && !b"%?#\"<>\\^`{|}".contains(&byte);
        if !address.starts_with('/') || address.len() > 107 || !address.bytes().all(plain) {
            return wrong("address is not the absolute path of a unix socket, in plain characters");
        }
        let registration = 1 + self.by_name.values().map(|mapper| mapper.registration).max().unwrap_or(0);
        Ok(MapperRecord {
            address: address.to_owned(),
            name: info.name,
            version: info.version,
            api_version: info.api_version,
            protocol: info.protocol,
            registration,
        })
    }

    /// The mapper that is called for a protocol.
    pub fn of_protocol(&self, protocol: &str) -> Option<&MapperRecord> {
        self.by_name.values().filter(|mapper| mapper.protocol == protocol).max_by_key(|mapper| mapper.registration)
    }

    /// The mappers that are called: one for each protocol.
    pub fn called(&self) -> Vec<&MapperRecord> {
        let protocols: BTreeSet<&str> = self.by_name.values().map(|mapper| mapper.protocol.as_str()).collect();
        protocols.into_iter().filter_map(|protocol| self.of_protocol(protocol)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(name: &str, spec: Value) -> KubeObject {
        let json = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec}).to_string();
        KubeObject { key: Some(ObjectKey::new("ns", name)), json: json.into(), ..KubeObject::default() }
    }

    fn device(name: &str, desired: &str) -> KubeObject {
        object(
            name,
            json!({"deviceModelRef": {"name": "m"}, "protocol": {"protocolName": "p"},
                "properties": [{"name": "a", "desired": {"value": desired}}]}),
        )
    }

    fn model(unit: &str) -> KubeObject {
        object("m", json!({"properties": [{"name": "a", "type": "INT", "accessMode": "ReadWrite", "unit": unit}]}))
    }

    /// Tells all that is missing.
    fn tell(catalogue: &Catalogue, told: &mut Told) -> Vec<String> {
        let calls = catalogue.missing("p", told);
        let said = calls.iter().map(|call| match call {
            Call::RemoveDevice(id) => format!("-{id}"),
            Call::RemoveModel(id) => format!("-model {id}"),
            Call::Model { id, new, .. } => format!("{}model {id}", if *new { "+" } else { "~" }),
            Call::Device { id, new, .. } => format!("{}{id}", if *new { "+" } else { "~" }),
        });
        let said = said.collect();
        calls.into_iter().for_each(|call| told.done(call));
        said
    }

    #[test]
    fn a_mapper_is_told_models_first_and_what_it_knows_not_again() {
        let (mut catalogue, mut told) = (Catalogue::default(), Told::default());
        catalogue.set_device(&device("d", "1")).unwrap();
        assert_eq!(tell(&catalogue, &mut told), [""; 0], "its model is not there yet");
        catalogue.set_model(&model("C")).unwrap();
        assert_eq!(tell(&catalogue, &mut told), ["+model ns/m", "+ns/d"]);
        assert_eq!(tell(&catalogue, &mut told), [""; 0]);
        catalogue.set_device(&device("d", "1")).unwrap();
        assert_eq!(tell(&catalogue, &mut told), [""; 0], "the same again is no news");
        catalogue.set_device(&device("d", "2")).unwrap();
        assert_eq!(tell(&catalogue, &mut told), ["~ns/d"]);
        catalogue.set_model(&model("F")).unwrap();
        assert_eq!(tell(&catalogue, &mut told), ["~model ns/m", "~ns/d"], "its defaults may have changed");
        let (models, devices, everything) = catalogue.everything("p");
        assert_eq!((models.len(), devices.len(), &everything), (1, 1, &told));
        catalogue.remove_device("ns/d");
        assert_eq!(tell(&catalogue, &mut told), ["-ns/d", "-model ns/m"]);
        assert_eq!(catalogue.everything("other").1.len(), 0);
    }

    #[test]
    fn the_mapper_that_registered_last_is_called_at_its_new_address() {
        let mut mappers = Mappers::default();
        let info = |name: &str, address: &str| dmi::MapperInfo {
            name: name.into(),
            protocol: "p".into(),
            address: address.as_bytes().to_vec().into(),
            ..dmi::MapperInfo::default()
        };
        for (name, address) in [("a", "/a.sock"), ("b", "unix:///b.sock"), ("a", "/new.sock")] {
            let record = mappers.register(info(name, address)).unwrap();
            assert_eq!(mappers.load(record), None);
        }
        assert_eq!(mappers.of_protocol("p").unwrap().address, "/new.sock");
        assert_eq!(mappers.called().len(), 1);
        for (name, address) in [("", "/a"), ("a", "a.sock"), ("a", "")] {
            assert!(mappers.register(info(name, address)).is_err(), "{name:?} {address:?}");
        }
        let nameless = dmi::MapperInfo { protocol: String::new(), ..info("a", "/a") };
        assert!(mappers.register(nameless).unwrap_err().contains("protocol"));
    }

    #[test]
    fn there_is_always_room_for_one_more_mapper_and_who_is_called_leaves_last() {
        let mut mappers = Mappers::default();
        let mut register = |name: &str, protocol: &str| {
            let info = dmi::MapperInfo {
                name: name.into(),
                protocol: protocol.into(),
                address: "/m.sock".into(),
                ..dmi::MapperInfo::default()
            };
            let record = mappers.register(info).unwrap();
            mappers.load(record).map(|leaves| leaves.name)
        };
        // One for each protocol but two, of which the earlier is not called.
        for index in 0..MAX_MAPPERS - 2 {
            assert_eq!(register(&format!("m{index}"), &format!("p{index}")), None);
        }
        assert_eq!((register("early", "shared"), register("late", "shared")), (None, None));
        assert_eq!(register("new", "new"), Some("early".into()), "nobody calls it");
        // All are called now: who registered longest ago leaves, and may come back.
        assert_eq!(register("m1", "p1"), None, "one that is known makes no other leave");
        assert_eq!(register("newer", "newer"), Some("m0".into()));
        assert_eq!(register("m0", "p0"), Some("m2".into()), "m1 has registered since");
        assert_eq!(register("other", "p5"), Some("m5".into()), "its protocol is another's from now on");
        assert_eq!((mappers.by_name.len(), mappers.called().len()), (MAX_MAPPERS, MAX_MAPPERS));
    }
}
