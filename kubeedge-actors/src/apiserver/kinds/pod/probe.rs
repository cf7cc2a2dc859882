//! Probes and lifecycle hooks.

use serde_json::Value;

use crate::apiserver::kinds::fields::{Errors, Path, integer, list, text};
use crate::apiserver::kinds::names;

pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub(super) const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

/// The probes a container may have.
pub(super) const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// Checks the lifecycle hooks and probes of a container.
pub(super) fn check_all(container: &Value, path: &Path, errors: &mut Errors) {
    if let Some(lifecycle) = container.get("lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(handler) = lifecycle.get(hook) {
                check_handler(handler, &path.field("lifecycle").field(hook), errors);
            }
        }
    }
    for field in PROBES {
        let Some(probe) = container.get(field) else { continue };
        let path = path.field(field);
        check_handler(probe, &path, errors);
        for number in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            if let Some(value) = probe.get(number).and_then(Value::as_i64)
                && value < 0
            {
                errors.invalid(&path.field(number), value, NOT_NEGATIVE);
            }
        }
        let threshold = integer(probe, "/successThreshold").unwrap_or(1);
        if field != "readinessProbe" && threshold != 1 {
            errors.invalid(&path.field("successThreshold"), threshold, "must be 1");
        }
        if let Some(grace) = integer(probe, "/terminationGracePeriodSeconds") {
            let path = path.field("terminationGracePeriodSeconds");
            if field == "readinessProbe" {
                errors.invalid(&path, grace, "must not be set for readinessProbes");
            } else if grace <= 0 {
                errors.invalid(&path, grace, "must be greater than 0");
            }
        }
    }
}

const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

fn check_handler(handler: &Value, path: &Path, errors: &mut Errors) {
    let mut found = HANDLERS.iter().filter_map(|kind| handler.get(kind).map(|action| (*kind, action)));
    let Some((kind, action)) = found.next() else {
        errors.required(path, "must specify a handler type");
        return;
    };
    for (kind, _) in found {
        errors.forbidden(&path.field(kind), "may not specify more than 1 handler type");
    }
    let path = path.field(kind);
    match kind {
        "exec" => {
            if list(action, "/command").is_empty() {
                errors.required(&path.field("command"), "");
            }
        }
        "httpGet" => {
            if text(action, "/path").is_empty() {
                errors.required(&path.field("path"), "");
            }
            check_port(action.get("port"), &path.field("port"), errors);
            errors.one_of(&path.field("scheme"), text(action, "/scheme"), &["HTTP", "HTTPS"]);
            for (index, header) in list(action, "/httpHeaders").iter().enumerate() {
                let name = text(header, "/name");
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
                    let path = path.field("httpHeaders").index(index).field("name");
                    errors.invalid(&path, name, "a valid HTTP header must consist of alphanumeric characters or '-'");
                }
            }
        }
        "sleep" => {
            let seconds = integer(action, "/seconds").unwrap_or_default();
            if seconds < 0 {
                errors.invalid(&path.field("seconds"), seconds, NOT_NEGATIVE);
            }
        }
        _ => check_port(action.get("port"), &path.field("port"), errors),
    }
}

/// A port by number or by name.
fn check_port(port: Option<&Value>, path: &Path, errors: &mut Errors) {
    match port {
        Some(Value::String(name)) => errors.format(path, name, names::port_name(name)),
        port => {
            let number = port.and_then(Value::as_i64).unwrap_or_default();
            if !(1..=65535).contains(&number) {
                errors.invalid(path, number, PORT_RANGE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(container: Value) -> Vec<String> {
        let mut errors = Errors::default();
        check_all(&container, &Path::new("c"), &mut errors);
        errors.done().into_iter().map(|e| e.field).collect()
    }

    #[test]
    fn a_probe_has_exactly_one_handler() {
        let http = json!({"path": "/", "port": 80, "scheme": "HTTP"});
        assert!(fields(json!({"livenessProbe": {"httpGet": http, "successThreshold": 1}})).is_empty());
        assert_eq!(fields(json!({"livenessProbe": {}})), ["c.livenessProbe"]);
        let two = json!({"httpGet": http, "exec": {"command": ["x"]}});
        assert_eq!(fields(json!({"readinessProbe": two})), ["c.readinessProbe.httpGet"]);
    }

    #[test]
    fn ports_thresholds_and_grace_are_in_range() {
        let probe = json!({"tcpSocket": {"port": 0}, "successThreshold": 2, "periodSeconds": -1,
            "terminationGracePeriodSeconds": 0});
        assert_eq!(
            fields(json!({"livenessProbe": probe})),
            [
                "c.livenessProbe.tcpSocket.port",
                "c.livenessProbe.periodSeconds",
                "c.livenessProbe.successThreshold",
                "c.livenessProbe.terminationGracePeriodSeconds"
            ]
        );
        let hook = json!({"preStop": {"httpGet": {"path": "", "port": "-", "scheme": "FTP"}}});
        assert_eq!(fields(json!({"lifecycle": hook})).len(), 4);
    }
}
