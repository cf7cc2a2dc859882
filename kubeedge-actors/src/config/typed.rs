//! A tree of YAML values as a type, with the fields that the type does not know. One reader for all types, which knows
//! where it is: a type's own code is small then, and a refusal says its field and place.

use std::{cell::RefCell, fmt, marker::PhantomData};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_saphyr::Spanned;

use super::node::{self, Node, Place};

/// What is wrong, and where.
#[derive(Debug)]
struct Refusal(Box<Wrong>);

#[derive(Debug)]
pub(super) struct Wrong {
    /// `None` until it is known, and for what is about the document.
    pub(super) at: Option<(Place, String)>,
    pub(super) problem: String,
}

impl Refusal {
    /// At this value, unless it is known to be at one within it.
    fn at(mut self, value: &Value<'_, '_>) -> Self {
        let at = || (node::place(value.node), value.path.to_string());
        self.0.at.get_or_insert_with(at);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.problem)
    }
}

impl std::error::Error for Refusal {}

impl Error for Refusal {
    fn custom<T: fmt::Display>(problem: T) -> Self {
        Self(Box::new(Wrong { at: None, problem: problem.to_string() }))
    }
}

fn expected<T>(what: &str) -> Result<T, Refusal> {
    Err(Refusal::custom(format_args!("expected {what}")))
}

/// Reads a document as a `T`, and the paths of its fields that mean nothing to it.
pub(super) fn read<'de, T: Deserialize<'de>>(
    text: &'de str,
    document: &'de Spanned<Node>,
) -> Result<(T, Vec<String>), Wrong> {
    let unknown = RefCell::new(Vec::new());
    let root = Value { text, node: document, path: Path::Document, unknown: &unknown };
    let value = root.read(PhantomData::<T>).map_err(|Refusal(wrong)| *wrong)?;
    Ok((value, unknown.into_inner()))
}

/// How a value is reached.
#[derive(Clone, Copy)]
enum Path<'a> {
    Document,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

/// As in `bolts[1].size`; as in `bolts.1.size` for `{:#}`.
impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self {
            Self::Document => return Ok(()),
            Self::Field(of, _) | Self::Item(of, _) => *of,
        };
        of.fmt(f)?;
        let dot = if matches!(of, Self::Document) { "" } else { "." };
        match self {
            Self::Field(_, name) => write!(f, "{dot}{name}"),
            Self::Item(_, index) if f.alternate() => write!(f, "{dot}{index}"),
            Self::Item(_, index) => write!(f, "[{index}]"),
            Self::Document => Ok(()),
        }
    }
}

/// A value to be read: where it stands and, for all of a document, which fields are unknown so far.
#[derive(Clone, Copy)]
struct Value<'de, 'p> {
    text: &'de str,
    node: &'de Spanned<Node>,
    path: Path<'p>,
    unknown: &'p RefCell<Vec<String>>,
}

impl<'de> Value<'de, '_> {
    fn inside<'p>(&'p self, node: &'de Spanned<Node>, step: impl FnOnce(&'p Path<'p>) -> Path<'p>) -> Value<'de, 'p> {
        Value { text: self.text, node, path: step(&self.path), unknown: self.unknown }
    }

    fn read<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Refusal> {
        seed.deserialize(self).map_err(|error| error.at(&self))
    }

    /// The text of a scalar as it is written: a text may look like a number.
    fn scalar(&self) -> Option<&'de str> {
        let node = self.node;
        match &node.value {
            Node::Text(text) => Some(text),
            Node::Bool(_) | Node::Signed(_) | Node::Unsigned(_) | Node::Float(_) => {
                // Where an alias stands for it, it is written elsewhere.
                let span = node.defined.span();
                let at = |number: Option<u64>| usize::try_from(number?).ok();
                let (from, length) = (at(span.byte_offset())?, at(span.byte_len())?);
                self.text.get(from..from.checked_add(length)?).map(str::trim)
            }
            Node::Null | Node::List(_) | Node::Mapping(_) => None,
        }
    }

    /// The value of a scalar that is to be a number or a truth: in quotes as well.
    fn unquoted<T>(&self, take: impl Fn(&Node) -> Option<T>) -> Option<T> {
        match &self.node.value {
            Node::Text(text) => take(&node::read(text).ok()?.value),
            other => take(other),
        }
    }

    fn whole<T: TryFrom<i64> + TryFrom<u64>>(&self) -> Option<T> {
        self.unquoted(|node| match node {
            Node::Signed(number) => T::try_from(*number).ok(),
            Node::Unsigned(number) => T::try_from(*number).ok(),
            _ => None,
        })
    }

    fn number(&self) -> Option<f64> {
        self.unquoted(|node| match node {
            Node::Signed(number) => Some(*number as f64),
            Node::Unsigned(number) => Some(*number as f64),
            Node::Float(number) => Some(*number),
            _ => None,
        })
    }
}

