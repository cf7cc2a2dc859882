//! Kernel parameters of a pod: those that stay in its namespaces, and what the node's operator allows besides.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use thiserror::Error;

/// Parameters that touch nothing outside the pod, as Kubernetes lists them.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Prefixes of what the kernel keeps per namespace: nothing else can be set for a pod at all.
const IPC: [&str; 4] = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
const NET: &str = "net.";

/// The pod is not admitted, with reason `SysctlForbidden`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("forbidden sysctl: {name:?} {why}")]
pub struct SysctlForbidden {
    /// The parameter.
    pub name: String,
    /// Why not.
    pub why: &'static str,
}

/// The kernel parameters of a pod. `allowed` are the operator's (`allowedUnsafeSysctls`), a `*` at the end for a group.
pub fn pod_sysctls(pod: &Pod, allowed: &[String]) -> Result<BTreeMap<String, String>, SysctlForbidden> {
    let Some(spec) = &pod.spec else { return Ok(BTreeMap::new()) };
    let mut sysctls = BTreeMap::new();
    for sysctl in spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten()) {
        let name = normalized(&sysctl.name);
        let forbidden = |why| Err(SysctlForbidden { name: sysctl.name.chars().take(260).collect(), why });
        let matches = |pattern: &String| {
            let pattern = normalized(pattern);
            pattern.strip_suffix('*').map_or(name == pattern, |prefix| name.starts_with(prefix))
        };
        let in_net = name.starts_with(NET);
        let in_ipc = IPC.iter().any(|prefix| name.starts_with(prefix));
        if !SAFE.contains(&name.as_str()) && !(allowed.iter().any(matches) && (in_net || in_ipc)) {
            return forbidden("not allowlisted");
        }
        if in_net && spec.host_network == Some(true) {
            return forbidden("not allowed with host net enabled");
        }
        if in_ipc && spec.host_ipc == Some(true) {
            return forbidden("not allowed with host ipc enabled");
        }
        sysctls.insert(name, sysctl.value.clone());
    }
    Ok(sysctls)
}

/// With `/` between the parts a `.` belongs to a part; the runtime wants the form with `.` between them.
fn normalized(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(name: &str, extra: Value, allowed: &[&str]) -> Result<BTreeMap<String, String>, SysctlForbidden> {
        let mut spec = json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let allowed: Vec<String> = allowed.iter().map(|&name| name.to_owned()).collect();
        pod_sysctls(&serde_json::from_value(json!({"spec": spec})).unwrap(), &allowed)
    }

    #[test]
    fn safe_and_allowed_ones_are_set() {
        for (name, allowed, key) in [
            ("net.ipv4.tcp_syncookies", &[][..], "net.ipv4.tcp_syncookies"),
            ("net/ipv4/tcp_syncookies", &[], "net.ipv4.tcp_syncookies"),
            ("net.core.somaxconn", &["net.core.*"], "net.core.somaxconn"),
            ("kernel.msgmax", &["kernel.msgmax"], "kernel.msgmax"),
            ("net/ipv4/conf/eth0.1/forwarding", &["net.ipv4.*"], "net.ipv4.conf.eth0/1.forwarding"),
        ] {
            assert_eq!(of(name, json!({}), allowed).unwrap(), BTreeMap::from([(key.to_owned(), "1".to_owned())]));
        }
    }

    #[test]
    fn what_would_reach_the_node_is_forbidden() {
        let why = |result: Result<BTreeMap<String, String>, SysctlForbidden>| result.unwrap_err().to_string();
        let refused = why(of("net.core.somaxconn", json!({}), &[]));
        assert_eq!(refused, "forbidden sysctl: \"net.core.somaxconn\" not allowlisted");
        assert!(why(of("vm.swappiness", json!({}), &["vm.*", "*"])).contains("not allowlisted"));
        let safe = "net.ipv4.tcp_syncookies";
        assert!(why(of(safe, json!({"hostNetwork": true}), &[])).contains("host net enabled"));
        assert!(why(of("kernel.shm_rmid_forced", json!({"hostIPC": true}), &[])).contains("host ipc enabled"));
    }
}
