//! Pod: defaults, quality of service, validation, what may change, and the line `kubectl get pods` prints.

mod container;
mod defaults;
mod portion;
mod probe;
mod qos;
mod table;
mod update;
mod validate;
mod volume;

use k8s_openapi::api::core::v1::Pod;

use super::decode;
use super::fields::text;
use super::portion::Portion;
use crate::apiserver::kind::Kind;

pub(super) use defaults::default_template_spec;
pub(super) use validate::check_spec;

pub(super) const KIND: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    status_subresource: true,
    scale_subresource: false,
    has_generation: true,
    stored_as: None,
    decode: decode::typed::<Pod>,
    default: defaults::default,
    validate_create: validate::validate,
    validate_update: update::validate,
    validate_status: update::validate_status,
    selectable: &[
        ("spec.nodeName", |o| text(o, "/spec/nodeName").to_owned()),
        ("spec.restartPolicy", |o| text(o, "/spec/restartPolicy").to_owned()),
        ("spec.schedulerName", |o| text(o, "/spec/schedulerName").to_owned()),
        ("spec.serviceAccountName", |o| text(o, "/spec/serviceAccountName").to_owned()),
        ("spec.hostNetwork", |o| super::fields::flag(o, "/spec/hostNetwork").to_string()),
        ("status.phase", |o| text(o, "/status/phase").to_owned()),
        ("status.podIP", |o| text(o, "/status/podIP").to_owned()),
        ("status.nominatedNodeName", |o| text(o, "/status/nominatedNodeName").to_owned()),
    ],
    columns: table::COLUMNS,
    cells: table::cells,
};

/// What changes by a subresource of its own.
pub(super) static PORTIONS: [Portion; 2] = [portion::EPHEMERAL, portion::RESIZE];

/// The lists of containers of a pod spec.
const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
