//! `modules.dynamicController.grants`: what the operator lets the programs of a node do without a token, in words of RBAC.
//!
//! Only the words and their check, so that the configuration can be read without the component that decides by them
//! (`dynamiccontroller`).

use kubeedge_proto::NodeName;
use serde::Deserialize;

/// Everything, where a grant names it.
const ANY: &str = "*";

/// What can be granted.
pub(crate) const VERBS: [&str; 7] = ["get", "list", "create", "update", "patch", "delete", "deletecollection"];

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

    /// Whether one of them gives it.
    #[cfg(feature = "dynamiccontroller")]
    pub(crate) fn give(&self, node: &NodeName, asked: &Asked<'_>) -> bool {
        self.0.iter().any(|grant| grant.covers(node, asked))
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
        if let Some(resource) = self.resources.iter().find(|resource| *resource != ANY && resource.contains(ANY)) {
            return Err(format!(
                "{resource:?} names no resource: {ANY} stands alone, and then for all with their parts"
            ));
        }
        match self.verbs.iter().find(|verb| *verb != ANY && !VERBS.contains(&verb.as_str())) {
            Some(verb) => Err(format!("{verb:?} is no verb that can be granted: {} and {ANY} can", VERBS.join(", "))),
            None => Ok(()),
        }
    }

    /// Whether this grant gives it.
    #[cfg(feature = "dynamiccontroller")]
    fn covers(&self, node: &NodeName, asked: &Asked<'_>) -> bool {
        let names = |list: &[String], one: &str| list.iter().any(|listed| listed == ANY || listed == one);
        let place = match asked.namespace {
            Some(namespace) => names(&self.namespaces, namespace),
            // All namespaces together, or what is in none: a path alone does not tell which.
            None => self.namespaces.iter().any(|namespace| namespace == ANY),
        };
        let named = || asked.name.is_some_and(|name| self.resource_names.iter().any(|listed| listed == name));
        names(&self.nodes, node.as_str())
            && names(&self.api_groups, asked.group)
            && names(&self.resources, asked.resource)
            && names(&self.verbs, asked.verb)
            && place
            && (self.resource_names.is_empty() || named())
    }
}

/// What a request asks for, in the words of a grant.
#[cfg(feature = "dynamiccontroller")]
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    /// The plural name, with the part after a slash where one is asked.
    pub(crate) resource: &'a str,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) name: Option<&'a str>,
}
