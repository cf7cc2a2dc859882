//! A pod's `resolv.conf`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use kubeedge_proto::cri::DnsConfig;
use thiserror::Error;

use crate::edged::events::Reason;

/// glibc's `MAXNS`.
const MAX_SERVERS: usize = 3;
/// Kubernetes' bounds on search domains.
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// The node's own resolver configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads a `resolv.conf`. Lines that it does not know are left out, as the resolver does; of several `search` or
    /// `options` lines the last one counts.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.servers.extend(words.next().map(str::to_owned)),
                Some("search") => {
                    let bare = |word: &str| if word == "." { word } else { word.trim_end_matches('.') }.to_owned();
                    conf.searches = words.map(bare).collect();
                }
                Some("options") => conf.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        conf
    }
}

/// What the node says about DNS.
#[derive(Clone, Debug, Default)]
pub struct NodeDns {
    /// The cluster's DNS servers; empty when there are none.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain, such as `cluster.local`; may be empty.
    pub cluster_domain: String,
    /// The node's own resolver configuration.
    pub host: ResolvConf,
}

/// A pod's resolver configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodDns {
    /// What the runtime writes.
    pub config: DnsConfig,
    /// What had to be left out or done otherwise, for events.
    pub warnings: Vec<(Reason, String)>,
}

/// A DNS policy that Kubernetes does not know.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("invalid DNSPolicy={0}: expected ClusterFirst, ClusterFirstWithHostNet, Default or None")]
pub struct DnsError(String);

enum Base {
    Cluster,
    Host,
    Empty,
}

/// The resolver configuration of a pod.
pub fn pod_dns(pod: &Pod, node: &NodeDns) -> Result<PodDns, DnsError> {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|spec| spec.host_network) == Some(true);
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let base = match policy {
        "None" => Base::Empty,
        "ClusterFirstWithHostNet" => Base::Cluster,
        "" | "ClusterFirst" if !host_network => Base::Cluster,
        "" | "ClusterFirst" | "Default" => Base::Host,
        other => return Err(DnsError(other.chars().take(100).collect())),
    };
    let mut warnings = Vec::new();
    let host = || (node.host.servers.clone(), node.host.searches.clone(), node.host.options.clone());
    let (mut servers, mut searches, mut options) = match base {
        Base::Empty => Default::default(),
        Base::Host => host(),
        Base::Cluster if node.cluster_dns.is_empty() => {
            let message = format!(
                "pod: \"{}/{}\". node does not have a cluster DNS IP configured and cannot create Pod using {policy:?} policy. \
                 Falling back to \"Default\" policy.",
                pod.metadata.namespace.as_deref().unwrap_or_default(),
                pod.metadata.name.as_deref().unwrap_or_default(),
            );
            warnings.push((Reason::MissingClusterDns, message));
            host()
        }
        Base::Cluster => {
            let mut searches = Vec::new();
            let domain = &node.cluster_domain;
            if !domain.is_empty() {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            }
            searches.extend(node.host.searches.iter().cloned());
            (node.cluster_dns.iter().map(IpAddr::to_string).collect(), searches, vec!["ndots:5".to_owned()])
        }
    };
    if let Some(own) = spec.and_then(|spec| spec.dns_config.as_ref()) {
        servers.extend(own.nameservers.iter().flatten().cloned());
        searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let Some(name) = option.name.as_deref().filter(|name| !name.is_empty()) else { continue };
            let written = match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            };
            options.retain(|option| option.split(':').next() != Some(name));
            options.push(written);
        }
    }
    // What goes into a file of lines and words must be of one word each.
    for list in [&mut servers, &mut searches, &mut options] {
        *list = unique(std::mem::take(list));
        let whole = |word: &String| !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic());
        if !list.iter().all(whole) {
            warnings.push((Reason::DnsConfigForming, "entries that are not one word have been omitted".to_owned()));
            list.retain(whole);
        }
    }
    fit(&mut servers, &mut searches, &mut warnings);
    Ok(PodDns { config: DnsConfig { servers, searches, options }, warnings })
}

fn unique(list: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    list.into_iter().filter(|entry| seen.insert(entry.clone())).collect()
}

