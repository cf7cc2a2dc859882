//! The kinds the server serves, one file each, and what the generic code reads of them: a row of a table.
//!
//! A kind decides nothing about storage, watches or HTTP: it decodes (`decode`), sets defaults, finds what is wrong
//! and prints table cells, all as pure functions of JSON objects. Adding a kind is one file and one line in the table.

pub(crate) mod apps;
mod configmap;
pub(crate) mod decode;
mod definition;
mod endpoints;
pub(crate) mod endpointslice;
mod event;
mod event_v1;
pub(crate) mod fields;
mod lease;
pub mod namespace;
pub mod node;
mod persistentvolume;
mod pod;
pub(crate) mod portion;
pub mod quantity;
pub(crate) mod runtimeclass;
pub(crate) mod schema;
mod secret;
pub(crate) mod service;
pub mod serviceaccount;
pub(crate) mod time;
mod zero;

use super::kind::Kind;
use crate::kubeapi::kinds::cells as table;
pub(crate) use crate::kubeapi::names;

static KINDS: [Kind; 21] = [
    configmap::KIND,
    endpoints::KIND,
    event::KIND,
    namespace::KIND,
    node::KIND,
    persistentvolume::CLAIM,
    persistentvolume::VOLUME,
    pod::KIND,
    secret::KIND,
    serviceaccount::KIND,
    service::KIND,
    apps::CONTROLLER_REVISION,
    apps::DAEMON_SET,
    apps::DEPLOYMENT,
    apps::REPLICA_SET,
    apps::STATEFUL_SET,
    event_v1::KIND,
    definition::KIND,
    lease::KIND,
    runtimeclass::KIND,
    endpointslice::KIND,
];

/// All kinds, core first, then by group as a real API server has them, each in the order of their plural names.
pub fn kinds() -> &'static [Kind] {
    &KINDS
}

/// The kind of a resource, e.g. `("", "v1", "pods")`.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
}

/// The part of a kind's objects that this subresource is, if it is one.
pub(crate) fn portion(kind: &Kind, subresource: &str) -> Option<&'static portion::Portion> {
    let portions: &[portion::Portion] = if (kind.group, kind.plural) == ("", "pods") { &pod::PORTIONS } else { &[] };
    portions.iter().find(|portion| portion.name == subresource)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::decode::tests::any_of;
    use super::*;

    fn any_object() -> impl Strategy<Value = (&'static Kind, serde_json::Value, serde_json::Value)> {
        proptest::sample::select((0..KINDS.len()).collect::<Vec<_>>()).prop_flat_map(|index| {
            let kind = &KINDS[index];
            (Just(kind), any_of(&schema::definition(kind)), any_of(&schema::definition(kind)))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn whatever_decodes_is_defaulted_judged_and_printed((kind, new, old) in any_object(), now in any::<i64>()) {
            let stored = |sent| {
                let mut object = (kind.decode)(sent).expect("a value of the schema decodes").object;
                (kind.default)(&mut object);
                object
            };
            let (new, old) = (stored(new), stored(old));
            let mut again = new.clone();
            (kind.default)(&mut again);
            prop_assert_eq!(&again, &new, "defaults of {} settle", kind.kind);
            let decoded = (kind.decode)(new.clone()).expect("the stored form decodes");
            prop_assert!(decoded.unknown_fields.is_empty(), "{:?}", decoded.unknown_fields);
            for errors in [
                (kind.validate_create)(&new),
                (kind.validate_update)(&new, &old),
                (kind.validate_status)(&new, &old),
            ] {
                prop_assert!(errors.len() <= 3 * fields::MAX_ERRORS);
            }
            prop_assert_eq!((kind.cells)(&new, now).len(), kind.columns.len());
            for (_, read) in kind.selectable {
                read(&new);
            }
        }
    }

    #[test]
    fn rows_are_found_by_group_version_and_plural() {
        for kind in kinds() {
            let found = find(kind.group, kind.version, kind.plural).map(|k| k.kind);
            assert_eq!(found, Some(kind.kind));
        }
        assert!(find("", "v1", "leases").is_none() && find("", "v1", "Pods").is_none());
    }

    #[test]
    fn every_kind_decodes_defaults_and_prints_a_minimal_object() {
        for kind in kinds() {
            let api_version = if kind.group.is_empty() {
                kind.version.to_owned()
            } else {
                format!("{}/{}", kind.group, kind.version)
            };
            let minimal = json!({"apiVersion": api_version, "kind": kind.kind, "metadata": {"name": "x"}});
            let mut object = (kind.decode)(minimal).expect("a minimal object decodes").object;
            (kind.default)(&mut object);
            assert_eq!((kind.cells)(&object, 0).len(), kind.columns.len(), "{}", kind.kind);
            // What defaults put in is of the kind's own schema, and setting them again changes nothing.
            let decoded = (kind.decode)(object.clone()).expect("the stored form decodes");
            assert_eq!(decoded.unknown_fields, Vec::<String>::new(), "{}", kind.kind);
            let mut again = decoded.object;
            (kind.default)(&mut again);
            assert_eq!(again, object, "{}", kind.kind);
        }
    }
}
