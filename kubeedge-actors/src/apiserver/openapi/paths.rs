//! Paths and operations: what can be done with a kind, in the form of either version of OpenAPI.

use serde_json::{Map, Value, json};

use super::definitions::{definition_of, gvk};
use super::root_of;
use crate::apiserver::discovery::{self, WriteOnly};
use crate::apiserver::kind::Kind;
use crate::apiserver::kinds::schema;

pub(super) const V3_REFERENCE: &str = "#/components/schemas/";
pub(super) const V2_REFERENCE: &str = "#/definitions/";

/// The two versions of OpenAPI differ in how parameters, bodies and answers are written.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Form {
    V2,
    V3,
}

const PATCH_TYPES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];

impl Form {
    fn parameter(self, name: &str, place: &str, type_: &str, description: &str) -> Value {
        let mut parameter = json!({"name": name, "in": place, "description": description});
        if place == "path" {
            parameter["required"] = json!(true);
        }
        match self {
            Self::V3 => parameter["schema"] = json!({"type": type_, "uniqueItems": true}),
            Self::V2 => {
                parameter["type"] = json!(type_);
                parameter["uniqueItems"] = json!(true);
            }
        }
        parameter
    }

    pub(super) fn schema(self, definition: &str) -> Value {
        let prefix = if self == Self::V3 { V3_REFERENCE } else { V2_REFERENCE };
        json!({"$ref": format!("{prefix}{definition}")})
    }

    fn answers(self, code: u16, definition: Option<&str>) -> Value {
        let mut answer = json!({"description": if code == 201 { "Created" } else { "OK" }});
        match (self, definition) {
            (Self::V3, Some(definition)) => {
                answer["content"] = json!({"application/json": {"schema": self.schema(definition)}});
            }
            (Self::V2, Some(definition)) => answer["schema"] = self.schema(definition),
            (_, None) => {}
        }
        json!({code.to_string(): answer, "401": {"description": "Unauthorized"}})
    }

    /// Adds the body of a request to an operation.
    fn add_body(self, operation: &mut Value, types: &[&str], schema: &Value) {
        match self {
            Self::V3 => {
                let content: Map<String, Value> =
                    types.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect();
                operation["requestBody"] = json!({"content": content, "required": true});
            }
            Self::V2 => {
                operation["consumes"] = json!(types);
                let body = json!({"name": "body", "in": "body", "required": true, "schema": schema});
                if let Some(parameters) = operation["parameters"].as_array_mut() {
                    parameters.push(body);
                }
            }
        }
    }
}