fn fit(servers: &mut Vec<String>, searches: &mut Vec<String>, warnings: &mut Vec<(Reason, String)>) {
    if servers.len() > MAX_SERVERS {
        servers.truncate(MAX_SERVERS);
        let line = servers.join(" ");
        let message = format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: \
             {line}"
        );
        warnings.push((Reason::DnsConfigForming, message));
    }
    let before = searches.len();
    searches.truncate(MAX_SEARCHES);
    while searches.iter().map(|search| search.len() + 1).sum::<usize>() > MAX_SEARCH_CHARS + 1 {
        searches.pop();
    }
    if searches.len() < before {
        let line = searches.join(" ");
        let message = format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: \
             {line}"
        );
        warnings.push((Reason::DnsConfigForming, message));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node() -> NodeDns {
        NodeDns {
            cluster_dns: vec!["10.96.0.10".parse().unwrap()],
            cluster_domain: "cluster.local".to_owned(),
            host: ResolvConf::parse(
                "# made by hand\nnameserver 192.0.2.1 ; first\nnameserver 192.0.2.2\nsearch old\n\
                 search site. lan\noptions ndots:2 rotate\nsortlist 1.2.3.4\n",
            ),
        }
    }

    fn of(spec: Value, node: &NodeDns) -> PodDns {
        let mut spec = spec;
        spec["containers"] = json!([]);
        pod_dns(
            &serde_json::from_value(json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": spec})).unwrap(),
            node,
        )
        .unwrap()
    }

    fn config(servers: &[&str], searches: &[&str], options: &[&str]) -> DnsConfig {
        let owned = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect();
        DnsConfig { servers: owned(servers), searches: owned(searches), options: owned(options) }
    }

    #[test]
    fn each_policy_gives_what_kubernetes_says() {
        let host = config(&["192.0.2.1", "192.0.2.2"], &["site", "lan"], &["ndots:2", "rotate"]);
        let searches = ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "site", "lan"];
        let cluster = config(&["10.96.0.10"], &searches, &["ndots:5"]);
        for (spec, expected) in [
            (json!({}), &cluster),
            (json!({"dnsPolicy": "ClusterFirst"}), &cluster),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), &host),
            (json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}), &cluster),
            (json!({"dnsPolicy": "Default"}), &host),
            (json!({"dnsPolicy": "None"}), &config(&[], &[], &[])),
        ] {
            let dns = of(spec.clone(), &node());
            assert_eq!(&dns.config, expected, "{spec}");
            assert!(dns.warnings.is_empty());
        }
        let pod = json!({"spec": {"containers": [], "dnsPolicy": "Guess"}});
        assert!(pod_dns(&serde_json::from_value(pod).unwrap(), &node()).is_err());
    }

    #[test]
    fn without_a_cluster_dns_the_nodes_own_is_used_and_that_is_told() {
        let node = NodeDns { cluster_dns: Vec::new(), ..node() };
        let dns = of(json!({}), &node);
        assert_eq!(dns.config.servers, ["192.0.2.1", "192.0.2.2"]);
        let expected = "pod: \"ns/p\". node does not have a cluster DNS IP configured and cannot create Pod using \
                        \"ClusterFirst\" policy. Falling back to \"Default\" policy.";
        assert_eq!(dns.warnings, [(Reason::MissingClusterDns, expected.to_owned())]);
    }

    #[test]
    fn the_pods_own_configuration_is_merged() {
        let own = json!({
            "nameservers": ["1.1.1.1", "10.96.0.10"], "searches": ["own", "lan"],
            "options": [{"name": "ndots", "value": "1"}, {"name": "edns0"}],
        });
        let dns = of(json!({"dnsConfig": own}), &node()).config;
        assert_eq!(dns.servers, ["10.96.0.10", "1.1.1.1"]);
        assert_eq!(dns.searches.last().unwrap(), "own");
        assert_eq!(dns.options, ["ndots:1", "edns0"]);
        let only = of(json!({"dnsPolicy": "None", "dnsConfig": own}), &node()).config;
        assert_eq!(only, config(&["1.1.1.1", "10.96.0.10"], &["own", "lan"], &["ndots:1", "edns0"]));
    }

    #[test]
    fn what_exceeds_the_resolvers_limits_is_left_out_and_told() {
        let many: Vec<String> = (0..40).map(|n| format!("d{n}.{}", "x".repeat(80))).collect();
        let own = json!({"nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"], "searches": many});
        let dns = of(json!({"dnsPolicy": "None", "dnsConfig": own}), &node());
        assert_eq!(dns.config.servers.len(), 3);
        assert!(dns.config.searches.join(" ").len() <= 2048 && dns.config.searches.len() > 20);
        let told: Vec<_> = dns.warnings.iter().map(|(reason, message)| (reason.as_str(), message.as_str())).collect();
        let line = "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: \
                    1.1.1.1 1.1.1.2 1.1.1.3";
        assert_eq!(told[0], ("DNSConfigForming", line));
        assert!(told[1].1.starts_with("Search Line limits were exceeded, some search paths have been omitted, the "));
        assert_eq!((told[1].0, told.len()), ("DNSConfigForming", 2));
        let own = json!({"searches": ["a\nnameserver 6.6.6.6"]});
        assert!(of(json!({"dnsPolicy": "None", "dnsConfig": own}), &node()).config.searches.is_empty());
    }
}