macro_rules! whole_numbers {
    ($($method:ident $visit:ident $type:ty)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
            match self.whole::<$type>() {
                Some(number) => visitor.$visit(number),
                None => expected(&format!("a whole number from {} to {}", <$type>::MIN, <$type>::MAX)),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Value<'de, '_> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match &self.node.value {
            Node::Null => visitor.visit_unit(),
            Node::Bool(value) => visitor.visit_bool(*value),
            Node::Signed(number) => visitor.visit_i64(*number),
            Node::Unsigned(number) => visitor.visit_u64(*number),
            Node::Float(number) => visitor.visit_f64(*number),
            Node::Text(text) => visitor.visit_borrowed_str(text),
            Node::List(items) => visitor.visit_seq(Items { list: &self, items: items.iter().enumerate() }),
            Node::Mapping(entries) => {
                visitor.visit_map(Entries { mapping: &self, entries: entries.iter(), next: None })
            }
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.unquoted(|node| if let Node::Bool(value) = node { Some(*value) } else { None }) {
            Some(value) => visitor.visit_bool(value),
            None => expected("true or false"),
        }
    }

    whole_numbers! {
        deserialize_i8 visit_i8 i8
        deserialize_i16 visit_i16 i16
        deserialize_i32 visit_i32 i32
        deserialize_i64 visit_i64 i64
        deserialize_u8 visit_u8 u8
        deserialize_u16 visit_u16 u16
        deserialize_u32 visit_u32 u32
        deserialize_u64 visit_u64 u64
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.number() {
            Some(number) => visitor.visit_f64(number),
            None => expected("a number"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.scalar() {
            Some(text) => visitor.visit_borrowed_str(text),
            None => expected("a text"),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.node.value {
            Node::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.node.value {
            Node::List(_) => self.deserialize_any(visitor),
            _ => expected("a list"),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.node.value {
            Node::Mapping(_) => self.deserialize_any(visitor),
            _ => expected("a mapping of names to values"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        match self.scalar() {
            Some(text) => visitor.visit_enum(text.into_deserializer()),
            None => expected("a text"),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        self.unknown.borrow_mut().push(format!("{:#}", self.path));
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

struct Items<'de, 'p> {
    list: &'p Value<'de, 'p>,
    items: std::iter::Enumerate<std::slice::Iter<'de, Spanned<Node>>>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Refusal;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refusal> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        self.list.inside(item, |list| Path::Item(list, index)).read(seed).map(Some)
    }
}

struct Entries<'de, 'p> {
    mapping: &'p Value<'de, 'p>,
    entries: std::slice::Iter<'de, (String, Spanned<Node>)>,
    next: Option<&'de (String, Spanned<Node>)>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Refusal;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refusal> {
        self.next = self.entries.next();
        self.next.map(|(key, _)| seed.deserialize(key.as_str().into_deserializer())).transpose()
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Refusal> {
        let Some((key, value)) = self.next.take() else { return expected("a name before its value") };
        self.mapping.inside(value, |mapping| Path::Field(mapping, key)).read(seed)
    }
}
