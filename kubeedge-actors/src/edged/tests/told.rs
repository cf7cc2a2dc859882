//! What is not as a pod asks for it, and does not keep it from running.

use super::*;

#[actix_rt::test]
async fn what_a_pod_does_not_get_of_names_secrets_and_variables_is_told_by_kubelets_reasons() {
    let bench = bench(&[], true).await;
    bench.runtime.publish_image("private/app:2");
    bench
        .tell(&json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "ns", "name": "keys", "uid": "c1"},
            "data": {"GOOD.1": "x", "a=b": "y"},
        }))
        .await;
    let mut asking = pod("p", "u1");
    asking["spec"]["dnsPolicy"] = "None".into();
    let servers = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"];
    asking["spec"]["dnsConfig"] = json!({"nameservers": servers});
    asking["spec"]["imagePullSecrets"] = json!([{"name": "absent"}]);
    asking["spec"]["containers"][0]["image"] = "private/app:2".into();
    asking["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "keys"}}]);
    bench.tell(&asking).await;
    bench.phase("u1", "Running").await;
    for (reason, message) in [
        (
            "DNSConfigForming",
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: \
             192.0.2.1 192.0.2.2 192.0.2.3",
        ),
        (
            "FailedToRetrieveImagePullSecret",
            "Unable to retrieve some image pull secrets (absent); attempting to pull the image may not succeed.",
        ),
        (
            "InvalidEnvironmentVariableNames",
            "Keys [a=b] from the EnvFrom configMap ns/keys were skipped since they are considered invalid environment \
             variable names.",
        ),
    ] {
        let event = bench.event(reason, |event| event["message"] == message).await;
        assert_eq!((&event["type"], &event["involvedObject"]["fieldPath"]), (&json!("Warning"), &Value::Null));
    }
    let id = &bench.runtime.pod("u1").instances[0].id;
    let envs = bench.runtime.config(id).unwrap().envs;
    assert!(envs.iter().any(|env| env.key == "GOOD.1") && !envs.iter().any(|env| env.key.contains('=')));
    assert_eq!(bench.runtime.sandbox_configs()[0].dns_config.clone().unwrap().servers, servers[..3]);

    // This node was given no name servers of a cluster.
    bench.tell(&pod("q", "u2")).await;
    let event = bench.event("MissingClusterDNS", |_| true).await;
    assert!(event["message"].as_str().unwrap().starts_with("pod: \"ns/q\". node does not have a cluster DNS IP"));
    bench.stop().await;
}
