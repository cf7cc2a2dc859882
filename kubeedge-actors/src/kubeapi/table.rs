//! How objects are written as an answer: plain, as a `Table`, as `PartialObjectMetadata`.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value, json};

use super::negotiate::Form;
use super::object::Object;
use super::resource::{Column, Resource};

const META: &str = "meta.k8s.io/v1";

/// What stands beside the cells of a row (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

impl Include {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("None") => Self::None,
            Some("Object") => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// A custom kind's version, as far as answers show it.
pub(crate) trait Custom: std::fmt::Debug + Send + Sync {
    /// Makes of a stored object what this version has now.
    fn read(&self, object: &mut Value);

    /// The columns of a table.
    fn columns(&self) -> Vec<Value>;

    /// The cells of an object at `now`, seconds since 1970.
    fn cells(&self, object: &Value, now: i64) -> Vec<Value>;
}

/// How one request wants its objects.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) kind: &'static Resource,
    /// What a custom kind's definition says of this version.
    pub(crate) custom: Option<Arc<dyn Custom>>,
    pub(crate) form: Form,
    pub(crate) include: Include,
    /// Seconds since 1970, for ages.
    pub(crate) now: i64,
}

/// `metadata` of a list.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListMeta {
    pub(crate) resource_version: u64,
    pub(crate) continue_: Option<String>,
    pub(crate) remaining: Option<usize>,
}

impl ListMeta {
    fn value(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.resource_version.to_string()});
        if let Some(token) = &self.continue_ {
            meta["continue"] = token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
        meta
    }
}

impl View {
    /// The object as this version has it: a custom kind's schema may have grown defaults since it was stored.
    fn value(&self, object: &Object) -> Value {
        let mut value = object.value(self.kind);
        if let Some(custom) = &self.custom {
            custom.read(&mut value);
        }
        value
    }

    /// Appends the whole object. What the table's kinds store is what they serve: their bytes are spliced.
    fn write(&self, object: &Object, out: &mut BytesMut) {
        if self.custom.is_some() {
            out.put_slice(self.value(object).to_string().as_bytes());
        } else {
            object.write_wire(self.kind, out);
        }
    }

    /// One object.
    pub(crate) fn object(&self, object: &Object) -> Bytes {
        match self.form {
            Form::Plain => {
                let mut out = BytesMut::with_capacity(object.stored().len() + 64);
                self.write(object, &mut out);
                out.freeze()
            }
            Form::Partial => partial(&self.value(object)).to_string().into(),
            Form::Table => self.one_row(&self.value(object), true).to_string().into(),
        }
    }

    /// A list. The items of a plain one are spliced, not parsed.
    pub(crate) fn list(&self, meta: &ListMeta, items: &[Arc<Object>]) -> Bytes {
        let (kind, version) = match self.form {
            Form::Plain => (format!("{}List", self.kind.kind), super::object::api_version(self.kind)),
            Form::Partial => ("PartialObjectMetadataList".into(), META.into()),
            Form::Table => {
                let rows = items.iter().map(|item| self.row(&self.value(item))).collect();
                return self.table(meta.value(), rows, true).to_string().into();
            }
        };
        let size: usize = items.iter().map(|item| item.stored().len() + 1).sum();
        let mut out = BytesMut::with_capacity(size + 256);
        // Names and versions are identifiers of the table: nothing to escape.
        let head = format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{},"items":["#, meta.value());
        out.put_slice(head.as_bytes());
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.put_u8(b',');
            }
            match self.form {
                Form::Partial => out.put_slice(partial(&self.value(item)).to_string().as_bytes()),
                _ if self.custom.is_some() => self.write(item, &mut out),
                _ => item.write_item(self.kind, &mut out),
            }
        }
        out.put_slice(b"]}");
        out.freeze()
    }

    /// The `object` of a watch event; `first` is the first of its watch.
    pub(crate) fn write_event(&self, name: &str, object: &Object, first: bool, out: &mut BytesMut) {
        out.put_slice(br#"{"type":""#);
        out.put_slice(name.as_bytes());
        out.put_slice(br#"","object":"#);
        match self.form {
            Form::Plain => self.write(object, out),
            Form::Partial => out.put_slice(partial(&self.value(object)).to_string().as_bytes()),
            Form::Table => {
                out.put_slice(self.one_row(&self.value(object), first).to_string().as_bytes());
            }
        }
        out.put_slice(b"}\n");
    }

    /// A bookmark: only a position, and whether it ends the initial events.
    pub(crate) fn bookmark(&self, resource_version: u64, initial_end: bool) -> Bytes {
        let mut meta = json!({"resourceVersion": resource_version.to_string(), "creationTimestamp": null});
        if initial_end {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Plain => {
                json!({"kind": self.kind.kind, "apiVersion": super::object::api_version(self.kind), "metadata": meta})
            }
            Form::Partial => json!({"kind": "PartialObjectMetadata", "apiVersion": META, "metadata": meta}),
            Form::Table => {
                let mut cells = vec![Value::Null; self.columns().len()];
                if let Some(first) = cells.first_mut() {
                    *first = "".into();
                }
                let object = json!({"kind": "PartialObjectMetadata", "apiVersion": META, "metadata": meta});
                let row = json!({"cells": cells, "object": object});
                self.table(json!({"resourceVersion": resource_version.to_string()}), vec![row], false)
            }
        };
        format!("{}\n", json!({"type": "BOOKMARK", "object": object})).into()
    }

    fn one_row(&self, object: &Value, columns: bool) -> Value {
        let mut meta = Map::new();
        if let Some(version) = object["metadata"].get("resourceVersion") {
            meta.insert("resourceVersion".into(), version.clone());
        }
        self.table(meta.into(), vec![self.row(object)], columns)
    }

    fn table(&self, meta: Value, rows: Vec<Value>, columns: bool) -> Value {
        let definitions = if columns { self.columns().into() } else { Value::Null };
        json!({"kind": "Table", "apiVersion": META, "metadata": meta, "columnDefinitions": definitions, "rows": rows})
    }

    fn columns(&self) -> Vec<Value> {
        let define = |column: &Column| {
            json!({
                "name": column.name, "type": column.type_, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        };
        match &self.custom {
            Some(custom) => custom.columns(),
            None => self.kind.columns.iter().map(define).collect(),
        }
    }

    fn row(&self, object: &Value) -> Value {
        let mut row = match &self.custom {
            Some(custom) => json!({"cells": custom.cells(object, self.now)}),
            None => json!({"cells": (self.kind.cells)(object, self.now)}),
        };
        match self.include {
            Include::None => {}
            Include::Metadata => row["object"] = partial(object),
            Include::Object => row["object"] = object.clone(),
        }
        row
    }
}

fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": META, "metadata": object["metadata"]})
}
