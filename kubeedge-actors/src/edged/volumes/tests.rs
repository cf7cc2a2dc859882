//! Volumes as a whole, on a real file system.

use std::{
    os::unix::fs::{MetadataExt as _, symlink},
    sync::atomic::{AtomicI64, Ordering},
};

use serde_json::{Value, json};

use super::{super::objects::MemoryObjects, mount_table::may_mount, *};
use crate::edged::{
    env::ContainerEnv,
    facts::Allocatable,
    objects::{ObjectError, Token},
    quantity::Quantity,
};

mod container_mounts;
mod empty_dir;
mod tokens;

const UID: &str = "0b9c1a52-0000-4000-8000-000000000001";
const START: i64 = 1_700_000_000;

struct Site {
    root: tempfile::TempDir,
    objects: Arc<MemoryObjects>,
    clock: Arc<AtomicI64>,
    volumes: Volumes,
}

impl Site {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let objects = Arc::new(MemoryObjects::default());
        let clock = Arc::new(AtomicI64::new(START));
        let now = clock.clone();
        let clock_fn = Arc::new(move || Timestamp::from_second(now.load(Ordering::Acquire)).unwrap());
        let volumes = Volumes::with_clock(root.path(), objects.clone(), clock_fn);
        Self { root, objects, clock, volumes }
    }

    /// As after a restart of the process: the disk is as it was.
    fn restarted(&mut self) {
        let now = self.clock.clone();
        let clock_fn = Arc::new(move || Timestamp::from_second(now.load(Ordering::Acquire)).unwrap());
        self.volumes = Volumes::with_clock(self.root.path(), self.objects.clone(), clock_fn);
    }

    fn pass(&self, seconds: i64) {
        self.clock.fetch_add(seconds, Ordering::AcqRel);
    }

    fn config_map(&self, name: &str, data: Value) {
        let object = json!({"metadata": {"name": name, "namespace": "ns"}, "data": data});
        self.objects.put_config_map(serde_json::from_value(object).unwrap());
    }

    fn secret(&self, name: &str, data: Value) {
        let object = json!({"metadata": {"name": name, "namespace": "ns"}, "data": data});
        self.objects.put_secret(serde_json::from_value(object).unwrap());
    }

    fn token(&self, text: &str) {
        let expires_at = Timestamp::from_second(self.clock.load(Ordering::Acquire) + 3600).unwrap();
        self.objects.set_token(Token { token: text.to_owned(), expires_at });
    }

    fn volume(&self, kind: &str, name: &str) -> PathBuf {
        self.root.path().join(format!("pods/{UID}/volumes/kubernetes.io~{kind}/{name}"))
    }

    fn text(&self, kind: &str, path: &str) -> String {
        fs::read_to_string(self.volume(kind, path)).unwrap()
    }

    async fn set_up(&self, pod: &Pod) -> Result<MountedVolumes, VolumeError> {
        self.volumes.set_up(pod, &facts()).await
    }

    async fn mounts(&self, pod: &Pod, env: &[(&str, &str)]) -> Result<Vec<Mount>, VolumeError> {
        let mounted = self.set_up(pod).await?;
        let vars = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let env = ContainerEnv { vars, skipped: Vec::new() };
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        self.volumes.mounts(pod, &container, &facts(), &env, &mounted).await
    }

    async fn error(&self, pod: &Pod) -> (String, bool) {
        let error = self.set_up(pod).await.unwrap_err();
        (error.to_string(), error.is_final())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        mount_table::unmount_below(self.root.path()).unwrap();
    }
}

fn facts() -> PodFacts {
    PodFacts {
        pod_ips: vec!["10.0.0.5".parse().unwrap()],
        cluster_domain: "cluster.local".to_owned(),
        allocatable: Allocatable { memory: Quantity::bytes(1 << 30), ..Allocatable::default() },
        ..PodFacts::default()
    }
}

/// A pod with these volumes, all of them mounted at `/<name>`.
fn pod(volumes: Value) -> Pod {
    let names: Vec<&str> = volumes.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap()).collect();
    let mounts: Vec<Value> = names.iter().map(|name| json!({"name": name, "mountPath": format!("/{name}")})).collect();
    pod_with(volumes, json!([{"name": "c", "volumeMounts": mounts}]))
}

fn pod_with(volumes: Value, containers: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": UID, "labels": {"a": "b"}},
        "spec": {"serviceAccountName": "sa", "containers": containers, "volumes": volumes},
    }))
    .unwrap()
}

