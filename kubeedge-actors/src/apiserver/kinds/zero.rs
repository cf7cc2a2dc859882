//! Zero values: which of them Go writes and which it leaves out.
//!
//! Go leaves an `omitempty` field out when it holds its zero value and writes a pointer to zero; the schemas do not
//! tell one from the other, so the fields that are plain values are listed here. A field that is missing in a list is
//! kept as the user wrote it, which at worst stores a `false` that Kubernetes would not have stored.

use serde_json::{Value, json};

use super::schema::{Struct, Type};

/// Booleans that are plain values.
const PLAIN_BOOLS: &[(&str, &str)] = &[
    ("PodSpec", "hostNetwork"),
    ("PodSpec", "hostPID"),
    ("PodSpec", "hostIPC"),
    ("Container", "stdin"),
    ("Container", "stdinOnce"),
    ("Container", "tty"),
    ("EphemeralContainer", "stdin"),
    ("EphemeralContainer", "stdinOnce"),
    ("EphemeralContainer", "tty"),
    ("VolumeMount", "readOnly"),
    ("NodeSpec", "unschedulable"),
    ("PersistentVolumeClaimVolumeSource", "readOnly"),
    ("NFSVolumeSource", "readOnly"),
    ("CustomResourceDefinitionSpec", "preserveUnknownFields"),
    ("CustomResourceDefinitionVersion", "deprecated"),
    ("JSONSchemaProps", "exclusiveMaximum"),
    ("JSONSchemaProps", "exclusiveMinimum"),
    ("JSONSchemaProps", "nullable"),
    ("JSONSchemaProps", "uniqueItems"),
    ("JSONSchemaProps", "x-kubernetes-embedded-resource"),
    ("JSONSchemaProps", "x-kubernetes-int-or-string"),
    ("ServiceSpec", "publishNotReadyAddresses"),
    ("DeploymentSpec", "paused"),
];

/// Integers that are plain values.
const PLAIN_INTS: &[(&str, &str)] = &[
    ("ContainerPort", "hostPort"),
    ("Probe", "initialDelaySeconds"),
    ("Probe", "timeoutSeconds"),
    ("Probe", "periodSeconds"),
    ("Probe", "successThreshold"),
    ("Probe", "failureThreshold"),
    ("ContainerStateTerminated", "signal"),
    ("Event", "count"),
    ("Event", "deprecatedCount"),
    ("ServicePort", "nodePort"),
    ("ServiceSpec", "healthCheckNodePort"),
    ("EventSeries", "count"),
    ("ObjectMeta", "generation"),
    ("PodStatus", "observedGeneration"),
    ("PodCondition", "observedGeneration"),
    ("CustomResourceColumnDefinition", "priority"),
    ("DeploymentSpec", "minReadySeconds"),
    ("DeploymentStatus", "observedGeneration"),
    ("DeploymentStatus", "replicas"),
    ("DeploymentStatus", "updatedReplicas"),
    ("DeploymentStatus", "readyReplicas"),
    ("DeploymentStatus", "availableReplicas"),
    ("DeploymentStatus", "unavailableReplicas"),
    ("ReplicaSetSpec", "minReadySeconds"),
    ("ReplicaSetStatus", "fullyLabeledReplicas"),
    ("ReplicaSetStatus", "readyReplicas"),
    ("ReplicaSetStatus", "availableReplicas"),
    ("ReplicaSetStatus", "observedGeneration"),
    ("DaemonSetSpec", "minReadySeconds"),
    ("DaemonSetStatus", "observedGeneration"),
    ("DaemonSetStatus", "updatedNumberScheduled"),
    ("DaemonSetStatus", "numberAvailable"),
    ("DaemonSetStatus", "numberUnavailable"),
    ("StatefulSetSpec", "minReadySeconds"),
    ("StatefulSetStatus", "observedGeneration"),
    ("StatefulSetStatus", "readyReplicas"),
    ("StatefulSetStatus", "currentReplicas"),
    ("StatefulSetStatus", "updatedReplicas"),
    ("ScaleSpec", "replicas"),
];

