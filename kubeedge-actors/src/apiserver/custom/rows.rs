//! Rows of custom kinds.
//!
//! The generic code holds a kind as a reference that lives as long as the process, which a row of the table does. A
//! custom kind's row is therefore made once for each different set of names and kept: defining the same kind again,
//! changing its schema or restarting the server takes the row that is there. A row takes about half a kilobyte, and
//! there are at most [`MAX_ROWS`].

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

use crate::apiserver::kind::{DecodeError, Kind, Resource};

/// Different sets of names in the life of the process at most; a definition beyond is refused.
pub(crate) const MAX_ROWS: usize = 4096;

/// What a row says of a version of a custom kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Names {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    pub(super) plural: String,
    pub(super) singular: String,
    pub(super) short_names: Vec<String>,
    pub(super) categories: Vec<String>,
    pub(super) namespaced: bool,
    pub(super) status: bool,
    pub(super) scale: bool,
}

impl Names {
    /// What clients are told of it.
    pub(super) fn told(&self) -> Value {
        json!([self.group, self.version, self.kind, self.plural, self.namespaced, self.status, self.scale])
    }
}

/// The row for these names; `None` when there are too many.
pub(super) fn row(names: Names) -> Option<&'static Kind> {
    static ROWS: OnceLock<Mutex<HashMap<Names, &'static Kind>>> = OnceLock::new();
    let mut rows = ROWS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(row) = rows.get(&names) {
        return Some(row);
    }
    if rows.len() >= MAX_ROWS {
        return None;
    }
    let row = Box::leak(Box::new(Kind {
        resource: Resource {
            group: keep(&names.group),
            version: keep(&names.version),
            kind: keep(&names.kind),
            plural: keep(&names.plural),
            singular: keep(&names.singular),
            short_names: keep_all(&names.short_names),
            categories: keep_all(&names.categories),
            namespaced: names.namespaced,
            status_subresource: names.status,
            stored_as: None,
            selectable: &[],
            columns: &[],
            cells: |_, _| Vec::new(),
        },
        scale_subresource: names.scale,
        has_generation: true,
        // A definition does this, not the row: see `Target`.
        decode: |_| Err(DecodeError { message: "a custom kind is decoded by its definition".to_owned() }),
        default: |_| {},
        validate_create: |_| Vec::new(),
        validate_update: |_, _| Vec::new(),
        validate_status: |_, _| Vec::new(),
    }));
    rows.insert(names, row);
    Some(row)
}

fn keep(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn keep_all(texts: &[String]) -> &'static [&'static str] {
    Box::leak(texts.iter().map(|text| keep(text)).collect::<Vec<_>>().into_boxed_slice())
}
