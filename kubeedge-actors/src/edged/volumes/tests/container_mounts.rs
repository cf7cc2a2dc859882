//! What a container gets mounted.

use super::*;

#[tokio::test]
async fn a_container_gets_its_volumes_hosts_file_and_termination_log() {
    let site = Site::new();
    site.config_map("cm", json!({"a": "1"}));
    let pod = pod_with(
        json!([{"name": "e", "emptyDir": {}}, {"name": "c", "configMap": {"name": "cm"}},
               {"name": "h", "hostPath": {"path": "/tmp", "type": "Directory"}}]),
        json!([{"name": "c", "volumeMounts": [
            {"name": "e", "mountPath": "data"},
            {"name": "c", "mountPath": "/etc/app"},
            {"name": "h", "mountPath": "/host", "readOnly": true, "mountPropagation": "HostToContainer"},
        ]}]),
    );
    let mounts = site.mounts(&pod, &[]).await.unwrap();
    let shown: Vec<_> = mounts.iter().map(|m| (m.container_path.as_str(), m.read_only, m.selinux_relabel)).collect();
    assert_eq!(
        shown,
        [
            ("/data", false, true),
            ("/etc/app", true, true),
            ("/host", true, false),
            ("/etc/hosts", false, true),
            ("/dev/termination-log", false, true),
        ]
    );
    assert_eq!(mounts[2].host_path, Path::new("/tmp"));
    assert_eq!(mounts[2].propagation, Propagation::HostToContainer);
    assert!(fs::read_to_string(&mounts[3].host_path).unwrap().ends_with("10.0.0.5\tp\n"));
    assert_eq!(mode(&mounts[4].host_path), 0o666);

    // Each start has a log of its own, and only the latest stay.
    let mut last = PathBuf::new();
    for _ in 0..9 {
        last = site.mounts(&pod, &[]).await.unwrap().pop().unwrap().host_path;
    }
    assert!(last.exists() && last != mounts[4].host_path);
    assert_eq!(fs::read_dir(last.parent().unwrap()).unwrap().count(), 5);
}

#[tokio::test]
async fn a_container_may_bring_its_own_hosts_file_and_no_termination_log() {
    let site = Site::new();
    let pod = pod_with(
        json!([{"name": "e", "emptyDir": {}}]),
        json!([{"name": "c", "terminationMessagePath": "",
                "volumeMounts": [{"name": "e", "mountPath": "/etc/hosts"}]}]),
    );
    let mounts = site.mounts(&pod, &[]).await.unwrap();
    assert_eq!(mounts.len(), 1);
}

#[tokio::test]
async fn mounts_that_cannot_be_granted_are_refused() {
    let site = Site::new();
    let volumes = json!([{"name": "e", "emptyDir": {}}]);
    for (mount, part) in [
        (json!({"mountPropagation": "Bidirectional"}), "only to privileged"),
        (json!({"mountPropagation": "Sideways"}), "invalid MountPropagation mode"),
        (json!({"subPath": "/etc"}), "subPath \"/etc\" is not valid"),
        (json!({"subPath": "a/../../x"}), "is not valid"),
        (json!({"subPathExpr": "$(NONE)/x"}), "missing value for \"NONE\""),
        (json!({"subPathExpr": "$(UP)/x"}), "is not valid"),
        (json!({"readOnly": true, "recursiveReadOnly": "Enabled"}), "does not support it"),
        (json!({"recursiveReadOnly": "IfPossible"}), "not readOnly"),
    ] {
        let mut mount = mount;
        mount["name"] = json!("e");
        mount["mountPath"] = json!("/e");
        let pod = pod_with(volumes.clone(), json!([{"name": "c", "volumeMounts": [mount]}]));
        let error = site.mounts(&pod, &[("UP", "..")]).await.unwrap_err();
        assert!(error.is_final() && error.to_string().contains(part), "{error}");
    }
    let pod = pod_with(volumes, json!([{"name": "c", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}]));
    let error = site.mounts(&pod, &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot find volume \"x\" to mount into container \"c\"");
}

#[tokio::test]
async fn sub_paths_are_bound_and_do_not_leave_the_volume() {
    if !may_mount("sub_paths_are_bound_and_do_not_leave_the_volume") {
        return;
    }
    let site = Site::new();
    site.config_map("cm", json!({"app.conf": "1"}));
    let volumes = json!([{"name": "c", "configMap": {"name": "cm"}}, {"name": "e", "emptyDir": {}}]);
    let pod = pod_with(
        volumes.clone(),
        json!([{"name": "c", "volumeMounts": [
            {"name": "c", "mountPath": "/etc/app.conf", "subPath": "app.conf"},
            {"name": "e", "mountPath": "/logs", "subPathExpr": "$(POD)/logs"},
        ]}]),
    );
    let mounts = site.mounts(&pod, &[("POD", "p-1")]).await.unwrap();
    assert_eq!(fs::read_to_string(&mounts[0].host_path).unwrap(), "1");
    assert!(mounts[0].host_path.ends_with("volume-subpaths/c/c/0"));
    fs::write(mounts[1].host_path.join("x"), "").unwrap();
    assert!(site.volume("empty-dir", "e/p-1/logs/x").exists());

    // The container restarts after its configuration changed: it gets the new file.
    site.config_map("cm", json!({"app.conf": "2"}));
    let mounts = site.mounts(&pod, &[("POD", "p-1")]).await.unwrap();
    assert_eq!(fs::read_to_string(&mounts[0].host_path).unwrap(), "2");

    symlink("/etc", site.volume("empty-dir", "e/escape")).unwrap();
    let pod = pod_with(
        volumes,
        json!([{"name": "c", "volumeMounts": [{"name": "e", "mountPath": "/x", "subPath": "escape"}]}]),
    );
    let error = site.mounts(&pod, &[]).await.unwrap_err();
    assert!(error.to_string().contains("does not stay inside the volume"), "{error}");
    site.volumes.tear_down(UID).await.unwrap();
    assert!(!site.root.path().join("pods").join(UID).exists());
    assert!(Path::new("/etc/passwd").exists());
}
