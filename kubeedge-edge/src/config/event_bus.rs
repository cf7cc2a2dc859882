//! `modules.eventBus`.

use std::{fmt, net::SocketAddr, path::PathBuf};

use kubeedge_actors::config::or_default;
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

/// `modules.eventBus`.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EventBus {
    /// Whether this node speaks MQTT.
    pub enable: bool,
    /// Which brokers.
    pub mqtt_mode: MqttMode,
    /// A broker that others run, `tcp://` or, on TLS, `ssl://`.
    #[serde(deserialize_with = "broker")]
    pub mqtt_server_external: String,
    /// Where our own listens.
    #[serde(deserialize_with = "own_broker")]
    pub mqtt_server_internal: String,
    /// Of publications and subscriptions at our own broker; at another it is 1.
    #[serde(rename = "mqttQOS", deserialize_with = "qos")]
    pub mqtt_qos: u8,
    /// Whether our own broker keeps what is published.
    pub mqtt_retain: bool,
    /// Messages that our own broker keeps for a client that is away or slow.
    #[serde(deserialize_with = "queue")]
    pub mqtt_session_queue_size: usize,
    /// The client's name at a broker that others run; without it, one with the node's name.
    #[serde(rename = "mqttSubClientID")]
    pub mqtt_sub_client_id: String,
    /// If that broker asks for one.
    pub mqtt_username: String,
    /// With it.
    pub mqtt_password: String,
    /// TLS to it.
    #[serde(rename = "eventBusTLS", deserialize_with = "or_default")]
    pub event_bus_tls: EventBusTls,
}

impl Default for EventBus {
    fn default() -> Self {
        Self {
            enable: true,
            mqtt_mode: MqttMode::Auto,
            mqtt_server_external: "tcp://127.0.0.1:1883".into(),
            mqtt_server_internal: "tcp://127.0.0.1:1884".into(),
            mqtt_qos: 0,
            mqtt_retain: false,
            // KubeEdge has 100, which a burst of twin updates exceeds.
            mqtt_session_queue_size: 1000,
            mqtt_sub_client_id: String::new(),
            mqtt_username: String::new(),
            mqtt_password: String::new(),
            event_bus_tls: EventBusTls::default(),
        }
    }
}

/// Without the password.
impl fmt::Debug for EventBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventBus")
            .field("enable", &self.enable)
            .field("mqtt_mode", &self.mqtt_mode)
            .field("mqtt_server_external", &self.mqtt_server_external)
            .field("mqtt_server_internal", &self.mqtt_server_internal)
            .finish_non_exhaustive()
    }
}

/// `modules.eventBus.eventBusTLS`: how the external broker is authenticated, and this node to it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EventBusTls {
    /// Whether the external broker is spoken to on TLS, whatever the scheme of its address.
    pub enable: bool,
    /// Certificates of the broker's authority, PEM.
    #[serde(rename = "tlsMqttCAFile")]
    pub tls_mqtt_ca_file: PathBuf,
    /// Our certificate, PEM; empty, like the next: none is shown.
    pub tls_mqtt_cert_file: PathBuf,
    /// Its key, PEM.
    pub tls_mqtt_private_key_file: PathBuf,
}

impl Default for EventBusTls {
    fn default() -> Self {
        Self {
            enable: false,
            tls_mqtt_ca_file: "/etc/kubeedge/ca/rootCA.crt".into(),
            tls_mqtt_cert_file: "/etc/kubeedge/certs/server.crt".into(),
            tls_mqtt_private_key_file: "/etc/kubeedge/certs/server.key".into(),
        }
    }
}

/// `modules.eventBus.mqttMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MqttMode {
    /// 0: our own broker, on `mqttServerInternal`.
    Internal,
    /// 1: both.
    Both,
    /// 2: the broker on `mqttServerExternal`, whether it answers or not.
    External,
    /// Not said: the broker on `mqttServerExternal` if one answers at the start, else our own, which takes that address.
    Auto,
}

impl<'de> Deserialize<'de> for MqttMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Modes;
        impl Visitor<'_> for Modes {
            type Value = MqttMode;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("0 (our own broker), 1 (both), 2 (an external one) or auto")
            }

            fn visit_u64<E: Error>(self, mode: u64) -> Result<MqttMode, E> {
                match mode {
                    0 => Ok(MqttMode::Internal),
                    1 => Ok(MqttMode::Both),
                    2 => Ok(MqttMode::External),
                    other => Err(E::custom(format!("{other} is not valid, expected 0, 1, 2 or auto"))),
                }
            }

            fn visit_i64<E: Error>(self, mode: i64) -> Result<MqttMode, E> {
                u64::try_from(mode)
                    .map_or_else(|_| Err(E::custom("expected 0, 1, 2 or auto")), |mode| self.visit_u64(mode))
            }

            fn visit_str<E: Error>(self, mode: &str) -> Result<MqttMode, E> {
                match mode {
                    "auto" | "" => Ok(MqttMode::Auto),
                    number => number
                        .parse()
                        .map_err(|_| E::custom(format!("{number:?} is not valid, expected 0, 1, 2 or auto")))
                        .and_then(|mode| self.visit_u64(mode)),
                }
            }
        }
        deserializer.deserialize_any(Modes)
    }
}

/// Schemes of addresses, as KubeEdge's MQTT client has them.
const PLAIN: [&str; 2] = ["tcp", "mqtt"];
const ON_TLS: [&str; 5] = ["ssl", "tls", "mqtts", "mqtt+ssl", "tcps"];

/// An address with the scheme `tcp` or `ssl`.
fn broker<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let uri = String::deserialize(deserializer)?;
    let (scheme, address) = uri.split_once("://").unwrap_or_default();
    let port =
        address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok())?);
    match port {
        Some(_) if PLAIN.contains(&scheme) => Ok(format!("tcp://{address}")),
        Some(_) if ON_TLS.contains(&scheme) => Ok(format!("ssl://{address}")),
        _ => Err(D::Error::custom(format!(
            "{uri:?} is not valid, expected such as tcp://127.0.0.1:1883 or ssl://broker.example:8883"
        ))),
    }
}

fn own_broker<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let uri = broker(deserializer)?;
    match uri.starts_with("tcp://") {
        true => Ok(uri),
        false => Err(D::Error::custom(format!("{uri:?} is not valid: our own broker has no TLS, expected tcp://"))),
    }
}

fn qos<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    match u8::deserialize(deserializer)? {
        qos @ 0..=2 => Ok(qos),
        other => Err(D::Error::custom(format!("{other} is not valid, expected 0, 1 or 2"))),
    }
}

fn queue<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    match u32::deserialize(deserializer)? {
        queue @ 1..=100_000 => Ok(queue as usize),
        other => Err(D::Error::custom(format!("{other} is not valid, expected from 1 to 100000 messages"))),
    }
}

impl EventBus {
    /// The address of one of the brokers, to bind or to try; `None` when it is a name.
    pub fn socket(uri: &str) -> Option<SocketAddr> {
        uri.strip_prefix("tcp://")?.replace("localhost", "127.0.0.1").parse().ok()
    }
}
