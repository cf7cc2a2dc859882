//! The shape of every served type, compiled once from the JSON schemas of `k8s-openapi` into a small tree.
//!
//! The schemas carry their documentation (some 300 KB); the tree keeps only names and types and lives as long as
//! the process.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenRequest, TokenReview};
use k8s_openapi::api::authorization::v1 as authorization;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema as _, Schema, SchemaGenerator};
use serde_json::{Map, Value};

use crate::apiserver::kind::Kind;

/// Where schema definitions of a document stand; also the prefix of every reference between them.
pub(crate) const DEFINITIONS: &str = "/components/schemas";

/// What a value may be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Type {
    /// A named struct: an index into [`Schemas::structs`].
    Struct(usize),
    List(Box<Type>),
    Map(Box<Type>),
    String,
    /// Base64 on the wire.
    Bytes,
    Bool,
    Int32,
    Int64,
    Float,
    /// RFC 3339, whole seconds.
    Time,
    /// RFC 3339 with exactly six fractional digits.
    MicroTime,
    Quantity,
    IntOrString,
    /// Kept as it is (`fieldsV1`).
    Any,
}

/// One struct of the API.
#[derive(Debug)]
pub(crate) struct Struct {
    /// Name of the definition, e.g. `io.k8s.api.core.v1.Container`.
    pub(crate) definition: String,
    /// Go's name, e.g. `Container`.
    pub(crate) name: String,
    /// The package as Go prints it in front of a type, e.g. `v1`.
    pub(crate) package: String,
    pub(crate) fields: BTreeMap<String, Field>,
}

/// One field of a struct.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) type_: Type,
    /// Whether the schema requires it, which is where Go writes the zero value instead of leaving it out.
    pub(crate) required: bool,
}

/// All structs reachable from the served kinds.
#[derive(Debug)]
pub(crate) struct Schemas {
    pub(crate) structs: Vec<Struct>,
    by_name: BTreeMap<String, usize>,
}

impl Schemas {
    /// The compiled schemas, built at the first call (12 ms in a debug build).
    pub(crate) fn get() -> &'static Self {
        static SCHEMAS: OnceLock<Schemas> = OnceLock::new();
        SCHEMAS.get_or_init(|| Self::compile(&definitions()))
    }

    /// The struct of a definition, e.g. `io.k8s.api.core.v1.Pod`.
    pub(crate) fn struct_type(&self, definition: &str) -> Option<Type> {
        self.by_name.get(definition).map(|index| Type::Struct(*index))
    }

    /// The struct at `index`, which only [`Type::Struct`] holds.
    pub(crate) fn at(&self, index: usize) -> &Struct {
        &self.structs[index]
    }

    fn compile(definitions: &Map<String, Value>) -> Self {
        // Definitions without properties are scalars with a name (Time, Quantity, FieldsV1): no struct of their own.
        let by_name: BTreeMap<String, usize> = definitions
            .iter()
            .filter(|(_, schema)| schema.get("properties").is_some())
            .enumerate()
            .map(|(index, (name, _))| (name.clone(), index))
            .collect();
        let structs = definitions
            .iter()
            .filter_map(|(name, schema)| {
                let properties = schema.get("properties")?.as_object()?;
                let required = |field: &str| {
                    schema.get("required").and_then(Value::as_array).is_some_and(|all| all.iter().any(|r| r == field))
                };
                let fields = properties
                    .iter()
                    .map(|(field, schema)| {
                        let type_ = type_of(schema, &by_name);
                        (field.clone(), Field { type_, required: required(field) })
                    })
                    .collect();
                let mut parts = name.rsplit('.');
                let short = parts.next().unwrap_or_default().to_owned();
                let package = parts.next().unwrap_or_default().to_owned();
                Some(Struct { definition: name.clone(), name: short, package, fields })
            })
            .collect();
        Self { structs, by_name }
    }
}

/// The definition of a kind's schema, e.g. `io.k8s.api.core.v1.Pod`, or `io.kubeedge.devices.v1beta1.Device` of a
/// custom kind.
pub(crate) fn definition(kind: &Kind) -> String {
    if super::find(kind.group, kind.version, kind.plural).is_none() {
        let domain: Vec<&str> = kind.group.rsplit('.').collect();
        return format!("{}.{}.{}", domain.join("."), kind.version, kind.kind);
    }
    if kind.group == crate::apiserver::custom::GROUP {
        return CustomResourceDefinition::schema_name().into_owned();
    }
    own_name(kind.group, kind.version, kind.kind)
}

/// The definition of one of Kubernetes' own types, e.g. `io.k8s.api.authentication.v1.TokenReview`.
pub(crate) fn own_name(group: &str, version: &str, kind: &str) -> String {
    let group = match group.split('.').next() {
        Some("") | None => "core",
        Some(group) => group,
    };
    format!("io.k8s.api.{group}.{version}.{kind}")
}

