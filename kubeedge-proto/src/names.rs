//! Names as types, parsed where they come in.

use std::{fmt, str::FromStr};

use thiserror::Error;

use crate::v1::{KubeObject, ObjectKey, ResourceType};

/// The name of a node: a DNS-1123 subdomain of at most 253 characters.
///
/// ```
/// use kubeedge_proto::NodeName;
/// let node: NodeName = "edge-1.site".parse()?;
/// assert_eq!(node.as_str(), "edge-1.site");
/// assert!("Edge_1".parse::<NodeName>().is_err());
/// # Ok::<(), kubeedge_proto::InvalidNodeName>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(String);

/// A node name that Kubernetes would refuse.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "node name {0:?} is not valid: expected a lower case DNS-1123 subdomain of 1 to 253 characters, such as \"edge-1\""
)]
pub struct InvalidNodeName(String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The common name of the node's certificate: `system:node:<name>`.
    pub fn common_name(&self) -> String {
        format!("{COMMON_NAME_PREFIX}{}", self.0)
    }

    /// Reads the node name out of a certificate's common name.
    pub fn from_common_name(common_name: &str) -> Result<Self, InvalidNodeName> {
        common_name.strip_prefix(COMMON_NAME_PREFIX).ok_or_else(|| InvalidNodeName(common_name.to_owned()))?.parse()
    }
}

const COMMON_NAME_PREFIX: &str = "system:node:";

impl FromStr for NodeName {
    type Err = InvalidNodeName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_dns_subdomain(text) {
            Ok(Self(text.to_owned()))
        } else {
            let shown: String = text.chars().take(260).collect();
            Err(InvalidNodeName(shown))
        }
    }
}

/// Whether this is a DNS-1123 subdomain of at most 253 characters, as nearly every name in Kubernetes must be.
///
/// Nothing that passes can leave its segment of a URL or file path.
pub fn is_dns_subdomain(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The resource types that components exchange, each in one place.
pub mod resource {
    use crate::v1::ResourceType;

    macro_rules! types {
        ($($(#[$doc:meta])* $name:ident = ($group:literal, $version:literal, $resource:literal, $kind:literal);)*) => {$(
            $(#[$doc])*
            pub fn $name() -> ResourceType {
                ResourceType {
                    group: $group.into(),
                    version: $version.into(),
                    resource: $resource.into(),
                    kind: $kind.into(),
                }
            }
        )*};
    }

    types! {
        /// `v1/pods`
        pods = ("", "v1", "pods", "Pod");
        /// `v1/configmaps`
        config_maps = ("", "v1", "configmaps", "ConfigMap");
        /// `v1/secrets`
        secrets = ("", "v1", "secrets", "Secret");
        /// `v1/persistentvolumeclaims`
        persistent_volume_claims = ("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim");
        /// `v1/persistentvolumes`
        persistent_volumes = ("", "v1", "persistentvolumes", "PersistentVolume");
        /// `node.k8s.io/v1/runtimeclasses`
        runtime_classes = ("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass");
        /// `v1/services`
        services = ("", "v1", "services", "Service");
        /// `v1/nodes`
        nodes = ("", "v1", "nodes", "Node");
        /// `v1/events`
        events = ("", "v1", "events", "Event");
        /// `v1/serviceaccounts`
        service_accounts = ("", "v1", "serviceaccounts", "ServiceAccount");
        /// `coordination.k8s.io/v1/leases`
        leases = ("coordination.k8s.io", "v1", "leases", "Lease");
        /// `devices.kubeedge.io/v1beta1/devices`
        devices = ("devices.kubeedge.io", "v1beta1", "devices", "Device");
        /// `devices.kubeedge.io/v1beta1/devicemodels`
        device_models = ("devices.kubeedge.io", "v1beta1", "devicemodels", "DeviceModel");
        /// `devices.kubeedge.io/v1beta1/devicestatuses`
        device_statuses = ("devices.kubeedge.io", "v1beta1", "devicestatuses", "DeviceStatus");
        /// `rules.kubeedge.io/v1/rules`
        rules = ("rules.kubeedge.io", "v1", "rules", "Rule");
        /// `rules.kubeedge.io/v1/ruleendpoints`
        rule_endpoints = ("rules.kubeedge.io", "v1", "ruleendpoints", "RuleEndpoint");
    }
}

impl ResourceType {
    /// `apiVersion` of its objects: `v1`, `coordination.k8s.io/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The path an API server serves one object of it under, or the collection when `name` is `None`.
    ///
    /// `namespace` is left out when empty: cluster-scoped objects, or a list over all namespaces.
    pub fn path(&self, namespace: &str, name: Option<&str>) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if !namespace.is_empty() {
            path.push_str("/namespaces/");
            path.push_str(namespace);
        }
        path.push('/');
        path.push_str(&self.resource);
        if let Some(name) = name {
            path.push('/');
            path.push_str(name);
        }
        path
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.group.is_empty() {
            write!(f, "{}/", self.group)?;
        }
        write!(f, "{}/{}", self.version, self.resource)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

impl ObjectKey {
    /// A key in a namespace; an empty namespace means cluster scope.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// Whether both parts are names that Kubernetes could have given (RBAC names with colons aside).
    pub fn is_valid(&self) -> bool {
        (self.namespace.is_empty() || is_dns_subdomain(&self.namespace)) && is_dns_subdomain(&self.name)
    }
}

impl KubeObject {
    /// The `resourceVersion` as a number, which orders versions of one uid; 0 when it is not one.
    pub fn version(&self) -> u64 {
        self.resource_version.parse().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_name_comes_out_of_a_common_name() {
        assert_eq!(NodeName::from_common_name("system:node:edge-1").unwrap().as_str(), "edge-1");
        for bad in ["edge-1", "system:node:", "system:node:-a", "system:node:a..b", "system:node:A", "system:node:a/b"]
        {
            assert!(NodeName::from_common_name(bad).is_err(), "{bad}");
        }
    }
}
