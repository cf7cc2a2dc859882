//! The topics of `$hw/events/...`. Pure.

use kubeedge_proto::is_dns_subdomain;

use super::wire::Wrong;

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
    /// What no device can be asked for.
    Wrong {
        /// The topic on which that is said.
        answer: String,
        /// What is wrong.
        wrong: Wrong,
    },
}

/// Longest part of an id, and of what stands behind `twin/`, to which there is an answer, bytes.
const MAX_PART: usize = 253;

impl Request {
    /// Reads a topic. A device's id is a namespace and a name, whatever words they are.
    pub fn of(node: &str, topic: &str) -> Option<Self> {
        if let Some(rest) = topic.strip_prefix(NODE) {
            return (rest.strip_suffix("/membership/get") == Some(node)).then_some(Self::GetMembership);
        }
        let mut parts = topic.strip_prefix(DEVICE)?.splitn(3, '/');
        let (namespace, name, what) = (parts.next()?, parts.next()?, parts.next()?);
        let id = format!("{namespace}/{name}");
        let request = match what {
            "twin/update" => Self::UpdateTwin(id),
            "twin/cloud_updated" => Self::CloudUpdated(id),
            "twin/get" => Self::GetTwin(id),
            "state/update" => Self::UpdateState(id),
            // Answers have one part more, and are no requests whoever hears them.
            _ => {
                let other = what.strip_prefix("twin/").filter(|other| is_part(other))?;
                let text = format!("twin/{other} is none of twin/get, twin/update and twin/cloud_updated");
                Self::Wrong { answer: of_device(&id, &format!("{what}/result")), wrong: Wrong::Topic(text) }
            }
        };
        if is_dns_subdomain(namespace) && is_dns_subdomain(name) {
            return Some(request);
        }
        let text = "a device is named <namespace>/<name>, in small letters, digits, - and .";
        let wrong = Wrong::Topic(format!("{namespace}/{name} can be no device: {text}"));
        (is_part(namespace) && is_part(name)).then(|| Self::Wrong { answer: request.answered_on(""), wrong })
    }

    /// The topic on which it is answered.
    pub fn answered_on(&self, node: &str) -> String {
        match self {
            Self::UpdateTwin(id) | Self::CloudUpdated(id) => of_device(id, "twin/update/result"),
            Self::GetTwin(id) => of_device(id, "twin/get/result"),
            Self::UpdateState(id) => of_device(id, "state/update/result"),
            Self::GetMembership => of_node(node, "membership/get/result"),
            Self::Wrong { answer, .. } => answer.clone(),
        }
    }
}

/// Whether an answer's topic may have it: it has a bound, and nothing that MQTT or a reader of logs would take amiss.
fn is_part(part: &str) -> bool {
    part.len() <= MAX_PART && !part.contains(|letter: char| letter.is_control() || "/+#".contains(letter))
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
            ("$hw/events/device/a/b/twin/get/result", None),
            ("$hw/events/device/a/b/twin/foo/result", None),
            ("$hw/events/device/a/b/state/get", None),
            ("$hw/events/device/b/twin/update", None),
            ("$hw/events/device/", None),
            ("other", None),
        ] {
            assert_eq!(Request::of("n", topic), request, "{topic}");
        }
    }

    #[test]
    fn what_no_device_can_be_asked_for_is_answered_where_an_answer_is_listened_for() {
        let of = |topic: &str| Request::of("n", &format!("$hw/events/device/{topic}"));
        for (topic, expected) in [
            ("A/b/twin/update", Some("A/b/twin/update/result")),
            ("A/b/twin/cloud_updated", Some("A/b/twin/update/result")),
            ("ns/the boiler/twin/get", Some("ns/the boiler/twin/get/result")),
            ("ns/b_1/state/update", Some("ns/b_1/state/update/result")),
            ("/b/twin/update", Some("/b/twin/update/result")),
            ("A/b/twin/foo", Some("A/b/twin/foo/result")),
            ("ns/b/twin/foo", Some("ns/b/twin/foo/result")),
            ("ns/b/twin/", Some("ns/b/twin//result")),
            ("ns/b\u{7}/twin/update", None),
            ("ns/+/twin/update", None),
            ("ns/b/twin/f\no", None),
            ("ns/b/twin/#", None),
        ] {
            let answer = match of(topic) {
                Some(Request::Wrong { answer, wrong }) => {
                    assert_eq!(wrong.code(), 400);
                    assert!(wrong.to_string().contains("twin/foo") == topic.starts_with("ns/b/twin/foo"), "{wrong}");
                    Some(answer)
                }
                None => None,
                other => panic!("{topic}: {other:?}"),
            };
            assert_eq!(answer, expected.map(|topic| format!("$hw/events/device/{topic}")), "{topic}");
        }
        let long = "x".repeat(MAX_PART + 1);
        for topic in [format!("{long}/b/twin/update"), format!("ns/{long}/twin/update"), format!("ns/b/twin/{long}")] {
            assert_eq!(of(&topic), None, "an answer has a bound");
        }
    }
}
