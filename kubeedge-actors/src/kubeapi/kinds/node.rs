//! Node.

use serde_json::{Value, json};

use super::cells::{AGE, NAME, NONE, column, creation_age, name, text_or, wide};
use crate::kubeapi::fields::{entries, flag, list, text};
use crate::kubeapi::resource::Resource;

/// Node.
pub(crate) const NODE: Resource = Resource {
    group: "",
    version: "v1",
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    namespaced: false,
    status_subresource: true,
    stored_as: None,
    selectable: &[("spec.unschedulable", |object| flag(object, "/spec/unschedulable").to_string())],
    columns: &[
        NAME,
        column("Status", "Ready or not, and whether pods may be scheduled"),
        column("Roles", "Roles from the node-role labels"),
        AGE,
        column("Version", "Version of the node agent"),
        wide("Internal-IP", "Address inside the cluster"),
        wide("External-IP", "Address outside the cluster"),
        wide("OS-Image", "Operating system"),
        wide("Kernel-Version", "Kernel and architecture"),
        wide("Container-Runtime", "Container runtime"),
    ],
    cells,
};

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let ready = list(object, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready");
    let mut status = match ready.map(|c| text(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if flag(object, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = entries(object, "/metadata/labels")
        .filter_map(|(label, value)| match label.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if label == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    let roles = if roles.is_empty() { NONE.to_owned() } else { roles.join(",") };
    let address = |type_: &str| {
        let found = list(object, "/status/addresses").iter().find(|a| text(a, "/type") == type_);
        found.map_or(NONE, |a| text(a, "/address")).to_owned()
    };
    let unknown = "<unknown>";
    let mut kernel = text_or(object, "/status/nodeInfo/kernelVersion", unknown).to_owned();
    let architecture = text(object, "/status/nodeInfo/architecture");
    if kernel != unknown && !architecture.is_empty() {
        kernel = format!("{kernel} ({architecture})");
    }
    vec![
        name(object),
        json!(status),
        json!(roles),
        creation_age(object, now),
        json!(text(object, "/status/nodeInfo/kubeletVersion")),
        json!(address("InternalIP")),
        json!(address("ExternalIP")),
        json!(text_or(object, "/status/nodeInfo/osImage", unknown)),
        json!(kernel),
        json!(text_or(object, "/status/nodeInfo/containerRuntimeVersion", unknown)),
    ]
}