/// Strings that are pointers: an empty one is kept.
const POINTER_STRINGS: &[(&str, &str)] = &[
    ("HostPathVolumeSource", "type"),
    ("GRPCAction", "service"),
    ("LeaseSpec", "holderIdentity"),
    ("LeaseSpec", "preferredHolder"),
    ("LeaseSpec", "strategy"),
    ("PersistentVolumeClaimSpec", "storageClassName"),
    ("PersistentVolumeClaimSpec", "volumeAttributesClassName"),
    ("PodSpec", "runtimeClassName"),
    ("SecurityContext", "procMount"),
    ("Lifecycle", "stopSignal"),
    ("VolumeMount", "mountPropagation"),
    ("ServicePort", "appProtocol"),
    // Of a slice; Endpoints drop an empty name themselves.
    ("EndpointPort", "name"),
    ("EndpointPort", "appProtocol"),
    ("EndpointAddress", "nodeName"),
    ("Endpoint", "hostname"),
    ("Endpoint", "nodeName"),
    ("Endpoint", "zone"),
    ("ServiceSpec", "loadBalancerClass"),
    ("VolumeMount", "recursiveReadOnly"),
];

/// Fields that Go writes although nobody set them.
pub(crate) fn written(owner: &str) -> Vec<(String, Value)> {
    let fields: &[(&str, Value)] = &match owner {
        "Container" | "EphemeralContainer" => vec![("resources", json!({}))],
        "PodCondition" => vec![("lastProbeTime", Value::Null), ("lastTransitionTime", Value::Null)],
        "NodeCondition" => vec![("lastHeartbeatTime", Value::Null), ("lastTransitionTime", Value::Null)],
        "ContainerStateRunning" => vec![("startedAt", Value::Null)],
        "ContainerStateTerminated" => {
            vec![("exitCode", json!(0)), ("startedAt", Value::Null), ("finishedAt", Value::Null)]
        }
        "ContainerStatus" => vec![
            ("name", json!("")),
            ("state", json!({})),
            ("lastState", json!({})),
            ("ready", json!(false)),
            ("restartCount", json!(0)),
            ("image", json!("")),
            ("imageID", json!("")),
        ],
        "NodeStatus" => vec![("daemonEndpoints", json!({"kubeletEndpoint": {"Port": 0}})), ("nodeInfo", node_info())],
        "NodeDaemonEndpoints" => vec![("kubeletEndpoint", json!({"Port": 0}))],
        "DaemonEndpoint" => vec![("Port", json!(0))],
        "NodeSystemInfo" => match node_info() {
            Value::Object(fields) => return fields.into_iter().collect(),
            _ => vec![],
        },
        "ReplicaSetStatus" => vec![("replicas", json!(0))],
        "StatefulSetStatus" => vec![("availableReplicas", json!(0)), ("replicas", json!(0))],
        "DaemonSetStatus" => ["currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"]
            .map(|field| (field, json!(0)))
            .to_vec(),
        "ScaleStatus" => vec![("replicas", json!(0))],
        "Event" => vec![
            ("metadata", json!({})),
            ("involvedObject", json!({})),
            ("source", json!({})),
            ("firstTimestamp", Value::Null),
            ("lastTimestamp", Value::Null),
            ("eventTime", Value::Null),
            ("reportingComponent", json!("")),
            ("reportingInstance", json!("")),
        ],
        _ => vec![],
    };
    fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// The system information of a node that has not reported any.
pub(crate) fn node_info() -> Value {
    json!({"machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "",
        "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "", "operatingSystem": "",
        "architecture": ""})
}

/// What `null` becomes inside a list or map, and in a required field.
pub(crate) fn of(type_: &Type) -> Value {
    match type_ {
        Type::Struct(_) | Type::Map(_) => json!({}),
        Type::List(_) => json!([]),
        Type::String | Type::Bytes => json!(""),
        Type::Bool => json!(false),
        Type::Int32 | Type::Int64 | Type::IntOrString | Type::Float => json!(0),
        Type::Quantity => json!("0"),
        Type::Time | Type::MicroTime | Type::Any => Value::Null,
    }
}

/// Whether Go leaves an optional field with this value out.
pub(crate) fn is_left_out(owner: &Struct, name: &str, type_: &Type, value: &Value) -> bool {
    let listed = |list: &[(&str, &str)]| list.contains(&(owner.name.as_str(), name));
    match (type_, value) {
        (_, Value::Null) => true,
        (Type::List(_), Value::Array(items)) => items.is_empty(),
        (Type::Map(_), Value::Object(entries)) => entries.is_empty(),
        (Type::String, Value::String(text)) => text.is_empty() && !listed(POINTER_STRINGS),
        (Type::Bool, Value::Bool(value)) => !value && listed(PLAIN_BOOLS),
        (Type::Int32 | Type::Int64, Value::Number(number)) => number.as_i64() == Some(0) && listed(PLAIN_INTS),
        _ => false,
    }
}
