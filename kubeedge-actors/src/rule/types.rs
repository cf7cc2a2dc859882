//! What a Rule and a RuleEndpoint say, read into types. Pure.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr};

use kubeedge_proto::NodeName;
use serde::Deserialize;

use super::template::Template;

/// Longest topic, bytes: EventBus' own bound.
pub const MAX_TOPIC: usize = 1024;
/// Longest URL, bytes.
pub const MAX_URL: usize = 2048;

/// A Rule's `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuleSpec {
    /// Name of a RuleEndpoint of this namespace.
    pub source: String,
    /// What of it.
    pub source_resource: BTreeMap<String, String>,
    /// Name of a RuleEndpoint of this namespace.
    pub target: String,
    /// What of it.
    pub target_resource: BTreeMap<String, String>,
}

/// A RuleEndpoint's `spec`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleEndpointSpec {
    /// What it is.
    pub rule_endpoint_type: EndpointType,
    /// More of it.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// What stands at an end of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointType {
    /// HTTP at the cloud.
    Rest,
    /// MQTT at a node.
    EventBus,
    /// HTTP at a node.
    ServiceBus,
}

impl fmt::Display for EndpointType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EndpointType::Rest => "rest",
            EndpointType::EventBus => "eventbus",
            EndpointType::ServiceBus => "servicebus",
        })
    }
}

/// Where messages come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Requests to the cloud's REST server.
    Rest {
        /// Behind the node's name and the namespace.
        path: Template,
    },
    /// What is published on MQTT at a node.
    EventBus {
        /// Behind the namespace and a slash.
        topic: String,
        /// The node.
        node: NodeName,
    },
    /// Calls of a node's ServiceBus.
    ServiceBus {
        /// The URL that applications name.
        target_url: String,
        /// The node.
        node: NodeName,
    },
}

/// Where they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Posted from the cloud.
    Rest {
        /// To this URL.
        url: String,
    },
    /// Published on MQTT at a node.
    EventBus {
        /// The topic.
        topic: String,
        /// The node; `None`: the one the request names, or the message comes from.
        node: Option<NodeName>,
    },
    /// Sent to an HTTP service at a node.
    ServiceBus {
        /// The path there.
        path: String,
        /// The node, as before.
        node: Option<NodeName>,
    },
}

impl Source {
    /// Which type of endpoint this is.
    pub fn endpoint(&self) -> EndpointType {
        match self {
            Source::Rest { .. } => EndpointType::Rest,
            Source::EventBus { .. } => EndpointType::EventBus,
            Source::ServiceBus { .. } => EndpointType::ServiceBus,
        }
    }

    /// The node where messages begin; `None`: at the cloud.
    pub fn node(&self) -> Option<&NodeName> {
        match self {
            Source::Rest { .. } => None,
            Source::EventBus { node, .. } | Source::ServiceBus { node, .. } => Some(node),
        }
    }
}

impl Target {
    /// Which type of endpoint this is.
    pub fn endpoint(&self) -> EndpointType {
        match self {
            Target::Rest { .. } => EndpointType::Rest,
            Target::EventBus { .. } => EndpointType::EventBus,
            Target::ServiceBus { .. } => EndpointType::ServiceBus,
        }
    }
}

impl RuleSpec {
    /// Its source: what kind of one follows from the keys of `sourceResource`. The error names the field.
    pub fn source(&self) -> Result<Source, String> {
        let map = Map { field: "spec.sourceResource", map: &self.source_resource };
        match (map.has("path"), map.has("topic"), map.has("target_url")) {
            (true, false, false) => {
                let path = Template::parse(map.text("path")?).map_err(|error| map.wrong("path", &error.to_string()))?;
                Ok(Source::Rest { path })
            }
            (false, true, false) => Ok(Source::EventBus {
                topic: map.topic("topic")?.trim_start_matches('/').to_owned(),
                node: map.node()?,
            }),
            (false, false, true) => Ok(Source::ServiceBus { target_url: map.url("target_url")?, node: map.node()? }),
            _ => {
                Err(format!("{}: expected one of path (rest), topic (eventbus) or target_url (servicebus)", map.field))
            }
        }
    }

