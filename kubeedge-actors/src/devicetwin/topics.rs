//! The topics of `$hw/events/...`. Pure.

use kubeedge_proto::is_dns_subdomain;

/// Everything about devices begins with this.
pub const DEVICE: &str = "$hw/events/device/";
/// Everything about the node begins with this.
pub const NODE: &str = "$hw/events/node/";

/// What an application asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `twin/update` of a device.
    UpdateTwin(String),
    /// `twin/cloud_updated` of a device.
    CloudUpdated(String),
    /// `twin/get` of a device.
    GetTwin(String),
    /// `state/update` of a device.
    UpdateState(String),
    /// `membership/get` of this node.
    GetMembership,
}

impl Request {
    /// Reads a topic. A device's id is a namespace and a name, whatever words they are.
    pub fn of(node: &str, topic: &str) -> Option<Self> {
        if let Some(rest) = topic.strip_prefix(NODE) {
            return (rest.strip_suffix("/membership/get") == Some(node)).then_some(Self::GetMembership);
        }
        let mut parts = topic.strip_prefix(DEVICE)?.splitn(3, '/');
        let (namespace, name, what) = (parts.next()?, parts.next()?, parts.next()?);
        if !is_dns_subdomain(namespace) || !is_dns_subdomain(name) {
            return None;
        }
        let id = format!("{namespace}/{name}");
        match what {
            "twin/update" => Some(Self::UpdateTwin(id)),
            "twin/cloud_updated" => Some(Self::CloudUpdated(id)),
            "twin/get" => Some(Self::GetTwin(id)),
            "state/update" => Some(Self::UpdateState(id)),
            _ => None,
        }
    }
}

/// A topic of a device, such as `twin/update/result`.
pub fn of_device(id: &str, what: &str) -> String {
    format!("{DEVICE}{id}/{what}")
}

/// A topic of this node, such as `membership/updated`.
pub fn of_node(node: &str, what: &str) -> String {
    format!("{NODE}{node}/{what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_whatever_its_namespace_is_called() {
        for namespace in ["default", "device", "events", "hw", "d"] {
            let topic = format!("$hw/events/device/{namespace}/device/twin/update");
            assert_eq!(Request::of("n", &topic), Some(Request::UpdateTwin(format!("{namespace}/device"))), "{topic}");
        }
        for (topic, request) in [
            ("$hw/events/device/a/b/twin/get", Some(Request::GetTwin("a/b".into()))),
            ("$hw/events/device/a/b/twin/cloud_updated", Some(Request::CloudUpdated("a/b".into()))),
            ("$hw/events/device/a/b/state/update", Some(Request::UpdateState("a/b".into()))),
            ("$hw/events/node/n/membership/get", Some(Request::GetMembership)),
            ("$hw/events/node/other/membership/get", None),
            ("$hw/events/device/a/b/twin/update/result", None),
            ("$hw/events/device/b/twin/update", None),
            ("$hw/events/device/A/b/twin/update", None),
            ("$hw/events/device/", None),
            ("other", None),
        ] {
            assert_eq!(Request::of("n", topic), request, "{topic}");
        }
    }
}
