//! What a real cluster's admission does to new objects, so that what runs here runs there.

use serde_json::{Value, json};

use super::Api;
use super::custom;
use super::kind::Kind;
use super::kinds::{node, runtimeclass, serviceaccount};
use super::object::{Key, member, metadata, text};
use super::request::Target;
use super::status::Status;
use super::storage::Change;
use super::{clock, meta};
use crate::{
    autonomy::{self, Operation},
    device, rule,
};

/// Where containers find their service account's token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds a projected token lives: one hour and the skew that a real API server adds.
const TOKEN_SECONDS: u32 = 3607;
/// Seconds a pod stays on a node that is not ready or unreachable.
const TOLERATION_SECONDS: u32 = 300;
/// The ConfigMap with the certificate of the API server's authority.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";

/// Admits a new object, changing it as a cluster would.
pub(super) fn create(api: &Api, target: &Target, object: &mut Value) -> Result<(), Status> {
    let kind = target.kind;
    let name = text(&object["metadata"], "name").to_owned();
    if let Some(namespace) = &target.namespace {
        check_namespace(api, kind, namespace, &name)?;
    }
    if !kind.group.is_empty() {
        return admit_custom(api, target, &name);
    }
    match kind.plural {
        "pods" => admit_pod(api, target, &name, object),
        "nodes" => {
            node::admit_create(object);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A bound for definitions; nothing new of a kind that is ending.
fn admit_custom(api: &Api, target: &Target, name: &str) -> Result<(), Status> {
    let kind = target.kind;
    if custom::is_definition(kind) && api.storage.list(target.id, None).1.len() >= custom::MAX_DEFINITIONS {
        let why = format!("this server holds at most {} definitions", custom::MAX_DEFINITIONS);
        return Err(Status::forbidden(kind, name, &why));
    }
    if target.custom.is_some()
        && let Some(id) = api.storage.find(custom::GROUP, "v1", custom::PLURAL)
        && let Some(definition) = api.storage.get(id, &Key::new("", &format!("{}.{}", kind.plural, kind.group)))
        && definition.deleting
    {
        return Err(Status::method_not_allowed());
    }
    Ok(())
}

/// The rules of Devices, DeviceModels, Rules and RuleEndpoints, which KubeEdge has in a webhook; here they always hold.
fn check_kubeedge(kind: &Kind, object: &Value) -> Result<(), Status> {
    let wrong = match kind.group {
        device::GROUP => device::rules::violations(kind.kind, object),
        rule::GROUP => rule::check::violations(kind.kind, object),
        _ => return Ok(()),
    };
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Status::forbidden(kind, text(&object["metadata"], "name"), &wrong.join("; "))),
    }
}

fn check_namespace(api: &Api, kind: &Kind, namespace: &str, name: &str) -> Result<(), Status> {
    let Some(id) = api.storage.core("namespaces") else { return Ok(()) };
    let Some(found) = api.storage.get(id, &Key::new("", namespace)) else {
        return Err(Status::not_found(api.storage.kind(id), namespace));
    };
    if !found.deleting {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut status = Status::forbidden(kind, name, &why);
    if let Some(details) = &mut status.details {
        details["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]);
    }
    Err(status)
}

/// Admits a change of an object: a pod that is labelled later is autonomous from then on.
pub(super) fn update(kind: &Kind, object: &mut Value) {
    if kind.group.is_empty() && kind.plural == "pods" {
        stay(object, Operation::Update);
    }
}

/// What validating webhooks would refuse, of an object that is valid otherwise.
pub(super) fn validate(kind: &Kind, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    // What was broken before may lose its finalizers all the same.
    if old.is_some_and(|old| object["spec"] == old["spec"]) { Ok(()) } else { check_kubeedge(kind, object) }
}

/// Lets an autonomous pod stay on a node that is silent. KubeEdge does this by a webhook; here it is always on.
fn stay(pod: &mut Value, operation: Operation) {
    if let Some(tolerations) = autonomy::tolerations(pod, operation) {
        member(pod, "spec").insert("tolerations".into(), tolerations.into());
    }
}

fn admit_pod(api: &Api, target: &Target, name: &str, pod: &mut Value) -> Result<(), Status> {
    stay(pod, Operation::Create);
    tolerate(pod);
    classify(api, target, name, pod)?;
    // A static pod's image in the API: its node has it already, nothing is injected.
    if pod["metadata"]["annotations"].get("kubernetes.io/config.mirror").is_some() {
        return Ok(());
    }
    let spec = member(pod, "spec");
    let named = |spec: &serde_json::Map<String, Value>, key: &str| {
        spec.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut account = named(spec, "serviceAccountName");
    if account.is_empty() {
        account = named(spec, "serviceAccount");
    }
    if account.is_empty() {
        account = serviceaccount::DEFAULT_NAME.into();
    }
    spec.insert("serviceAccountName".into(), account.as_str().into());
    spec.insert("serviceAccount".into(), account.as_str().into());
    let namespace = target.scope();
    let found = api.storage.core("serviceaccounts").and_then(|id| {
        let found = api.storage.get(id, &Key::new(namespace, &account))?;
        Some(found.value(api.storage.kind(id)))
    });
    let Some(found) = found else {
        let why =
            format!("error looking up service account {namespace}/{account}: serviceaccount \"{account}\" not found");
        return Err(Status::forbidden(target.kind, name, &why));
    };
    if !spec.contains_key("imagePullSecrets")
        && let Some(secrets) =
            found.get("imagePullSecrets").filter(|list| list.as_array().is_some_and(|l| !l.is_empty()))
    {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    let automount = spec
        .get("automountServiceAccountToken")
        .and_then(Value::as_bool)
        .or_else(|| found["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(pod);
    }
    Ok(())
}

/// Gives the pod what its RuntimeClass says: it has to be there.
fn classify(api: &Api, target: &Target, name: &str, pod: &mut Value) -> Result<(), Status> {
    let refused = |why: &str| Status::forbidden(target.kind, name, why);
    let class = match runtimeclass::named(pod) {
        Some(class) => {
            let found = api.storage.find("node.k8s.io", "v1", "runtimeclasses").and_then(|id| {
                let found = api.storage.get(id, &Key::new("", class))?;
                Some(found.value(api.storage.kind(id)))
            });
            Some(found.ok_or_else(|| refused(&format!("pod rejected: RuntimeClass \"{class}\" not found")))?)
        }
        None => None,
    };
    runtimeclass::admit(pod, class.as_ref()).map_err(|why| refused(&why))
}

/// Adds the projected volume with token, CA certificate and namespace, and mounts it where nothing is mounted yet.
fn mount_token(pod: &mut Value) {
    let mounts = |container: &Value| {
        container["volumeMounts"].as_array().is_some_and(|all| all.iter().any(|one| one["mountPath"] == TOKEN_PATH))
    };
    let lists = ["initContainers", "containers"];
    let needed =
        lists.iter().any(|list| pod["spec"][*list].as_array().is_some_and(|all| all.iter().any(|one| !mounts(one))));
    if !needed {
        return;
    }
    let prefix = "kube-api-access-";
    let volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    let taken = |name: &str| volumes.iter().any(|volume| volume["name"] == name);
    let mut volume = meta::generated_name(prefix, rand::random::<u32>);
    while taken(&volume) {
        volume = meta::generated_name(prefix, rand::random::<u32>);
    }
    let spec = member(pod, "spec");
    for list in lists {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if mounts(container) {
                continue;
            }
            let mount = json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH});
            match container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
                Some(all) => all.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
        }
    }
    let source = json!({
        "name": volume,
        "projected": {
            "defaultMode": 420,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": ROOT_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    });
    match spec.get_mut("volumes").and_then(Value::as_array_mut) {
        Some(all) => all.push(source),
        None => {
            spec.insert("volumes".into(), json!([source]));
        }
    }
}

/// Lets the pod stay a while on a node that is away, where it does not say itself.
fn tolerate(pod: &mut Value) {
    let tolerations = member(pod, "spec").entry("tolerations").or_insert_with(|| json!([]));
    let Some(tolerations) = tolerations.as_array_mut() else { return };
    for key in [node::NOT_READY, node::UNREACHABLE] {
        let said = tolerations.iter().any(|one| {
            let own = text(one, "key");
            let effect = text(one, "effect");
            (own == key || own.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !said {
            tolerations.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}

/// What comes into being together with a new object: a namespace has its account and its CA certificate from the start.
pub(super) fn companions(api: &Api, target: &Target, name: &str) -> Vec<Change> {
    if target.kind.group.is_empty() && target.kind.plural == "namespaces" {
        namespace_contents(api, name)
    } else {
        Vec::new()
    }
}

/// The objects that every namespace has, those that are missing.
pub(super) fn namespace_contents(api: &Api, namespace: &str) -> Vec<Change> {
    let mut changes = Vec::new();
    let new = |name: &str, kind: &Kind| {
        let mut object = json!({"metadata": {
            "name": name, "namespace": namespace, "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": clock::rfc3339(api.now()),
        }});
        super::object::add_type(&mut object, kind);
        object
    };
    let missing = |plural: &str, name: &str| {
        api.storage.core(plural).filter(|id| api.storage.get(*id, &Key::new(namespace, name)).is_none())
    };
    if let Some(id) = missing("serviceaccounts", serviceaccount::DEFAULT_NAME) {
        changes.push(Change::Put(id, new(serviceaccount::DEFAULT_NAME, api.storage.kind(id))));
    }
    if let Some(id) = missing("configmaps", ROOT_CA) {
        let mut object = new(ROOT_CA, api.storage.kind(id));
        object["data"] = json!({"ca.crt": api.root_ca});
        let note = "The certificate authority of this cluster's API server, for what runs in its pods.";
        metadata(&mut object).insert("annotations".into(), json!({"kubernetes.io/description": note}));
        changes.push(Change::Put(id, object));
    }
    changes
}
