//! `ONCE=1 quickstart`: real processes, a real containerd, a page served by a pod, and nothing left behind.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{path::Path, process::Command};

#[test]
fn the_quickstart_serves_a_page_and_leaves_nothing_behind() {
    let quickstart = Path::new(env!("CARGO_BIN_EXE_quickstart"));
    for program in ["cloudcore", "edgecore"] {
        if !quickstart.with_file_name(program).exists() {
            // Built by `cargo test --workspace`, not by `cargo test -p kubeedge-examples` alone.
            assert!(std::env::var_os("CI").is_none(), "{program} is not built");
            return eprintln!("skipped: {program} is not built; run `cargo test --workspace`");
        }
    }
    // A short path: there will be unix sockets below it.
    let folder = tempfile::Builder::new().prefix("ke").tempdir_in("/tmp").unwrap();
    let output = Command::new(quickstart).arg("--folder").arg(folder.path()).env("ONCE", "1").output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let log = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    assert!(
        output.status.success(),
        "{said}\n{errors}\ncloudcore.log:\n{}\nedgecore.log:\n{}",
        log("cloudcore.log"),
        log("edgecore.log")
    );
    assert!(said.contains("no process, mount, control group or network interface is left"), "{said}");
    if std::env::var_os("CI").is_some() {
        assert!(said.contains("serves the ConfigMap"), "containers must run in CI:\n{said}");
    }
}
