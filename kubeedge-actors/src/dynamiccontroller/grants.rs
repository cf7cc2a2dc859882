//! What a node may ask of the API server without a token. Pure.
//!
//! A node proves by its certificate that it is this node, and by nothing that some person's or some service's rights are
//! its programs' to use. So it may what Kubernetes lets any kubelet read (ClusterRole `system:node`), of which pods and
//! what they name are in the edge's own store already, and what the operator grants in words of RBAC. `P-NODE-GRANTED`

use kubeedge_proto::NodeName;
use serde::Deserialize;

use crate::kubeapi::{
    pass::{Passed, Target, Verb},
    request::ResourcePath,
};

/// Everything, where a grant names it.
const ANY: &str = "*";

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

/// One of `modules.dynamicController.grants`: who may do what. Everything but `resourceNames` has to be said, and a word
/// that is not known is an error: a slip of the pen grants nothing more.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grant {
    /// Names of nodes, or `*`.
    pub nodes: Vec<String>,
    /// Namespaces, or `*`: all of them, and what is in none.
    pub namespaces: Vec<String>,
    /// Groups of the API, `""` for the core, or `*`.
    pub api_groups: Vec<String>,
    /// Plural names, `deployments/status` and `deployments/scale` for the parts, or `*`.
    pub resources: Vec<String>,
    /// `get`, `list`, `create`, `update`, `patch`, `delete`, `deletecollection`, or `*`.
    pub verbs: Vec<String>,
    /// Only objects of these names; none: all.
    #[serde(default)]
    pub resource_names: Vec<String>,
}

/// All of them, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<Grant>")]
pub struct Grants(Vec<Grant>);

impl Grants {
    /// Checks them; what is wrong otherwise.
    pub fn new(grants: Vec<Grant>) -> Result<Self, String> {
        for grant in &grants {
            grant.check()?;
        }
        Ok(Self(grants))
    }
}

impl TryFrom<Vec<Grant>> for Grants {
    type Error = String;

    fn try_from(grants: Vec<Grant>) -> Result<Self, String> {
        Self::new(grants)
    }
}

impl Grant {
    fn check(&self) -> Result<(), String> {
        let lists = [
            ("nodes", &self.nodes),
            ("namespaces", &self.namespaces),
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("verbs", &self.verbs),
        ];
        if let Some((name, _)) = lists.iter().find(|(_, list)| list.is_empty()) {
            return Err(format!("a grant names no {name}"));
        }
        if let Some(node) = self.nodes.iter().find(|node| *node != ANY && node.parse::<NodeName>().is_err()) {
            return Err(format!("{node:?} is no name of a node"));
        }
        let known = |verb: &str| verb == ANY || Verb::ALL.iter().any(|known| known.as_str() == verb);
        match self.verbs.iter().find(|verb| !known(verb)) {
            Some(verb) => Err(format!(
                "{verb:?} is no verb that can be granted: {} and {ANY} can",
                Verb::ALL.map(Verb::as_str).join(", ")
            )),
            None => Ok(()),
        }
    }

    fn covers(&self, node: &NodeName, verb: Verb, path: &ResourcePath) -> bool {
        let names = |list: &[String], one: &str| list.iter().any(|listed| listed == ANY || listed == one);
        let what = match &path.subresource {
            Some(subresource) => format!("{}/{subresource}", path.resource),
            None => path.resource.clone(),
        };
        let place = match &path.namespace {
            Some(namespace) => names(&self.namespaces, namespace),
            // All namespaces together, or what is in none: a path alone does not tell which.
            None => self.namespaces.iter().any(|namespace| namespace == ANY),
        };
        let named = || path.name.as_ref().is_some_and(|name| self.resource_names.contains(name));
        names(&self.nodes, node.as_str())
            && names(&self.api_groups, &path.group)
            && names(&self.resources, &what)
            && names(&self.verbs, verb.as_str())
            && place
            && (self.resource_names.is_empty() || named())
    }
}

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
    let granted = |verb| grants.0.iter().any(|grant| grant.covers(node, verb, path));
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
