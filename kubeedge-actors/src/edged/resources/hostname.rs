//! A pod's host name and its hosts file.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{HostAlias, Pod};
use thiserror::Error;

/// The kernel's limit on a host name, `__NEW_UTS_LEN`.
const KERNEL_MAX: usize = 64;
/// Host names are cut at the length of a DNS label.
const LABEL_MAX: usize = 63;

/// A host name, domain or alias that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostnameError {
    /// `hostname` or `subdomain` is no DNS label.
    #[error("pod {field} {text:?} is not a valid DNS label: expected 1 to 63 lower case letters, digits and '-'")]
    Label {
        /// `Hostname` or `Subdomain`.
        field: &'static str,
        /// What it holds.
        text: String,
    },
    /// The full name is to be the host name and does not fit.
    #[error(
        "failed to construct FQDN from pod hostname and cluster domain, FQDN {0} is too long (64 characters is the \
         max, {len} characters requested)",
        len = .0.len()
    )]
    TooLong(String),
    /// A host alias is no address with names.
    #[error("hostAliases entry {0:?} is not valid: expected an IP address and DNS names")]
    Alias(String),
}

/// A pod's host name and domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodHostname {
    /// The short name.
    pub name: String,
    /// The domain, `<subdomain>.<namespace>.svc.<cluster domain>`; empty without a subdomain.
    pub domain: String,
}

impl PodHostname {
    /// The host name that processes see: the full name if `setHostnameAsFQDN` says so and there is a domain.
    pub fn for_kernel(&self, as_fqdn: Option<bool>) -> Result<String, HostnameError> {
        if as_fqdn != Some(true) || self.domain.is_empty() {
            return Ok(self.name.clone());
        }
        let full = format!("{}.{}", self.name, self.domain);
        if full.len() > KERNEL_MAX { Err(HostnameError::TooLong(full)) } else { Ok(full) }
    }
}

/// The host name and domain of a pod.
pub fn pod_hostname(pod: &Pod, cluster_domain: &str) -> Result<PodHostname, HostnameError> {
    let spec = pod.spec.as_ref();
    let given = spec.and_then(|spec| spec.hostname.as_deref()).filter(|name| !name.is_empty());
    let name = match given {
        Some(name) => label("Hostname", name)?.to_owned(),
        None => {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let cut: String = name.chars().take(LABEL_MAX).collect();
            if cut.len() < name.len() { cut.trim_end_matches(['-', '.']).to_owned() } else { cut }
        }
    };
    let domain = match spec.and_then(|spec| spec.subdomain.as_deref()).filter(|name| !name.is_empty()) {
        Some(subdomain) => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            format!("{}.{namespace}.svc.{cluster_domain}", label("Subdomain", subdomain)?)
        }
        None => String::new(),
    };
    Ok(PodHostname { name, domain })
}

fn label<'t>(field: &'static str, text: &'t str) -> Result<&'t str, HostnameError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let good = (1..=LABEL_MAX).contains(&text.len())
        && text.bytes().all(plain)
        && !text.starts_with('-')
        && !text.ends_with('-');
    let shown = || text.chars().take(LABEL_MAX + 10).collect();
    if good { Ok(text) } else { Err(HostnameError::Label { field, text: shown() }) }
}

/// The hosts file of a pod with a network of its own.
pub fn hosts_file(
    pod_ips: &[IpAddr],
    hostname: &PodHostname,
    aliases: Option<&Vec<HostAlias>>,
) -> Result<String, HostnameError> {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let PodHostname { name, domain } = hostname;
    for ip in pod_ips {
        if domain.is_empty() {
            text.push_str(&format!("{ip}\t{name}\n"));
        } else {
            text.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n"));
        }
    }
    text.push_str(&alias_lines(aliases)?);
    Ok(text)
}

/// The hosts file of a pod in the node's network, given the node's own.
pub fn node_hosts_file(node: &[u8], aliases: Option<&Vec<HostAlias>>) -> Result<Vec<u8>, HostnameError> {
    let header = b"# Kubernetes-managed hosts file (host network).\n";
    Ok([header, node, alias_lines(aliases)?.as_bytes()].concat())
}

fn alias_lines(aliases: Option<&Vec<HostAlias>>) -> Result<String, HostnameError> {
    let mut text = String::new();
    for alias in aliases.into_iter().flatten() {
        let names = alias.hostnames.as_deref().unwrap_or_default();
        let plain = |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if alias.ip.parse::<IpAddr>().is_err() || !names.iter().all(plain) {
            return Err(HostnameError::Alias(format!("{} {}", alias.ip, names.join(" ")).chars().take(300).collect()));
        }
        if text.is_empty() {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec})).unwrap()
    }

    fn named(name: &str, domain: &str) -> PodHostname {
        PodHostname { name: name.to_owned(), domain: domain.to_owned() }
    }

    #[test]
    fn the_host_name_is_the_pods_name_or_what_it_says() {
        let of = |name: &str, spec| pod_hostname(&pod(name, spec), "cluster.local");
        assert_eq!(of("p", json!({})), Ok(named("p", "")));
        assert_eq!(of("p", json!({"hostname": "h"})), Ok(named("h", "")));
        assert_eq!(of("p", json!({"subdomain": "s"})), Ok(named("p", "s.ns.svc.cluster.local")));
        let long = format!("{}-.{}", "a".repeat(61), "b".repeat(20));
        assert_eq!(of(&long, json!({})), Ok(named(&"a".repeat(61), "")));
        assert!(of("p", json!({"hostname": "a.b"})).is_err());
        assert!(of("p", json!({"subdomain": "A"})).is_err());
    }

    #[test]
    fn the_full_name_is_used_if_asked_for_and_if_it_fits() {
        assert_eq!(named("h", "s.ns.svc.x").for_kernel(None).unwrap(), "h");
        assert_eq!(named("h", "s.ns.svc.x").for_kernel(Some(true)).unwrap(), "h.s.ns.svc.x");
        assert_eq!(named("h", "").for_kernel(Some(true)).unwrap(), "h");
        assert!(matches!(named("h", &"d".repeat(63)).for_kernel(Some(true)), Err(HostnameError::TooLong(_))));
    }

    #[test]
    fn the_hosts_file_is_that_of_the_kubelet() {
        let ips = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let aliases = vec![HostAlias { ip: "1.2.3.4".to_owned(), hostnames: Some(vec!["a".into(), "b".into()]) }];
        let head = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
            ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n\
            fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
        assert_eq!(
            hosts_file(&ips, &named("h", "s.ns.svc.x"), Some(&aliases)).unwrap(),
            format!(
                "{head}10.0.0.5\th.s.ns.svc.x\th\nfd00::5\th.s.ns.svc.x\th\n\n\
                 # Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
            )
        );
        assert_eq!(hosts_file(&ips[..1], &named("h", ""), None).unwrap(), format!("{head}10.0.0.5\th\n"));
        let node = node_hosts_file(b"127.0.0.1 localhost\n", Some(&aliases)).unwrap();
        assert_eq!(
            String::from_utf8(node).unwrap(),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n\n\
             # Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
        );
    }

    #[test]
    fn an_alias_cannot_bring_lines_of_its_own() {
        for (ip, name) in [("1.2.3.4\n6.6.6.6", "a"), ("1.2.3.4", "a\n6.6.6.6 bank"), ("1.2.3.4", ""), ("x", "a")] {
            let alias = vec![HostAlias { ip: ip.to_owned(), hostnames: Some(vec![name.to_owned()]) }];
            assert!(matches!(hosts_file(&[], &named("h", ""), Some(&alias)), Err(HostnameError::Alias(_))));
        }
    }
}
