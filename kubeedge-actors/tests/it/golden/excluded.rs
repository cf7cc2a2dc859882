//! Recorded exchanges that do not apply, each with its reason.

const APPLY: &str = "server-side apply is not served yet: 415 says so";
const OLD_ETCD: &str =
    "a fault of the recorded server, whose etcd was too old to tell its progress; what it should say: `beyond`";

/// File, exchange, reason.
pub(crate) const EXCLUDED: &[(&str, &str, &str)] = &[
    ("03-update-patch", "apply create", APPLY),
    ("03-update-patch", "apply other field", APPLY),
    ("03-update-patch", "apply conflict", APPLY),
    ("03-update-patch", "apply force", APPLY),
    ("03-update-patch", "apply without manager", APPLY),
    ("08-watch", "watch no rv", OLD_ETCD),
    ("08-watch", "watch list (sendInitialEvents)", OLD_ETCD),
];

const NOT_YET: &str = "not served yet";
const FOREIGN: &str = "a definition that the recorded cluster had";
const PROXIED: &str = "nothing is proxied: 501 says so";

/// Groups, and resources of the core group, that the recorded server lists and this one does not, each with its reason.
pub(crate) const NOT_SERVED: &[(&str, &str)] = &[
    ("admissionregistration.k8s.io", NOT_YET),
    ("apiregistration.k8s.io", "no other API server stands behind this one"),
    ("autoscaling", "its Scale is served with those who have one"),
    ("batch", NOT_YET),
    ("certificates.k8s.io", "nodes get theirs by enrolment"),
    ("flowcontrol.apiserver.k8s.io", NOT_YET),
    ("networking.k8s.io", NOT_YET),
    ("policy", "its Eviction is served with pods"),
    ("rbac.authorization.k8s.io", NOT_YET),
    ("resource.k8s.io", NOT_YET),
    ("scheduling.k8s.io", NOT_YET),
    ("storage.k8s.io", NOT_YET),
    ("apps.kubeedge.io", FOREIGN),
    ("devices.kubeedge.io", FOREIGN),
    ("operations.kubeedge.io", FOREIGN),
    ("policy.kubeedge.io", FOREIGN),
    ("reliablesyncs.kubeedge.io", FOREIGN),
    ("rules.kubeedge.io", FOREIGN),
    ("componentstatuses", "deprecated, and there are no such components"),
    ("limitranges", NOT_YET),
    ("nodes/proxy", PROXIED),
    ("pods/proxy", PROXIED),
    ("services/proxy", PROXIED),
    ("podtemplates", NOT_YET),
    ("replicationcontrollers", "ReplicaSets are served"),
    ("replicationcontrollers/scale", "ReplicaSets are served"),
    ("replicationcontrollers/status", "ReplicaSets are served"),
    ("resourcequotas", NOT_YET),
    ("resourcequotas/status", NOT_YET),
];

/// Why an exchange is not compared.
pub(crate) fn reason(file: &str, name: &str) -> Option<&'static str> {
    EXCLUDED.iter().find(|(f, n, _)| *f == file && *n == name).map(|(_, _, reason)| *reason)
}
