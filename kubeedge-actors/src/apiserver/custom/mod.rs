//! Custom kinds: what a `CustomResourceDefinition` says, compiled into what the generic code needs.
//!
//! - **Job**: from the JSON of a definition to a [`Definition`] with its [`Version`]s; decoding, pruning, defaulting,
//!   checking and printing their objects. All of it is pure; `controllers::definitions` makes kinds appear and vanish.
//! - **Stored**: nothing of its own. The definitions are objects like any other, and are compiled again at a start,
//!   before the objects of their kinds are read. One that cannot be compiled is logged; its kind is not served.
//! - **Bounds**: [`MAX_DEFINITIONS`] definitions, [`schema::MAX_NODES`] schemas a version, [`schema::MAX_DEPTH`] deep,
//!   [`rows::MAX_ROWS`] different sets of names in the life of the process.
//! - **Not done**: rules in CEL that use what [`rules`] does not evaluate are kept, which a warning says; conversion by
//!   webhook is refused.

use std::cmp::Reverse;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::kind::{DecodeError, Decoded, Kind};
use super::kinds::decode::decode;
use super::kinds::fields::{Errors, Path, list, text};
use super::kinds::time;
use super::object::{Key, Object};
use super::status::FieldError;
use super::table::Custom;
use jsonpath::JsonPath;
use rows::Names;
use schema::Schema;
use subresources::Scale;

mod formats;
mod jsonpath;
mod prune;
mod rows;
mod rules;
pub(crate) mod schema;
pub(crate) mod subresources;
#[cfg(test)]
mod tests;
mod validate;

/// Definitions at most.
pub(crate) const MAX_DEFINITIONS: usize = 500;
/// The group of definitions.
pub(crate) const GROUP: &str = "apiextensions.k8s.io";
/// The resource of definitions.
pub(crate) const PLURAL: &str = "customresourcedefinitions";
/// Holds a definition until the objects of its kind are gone.
pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

const METADATA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Rules that are named in a warning at most.
const MAX_WARNINGS: usize = 20;
/// Types of printer columns.
const COLUMN_TYPES: [&str; 5] = ["integer", "number", "string", "boolean", "date"];

/// Whether a kind is that of definitions.
pub(crate) fn is_definition(kind: &Kind) -> bool {
    kind.group == GROUP && kind.plural == PLURAL
}

/// A custom kind as it is served.
#[derive(Debug)]
pub(crate) struct Definition {
    /// Of the `CustomResourceDefinition`.
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) generation: i64,
    /// By preference, the best first; never empty.
    versions: Vec<Arc<Version>>,
    storage: usize,
}

/// One version of a custom kind.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) kind: &'static Kind,
    /// Changes with what clients are told of it, in hexadecimal.
    pub(crate) hash: String,
    /// The schema as it was sent, for clients.
    pub(crate) published: Value,
    served: bool,
    schema: Schema,
    columns: Vec<Column>,
    /// Where its `Scale` is, if it has one.
    pub(crate) scale: Option<Scale>,
    /// What lists can select by, beside name and namespace: `spec.color`.
    pub(crate) selectable: Vec<String>,
}

#[derive(Debug)]
struct Column {
    name: String,
    type_: String,
    format: String,
    description: String,
    priority: i64,
    path: JsonPath,
}

impl Definition {
    /// Compiles a definition under the names it asks for.
    pub(crate) fn compile(object: &Value) -> Result<Self, Vec<FieldError>> {
        Self::compile_as(object, &object["spec"]["names"])
    }

