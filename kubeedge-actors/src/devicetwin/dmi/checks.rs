//! Whether what a mapper reports can be so, by the model of its device. Pure.
//!
//! A value is of its property's type. What a device has taken over of what was desired is a property's that can be
//! written, and within its bounds. A reading may be out of bounds: that is what people have to see. Each property is
//! judged for itself, and so is `observedDesired`: mappers of KubeEdge's framework send the manifest's desired value beside
//! every reading, whatever it is.

use kubeedge_proto::dmi::{Twin, TwinProperty};

use crate::{
    device::types::{AccessMode, ModelProperty},
    devicetwin::wire::check_type,
};

/// Longest value and metadata of a property, bytes.
const MAX_VALUE: usize = 32 * 1024;
/// Longest name of a property, bytes.
const MAX_NAME: usize = 253;

/// What of a property of a report cannot be taken, and why; the text names the device and the property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// All of it.
    Property(String),
    /// `observedDesired`; what is reported can.
    Observed(String),
}

/// Judges a property of a report. `model` is what the device's model says of it; without it any value will do.
pub fn check(device: &str, told: &Twin, model: Option<&ModelProperty>) -> Result<(), Mistake> {
    let name: String = told.property_name.chars().take(MAX_NAME).collect();
    let said = |text: String| format!("device {device}, property {name:?}: {text}");
    reading(told, model).map_err(|text| Mistake::Property(said(text)))?;
    observed(told, model).map_err(|text| Mistake::Observed(said(format!("observedDesired: {text}"))))
}

fn reading(told: &Twin, model: Option<&ModelProperty>) -> Result<(), String> {
    if told.property_name.is_empty() || told.property_name.len() > MAX_NAME {
        return Err(format!("propertyName has {} bytes, expected 1 to {MAX_NAME}", told.property_name.len()));
    }
    let bytes = |side: &TwinProperty| {
        side.metadata.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() + side.value.len()
    };
    for (side, told) in [("observedDesired", &told.observed_desired), ("reported", &told.reported)] {
        if told.as_ref().map(bytes).is_some_and(|bytes| bytes > MAX_VALUE) {
            return Err(format!("{side}: value and metadata have more than {MAX_VALUE} bytes"));
        }
    }
    match (model, &told.reported) {
        (Some(model), Some(reported)) => of_type(model, &reported.value).map_err(|text| format!("reported: {text}")),
        _ => Ok(()),
    }
}

fn observed(told: &Twin, model: Option<&ModelProperty>) -> Result<(), String> {
    // Mappers send it empty where nothing is desired.
    let observed = told.observed_desired.as_ref().filter(|observed| !observed.value.is_empty());
    let (Some(model), Some(observed)) = (model, observed) else { return Ok(()) };
    if model.access_mode == AccessMode::ReadOnly {
        return Err("the property is ReadOnly, nothing can be desired of it".to_owned());
    }
    of_type(model, &observed.value)?;
    let Some((minimum, maximum)) = model.bounds() else { return Ok(()) };
    match observed.value.parse::<f64>() {
        Ok(value) if value < minimum || value > maximum => {
            Err(format!("{} is not within {minimum} and {maximum}", shown(&observed.value)))
        }
        _ => Ok(()),
    }
}

fn of_type(model: &ModelProperty, value: &str) -> Result<(), String> {
    check_type(model.type_.of_twin(), value).map_err(|_| format!("{} is not {}", shown(value), model.type_.described()))
}

