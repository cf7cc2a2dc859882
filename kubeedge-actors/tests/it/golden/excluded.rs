//! Recorded exchanges that do not apply, each with its reason.

/// Bodies whose text is the recorded server's own list of parts.
pub(crate) const TEXT_NOT_COMPARED: &[&str] = &["readyz verbose"];

const VERSION: &str = "says which server it is: compared by the fields a client reads, in a test of its own";
const APPS: &str = "group apps is not served yet";
const APPLY: &str = "server-side apply is not served yet: 415 says so";
const CRD: &str = "custom resources are not served yet";
const OLD_ETCD: &str =
    "the recorded server's etcd was too old to tell its progress; a newer one answers as this server does";

/// File, exchange, reason.
pub(crate) const EXCLUDED: &[(&str, &str, &str)] = &[
    ("01-discovery", "version", VERSION),
    ("01-discovery", "apps v1", APPS),
    (
        "03-update-patch",
        "get for update",
        "the recorder changed the answer before it wrote it down: `data.a` was still 1",
    ),
    ("03-update-patch", "apply create", APPLY),
    ("03-update-patch", "apply other field", APPLY),
    ("03-update-patch", "apply conflict", APPLY),
    ("03-update-patch", "apply force", APPLY),
    ("03-update-patch", "apply without manager", APPLY),
    ("06-crd", "crd create", CRD),
    ("06-crd", "crd get (conditions)", CRD),
    ("06-crd", "crd bad name", CRD),
    ("06-crd", "group discovery", CRD),
    ("06-crd", "cr create (default, prune)", CRD),
    ("06-crd", "cr missing required", CRD),
    ("06-crd", "cr out of range", CRD),
    ("06-crd", "cr bad enum and type", CRD),
    ("06-crd", "cr unknown field strict", CRD),
    ("06-crd", "cr status patch", CRD),
    ("06-crd", "cr spec patch keeps status", CRD),
    ("06-crd", "cr strategic patch", CRD),
    ("06-crd", "cr table", CRD),
    ("06-crd", "cr generation after no-op", CRD),
    ("08-watch", "watch no rv", OLD_ETCD),
    ("08-watch", "watch list (sendInitialEvents)", OLD_ETCD),
    ("10-namespace-delete", "cleanup crd", CRD),
];

/// Why an exchange is not compared.
pub(crate) fn reason(file: &str, name: &str) -> Option<&'static str> {
    EXCLUDED.iter().find(|(f, n, _)| *f == file && *n == name).map(|(_, _, reason)| *reason)
}