/// The schemas as `k8s-openapi` gives them, documentation included, by definition name.
pub(crate) fn definitions() -> Map<String, Value> {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = DEFINITIONS.into();
    let mut generator = SchemaGenerator::new(settings);
    let all: [fn(&mut SchemaGenerator) -> Schema; 31] = [
        SchemaGenerator::subschema_for::<core::Namespace>,
        SchemaGenerator::subschema_for::<core::Node>,
        SchemaGenerator::subschema_for::<core::Pod>,
        SchemaGenerator::subschema_for::<core::PersistentVolume>,
        SchemaGenerator::subschema_for::<core::PersistentVolumeClaim>,
        SchemaGenerator::subschema_for::<core::ConfigMap>,
        SchemaGenerator::subschema_for::<core::Secret>,
        SchemaGenerator::subschema_for::<core::ServiceAccount>,
        SchemaGenerator::subschema_for::<events::Event>,
        SchemaGenerator::subschema_for::<core::Endpoints>,
        SchemaGenerator::subschema_for::<EndpointSlice>,
        SchemaGenerator::subschema_for::<core::Service>,
        SchemaGenerator::subschema_for::<core::Event>,
        SchemaGenerator::subschema_for::<core::Binding>,
        SchemaGenerator::subschema_for::<Lease>,
        SchemaGenerator::subschema_for::<RuntimeClass>,
        SchemaGenerator::subschema_for::<Eviction>,
        SchemaGenerator::subschema_for::<TokenRequest>,
        SchemaGenerator::subschema_for::<SelfSubjectReview>,
        SchemaGenerator::subschema_for::<TokenReview>,
        SchemaGenerator::subschema_for::<authorization::LocalSubjectAccessReview>,
        SchemaGenerator::subschema_for::<authorization::SelfSubjectAccessReview>,
        SchemaGenerator::subschema_for::<authorization::SelfSubjectRulesReview>,
        SchemaGenerator::subschema_for::<authorization::SubjectAccessReview>,
        SchemaGenerator::subschema_for::<CustomResourceDefinition>,
        SchemaGenerator::subschema_for::<apps::ControllerRevision>,
        SchemaGenerator::subschema_for::<apps::DaemonSet>,
        SchemaGenerator::subschema_for::<apps::Deployment>,
        SchemaGenerator::subschema_for::<apps::ReplicaSet>,
        SchemaGenerator::subschema_for::<apps::StatefulSet>,
        SchemaGenerator::subschema_for::<Scale>,
    ];
    for add in all {
        add(&mut generator);
    }
    generator.take_definitions(false)
}

/// The name of the definition that a schema refers to.
pub(crate) fn reference(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.rsplit('/').next()
}

fn type_of(schema: &Value, structs: &BTreeMap<String, usize>) -> Type {
    if let Some(name) = reference(schema) {
        return match structs.get(name) {
            Some(index) => Type::Struct(*index),
            None => scalar(name),
        };
    }
    let text = |key: &str| schema.get(key).and_then(Value::as_str).unwrap_or_default();
    match (text("type"), text("format")) {
        ("array", _) => Type::List(Box::new(schema.get("items").map_or(Type::Any, |items| type_of(items, structs)))),
        ("object", _) => match schema.get("additionalProperties") {
            Some(values) => Type::Map(Box::new(type_of(values, structs))),
            None => Type::Any,
        },
        ("string", "byte") => Type::Bytes,
        ("string", "date-time") => Type::Time,
        ("string", _) => Type::String,
        ("boolean", _) => Type::Bool,
        ("integer", "int64") => Type::Int64,
        ("integer", _) => Type::Int32,
        ("number", _) => Type::Float,
        _ => Type::Any,
    }
}

fn scalar(definition: &str) -> Type {
    match definition.rsplit('.').next().unwrap_or_default() {
        "Quantity" => Type::Quantity,
        "IntOrString" => Type::IntOrString,
        "Time" => Type::Time,
        "MicroTime" => Type::MicroTime,
        "ByteString" => Type::Bytes,
        _ => Type::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<'a>(schemas: &'a Schemas, definition: &str, field: &str) -> &'a Type {
        match schemas.struct_type(definition) {
            Some(Type::Struct(index)) => &schemas.at(index).fields[field].type_,
            other => panic!("{definition} is {other:?}"),
        }
    }

    #[test]
    fn scalars_with_a_name_are_recognised() {
        let schemas = Schemas::get();
        assert_eq!(field(schemas, "io.k8s.api.coordination.v1.LeaseSpec", "renewTime"), &Type::MicroTime);
        assert_eq!(field(schemas, "io.k8s.api.core.v1.PodStatus", "startTime"), &Type::Time);
        assert_eq!(field(schemas, "io.k8s.api.core.v1.HTTPGetAction", "port"), &Type::IntOrString);
        assert_eq!(
            field(schemas, "io.k8s.api.core.v1.ResourceRequirements", "limits"),
            &Type::Map(Box::new(Type::Quantity))
        );
        assert_eq!(field(schemas, "io.k8s.api.core.v1.Secret", "data"), &Type::Map(Box::new(Type::Bytes)));
        assert_eq!(field(schemas, "io.k8s.apimachinery.pkg.apis.meta.v1.ManagedFieldsEntry", "fieldsV1"), &Type::Any);
    }

    #[test]
    fn every_kind_has_a_schema() {
        for kind in crate::apiserver::kinds::kinds() {
            assert!(Schemas::get().struct_type(&definition(kind)).is_some(), "{}", kind.kind);
        }
    }

    #[test]
    fn only_managed_fields_and_revisions_are_free_form() {
        let schemas = Schemas::get();
        let free: Vec<_> = schemas
            .structs
            .iter()
            .flat_map(|s| s.fields.iter().map(move |(name, field)| (s, name, field)))
            .filter(|(of, _, field)| field.type_ == Type::Any && of.package == "v1")
            // A definition holds schemas and values of any form.
            .filter(|(of, _, _)| !of.name.starts_with("JSONSchemaProps") && !of.name.starts_with("CustomResource"))
            .map(|(s, name, _)| format!("{}.{name}", s.name))
            .collect();
        assert_eq!(free, ["ControllerRevision.data", "ManagedFieldsEntry.fieldsV1"]);
    }
}