/// A value for a message.
fn shown(value: &str) -> String {
    let mut start = value.chars();
    let head: String = start.by_ref().take(64).collect();
    if start.next().is_some() { format!("{head:?}...") } else { format!("{head:?}") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn model(fields: Value) -> ModelProperty {
        let mut property = json!({"name": "p", "accessMode": "ReadWrite"});
        property.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(property).unwrap()
    }

    fn twin(reported: Option<&str>, observed: Option<&str>) -> Twin {
        let value =
            |value: Option<&str>| value.map(|value| TwinProperty { value: value.into(), ..TwinProperty::default() });
        Twin { property_name: "p".into(), reported: value(reported), observed_desired: value(observed) }
    }

    #[test]
    fn values_are_of_their_type() {
        for (type_, good, bad) in [
            ("INT", "-7", "7.5"),
            ("FLOAT", "1e3", "warm"),
            ("DOUBLE", "0.1", ""),
            ("BOOLEAN", "true", "1"),
            ("STRING", "anything at all", "\u{0}"),
            ("BYTES", "AAEC", "\u{0}"),
        ] {
            let model = model(json!({"type": type_}));
            for told in [twin(Some(good), None), twin(None, Some(good)), twin(Some(good), Some(""))] {
                assert_eq!(check("ns/d", &told, Some(&model)), Ok(()), "{type_} {told:?}");
            }
            let said = check("ns/d", &twin(Some(bad), None), Some(&model));
            // Text may be anything.
            assert_eq!(said.is_ok(), matches!(type_, "STRING" | "BYTES"), "{type_}");
            assert_eq!(check("ns/d", &twin(Some(bad), None), None), Ok(()), "nobody says what it is to be");
        }
        let said = check("ns/d", &twin(Some("warm"), None), Some(&model(json!({"type": "FLOAT"})))).unwrap_err();
        let expected = "device ns/d, property \"p\": reported: \"warm\" is not a number (FLOAT)";
        assert_eq!(said, Mistake::Property(expected.into()));
    }

    #[test]
    fn what_is_taken_over_can_be_written_and_is_within_bounds_or_only_the_reading_counts() {
        let bounded = model(json!({"type": "INT", "minimum": "5", "maximum": "30"}));
        for (told, wrong) in [
            (twin(Some("31"), Some("30")), None),
            (twin(Some("31"), Some("4")), Some("observedDesired: \"4\" is not within 5 and 30")),
            (twin(None, Some("4")), Some("observedDesired: \"4\" is not within 5 and 30")),
            (twin(None, Some("31")), Some("observedDesired: \"31\" is not within 5 and 30")),
            (twin(None, Some("x")), Some("observedDesired: \"x\" is not a whole number of 64 bits (INT)")),
        ] {
            let said = check("ns/d", &told, Some(&bounded));
            let expected = wrong.map(|wrong| Mistake::Observed(format!("device ns/d, property \"p\": {wrong}")));
            assert_eq!(said.err(), expected, "{told:?}");
        }
        let fixed = model(json!({"type": "INT", "accessMode": "ReadOnly"}));
        let said = check("ns/d", &twin(Some("1"), Some("1")), Some(&fixed));
        assert!(matches!(said, Err(Mistake::Observed(why)) if why.contains("ReadOnly")), "the reading counts");
        assert_eq!(check("ns/d", &twin(Some("1"), Some("")), Some(&fixed)), Ok(()), "as mappers send it");
        let half = model(json!({"type": "FLOAT", "maximum": "30"}));
        assert!(check("ns/d", &twin(None, Some("30.5")), Some(&half)).is_err());
        assert_eq!(check("ns/d", &twin(None, Some("-1e9")), Some(&half)), Ok(()));
    }

    /// Why nothing of a property is taken.
    fn refused(told: &Twin, model: Option<&ModelProperty>) -> String {
        match check("ns/d", told, model) {
            Err(Mistake::Property(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_and_values_have_bounds_and_a_message_is_short() {
        let mut nameless = twin(None, None);
        nameless.property_name = String::new();
        assert!(refused(&nameless, None).contains("propertyName has 0 bytes"));
        let long = "x".repeat(40_000);
        for told in [twin(Some(&long), None), twin(None, Some(&long))] {
            assert!(refused(&told, None).contains("more than 32768 bytes"));
        }
        let said = refused(&twin(Some(&long[..9999]), None), Some(&model(json!({"type": "INT"}))));
        assert!(said.len() < 200, "{said}");
    }
}
