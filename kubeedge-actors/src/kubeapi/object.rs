//! One stored object: its JSON as bytes and the few parts that lists and watches look at without parsing it.

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};

use super::resource::Resource;

/// Namespace (empty for cluster-wide kinds) and name; the order of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// An object as it is kept in memory. Immutable: a change makes a new one.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) resource_version: u64,
    pub(crate) deleting: bool,
    pub(crate) labels: Box<[(String, String)]>,
    /// The values of `Resource::selectable`, in its order.
    pub(crate) fields: Box<[String]>,
    /// Uids of the owners.
    pub(crate) owners: Box<[String]>,
    /// The object without `kind` and `apiVersion`, as it stands in a list.
    json: Bytes,
}

impl Object {
    /// Takes `value`, one of `kind`, with its `metadata.resourceVersion` already set.
    pub(crate) fn new(kind: &Resource, value: &Value) -> Self {
        let (kind, mut stored) = match kind.stored_as {
            Some(stored) => (stored.kind, (stored.to_stored)(value.clone())),
            None => (kind, value.clone()),
        };
        let fields = kind.selectable.iter().map(|(_, read)| read(&stored)).collect();
        if let Value::Object(map) = &mut stored {
            map.remove("kind");
            map.remove("apiVersion");
        }
        Self::assemble(value, fields, Bytes::from(stored.to_string()))
    }

    /// Reads what `stored` gave, from the disk.
    pub(crate) fn from_stored(kind: &Resource, json: Bytes) -> Result<Self, serde_json::Error> {
        let mut value: Value = serde_json::from_slice(&json)?;
        add_type(&mut value, kind);
        let fields = kind.selectable.iter().map(|(_, read)| read(&value)).collect();
        Ok(Self::assemble(&value, fields, json))
    }

    fn assemble(value: &Value, fields: Box<[String]>, json: Bytes) -> Self {
        let meta = &value["metadata"];
        let labels = meta["labels"]
            .as_object()
            .map(|labels| labels.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect());
        let owners = meta["ownerReferences"]
            .as_array()
            .map(|owners| owners.iter().filter_map(|owner| owner["uid"].as_str()).map(str::to_owned).collect());
        Self {
            key: Key::new(text(meta, "namespace"), text(meta, "name")),
            uid: text(meta, "uid").to_owned(),
            resource_version: text(meta, "resourceVersion").parse().unwrap_or_default(),
            deleting: meta.get("deletionTimestamp").is_some(),
            labels: labels.unwrap_or_default(),
            fields,
            owners: owners.unwrap_or_default(),
            json,
        }
    }

    /// The bytes for the disk: no `kind`, no `apiVersion`.
    pub(crate) fn stored(&self) -> &Bytes {
        &self.json
    }

    /// Appends the object as it stands in a list of `kind`: no `kind`, no `apiVersion`.
    pub(crate) fn write_item(&self, kind: &Resource, out: &mut BytesMut) {
        match kind.stored_as {
            Some(stored) => out.put_slice((stored.from_stored)(self.parsed()).to_string().as_bytes()),
            None => out.put_slice(&self.json),
        }
    }

    /// Appends the whole object to `out`. The stored bytes are spliced, not parsed: they start with `{"metadata"...`.
    pub(crate) fn write_wire(&self, kind: &Resource, out: &mut BytesMut) {
        if kind.stored_as.is_some() {
            out.put_slice(self.value(kind).to_string().as_bytes());
            return;
        }
        out.put_slice(br#"{"apiVersion":""#);
        out.put_slice(api_version(kind).as_bytes());
        out.put_slice(br#"","kind":""#);
        out.put_slice(kind.kind.as_bytes());
        out.put_slice(br#"","#);
        out.put_slice(self.json.get(1..).unwrap_or(b"}"));
    }

    /// The stored form.
    fn parsed(&self) -> Value {
        // The bytes were written by `Value::to_string` or checked by `from_stored`.
        serde_json::from_slice(&self.json).unwrap_or_else(|_| Value::Object(Map::new()))
    }

    /// The whole object as one of `kind`, parsed.
    pub(crate) fn value(&self, kind: &Resource) -> Value {
        let mut value = match kind.stored_as {
            Some(stored) => (stored.from_stored)(self.parsed()),
            None => self.parsed(),
        };
        add_type(&mut value, kind);
        value
    }

    /// The text of a field by its path, for a kind whose selectable fields are not kept.
    pub(crate) fn field(&self, name: &str) -> String {
        selected(&self.parsed(), name)
    }

    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Memory it takes, about.
    pub(crate) fn size(&self) -> usize {
        self.json.len() + 256
    }
}

/// `v1`, or `coordination.k8s.io/v1`.
pub(crate) fn api_version(kind: &Resource) -> String {
    if kind.group.is_empty() { kind.version.to_owned() } else { format!("{}/{}", kind.group, kind.version) }
}

/// Sets `kind` and `apiVersion`.
pub(crate) fn add_type(value: &mut Value, kind: &Resource) {
    if let Value::Object(map) = value {
        map.insert("kind".into(), kind.kind.into());
        map.insert("apiVersion".into(), api_version(kind).into());
    }
}

/// A string member, empty when it is not there.
pub(crate) fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value.get(member).and_then(Value::as_str).unwrap_or_default()
}

/// `metadata` as a map, made when it is missing.
pub(crate) fn metadata(value: &mut Value) -> &mut Map<String, Value> {
    member(value, "metadata")
}

/// A member that is a map, made when it is missing or something else.
pub(crate) fn member<'a>(value: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let inner = &mut value[name];
    if !inner.is_object() {
        *inner = Value::Object(Map::new());
    }
    match inner {
        Value::Object(map) => map,
        _ => unreachable!("made a map just above"),
    }
}

/// The text of a field that a selector names, as it is compared; empty where it is not there.
fn selected(object: &Value, name: &str) -> String {
    match name.split('.').try_fold(object, |value, step| value.get(step)) {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selected_field_is_compared_as_text() {
        let object = json!({"spec": {"color": "red", "size": 3, "on": false, "list": [1]}});
        for (name, text) in [("color", "red"), ("size", "3"), ("on", "false"), ("list", ""), ("nope", "")] {
            assert_eq!(selected(&object, &format!("spec.{name}")), text);
        }
    }
}
