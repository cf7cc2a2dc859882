//! `metadata`: what every kind has in common, checked with Kubernetes' own sentences.

use serde_json::{Map, Value};

use super::kinds::names::{dns_subdomain, label_value, qualified_name};
use super::object::text;
use super::status::{FieldCause, FieldError};

/// Bytes of keys and values of all annotations together.
const ANNOTATIONS_BYTES: usize = 256 << 10;
/// What a generated name keeps of its prefix: a DNS label of 63 without five random characters.
const GENERATED_PREFIX: usize = 58;
/// Finalizers that need no domain.
const STANDARD_FINALIZERS: [&str; 3] = ["foregroundDeletion", "orphan", "kubernetes"];
/// Characters of generated names: no vowels, nothing that looks like something else.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A name from `prefix` and five random characters, `random` giving numbers.
pub(crate) fn generated_name(prefix: &str, mut random: impl FnMut() -> u32) -> String {
    let end = (0..=GENERATED_PREFIX.min(prefix.len())).rev().find(|end| prefix.is_char_boundary(*end)).unwrap_or(0);
    let mut name = prefix[..end].to_owned();
    for _ in 0..5 {
        name.push(char::from(ALPHABET[random() as usize % ALPHABET.len()]));
    }
    name
}

fn invalid(errors: &mut Vec<FieldError>, field: &str, value: &str, reasons: Vec<String>) {
    errors.extend(reasons.into_iter().map(|why| FieldError::new(field, FieldCause::Invalid(value.into(), why))));
}

/// Checks the metadata of a new object. A kind with a narrower rule for names has it in its own checks.
pub(crate) fn validate(object: &Value) -> Vec<FieldError> {
    let meta = &object["metadata"];
    let mut errors = Vec::new();
    let generate = text(meta, "generateName");
    if !generate.is_empty() {
        // A prefix may end in a dash: something follows it.
        let whole = format!("{}a", generate.trim_end_matches('-'));
        invalid(&mut errors, "metadata.generateName", generate, dns_subdomain(&whole));
    }
    match text(meta, "name") {
        "" => {
            let why = "name or generateName is required";
            errors.push(FieldError::new("metadata.name", FieldCause::Required(why.into())));
        }
        name => invalid(&mut errors, "metadata.name", name, dns_subdomain(name)),
    }
    validate_common(meta, &mut errors);
    errors
}

fn validate_common(meta: &Value, errors: &mut Vec<FieldError>) {
    for (key, value) in entries(meta, "labels") {
        invalid(errors, "metadata.labels", key, qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        invalid(errors, "metadata.labels", value, label_value(value));
    }
    let mut bytes = 0;
    for (key, value) in entries(meta, "annotations") {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        invalid(errors, "metadata.annotations", key, qualified_name(&key.to_lowercase()));
    }
    if bytes > ANNOTATIONS_BYTES {
        errors.push(FieldError::new("metadata.annotations", FieldCause::TooLong(ANNOTATIONS_BYTES as u64)));
    }
    validate_owners(meta, errors);
    for finalizer in strings(meta, "finalizers") {
        let mut reasons = qualified_name(finalizer);
        if reasons.is_empty() && !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
            reasons.push("name is neither a standard finalizer name nor is it fully qualified".into());
        }
        invalid(errors, "metadata.finalizers", finalizer, reasons);
    }
}

fn validate_owners(meta: &Value, errors: &mut Vec<FieldError>) {
    let mut controller: Option<&str> = None;
    for (index, owner) in meta["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for member in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, member).is_empty() {
                let why = if member == "apiVersion" { "version must not be empty" } else { "must not be empty" };
                invalid(errors, &format!("metadata.ownerReferences[{index}].{member}"), "", vec![why.into()]);
            }
        }
        if owner["controller"] == Value::Bool(true) {
            let name = text(owner, "name");
            match controller {
                None => controller = Some(name),
                Some(first) => errors.push(FieldError::new(
                    "metadata.ownerReferences",
                    FieldCause::Invalid(
                        meta["ownerReferences"].clone(),
                        format!(
                            "Only one reference can have Controller set to true. Found \"true\" in references for \
                             {first} and {name}"
                        ),
                    ),
                )),
            }
        }
    }
}

/// Checks the metadata of a change of `old` into `new`; both already carry the server's own fields.
pub(crate) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let (new, old) = (&new["metadata"], &old["metadata"]);
    let mut errors = Vec::new();
    if old.get("deletionTimestamp").is_some() {
        let added: Vec<String> = strings(new, "finalizers")
            .filter(|one| !strings(old, "finalizers").any(|had| had == *one))
            .map(|one| Value::from(one).to_string())
            .collect();
        if !added.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            errors.push(FieldError::new("metadata.finalizers", FieldCause::Forbidden(why)));
        }
    }
    for member in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        if let Some(sent) = new.get(member).filter(|_| old.get(member).is_none()) {
            let why = "field is immutable; may only be changed via deletion";
            errors.push(FieldError::new(format!("metadata.{member}"), FieldCause::Invalid(sent.clone(), why.into())));
        }
    }
    validate_common(new, &mut errors);
    // Kubernetes checks metadata in the generic and again in the kind's own code: its answer has each cause twice.
    errors.extend(errors.clone());
    errors
}

fn entries<'a>(meta: &'a Value, member: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    meta.get(member).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

/// The strings of a list, none when it is missing.
pub(crate) fn strings<'a>(value: &'a Value, member: &str) -> impl Iterator<Item = &'a str> {
    value.get(member).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_generated_name_is_a_name_of_bounded_length(prefix in "[a-z]([a-z0-9-]{0,80})", seed: u32) {
            let mut state = seed;
            let name = generated_name(&prefix, || { state = state.wrapping_mul(1_664_525).wrapping_add(1); state });
            prop_assert_eq!(super::super::kinds::names::dns_label(&name), Vec::<String>::new());
        }
    }
}