    fn compile_as(object: &Value, names: &Value) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let strings = |field: &str| -> Vec<String> {
            names[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut versions: Vec<(bool, Arc<Version>)> = Vec::new();
        for (index, version) in list(object, "/spec/versions").iter().enumerate() {
            let path = Path::new("spec").field("versions").index(index);
            let schema_path = path.field("schema").field("openAPIV3Schema");
            let published = version.pointer("/schema/openAPIV3Schema").cloned().unwrap_or(Value::Null);
            let schema = Schema::compile(&published, &schema_path, &mut errors);
            check_defaults(&schema, &schema_path, &mut errors);
            let columns = columns(version, &path, &mut errors);
            let scale = Scale::compile(version, &path, &mut errors);
            let selectable = subresources::selectable(version, &schema, &path, &mut errors);
            let names = Names {
                group: text(object, "/spec/group").to_owned(),
                version: text(version, "/name").to_owned(),
                kind: text(names, "/kind").to_owned(),
                plural: text(names, "/plural").to_owned(),
                singular: text(names, "/singular").to_owned(),
                short_names: strings("shortNames"),
                categories: strings("categories"),
                namespaced: text(object, "/spec/scope") == "Namespaced",
                status: version.pointer("/subresources/status").is_some_and(Value::is_object),
                scale: scale.is_some(),
            };
            let told = json!([text(object, "/metadata/uid"), names.told(), published, selectable]).to_string();
            let hash = digest(&SHA256, told.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
            let Some(kind) = rows::row(names) else {
                let why = format!("this server has seen {} different kinds: restart it", rows::MAX_ROWS);
                errors.forbidden(&path, why);
                continue;
            };
            let served = version["served"] == true;
            let version = Version { kind, hash, published, served, schema, columns, scale, selectable };
            versions.push((list(object, "/spec/versions")[index]["storage"] == true, Arc::new(version)));
        }
        versions.sort_by_key(|(_, version)| Reverse(priority(version.kind.version)));
        let Some(storage) = versions.iter().position(|(storage, _)| *storage) else {
            let why = "must have exactly one version marked as storage version";
            errors.invalid(&Path::new("spec").field("versions"), object["spec"]["versions"].clone(), why);
            return Err(errors.done());
        };
        let errors = errors.done();
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            name: text(object, "/metadata/name").to_owned(),
            uid: text(object, "/metadata/uid").to_owned(),
            generation: object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default(),
            versions: versions.into_iter().map(|(_, version)| version).collect(),
            storage,
        })
    }

    /// The version that is stored.
    pub(crate) fn storage(&self) -> &Arc<Version> {
        &self.versions[self.storage]
    }

    /// The versions that are served.
    pub(crate) fn served(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.versions.iter().filter(|version| version.served)
    }
}

/// Kubernetes' order of versions: `v2`, `v1`, `v1beta2`, `v1alpha1`, then the rest by name.
fn priority(version: &str) -> (u8, u64, u64, Reverse<String>) {
    let parsed = || {
        let rest = version.strip_prefix('v')?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..end].parse().ok()?;
        let (stage, minor) = match &rest[end..] {
            "" => (3, ""),
            tail => tail.strip_prefix("beta").map(|n| (2, n)).or(tail.strip_prefix("alpha").map(|n| (1, n)))?,
        };
        let minor = if minor.is_empty() { 0 } else { minor.parse().ok()? };
        Some((stage, major, minor))
    };
    let (stage, major, minor) = parsed().unwrap_or_default();
    (stage, major, minor, Reverse(version.to_owned()))
}

/// A default must be a value that the schema takes as it is.
fn check_defaults(schema: &Schema, path: &Path, errors: &mut Errors) {
    if let Some(default) = &schema.default {
        let mut whole = default.clone();
        prune::default(schema, &mut whole);
        let mut pruned = whole.clone();
        // The default of an object stands inside another: its own `metadata` is no more than a field.
        prune::prune(&wrapped(schema), &mut pruned);
        let at = path.field("default");
        if pruned != whole {
            errors.invalid(&at, default.clone(), "must not have unspecified fields");
        }
        for error in validate::validate(&wrapped(schema), &json!({"value": whole})) {
            errors.invalid(&at, default.clone(), error.to_string());
        }
    }
    for (name, inner) in &schema.properties {
        check_defaults(inner, &path.field("properties").key(name), errors);
    }
    if let Some(inner) = &schema.items {
        check_defaults(inner, &path.field("items"), errors);
    }
    if let Some(inner) = &schema.additional {
        check_defaults(inner, &path.field("additionalProperties"), errors);
    }
}

fn wrapped(schema: &Schema) -> Schema {
    Schema { properties: [("value".to_owned(), schema.clone())].into(), ..Schema::default() }
}

fn columns(version: &Value, path: &Path, errors: &mut Errors) -> Vec<Column> {
    let mut columns = Vec::new();
    for (index, column) in list(version, "/additionalPrinterColumns").iter().enumerate() {
        let path = path.field("additionalPrinterColumns").index(index);
        let (name, type_, json_path) = (text(column, "/name"), text(column, "/type"), text(column, "/jsonPath"));
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        }
        errors.one_of(&path.field("type"), type_, &COLUMN_TYPES);
        let description = match text(column, "/description") {
            "" => format!("Custom resource definition column (in JSONPath format): {json_path}"),
            text => text.to_owned(),
        };
        match JsonPath::parse(json_path) {
            Ok(path) => columns.push(Column {
                name: name.to_owned(),
                type_: type_.to_owned(),
                format: text(column, "/format").to_owned(),
                description,
                priority: column["priority"].as_i64().unwrap_or_default(),
                path,
            }),
            Err(why) => errors.invalid(&path.field("jsonPath"), json_path, why),
        }
    }
    if columns.is_empty()
        && let Ok(path) = JsonPath::parse(".metadata.creationTimestamp")
    {
        columns.push(Column {
            name: "Age".to_owned(),
            type_: "date".to_owned(),
            format: String::new(),
            description: "Time since creation".to_owned(),
            priority: 0,
            path,
        });
    }
    columns
}

