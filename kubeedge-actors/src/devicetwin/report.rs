//! What of a device is told to the cloud. Pure.

use kubeedge_proto::v1::{DeviceReport, PropertyValue, ReportedProperty, TwinSideRecord};

use super::{
    dmi::convert,
    twin::{DELETED, Device},
};

/// One side of a twin for the cloud; `None` while it has no value.
pub fn told(side: &TwinSideRecord, type_: &str) -> Option<PropertyValue> {
    let mut metadata = side.metadata.clone();
    for (name, ours) in [("timestamp", side.timestamp_ms.to_string()), ("type", type_.to_owned())] {
        let said = metadata.entry(name.to_owned()).or_default();
        // Mappers in Go name both always, and have nothing to say of them.
        if said.is_empty() {
            *said = ours;
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mapper_leaves_out_of_the_metadata_or_leaves_empty_is_filled_in() {
        for (said, expected) in [
            (vec![], [("timestamp", "7"), ("type", "float")]),
            (vec![("timestamp", ""), ("type", "")], [("timestamp", "7"), ("type", "float")]),
            (vec![("timestamp", "5"), ("type", "")], [("timestamp", "5"), ("type", "float")]),
            (vec![("type", "double")], [("timestamp", "7"), ("type", "double")]),
        ] {
            let owned = |all: &[(&str, &str)]| {
                all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
            };
            let side = TwinSideRecord {
                value: Some("1".into()),
                timestamp_ms: 7,
                metadata: owned(&said),
                ..TwinSideRecord::default()
            };
            assert_eq!(told(&side, "float").unwrap().metadata, owned(&expected), "{said:?}");
        }
        assert_eq!(told(&TwinSideRecord::default(), "float"), None, "without a value nothing is told");
    }
}
