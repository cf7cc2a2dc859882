//! What a node asks for and may not have, and the audit line about it. Pure, but for the line.
//!
//! The rules are those of Kubernetes' Node authorizer and NodeRestriction: a node reads and writes itself, the pods that
//! are bound to it, and what these name. `docs/security.md` lists every message with its rule and its test.

use kubeedge_proto::v1::{CallReply, Envelope, RequestToken, Settled, call_reply, envelope::Body};
use serde_json::Value;

use crate::audit;

/// A message's type and what it is about, for the audit log.
pub(super) struct Asked {
    node: String,
    action: &'static str,
    what: String,
}

impl Asked {
    pub(super) fn of(node: &str, envelope: Option<&Envelope>) -> Self {
        let (action, what) = envelope.and_then(|envelope| envelope.body.as_ref()).map_or(("message", None), about);
        Self { node: node.to_owned(), action, what: what.unwrap_or_else(|| "unnamed".to_owned()) }
    }

    /// Writes a line when the answer is that the node may not, or that nobody may send this.
    pub(super) fn settled(self, settled: Settled) -> Settled {
        if is_refusal(settled.code) {
            audit::refused(self.action, self.node, self.what, &settled.reason);
        }
        settled
    }

    /// The same for a Call.
    pub(super) fn replied(self, reply: CallReply) -> CallReply {
        if let Some(call_reply::Result::Error(error)) = &reply.result
            && is_refusal(error.code)
        {
            audit::refused(self.action, self.node, self.what, &error.message);
        }
        reply
    }
}

/// Wrong, forbidden, or unknown here. What is gone (404), late (409), too much for now (429) or in need of another attempt
/// (5xx) is no refusal of the node.
fn is_refusal(code: u32) -> bool {
    matches!(code, 400 | 401 | 403 | 413 | 422 | 501)
}