    /// Its target, likewise.
    pub fn target(&self) -> Result<Target, String> {
        let map = Map { field: "spec.targetResource", map: &self.target_resource };
        let node = || if map.has("node_name") { map.node().map(Some) } else { Ok(None) };
        match (map.has("resource"), map.has("topic"), map.has("path")) {
            (true, false, false) => Ok(Target::Rest { url: map.url("resource")? }),
            (false, true, false) => Ok(Target::EventBus { topic: map.topic("topic")?, node: node()? }),
            (false, false, true) => Ok(Target::ServiceBus { path: map.path("path")?, node: node()? }),
            _ => Err(format!("{}: expected one of resource (rest), topic (eventbus) or path (servicebus)", map.field)),
        }
    }

    /// Both, if messages can go from one to the other.
    pub fn ends(&self) -> Result<(Source, Target), String> {
        let (source, target) = (self.source()?, self.target()?);
        if source.endpoint() == target.endpoint() {
            return Err(format!(
                "spec: a rule from {} to {} is not one: the types of source and target differ",
                source.endpoint(),
                target.endpoint()
            ));
        }
        if let (
            Source::Rest { .. },
            Target::EventBus { node: Some(_), .. } | Target::ServiceBus { node: Some(_), .. },
        ) = (&source, &target)
        {
            return Err("spec.targetResource.node_name: a request to the REST server names the node itself".to_owned());
        }
        Ok((source, target))
    }
}

impl RuleEndpointSpec {
    /// `host:port` of an HTTP service at a node. The error names the field.
    pub fn service(&self) -> Result<String, String> {
        let map = Map { field: "spec.properties", map: &self.properties };
        let port = map.text("service_port")?;
        let number = port.parse::<u16>().ok().filter(|number| *number != 0 && port.bytes().all(|b| b.is_ascii_digit()));
        let number = number.ok_or_else(|| map.wrong("service_port", "expected a port from 1 to 65535"))?;
        if !map.has("service_host") {
            return Ok(format!("{}:{number}", Ipv4Addr::LOCALHOST));
        }
        let host = map.text("service_host")?;
        if !is_host(host) {
            return Err(map.wrong("service_host", "expected a name or an address such as 192.168.1.7"));
        }
        Ok(if host.contains(':') { format!("[{host}]:{number}") } else { format!("{host}:{number}") })
    }
}

fn is_host(host: &str) -> bool {
    host.parse::<std::net::Ipv6Addr>().is_ok() || kubeedge_proto::is_dns_subdomain(host)
}

/// A map of texts, under the name by which errors call it.
struct Map<'a> {
    field: &'static str,
    map: &'a BTreeMap<String, String>,
}

