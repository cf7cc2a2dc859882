//! StatefulSet (`apps/v1`). Templates of claims are refused: nobody here would make volumes for them.

use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::{Value, json};

use super::{NOT_NEGATIVE, check_counts, check_not_above, containers, default_parts, template};
use crate::apiserver::kind::{Column, Kind, Resource};
use crate::apiserver::kinds::decode;
use crate::apiserver::kinds::fields::{Errors, Path, integer, list, object_mut, set_missing, text};
use crate::apiserver::kinds::names;
use crate::apiserver::kinds::table::{AGE, NAME, column, creation_age, name, wide};
use crate::apiserver::status::FieldError;

pub(in crate::apiserver::kinds) const KIND: Kind = Kind {
    resource: Resource {
        group: "apps",
        version: "v1",
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        categories: &["all"],
        namespaced: true,
        status_subresource: true,
        stored_as: None,
        selectable: &[],
        columns: COLUMNS,
        cells,
    },
    scale_subresource: true,
    has_generation: true,
    decode: decode::typed::<StatefulSet>,
    default,
    validate_create,
    validate_update,
    validate_status,
};

/// Fields of the spec that may change.
const CHANGEABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "Pods that are ready, of those that are wanted"),
    AGE,
    wide("Containers", "Names of the containers"),
    wide("Images", "Images of the containers"),
];

fn cells(object: &Value, now: i64) -> Vec<Value> {
    let count = |pointer: &str| integer(object, pointer).unwrap_or_default();
    let (names, images) = containers(object);
    vec![
        name(object),
        json!(format!("{}/{}", count("/status/readyReplicas"), count("/spec/replicas"))),
        creation_age(object, now),
        json!(names),
        json!(images),
    ]
}

fn default(object: &mut Value) {
    default_parts(object);
    template::default(object);
    let spec = &mut object["spec"];
    set_missing(spec, "podManagementPolicy", "OrderedReady");
    set_missing(spec, "replicas", 1);
    set_missing(spec, "revisionHistoryLimit", 10);
    if object_mut(spec, "updateStrategy").is_some() {
        let strategy = &mut spec["updateStrategy"];
        set_missing(strategy, "type", "RollingUpdate");
        if text(strategy, "/type") == "RollingUpdate" && object_mut(strategy, "rollingUpdate").is_some() {
            set_missing(&mut strategy["rollingUpdate"], "partition", 0);
        }
    }
    if object_mut(spec, "persistentVolumeClaimRetentionPolicy").is_some() {
        for field in ["whenDeleted", "whenScaled"] {
            set_missing(&mut spec["persistentVolumeClaimRetentionPolicy"], field, "Retain");
        }
    }
    for field in ["replicas", "availableReplicas"] {
        set_missing(&mut object["status"], field, 0);
    }
}

fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let path = Path::new("spec");
    let policy = text(object, "/spec/podManagementPolicy");
    errors.one_of(&path.field("podManagementPolicy"), policy, &["OrderedReady", "Parallel"]);
    check_strategy(object, &path.field("updateStrategy"), &mut errors);
    for field in ["whenDeleted", "whenScaled"] {
        let value = text(object, &format!("/spec/persistentVolumeClaimRetentionPolicy/{field}"));
        let path = path.field("persistentVolumeClaimRetentionPolicy").field(field);
        errors.one_of(&path, value, &["Delete", "Retain"]);
    }
    check_counts(object, "/spec", &["replicas", "minReadySeconds", "revisionHistoryLimit"], &mut errors);
    if let Some(start) = integer(object, "/spec/ordinals/start")
        && start < 0
    {
        errors.invalid(&path.field("ordinals").field("start"), start, NOT_NEGATIVE);
    }
    if !list(object, "/spec/volumeClaimTemplates").is_empty() {
        let why = "this server makes no PersistentVolumeClaims: name one that is there, or give the template a hostPath or emptyDir";
        errors.forbidden(&path.field("volumeClaimTemplates"), why);
    }
    template::check(object, "StatefulSet", &mut errors);
    errors.done()
}

/// The name becomes the host name of each pod, with a number at its end, so it is a label; the service's is part of its
/// domain.
fn validate_create(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let service = text(object, "/spec/serviceName");
    if !service.is_empty() {
        errors.format(&Path::new("spec").field("serviceName"), service, names::dns_subdomain(service));
    }
    let mut all = validate(object);
    all.extend(errors.done());
    all
}

fn check_strategy(object: &Value, path: &Path, errors: &mut Errors) {
    let strategy = &object["spec"]["updateStrategy"];
    let rolling = strategy.get("rollingUpdate");
    match (text(strategy, "/type"), rolling) {
        ("OnDelete", Some(_)) => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            errors.invalid(&path.field("rollingUpdate"), strategy["rollingUpdate"].clone(), why);
        }
        ("OnDelete", None) => {}
        ("RollingUpdate", _) => {
            if let Some(partition) = integer(strategy, "/rollingUpdate/partition")
                && partition < 0
            {
                errors.invalid(&path.field("rollingUpdate").field("partition"), partition, NOT_NEGATIVE);
            }
            if strategy.pointer("/rollingUpdate/maxUnavailable").is_some() {
                // Alpha in Kubernetes and off there; said here rather than ignored.
                let why = "is not served: pods are replaced one at a time";
                errors.forbidden(&path.field("rollingUpdate").field("maxUnavailable"), why);
            }
        }
        (other, _) => errors.one_of(&path.field("type"), other, &["OnDelete", "RollingUpdate"]),
    }
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut all = validate(new);
    let fixed = |object: &Value| {
        let mut spec = object["spec"].clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|field, _| !CHANGEABLE.contains(&field.as_str()));
        }
        spec
    };
    if fixed(new) != fixed(old) {
        let mut errors = Errors::default();
        let names: Vec<String> = CHANGEABLE.iter().map(|field| format!("'{field}'")).collect();
        let why = format!("updates to statefulset spec for fields other than {} are forbidden", names.join(", "));
        errors.forbidden(&Path::new("spec"), why);
        all.extend(errors.done());
    }
    all
}

fn validate_status(new: &Value, _: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let counts =
        ["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas", "observedGeneration"];
    check_counts(new, "/status", &counts, &mut errors);
    let pairs = [
        ("readyReplicas", "replicas"),
        ("currentReplicas", "replicas"),
        ("updatedReplicas", "replicas"),
        ("availableReplicas", "readyReplicas"),
    ];
    check_not_above(new, &pairs, &mut errors);
    errors.done()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fields, object, refused};
    use super::*;

    #[test]
    fn claims_are_refused_and_only_some_fields_change() {
        let claims = json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]});
        assert_eq!(refused(&KIND, claims), ["spec.volumeClaimTemplates"]);
        let old = object(&KIND, json!({"serviceName": "s"}));
        let grown = object(&KIND, json!({"serviceName": "s", "replicas": 3, "minReadySeconds": 1}));
        assert!(validate_update(&grown, &old).is_empty());
        let moved = object(&KIND, json!({"serviceName": "other"}));
        assert_eq!(fields(validate_update(&moved, &old)), ["spec"]);
        let partition = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": -1}}});
        assert_eq!(refused(&KIND, partition), ["spec.updateStrategy.rollingUpdate.partition"]);
    }
}
