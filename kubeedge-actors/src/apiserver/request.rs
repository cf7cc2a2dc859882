//! Which kind a path means here, and the options of writes.

use std::sync::Arc;

use serde_json::Value;

use super::custom::Version;
use super::kind::{DecodeError, Decoded, Kind};
use super::status::{FieldCause, FieldError, Status};
use super::storage::{KindId, Storage};
pub(crate) use crate::kubeapi::request::{ListOptions, Path, Query, ResourcePath};

/// A served resource, one object or a collection.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) id: KindId,
    pub(crate) kind: &'static Kind,
    /// What a custom kind's definition says of this version.
    pub(crate) custom: Option<Arc<Version>>,
    /// `None` for cluster-wide kinds and for a collection over all namespaces.
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Target {
    /// Finds the kind; `None` when this server does not serve it that way.
    pub(crate) fn find(storage: &Storage, path: ResourcePath) -> Option<Self> {
        let (id, kind, custom) = storage.find_version(&path.group, &path.version, &path.resource)?;
        let scoped = path.namespace.is_some();
        if (scoped && !kind.namespaced) || (!scoped && kind.namespaced && path.name.is_some()) {
            return None;
        }
        let (namespace, name, subresource) = (path.namespace, path.name, path.subresource);
        Some(Self { id, kind, custom, namespace, name, subresource })
    }

    /// The options of a list, watch or deletecollection of it.
    pub(crate) fn list_options(&self, query: &Query) -> Result<ListOptions, Status> {
        let custom = self.custom.as_ref().map_or(&[][..], |version| &version.selectable);
        ListOptions::parse(self.kind, custom, query)
    }

    /// From the wire form to the stored form.
    pub(crate) fn decode(&self, value: Value) -> Result<Decoded, DecodeError> {
        match &self.custom {
            Some(custom) => custom.decode(value),
            None => (self.kind.decode)(value),
        }
    }

    /// Sets defaults in place.
    pub(crate) fn default(&self, object: &mut Value) {
        match &self.custom {
            Some(custom) => custom.default(object),
            None => (self.kind.default)(object),
        }
    }

    /// What is wrong with a new object, beside its metadata.
    pub(crate) fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        match &self.custom {
            Some(custom) => custom.validate(object, None),
            None => (self.kind.validate_create)(object),
        }
    }

    /// What is wrong with changing `old` into `new`.
    pub(crate) fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match &self.custom {
            Some(custom) => custom.validate(new, Some(old)),
            None => (self.kind.validate_update)(new, old),
        }
    }

    /// What is wrong with a new status.
    pub(crate) fn validate_status(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match &self.custom {
            Some(custom) => custom.validate(new, Some(old)),
            None => (self.kind.validate_status)(new, old),
        }
    }

    /// Namespace, or empty.
    pub(crate) fn scope(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }
}

/// How unknown fields are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// The options of a create, update or patch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    pub(crate) field_validation: FieldValidation,
}

impl WriteOptions {
    /// `what` names the options in errors: `CreateOptions`, `UpdateOptions`, `PatchOptions`.
    pub(crate) fn parse(what: &str, query: &Query) -> Result<Self, Status> {
        let unsupported = |field: &str, value: &str, supported: &[&str]| {
            let supported = supported.iter().map(|one| (*one).to_owned()).collect();
            let error = FieldError::new(field, FieldCause::NotSupported(value.into(), supported));
            Status::invalid_as("meta.k8s.io", what, "", vec![error])
        };
        let field_validation = match query.text("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Strict" => FieldValidation::Strict,
            "Ignore" => FieldValidation::Ignore,
            other => return Err(unsupported("fieldValidation", other, &["Ignore", "Strict", "Warn"])),
        };
        Ok(Self { dry_run: dry_run(what, query)?, field_validation })
    }
}

/// `dryRun=All`, or not there.
pub(crate) fn dry_run(what: &str, query: &Query) -> Result<bool, Status> {
    match query.text("dryRun") {
        "" => Ok(false),
        "All" => Ok(true),
        other => {
            let error = FieldError::new("dryRun", FieldCause::NotSupported(other.into(), vec!["All".into()]));
            Err(Status::invalid_as("meta.k8s.io", what, "", vec![error]))
        }
    }
}
