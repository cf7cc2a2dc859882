//! Device, DeviceModel and Rule, with the columns of their definitions.

use serde_json::{Value, json};

use super::cells::{AGE, NAME, column, creation_age, name};
use crate::kubeapi::fields::{integer, text};
use crate::kubeapi::resource::{Column, Resource};

const BLANK: Resource = Resource {
    group: "devices.kubeedge.io",
    version: "v1beta1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status_subresource: false,
    stored_as: None,
    selectable: &[],
    columns: &[NAME, AGE],
    cells: |object, now| vec![name(object), creation_age(object, now)],
};

/// Device.
pub(crate) const DEVICE: Resource = Resource {
    kind: "Device",
    plural: "devices",
    singular: "device",
    columns: &[NAME, column("Node", "Node it is connected to"), column("Protocol", "How it is spoken to"), AGE],
    cells: |object, now| {
        let (node, protocol) = (text(object, "/spec/nodeName"), text(object, "/spec/protocol/protocolName"));
        vec![name(object), json!(node), json!(protocol), creation_age(object, now)]
    },
    ..BLANK
};

/// DeviceModel.
pub(crate) const DEVICE_MODEL: Resource = Resource {
    kind: "DeviceModel",
    plural: "devicemodels",
    singular: "devicemodel",
    columns: &[NAME, column("Protocol", "How its devices are spoken to"), AGE],
    cells: |object, now| vec![name(object), json!(text(object, "/spec/protocol")), creation_age(object, now)],
    ..BLANK
};

/// Rule.
pub(crate) const RULE: Resource = Resource {
    group: "rules.kubeedge.io",
    version: "v1",
    kind: "Rule",
    plural: "rules",
    singular: "rule",
    status_subresource: true,
    columns: &[
        NAME,
        column("Source", "Where messages come from"),
        column("Target", "Where messages go"),
        count("Success", "Messages that the target took"),
        count("Fail", "Messages that it did not take"),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            json!(text(object, "/spec/source")),
            json!(text(object, "/spec/target")),
            counted(object, "/status/successMessages"),
            counted(object, "/status/failMessages"),
            creation_age(object, now),
        ]
    },
    ..BLANK
};

const fn count(name: &'static str, description: &'static str) -> Column {
    Column { type_: "integer", ..column(name, description) }
}

fn counted(object: &Value, pointer: &str) -> Value {
    integer(object, pointer).map_or(Value::Null, Value::from)
}