fn with_security(mut pod: Pod, context: Value) -> Pod {
    pod.spec.as_mut().unwrap().security_context = Some(serde_json::from_value(context).unwrap());
    pod
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[tokio::test]
async fn a_config_map_is_there_with_its_modes_and_follows_changes() {
    let site = Site::new();
    site.config_map("cm", json!({"a": "1", "b": "2"}));
    let pod = pod(json!([
        {"name": "all", "configMap": {"name": "cm"}},
        {"name": "some", "configMap": {"name": "cm", "defaultMode": 0o400, "items": [
            {"key": "a", "path": "deep/er/a.conf"}, {"key": "b", "path": "b", "mode": 0o555}]}},
    ]));
    site.set_up(&pod).await.unwrap();
    assert_eq!((site.text("configmap", "all/a"), site.text("configmap", "all/b")), ("1".into(), "2".into()));
    assert_eq!(mode(&site.volume("configmap", "all/a")), 0o644);
    assert_eq!(site.text("configmap", "some/deep/er/a.conf"), "1");
    assert_eq!(mode(&site.volume("configmap", "some/deep/er/a.conf")), 0o400);
    assert_eq!(mode(&site.volume("configmap", "some/b")), 0o555);

    assert!(!site.volumes.refresh(&pod, &facts()).await.unwrap());
    site.config_map("cm", json!({"a": "changed", "b": "2", "c": "3"}));
    assert!(site.volumes.refresh(&pod, &facts()).await.unwrap());
    assert_eq!((site.text("configmap", "all/a"), site.text("configmap", "all/c")), ("changed".into(), "3".into()));
    assert!(!site.volumes.refresh(&pod, &facts()).await.unwrap());
}

#[tokio::test]
async fn what_is_missing_is_told_in_the_kubelets_words_and_waited_for() {
    let site = Site::new();
    site.config_map("cm", json!({"a": "1"}));
    site.secret("s", json!({"a": "MQ=="}));
    let prefix = "MountVolume.SetUp failed for volume \"v\" :";
    for (volume, message) in [
        (json!({"configMap": {"name": "y"}}), "configmap \"y\" not found"),
        (json!({"secret": {"secretName": "y"}}), "secret \"y\" not found"),
        (
            json!({"configMap": {"name": "cm", "items": [{"key": "k", "path": "p"}]}}),
            "references non-existent config key: k",
        ),
        (
            json!({"secret": {"secretName": "s", "items": [{"key": "k", "path": "p"}]}}),
            "references non-existent secret key: k",
        ),
        (json!({"projected": {"sources": [{"configMap": {"name": "y"}}]}}), "configmap \"y\" not found"),
        (
            json!({"hostPath": {"path": "/nonexistent-path", "type": "Directory"}}),
            "hostPath type check failed: /nonexistent-path is not a directory",
        ),
    ] {
        let mut volume = volume;
        volume["name"] = json!("v");
        assert_eq!(site.error(&pod(json!([volume]))).await, (format!("{prefix} {message}"), false));
    }
    site.objects.set_offline(true);
    let (message, is_final) = site.error(&pod(json!([{"name": "v", "configMap": {"name": "cm"}}]))).await;
    assert!(message.ends_with("configmap \"ns/cm\" cannot be fetched: the cloud cannot be reached"), "{message}");
    assert!(!is_final);
}

#[tokio::test]
async fn what_no_waiting_mends_is_final_and_names_the_volume() {
    let site = Site::new();
    site.config_map("cm", json!({"a": "1"}));
    for (volume, part) in [
        (
            json!({"persistentVolumeClaim": {"claimName": "X/y"}}),
            "persistentVolumeClaim.claimName \"X/y\" is not valid",
        ),
        (json!({"nfs": {"server": "x y", "path": "/"}}), "nfs.server \"x y\" is not valid"),
        (json!({"iscsi": {"targetPortal": "x", "iqn": "y", "lun": 1}}), "iscsi is not supported"),
        (json!({"csi": {"driver": "x"}}), "csi is not supported"),
        (json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "x"}}]}}), "clusterTrustBundle"),
        (json!({"emptyDir": {"medium": "HugePages"}}), "HugePages"),
        (json!({"emptyDir": {"medium": "Tape"}}), "emptyDir.medium"),
        (json!({"hostPath": {"path": "/a/../b"}}), "hostPath.path"),
        (json!({"configMap": {"name": "cm", "items": [{"key": "a", "path": "../../../etc/passwd"}]}}), "path"),
        (json!({"configMap": {"name": "cm", "items": [{"key": "a", "path": "/etc/passwd"}]}}), "path"),
        (json!({"configMap": {"name": "cm", "defaultMode": 0o4755}}), "mode"),
        (json!({"downwardAPI": {"items": [{"path": "x", "fieldRef": {"fieldPath": "nope"}}]}}), "unsupported"),
    ] {
        let mut volume = volume;
        volume["name"] = json!("v");
        let (message, is_final) = site.error(&pod(json!([volume.clone()]))).await;
        assert!(is_final && message.contains("volume \"v\"") && message.contains(part), "{volume}: {message}");
    }
    let mut bad = pod(json!([]));
    for uid in ["", "../../etc", "a/b"] {
        bad.metadata.uid = Some(uid.to_owned());
        assert!(matches!(site.set_up(&bad).await, Err(VolumeError::Name(_))));
        assert!(matches!(site.volumes.tear_down(uid).await, Err(VolumeError::Name(_))));
    }
    assert!(matches!(site.set_up(&pod(json!([{"name": "../x", "emptyDir": {}}]))).await, Err(VolumeError::Name(_))));
}

