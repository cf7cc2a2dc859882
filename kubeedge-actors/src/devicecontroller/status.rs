//! A node's report as the status of a DeviceStatus. Pure.

use kubeedge_proto::v1::{DeviceReport, ObjectKey, PropertyValue, Settled};
use serde_json::{Value, json};

use crate::device::{
    GROUP, VERSION,
    types::{DeviceStatusStatus, Twin, TwinProperty},
};

/// Properties that one report may have: a device has some dozen.
const MAX_PROPERTIES: usize = 4096;

/// Why a report is not written.
pub fn check(node: &str, report: &DeviceReport, known: Option<(&str, &str)>) -> Result<ObjectKey, Settled> {
    let key = report.key.clone().ok_or_else(|| Settled::rejected(400, "a DeviceReport names no device"))?;
    if key.namespace.is_empty() || !key.is_valid() {
        return Err(Settled::rejected(400, format!("{key:?} is not the name of a device")));
    }
    if report.properties.len() > MAX_PROPERTIES {
        let text = format!("the report of {key} has {} properties, expected {MAX_PROPERTIES}", report.properties.len());
        return Err(Settled::rejected(413, text));
    }
    match known {
        None => Err(Settled::rejected(404, format!("device {key} is gone"))),
        Some((owner, _)) if owner != node => {
            Err(Settled::rejected(403, format!("device {key} does not hang on node {node}")))
        }
        Some((_, uid)) if uid != report.uid => Err(Settled::superseded()),
        Some(_) => Ok(key),
    }
}

/// The `status` that a report becomes.
pub fn status_of(report: &DeviceReport) -> Value {
    let property = |value: &Option<PropertyValue>| {
        value.as_ref().map(|value| TwinProperty {
            value: value.value.clone(),
            metadata: value.metadata.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        })
    };
    let twins = report
        .properties
        .iter()
        .map(|reported| Twin {
            property_name: reported.name.clone(),
            reported: property(&reported.reported),
            observed_desired: property(&reported.observed_desired),
        })
        .collect();
    let status = DeviceStatusStatus {
        twins,
        state: report.state.clone(),
        last_online_time: Some(report.last_online_time.clone()).filter(|time| !time.is_empty()),
        extensions: serde_json::Map::new(),
    };
    // Types whose maps have texts for keys are always JSON.
    let mut status = serde_json::to_value(status).unwrap_or_default();
    // Said even when there are none, so that a property that is not reported any more goes.
    status["twins"].as_array().is_none().then(|| status["twins"] = json!([]));
    status
}

/// A DeviceStatus of a Device, which goes with it.
pub fn made_for(key: &ObjectKey, uid: &str, status: Value) -> Value {
    let api_version = format!("{GROUP}/{VERSION}");
    json!({
        "apiVersion": api_version,
        "kind": "DeviceStatus",
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "ownerReferences": [{
                "apiVersion": api_version, "kind": "Device", "name": key.name, "uid": uid, "controller": true,
            }],
        },
        "spec": {},
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use kubeedge_proto::v1::ReportedProperty;

    use super::*;

    fn report() -> DeviceReport {
        DeviceReport {
            key: Some(ObjectKey::new("plant", "boiler")),
            uid: "u1".into(),
            generation: 3,
            properties: vec![ReportedProperty {
                name: "temperature".into(),
                reported: Some(PropertyValue {
                    value: "21.5".into(),
                    metadata: [("timestamp".to_owned(), "1700000000000".to_owned())].into(),
                }),
                observed_desired: None,
            }],
            state: Some("ok".into()),
            last_online_time: "2026-01-01T00:00:00Z".into(),
        }
    }

    #[test]
    fn a_report_becomes_a_status() {
        let expected = json!({
            "twins": [{"propertyName": "temperature",
                "reported": {"value": "21.5", "metadata": {"timestamp": "1700000000000"}}}],
            "state": "ok", "lastOnlineTime": "2026-01-01T00:00:00Z",
        });
        assert_eq!(status_of(&report()), expected);
        assert_eq!(status_of(&DeviceReport::default()), json!({"twins": []}));
    }

    #[test]
    fn a_node_reports_only_of_devices_that_hang_on_it() {
        assert!(check("n1", &report(), Some(("n1", "u1"))).is_ok());
        assert_eq!(check("n2", &report(), Some(("n1", "u1"))).unwrap_err().code, 403);
        assert_eq!(check("n1", &report(), None).unwrap_err().code, 404);
        assert_eq!(check("n1", &report(), Some(("n1", "u2"))), Err(Settled::superseded()), "of one before it");
        let nameless = DeviceReport { key: Some(ObjectKey::new("../x", "y")), ..report() };
        assert_eq!(check("n1", &nameless, Some(("n1", "u1"))).unwrap_err().code, 400);
    }
}
