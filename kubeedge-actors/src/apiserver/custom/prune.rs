//! Pruning and defaulting: what a schema takes from an object and what it puts in. Both settle at once: doing either
//! again changes nothing.

use serde_json::{Map, Value};

use super::schema::Schema;

/// How many removed fields are reported by name; the rest goes all the same.
const REPORTED: usize = 100;

/// Fields that an object of its own always has.
const OWN: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Removes what the schema does not know and reports the paths. `apiVersion`, `kind` and `metadata` of the root stay.
pub(crate) fn prune(schema: &Schema, object: &mut Value) -> Vec<String> {
    let mut removed = Vec::new();
    walk(schema, object, "", true, &mut removed);
    removed
}

fn walk(schema: &Schema, value: &mut Value, path: &str, own: bool, removed: &mut Vec<String>) {
    match value {
        Value::Object(fields) => object(schema, fields, path, own, removed),
        Value::Array(items) => {
            if let Some(inner) = &schema.items {
                for (index, item) in items.iter_mut().enumerate() {
                    walk(inner, item, &format!("{path}[{index}]"), inner.embedded, removed);
                }
            }
        }
        _ => {}
    }
}

fn object(schema: &Schema, fields: &mut Map<String, Value>, path: &str, own: bool, removed: &mut Vec<String>) {
    let at = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let known = |name: &str| {
        schema.preserve_unknown
            || schema.additional.is_some()
            || schema.properties.contains_key(name)
            || (own && OWN.contains(&name))
    };
    fields.retain(|name, _| {
        let keep = known(name);
        if !keep && removed.len() < REPORTED {
            removed.push(at(name));
        }
        keep
    });
    for (name, value) in fields {
        if own && OWN.contains(&name.as_str()) {
            continue;
        }
        if let Some(inner) = schema.properties.get(name).or(schema.additional.as_deref()) {
            walk(inner, value, &at(name), inner.embedded, removed);
        }
    }
}

/// Puts in the defaults, and takes out `null` where it is no value.
pub(crate) fn default(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in &schema.properties {
                if !inner.nullable && fields.get(name).is_some_and(Value::is_null) {
                    fields.remove(name);
                }
                if let Some(default) = &inner.default
                    && !fields.contains_key(name)
                {
                    fields.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in fields {
                if let Some(inner) = schema.properties.get(name).or(schema.additional.as_deref()) {
                    if let Some(default) = &inner.default
                        && value.is_null()
                        && !inner.nullable
                    {
                        *value = default.clone();
                    }
                    self::default(inner, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = &schema.items {
                for item in items {
                    if let Some(default) = &inner.default
                        && item.is_null()
                        && !inner.nullable
                    {
                        *item = default.clone();
                    }
                    self::default(inner, item);
                }
            }
        }
        _ => {}
    }
}
