//! How lists and maps of the served kinds are merged: the strategy and key of a strategic merge patch and the list type
//! of server-side apply. Facts of the Kubernetes API, one row a field.

/// How one list or map field is merged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Merge {
    /// Go's name of the struct, e.g. `PodSpec`.
    pub(crate) owner: &'static str,
    /// The field, as JSON names it.
    pub(crate) field: &'static str,
    /// `x-kubernetes-patch-strategy`, e.g. `merge,retainKeys`; empty when a patch replaces the value.
    pub(crate) strategy: &'static str,
    /// `x-kubernetes-patch-merge-key`; empty for lists of scalars.
    pub(crate) key: &'static str,
    /// `x-kubernetes-list-type` (`atomic`, `set`, `map`), or `granular` for maps that are merged key by key.
    pub(crate) list_type: &'static str,
    /// `x-kubernetes-list-map-keys`.
    pub(crate) list_keys: &'static [&'static str],
}

impl Merge {
    /// Whether a strategic merge patch merges the items instead of replacing the whole.
    pub(crate) fn merges(&self) -> bool {
        self.strategy.split(',').any(|part| part == "merge")
    }
}

/// How `field` of struct `owner` is merged; `None` where nothing special is known.
pub(crate) fn of(owner: &str, field: &str) -> Option<&'static Merge> {
    TABLE.iter().find(|row| row.owner == owner && row.field == field)
}

const fn atomic(owner: &'static str, field: &'static str) -> Merge {
    Merge { owner, field, strategy: "", key: "", list_type: "atomic", list_keys: &[] }
}

const fn set(owner: &'static str, field: &'static str, strategy: &'static str) -> Merge {
    Merge { owner, field, strategy, key: "", list_type: "set", list_keys: &[] }
}

const fn merge(
    owner: &'static str,
    field: &'static str,
    key: &'static str,
    list_type: &'static str,
    list_keys: &'static [&'static str],
) -> Merge {
    Merge { owner, field, strategy: "merge", key, list_type, list_keys }
}

const fn retain(owner: &'static str, field: &'static str, list_keys: &'static [&'static str]) -> Merge {
    Merge { owner, field, strategy: "merge,retainKeys", key: "name", list_type: "map", list_keys }
}

const NAME: &[&str] = &["name"];
const TYPE: &[&str] = &["type"];
const IP: &[&str] = &["ip"];
const PORT: &[&str] = &["containerPort", "protocol"];

