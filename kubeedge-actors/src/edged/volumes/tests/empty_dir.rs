//! Directories of a pod, their group and their bounds.

use super::*;

#[tokio::test]
async fn the_fs_group_may_read_files_and_write_empty_dirs() {
    if !may_mount("the_fs_group_may_read_files_and_write_empty_dirs") {
        return;
    }
    let site = Site::new();
    site.config_map("cm", json!({"a": "1"}));
    site.token("jwt");
    let volumes = json!([
        {"name": "c", "configMap": {"name": "cm", "defaultMode": 0o400, "items": [{"key": "a", "path": "d/a"}]}},
        {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        {"name": "e", "emptyDir": {}},
    ]);
    let pod = with_security(pod(volumes), json!({"fsGroup": 4711, "runAsUser": 1234}));
    site.set_up(&pod).await.unwrap();
    let owner = |path: PathBuf| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    assert_eq!(owner(site.volume("configmap", "c/d/a")), (0, 4711, 0o440));
    assert_eq!(owner(site.volume("configmap", "c/d")), (0, 4711, 0o2755));
    assert_eq!(owner(site.volume("projected", "t/token")), (1234, 4711, 0o640));
    assert_eq!(owner(site.volume("empty-dir", "e")), (0, 4711, 0o2777));
    assert!(!site.volumes.refresh(&pod, &facts()).await.unwrap(), "the same modes are no change");
}

#[tokio::test]
async fn an_empty_dir_keeps_its_content_over_restarts() {
    let site = Site::new();
    let pod = pod(json!([{"name": "e", "emptyDir": {}}]));
    site.set_up(&pod).await.unwrap();
    let file = site.volume("empty-dir", "e/file");
    assert_eq!(mode(&site.volume("empty-dir", "e")), 0o777);
    fs::write(&file, "kept").unwrap();
    fs::set_permissions(site.volume("empty-dir", "e"), fs::Permissions::from_mode(0o700)).unwrap();
    site.set_up(&pod).await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    assert_eq!(mode(&site.volume("empty-dir", "e")), 0o700, "what the container changed stays");
}

#[tokio::test]
async fn a_memory_dir_is_bounded_and_comes_back_after_a_reboot() {
    if !may_mount("a_memory_dir_is_bounded_and_comes_back_after_a_reboot") {
        return;
    }
    let site = Site::new();
    let pod = pod(json!([{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "64Ki"}}]));
    site.set_up(&pod).await.unwrap();
    let dir = site.volume("empty-dir", "m");
    fs::write(dir.join("small"), [0; 1000]).unwrap();
    let error = fs::write(dir.join("big"), vec![0; 1 << 20]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    site.set_up(&pod).await.unwrap();
    assert!(dir.join("small").exists());
    mount_table::unmount_below(&dir).unwrap();
    site.set_up(&pod).await.unwrap();
    assert!(!dir.join("small").exists() && mount_table::is_mount_point(&dir).unwrap());
}

#[test]
fn a_memory_dir_takes_the_least_of_its_bounds() {
    use crate::edged::volumes::empty_dir::EmptyDir;
    let plan = |limit: Option<&str>, memory: Value, facts: &PodFacts| {
        let source = serde_json::from_value(json!({"medium": "Memory", "sizeLimit": limit})).unwrap();
        let pod = pod_with(json!([]), json!([{"name": "c", "resources": {"limits": memory}}]));
        EmptyDir::plan(&source, &pod, facts)
    };
    let memory = |bytes| EmptyDir::Memory(bytes);
    assert_eq!(plan(None, json!({}), &facts()).unwrap(), memory(1 << 30));
    assert_eq!(plan(Some("1Mi"), json!({}), &facts()).unwrap(), memory(1 << 20));
    assert_eq!(plan(Some("1Mi"), json!({"memory": "64Ki"}), &facts()).unwrap(), memory(1 << 16));
    assert_eq!(plan(Some("0"), json!({"memory": "64Ki"}), &facts()).unwrap(), memory(1 << 16));
    assert!(plan(None, json!({}), &PodFacts::default()).is_err());
}