/// Paths of a kind and its subresources.
pub(super) fn add_paths(paths: &mut Map<String, Value>, kind: &'static Kind, form: Form) {
    // Only Kubernetes' own types carry merge keys.
    let patch_types = if discovery::is_custom(kind) { &PATCH_TYPES[..2] } else { &PATCH_TYPES };
    let root = root_of(kind.group, kind.version);
    let kind_gvk = (kind.group, kind.version, kind.kind);
    let definition = schema::definition(kind);
    let collection = if kind.namespaced {
        paths.insert(
            format!("/{root}/{}", kind.plural),
            json!({"get": operation(form, "list", kind_gvk, 200, None), "parameters": list_parameters(form)}),
        );
        format!("/{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("/{root}/{}", kind.plural)
    };
    let place = |named: bool| {
        let mut parameters = Vec::new();
        if named {
            parameters.push(form.parameter("name", "path", "string", "Name of the object"));
        }
        if kind.namespaced {
            parameters.push(form.parameter("namespace", "path", "string", "Namespace of the object"));
        }
        json!(parameters)
    };
    let mut list = operation(form, "list", kind_gvk, 200, None);
    list["parameters"] = list_parameters(form);
    let mut item = json!({
        "get": list,
        "post": writing(form, "post", kind_gvk, 201, &definition, &["application/json"], form.schema(&definition)),
        "parameters": place(false),
    });
    if discovery::verbs(kind).contains(&"deletecollection") {
        item["delete"] = operation(form, "deletecollection", kind_gvk, 200, None);
    }
    paths.insert(collection.clone(), item);
    let patch = patch_schema(form);
    let item = json!({
        "get": operation(form, "get", kind_gvk, 200, Some(&definition)),
        "put": writing(form, "put", kind_gvk, 200, &definition, &["application/json"], form.schema(&definition)),
        "patch": writing(form, "patch", kind_gvk, 200, &definition, patch_types, patch.clone()),
        "delete": operation(form, "delete", kind_gvk, 200, None),
        "parameters": place(true),
    });
    paths.insert(format!("{collection}/{{name}}"), item);
    for sub in discovery::of(kind) {
        let definition = definition_of(sub.kind);
        let mut item = json!({"parameters": place(true)});
        for verb in sub.verbs {
            let (method, operation) = match *verb {
                "get" => {
                    // A log is plain text.
                    let answer = Some(definition.as_str()).filter(|_| sub.name != "log");
                    ("get", operation(form, "get", sub.kind, 200, answer))
                }
                "patch" => ("patch", writing(form, "patch", sub.kind, 200, &definition, patch_types, patch.clone())),
                verb => {
                    let (method, code) = if verb == "create" { ("post", 201) } else { ("put", 200) };
                    let body = form.schema(&definition);
                    (method, writing(form, method, sub.kind, code, &definition, &["application/json"], body))
                }
            };
            item[method] = operation;
        }
        paths.insert(format!("{collection}/{{name}}/{}", sub.name), item);
    }
}

/// The path of a resource that is only written to.
pub(super) fn add_write_only(paths: &mut Map<String, Value>, one: &WriteOnly, form: Form) {
    let root = root_of(one.group, one.version);
    let gvk = (one.group, one.version, one.kind);
    let definition = definition_of(gvk);
    let body = form.schema(&definition);
    let post = writing(form, "post", gvk, 201, &definition, &["application/json"], body);
    let (place, parameters) = if one.namespaced {
        let namespace = form.parameter("namespace", "path", "string", "Namespace of the object");
        ("namespaces/{namespace}/", json!([namespace]))
    } else {
        ("", json!([]))
    };
    paths.insert(format!("/{root}/{place}{}", one.plural), json!({"post": post, "parameters": parameters}));
}

/// A patch is any object (or, as a JSON patch, a list): its schema says only that.
fn patch_schema(form: Form) -> Value {
    match form {
        Form::V3 => json!({"description": "The change, in the form that the content type names"}),
        Form::V2 => json!({"type": "object"}),
    }
}

fn list_parameters(form: Form) -> Value {
    json!([
        form.parameter("labelSelector", "query", "string", "Only objects with these labels"),
        form.parameter("fieldSelector", "query", "string", "Only objects with these fields"),
        form.parameter("limit", "query", "integer", "Most objects in one answer"),
        form.parameter("continue", "query", "string", "Where the previous answer ended"),
        form.parameter("watch", "query", "boolean", "Follow changes instead of listing"),
        form.parameter("resourceVersion", "query", "string", "The version to start from"),
        form.parameter("timeoutSeconds", "query", "integer", "How long to follow"),
    ])
}

fn operation(
    form: Form,
    action: &str,
    (group, version, kind): (&str, &str, &str),
    code: u16,
    definition: Option<&str>,
) -> Value {
    let mut operation = json!({
        "responses": form.answers(code, definition),
        "parameters": [],
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(group, version, kind),
    });
    if form == Form::V2 {
        operation["produces"] = json!(["application/json"]);
    }
    operation
}

fn writing(
    form: Form,
    action: &str,
    kind: (&str, &str, &str),
    code: u16,
    definition: &str,
    types: &[&str],
    body: Value,
) -> Value {
    let mut operation = operation(form, action, kind, code, Some(definition));
    operation["parameters"] = json!([
        form.parameter("dryRun", "query", "string", "All: check everything, store nothing"),
        form.parameter("fieldManager", "query", "string", "Who makes the change"),
        form.parameter("fieldValidation", "query", "string", "Ignore, Warn or Strict: what becomes of unknown fields"),
    ]);
    form.add_body(&mut operation, types, &body);
    operation
}