static TABLE: &[Merge] = &[
    atomic("PersistentVolumeClaimSpec", "accessModes"),
    atomic("RBDVolumeSource", "monitors"),
    atomic("CephFSVolumeSource", "monitors"),
    atomic("SecretVolumeSource", "items"),
    atomic("SecretProjection", "items"),
    atomic("ISCSIVolumeSource", "portals"),
    atomic("FCVolumeSource", "targetWWNs"),
    atomic("FCVolumeSource", "wwids"),
    atomic("ConfigMapVolumeSource", "items"),
    atomic("ConfigMapProjection", "items"),
    atomic("ProjectedVolumeSource", "sources"),
    atomic("HTTPGetAction", "httpHeaders"),
    atomic("ExecAction", "command"),
    atomic("Capabilities", "add"),
    atomic("Capabilities", "drop"),
    Merge { owner: "ResourceRequirements", field: "claims", strategy: "", key: "", list_type: "map", list_keys: NAME },
    atomic("Container", "command"),
    atomic("Container", "args"),
    merge("Container", "ports", "containerPort", "map", PORT),
    atomic("Container", "envFrom"),
    merge("Container", "env", "name", "map", NAME),
    atomic("Container", "resizePolicy"),
    atomic("Container", "restartPolicyRules"),
    merge("Container", "volumeMounts", "mountPath", "map", &["mountPath"]),
    merge("Container", "volumeDevices", "devicePath", "map", &["devicePath"]),
    merge("ContainerStatus", "volumeMounts", "mountPath", "map", &["mountPath"]),
    merge("ContainerStatus", "allocatedResourcesStatus", "name", "map", NAME),
    Merge {
        owner: "ResourceStatus",
        field: "resources",
        strategy: "",
        key: "",
        list_type: "map",
        list_keys: &["resourceID"],
    },
    atomic("LinuxContainerUser", "supplementalGroups"),
    atomic("NodeSelector", "nodeSelectorTerms"),
    atomic("NodeSelectorTerm", "matchExpressions"),
    atomic("NodeSelectorTerm", "matchFields"),
    atomic("NodeSelectorRequirement", "values"),
    atomic("PodAffinity", "requiredDuringSchedulingIgnoredDuringExecution"),
    atomic("PodAffinity", "preferredDuringSchedulingIgnoredDuringExecution"),
    atomic("PodAntiAffinity", "requiredDuringSchedulingIgnoredDuringExecution"),
    atomic("PodAntiAffinity", "preferredDuringSchedulingIgnoredDuringExecution"),
    atomic("PodAffinityTerm", "namespaces"),
    atomic("PodAffinityTerm", "matchLabelKeys"),
    atomic("PodAffinityTerm", "mismatchLabelKeys"),
    atomic("NodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution"),
    retain("PodSpec", "volumes", NAME),
    merge("PodSpec", "initContainers", "name", "map", NAME),
    merge("PodSpec", "containers", "name", "map", NAME),
    merge("PodSpec", "ephemeralContainers", "name", "map", NAME),
    atomic("PodSpec", "nodeSelector"),
    merge("PodSpec", "imagePullSecrets", "name", "map", NAME),
    atomic("PodSpec", "tolerations"),
    atomic("Scheduling", "nodeSelector"),
    atomic("Scheduling", "tolerations"),
    merge("PodSpec", "hostAliases", "ip", "map", IP),
    atomic("PodSpec", "readinessGates"),
    merge("PodSpec", "topologySpreadConstraints", "topologyKey", "map", &["topologyKey", "whenUnsatisfiable"]),
    merge("PodSpec", "schedulingGates", "name", "map", NAME),
    retain("PodSpec", "resourceClaims", NAME),
    atomic("TopologySpreadConstraint", "matchLabelKeys"),
    atomic("HostAlias", "hostnames"),
    atomic("PodSecurityContext", "supplementalGroups"),
    atomic("PodSecurityContext", "sysctls"),
    atomic("PodDNSConfig", "nameservers"),
    atomic("PodDNSConfig", "searches"),
    atomic("PodDNSConfig", "options"),
    atomic("EphemeralContainer", "command"),
    atomic("EphemeralContainer", "args"),
    merge("EphemeralContainer", "ports", "containerPort", "map", PORT),
    atomic("EphemeralContainer", "envFrom"),
    merge("EphemeralContainer", "env", "name", "map", NAME),
    atomic("EphemeralContainer", "resizePolicy"),
    atomic("EphemeralContainer", "restartPolicyRules"),
    merge("EphemeralContainer", "volumeMounts", "mountPath", "map", &["mountPath"]),
    merge("EphemeralContainer", "volumeDevices", "devicePath", "map", &["devicePath"]),
    merge("PodStatus", "conditions", "type", "map", TYPE),
    merge("PodStatus", "hostIPs", "ip", "atomic", &[]),
    merge("PodStatus", "podIPs", "ip", "map", IP),
    atomic("PodStatus", "initContainerStatuses"),
    atomic("PodStatus", "containerStatuses"),
    atomic("PodStatus", "ephemeralContainerStatuses"),
    retain("PodStatus", "resourceClaimStatuses", NAME),
    atomic("PodStatus", "nodeAllocatableResourceClaimStatuses"),
    merge("ServiceAccount", "secrets", "name", "map", NAME),
    atomic("ServiceAccount", "imagePullSecrets"),
    atomic("Endpoints", "subsets"),
    atomic("EndpointSubset", "addresses"),
    atomic("EndpointSubset", "notReadyAddresses"),
    atomic("EndpointSubset", "ports"),
    atomic("EndpointSlice", "endpoints"),
    atomic("EndpointSlice", "ports"),
    set("Endpoint", "addresses", ""),
    atomic("EndpointHints", "forZones"),
    atomic("EndpointHints", "forNodes"),
    merge("ServiceStatus", "conditions", "type", "map", TYPE),
    merge("ServiceSpec", "ports", "port", "map", &["port", "protocol"]),
    atomic("ServiceSpec", "selector"),
    atomic("ServiceSpec", "clusterIPs"),
    atomic("ServiceSpec", "externalIPs"),
    atomic("ServiceSpec", "loadBalancerSourceRanges"),
    atomic("ServiceSpec", "ipFamilies"),
    atomic("LoadBalancerStatus", "ingress"),
    atomic("LoadBalancerIngress", "ports"),
    set("NodeSpec", "podCIDRs", "merge"),
    atomic("NodeSpec", "taints"),
    merge("NodeStatus", "conditions", "type", "map", TYPE),
    merge("NodeStatus", "addresses", "type", "map", TYPE),
    atomic("NodeStatus", "images"),
    atomic("NodeStatus", "volumesInUse"),
    atomic("NodeStatus", "volumesAttached"),
    atomic("NodeStatus", "runtimeHandlers"),
    atomic("NodeStatus", "declaredFeatures"),
    atomic("ContainerImage", "names"),
    atomic("NamespaceSpec", "finalizers"),
    merge("NamespaceStatus", "conditions", "type", "map", TYPE),
    atomic("DownwardAPIVolumeSource", "items"),
    atomic("DownwardAPIProjection", "items"),
    merge("ObjectMeta", "ownerReferences", "uid", "map", &["uid"]),
    set("ObjectMeta", "finalizers", "merge"),
    atomic("ObjectMeta", "managedFields"),
    atomic("DeleteOptions", "dryRun"),
    atomic("LabelSelector", "matchExpressions"),
    merge("DaemonSetStatus", "conditions", "type", "map", TYPE),
    Merge {
        owner: "DeploymentSpec",
        field: "strategy",
        strategy: "retainKeys",
        key: "",
        list_type: "",
        list_keys: &[],
    },
    merge("DeploymentStatus", "conditions", "type", "map", TYPE),
    merge("ReplicaSetStatus", "conditions", "type", "map", TYPE),
    atomic("StatefulSetSpec", "volumeClaimTemplates"),
    merge("StatefulSetStatus", "conditions", "type", "map", TYPE),
    atomic("LabelSelectorRequirement", "values"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::kinds::schema::{Schemas, Type};

    #[test]
    fn every_row_is_a_list_or_map_of_a_served_type_or_newer_than_the_schemas() {
        // Fields of Kubernetes 1.34 and later, which the schemas (1.33) do not have yet.
        let newer = [
            "Container.restartPolicyRules",
            "EphemeralContainer.restartPolicyRules",
            "PodStatus.nodeAllocatableResourceClaimStatuses",
            "NodeStatus.declaredFeatures",
        ];
        let schemas = Schemas::get();
        for row in TABLE {
            let place = format!("{}.{}", row.owner, row.field);
            let owner = schemas.structs.iter().find(|s| s.name == row.owner);
            match owner.and_then(|owner| owner.fields.get(row.field)).map(|field| &field.type_) {
                Some(Type::List(item)) if !row.key.is_empty() => {
                    let Type::Struct(item) = **item else { panic!("{place} merges by key but holds no structs") };
                    assert!(schemas.at(item).fields.contains_key(row.key), "{place} has no {}", row.key);
                }
                Some(Type::List(_) | Type::Map(_) | Type::Struct(_)) => {}
                Some(other) => panic!("{place} is {other:?}"),
                None => assert!(newer.contains(&place.as_str()), "{place} is in no schema"),
            }
        }
    }

    #[test]
    fn no_field_stands_twice() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(of(row.owner, row.field), TABLE.get(index));
        }
    }
}
