//! What the fields of [`super::types`] say of values: their types and bounds, and what of them is told. Pure.

use super::types::{DeviceProperty, DeviceSpec, ModelProperty, PropertyType};

impl DeviceSpec {
    /// The properties that the cloud may know of.
    pub fn told(&self) -> impl Iterator<Item = &DeviceProperty> {
        self.properties.iter().filter(|property| property.report_to_cloud != Some(false))
    }

    /// Whether the cloud may know how the device is.
    pub fn tells_state(&self) -> bool {
        self.state_report.as_ref().is_none_or(|report| report.report_to_cloud != Some(false))
    }
}

impl PropertyType {
    /// The type of a twin that stands for it, in MQTT's words.
    pub fn of_twin(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Float | Self::Double => "float",
            Self::Boolean => "boolean",
            Self::String | Self::Bytes | Self::Stream => "string",
        }
    }

    /// For a message.
    pub fn described(self) -> &'static str {
        match self {
            Self::Int => "a whole number of 64 bits (INT)",
            Self::Float => "a number (FLOAT)",
            Self::Double => "a number (DOUBLE)",
            Self::Boolean => "true or false (BOOLEAN)",
            Self::String => "text (STRING)",
            Self::Bytes => "bytes (BYTES)",
            Self::Stream => "a stream (STREAM)",
        }
    }

    /// Whether it has an order and bounds.
    pub fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Float | Self::Double)
    }
}

impl ModelProperty {
    /// The lowest and the highest value of a number; `None` where neither is said, or not in a number.
    pub fn bounds(&self) -> Option<(f64, f64)> {
        let said = |bound: &str, none: f64| if bound.is_empty() { Some(none) } else { bound.parse().ok() };
        let has = self.type_.is_number() && !(self.minimum.is_empty() && self.maximum.is_empty());
        has.then(|| Some((said(&self.minimum, f64::NEG_INFINITY)?, said(&self.maximum, f64::INFINITY)?)))?
    }
}
