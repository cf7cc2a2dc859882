//! A pod's quality of service: who gives way first when the node runs short.

use std::fmt;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use thiserror::Error;

use crate::edged::quantity::{InvalidQuantity, Quantity};

/// The class, as Kubernetes computes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has limits for cpu and memory, equal to its requests.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        })
    }
}

/// A request or limit that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("container {container}: resources.{section}.{resource}: {source}")]
pub struct InvalidResource {
    /// The container.
    pub container: String,
    /// `requests` or `limits`.
    pub section: &'static str,
    /// The resource.
    pub resource: String,
    /// What is wrong with it.
    pub source: InvalidQuantity,
}

/// The limit of a container for a resource; nothing if it is zero.
pub(crate) fn limit(container: &Container, resource: &str) -> Result<Option<Quantity>, InvalidResource> {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    read(container, "limits", resource, limits.and_then(|limits| limits.get(resource)))
}

/// The request of a container for a resource. What is limited and not requested is requested up to its limit, as the
/// API server defaults it.
pub(crate) fn request(container: &Container, resource: &str) -> Result<Option<Quantity>, InvalidResource> {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    match requests.and_then(|requests| requests.get(resource)) {
        None => limit(container, resource),
        request => read(container, "requests", resource, request),
    }
}

/// What a pod of its class takes beside its containers (`spec.overhead`), as if it were one more that has just that.
pub(super) fn overhead(pod: &Pod) -> Option<Container> {
    let amounts = pod.spec.as_ref()?.overhead.clone().filter(|amounts| !amounts.is_empty())?;
    let resources =
        ResourceRequirements { requests: Some(amounts.clone()), limits: Some(amounts), ..Default::default() };
    Some(Container { name: "(overhead)".to_owned(), resources: Some(resources), ..Container::default() })
}

fn read(
    container: &Container,
    section: &'static str,
    resource: &str,
    quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
) -> Result<Option<Quantity>, InvalidResource> {
    let Some(quantity) = quantity else { return Ok(None) };
    match Quantity::from_api(quantity) {
        Ok(quantity) => Ok(Some(quantity).filter(|quantity| *quantity > Quantity::ZERO)),
        Err(source) => {
            let (container, resource) = (container.name.clone(), resource.to_owned());
            Err(InvalidResource { container, section, resource, source })
        }
    }
}

/// The class of a pod.
pub fn qos_class(pod: &Pod) -> Result<QosClass, InvalidResource> {
    let Some(spec) = &pod.spec else { return Ok(QosClass::BestEffort) };
    let (mut anything, mut guaranteed) = (false, true);
    // Requests and limits are compared as sums over the pod.
    let mut balance = [Quantity::ZERO, Quantity::ZERO];
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for (resource, balance) in ["cpu", "memory"].into_iter().zip(&mut balance) {
            let (request, limit) = (request(container, resource)?, limit(container, resource)?);
            anything |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_some();
            *balance = balance.plus(request.unwrap_or_default()).minus(limit.unwrap_or_default());
        }
    }
    Ok(match anything {
        false => QosClass::BestEffort,
        true if guaranteed && balance.iter().all(|rest| rest.is_zero()) => QosClass::Guaranteed,
        true => QosClass::Burstable,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn class(containers: Value, init: Value) -> QosClass {
        let pod = json!({"spec": {"containers": containers, "initContainers": init}});
        qos_class(&serde_json::from_value(pod).unwrap()).unwrap()
    }

    fn container(requests: Value, limits: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn the_class_is_that_of_kubernetes() {
        let full = json!({"cpu": "1", "memory": "1Gi"});
        let none = json!({});
        for (containers, init, expected) in [
            (json!([container(none.clone(), none.clone())]), json!([]), QosClass::BestEffort),
            (json!([container(json!({"cpu": "0"}), none.clone())]), json!([]), QosClass::BestEffort),
            (json!([container(json!({"nvidia.com/gpu": "1"}), none.clone())]), json!([]), QosClass::BestEffort),
            (json!([container(full.clone(), full.clone())]), json!([]), QosClass::Guaranteed),
            (
                json!([container(json!({"cpu": "1000m", "memory": "1024Mi"}), full.clone())]),
                json!([]),
                QosClass::Guaranteed,
            ),
            (json!([container(none.clone(), full.clone())]), json!([]), QosClass::Guaranteed),
            (json!([container(json!({"cpu": "1"}), none.clone())]), json!([]), QosClass::Burstable),
            (json!([container(json!({"cpu": "500m"}), full.clone())]), json!([]), QosClass::Burstable),
            (json!([container(none.clone(), json!({"memory": "1Gi"}))]), json!([]), QosClass::Burstable),
            (
                json!([container(full.clone(), full.clone()), container(none.clone(), none.clone())]),
                json!([]),
                QosClass::Burstable,
            ),
            (
                json!([container(full.clone(), full.clone())]),
                json!([container(none.clone(), none.clone())]),
                QosClass::Burstable,
            ),
            (
                json!([container(full.clone(), full.clone())]),
                json!([container(full.clone(), full)]),
                QosClass::Guaranteed,
            ),
        ] {
            assert_eq!(class(containers.clone(), init), expected, "{containers}");
        }
    }

    #[test]
    fn a_wrong_amount_is_named_with_its_place() {
        let pod = json!({"spec": {"containers": [container(json!({"cpu": "1x"}), json!({}))]}});
        let error = qos_class(&serde_json::from_value(pod).unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("container c: resources.requests.cpu: quantity \"1x\" is not valid"), "{error}");
    }
}
