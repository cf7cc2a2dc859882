//! Devices and models as mappers know them. Pure.
//!
//! Free settings become well-known types, which is all that mappers read: text, `true` and `false`, and numbers. A whole
//! number that a `FloatValue` would change goes as `Int64Value`; everything else as `FloatValue`, as KubeEdge does it. Lists
//! and objects have no such type: they go as their JSON text.

use std::collections::HashMap;

use kubeedge_proto::{
    dmi,
    v1::{KubeObject, ObjectKey},
};
use prost_types::Any;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    device::types::{self, DeviceModelSpec, DeviceSpec, Free},
    dmi::values::any,
};

/// A Device object, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Its uid.
    pub uid: String,
    /// What is said of it.
    pub spec: DeviceSpec,
    /// The label `description`.
    pub description: String,
}

/// A DeviceModel object, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Namespace and name.
    pub key: ObjectKey,
    /// What is said of it.
    pub spec: DeviceModelSpec,
}

#[derive(Deserialize)]
struct Object<S> {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default = "Option::default")]
    spec: Option<S>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: HashMap<String, String>,
}

fn read<S: DeserializeOwned + Default>(object: &KubeObject) -> Result<(ObjectKey, Metadata, S), String> {
    let key = object.key.clone().ok_or("an object without a name")?;
    let read: Object<S> = serde_json::from_slice(&object.json).map_err(|error| format!("{key}: {error}"))?;
    Ok((key, read.metadata, read.spec.unwrap_or_default()))
}

impl Device {
    /// Reads a Device.
    pub fn of(object: &KubeObject) -> Result<Self, String> {
        let (key, metadata, spec) = read::<DeviceSpec>(object)?;
        let description = metadata.labels.get("description").cloned().unwrap_or_default();
        Ok(Self { key, uid: object.uid.clone(), spec, description })
    }

    /// The protocol by which its mapper is found.
    pub fn protocol(&self) -> &str {
        self.spec.protocol.as_ref().map_or("", |protocol| &protocol.protocol_name)
    }

    /// The name of its model, in its namespace.
    pub fn model(&self) -> Option<ObjectKey> {
        let name = &self.spec.device_model_ref.as_ref()?.name;
        (!name.is_empty()).then(|| ObjectKey::new(&self.key.namespace, name))
    }

    /// As a mapper is told of it, with the defaults of its model.
    pub fn told(&self, model: &Model) -> dmi::Device {
        let state_report = self.spec.state_report.clone().unwrap_or_default();
        dmi::Device {
            name: self.key.name.clone(),
            namespace: self.key.namespace.clone(),
            spec: Some(dmi::DeviceSpec {
                device_model_reference: model.key.name.clone(),
                protocol: self.protocol_config(model),
                properties: self.spec.properties.iter().map(|property| told_property(property, model)).collect(),
                methods: self
                    .spec
                    .methods
                    .iter()
                    .map(|method| dmi::DeviceMethod {
                        name: method.name.clone(),
                        description: method.description.clone(),
                        property_names: method.property_names.clone(),
                    })
                    .collect(),
            }),
            status: Some(dmi::DeviceStatus {
                twins: Vec::new(),
                report_to_cloud: state_report.report_to_cloud.unwrap_or_default(),
                report_cycle: state_report.report_cycle.unwrap_or_default(),
            }),
        }
    }

    fn protocol_config(&self, model: &Model) -> Option<dmi::ProtocolConfig> {
        let own = self.spec.protocol.clone().unwrap_or_default();
        Some(dmi::ProtocolConfig {
            protocol_name: own.protocol_name,
            config_data: free(&merged(&model.spec.protocol_config_data, &own.config_data)),
        })
    }
}

impl Model {
    /// Reads a DeviceModel.
    pub fn of(object: &KubeObject) -> Result<Self, String> {
        let (key, _, spec) = read::<DeviceModelSpec>(object)?;
        Ok(Self { key, spec })
    }

    /// As a mapper is told of it.
    pub fn told(&self) -> dmi::DeviceModel {
        dmi::DeviceModel {
            name: self.key.name.clone(),
            namespace: self.key.namespace.clone(),
            spec: Some(dmi::DeviceModelSpec {
                properties: self
                    .spec
                    .properties
                    .iter()
                    .map(|property| dmi::ModelProperty {
                        name: property.name.clone(),
                        description: property.description.clone(),
                        r#type: text_of(&property.type_),
                        access_mode: text_of(&property.access_mode),
                        minimum: property.minimum.clone(),
                        maximum: property.maximum.clone(),
                        unit: property.unit.clone(),
                    })
                    .collect(),
                commands: Vec::new(),
            }),
        }
    }

    /// What is said of a property.
    pub fn property(&self, name: &str) -> Option<&types::ModelProperty> {
        self.spec.properties.iter().find(|one| one.name == name)
    }

