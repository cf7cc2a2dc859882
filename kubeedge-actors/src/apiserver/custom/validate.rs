//! What is wrong with an object, in Kubernetes' words.

use std::collections::HashSet;

use serde_json::Value;

use super::formats;
use super::schema::{Bound, ListType, Schema, Type};
use crate::apiserver::kinds::fields::MAX_ERRORS;
use crate::apiserver::status::{FieldCause, FieldError};

/// Fields of an object of its own, which the generic code checks.
const OWN: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// What is wrong with the object; at most [`MAX_ERRORS`] are collected.
pub(crate) fn validate(schema: &Schema, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    value(schema, object, "", &mut errors);
    errors
}

fn add(errors: &mut Vec<FieldError>, path: &str, cause: FieldCause) {
    if errors.len() < MAX_ERRORS {
        errors.push(FieldError::new(path, cause));
    }
}

fn invalid(errors: &mut Vec<FieldError>, path: &str, value: &Value, why: String) {
    add(errors, path, FieldCause::Invalid(value.clone(), format!("{path} in body {why}")));
}

fn value(schema: &Schema, found: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if errors.len() >= MAX_ERRORS {
        return;
    }
    if found.is_null() && schema.nullable {
        return;
    }
    if !has_type(schema, found) {
        let wanted = if schema.int_or_string { "integer,string" } else { schema.type_.map_or("", Type::name) };
        let name = name_of(found);
        let why = format!("{path} in body must be of type {wanted}: \"{name}\"");
        return add(errors, path, FieldCause::TypeInvalid(name.into(), why));
    }
    match found {
        Value::Object(_) => object(schema, found, path, errors),
        Value::Array(items) => list(schema, found, items, path, errors),
        Value::String(text) => string(schema, found, text, path, errors),
        Value::Number(_) => number(schema, found, path, errors),
        _ => {}
    }
    let checks = &schema.checks;
    if !checks.choices.is_empty() && !checks.choices.iter().any(|choice| same(choice, found)) {
        let supported = checks.choices.iter().map(|one| one.as_str().map_or(one.to_string(), str::to_owned)).collect();
        add(errors, path, FieldCause::NotSupported(found.clone(), supported));
    }
    junctors(schema, found, path, errors);
}

fn has_type(schema: &Schema, found: &Value) -> bool {
    if schema.int_or_string {
        return found.is_string() || is_integer(found);
    }
    match schema.type_ {
        None => true,
        Some(Type::Object) => found.is_object(),
        Some(Type::Array) => found.is_array(),
        Some(Type::String) => found.is_string(),
        Some(Type::Integer) => is_integer(found),
        Some(Type::Number) => found.is_number(),
        Some(Type::Boolean) => found.is_boolean(),
    }
}

/// `1.0` is an integer too.
fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Numbers are the same when their values are.
fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && b.is_number() && a.as_f64() == b.as_f64())
}

fn object(schema: &Schema, found: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(fields) = found.as_object() else { return };
    let at = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let checks = &schema.checks;
    let count = fields.len() as u64;
    if let Some(least) = checks.min_properties.filter(|least| count < *least) {
        invalid(errors, path, found, format!("should have at least {least} properties"));
    }
    if let Some(most) = checks.max_properties.filter(|most| count > *most) {
        add(errors, path, FieldCause::TooMany(count, most));
    }
    for name in schema.required.iter().filter(|name| !fields.contains_key(*name)) {
        add(errors, &at(name), FieldCause::Required(String::new()));
    }
    if schema.embedded {
        for name in ["apiVersion", "kind"] {
            if fields.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
                add(errors, &at(name), FieldCause::Required("must not be empty".into()));
            }
        }
    }
    for (name, inner) in fields {
        let root = path.is_empty() || schema.embedded;
        if root && OWN.contains(&name.as_str()) {
            continue;
        }
        if let Some(schema) = schema.properties.get(name).or(schema.additional.as_deref()) {
            value(schema, inner, &at(name), errors);
        }
    }
}

