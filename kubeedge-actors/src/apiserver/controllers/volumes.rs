//! Binds claims to volumes that a person has made: the smallest that is enough.
//!
//! A volume that names a claim is kept for it. When the claim is gone the volume is `Released`: what is in it is the
//! operator's, who makes it free by taking `spec.claimRef` away.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::Api;
use super::super::kinds::fields::{entries, list, text};
use super::super::kinds::quantity::Quantity;
use super::super::label_selector;
use super::super::object::{Key, member, metadata};
use super::super::status::Status;
use super::super::storage::Change;
use super::Again;

/// What follows for a volume and a claim.
#[derive(Clone, Debug, PartialEq)]
struct Settled {
    volume: Option<Value>,
    claim: Option<Value>,
}

/// Binds what can be bound and tells what is free.
pub(super) async fn reconcile(api: &Arc<Api>) -> Result<Again, Status> {
    let (Some(volume_id), Some(claim_id)) =
        (api.storage.core("persistentvolumes"), api.storage.core("persistentvolumeclaims"))
    else {
        return Ok(Again::OnChange);
    };
    // Under the writer's turn: what is read is what is written to.
    let writer = api.storage.write().await;
    let values = |id| -> Vec<Value> {
        let kind = api.storage.kind(id);
        writer.list(id).iter().map(|object| object.value(kind)).collect()
    };
    let (volumes, claims) = (values(volume_id), values(claim_id));
    let changes: Vec<Change> = next(&volumes, &claims)
        .into_iter()
        .flat_map(|Settled { volume, claim }| {
            let volume = volume.map(|value| Change::Put(volume_id, value));
            volume.into_iter().chain(claim.map(|value| Change::Put(claim_id, value)))
        })
        .collect();
    if !changes.is_empty() {
        writer.commit(changes).await?;
    }
    Ok(Again::OnChange)
}

/// One step for each object; its own changes wake the controller for the next.
fn next(volumes: &[Value], claims: &[Value]) -> Vec<Settled> {
    let mut settled = Vec::new();
    let mut taken: Vec<&str> = Vec::new();
    for claim in claims.iter().filter(|claim| claim.pointer("/metadata/deletionTimestamp").is_none()) {
        let Some(volume) = volume_for(claim, volumes, &taken) else { continue };
        taken.push(text(volume, "/metadata/name"));
        settled.extend(bound(volume, claim));
    }
    for volume in volumes.iter().filter(|volume| !taken.contains(&text(volume, "/metadata/name"))) {
        let phase = match text(volume, "/spec/claimRef/uid") {
            // Kept for a claim that may come.
            "" => "Available",
            uid if claims.iter().any(|claim| text(claim, "/metadata/uid") == uid) => continue,
            _ => "Released",
        };
        if text(volume, "/status/phase") != phase {
            let mut volume = volume.clone();
            member(&mut volume, "status").insert("phase".into(), phase.into());
            settled.push(Settled { volume: Some(volume), claim: None });
        }
    }
    settled
}

/// The volume that a claim has or gets.
fn volume_for<'a>(claim: &Value, volumes: &'a [Value], taken: &[&str]) -> Option<&'a Value> {
    let free = |volume: &&Value| {
        !taken.contains(&text(volume, "/metadata/name")) && volume.pointer("/metadata/deletionTimestamp").is_none()
    };
    let named = text(claim, "/spec/volumeName");
    if !named.is_empty() {
        let volume = volumes.iter().find(|volume| text(volume, "/metadata/name") == named)?;
        return Some(volume).filter(|volume| free(volume) && (is_kept_for(volume, claim) || is_free(volume)));
    }
    let candidates = || volumes.iter().filter(free);
    if let Some(kept) = candidates().find(|volume| is_kept_for(volume, claim)) {
        return Some(kept);
    }
    let mut enough: Vec<&Value> = candidates().filter(|volume| is_free(volume) && fits(volume, claim)).collect();
    enough.sort_by(|a, b| {
        let size = |volume: &Value| storage(volume, "/spec/capacity").unwrap_or(Quantity::ZERO);
        let by_size = size(a).partial_cmp(&size(b)).unwrap_or(std::cmp::Ordering::Equal);
        by_size.then_with(|| text(a, "/metadata/name").cmp(text(b, "/metadata/name")))
    });
    enough.first().copied()
}

fn is_free(volume: &Value) -> bool {
    volume.pointer("/spec/claimRef").is_none()
}

fn is_kept_for(volume: &Value, claim: &Value) -> bool {
    let uid = text(volume, "/spec/claimRef/uid");
    let same = |of_volume: &str, of_claim: &str| text(volume, of_volume) == text(claim, of_claim);
    !is_free(volume)
        && same("/spec/claimRef/namespace", "/metadata/namespace")
        && same("/spec/claimRef/name", "/metadata/name")
        && (uid.is_empty() || uid == text(claim, "/metadata/uid"))
}

