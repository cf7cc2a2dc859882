//! Pod: defaults, quality of service, validation, what may change, and the line `kubectl get pods` prints.

mod container;
mod defaults;
mod portion;
mod probe;
mod qos;
mod update;
mod validate;
mod volume;

use k8s_openapi::api::core::v1::Pod;

use super::decode;
use super::portion::Portion;
use crate::apiserver::kind::Kind;
use crate::kubeapi::kinds as rows;

pub(super) use container::check_resources;
pub(super) use defaults::default_template_spec;
pub(super) use validate::{check_spec, check_tolerations};

pub(super) const KIND: Kind = Kind {
    resource: rows::POD,
    scale_subresource: false,
    has_generation: true,
    decode: decode::typed::<Pod>,
    default: defaults::default,
    validate_create: validate::validate,
    validate_update: update::validate,
    validate_status: update::validate_status,
};

/// What changes by a subresource of its own.
pub(super) static PORTIONS: [Portion; 2] = [portion::EPHEMERAL, portion::RESIZE];

/// The lists of containers of a pod spec.
const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
