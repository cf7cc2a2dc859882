//! A YAML text as a tree of values with their places.

use std::fmt::{self, Write as _};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{DuplicateKeyPolicy, Error, Spanned};

/// A place in a text: line and column, from 1.
pub(super) type Place = (u64, u64);

/// Reads a text, of one document.
pub(super) fn read(text: &str) -> Result<Spanned<Node>, Error> {
    read_as(text, DuplicateKeyPolicy::Error)
}

/// Where a value begins.
pub(super) fn place(value: &Spanned<Node>) -> Place {
    (value.referenced.line().max(1), value.referenced.column().max(1))
}

/// The path of the value that begins at `place`, such as `bolts[1].size`; otherwise that of the innermost mapping or
/// list around it. Of a text that is no YAML the last value before `place`, as far as what is before it can be read.
/// `None` is the whole document.
pub(super) fn at(text: &str, place: Place) -> Option<String> {
    let mut path = String::new();
    let read = |text| read_as(text, DuplicateKeyPolicy::FirstWins).ok();
    match read(text) {
        Some(document) => document.value.follow(place, false, &mut path),
        None => read(before(text, place))?.value.follow(place, true, &mut path),
    }
    Some(path).filter(|path| !path.is_empty())
}

fn read_as(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Spanned<Node>, Error> {
    let options = serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        // Kubernetes writes file modes as 0644.
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// What stands before a place.
fn before(text: &str, (line, column): Place) -> &str {
    let lines = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
    let start: usize = text.split_inclusive('\n').take(lines).map(str::len).sum();
    let columns = usize::try_from(column.saturating_sub(1)).unwrap_or(usize::MAX);
    let end = text[start..].char_indices().nth(columns).map_or(text.len(), |(index, _)| start + index);
    &text[..end]
}

/// A value, as YAML takes it that knows of no type.
pub(super) enum Node {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Node>>),
    Mapping(Vec<(String, Spanned<Node>)>),
}

impl Node {
    /// Takes the entries of these names out of a mapping.
    pub(super) fn take(&mut self, names: &[&str]) -> Vec<(String, Spanned<Self>)> {
        let Self::Mapping(entries) = self else { return vec![] };
        let (taken, left) = std::mem::take(entries).into_iter().partition(|(name, _)| names.contains(&name.as_str()));
        *entries = left;
        taken
    }

    /// Appends the steps to the last value that does not begin after `place`; into a scalar only where it begins, unless
    /// the text ends there.
    fn follow(&self, place: Place, ends: bool, path: &mut String) {
        let begin = |child: &Spanned<Self>| (child.referenced.line(), child.referenced.column());
        let before = |child: &Spanned<Self>| begin(child) <= place;
        let leads = |child: &Spanned<Self>| {
            ends || matches!(child.value, Self::List(_) | Self::Mapping(_)) || begin(child) == place
        };
        match self {
            Self::List(items) => {
                let Some(index) = items.iter().rposition(before).filter(|index| leads(&items[*index])) else { return };
                // A String takes everything.
                let _ = write!(path, "[{index}]");
                items[index].value.follow(place, ends, path);
            }
            Self::Mapping(entries) => {
                let last = entries.iter().rev().find(|(_, child)| before(child));
                let Some((key, child)) = last.filter(|(_, child)| leads(child)) else { return };
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
                child.value.follow(place, ends, path);
            }
            _ => {}
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Signed(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Unsigned(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Node, E> {
        Ok(Node::Text(String::from_utf8_lossy(value).into_owned()))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut mapping = Vec::new();
        while let Some(key) = entries.next_key()? {
            mapping.push((key, entries.next_value()?));
        }
        Ok(Node::Mapping(mapping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_named_by_its_place_and_what_is_around_it_otherwise() {
        let text = "a: 1\nb:\n  - c: x\n    d: [1, {e: y}]\n  - 2\nf:\n  g:\n    h: z\n";
        for (place, field) in [
            ((1, 4), Some("a")),
            ((1, 1), None),
            ((3, 5), Some("b[0]")),
            ((3, 8), Some("b[0].c")),
            ((4, 12), Some("b[0].d[1]")),
            ((4, 13), Some("b[0].d[1]")),
            ((4, 16), Some("b[0].d[1].e")),
            ((5, 5), Some("b[1]")),
            ((8, 8), Some("f.g.h")),
        ] {
            assert_eq!(at(text, place).as_deref(), field, "{place:?}");
        }
        assert_eq!(at("a: [", (1, 4)).as_deref(), Some("a"));
        assert_eq!(at("a:\n  b: 1\n  c: \"x\n", (3, 6)).as_deref(), Some("a.c"));
        assert_eq!(at("a: {b: [", (1, 8)), None);
        assert_eq!(at("ä: [", (7, 7)), None);
        assert_eq!(at("text", (1, 1)), None);
    }
}