fn about(body: &Body) -> (&'static str, Option<String>) {
    let named = |type_: Option<String>, key: Option<String>| Some(format!("{} {}", type_?, key?));
    match body {
        Body::ObjectUpsert(_) => ("ObjectUpsert", None),
        Body::ObjectTombstone(_) => ("ObjectTombstone", None),
        Body::StatusUpdate(update) => (
            "StatusUpdate",
            named(update.r#type.as_ref().map(ToString::to_string), update.key.as_ref().map(ToString::to_string)),
        ),
        Body::PodTerminated(pod) => {
            ("PodTerminated", named(Some("v1/pods".into()), pod.key.as_ref().map(ToString::to_string)))
        }
        Body::DeviceReport(device) => {
            let key = device.key.as_ref().map(ToString::to_string);
            ("DeviceReport", named(Some("devices.kubeedge.io/v1beta1/devices".into()), key))
        }
        Body::KubernetesEvent(event) => {
            let key = event.event.as_ref().and_then(|event| event.key.as_ref());
            ("KubernetesEvent", named(Some("v1/events".into()), key.map(ToString::to_string)))
        }
        Body::UserMessage(message) => ("UserMessage", Some(message.topic.clone())),
        Body::GapMarker(_) => ("GapMarker", None),
        Body::ObjectQuery(query) => (
            "ObjectQuery",
            named(query.r#type.as_ref().map(ToString::to_string), query.key.as_ref().map(ToString::to_string)),
        ),
        Body::RegisterNode(_) => ("RegisterNode", None),
        Body::CreateMirrorPod(_) => ("CreateMirrorPod", None),
        Body::RequestToken(wanted) => (
            "RequestToken",
            Some(format!("serviceaccount {}/{} for pod {}", wanted.namespace, wanted.service_account, wanted.pod_name)),
        ),
        Body::SignCertificate(_) => ("SignCertificate", None),
        Body::ApiRequest(request) => ("ApiRequest", Some(format!("{} {}", request.method, request.path_and_query))),
        Body::ServiceCall(call) => ("ServiceCall", call.rule.as_ref().map(ToString::to_string)),
        Body::ReportDevice(_) => ("ReportDevice", None),
        Body::CallReply(_) => ("CallReply", None),
    }
}

/// Whether a pod, read from the API server now, gives its node a right to this token: it is bound to the node and is
/// still the same pod, it runs as this service account, and it names every audience that is wanted. A code and a reason
/// otherwise.
pub(super) fn may_have_token(node: &str, wanted: &RequestToken, pod: &Value) -> Result<(), (u32, String)> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let name = format!("{}/{}", wanted.namespace, wanted.pod_name);
    if text("/spec/nodeName") != node {
        return Err((403, format!("pod {name} is not bound to node {node}")));
    }
    if wanted.pod_uid.is_empty() || text("/metadata/uid") != wanted.pod_uid {
        return Err((409, format!("pod {name} is another one by now")));
    }
    let account = match text("/spec/serviceAccountName") {
        "" => "default",
        account => account,
    };
    if account != wanted.service_account {
        return Err((403, format!("pod {name} runs as service account {account}, not {}", wanted.service_account)));
    }
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
    let sources = volumes.filter_map(|volume| volume.pointer("/projected/sources")?.as_array()).flatten();
    let named: Vec<&str> = sources
        .filter_map(|source| source.pointer("/serviceAccountToken"))
        .map(|token| token.get("audience").and_then(Value::as_str).unwrap_or_default())
        .collect();
    // No audience is the API server's own, which a source without one asks for.
    let own = [String::new()];
    let audiences = if wanted.audiences.is_empty() { &own[..] } else { &wanted.audiences[..] };
    match audiences.iter().find(|audience| !named.contains(&audience.as_str())) {
        Some(audience) => Err((403, format!("no volume of pod {name} asks for a token with audience {audience:?}"))),
        None => Ok(()),
    }
}

/// The annotation that makes a pod the mirror of a static pod.
const MIRROR: &str = "/metadata/annotations/kubernetes.io~1config.mirror";

/// Whether a pod of the API is the mirror of a static pod.
pub(super) fn is_mirror(pod: &Value) -> bool {
    mirror_of(pod).is_some()
}

/// The static pod that a pod stands for.
pub(super) fn mirror_of(pod: &Value) -> Option<&str> {
    pod.pointer(MIRROR)?.as_str().filter(|of| !of.is_empty())
}

/// Whether a node may make this mirror pod: it is one, bound to the node, under a name that ends with the node's, and it
/// gives no access to anything: no service account, no object of the API. What is wrong otherwise.
pub(super) fn may_mirror(node: &str, pod: &Value) -> Result<(), String> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if !is_mirror(pod) {
        return Err("a node makes no pods but mirrors of its static pods".to_owned());
    }
    if text("/spec/nodeName") != node {
        return Err(format!("the mirror pod is not bound to node {node}"));
    }
    let name = text("/metadata/name");
    if !name.strip_suffix(node).is_some_and(|stem| stem.len() > 1 && stem.ends_with('-')) {
        return Err(format!("the name {name:?} of a mirror pod does not end with -{node}"));
    }
    for field in ["/spec/serviceAccountName", "/spec/serviceAccount"] {
        if !text(field).is_empty() {
            return Err(format!("a mirror pod may not have {field}"));
        }
    }
    match refers(pod.get("spec").unwrap_or(&Value::Null)) {
        Some(field) => Err(format!("a mirror pod may not refer to objects of the API, and has {field}")),
        None => Ok(()),
    }
}

