//! What a node may ask of the API server without a token. Pure.
//!
//! A node proves by its certificate that it is this node, and by nothing that some person's or some service's rights are
//! its programs' to use. So it may what Kubernetes lets any kubelet read (ClusterRole `system:node`), of which pods and
//! what they name are in the edge's own store already, and what the operator grants in words of RBAC. `P-NODE-GRANTED`

use kubeedge_proto::NodeName;

use crate::{
    grants::{Asked, Grants},
    kubeapi::{
        pass::{Passed, Target, Verb},
        request::ResourcePath,
    },
};

/// Groups whose objects give rights, or decide over requests of others: no grant makes a node write them.
const OF_RIGHTS: [&str; 6] = [
    "admissionregistration.k8s.io",
    "apiregistration.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "certificates.k8s.io",
    "rbac.authorization.k8s.io",
];

/// What every kubelet may read: group, resource.
const OF_ANY_NODE: [(&str, &str); 3] =
    [("", "services"), ("node.k8s.io", "runtimeclasses"), ("storage.k8s.io", "csidrivers")];

/// Whether the request is to be made; why not otherwise.
pub(super) fn may(node: &NodeName, passed: &Passed, grants: &Grants) -> Result<(), String> {
    let Target::Resource(verb, path) = &passed.target else { return Ok(()) };
    if passed.has_token() || is_any_nodes(node, *verb, path) {
        return Ok(());
    }
    let group = if path.group.is_empty() { String::new() } else { format!(".{}", path.group) };
    let what = format!("{} {}{group}", verb.as_str(), path.resource);
    if !verb.reads() && OF_RIGHTS.contains(&path.group.as_str()) {
        return Err(format!("node {node} may not {what}: without a token nothing that gives rights is written"));
    }
    let resource = match &path.subresource {
        Some(subresource) => format!("{}/{subresource}", path.resource),
        None => path.resource.clone(),
    };
    let granted = |verb: Verb| {
        let (namespace, name) = (path.namespace.as_deref(), path.name.as_deref());
        let asked = Asked { verb: verb.as_str(), group: &path.group, resource: &resource, namespace, name };
        grants.give(node, &asked)
    };
    // An object that is not there is made by both.
    let creates = passed.is_apply() || (*verb == Verb::Update && path.subresource.is_none());
    match granted(*verb) && (!creates || granted(Verb::Create)) {
        true => Ok(()),
        false if granted(*verb) => Err(format!(
            "node {node} may {what} and not create: an apply or update of what is not there would, and needs both grants"
        )),
        false => Err(format!(
            "node {node} may not {what} without a token: modules.dynamicController.grants of the cloud says what it may"
        )),
    }
}

fn is_any_nodes(node: &NodeName, verb: Verb, path: &ResourcePath) -> bool {
    let what = (path.group.as_str(), path.resource.as_str());
    let own = verb == Verb::Get && what == ("", "nodes") && path.name.as_deref() == Some(node.as_str());
    verb.reads() && path.subresource.is_none() && (own || OF_ANY_NODE.contains(&what))
}