    /// The type of a property's twin.
    pub fn twin_type(&self, property: &str) -> &'static str {
        self.property(property).map_or("string", |property| property.type_.of_twin())
    }
}

/// As it is written in a manifest.
fn text_of(word: &impl serde::Serialize) -> String {
    serde_json::to_value(word).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn told_property(property: &types::DeviceProperty, model: &Model) -> dmi::DeviceProperty {
    let default = model.property(&property.name).and_then(|one| one.visitors.clone()).unwrap_or_default();
    let own = property.visitors.clone().unwrap_or_default();
    let protocol_name = if own.protocol_name.is_empty() { default.protocol_name } else { own.protocol_name };
    let desired = property.desired.clone().unwrap_or_default();
    dmi::DeviceProperty {
        name: property.name.clone(),
        // There also where nothing is desired, and empty then: KubeEdge's framework for mappers in Go looks into it, and
        // into `visitors`, `configData` and `protocol`, without asking whether it is there.
        desired: Some(dmi::TwinProperty { value: desired.value, metadata: desired.metadata.into_iter().collect() }),
        visitors: Some(dmi::VisitorConfig {
            protocol_name,
            config_data: free(&merged(&default.config_data, &own.config_data)),
        }),
        report_cycle: property.report_cycle.unwrap_or_default(),
        collect_cycle: property.collect_cycle.unwrap_or_default(),
        report_to_cloud: property.report_to_cloud.unwrap_or_default(),
        push_method: property.push_method.as_ref().map(push_method),
    }
}

fn push_method(push: &types::PushMethod) -> dmi::PushMethod {
    dmi::PushMethod {
        http: push.http.as_ref().map(|http| dmi::PushMethodHttp {
            hostname: http.host_name.clone(),
            port: http.port,
            requestpath: http.request_path.clone(),
            timeout: http.timeout,
        }),
        mqtt: push.mqtt.as_ref().map(|mqtt| dmi::PushMethodMqtt {
            address: mqtt.address.clone(),
            topic: mqtt.topic.clone(),
            qos: mqtt.qos,
            retained: mqtt.retained,
        }),
        db_method: push.db_method.as_ref().map(db_method),
        otel: push.otel.as_ref().map(|otel| dmi::PushMethodOtel { endpoint_url: otel.endpoint_url.clone() }),
        anomaly_detection: (!push.anomaly_detection.is_empty())
            .then(|| dmi::AnomalyDetection { data: values(&push.anomaly_detection) }),
    }
}

fn db_method(db: &types::DbMethod) -> dmi::DbMethod {
    dmi::DbMethod {
        influxdb2: db.influxdb2.as_ref().map(|influx| dmi::DbMethodInfluxdb2 {
            influxdb2_client_config: influx.influxdb2_client_config.as_ref().map(|client| dmi::Influxdb2ClientConfig {
                url: client.url.clone(),
                org: client.org.clone(),
                bucket: client.bucket.clone(),
            }),
            influxdb2_data_config: influx.influxdb2_data_config.as_ref().map(|data| dmi::Influxdb2DataConfig {
                measurement: data.measurement.clone(),
                tag: data.tag.clone().into_iter().collect(),
                field_key: data.field_key.clone(),
            }),
        }),
        redis: db.redis.as_ref().map(|redis| dmi::DbMethodRedis {
            redis_client_config: redis.redis_client_config.as_ref().map(|client| dmi::RedisClientConfig {
                addr: client.addr.clone(),
                db: client.db,
                poolsize: client.poolsize,
                min_idle_conns: client.min_idle_conns,
            }),
        }),
        tdengine: db.td_engine.as_ref().map(|engine| dmi::DbMethodTdEngine {
            td_engine_client_config: engine
                .client_config
                .as_ref()
                .map(|client| dmi::TdEngineClientConfig { addr: client.addr.clone(), dbname: client.db_name.clone() }),
        }),
        mysql: db.mysql.as_ref().map(|mysql| dmi::DbMethodMySql {
            mysql_client_config: mysql.mysql_client_config.as_ref().map(|client| dmi::MySqlClientConfig {
                addr: client.addr.clone(),
                database: client.database.clone(),
                user_name: client.user_name.clone(),
            }),
        }),
    }
}

/// The model's settings, with the device's own over them.
fn merged(default: &Free, own: &Free) -> Free {
    let mut merged = default.clone();
    merged.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
    merged
}

fn free(settings: &Free) -> Option<dmi::CustomizedValue> {
    Some(dmi::CustomizedValue { data: values(settings) })
}

fn values(settings: &Free) -> HashMap<String, Any> {
    settings.iter().filter_map(|(name, value)| Some((name.clone(), any(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::dmi::values::plain;

    fn object(name: &str, spec: Value) -> KubeObject {
        let json = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec}).to_string();
        KubeObject {
            key: Some(ObjectKey::new("ns", name)),
            uid: "u".into(),
            json: json.into(),
            ..KubeObject::default()
        }
    }

    #[test]
    fn a_device_is_told_with_the_defaults_of_its_model() {
        let model = object(
            "m",
            json!({"protocol": "modbus", "protocolConfigData": {"baud": 9600, "port": 1},
                "properties": [{"name": "t", "type": "FLOAT", "accessMode": "ReadOnly",
                    "visitors": {"protocolName": "modbus", "configData": {"register": "Input", "offset": 2}}}]}),
        );
        let device = object(
            "d",
            json!({"deviceModelRef": {"name": "m"}, "nodeName": "n",
                "protocol": {"protocolName": "modbus", "configData": {"port": 16777217}},
                "properties": [{"name": "t", "desired": {"value": "5"}, "collectCycle": 500, "reportToCloud": true,
                    "visitors": {"configData": {"offset": 7}},
                    "pushMethod": {"http": {"hostName": "h", "port": 80, "requestPath": "/p"},
                        "dbMethod": {"TDEngine": {"TDEngineClientConfig": {"dbName": "db"}}}}}],
                "stateReport": {"reportToCloud": true, "reportCycle": 9}}),
        );
        let (model, device) = (Model::of(&model).unwrap(), Device::of(&device).unwrap());
        let told = device.told(&model);
        let spec = told.spec.unwrap();
        let plain_of = |config: &Option<dmi::CustomizedValue>, name: &str| plain(&config.as_ref().unwrap().data[name]);
        let protocol = spec.protocol.unwrap();
        assert_eq!(plain_of(&protocol.config_data, "baud"), Some(json!(9600.0)));
        assert_eq!(plain_of(&protocol.config_data, "port"), Some(json!(16777217)), "a float32 cannot hold it");
        let property = &spec.properties[0];
        let visitors = property.visitors.as_ref().unwrap();
        assert_eq!(visitors.protocol_name, "modbus");
        assert_eq!(plain_of(&visitors.config_data, "register"), Some(json!("Input")));
        assert_eq!(plain_of(&visitors.config_data, "offset"), Some(json!(7.0)));
        assert_eq!((property.desired.as_ref().unwrap().value.as_str(), property.collect_cycle), ("5", 500));
        let push = property.push_method.as_ref().unwrap();
        assert_eq!(push.http.as_ref().unwrap().requestpath, "/p");
        let engine = push.db_method.as_ref().unwrap().tdengine.as_ref().unwrap();
        assert_eq!(engine.td_engine_client_config.as_ref().unwrap().dbname, "db");
        assert_eq!(told.status.unwrap().report_cycle, 9);
        let told = model.told().spec.unwrap();
        assert_eq!(
            (told.properties[0].r#type.as_str(), told.properties[0].access_mode.as_str()),
            ("FLOAT", "ReadOnly")
        );
        assert_eq!(model.twin_type("t"), "float");
    }

    /// What `pkg/util/parse/grpc.go` of KubeEdge's mapper framework looks into without asking whether it is there.
    #[test]
    fn of_a_device_that_says_little_everything_is_there_that_mappers_in_go_look_into() {
        let model = object(
            "m",
            json!({"properties": [{"name": "t", "type": "FLOAT", "accessMode": "ReadOnly"},
                {"name": "set", "type": "INT", "accessMode": "ReadWrite"}]}),
        );
        let device =
            object("d", json!({"deviceModelRef": {"name": "m"}, "properties": [{"name": "t"}, {"name": "set"}]}));
        let told = Device::of(&device).unwrap().told(&Model::of(&model).unwrap());
        // Over the wire: an empty message is there on the other side too.
        let told = dmi::Device::decode(told.encode_to_vec().as_slice()).unwrap();
        let spec = told.spec.expect("device.Spec");
        assert!(told.status.expect("device.Status").twins.is_empty(), "its twins are looked into as well");
        let protocol = spec.protocol.expect("device.Spec.Protocol");
        assert_eq!((protocol.protocol_name.as_str(), protocol.config_data.is_some()), ("", true));
        assert_eq!(spec.properties.len(), 2);
        for property in spec.properties {
            let desired = property.desired.expect("property.Desired");
            assert_eq!((desired.value.as_str(), desired.metadata.len()), ("", 0), "{}", property.name);
            let visitors = property.visitors.expect("property.Visitors");
            assert!(visitors.config_data.expect("property.Visitors.ConfigData").data.is_empty());
            assert_eq!(property.push_method, None, "it is asked for");
        }
        let told = Model::of(&model).unwrap().told();
        assert_eq!(told.spec.expect("model.Spec").properties.len(), 2);
    }
}
