//! Recorded exchanges that do not apply, each with its reason.

/// Bodies whose text is the recorded server's own list of parts.
pub(crate) const TEXT_NOT_COMPARED: &[&str] = &["readyz verbose"];

const VERSION: &str = "says which server it is: compared by the fields a client reads, in a test of its own";
const APPLY: &str = "server-side apply is not served yet: 415 says so";
const OLD_ETCD: &str =
    "the recorded server's etcd was too old to tell its progress; a newer one answers as this server does";

/// File, exchange, reason.
pub(crate) const EXCLUDED: &[(&str, &str, &str)] = &[
    ("01-discovery", "version", VERSION),
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
    ("08-watch", "watch no rv", OLD_ETCD),
    ("08-watch", "watch list (sendInitialEvents)", OLD_ETCD),
];

/// Why an exchange is not compared.
pub(crate) fn reason(file: &str, name: &str) -> Option<&'static str> {
    EXCLUDED.iter().find(|(f, n, _)| *f == file && *n == name).map(|(_, _, reason)| *reason)
}