impl Version {
    /// From the wire form to the stored form: metadata as for every kind, the rest by the schema.
    pub(crate) fn decode(&self, mut value: Value) -> Result<Decoded, DecodeError> {
        let Some(fields) = value.as_object_mut() else {
            return Err(DecodeError { message: format!("a {} must be a JSON object", self.kind.kind) });
        };
        let metadata = match fields.remove("metadata") {
            None | Some(Value::Null) => json!({}),
            Some(metadata) => metadata,
        };
        let decoded = decode(METADATA, metadata)?;
        fields.insert("metadata".to_owned(), decoded.object);
        let mut unknown_fields: Vec<String> =
            decoded.unknown_fields.iter().map(|path| format!("metadata.{path}")).collect();
        unknown_fields.extend(prune::prune(&self.schema, &mut value));
        Ok(Decoded { object: value, unknown_fields })
    }

    /// Sets defaults in place.
    pub(crate) fn default(&self, object: &mut Value) {
        prune::default(&self.schema, object);
    }

    /// What is wrong with an object, and with its coming after `old`. Rules are asked about what is right otherwise.
    pub(crate) fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let errors = validate::validate(&self.schema, object);
        if errors.is_empty() { rules::evaluate(&self.schema, object, old) } else { errors }
    }
}

impl Custom for Version {
    fn read(&self, object: &mut Value) {
        prune::prune(&self.schema, object);
        prune::default(&self.schema, object);
    }

    fn columns(&self) -> Vec<Value> {
        let name = json!({"name": "Name", "type": "string", "format": "name", "description": "Name of the object",
            "priority": 0});
        let of = |column: &Column| {
            json!({"name": column.name, "type": column.type_, "format": column.format,
                "description": column.description, "priority": column.priority})
        };
        std::iter::once(name).chain(self.columns.iter().map(of)).collect()
    }

    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let name = json!(text(object, "/metadata/name"));
        std::iter::once(name).chain(self.columns.iter().map(|column| column.cell(object, now))).collect()
    }
}

impl Column {
    fn cell(&self, object: &Value, now: i64) -> Value {
        let found = self.path.find(object);
        let Some(first) = found.first() else { return Value::Null };
        match self.type_.as_str() {
            "integer" => first.as_i64().or(first.as_f64().map(|number| number as i64)).map_or(Value::Null, Value::from),
            "number" => first.as_f64().map_or(Value::Null, Value::from),
            "boolean" => first.as_bool().map_or(Value::Null, Value::from),
            "date" => json!(time::age(first.as_str(), now)),
            _ => {
                let words: Vec<String> =
                    found.iter().map(|one| one.as_str().map_or(one.to_string(), str::to_owned)).collect();
                json!(words.join(" "))
            }
        }
    }
}

/// Of the objects that were read, the definitions whose kinds are served: compiled under the names they got.
pub(crate) fn established<'a>(
    read: impl Iterator<Item = (&'static Kind, &'a std::collections::BTreeMap<Key, Arc<Object>>)>,
) -> Vec<Arc<Definition>> {
    let mut all = Vec::new();
    for (kind, objects) in read.filter(|(kind, _)| is_definition(kind)) {
        for object in objects.values() {
            let value = object.value(kind);
            let established =
                list(&value, "/status/conditions").iter().any(|c| c["type"] == "Established" && c["status"] == "True");
            if !established {
                continue;
            }
            match Definition::compile_as(&value, &value["status"]["acceptedNames"]) {
                Ok(definition) => all.push(Arc::new(definition)),
                Err(errors) => {
                    let why = errors.first().map(ToString::to_string).unwrap_or_default();
                    tracing::error!(name = object.key.name, why, "a definition is damaged: its kind is not served");
                }
            }
        }
    }
    all
}

/// What a client should know of a definition it sends.
pub(crate) fn warnings(object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut open = vec![&object["spec"]["versions"]];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(fields) => {
                for rule in fields.get(rules::FIELD).and_then(Value::as_array).into_iter().flatten() {
                    if let Some(what) = rules::beyond(rule).filter(|_| warnings.len() < MAX_WARNINGS) {
                        let source = text(rule, "/rule");
                        warnings.push(format!("a rule is kept and not evaluated, for it uses {what}: {source}"));
                    }
                }
                open.extend(fields.values());
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    warnings
}
