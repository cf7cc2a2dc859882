//! The fields of Device, DeviceModel and DeviceStatus, in Kubernetes' own spelling.

use std::collections::BTreeMap;

#[cfg(feature = "devicecontroller")]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

macro_rules! kinds {
    ($($(#[$meta:meta])* pub $shape:ident $name:ident { $($body:tt)* })*) => {$(
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "devicecontroller", derive(JsonSchema))]
        $(#[$meta])*
        pub $shape $name { $($body)* }
    )*};
}

/// An object whose fields are the user's own.
pub type Free = Map<String, Value>;

kinds! {
    /// `Device.spec`.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct DeviceSpec {
        /// The DeviceModel, in the namespace of the Device.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub device_model_ref: Option<ModelReference>,
        /// The node that the device hangs on.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub node_name: Option<String>,
        /// What the device has: a twin each. Each name once.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub properties: Vec<DeviceProperty>,
        /// How the device is spoken to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub protocol: Option<ProtocolConfig>,
        /// What it can be asked to do.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub methods: Vec<DeviceMethod>,
        /// Whether and how often its state is told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub state_report: Option<StateReport>,
    }

    /// The name of a DeviceModel.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct ModelReference {
        /// In the namespace of the Device.
        pub name: String,
    }

    /// One property of a Device.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct DeviceProperty {
        /// As in the DeviceModel.
        pub name: String,
        /// What it is to be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub desired: Option<TwinProperty>,
        /// How a mapper finds it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub visitors: Option<VisitorConfig>,
        /// Milliseconds between two reports to the cloud.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub report_cycle: Option<i64>,
        /// Milliseconds between two readings.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub collect_cycle: Option<i64>,
        /// Whether what is read is told to the cloud: with false it stays at the edge.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub report_to_cloud: Option<bool>,
        /// Where else a mapper sends what it reads.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub push_method: Option<PushMethod>,
    }

    /// A value with what was told beside it.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct TwinProperty {
        /// The value as text, whatever its type.
        pub value: String,
        /// Such as `timestamp` (milliseconds since 1970) and `type`.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub metadata: BTreeMap<String, String>,
    }

    /// A mapper's own settings for a property.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct VisitorConfig {
        /// The protocol, as in the Device.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub protocol_name: String,
        /// Free.
        #[serde(default, skip_serializing_if = "Free::is_empty")]
        pub config_data: Free,
    }

    /// A mapper's own settings for a device.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct ProtocolConfig {
        /// By which the mapper is found.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub protocol_name: String,
        /// Free.
        #[serde(default, skip_serializing_if = "Free::is_empty")]
        pub config_data: Free,
    }

    /// Something a device can be asked to do.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct DeviceMethod {
        /// Its name.
        #[serde(default)]
        pub name: String,
        /// For people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub description: String,
        /// The properties it is about.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub property_names: Vec<String>,
    }

    /// Whether and how often a device's state is told.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct StateReport {
        /// Whether it is told to the cloud: with false it stays at the edge.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub report_to_cloud: Option<bool>,
        /// Milliseconds between two reports of a mapper.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub report_cycle: Option<i64>,
    }

    /// Where a mapper sends what it reads, beside the twin.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct PushMethod {
        /// By HTTP.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub http: Option<PushMethodHttp>,
        /// By MQTT.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub mqtt: Option<PushMethodMqtt>,
        /// By OpenTelemetry.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub otel: Option<PushMethodOtel>,
        /// Into a database.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub db_method: Option<DbMethod>,
        /// A mapper's own settings.
        #[serde(default, skip_serializing_if = "Free::is_empty")]
        pub anomaly_detection: Free,
    }

    /// An HTTP server.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct PushMethodHttp {
        /// Host name or address.
        #[serde(default)]
        pub host_name: String,
        /// Its port.
        #[serde(default)]
        pub port: i64,
        /// The path of the request.
        #[serde(default)]
        pub request_path: String,
        /// Seconds.
        #[serde(default)]
        pub timeout: i64,
    }

    /// An MQTT broker.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct PushMethodMqtt {
        /// Such as `tcp://127.0.0.1:1883`.
        #[serde(default)]
        pub address: String,
        /// The topic.
        #[serde(default)]
        pub topic: String,
        /// 0, 1 or 2.
        #[serde(default)]
        pub qos: i32,
        /// Whether the broker keeps the last one.
        #[serde(default)]
        pub retained: bool,
    }

    /// An OpenTelemetry collector.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct PushMethodOtel {
        /// Its URL.
        #[serde(default, rename = "endpointURL")]
        pub endpoint_url: String,
    }

    /// A database.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct DbMethod {
        /// InfluxDB 2.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub influxdb2: Option<InfluxDb2>,
        /// Redis.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub redis: Option<Redis>,
        /// TDengine.
        #[serde(default, rename = "TDEngine", skip_serializing_if = "Option::is_none")]
        pub td_engine: Option<TdEngine>,
        /// MySQL.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub mysql: Option<MySql>,
    }

    /// InfluxDB 2.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct InfluxDb2 {
        /// The server.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub influxdb2_client_config: Option<InfluxDb2Client>,
        /// Where in it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub influxdb2_data_config: Option<InfluxDb2Data>,
    }

    /// An InfluxDB server.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct InfluxDb2Client {
        /// Its URL.
        #[serde(default)]
        pub url: String,
        /// The organisation.
        #[serde(default)]
        pub org: String,
        /// The bucket.
        #[serde(default)]
        pub bucket: String,
    }

    /// A place in InfluxDB.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct InfluxDb2Data {
        /// The measurement.
        #[serde(default)]
        pub measurement: String,
        /// Its tags.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub tag: BTreeMap<String, String>,
        /// The field of the value.
        #[serde(default)]
        pub field_key: String,
    }

    /// Redis.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct Redis {
        /// The server.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub redis_client_config: Option<RedisClient>,
    }

    /// A Redis server.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct RedisClient {
        /// Host and port.
        #[serde(default)]
        pub addr: String,
        /// The database's number.
        #[serde(default)]
        pub db: i32,
        /// Connections at most.
        #[serde(default)]
        pub poolsize: i32,
        /// Connections kept.
        #[serde(default)]
        pub min_idle_conns: i32,
    }

    /// TDengine.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct TdEngine {
        /// The server.
        #[serde(default, rename = "TDEngineClientConfig", skip_serializing_if = "Option::is_none")]
        pub client_config: Option<TdEngineClient>,
    }

    /// A TDengine server.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct TdEngineClient {
        /// Host and port.
        #[serde(default)]
        pub addr: String,
        /// The database.
        #[serde(default)]
        pub db_name: String,
    }

    /// MySQL.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct MySql {
        /// The server.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub mysql_client_config: Option<MySqlClient>,
    }

    /// A MySQL server.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct MySqlClient {
        /// Host and port.
        #[serde(default)]
        pub addr: String,
        /// The database.
        #[serde(default)]
        pub database: String,
        /// The user.
        #[serde(default)]
        pub user_name: String,
    }

    /// `DeviceModel.spec`.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct DeviceModelSpec {
        /// What devices of this model have. Each name once.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub properties: Vec<ModelProperty>,
        /// The protocol its devices speak.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub protocol: String,
        /// Defaults of the devices' `protocol.configData`.
        #[serde(default, skip_serializing_if = "Free::is_empty")]
        pub protocol_config_data: Free,
    }

    /// One property of a model.
    #[serde(rename_all = "camelCase")]
    pub struct ModelProperty {
        /// Its name.
        pub name: String,
        /// For people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub description: String,
        /// The type of its values.
        #[serde(rename = "type")]
        pub type_: PropertyType,
        /// Whether it can be written.
        pub access_mode: AccessMode,
        /// The lowest value.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub minimum: String,
        /// The highest value.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub maximum: String,
        /// The unit of its values.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        pub unit: String,
        /// Defaults of the devices' `visitors`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub visitors: Option<VisitorConfig>,
    }

    /// The type of a property's values.
    #[derive(Copy, Eq)]
    #[serde(rename_all = "UPPERCASE")]
    pub enum PropertyType {
        /// A whole number of 64 bits.
        Int,
        /// A number.
        Float,
        /// A number.
        Double,
        /// Text.
        String,
        /// `true` or `false`.
        Boolean,
        /// Bytes, in base64.
        Bytes,
        /// A stream, of which the twin knows nothing.
        Stream,
    }

    /// Whether a property can be written.
    #[derive(Copy, Eq)]
    pub enum AccessMode {
        /// It can.
        ReadWrite,
        /// It cannot: a desired value means nothing.
        ReadOnly,
    }

    /// `DeviceStatus.status`.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct DeviceStatusStatus {
        /// The properties that are reported.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub twins: Vec<Twin>,
        /// `online`, `offline`, `ok`, `unknown` or `unhealthy`, as the device's mapper tells it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub state: Option<String>,
        /// When it was last seen, RFC 3339.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub last_online_time: Option<String>,
        /// Free.
        #[serde(default, skip_serializing_if = "Free::is_empty")]
        pub extensions: Free,
    }

    /// What is known of one property.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct Twin {
        /// The property.
        pub property_name: String,
        /// What the device says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reported: Option<TwinProperty>,
        /// The desired value that the device has taken over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub observed_desired: Option<TwinProperty>,
    }

    /// `Device.status`, from before there was a DeviceStatus. It counts where `spec.stateReport` says nothing, and is never
    /// written.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub struct OldDeviceStatus {
        /// See `spec.stateReport`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub report_to_cloud: Option<bool>,
        /// See `spec.stateReport`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub report_cycle: Option<i64>,
    }
}
