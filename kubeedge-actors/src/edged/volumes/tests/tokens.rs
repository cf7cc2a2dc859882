//! Secrets, tokens and what is projected beside them.

use super::*;

#[tokio::test]
async fn secrets_are_on_a_tmpfs() {
    if !may_mount("secrets_are_on_a_tmpfs") {
        return;
    }
    let site = Site::new();
    site.secret("s", json!({"password": "aHVudGVyMg=="}));
    let pod = pod(json!([{"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}}]));
    site.set_up(&pod).await.unwrap();
    site.set_up(&pod).await.unwrap();
    let dir = site.volume("secret", "s");
    assert_eq!(site.text("secret", "s/password"), "hunter2");
    assert_eq!(mode(&dir.join("password")), 0o400);
    assert_ne!(fs::metadata(&dir).unwrap().dev(), fs::metadata(site.root.path()).unwrap().dev());
    // As a reboot does it: the tmpfs is gone, the directory is there.
    mount_table::unmount_below(&dir).unwrap();
    assert!(!dir.join("password").exists());
    site.set_up(&pod).await.unwrap();
    assert_eq!(site.text("secret", "s/password"), "hunter2");
    site.volumes.tear_down(UID).await.unwrap();
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_projected_volume_holds_token_config_and_fields() {
    let site = Site::new();
    site.config_map("kube-root-ca.crt", json!({"ca.crt": "PEM"}));
    site.secret("s", json!({"x": "eA=="}));
    site.token("jwt-1");
    let pod = pod(json!([{"name": "kube-api-access", "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}, "mode": 0o600}]}},
        {"secret": {"name": "s", "items": [{"key": "x", "path": "secret/x"}]}},
    ]}}]));
    site.set_up(&pod).await.unwrap();
    let text = |name: &str| site.text("projected", &format!("kube-api-access/{name}"));
    assert_eq!(
        (text("token"), text("ca.crt"), text("namespace"), text("labels"), text("secret/x")),
        ("jwt-1".into(), "PEM".into(), "ns".into(), "a=\"b\"".into(), "x".into())
    );
    let asked = site.objects.tokens_asked();
    assert_eq!((asked.len(), asked[0].service_account.as_str(), asked[0].pod_uid.as_str()), (1, "sa", UID));
    assert!(asked[0].audiences.is_empty());
}

#[tokio::test]
async fn a_token_is_renewed_at_80_percent_and_the_old_one_stays_while_offline() {
    let mut site = Site::new();
    site.token("jwt-1");
    let pod = pod(json!([{"name": "t", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 3600}}]}}]));
    site.set_up(&pod).await.unwrap();
    site.pass(2800);
    assert!(!site.volumes.refresh(&pod, &facts()).await.unwrap());
    assert_eq!(site.objects.tokens_asked().len(), 1);

    site.pass(100);
    site.objects.set_offline(true);
    assert!(!site.volumes.refresh(&pod, &facts()).await.unwrap());
    // A reboot while offline, long after it expired: the pod comes up with what it had.
    site.pass(10_000);
    mount_table::unmount_below(site.root.path()).unwrap();
    site.restarted();
    site.set_up(&pod).await.unwrap();
    assert_eq!(site.text("projected", "t/token"), "jwt-1");

    site.objects.set_offline(false);
    site.token("jwt-2");
    assert!(site.volumes.refresh(&pod, &facts()).await.unwrap());
    assert_eq!(site.text("projected", "t/token"), "jwt-2");
    assert_eq!(site.objects.tokens_asked().len(), 2);
    assert_eq!(site.objects.tokens_asked()[1].audiences, ["vault"]);
}

#[tokio::test]
async fn a_pod_that_waits_for_something_else_asks_for_one_token_only() {
    let site = Site::new();
    site.token("jwt-1");
    let pod = pod(json!([
        {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        {"name": "c", "configMap": {"name": "late"}},
    ]));
    for _ in 0..3 {
        assert!(matches!(site.set_up(&pod).await, Err(VolumeError::SetUp { .. })));
    }
    assert_eq!(site.objects.tokens_asked().len(), 1);
}

#[tokio::test]
async fn without_any_token_a_pod_waits() {
    let site = Site::new();
    site.objects.set_offline(true);
    let pod = pod(json!([{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]));
    match site.set_up(&pod).await {
        Err(VolumeError::SetUp { source: SetUpError::Object(ObjectError::Offline { .. }), .. }) => {}
        other => panic!("{other:?}"),
    }
}
