//! Values as CEL has them, with the types of their schema, and how large they are.

use std::collections::HashMap;
use std::ops::Add;
use std::sync::Arc;

use serde_json::Value;

use crate::apiserver::custom::schema::{Schema, Type};

/// Names that CEL keeps for itself: fields of these names are written otherwise.
const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// How much there is to look at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    /// Values, those inside others counted.
    pub(super) nodes: u64,
    /// Bytes of all texts.
    pub(super) bytes: u64,
}

impl Add for Size {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { nodes: self.nodes + other.nodes, bytes: self.bytes + other.bytes }
    }
}

impl Size {
    pub(super) fn of(value: &Value) -> Self {
        let own = Self { nodes: 1, bytes: value.as_str().map_or(0, |text| text.len() as u64) };
        match value {
            Value::Object(fields) => fields.values().map(Self::of).fold(own, Self::add),
            Value::Array(items) => items.iter().map(Self::of).fold(own, Self::add),
            _ => own,
        }
    }
}

/// A value as CEL has it, with the types of its schema. Of the metadata of an object of its own rules see the name.
pub(super) fn cel_of(schema: Option<&Schema>, value: &Value, root: bool) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(value) => cel::Value::Bool(*value),
        Value::String(text) => cel::Value::String(Arc::new(text.clone())),
        Value::Number(number) => {
            let float = || cel::Value::Float(number.as_f64().unwrap_or_default());
            match (schema.and_then(|schema| schema.type_), number.as_i64()) {
                (Some(Type::Number), _) => float(),
                (_, Some(integer)) => cel::Value::Int(integer),
                // `1.0` is an integer too.
                (Some(Type::Integer), None) => cel::Value::Int(number.as_f64().unwrap_or_default() as i64),
                _ => float(),
            }
        }
        Value::Array(items) => {
            let inner = schema.and_then(|schema| schema.items.as_deref());
            let items = items.iter().map(|item| cel_of(inner, item, inner.is_some_and(|inner| inner.embedded)));
            cel::Value::List(Arc::new(items.collect()))
        }
        Value::Object(fields) => {
            let named = schema.is_some_and(|schema| schema.additional.is_none());
            let mut map = HashMap::new();
            for (name, value) in fields {
                let inner = schema.and_then(|s| s.properties.get(name).or(s.additional.as_deref()));
                let key = if named { escaped(name) } else { name.clone() };
                let value = if root && name == "metadata" {
                    let seen = ["name", "generateName"].map(|one| Some((one.to_owned(), value.get(one)?.clone())));
                    cel_of(None, &Value::Object(seen.into_iter().flatten().collect()), false)
                } else {
                    cel_of(inner, value, inner.is_some_and(|inner| inner.embedded))
                };
                map.insert(key, value);
            }
            cel::Value::from(map)
        }
    }
}

/// The name of a field as rules write it: `a__dash__b` for `a-b`.
fn escaped(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    let name = name.replace("__", "__underscores__");
    name.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__")
}
