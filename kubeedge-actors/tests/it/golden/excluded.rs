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

/// Why an exchange is not compared.
pub(crate) fn reason(file: &str, name: &str) -> Option<&'static str> {
    EXCLUDED.iter().find(|(f, n, _)| *f == file && *n == name).map(|(_, _, reason)| *reason)
}
