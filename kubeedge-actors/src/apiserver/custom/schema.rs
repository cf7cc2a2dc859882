//! The schema of a version of a custom kind, compiled once when its definition is taken, so that checking an object
//! needs no look at the definition again.
//!
//! Only structural schemas are taken: every value has a type, and `allOf`, `anyOf`, `oneOf` and `not` only add checks.

use std::collections::BTreeMap;

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::rules::{self, Rule};
use crate::apiserver::kinds::fields::{Errors, Path};

/// Schemas inside each other at most.
pub(crate) const MAX_DEPTH: usize = 48;
/// Schemas in one version at most.
pub(crate) const MAX_NODES: usize = 20_000;
/// Patterns in one version at most.
const MAX_PATTERNS: usize = 500;
/// Bytes of one compiled pattern at most.
const MAX_PATTERN_BYTES: usize = 256 << 10;

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl Type {
    const ALL: [Self; 6] = [Self::Object, Self::Array, Self::String, Self::Integer, Self::Number, Self::Boolean];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// What a list is to those who merge it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// A lower or upper bound of a number.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) value: Value,
    pub(crate) exclusive: bool,
}

/// What is asked of a value beside its type.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checks {
    pub(crate) choices: Vec<Value>,
    pub(crate) minimum: Option<Bound>,
    pub(crate) maximum: Option<Bound>,
    pub(crate) multiple_of: Option<Value>,
    pub(crate) min_length: Option<u64>,
    pub(crate) max_length: Option<u64>,
    pub(crate) pattern: Option<Regex>,
    pub(crate) format: String,
    pub(crate) min_items: Option<u64>,
    pub(crate) max_items: Option<u64>,
    pub(crate) min_properties: Option<u64>,
    pub(crate) max_properties: Option<u64>,
    pub(crate) all_of: Vec<Schema>,
    pub(crate) any_of: Vec<Schema>,
    pub(crate) one_of: Vec<Schema>,
    pub(crate) not: Option<Box<Schema>>,
}

/// One schema and those inside it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Schema {
    /// `None` where anything goes.
    pub(crate) type_: Option<Type>,
    pub(crate) nullable: bool,
    pub(crate) int_or_string: bool,
    pub(crate) preserve_unknown: bool,
    pub(crate) embedded: bool,
    pub(crate) default: Option<Value>,
    pub(crate) properties: BTreeMap<String, Schema>,
    /// Values of keys that `properties` does not name.
    pub(crate) additional: Option<Box<Schema>>,
    pub(crate) items: Option<Box<Schema>>,
    pub(crate) required: Vec<String>,
    pub(crate) list_type: ListType,
    pub(crate) checks: Checks,
    pub(crate) rules: Vec<Rule>,
    /// Whether there are rules here or anywhere inside.
    pub(crate) ruled: bool,
}

impl Schema {
    /// Compiles a schema that stands at `path`; what is wrong with it goes to `errors`, and the rest is still read.
    pub(crate) fn compile(value: &Value, path: &Path, errors: &mut Errors) -> Self {
        let mut compiler = Compiler { errors, nodes: 0, patterns: 0 };
        let schema = compiler.schema(value, path, Place::Root, 0);
        if compiler.nodes > MAX_NODES {
            compiler.errors.invalid(path, compiler.nodes, format!("must not hold more than {MAX_NODES} schemas"));
        }
        if compiler.patterns > MAX_PATTERNS {
            compiler.errors.invalid(
                path,
                compiler.patterns,
                format!("must not hold more than {MAX_PATTERNS} patterns"),
            );
        }
        schema
    }

    /// Keeps what it does not know.
    pub(crate) fn open() -> Self {
        Self { preserve_unknown: true, ..Self::default() }
    }
}

/// Where a schema stands, which says what it must have.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Root,
    Field,
    Items,
    /// In `allOf` and the like, where only checks may stand.
    Junctor,
}

struct Compiler<'a> {
    errors: &'a mut Errors,
    nodes: usize,
    patterns: usize,
}

