//! Which field stands at a place of a YAML text: for messages.

use std::fmt::{self, Write as _};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// A place in a text: line and column, from 1.
type Place = (u64, u64);

/// The path of the value that begins at `place`, such as `bolts[1].size`; otherwise that of the innermost mapping or
/// list around it. Of a text that is no YAML the last value before `place`, as far as what is before it can be read.
/// `None` is the whole document.
pub(super) fn at(text: &str, place: Place) -> Option<String> {
    let mut path = String::new();
    match read(text) {
        Some(document) => document.follow(place, false, &mut path),
        None => read(before(text, place))?.follow(place, true, &mut path),
    }
    Some(path).filter(|path| !path.is_empty())
}

fn read(text: &str) -> Option<Node> {
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::FirstWins,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).ok()
}

/// What stands before a place.
fn before(text: &str, (line, column): Place) -> &str {
    let lines = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
    let start: usize = text.split_inclusive('\n').take(lines).map(str::len).sum();
    let columns = usize::try_from(column.saturating_sub(1)).unwrap_or(usize::MAX);
    let end = text[start..].char_indices().nth(columns).map_or(text.len(), |(index, _)| start + index);
    &text[..end]
}

/// The structure of a document, with the place of each value.
enum Node {
    Scalar,
    List(Vec<Spanned<Node>>),
    Mapping(Vec<(String, Spanned<Node>)>),
}

impl Node {
    /// Appends the steps to the last value that does not begin after `place`; into a scalar only where it begins, unless
    /// the text ends there.
    fn follow(&self, place: Place, ends: bool, path: &mut String) {
        let begin = |child: &Spanned<Self>| (child.referenced.line(), child.referenced.column());
        let before = |child: &Spanned<Self>| begin(child) <= place;
        let leads = |child: &Spanned<Self>| ends || !matches!(child.value, Self::Scalar) || begin(child) == place;
        match self {
            Self::Scalar => {}
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

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
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
