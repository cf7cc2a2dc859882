//! Which kinds are served. Pure.

use kubeedge_proto::{resource, v1::ResourceType};

use crate::kubeapi::{
    discovery::{Catalog, Offer, Subresource},
    kinds,
    resource::Resource,
};

/// What can be done with every kind.
const VERBS: &[&str] = &["get", "list", "watch"];

static KINDS: [Resource; 9] = [
    kinds::CONFIG_MAP,
    kinds::NODE,
    kinds::PERSISTENT_VOLUME_CLAIM,
    kinds::PERSISTENT_VOLUME,
    kinds::POD,
    kinds::SECRET,
    kinds::DEVICE_MODEL,
    kinds::DEVICE,
    kinds::RULE,
];

/// The kinds that a node holds, by group and plural name.
pub(super) fn all() -> &'static [Resource] {
    &KINDS
}

/// The type of a kind, as MetaManager has it.
pub(super) fn type_of(kind: &Resource) -> ResourceType {
    ResourceType {
        group: kind.group.to_owned(),
        version: kind.version.to_owned(),
        resource: kind.plural.to_owned(),
        kind: kind.kind.to_owned(),
    }
}

/// Whether this node's own reports are the status of a kind's objects.
pub(super) fn is_reported(type_: &ResourceType) -> bool {
    *type_ == resource::pods() || is_own(type_)
}

/// Whether a kind's only object is this node's own, which the cloud does not send by itself.
pub(super) fn is_own(type_: &ResourceType) -> bool {
    *type_ == resource::nodes()
}

/// What clients are told.
pub(super) fn catalog() -> Catalog {
    let offer = |kind: &'static Resource| {
        let status = Subresource {
            group: kind.group,
            version: kind.version,
            plural: kind.plural,
            name: "status",
            namespaced: kind.namespaced,
            kind: (kind.group, kind.version, kind.kind),
            verbs: &["get"],
        };
        let subresources = kind.status_subresource.then_some(status).into_iter().collect();
        Offer { resource: kind, verbs: VERBS.to_vec(), subresources }
    };
    Catalog { offers: KINDS.iter().map(offer).collect(), write_only: &[], group_order: &[] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_holds_is_served_under_the_name_that_metamanager_has_it_by() {
        let served: Vec<ResourceType> = all().iter().map(type_of).collect();
        let held = [
            resource::pods(),
            resource::nodes(),
            resource::config_maps(),
            resource::secrets(),
            resource::persistent_volume_claims(),
            resource::persistent_volumes(),
            resource::devices(),
            resource::device_models(),
            resource::rules(),
        ];
        for type_ in &held {
            assert!(served.contains(type_), "{type_}");
        }
        assert_eq!(served.len(), held.len());
    }

    #[test]
    fn discovery_names_every_kind_with_reading_verbs_only() {
        let core = catalog().resources("", "v1").unwrap();
        let pods = core["resources"].as_array().unwrap().iter().find(|one| one["name"] == "pods").unwrap();
        assert_eq!(pods["verbs"], serde_json::json!(["get", "list", "watch"]));
        let groups = catalog().groups();
        let names: Vec<&str> = groups["groups"].as_array().unwrap().iter().filter_map(|g| g["name"].as_str()).collect();
        assert_eq!(names, ["devices.kubeedge.io", "rules.kubeedge.io"]);
    }
}
