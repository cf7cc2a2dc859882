//! The kinds of `devices.kubeedge.io/v1beta1` as types: Device, DeviceModel, DeviceStatus.
//!
//! Objects travel and rest as the JSON they are; these types are for who has to understand them, and (with the feature
//! `devicecontroller`) where their CustomResourceDefinitions are made from. Fields that nobody knows here are kept by
//! whoever keeps the JSON.

#[cfg(feature = "devicecontroller")]
pub mod crds;
#[cfg(any(feature = "devicecontroller", feature = "admission", feature = "apiserver"))]
pub mod rules;
pub mod types;
mod values;

/// The group of all of them.
pub const GROUP: &str = "devices.kubeedge.io";
/// The one version that is served. `v1alpha2` of old is out.
pub const VERSION: &str = "v1beta1";
