//! The Service `default/kubernetes` and its endpoints: how pods find the API server.
//!
//! Made at the bootstrap and made again when it is gone or has been changed. Its address is the first of the range, which
//! no other Service is given.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::addresses::KUBERNETES;
use super::super::kinds::endpointslice::SERVICE_NAME;
use super::super::object::{Key, add_type, metadata};
use super::super::status::Status;
use super::super::storage::{Change, KindId};
use super::super::{Api, clock};
use super::Again;

/// Port of the Service.
const HTTPS: u16 = 443;

/// Makes or mends what leads to `server`.
pub(super) async fn reconcile(api: &Arc<Api>, server: SocketAddr) -> Result<Again, Status> {
    let Some(namespaces) = api.storage.core("namespaces") else { return Ok(Again::OnChange) };
    let key = Key::new(KUBERNETES.0, KUBERNETES.1);
    let wanted = wanted(api, server);
    if wanted.iter().all(|(id, value)| mended(api, *id, &key, value).is_none()) {
        return Ok(Again::OnChange);
    }
    let writer = api.storage.write().await;
    if writer.get(namespaces, &Key::new("", KUBERNETES.0)).is_none() {
        // It is made by another controller, whose change wakes this one.
        return Ok(Again::OnChange);
    }
    let changes = wanted
        .iter()
        .filter_map(|(id, value)| mended(api, *id, &key, value).map(|value| Change::Put(*id, value)))
        .collect();
    writer.commit(changes).await?;
    Ok(Again::OnChange)
}

/// What there should be: everything of an object that this controller decides.
fn wanted(api: &Api, server: SocketAddr) -> Vec<(KindId, Value)> {
    let address = api.service_range.first().to_string();
    let service = json!({
        "metadata": {"labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "sessionAffinity": "None",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "protocol": "TCP", "port": HTTPS, "targetPort": server.port()}],
        },
    });
    let mut all: Vec<(KindId, Value)> = api.storage.core("services").map(|id| (id, service)).into_iter().collect();
    if server.ip().is_unspecified() {
        return all;
    }
    let address = server.ip().to_string();
    let ports = json!([{"name": "https", "port": server.port(), "protocol": "TCP"}]);
    let endpoints = json!({
        "metadata": {"labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}], "ports": ports}],
    });
    let slice = json!({
        "metadata": {"labels": {SERVICE_NAME: KUBERNETES.1}},
        "addressType": if server.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": ports,
    });
    all.extend(api.storage.core("endpoints").map(|id| (id, endpoints)));
    all.extend(api.storage.find("discovery.k8s.io", "v1", "endpointslices").map(|id| (id, slice)));
    all
}

/// The object with what is wanted of it; `None` when it is so already.
fn mended(api: &Api, id: KindId, key: &Key, wanted: &Value) -> Option<Value> {
    let kind = api.storage.kind(id);
    let found = api.storage.get(id, key).map(|object| object.value(kind));
    let mut object = found.clone().unwrap_or_else(|| {
        let mut object = json!({"metadata": {
            "name": key.name, "namespace": key.namespace, "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": clock::rfc3339(api.now()),
        }});
        add_type(&mut object, kind);
        object
    });
    for (field, value) in wanted.as_object().into_iter().flatten().filter(|(field, _)| *field != "metadata") {
        object[field.as_str()] = value.clone();
    }
    for (label, value) in wanted["metadata"]["labels"].as_object().into_iter().flatten() {
        let labels = metadata(&mut object).entry("labels").or_insert_with(|| json!({}));
        labels[label.as_str()] = value.clone();
    }
    (kind.default)(&mut object);
    (found.as_ref() != Some(&object)).then_some(object)
}
