//! What not every runtime can do: refused in words, and done by one that can.

use kubeedge_proto::cri::SupplementalGroupsPolicy;

use super::{
    runtime::{HandlerFeatures, RuntimeFeatures},
    *,
};

/// As containerd 2.1 has them.
fn all() -> RuntimeFeatures {
    let able = HandlerFeatures { recursive_read_only: true, user_namespaces: true };
    RuntimeFeatures {
        runtime: "containerd 2.1.9".to_owned(),
        image_volumes: true,
        image_sub_paths: true,
        strict_groups: true,
        handlers: [(String::new(), able)].into(),
    }
}

fn old() -> RuntimeFeatures {
    RuntimeFeatures { runtime: "containerd 1.6.20".to_owned(), ..RuntimeFeatures::default() }
}

/// Until the first container waits, for a reason that reads so.
async fn waits(bench: &Bench, uid: &str, part: &str) {
    bench
        .until(part, |site| {
            let message = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
            lock(&site.reports).iter().any(|(_, of, status)| of == uid && message(status).contains(part)).then_some(())
        })
        .await;
}

#[actix_rt::test]
async fn users_of_its_own_are_refused_where_the_runtime_has_none_and_kept_where_it_has() {
    let bench = bench(&[], true).await;
    bench.runtime.has_features(old());
    let mut own = pod("p", "u1");
    own["spec"]["hostUsers"] = false.into();
    bench.tell(&own).await;
    let refusal =
        "can't set `spec.hostUsers: false`, runtime (containerd 1.6.20) does not support user namespaces".to_owned();
    let event = bench.event("FailedCreatePodSandBox", |_| true).await;
    assert_eq!(event["message"], format!("Failed to create pod sandbox: {refusal}"));
    waits(&bench, "u1", &refusal).await;
    assert_eq!(bench.made("run_sandbox"), 0);

    // The runtime is replaced by a newer one.
    bench.runtime.has_features(all());
    bench.phase("u1", "Running").await;
    let sandbox = bench.runtime.sandbox_configs().remove(0);
    let namespaces = |options: Option<kubeedge_proto::cri::NamespaceOption>| options.unwrap().userns_options.unwrap();
    let users = namespaces(sandbox.linux.unwrap().security_context.unwrap().namespace_options);
    assert_eq!((users.uids.len(), users.uids[0].host_id, users.uids[0].length), (1, 65_536, 65_536));
    assert_eq!(users.uids, users.gids);
    let container = bench.runtime.config(&bench.runtime.pod("u1").instances[0].id).unwrap();
    assert_eq!(namespaces(container.linux.unwrap().security_context.unwrap().namespace_options), users);
    assert!(!container.mounts.is_empty());
    assert!(container.mounts.iter().all(|mount| mount.uid_mappings == users.uids && mount.gid_mappings == users.gids));

    // Another one has other ids, and one that asks for none is not asked about.
    own["metadata"]["name"] = "q".into();
    own["metadata"]["uid"] = "u2".into();
    bench.tell(&own).await;
    bench.phase("u2", "Running").await;
    let other = bench.runtime.sandbox_configs().remove(1);
    assert_eq!(namespaces(other.linux.unwrap().security_context.unwrap().namespace_options).uids[0].host_id, 131_072);
    bench.tell(&pod("r", "u3")).await;
    bench.phase("u3", "Running").await;
    let plain = bench.runtime.sandbox_configs().remove(2).linux.unwrap().security_context.unwrap();
    assert_eq!(plain.namespace_options.unwrap().userns_options, None);
    bench.stop().await;
}

#[actix_rt::test]
async fn groups_beside_those_that_a_pod_names_are_left_out_where_the_runtime_can_and_refused_where_not() {
    let bench = bench(&[], true).await;
    bench.runtime.has_features(old());
    let strict = |uid: &str, policy: &str| {
        let mut pod = pod(uid, uid);
        pod["spec"]["securityContext"] = json!({"supplementalGroups": [7], "supplementalGroupsPolicy": policy});
        pod
    };
    bench.tell(&strict("u1", "Strict")).await;
    bench.tell(&strict("u2", "Sometimes")).await;
    waits(&bench, "u1", "SupplementalGroupsPolicy=Strict is not supported by the runtime (containerd 1.6.20)").await;
    waits(&bench, "u2", "supplementalGroupsPolicy \\\"Sometimes\\\": expected Merge, Strict, or none").await;
    assert_eq!(bench.made("run_sandbox"), 0);

    bench.runtime.has_features(all());
    bench.phase("u1", "Running").await;
    let sandbox = bench.runtime.sandbox_configs().remove(0).linux.unwrap().security_context.unwrap();
    assert_eq!(sandbox.supplemental_groups_policy(), SupplementalGroupsPolicy::Strict);
    let container = bench.runtime.config(&bench.runtime.pod("u1").instances[0].id).unwrap();
    let container = container.linux.unwrap().security_context.unwrap();
    assert_eq!(container.supplemental_groups_policy(), SupplementalGroupsPolicy::Strict);
    assert_eq!(container.supplemental_groups, [7]);
    bench.stop().await;
}

#[actix_rt::test]
async fn an_image_volume_is_refused_where_the_runtime_has_none_and_fetched_and_mounted_where_it_has() {
    let bench = bench(&[], true).await;
    bench.runtime.has_features(old());
    bench.runtime.publish_image("models:3");
    let mut with_image = pod("p", "u1");
    with_image["spec"]["volumes"] = json!([{"name": "model", "image": {"reference": "models:3"}}]);
    with_image["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "model", "mountPath": "/model", "subPath": "weights"}]);
    bench.tell(&with_image).await;
    let refusal = "MountVolume.SetUp failed for volume \"model\" : volume type image is not supported by containerd 1.6.20: \
                   expected containerd 2.1, CRI-O 1.31, or a newer one";
    let event = bench.event("FailedMount", |_| true).await;
    assert_eq!(event["message"], refusal);
    waits(&bench, "u1", "volume type image is not supported by containerd 1.6.20").await;

    // One that can, but for parts.
    bench.runtime.has_features(RuntimeFeatures { image_sub_paths: false, ..all() });
    waits(&bench, "u1", "subPath of an image is not supported by containerd 2.1.9: expected containerd 2.2").await;
    assert_eq!(bench.made("create_container"), 0);
    bench.runtime.has_features(all());
    bench.phase("u1", "Running").await;
    assert!(bench.runtime.calls().contains(&"pull_image models:3".to_owned()));
    let mounts = bench.runtime.config(&bench.runtime.pod("u1").instances[0].id).unwrap().mounts;
    let mount = mounts.iter().find(|mount| mount.container_path == "/model").unwrap();
    assert_eq!((mount.host_path.as_str(), mount.image_sub_path.as_str(), mount.readonly), ("", "weights", true));
    assert_eq!(mount.image.as_ref().unwrap().image, "sha256:models:3");

    // One that cannot be had is said like a container's own.
    with_image["metadata"]["name"] = "q".into();
    with_image["metadata"]["uid"] = "u2".into();
    with_image["spec"]["volumes"][0]["image"]["reference"] = "models:4".into();
    bench.tell(&with_image).await;
    waits(&bench, "u2", "models:4: not found").await;
    let event = bench.event("Failed", |event| event["message"].to_string().contains("models:4")).await;
    assert!(event["message"].as_str().unwrap().starts_with("Failed to pull image \"models:4\": "), "{event}");
    bench.stop().await;
}
