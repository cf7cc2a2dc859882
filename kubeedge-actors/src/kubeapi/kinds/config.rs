//! ConfigMap and Secret.

use serde_json::{Value, json};

use super::cells::{AGE, NAME, column, creation_age, name};
use crate::kubeapi::fields::{entries, text};
use crate::kubeapi::resource::Resource;

/// ConfigMap.
pub(crate) const CONFIG_MAP: Resource = Resource {
    group: "",
    version: "v1",
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    categories: &[],
    namespaced: true,
    status_subresource: false,
    stored_as: None,
    selectable: &[],
    columns: &[NAME, column("Data", "Number of keys"), AGE],
    cells: config_map_cells,
};

/// Secret.
pub(crate) const SECRET: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status_subresource: false,
    stored_as: None,
    selectable: &[("type", |object| text(object, "/type").to_owned())],
    columns: &[NAME, column("Type", "What the secret is for"), column("Data", "Number of keys"), AGE],
    cells: secret_cells,
};

fn config_map_cells(object: &Value, now: i64) -> Vec<Value> {
    let keys = entries(object, "/data").count() + entries(object, "/binaryData").count();
    vec![name(object), json!(keys), creation_age(object, now)]
}

fn secret_cells(object: &Value, now: i64) -> Vec<Value> {
    let keys = entries(object, "/data").count();
    vec![name(object), json!(text(object, "/type")), json!(keys), creation_age(object, now)]
}