#[tokio::test]
async fn a_claim_is_waited_for_until_it_is_bound_to_a_volume_that_is_there() {
    let site = Site::new();
    let disk = tempfile::tempdir().unwrap();
    fs::write(disk.path().join("kept"), "x").unwrap();
    let pod = pod(json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data", "readOnly": true}}]));
    let waits = async |words: &str| {
        let (error, is_final) = site.error(&pod).await;
        let start = "MountVolume.SetUp failed for volume \"v\" : ";
        assert!(error.starts_with(start) && error.contains(words) && !is_final, "{error}");
    };
    waits("persistentvolumeclaim \"data\": not found").await;
    let claim = |volume: &str| {
        let value =
            json!({"metadata": {"name": "data", "namespace": "ns", "uid": "c1"}, "spec": {"volumeName": volume}});
        site.objects.put_claim(serde_json::from_value(value).unwrap());
    };
    claim("");
    waits("not bound to a volume yet").await;
    claim("pv");
    waits("persistentvolume \"pv\" not found").await;
    let volume = |path: &Path| {
        let value = json!({"metadata": {"name": "pv"}, "spec": {"local": {"path": path},
            "claimRef": {"namespace": "ns", "name": "data", "uid": "c1"}}});
        site.objects.put_persistent_volume(serde_json::from_value(value).unwrap());
    };
    volume(&disk.path().join("none"));
    waits("none does not exist").await;
    volume(disk.path());
    let mounts = site.mounts(&pod, &[]).await.unwrap();
    assert_eq!((mounts[0].host_path.as_path(), mounts[0].read_only), (disk.path(), true));
    site.objects.set_offline(true);
    waits("cannot be fetched").await;
    assert!(!site.volumes.refresh(&pod, &facts()).await.unwrap(), "a volume that is mounted has nothing to refresh");
    site.volumes.tear_down(UID).await.unwrap();
    assert_eq!(fs::read_to_string(disk.path().join("kept")).unwrap(), "x");
}

#[tokio::test]
async fn a_volume_that_nobody_mounts_is_not_made() {
    let site = Site::new();
    let pod = pod_with(json!([{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]), json!([{"name": "c"}]));
    site.set_up(&pod).await.unwrap();
}

#[tokio::test]
async fn what_is_optional_may_be_absent_and_come_later() {
    let site = Site::new();
    let pod = pod(json!([
        {"name": "c", "configMap": {"name": "cm", "optional": true}},
        {"name": "k", "configMap": {"name": "k", "optional": true, "items": [{"key": "no", "path": "no"}]}},
        {"name": "s", "secret": {"secretName": "s", "optional": true}},
    ]));
    site.config_map("k", json!({"a": "1"}));
    site.set_up(&pod).await.unwrap();
    assert!(!site.volume("configmap", "c/a").exists());
    site.config_map("cm", json!({"a": "1"}));
    assert!(site.volumes.refresh(&pod, &facts()).await.unwrap());
    assert_eq!(site.text("configmap", "c/a"), "1");
}

#[tokio::test]
async fn one_bad_volume_does_not_keep_the_others_from_being_refreshed() {
    let site = Site::new();
    site.config_map("gone", json!({"a": "1"}));
    site.config_map("cm", json!({"a": "1"}));
    let pod = pod(json!([
        {"name": "gone", "configMap": {"name": "gone"}}, {"name": "c", "configMap": {"name": "cm"}},
    ]));
    site.set_up(&pod).await.unwrap();
    site.objects.remove_config_map("ns", "gone");
    site.config_map("cm", json!({"a": "2"}));
    let error = site.volumes.refresh(&pod, &facts()).await.unwrap_err();
    assert!(error.to_string().contains("configmap \"gone\" not found"), "{error}");
    assert_eq!(site.text("configmap", "c/a"), "2");
    assert_eq!(site.text("configmap", "gone/a"), "1", "what a container reads is not taken away");
}

#[tokio::test]
async fn tear_down_leaves_the_host_path_and_other_pods_alone() {
    let site = Site::new();
    site.secret("s", json!({"a": "MQ=="}));
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("precious"), "").unwrap();
    let mut pod = pod(json!([
        {"name": "h", "hostPath": {"path": host.path()}}, {"name": "e", "emptyDir": {}},
        {"name": "s", "secret": {"secretName": "s"}},
    ]));
    site.set_up(&pod).await.unwrap();
    symlink(host.path(), site.volume("empty-dir", "e/link")).unwrap();
    let other = "0b9c1a52-0000-4000-8000-000000000002";
    pod.metadata.uid = Some(other.to_owned());
    site.set_up(&pod).await.unwrap();

    fs::write(site.root.path().join("pods/not_a_pod"), "").unwrap();
    let known = HashSet::from([other.to_owned()]);
    assert_eq!(site.volumes.orphans(&known).await.unwrap(), [UID]);
    site.volumes.tear_down(UID).await.unwrap();
    site.volumes.tear_down(UID).await.unwrap();
    assert!(host.path().join("precious").exists());
    assert!(site.volumes.orphans(&known).await.unwrap().is_empty());
    assert_eq!(site.volumes.orphans(&HashSet::new()).await.unwrap(), [other]);
    assert!(site.root.path().join("pods").join(other).exists());
}
