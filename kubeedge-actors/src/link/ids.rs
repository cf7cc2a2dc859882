//! Small ordered names of types and objects, made from the wire's own.

use kubeedge_proto::v1::{ObjectKey, ResourceType};

/// `group/version/resource` of a type. The kind is not part of it: it follows from the rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(Box<str>);

impl TypeId {
    /// The name of a resource type.
    pub fn of(type_: &ResourceType) -> Self {
        Self(type_.to_string().into_boxed_str())
    }

    /// As text, such as `v1/pods` or `devices.kubeedge.io/v1beta1/devices`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One object's place, whatever uid lives there: what State is kept in order on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Its type.
    pub type_: TypeId,
    /// Its namespace; empty for cluster scope.
    pub namespace: Box<str>,
    /// Its name.
    pub name: Box<str>,
}

impl ObjectId {
    /// The place of an object of this type and key.
    pub fn of(type_: &ResourceType, key: &ObjectKey) -> Self {
        Self { type_: TypeId::of(type_), namespace: key.namespace.as_str().into(), name: key.name.as_str().into() }
    }
}

/// The resourceVersion as a number, 0 when it is not one. Orders versions of one uid and lists of one cluster.
pub(crate) fn version_number(resource_version: &str) -> u64 {
    resource_version.parse().unwrap_or(0)
}