/// A field somewhere below that names a ConfigMap, a Secret, a claim or a token.
fn refers(value: &Value) -> Option<&str> {
    const FIELDS: [&str; 9] = [
        "configMap",
        "secret",
        "persistentVolumeClaim",
        "serviceAccountToken",
        "configMapRef",
        "secretRef",
        "configMapKeyRef",
        "secretKeyRef",
        "resourceClaims",
    ];
    match value {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            FIELDS.contains(&name.as_str()).then_some(name.as_str()).or_else(|| refers(value))
        }),
        Value::Array(items) => items.iter().find_map(refers),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wanted(account: &str, uid: &str, audiences: &[&str]) -> RequestToken {
        RequestToken {
            namespace: "ns".into(),
            service_account: account.into(),
            pod_name: "a".into(),
            pod_uid: uid.into(),
            audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect(),
            expiration_seconds: 3600,
        }
    }

    #[test]
    fn a_node_makes_mirrors_of_its_static_pods_and_no_other_pods() {
        let pod = |name: &str, node: &str, annotation: &str, spec: Value| {
            let mut pod = json!({"metadata": {"name": name, "annotations": {annotation: "hash"}}, "spec": spec});
            pod["spec"]["nodeName"] = node.into();
            may_mirror("e1", &pod)
        };
        let mirror = "kubernetes.io/config.mirror";
        assert_eq!(pod("web-e1", "e1", mirror, json!({"containers": [{"env": [{"value": "x"}]}]})), Ok(()));
        for (name, node, annotation, spec, why) in [
            ("web-e1", "e1", "other", json!({}), "no pods but mirrors"),
            ("web-e1", "e2", mirror, json!({}), "not bound"),
            ("web", "e1", mirror, json!({}), "does not end"),
            ("-e1", "e1", mirror, json!({}), "does not end"),
            ("webe1", "e1", mirror, json!({}), "does not end"),
            ("web-e1", "e1", mirror, json!({"serviceAccountName": "admin"}), "serviceAccountName"),
            ("web-e1", "e1", mirror, json!({"volumes": [{"secret": {"secretName": "s"}}]}), "has secret"),
            (
                "web-e1",
                "e1",
                mirror,
                json!({"containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "s"}}}]}]}),
                "has secretKeyRef",
            ),
            (
                "web-e1",
                "e1",
                mirror,
                json!({"volumes": [{"projected": {"sources": [{"serviceAccountToken": {}}]}}]}),
                "has serviceAccountToken",
            ),
        ] {
            let said = pod(name, node, annotation, spec).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn a_token_is_for_a_pod_of_the_node_as_that_pod_asks_for_it() {
        let pod = |node: &str, account: Option<&str>| {
            let mut pod = json!({
                "metadata": {"uid": "u1"},
                "spec": {"nodeName": node, "volumes": [
                    {"name": "x", "emptyDir": {}},
                    {"name": "t", "projected": {"sources": [
                        {"configMap": {"name": "c"}},
                        {"serviceAccountToken": {"path": "token"}},
                        {"serviceAccountToken": {"path": "vault", "audience": "vault"}},
                    ]}},
                ]},
            });
            if let Some(account) = account {
                pod["spec"]["serviceAccountName"] = account.into();
            }
            pod
        };
        let own = pod("e1", Some("app"));
        for audiences in [&[][..], &["vault"], &["", "vault"]] {
            assert_eq!(may_have_token("e1", &wanted("app", "u1", audiences), &own), Ok(()), "{audiences:?}");
        }
        assert_eq!(may_have_token("e1", &wanted("default", "u1", &[]), &pod("e1", None)), Ok(()));
        for (wanted, pod, code, why) in [
            (wanted("app", "u1", &[]), pod("e2", Some("app")), 403, "not bound to node e1"),
            (wanted("app", "u1", &[]), json!({"metadata": {"uid": "u1"}, "spec": {}}), 403, "not bound"),
            (wanted("app", "u2", &[]), own.clone(), 409, "another one"),
            (wanted("app", "", &[]), own.clone(), 409, "another one"),
            (wanted("admin", "u1", &[]), own.clone(), 403, "runs as service account app"),
            (wanted("default", "u1", &[]), own.clone(), 403, "runs as service account app"),
            (wanted("app", "u1", &["api"]), own.clone(), 403, "\"api\""),
            (wanted("app", "u1", &["vault", "api"]), own.clone(), 403, "\"api\""),
            (
                wanted("app", "u1", &[]),
                json!({"metadata": {"uid": "u1"}, "spec": {"nodeName": "e1", "serviceAccountName": "app"}}),
                403,
                "no volume",
            ),
        ] {
            let (found, said) = may_have_token("e1", &wanted, &pod).unwrap_err();
            assert!(found == code && said.contains(why), "{found} {said}");
        }
    }
}
