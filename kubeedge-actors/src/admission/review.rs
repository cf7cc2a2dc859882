//! One `AdmissionReview`: from the API server's question to the answer. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::{
    autonomy::{self, Operation},
    device::{self, rules},
    rule,
};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// An API server's are uuids; what is sent back is bounded.
const MAX_UID: usize = 256;

/// Why a body is not a review that can be answered.
#[derive(Debug, Error)]
pub(super) enum ReviewError {
    #[error("the body is no AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the body is {kind:.260} of {api_version:.260}, expected {KIND} of {API_VERSION}")]
    Kind { kind: String, api_version: String },
    #[error("the review has no request")]
    NoRequest,
    #[error("request.uid has {0} bytes, expected 1 to {MAX_UID}")]
    Uid(usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    operation: String,
    resource: Resource,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct Resource {
    #[serde(default)]
    group: String,
    resource: String,
}

/// Answers a review. An autonomous pod gets a patch; a Device, DeviceModel, Rule or RuleEndpoint that cannot be is
/// refused; everything else is allowed.
pub(super) fn answer(body: &[u8]) -> Result<Value, ReviewError> {
    let Review { api_version, kind, request } = serde_json::from_slice(body)?;
    if (kind.as_str(), api_version.as_str()) != (KIND, API_VERSION) {
        return Err(ReviewError::Kind { kind, api_version });
    }
    let request = request.ok_or(ReviewError::NoRequest)?;
    if request.uid.is_empty() || request.uid.len() > MAX_UID {
        return Err(ReviewError::Uid(request.uid.len()));
    }
    let mut response = json!({"uid": request.uid, "allowed": true});
    if let Some(tolerations) = tolerations(&request) {
        // "add" replaces what is there, and needs nothing to be there.
        let patch = json!([{"op": "add", "path": "/spec/tolerations", "value": tolerations}]);
        response["patchType"] = "JSONPatch".into();
        response["patch"] = STANDARD.encode(patch.to_string()).into();
    }
    let wrong = violations(&request);
    if !wrong.is_empty() {
        response["allowed"] = false.into();
        response["status"] = json!({"code": 422, "message": wrong.join("; ")});
    }
    Ok(json!({"apiVersion": API_VERSION, "kind": KIND, "response": response}))
}

/// What is wrong with the object of KubeEdge's that the request is about.
fn violations(request: &Request) -> Vec<String> {
    let Resource { group, resource } = &request.resource;
    if !matches!(request.operation.as_str(), "CREATE" | "UPDATE") || !request.sub_resource.is_empty() {
        return Vec::new();
    }
    match (group.as_str(), resource.as_str()) {
        (device::GROUP, "devices") => rules::violations("Device", &request.object),
        (device::GROUP, "devicemodels") => rules::violations("DeviceModel", &request.object),
        (rule::GROUP, "rules") => rule::check::violations("Rule", &request.object),
        (rule::GROUP, "ruleendpoints") => rule::check::violations("RuleEndpoint", &request.object),
        _ => Vec::new(),
    }
}

/// The tolerations of the pod that the request is about, where they have to change.
fn tolerations(request: &Request) -> Option<Vec<Value>> {
    let Resource { group, resource } = &request.resource;
    if (group.as_str(), resource.as_str(), request.sub_resource.as_str()) != ("", "pods", "") {
        return None;
    }
    let operation = match request.operation.as_str() {
        "CREATE" => Operation::Create,
        "UPDATE" => Operation::Update,
        _ => return None,
    };
    // The patch adds a member of `spec`.
    request.object["spec"].is_object().then(|| autonomy::tolerations(&request.object, operation))?
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What kube-apiserver 1.36 posts for a new pod, the members that matter and some that do not.
    pub(in crate::admission) fn review(operation: &str, label: &str, tolerations: &Value) -> Value {
        json!({
            "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
                "name": "p", "namespace": "default", "operation": operation,
                "userInfo": {"username": "admin", "groups": ["system:authenticated"]},
                "object": {
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": "p", "labels": {"app-offline.kubeedge.io": label}},
                    "spec": {"containers": [{"name": "c", "image": "i"}], "tolerations": tolerations},
                },
                "oldObject": null, "dryRun": false, "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
            },
        })
    }

    pub(in crate::admission) fn patch(answer: &Value) -> Option<Value> {
        let patch = STANDARD.decode(answer["response"].get("patch")?.as_str().unwrap()).unwrap();
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        Some(serde_json::from_slice(&patch).unwrap())
    }

    fn answered(review: &Value) -> Value {
        answer(review.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_autonomous_pod_gets_a_patch_and_every_other_request_is_let_through() {
        let usual = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 300}]);
        let for_ever = json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists"});
        let made = answered(&review("CREATE", "autonomy", &usual));
        assert_eq!(made["response"]["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
        assert_eq!((&made["kind"], &made["apiVersion"]), (&json!("AdmissionReview"), &json!("admission.k8s.io/v1")));
        let whole = |value: Value| json!([{"op": "add", "path": "/spec/tolerations", "value": value}]);
        assert_eq!(patch(&made), Some(whole(json!([for_ever]))));
        let later = answered(&review("UPDATE", "autonomy", &usual));
        let kept = json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"});
        assert_eq!(patch(&later), Some(whole(json!([for_ever, kept]))), "an update may only add");

        let mut status = review("UPDATE", "autonomy", &usual);
        status["request"]["subResource"] = "status".into();
        let mut other = review("CREATE", "autonomy", &usual);
        other["request"]["resource"]["resource"] = "replicasets".into();
        let mut bare = review("CREATE", "autonomy", &usual);
        bare["request"]["object"] = Value::Null;
        let again = review("CREATE", "autonomy", &json!([for_ever]));
        for allowed in
            [review("CREATE", "no", &usual), review("DELETE", "autonomy", &usual), status, other, bare, again]
        {
            let answer = answered(&allowed);
            assert_eq!((&answer["response"]["allowed"], patch(&answer)), (&json!(true), None), "{allowed}");
        }
    }

    #[test]
    fn a_device_that_breaks_a_rule_is_refused_with_the_field() {
        let mut asked = review("CREATE", "no", &json!([]));
        asked["request"]["resource"] = json!({"group": device::GROUP, "version": "v1beta1", "resource": "devices"});
        asked["request"]["object"] = json!({"spec": {"deviceModelRef": {"name": "m"}, "protocol": {"protocolName": "p"},
            "properties": [{"name": "a"}, {"name": "a"}]}});
        let refused = answered(&asked);
        assert_eq!(refused["response"]["allowed"], false);
        let said = refused["response"]["status"]["message"].as_str().unwrap();
        assert!(said.contains("spec.properties[1].name"), "{said}");
        asked["request"]["object"]["spec"]["properties"][1]["name"] = "b".into();
        assert_eq!(answered(&asked)["response"]["allowed"], true);
        asked["request"]["object"]["spec"] = json!({});
        asked["request"]["operation"] = "DELETE".into();
        assert_eq!(answered(&asked)["response"]["allowed"], true, "what is broken can go");
    }

    #[test]
    fn a_rule_that_works_is_let_through_when_it_is_made_and_when_it_changes() {
        let mut asked = review("CREATE", "no", &json!([]));
        asked["request"]["resource"] = json!({"group": rule::GROUP, "version": "v1", "resource": "rules"});
        let rule = |target: Value| {
            json!({"spec": {"source": "bus", "sourceResource": {"target_url": "http://a", "node_name": "edge-1"},
                "target": "rest", "targetResource": target}})
        };
        for operation in ["CREATE", "UPDATE"] {
            asked["request"]["operation"] = operation.into();
            asked["request"]["object"] = rule(json!({"resource": "http://b"}));
            assert_eq!(answered(&asked)["response"]["allowed"], true);
            asked["request"]["object"] = rule(json!({"resource": "b"}));
            let refused = answered(&asked);
            let said = refused["response"]["status"]["message"].as_str().unwrap();
            assert!(said.contains("spec.targetResource.resource"), "{said}");
        }
    }

    #[test]
    fn what_is_no_review_is_refused_with_what_is_expected() {
        for (body, said) in [
            ("", "no AdmissionReview"),
            ("[]", "no AdmissionReview"),
            (r#"{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1"}"#, "expected AdmissionReview of"),
            (r#"{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}"#, "no request"),
            (
                r#"{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {"uid": "", "operation":
                    "CREATE", "resource": {"resource": "pods"}}}"#,
                "request.uid has 0 bytes",
            ),
        ] {
            let refusal = answer(body.as_bytes()).unwrap_err().to_string();
            assert!(refusal.contains(said), "{body}: {refusal}");
        }
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..64), spec in ".{0,30}") {
            let _ = answer(&body);
            let mut odd = review("CREATE", "autonomy", &json!(null));
            odd["request"]["object"]["spec"] = serde_json::from_str(&spec).unwrap_or(json!(spec));
            let _ = answer(odd.to_string().as_bytes());
        }
    }
}
