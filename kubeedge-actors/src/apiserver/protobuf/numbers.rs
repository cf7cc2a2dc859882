//! Which field of a message a number means.

use std::collections::HashMap;
use std::sync::OnceLock;

/// The table; types stand in the schemas.
const TABLE: &str = include_str!("numbers.tsv");

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Field {
    /// A field by its JSON name.
    Named(&'static str),
    /// A message whose fields JSON has among those of its owner: the definition of its numbers.
    Inline(&'static Message),
}

/// The numbers of one message.
pub(super) type Message = HashMap<u32, Entry>;

/// A line's entry, with names still to be looked up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Entry {
    Named(&'static str),
    Inline(&'static str),
}

fn all() -> &'static HashMap<&'static str, Message> {
    static ALL: OnceLock<HashMap<&'static str, Message>> = OnceLock::new();
    ALL.get_or_init(|| TABLE.lines().filter_map(line).collect())
}

fn line(line: &'static str) -> Option<(&'static str, Message)> {
    let (definition, fields) = line.split_once('\t')?;
    let entry = |field: &'static str| {
        let (name, number) = field.split_once('=')?;
        let entry = name.strip_prefix('*').map_or(Entry::Named(name), Entry::Inline);
        Some((number.parse().ok()?, entry))
    };
    Some((definition, fields.split(' ').filter_map(entry).collect()))
}

/// The numbers of a definition; `None` of one that the table does not have.
pub(super) fn of(definition: &str) -> Option<&'static Message> {
    all().get(definition)
}

/// What `number` means in a message of `definition`.
pub(super) fn field(definition: &str, message: &'static Message, number: u32) -> Option<Field> {
    match message.get(&number)? {
        Entry::Named(name) => Some(Field::Named(name)),
        Entry::Inline(name) => {
            // What is inlined is of the same group and version.
            let package = definition.rsplit_once('.').map_or("", |(package, _)| package);
            of(&format!("{package}.{name}")).map(Field::Inline)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::kinds::schema::{Schemas, definition};
    use crate::apiserver::{custom, kinds};

    #[test]
    fn every_line_of_the_table_is_read_whole() {
        for text in TABLE.lines().filter(|line| !line.starts_with('#')) {
            let (definition, message) = line(text).unwrap_or_else(|| panic!("{text}"));
            let fields = text.split_once('\t').map_or(0, |(_, fields)| fields.split(' ').count());
            assert_eq!(message.len(), fields, "{definition}");
            for number in message.keys() {
                assert!(field(definition, of(definition).unwrap(), *number).is_some(), "{definition} {number}");
            }
        }
    }

    /// Names are written as the schemas write them, and no field of a served kind is forgotten.
    #[test]
    fn numbers_and_schemas_name_the_same_fields() {
        let served = kinds::kinds().iter().filter(|kind| !custom::is_definition(kind)).map(definition);
        for name in served {
            assert!(of(&name).is_some(), "{name} has no numbers");
        }
        for one in &Schemas::get().structs {
            // Types that no body has: definitions come as JSON, and Go writes some messages in its own form.
            let Some(message) = of(&one.definition) else {
                let own = ["apiextensions", "FieldsV1", "Time", "Quantity", "IntOrString", "RawExtension"];
                let empty = one.fields.is_empty();
                assert!(empty || own.iter().any(|word| one.definition.contains(word)), "{}", one.definition);
                continue;
            };
            let mut names = Vec::new();
            let mut open = vec![message];
            while let Some(message) = open.pop() {
                for number in message.keys() {
                    match field(&one.definition, message, *number) {
                        Some(Field::Named(name)) => names.push(name),
                        Some(Field::Inline(inner)) => open.push(inner),
                        None => {}
                    }
                }
            }
            for field in one.fields.keys().filter(|field| !["apiVersion", "kind"].contains(&field.as_str())) {
                assert!(names.contains(&field.as_str()), "{} of {} has no number", field, one.definition);
            }
        }
    }
}