fn storage(object: &Value, pointer: &str) -> Option<Quantity> {
    entries(object, pointer).find(|(name, _)| *name == "storage").and_then(|(_, size)| Quantity::parse(size.as_str()?))
}

fn fits(volume: &Value, claim: &Value) -> bool {
    let same = |pointer: &str| text(volume, pointer) == text(claim, pointer);
    let modes = list(volume, "/spec/accessModes");
    let wanted = storage(claim, "/spec/resources/requests").unwrap_or(Quantity::ZERO);
    let labels = volume.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
    same("/spec/storageClassName")
        && same("/spec/volumeMode")
        && list(claim, "/spec/accessModes").iter().all(|mode| modes.contains(mode))
        && storage(volume, "/spec/capacity").is_some_and(|size| size >= wanted)
        && claim.pointer("/spec/selector").is_none_or(|selector| {
            let label = |key: &str| labels.get(key).and_then(Value::as_str);
            label_selector::requirements(selector).is_some_and(|all| label_selector::matches(&all, label))
        })
}

/// Both, as they are when they have each other; `None` if they are so already.
fn bound(volume: &Value, claim: &Value) -> Option<Settled> {
    let (mut new_volume, mut new_claim) = (volume.clone(), claim.clone());
    let annotate = |object: &mut Value, name: &str| {
        let annotations = metadata(object).entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(name.into(), "yes".into());
        }
    };
    if text(volume, "/spec/claimRef/uid").is_empty() {
        let reference = json!({
            "kind": "PersistentVolumeClaim", "apiVersion": "v1",
            "namespace": text(claim, "/metadata/namespace"), "name": text(claim, "/metadata/name"),
            "uid": text(claim, "/metadata/uid"), "resourceVersion": text(claim, "/metadata/resourceVersion"),
        });
        if is_free(volume) {
            annotate(&mut new_volume, "pv.kubernetes.io/bound-by-controller");
        }
        member(&mut new_volume, "spec").insert("claimRef".into(), reference);
    }
    member(&mut new_volume, "status").insert("phase".into(), "Bound".into());
    if text(claim, "/spec/volumeName").is_empty() {
        annotate(&mut new_claim, "pv.kubernetes.io/bound-by-controller");
        member(&mut new_claim, "spec").insert("volumeName".into(), volume["metadata"]["name"].clone());
    }
    annotate(&mut new_claim, "pv.kubernetes.io/bind-completed");
    let status = member(&mut new_claim, "status");
    status.insert("phase".into(), "Bound".into());
    status.insert("accessModes".into(), volume["spec"]["accessModes"].clone());
    status.insert("capacity".into(), volume["spec"]["capacity"].clone());
    let settled = Settled {
        volume: Some(new_volume).filter(|new| new != volume),
        claim: Some(new_claim).filter(|new| new != claim),
    };
    (settled.volume.is_some() || settled.claim.is_some()).then_some(settled)
}

