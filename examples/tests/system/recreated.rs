//! A pod that is deleted and made again under its name, again and again, at every point of its life.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use kube::{Api, ResourceExt};
use kubeedge_examples::{
    lab::Lab,
    leftovers::{cgroups_naming, mounts_below},
};

use crate::{
    cluster::{
        NAMESPACE, apply, delete, gone, nothing_left, one_sandbox, page, pods, poll, running, uid, write_config,
    },
    pods::serving,
    report::Outcome,
};

pub(crate) const RECREATED: &str =
    "recreated::a_pod_that_is_made_again_under_its_name_again_and_again_leaves_nothing_behind";

const NAME: &str = "again";

/// How often: thirty times, unless `KUBEEDGE_RECREATIONS` says otherwise. A hundred take more than a minute.
fn times() -> Result<usize> {
    match std::env::var("KUBEEDGE_RECREATIONS") {
        Ok(times) => times.parse().context("KUBEEDGE_RECREATIONS, expected a number"),
        Err(_) => Ok(30),
    }
}

/// For all of them: a round takes a second, on a slow machine three.
pub(crate) fn limit() -> Duration {
    let rounds = times().ok().and_then(|times| u32::try_from(times).ok()).unwrap_or_default();
    (Duration::from_secs(5) * rounds).max(Duration::from_secs(150))
}

/// With a mount of each kind: a tmpfs of its own, one for the token, files out of a ConfigMap, a sub path.
fn manifest() -> String {
    let mounts = "    volumeMounts:\n    - {name: memory, mountPath: /memory}\n    - {name: conf, mountPath: /conf}\n    \
                  - {name: disk, mountPath: /deep, subPath: a/b}\n    ports:";
    let volumes = "  volumes:\n  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}\n  \
                   - {name: conf, configMap: {name: again}}\n  - {name: disk, emptyDir: {}}\n";
    // It ends when it is asked to: the grace period is not what is tried here.
    let serves = "command: [/bin/sh, -c, \"httpd -f -p 8080 -h /conf & trap 'exit 0' TERM; wait\"]";
    let forever = "command: [/bin/httpd, -f, -p, '8080', -h, /conf]";
    serving(NAME, "/conf").replace(forever, serves).replace("    ports:", mounts) + volumes
}

pub(crate) async fn recreated(lab: &Lab) -> Result<Outcome> {
    let client = lab.client()?;
    let api: Api<k8s_openapi::api::core::v1::Pod> = pods(&client);
    write_config(&client, NAME, &[("word", "here")]).await?;
    let mut uids = Vec::new();
    for round in 0..times()? {
        apply(lab, &manifest()).await.with_context(|| format!("round {round}"))?;
        let pod = api.get(NAME).await?;
        let uid = uid(&pod)?;
        uids.push(uid.clone());
        match round % 10 {
            // It runs, and is told to end in order.
            0 => {
                running(&client, NAME).await.with_context(|| format!("round {round}"))?;
                delete(&client, NAME, 1).await?;
                gone(&client, NAME, &uid).await?;
            }
            // It runs, and is gone from the API at once.
            3 => {
                running(&client, NAME).await.with_context(|| format!("round {round}"))?;
                delete(&client, NAME, 0).await?;
            }
            // The runtime has just begun with it.
            5 | 8 => {
                poll(&format!("round {round}: a sandbox"), async || {
                    let (sandboxes, _) = lab.sandboxes(&uid).await?;
                    Ok(if sandboxes.is_empty() { Err("none".to_owned()) } else { Ok(()) })
                })
                .await?;
                delete(&client, NAME, 0).await?;
            }
            // The node may not even have heard of it.
            _ => delete(&client, NAME, 0).await?,
        }
    }
    // The last one is the one that runs, beside no other.
    apply(lab, &manifest()).await?;
    let last = running(&client, NAME).await?;
    let uid = uid(&last)?;
    ensure!(last.uid().as_ref() == Some(&uid) && !uids.contains(&uid));
    ensure!(page(&last, "/word").await? == "here", "it does not serve its ConfigMap");
    one_sandbox(lab, &uid).await?;
    left_nothing(lab, &uids).await?;
    delete(&client, NAME, 1).await?;
    gone(&client, NAME, &uid).await?;
    nothing_left(lab, &uid).await?;
    left_nothing(lab, &[uid]).await?;
    Ok(Outcome::Proved)
}

/// Of these pods there is nothing: no container, no folder, no mount, no log, no control group.
async fn left_nothing(lab: &Lab, uids: &[String]) -> Result<()> {
    let gone: BTreeSet<&str> = uids.iter().map(String::as_str).collect();
    let in_runtime = lab.pods_in_runtime().await?;
    let found: Vec<&String> = in_runtime.iter().filter(|uid| gone.contains(uid.as_str())).collect();
    ensure!(found.is_empty(), "the runtime still has {found:?}");
    let edge = lab.folder().join("edge");
    let names = |text: &str| gone.iter().any(|uid| text.contains(uid));
    for folder in ["kubelet/pods", "logs/pods", "logs/containers"] {
        let folder = edge.join(folder);
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let said = format!("{} {}", entry.path().display(), target.display());
            ensure!(!names(&said), "{said} is left in {NAMESPACE}");
        }
    }
    let mounts = mounts_below(&edge)?;
    let left: Vec<_> = mounts.iter().filter(|mount| names(&mount.to_string_lossy())).collect();
    ensure!(left.is_empty(), "{left:?} are still mounted");
    // One walk over all groups of pods instead of one for each.
    let groups = cgroups_naming("pod")?;
    let left: Vec<_> = groups.iter().filter(|group| names(&group.to_string_lossy().replace('_', "-"))).collect();
    ensure!(left.is_empty(), "control groups are left: {left:?}");
    Ok(())
}