impl Map<'_> {
    fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    fn wrong(&self, key: &str, why: &str) -> String {
        format!("{}.{key}: {why}", self.field)
    }

    fn text(&self, key: &str) -> Result<&str, String> {
        match self.map.get(key).map(String::as_str) {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(self.wrong(key, "is required")),
        }
    }

    fn node(&self) -> Result<NodeName, String> {
        self.text("node_name")?.parse().map_err(|error| self.wrong("node_name", &format!("{error}")))
    }

    fn topic(&self, key: &str) -> Result<String, String> {
        let topic = self.text(key)?;
        if topic.len() > MAX_TOPIC || topic.contains(['+', '#']) || topic.chars().any(char::is_control) {
            return Err(self.wrong(key, "is no topic: expected at most 1024 bytes without +, # and control characters"));
        }
        Ok(topic.to_owned())
    }

    fn url(&self, key: &str) -> Result<String, String> {
        let text = self.text(key)?;
        let expected = || self.wrong(key, "expected a URL such as \"http://orders.example/in\"");
        if text.len() > MAX_URL {
            return Err(expected());
        }
        let url: http::Uri = text.parse().map_err(|_| expected())?;
        let authority = url.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(expected)?;
        match url.scheme_str() {
            Some("http" | "https") if !authority.host().is_empty() => Ok(text.to_owned()),
            _ => Err(expected()),
        }
    }

    fn path(&self, key: &str) -> Result<String, String> {
        let text = self.text(key)?;
        let path = if text.starts_with('/') { text.to_owned() } else { format!("/{text}") };
        let good = path.len() <= MAX_URL
            && path.parse::<http::uri::PathAndQuery>().is_ok_and(|parsed| parsed.query().is_none())
            && super::template::segments(&path).is_ok();
        if good { Ok(path) } else { Err(self.wrong(key, "expected a path such as \"/orders\"")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(source: &[(&str, &str)], target: &[(&str, &str)]) -> RuleSpec {
        let map = |entries: &[(&str, &str)]| entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        RuleSpec { source: "s".into(), source_resource: map(source), target: "t".into(), target_resource: map(target) }
    }

    #[test]
    fn every_flow_is_read_as_kubeedge_writes_it() {
        let url = [("resource", "https://orders.example/in")];
        let mqtt = [("topic", "t"), ("node_name", "edge-1")];
        let service = [("target_url", "http://a.example/"), ("node_name", "edge-1")];
        let path = [("path", "/a/{x}")];
        for (source, target) in [
            (&path[..], &[("topic", "/x")][..]),
            (&path, &[("path", "x")]),
            (&mqtt, &url),
            (&service, &url),
            (&mqtt, &[("path", "/x"), ("node_name", "edge-2")]),
            (&service, &[("topic", "x")]),
        ] {
            rule(source, target).ends().unwrap();
        }
        let (source, target) = rule(&mqtt, &[("path", "x")]).ends().unwrap();
        assert_eq!(source, Source::EventBus { topic: "t".into(), node: "edge-1".parse().unwrap() });
        assert_eq!(target, Target::ServiceBus { path: "/x".into(), node: None });
    }

    #[test]
    fn what_cannot_work_names_its_field() {
        let url = [("resource", "http://a")];
        for (source, target, field) in [
            (&[][..], &url[..], "spec.sourceResource"),
            (&[("path", "/a"), ("topic", "b")], &url, "spec.sourceResource"),
            (&[("topic", "a")], &url, "spec.sourceResource.node_name"),
            (&[("topic", "a/#"), ("node_name", "n")], &url, "spec.sourceResource.topic"),
            (&[("topic", "a"), ("node_name", "N_1")], &url, "spec.sourceResource.node_name"),
            (&[("path", "/a{b}")], &[("topic", "a")], "spec.sourceResource.path"),
            (&[("path", "/a")], &url, "from rest to rest"),
            (&[("path", "/a")], &[], "spec.targetResource"),
            (&[("path", "/a")], &[("topic", "a"), ("node_name", "n")], "spec.targetResource.node_name"),
            (&[("topic", "a"), ("node_name", "n")], &[("resource", "a.example")], "spec.targetResource.resource"),
            (&[("topic", "a"), ("node_name", "n")], &[("resource", "ftp://a")], "spec.targetResource.resource"),
            (&[("topic", "a"), ("node_name", "n")], &[("resource", "http://u:p@a")], "spec.targetResource.resource"),
            (&[("topic", "a"), ("node_name", "n")], &[("path", "/a/../b")], "spec.targetResource.path"),
            (&[("topic", "a"), ("node_name", "n")], &[("path", "/a b")], "spec.targetResource.path"),
        ] {
            let error = rule(source, target).ends().unwrap_err();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn a_service_is_at_the_loopback_address_unless_a_host_is_said() {
        let service = |entries: &[(&str, &str)]| {
            let properties = entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            RuleEndpointSpec { rule_endpoint_type: EndpointType::ServiceBus, properties }.service()
        };
        assert_eq!(service(&[("service_port", "8080")]).unwrap(), "127.0.0.1:8080");
        assert_eq!(service(&[("service_port", "80"), ("service_host", "plc.local")]).unwrap(), "plc.local:80");
        assert_eq!(service(&[("service_port", "80"), ("service_host", "fd00::7")]).unwrap(), "[fd00::7]:80");
        for bad in ["", "0", "65536", "+80", "80/x"] {
            assert!(service(&[("service_port", bad)]).unwrap_err().contains("spec.properties.service_port"), "{bad}");
        }
        for bad in ["a@b", "a:80", "a/b", "A B", "[::1]"] {
            let refused = service(&[("service_port", "80"), ("service_host", bad)]).unwrap_err();
            assert!(refused.contains("service_host"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(key in "(path|topic|target_url|resource|node_name)", text in "\\PC{0,40}") {
            let _ = rule(&[(&key, &text), ("node_name", "n")], &[(&key, &text)]).ends();
        }

        #[test]
        fn a_url_that_is_taken_has_a_host_and_no_user(url in "(http|https|file)://[a-z0-9.:@\\[\\]/%?#]{0,30}") {
            let read = rule(&[("topic", "a"), ("node_name", "n")], &[("resource", &url)]).target();
            if let Ok(Target::Rest { url }) = read {
                let parsed: http::Uri = url.parse().unwrap();
                prop_assert!(!parsed.host().unwrap().is_empty() && !parsed.authority().unwrap().as_str().contains('@'));
            }
        }
    }
}