impl Compiler<'_> {
    fn schema(&mut self, value: &Value, path: &Path, place: Place, depth: usize) -> Schema {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Schema::default();
        }
        if depth > MAX_DEPTH {
            self.errors.invalid(path, depth, format!("schemas must not stand more than {MAX_DEPTH} inside each other"));
            return Schema::default();
        }
        let Some(fields) = value.as_object() else {
            self.errors.invalid(path, value.clone(), "must be a schema object");
            return Schema::default();
        };
        let flag = |name: &str| fields.get(name) == Some(&Value::Bool(true));
        let mut schema = Schema {
            type_: self.type_of(fields, path),
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            default: fields.get("default").filter(|default| !default.is_null()).cloned(),
            required: strings(fields, "required"),
            ..Schema::default()
        };
        self.structural(&schema, fields, path, place);
        for (name, property) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let inner = if place == Place::Junctor { place } else { Place::Field };
            let property = self.schema(property, &path.field("properties").key(name), inner, depth + 1);
            schema.properties.insert(name.clone(), property);
        }
        let inner_items = if place == Place::Junctor { place } else { Place::Items };
        if let Some(items) = fields.get("items").filter(|items| !items.is_null()) {
            schema.items = Some(Box::new(self.schema(items, &path.field("items"), inner_items, depth + 1)));
        }
        schema.additional = match fields.get("additionalProperties") {
            None | Some(Value::Null | Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(Box::new(Schema::open())),
            Some(additional) => {
                let place = if place == Place::Junctor { place } else { Place::Field };
                let additional = self.schema(additional, &path.field("additionalProperties"), place, depth + 1);
                Some(Box::new(additional))
            }
        };
        schema.list_type = self.list_type(fields, path);
        schema.checks = self.checks(fields, path, depth);
        if place != Place::Junctor {
            schema.rules = rules::compile(fields, path, self.errors);
        }
        let inside = schema.properties.values().chain(schema.items.as_deref()).chain(schema.additional.as_deref());
        schema.ruled = !schema.rules.is_empty() || inside.into_iter().any(|inner| inner.ruled);
        schema
    }

    fn type_of(&mut self, fields: &Map<String, Value>, path: &Path) -> Option<Type> {
        let name = fields.get("type").and_then(Value::as_str).filter(|name| !name.is_empty())?;
        let found = Type::ALL.into_iter().find(|type_| type_.name() == name);
        if found.is_none() {
            let mut names = Type::ALL.map(Type::name);
            names.sort_unstable();
            self.errors.one_of(&path.field("type"), name, &names);
        }
        found
    }

    /// What makes a schema structural.
    fn structural(&mut self, schema: &Schema, fields: &Map<String, Value>, path: &Path, place: Place) {
        let typeless = schema.type_.is_none();
        match place {
            Place::Junctor => {
                let only_here = [
                    "default",
                    "nullable",
                    "additionalProperties",
                    "x-kubernetes-preserve-unknown-fields",
                    "x-kubernetes-embedded-resource",
                    "x-kubernetes-int-or-string",
                    "x-kubernetes-list-type",
                    rules::FIELD,
                ];
                for name in only_here.into_iter().filter(|name| fields.contains_key(*name)) {
                    self.errors.forbidden(&path.field(name), "must be undefined to be structural");
                }
                return;
            }
            Place::Root if typeless => {
                self.errors.required(&path.field("type"), "must not be empty at the root");
            }
            Place::Root if schema.type_ != Some(Type::Object) => {
                let name = schema.type_.map_or("", Type::name);
                self.errors.invalid(&path.field("type"), name, "must be object at the root");
            }
            Place::Field if typeless && !schema.int_or_string && !schema.preserve_unknown => {
                self.errors.required(&path.field("type"), "must not be empty for specified object fields");
            }
            Place::Items if typeless && !schema.int_or_string && !schema.preserve_unknown => {
                self.errors.required(&path.field("type"), "must not be empty for specified array items");
            }
            _ => {}
        }
        if schema.int_or_string && !typeless {
            let why = "must be empty if x-kubernetes-int-or-string is true";
            self.errors.invalid(&path.field("type"), schema.type_.map_or("", Type::name), why);
        }
        if schema.embedded && schema.type_ != Some(Type::Object) {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            self.errors.invalid(&path.field("type"), schema.type_.map_or("", Type::name), why);
        }
        if schema.type_ == Some(Type::Array) && fields.get("items").is_none_or(Value::is_null) {
            self.errors.required(&path.field("items"), "must be specified");
        }
        let has = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
        if has("properties") && has("additionalProperties") {
            self.errors.forbidden(
                &path.field("additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            );
        }
        if fields.get("uniqueItems") == Some(&Value::Bool(true)) {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.errors.forbidden(&path.field("uniqueItems"), why);
        }
        for name in ["$ref", "definitions", "dependencies", "patternProperties", "additionalItems", "id"] {
            if has(name) {
                self.errors.forbidden(&path.field(name), format!("{name} is not supported"));
            }
        }
    }

    fn list_type(&mut self, fields: &Map<String, Value>, path: &Path) -> ListType {
        let keys = strings(fields, "x-kubernetes-list-map-keys");
        match fields.get("x-kubernetes-list-type").and_then(Value::as_str) {
            None | Some("atomic") => ListType::Atomic,
            Some("set") => ListType::Set,
            Some("map") => {
                if keys.is_empty() {
                    let why = "must not be empty if x-kubernetes-list-type is map";
                    self.errors.required(&path.field("x-kubernetes-list-map-keys"), why);
                }
                let known = fields.get("items").and_then(|items| items.get("properties")).and_then(Value::as_object);
                for key in &keys {
                    if !known.is_some_and(|known| known.contains_key(key)) {
                        let why = "entries must all be names of item properties";
                        self.errors.invalid(&path.field("x-kubernetes-list-map-keys"), key.as_str(), why);
                    }
                }
                ListType::Map(keys)
            }
            Some(other) => {
                self.errors.one_of(&path.field("x-kubernetes-list-type"), other, &["atomic", "map", "set"]);
                ListType::Atomic
            }
        }
    }

    fn checks(&mut self, fields: &Map<String, Value>, path: &Path, depth: usize) -> Checks {
        let count = |name: &str| fields.get(name).and_then(Value::as_u64);
        let bound = |name: &str, exclusive: &str| {
            let value = fields.get(name).filter(|value| value.is_number())?.clone();
            Some(Bound { value, exclusive: fields.get(exclusive) == Some(&Value::Bool(true)) })
        };
        let multiple_of = fields.get("multipleOf").filter(|value| value.is_number()).cloned();
        if let Some(value) = multiple_of.as_ref().filter(|value| value.as_f64().is_none_or(|number| number <= 0.0)) {
            self.errors.invalid(&path.field("multipleOf"), value.clone(), "must be greater than 0");
        }
        let pattern = fields.get("pattern").and_then(Value::as_str).filter(|pattern| !pattern.is_empty());
        let mut schemas = |name: &str| {
            let list = fields.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let path = path.field(name);
            let each = list.iter().enumerate();
            each.map(|(i, one)| self.schema(one, &path.index(i), Place::Junctor, depth + 1)).collect::<Vec<_>>()
        };
        let (all_of, any_of, one_of) = (schemas("allOf"), schemas("anyOf"), schemas("oneOf"));
        let not = fields.get("not").filter(|not| not.is_object());
        let not = not.map(|not| Box::new(self.schema(not, &path.field("not"), Place::Junctor, depth + 1)));
        Checks {
            choices: fields.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of,
            min_length: count("minLength"),
            max_length: count("maxLength"),
            pattern: pattern.and_then(|pattern| self.pattern(pattern, path)),
            format: fields.get("format").and_then(Value::as_str).unwrap_or_default().to_owned(),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            all_of,
            any_of,
            one_of,
            not,
        }
    }

    fn pattern(&mut self, pattern: &str, path: &Path) -> Option<Regex> {
        self.patterns += 1;
        if self.patterns > MAX_PATTERNS {
            return None;
        }
        match RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES).build() {
            Ok(compiled) => Some(compiled),
            Err(error) => {
                let why = format!("must be a valid regular expression, but isn't: {error}");
                self.errors.invalid(&path.field("pattern"), pattern, why);
                None
            }
        }
    }
}

fn strings(fields: &Map<String, Value>, name: &str) -> Vec<String> {
    let list = fields.get(name).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}
