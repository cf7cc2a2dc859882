//! Paths of the node, parts of volumes, and a resolver configuration that is all the pod's own.

use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::*;

/// A number of a block device that nothing has; it is looked at, not opened.
const NO_DEVICE: (u32, u32) = (240, 77);

impl Node {
    pub(super) async fn host_paths_of_every_type_and_parts_of_volumes_are_mounted(&self) {
        let folder = self.root.parent().unwrap().join("paths");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("file"), "of the node\n").unwrap();
        let _listener = UnixListener::bind(folder.join("socket")).unwrap();
        let block = folder.join("block");
        mknodat(CWD, &block, FileType::BlockDevice, Mode::from_raw_mode(0o600), makedev(NO_DEVICE.0, NO_DEVICE.1))
            .unwrap();
        let paths = [
            ("file", folder.join("file"), "File"),
            ("new-file", folder.join("new/file"), "FileOrCreate"),
            ("new-folder", folder.join("made/folder"), "DirectoryOrCreate"),
            ("socket", folder.join("socket"), "Socket"),
            ("char", "/dev/zero".into(), "CharDevice"),
            ("block", block, "BlockDevice"),
        ];
        // FileOrCreate makes the file and not what is above it.
        std::fs::create_dir(folder.join("new")).unwrap();
        let volume = |(name, path, kind): &(&str, PathBuf, &str)| json!({"name": name, "hostPath": {"path": path, "type": kind}});
        let mut volumes: Vec<Value> = paths.iter().map(volume).collect();
        volumes.push(json!({"name": "scratch", "emptyDir": {}}));
        let mut mounts: Vec<Value> =
            paths.iter().map(|(name, ..)| json!({"name": name, "mountPath": format!("/on/{name}")})).collect();
        mounts.push(json!({"name": "scratch", "mountPath": "/part", "subPathExpr": "$(POD)/$(KIND)"}));
        let main = json!({
            "name": "main", "command": ["/bin/sleep", "1000"], "volumeMounts": mounts,
            "env": [{"name": "KIND", "value": "logs"},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        });
        let own_names = json!({
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["192.0.2.9"], "searches": ["mine.test"],
                "options": [{"name": "ndots", "value": "3"}, {"name": "edns0"}]},
        });
        let pod = self.pod("paths", &[main], |pod| {
            pod["spec"]["volumes"] = volumes.clone().into();
            pod["spec"].as_object_mut().unwrap().extend(own_names.as_object().unwrap().clone());
        });
        // A directory is no file: each path is checked before anything is mounted.
        let sleep = json!({"name": "main", "command": ["/bin/sleep", "1000"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
        let wrong = self.pod("wrong-path", &[sleep], |pod| {
            pod["spec"]["volumes"] = json!([{"name": "v", "hostPath": {"path": folder, "type": "File"}}]);
        });
        let (looked, refused) = (self.look_after(&pod).await, self.look_after(&wrong).await);
        looked.until(|status| ready(status) == 1).await;
        let checks = "cat /on/file && test -f /on/new-file && test -d /on/new-folder && test -S /on/socket && \
                      test -c /on/char && test -b /on/block && head -c 4 /on/char | wc -c && \
                      echo back > /on/new-file && echo part > /part/x";
        assert_eq!(self.exec("paths", "main", checks).await, "of the node\n4\n");
        assert_eq!(std::fs::read_to_string(folder.join("new/file")).unwrap(), "back\n");
        assert!(folder.join("made/folder").is_dir());
        let part = "pods/uid-of-paths/volumes/kubernetes.io~empty-dir/scratch/paths/logs/x";
        assert_eq!(std::fs::read_to_string(self.root.join(part)).unwrap(), "part\n");
        let names = self.resolv_conf("paths", "main").await;
        assert_eq!(names, "nameserver 192.0.2.9; options ndots:3 edns0; search mine.test");

        let told = format!(
            " FailedMount: MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: {} is not a file",
            folder.display()
        );
        refused.hears(|heard| heard == told).await;
        for (looked, pod) in [(looked, pod), (refused, wrong)] {
            looked.delete(&pod, 1).await;
            self.nothing_is_left(&pod).await;
        }
        assert_eq!(std::fs::read_to_string(folder.join("file")).unwrap(), "of the node\n", "it is not the pod's");
    }
    /// They are there with containerd 2.1 and newer, parts of them with 2.2, and refused by name with an older one.
    pub(super) async fn images_are_mounted_or_refused(&self) {
        let mounting = |name: &str, mount: Value| {
            let mut mount = mount;
            mount["name"] = "whole".into();
            json!({"name": name, "command": ["/bin/sleep", "1000"], "volumeMounts": [mount]})
        };
        let containers = [
            mounting("main", json!({"mountPath": "/whole"})),
            mounting("part", json!({"mountPath": "/part", "subPath": "etc"})),
        ];
        let pod = self.pod("images", &containers, |pod| {
            pod["spec"]["volumes"] = json!([{"name": "whole", "image": {"reference": self.image}}]);
        });
        let looked = self.look_after(&pod).await;
        let features = self.runtime.features().await.unwrap();
        if features.image_volumes {
            let running = |status: &Value, name: &str| super::container(status, name)["ready"] == true;
            looked.until(|status| running(status, "main")).await;
            let seen = self.exec("images", "main", "head -n 1 /whole/etc/passwd").await;
            assert_eq!(seen, "root:x:0:0:root:/root:/bin/sh\n");
            self.exec("images", "main", "! touch /whole/x 2>/dev/null").await;
            if features.image_sub_paths {
                looked.until(|status| running(status, "part")).await;
                assert_eq!(self.exec("images", "part", "ls /part").await, "group\npasswd\n");
            } else {
                let refusal = format!("subPath of an image is not supported by {}", features.runtime);
                looked
                    .hears(|heard| heard.starts_with("spec.containers{part} Failed: ") && heard.contains(&refusal))
                    .await;
            }
        } else {
            let told = format!(
                " FailedMount: MountVolume.SetUp failed for volume \"whole\" : volume type image is not supported by {}: \
                 expected containerd 2.1, CRI-O 1.31, or a newer one",
                features.runtime
            );
            looked.hears(|heard| heard == told).await;
        }
        looked.delete(&pod, 1).await;
        self.nothing_is_left(&pod).await;
    }
}
