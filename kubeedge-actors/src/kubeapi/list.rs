//! GET on a collection: selectors, pages, and lists as of a resourceVersion.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};

use super::collection::Collection;
use super::object::Key;
use super::request::{At, ListOptions};
use super::status::Status;
use super::table::{ListMeta, View};

/// Where the next page starts.
#[derive(Clone, Debug, PartialEq)]
struct Continue {
    /// State to go on with; `None` is the present (the way on after `410`).
    resource_version: Option<u64>,
    /// The last key of the page before.
    after: Key,
}

impl Continue {
    fn encode(&self) -> String {
        let version = self.resource_version.map_or(Value::from(-1), Value::from);
        let start = format!("{}/{}", self.after.namespace, self.after.name);
        URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": version, "start": start}).to_string())
    }

    fn decode(token: &str) -> Result<Self, Status> {
        let refuse =
            |why: String| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|error| refuse(error.to_string()))?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
        if value["v"] != "meta.k8s.io/v1" {
            return Err(refuse(format!("server does not recognize this encoded version {}", value["v"])));
        }
        let resource_version = match &value["rv"] {
            Value::Number(number) if number.as_i64() == Some(-1) => None,
            number => Some(number.as_u64().ok_or_else(|| refuse("incorrect encoded start resourceVersion".into()))?),
        };
        let start = value["start"].as_str().unwrap_or_default();
        let (namespace, name) = start.split_once('/').ok_or_else(|| refuse("encoded start key is not valid".into()))?;
        Ok(Self { resource_version, after: Key::new(namespace, name) })
    }
}

/// Lists one namespace, or all.
pub(crate) fn list(
    collection: &dyn Collection,
    namespace: Option<&str>,
    view: &View,
    options: &ListOptions,
) -> Result<Bytes, Status> {
    let from = options.continue_.as_deref().map(Continue::decode).transpose()?;
    let current = collection.resource_version();
    let position = match (&from, options.at) {
        (Some(from), _) => from.resource_version,
        (None, At::Latest) => None,
        (None, At::NotOlderThan(version)) if version <= current => None,
        (None, At::Exact(version)) if version <= current => Some(version),
        (None, At::NotOlderThan(version) | At::Exact(version)) => {
            return Err(Status::resource_version_too_large(version, current));
        }
    };
    if let Some(version) = position.filter(|version| *version > current) {
        return Err(Status::resource_version_too_large(version, current));
    }
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let (mut items, mut beyond) = (Vec::new(), 0_usize);
    let after = from.as_ref().map(|from| &from.after);
    if after.is_some_and(|after| namespace.is_some_and(|namespace| namespace != after.namespace)) {
        return Err(Status::bad_request("invalid continue token: it is of another namespace"));
    }
    // Counting what remains is cheap without a selector; with one the count would be of the wrong things.
    let count = options.selector.is_empty();
    let scanned = collection.scan(namespace, position, after, &mut |object| {
        if options.selector.matches(object) {
            if items.len() < limit {
                items.push(object.clone());
            } else {
                beyond += 1;
                return count;
            }
        }
        true
    });
    let resource_version = scanned.map_err(|_| match &from {
        Some(from) => expired_continue(from),
        None => Status::expired(format!(
            "The resourceVersion for the provided list is too old: {}",
            position.unwrap_or_default()
        )),
    })?;
    let mut meta = ListMeta { resource_version, ..ListMeta::default() };
    if beyond > 0
        && let Some(last) = items.last()
    {
        let next = Continue { resource_version: Some(resource_version), after: last.key.clone() };
        meta.continue_ = Some(next.encode());
        meta.remaining = count.then_some(beyond);
    }
    Ok(view.list(&meta, &items))
}

fn expired_continue(from: &Continue) -> Status {
    Status::expired_page(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
        &Continue { resource_version: None, after: from.after.clone() }.encode(),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_comes_back_as_it_went(
            version in proptest::option::of(0..1_000_000_u64), ns in "[a-z]{0,9}", name in "[a-z.]{1,9}",
        ) {
            let token = Continue { resource_version: version, after: Key::new(&ns, &name) };
            prop_assert_eq!(Continue::decode(&token.encode()).unwrap(), token);
        }

        #[test]
        fn no_token_panics(token in "\\PC{0,40}") {
            if let Err(status) = Continue::decode(&token) {
                prop_assert_eq!(status.code, 400);
            }
        }
    }
}