/// Where a pod's claims let it run: the node affinities of their volumes. `Err` says which claim has none yet, in the
/// scheduler's words.
pub(super) fn places(api: &Api, pod: &Value) -> Result<Vec<Value>, String> {
    let (Some(volume_id), Some(claim_id)) =
        (api.storage.core("persistentvolumes"), api.storage.core("persistentvolumeclaims"))
    else {
        return Ok(Vec::new());
    };
    let mut places = Vec::new();
    for volume in list(pod, "/spec/volumes") {
        let name = text(volume, "/persistentVolumeClaim/claimName");
        if name.is_empty() {
            continue;
        }
        let key = Key::new(text(pod, "/metadata/namespace"), name);
        let claim = api.storage.get(claim_id, &key).map(|claim| claim.value(api.storage.kind(claim_id)));
        let claim = claim.ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
        let bound = text(&claim, "/spec/volumeName");
        if bound.is_empty() || text(&claim, "/status/phase") != "Bound" {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        let volume = api.storage.get(volume_id, &Key::new("", bound));
        let volume = volume.map(|volume| volume.value(api.storage.kind(volume_id)));
        let volume = volume.ok_or_else(|| format!("persistentvolume {bound:?} not found"))?;
        places.extend(volume.pointer("/spec/nodeAffinity/required").cloned());
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn volume(name: &str, size: &str, change: impl FnOnce(&mut Value)) -> Value {
        let mut value = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "volumeMode": "Filesystem"}, "status": {"phase": "Available"}});
        change(&mut value);
        value
    }

    fn claim(name: &str, size: &str, change: impl FnOnce(&mut Value)) -> Value {
        let mut value = json!({"metadata": {"namespace": "n", "name": name, "uid": format!("u-{name}")}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, "volumeMode": "Filesystem"},
            "status": {"phase": "Pending"}});
        change(&mut value);
        value
    }

    fn of_claim(settled: &[Settled], name: &str) -> Option<String> {
        let claims = settled.iter().filter_map(|settled| settled.claim.as_ref());
        let found = claims.into_iter().find(|claim| text(claim, "/metadata/name") == name)?;
        Some(text(found, "/spec/volumeName").to_owned())
    }

    #[test]
    fn a_claim_gets_the_smallest_volume_that_is_enough_and_both_say_so() {
        let volumes = [volume("big", "10Gi", |_| ()), volume("fits", "2Gi", |_| ()), volume("small", "500Mi", |_| ())];
        let settled = next(&volumes, &[claim("c", "1Gi", |_| ())]);
        assert_eq!(settled.len(), 1);
        let (volume, claim) = (settled[0].volume.clone().unwrap(), settled[0].claim.clone().unwrap());
        assert_eq!((text(&volume, "/spec/claimRef/uid"), text(&volume, "/status/phase")), ("u-c", "Bound"));
        assert_eq!((text(&claim, "/spec/volumeName"), text(&claim, "/status/phase")), ("fits", "Bound"));
        assert_eq!(claim["status"]["capacity"]["storage"], "2Gi");
        assert_eq!(next(&[volumes[0].clone(), volume, volumes[2].clone()], &[claim]), [], "nothing is left to do");
    }

    #[test]
    fn what_does_not_fit_is_not_given() {
        for (why, odd) in [
            ("class", volume("v", "2Gi", |it| it["spec"]["storageClassName"] = "disk".into())),
            ("mode", volume("v", "2Gi", |it| it["spec"]["accessModes"] = json!(["ReadOnlyMany"]))),
            ("block", volume("v", "2Gi", |it| it["spec"]["volumeMode"] = "Block".into())),
            ("size", volume("v", "1000Mi", |_| ())),
            ("kept", volume("v", "2Gi", |it| it["spec"]["claimRef"] = json!({"namespace": "n", "name": "other"}))),
            ("ending", volume("v", "2Gi", |it| it["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into())),
        ] {
            assert_eq!(of_claim(&next(&[odd], &[claim("c", "1Gi", |_| ())]), "c"), None, "{why}");
        }
        let labelled = volume("v", "2Gi", |it| it["metadata"]["labels"] = json!({"disk": "ssd"}));
        let wants =
            |value: &str| claim("c", "1Gi", |it| it["spec"]["selector"] = json!({"matchLabels": {"disk": value}}));
        assert_eq!(of_claim(&next(std::slice::from_ref(&labelled), &[wants("hdd")]), "c"), None);
        assert_eq!(of_claim(&next(&[labelled], &[wants("ssd")]), "c").as_deref(), Some("v"));
    }

    #[test]
    fn a_volume_that_is_kept_goes_to_its_claim_and_is_released_after_it() {
        let kept = volume("v", "1Mi", |it| it["spec"]["claimRef"] = json!({"namespace": "n", "name": "c"}));
        let settled = next(&[kept], &[claim("other", "1Gi", |_| ()), claim("c", "1Gi", |_| ())]);
        assert_eq!((of_claim(&settled, "c").as_deref(), of_claim(&settled, "other")), (Some("v"), None));
        let bound = settled[0].volume.clone().unwrap();
        let released = next(std::slice::from_ref(&bound), &[]);
        assert_eq!(text(released[0].volume.as_ref().unwrap(), "/status/phase"), "Released");
        // Another claim of that name is not the one it was for.
        let again = claim("c", "1Gi", |it| it["metadata"]["uid"] = "u-2".into());
        assert_eq!(of_claim(&next(&[bound], &[again]), "c"), None);
        let named = claim("c", "1Ti", |it| it["spec"]["volumeName"] = "v".into());
        assert_eq!(of_claim(&next(&[volume("v", "1Mi", |_| ())], &[named]), "c").as_deref(), Some("v"));
    }

    proptest! {
        #[test]
        fn no_volume_is_two_claims(sizes in prop::collection::vec(1_u32..5, 0..6), wanted in prop::collection::vec(1_u32..5, 0..6)) {
            let volumes: Vec<Value> =
                sizes.iter().enumerate().map(|(at, size)| volume(&format!("v{at}"), &format!("{size}Gi"), |_| ())).collect();
            let claims: Vec<Value> =
                wanted.iter().enumerate().map(|(at, size)| claim(&format!("c{at}"), &format!("{size}Gi"), |_| ())).collect();
            let settled = next(&volumes, &claims);
            let mut given: Vec<String> = (0..claims.len()).filter_map(|at| of_claim(&settled, &format!("c{at}"))).collect();
            let all = given.len();
            given.sort();
            given.dedup();
            prop_assert_eq!(given.len(), all);
        }
    }
}
