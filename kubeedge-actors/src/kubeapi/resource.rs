//! What an API knows of one resource, whoever serves it.

use serde_json::Value;

/// A resource type: its names, what can be selected by, and how `kubectl get` prints it.
pub struct Resource {
    /// API group, empty for core.
    pub group: &'static str,
    /// API version, e.g. `v1`.
    pub version: &'static str,
    /// Kind, e.g. `Pod`.
    pub kind: &'static str,
    /// Plural resource name, e.g. `pods`.
    pub plural: &'static str,
    /// Singular name, e.g. `pod`.
    pub singular: &'static str,
    /// Short names, e.g. `po`.
    pub short_names: &'static [&'static str],
    /// Categories, e.g. `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether `/status` is served, and the main resource then ignores changes of `status` (and the reverse).
    pub status_subresource: bool,
    /// The resource whose objects these are, for one that shows stored objects in another form; `None` is one of its own.
    pub stored_as: Option<StoredAs>,
    /// Field selectors beside `metadata.name` and `metadata.namespace`, with how to read each.
    pub selectable: &'static [Selectable],
    /// Columns of `kubectl get`, without `Name`'s metadata: name, type, format, priority, description.
    pub columns: &'static [Column],
    /// One object's cells, in the order of `columns`; `now` is seconds since 1970.
    pub cells: fn(&Value, i64) -> Vec<Value>,
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} {}", self.group, self.version, self.kind)
    }
}

/// How the objects of a kind are kept: as those of another kind, under the same namespace and name.
///
/// The two functions turn one form into the other, without `kind` and `apiVersion`, and lose nothing that both can say.
#[derive(Clone, Copy)]
pub struct StoredAs {
    /// The kind that is stored. Its selectable values begin with those of this kind, in their order.
    pub kind: &'static Resource,
    /// From the served form to the stored one.
    pub to_stored: fn(Value) -> Value,
    /// From the stored form to the served one.
    pub from_stored: fn(Value) -> Value,
}

/// A field selector's name and how to read the field.
pub type Selectable = (&'static str, fn(&Value) -> String);

/// One column of a table.
pub struct Column {
    /// Header.
    pub name: &'static str,
    /// OpenAPI type.
    pub type_: &'static str,
    /// OpenAPI format, `name` for the first column.
    pub format: &'static str,
    /// 0 always shown, 1 with `-o wide`.
    pub priority: u8,
    /// A short text of our own.
    pub description: &'static str,
}
