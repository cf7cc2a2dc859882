//! What a path and its query ask for, parsed and bounded before anything looks at the objects.

use serde_json::Value;

use super::resource::Resource;
use super::selector::Selector;
use super::status::{FieldCause, FieldError, Status};

/// A path below `/api` or `/apis`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Path {
    /// `/api`, `/apis`
    Root { legacy: bool },
    /// `/apis/<group>`
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`
    Version { group: String, version: String },
    /// Something below a version.
    Resource(ResourcePath),
}

/// A resource as the path names it; whether it is served is another question.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ResourcePath {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: Option<String>,
    pub(crate) resource: String,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

impl Path {
    /// Parses a raw (still percent-encoded) path; `None` when it is none of the API's.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let mut segments = Vec::new();
        for segment in path.trim_start_matches('/').trim_end_matches('/').split('/') {
            let segment = percent_decode(segment)?;
            if segment.is_empty() || segment == "." || segment == ".." || segment.contains('/') {
                return None;
            }
            segments.push(segment);
        }
        let mut segments = segments.into_iter();
        let (group, version) = match segments.next()?.as_str() {
            "api" => match segments.next() {
                None => return Some(Self::Root { legacy: true }),
                Some(version) => (String::new(), version),
            },
            "apis" => match (segments.next(), segments.next()) {
                (None, _) => return Some(Self::Root { legacy: false }),
                (Some(group), None) => return Some(Self::Group(group)),
                (Some(group), Some(version)) => (group, version),
            },
            _ => return None,
        };
        let rest: Vec<String> = segments.collect();
        let mut parsed = ResourcePath { group, version, ..ResourcePath::default() };
        let rest = match rest.as_slice() {
            [] => return Some(Self::Version { group: parsed.group, version: parsed.version }),
            // `/namespaces/x/status` is a namespace, `/namespaces/x/pods` are pods.
            [word, namespace, resource, ..]
                if word == "namespaces" && !["status", "finalize"].contains(&resource.as_str()) =>
            {
                parsed.namespace = Some(namespace.clone());
                &rest[2..]
            }
            all => all,
        };
        match rest {
            [resource] => parsed.resource = resource.clone(),
            [resource, name] => {
                parsed.resource = resource.clone();
                parsed.name = Some(name.clone());
            }
            // What follows a proxy is the path at the other side.
            [resource, name, subresource, behind @ ..] if behind.is_empty() || subresource == "proxy" => {
                parsed.resource = resource.clone();
                parsed.name = Some(name.clone());
                parsed.subresource = Some(subresource.clone());
            }
            _ => return None,
        }
        Some(Self::Resource(parsed))
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push((digit(rest.next())? * 16 + digit(rest.next())?) as u8);
    }
    String::from_utf8(bytes).ok()
}

/// The query parameters, in order, the first of a name counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(pub(crate) Vec<(String, String)>);

impl Query {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Every value of a name, in order.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// `1` and `true` and a bare name are true, as Go's decoder has it.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value, "0" | "false"))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        match self.text(name) {
            "" => Ok(None),
            value => value.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "invalid query parameter {name}: strconv.ParseInt: parsing {}: invalid syntax",
                    Value::from(value)
                ))
            }),
        }
    }
}

/// What a list returns relative to a resourceVersion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// The present.
    Latest,
    /// The present, which must have reached this.
    NotOlderThan(u64),
    /// The state at exactly this.
    Exact(u64),
}

/// The options of a list, watch or deletecollection.
#[derive(Clone, Debug)]
pub(crate) struct ListOptions {
    pub(crate) selector: Selector,
    pub(crate) limit: usize,
    pub(crate) continue_: Option<String>,
    pub(crate) at: At,
    pub(crate) watch: bool,
    /// The resourceVersion sent, `None` when absent.
    pub(crate) resource_version: Option<u64>,
    pub(crate) bookmarks: bool,
    pub(crate) initial_events: bool,
    pub(crate) timeout_seconds: Option<u64>,
}

fn list_error(field: &str, cause: FieldCause) -> Status {
    Status::invalid_as("meta.k8s.io", "ListOptions", "", vec![FieldError::new(field, cause)])
}

fn forbidden(field: &str, why: &str) -> Status {
    list_error(field, FieldCause::Forbidden(why.into()))
}

impl ListOptions {
    /// Parses and checks them together, with Kubernetes' sentences.
    /// `custom`: fields that can be selected by beside those of the resource's row.
    pub(crate) fn parse(resource: &Resource, custom: &[String], query: &Query) -> Result<Self, Status> {
        let watch = query.flag("watch");
        let (labels, fields) = (query.text("labelSelector"), query.text("fieldSelector"));
        let selector = Selector::parse(resource, custom, labels, fields)?;
        let sent = query.text("resourceVersion");
        let matching = query.text("resourceVersionMatch");
        let continue_ = Some(query.text("continue")).filter(|token| !token.is_empty()).map(str::to_owned);
        let limit = query.number("limit")?.unwrap_or_default();
        let initial = query.get("sendInitialEvents").map(|value| !matches!(value, "0" | "false"));
        if watch {
            check_watch(initial, matching)?;
        } else {
            check_list(initial, matching, sent, continue_.is_some())?;
        }
        let resource_version = match sent {
            "" => None,
            _ => Some(sent.parse::<u64>().map_err(|_| bad_resource_version(sent, watch))?),
        };
        let at = match (matching, resource_version) {
            ("Exact", Some(version)) => At::Exact(version),
            // With a limit, an unmatched resourceVersion means exactly that one; 0 is anything.
            ("", Some(version)) if limit > 0 && version > 0 && !watch => At::Exact(version),
            (_, Some(version)) if version > 0 => At::NotOlderThan(version),
            _ => At::Latest,
        };
        Ok(Self {
            selector,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            continue_,
            at,
            watch,
            resource_version,
            bookmarks: query.flag("allowWatchBookmarks"),
            initial_events: initial == Some(true),
            timeout_seconds: query.number("timeoutSeconds")?,
        })
    }
}

fn bad_resource_version(sent: &str, watch: bool) -> Status {
    let quoted = Value::from(sent);
    let why = format!("strconv.ParseUint: parsing {quoted}: invalid syntax");
    if watch {
        // A watch finds it late, in its storage: 500 without a reason.
        return Status::new(500, "", format!("resourceVersion: Invalid value: {quoted}: {why}"));
    }
    Status::bad_request(format!("invalid resource version {quoted}: {why}"))
}

fn check_watch(initial: Option<bool>, matching: &str) -> Result<(), Status> {
    match (initial, matching) {
        (None, "") | (Some(_), "NotOlderThan") => Ok(()),
        (None, _) => Err(forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
        (Some(_), _) => Err(forbidden(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        )),
    }
}

fn check_list(initial: Option<bool>, matching: &str, sent: &str, continued: bool) -> Result<(), Status> {
    if initial.is_some() {
        return Err(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if continued && !sent.is_empty() && sent != "0" {
        return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
    }
    if matching.is_empty() {
        return Ok(());
    }
    if sent.is_empty() {
        return Err(forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ));
    }
    if continued {
        return Err(forbidden("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided"));
    }
    match matching {
        "NotOlderThan" => Ok(()),
        "Exact" if sent == "0" => Err(forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        )),
        "Exact" => Ok(()),
        other => Err(list_error(
            "resourceVersionMatch",
            FieldCause::NotSupported(other.into(), vec!["Exact".into(), "NotOlderThan".into(), String::new()]),
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resource(path: &str) -> ResourcePath {
        match Path::parse(path) {
            Some(Path::Resource(resource)) => resource,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_name_group_namespace_resource_name_and_subresource() {
        assert_eq!(Path::parse("/api"), Some(Path::Root { legacy: true }));
        assert_eq!(Path::parse("/apis/"), Some(Path::Root { legacy: false }));
        assert_eq!(Path::parse("/nope"), None);
        let pod = resource("/api/v1/namespaces/a/pods/p%31/status");
        assert_eq!((pod.namespace.as_deref(), pod.resource.as_str()), (Some("a"), "pods"));
        assert_eq!((pod.name.as_deref(), pod.subresource.as_deref()), (Some("p1"), Some("status")));
        let namespace = resource("/api/v1/namespaces/a/status");
        assert_eq!((namespace.resource.as_str(), namespace.subresource.as_deref()), ("namespaces", Some("status")));
        assert_eq!(resource("/api/v1/namespaces/a").name.as_deref(), Some("a"));
        let leases = resource("/apis/coordination.k8s.io/v1/leases");
        assert_eq!((leases.group.as_str(), leases.namespace), ("coordination.k8s.io", None));
    }

    proptest! {
        #[test]
        fn no_path_panics_and_no_name_holds_a_slash(path in "/(api|apis)/[a-z0-9%/.]{0,40}") {
            if let Some(Path::Resource(found)) = Path::parse(&path) {
                prop_assert!(!found.name.unwrap_or_default().contains('/'));
                prop_assert!(!found.namespace.unwrap_or_default().contains('/'));
            }
        }
    }
}
