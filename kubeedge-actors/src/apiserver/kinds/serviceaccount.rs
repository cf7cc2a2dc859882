//! ServiceAccount.

use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::{Value, json};

use super::decode;
use super::fields::{list, nothing};
use super::table::{AGE, NAME, column, creation_age, name};
use crate::apiserver::kind::{Kind, Resource};

pub(super) const KIND: Kind = Kind {
    resource: Resource {
        group: "",
        version: "v1",
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        categories: &[],
        namespaced: true,
        status_subresource: false,
        stored_as: None,
        selectable: &[],
        columns: &[NAME, column("Secrets", "Number of secrets"), AGE],
        cells: |object, now| vec![name(object), json!(list(object, "/secrets").len()), creation_age(object, now)],
    },
    scale_subresource: false,
    has_generation: false,
    decode: decode::typed::<ServiceAccount>,
    default: |_| {},
    validate_create: |_| Vec::new(),
    validate_update: nothing,
    validate_status: nothing,
};

/// The name of the account that every namespace has.
pub const DEFAULT_NAME: &str = "default";

/// The account that every namespace gets.
pub fn default_account(namespace: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": DEFAULT_NAME, "namespace": namespace}})
}
