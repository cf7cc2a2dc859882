//! What of a device is told to the cloud. Pure.

use kubeedge_proto::v1::{DeviceReport, PropertyValue, ReportedProperty, TwinSideRecord};

use super::{
    dmi::convert,
    twin::{DELETED, Device},
};

/// One side of a twin for the cloud; `None` while it has no value.
pub fn told(side: &TwinSideRecord, type_: &str) -> Option<PropertyValue> {
    let mut metadata = side.metadata.clone();
    metadata.entry("timestamp".into()).or_insert_with(|| side.timestamp_ms.to_string());
    metadata.entry("type".into()).or_insert_with(|| type_.to_owned());
    Some(PropertyValue { value: side.value.clone()?, metadata })
}

/// The report of a device: the properties that its Device names and does not keep at the edge, and its state if that is
/// told.
pub fn report(device: &Device, wanted: &convert::Device) -> DeviceReport {
    let reported = wanted.spec.told().filter_map(|property| {
        let twin = device.twins.get(&property.name).filter(|twin| twin.r#type != DELETED)?;
        let reported = twin.actual.as_ref().and_then(|side| told(side, &twin.r#type));
        let observed_desired = twin.observed_desired.clone();
        (reported.is_some() || observed_desired.is_some()).then(|| ReportedProperty {
            name: property.name.clone(),
            reported,
            observed_desired,
        })
    });
    let tells_state = wanted.spec.tells_state();
    DeviceReport {
        key: Some(device.key.clone()),
        uid: device.uid.clone(),
        generation: 0,
        properties: reported.collect(),
        state: device.state.clone().filter(|_| tells_state),
        last_online_time: if tells_state { device.last_online_time.clone() } else { String::new() },
    }
}