fn list(schema: &Schema, found: &Value, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let checks = &schema.checks;
    let count = items.len() as u64;
    if let Some(least) = checks.min_items.filter(|least| count < *least) {
        invalid(errors, path, found, format!("should have at least {least} items"));
    }
    if let Some(most) = checks.max_items.filter(|most| count > *most) {
        add(errors, path, FieldCause::TooMany(count, most));
    }
    if let Some(inner) = &schema.items {
        for (index, item) in items.iter().enumerate() {
            value(inner, item, &format!("{path}[{index}]"), errors);
        }
    }
    let mut seen = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let identity = match &schema.list_type {
            ListType::Atomic => return,
            ListType::Set => item.clone(),
            ListType::Map(keys) => {
                let of = |key: &String| Some((key.clone(), item.get(key)?.clone()));
                Value::Object(keys.iter().filter_map(of).collect())
            }
        };
        if !seen.insert(identity.to_string()) {
            add(errors, &format!("{path}[{index}]"), FieldCause::Duplicate(identity));
        }
    }
}

fn string(schema: &Schema, found: &Value, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let checks = &schema.checks;
    let length = text.chars().count() as u64;
    if let Some(most) = checks.max_length.filter(|most| length > *most) {
        add(errors, path, FieldCause::TooLong(most));
    }
    if let Some(least) = checks.min_length.filter(|least| length < *least) {
        invalid(errors, path, found, format!("should be at least {least} chars long"));
    }
    if let Some(pattern) = checks.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
        invalid(errors, path, found, format!("should match '{}'", pattern.as_str()));
    }
    if !formats::accepts(&checks.format, text) {
        let why = format!("{path} in body must be of type {}: {found}", checks.format);
        add(errors, path, FieldCause::TypeInvalid(found.clone(), why));
    }
}

fn number(schema: &Schema, found: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let checks = &schema.checks;
    if let Some(Bound { value, exclusive }) = &checks.minimum {
        let order = compare(found, value);
        if order.is_lt() || (*exclusive && order.is_eq()) {
            let than = if *exclusive { "greater than" } else { "greater than or equal to" };
            invalid(errors, path, found, format!("should be {than} {}", plain(value)));
        }
    }
    if let Some(Bound { value, exclusive }) = &checks.maximum {
        let order = compare(found, value);
        if order.is_gt() || (*exclusive && order.is_eq()) {
            let than = if *exclusive { "less than" } else { "less than or equal to" };
            invalid(errors, path, found, format!("should be {than} {}", plain(value)));
        }
    }
    if let Some(step) = &checks.multiple_of
        && !is_multiple(found, step)
    {
        invalid(errors, path, found, format!("should be a multiple of {}", plain(step)));
    }
}

fn compare(a: &Value, b: &Value) -> std::cmp::Ordering {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.as_f64().unwrap_or_default().total_cmp(&b.as_f64().unwrap_or_default()),
    }
}

fn is_multiple(value: &Value, step: &Value) -> bool {
    match (value.as_i64(), step.as_i64()) {
        (Some(value), Some(step)) => step == 0 || value.checked_rem(step).is_none_or(|rest| rest == 0),
        _ => {
            let times = value.as_f64().unwrap_or_default() / step.as_f64().unwrap_or(1.0);
            (times - times.round()).abs() < 1e-9
        }
    }
}

/// `10` for `10.0`.
fn plain(value: &Value) -> String {
    value.as_f64().map_or_else(String::new, |number| number.to_string())
}

fn junctors(schema: &Schema, found: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let holds = |one: &Schema| {
        let mut inner = Vec::new();
        value(one, found, path, &mut inner);
        inner.is_empty()
    };
    let checks = &schema.checks;
    if !checks.any_of.is_empty() && !checks.any_of.iter().any(holds) {
        invalid(errors, path, found, "must validate at least one schema (anyOf)".into());
    }
    if !checks.one_of.is_empty() {
        let valid = checks.one_of.iter().filter(|one| holds(one)).count();
        if valid != 1 {
            let how =
                if valid == 0 { "Found none valid".to_owned() } else { format!("Found {valid} valid alternatives") };
            invalid(errors, path, found, format!("must validate one and only one schema (oneOf). {how}"));
        }
    }
    for one in &checks.all_of {
        value(one, found, path, errors);
    }
    if checks.not.as_deref().is_some_and(holds) {
        invalid(errors, path, found, "must not validate the schema (not)".into());
    }
}
