//! What a Device and a DeviceModel must be beyond their schema: the rules of admission. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use super::types::{DeviceModelSpec, DeviceSpec};

/// What is wrong with an object of this kind; empty for any other kind and when nothing is. Each line names the field.
pub fn violations(kind: &str, object: &Value) -> Vec<String> {
    let spec = object.get("spec").cloned().unwrap_or_default();
    match kind {
        "Device" => match serde_json::from_value::<DeviceSpec>(spec) {
            Ok(spec) => device(&spec),
            Err(error) => vec![format!("spec: {error}")],
        },
        "DeviceModel" => match serde_json::from_value::<DeviceModelSpec>(spec) {
            Ok(spec) => model(&spec),
            Err(error) => vec![format!("spec: {error}")],
        },
        _ => Vec::new(),
    }
}

fn device(spec: &DeviceSpec) -> Vec<String> {
    let mut wrong = Vec::new();
    if spec.device_model_ref.as_ref().is_none_or(|model| model.name.is_empty()) {
        wrong.push("spec.deviceModelRef.name: is required: the name of a DeviceModel in this namespace".to_owned());
    }
    if spec.protocol.as_ref().is_none_or(|protocol| protocol.protocol_name.is_empty()) {
        wrong.push("spec.protocol.protocolName: is required: by it the mapper is found".to_owned());
    }
    names(spec.properties.iter().map(|property| property.name.as_str()), &mut wrong);
    for (index, property) in spec.properties.iter().enumerate() {
        for (field, cycle) in [("reportCycle", property.report_cycle), ("collectCycle", property.collect_cycle)] {
            if cycle.is_some_and(|cycle| cycle < 0) {
                wrong.push(format!("spec.properties[{index}].{field}: is below 0, expected milliseconds"));
            }
        }
        let mqtt = property.push_method.as_ref().and_then(|push| push.mqtt.as_ref());
        if mqtt.is_some_and(|mqtt| !(0..=2).contains(&mqtt.qos)) {
            wrong.push(format!("spec.properties[{index}].pushMethod.mqtt.qos: expected 0, 1 or 2"));
        }
    }
    wrong
}

fn model(spec: &DeviceModelSpec) -> Vec<String> {
    let mut wrong = Vec::new();
    names(spec.properties.iter().map(|property| property.name.as_str()), &mut wrong);
    for (index, property) in spec.properties.iter().enumerate() {
        if !property.type_.is_number() {
            continue;
        }
        for (field, bound) in [("minimum", &property.minimum), ("maximum", &property.maximum)] {
            if !bound.is_empty() && !bound.parse::<f64>().is_ok_and(f64::is_finite) {
                wrong.push(format!("spec.properties[{index}].{field}: {bound:?} is no number"));
            }
        }
        if property.bounds().is_some_and(|(minimum, maximum)| minimum > maximum) {
            wrong.push(format!("spec.properties[{index}].minimum: is above maximum: no value is possible"));
        }
    }
    wrong
}

fn names<'a>(all: impl Iterator<Item = &'a str>, wrong: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (index, name) in all.enumerate() {
        if name.is_empty() {
            wrong.push(format!("spec.properties[{index}].name: is required"));
        } else if !seen.insert(name) {
            wrong.push(format!("spec.properties[{index}].name: {name:?} is there twice, expected each name once"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_violation_names_its_field() {
        let good = json!({"spec": {"deviceModelRef": {"name": "m"}, "protocol": {"protocolName": "modbus"},
            "properties": [{"name": "a"}, {"name": "b", "desired": {"value": "1"}}]}});
        assert_eq!(violations("Device", &good), Vec::<String>::new());
        let bad = json!({"spec": {"properties": [{"name": "a", "reportCycle": -1}, {"name": "a"},
            {"name": "", "pushMethod": {"mqtt": {"qos": 3}}}]}});
        let said = violations("Device", &bad);
        for field in ["deviceModelRef", "protocolName", "[0].reportCycle", "[1].name", "[2].name", "mqtt.qos"] {
            assert!(said.iter().any(|line| line.contains(field)), "{field}: {said:?}");
        }
        let twice = json!({"spec": {"properties": [{"name": "a", "type": "INT", "accessMode": "ReadOnly"},
            {"name": "a", "type": "INT", "accessMode": "ReadOnly"}]}});
        assert_eq!(violations("DeviceModel", &twice).len(), 1);
        let of = |minimum: &str, maximum: &str, type_: &str| {
            let property = json!({"name": "a", "type": type_, "accessMode": "ReadWrite", "minimum": minimum,
                "maximum": maximum});
            violations("DeviceModel", &json!({"spec": {"properties": [property]}})).join("; ")
        };
        assert_eq!((of("-5", "1e3", "FLOAT"), of("", "7", "INT"), of("low", "", "STRING")), Default::default());
        assert_eq!(of("low", "", "INT"), "spec.properties[0].minimum: \"low\" is no number");
        assert_eq!(of("", "inf", "DOUBLE"), "spec.properties[0].maximum: \"inf\" is no number");
        assert!(of("2", "1", "INT").starts_with("spec.properties[0].minimum: is above maximum"));
        let of_no_type = json!({"spec": {"properties": [{"name": "a", "type": "NUMBER", "accessMode": "ReadOnly"}]}});
        assert!(violations("DeviceModel", &of_no_type)[0].contains("NUMBER"));
        assert_eq!(violations("Pod", &json!({})), Vec::<String>::new());
    }
}
