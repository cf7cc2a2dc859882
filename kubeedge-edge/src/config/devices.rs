//! `modules.deviceTwin`.

use std::path::PathBuf;

use kubeedge_actors::config::or_default;
use serde::{Deserialize, Deserializer, de::Error as _};

/// `modules.deviceTwin`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeviceTwin {
    /// Whether this node has devices.
    pub enable: bool,
    /// The folder of the socket that mappers call. Older files name the socket itself.
    dmi_sock_path: PathBuf,
    /// How often a mapper may call. Not KubeEdge's.
    #[serde(deserialize_with = "or_default")]
    pub mapper_rate: MapperRate,
}

impl Default for DeviceTwin {
    fn default() -> Self {
        Self { enable: true, dmi_sock_path: "/etc/kubeedge/".into(), mapper_rate: MapperRate::default() }
    }
}

impl DeviceTwin {
    /// The socket that mappers call.
    pub fn socket(&self) -> PathBuf {
        let path = &self.dmi_sock_path;
        let folder = match path.extension().is_some_and(|extension| extension == "sock") {
            true => path.parent().unwrap_or(path),
            false => path,
        };
        folder.join("dmi.sock")
    }
}

/// `modules.deviceTwin.mapperRate`: calls of one mapper; beyond it they are refused with `RESOURCE_EXHAUSTED`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MapperRate {
    /// In the long run.
    #[serde(deserialize_with = "at_least_one")]
    pub per_second: u32,
    /// At once.
    #[serde(deserialize_with = "at_least_one")]
    pub burst: u32,
}

impl Default for MapperRate {
    fn default() -> Self {
        // DeviceTwin's own.
        Self { per_second: 1000, burst: 2000 }
    }
}

fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(D::Error::custom("0 is not valid, expected a number of calls of at least 1")),
        calls => Ok(calls),
    }
}
