//! `ONCE=1 quickstart`: real processes, a real containerd, a page served by a pod, and nothing left behind.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use anyhow::Result;
use tokio::process::Command;

use crate::report::{self, Outcome, Report};

const ALL: [&str; 1] = ["quickstart::it_serves_a_page_and_leaves_nothing_behind"];

pub(crate) async fn stage(report: &mut Report) {
    if report.begins(&ALL) {
        report.run(ALL[0], serves_a_page_and_leaves_nothing_behind()).await;
    }
}

async fn serves_a_page_and_leaves_nothing_behind() -> Result<Outcome> {
    let quickstart = Path::new(env!("CARGO_BIN_EXE_quickstart"));
    for program in ["cloudcore", "edgecore"] {
        if !quickstart.with_file_name(program).exists() {
            // Built by `make test`, not by `cargo test -p kubeedge-examples` alone.
            return report::missing(format!("{program} is not built; run `make test`"));
        }
    }
    // A short path: there will be unix sockets below it.
    let folder = tempfile::Builder::new().prefix("ke").tempdir_in("/tmp").unwrap();
    let output =
        Command::new(quickstart).arg("--folder").arg(folder.path()).env("ONCE", "1").kill_on_drop(true).output();
    let output = output.await.unwrap();
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
    Ok(Outcome::Proved)
}
