//! `ONCE=1 quickstart`: real processes, a real containerd, a page served by a pod, a device, and nothing left behind.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use anyhow::Result;
use kubeedge_examples::process::find_program;
use tokio::process::Command;

use crate::report::{self, Outcome, Report};

const PAGE: &str = "quickstart::it_serves_a_page_and_leaves_nothing_behind";
const DEVICE: &str = "quickstart::it_shows_a_device_also_without_containers";
const ALL: [&str; 2] = [PAGE, DEVICE];

pub(crate) async fn stage(report: &mut Report) {
    if report.begins(&ALL) {
        report.run(PAGE, serves_a_page_and_leaves_nothing_behind()).await;
        report.run(DEVICE, shows_a_device_also_without_containers()).await;
    }
}

/// What it prints. `None`: it is not built.
async fn said_once(flags: &[&str]) -> Option<String> {
    let quickstart = Path::new(env!("CARGO_BIN_EXE_quickstart"));
    // Built by `make test`, not by `cargo test -p kubeedge-examples` alone.
    if !["cloudcore", "edgecore"].iter().all(|program| quickstart.with_file_name(program).exists()) {
        return None;
    }
    // A short path: there will be unix sockets below it.
    let folder = tempfile::Builder::new().prefix("ke").tempdir_in("/tmp").unwrap();
    let output = Command::new(quickstart)
        .arg("--folder")
        .arg(folder.path())
        .args(flags)
        .env("ONCE", "1")
        .kill_on_drop(true)
        .output();
    let output = output.await.unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let log = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
    assert!(
        output.status.success(),
        "{said}\n{errors}\ncloudcore.log:\n{}\nedgecore.log:\n{}\nthermostat.log:\n{}",
        log("cloudcore.log"),
        log("edgecore.log"),
        log("thermostat.log")
    );
    Some(said.into_owned())
}

fn not_built() -> Result<Outcome> {
    report::missing("cloudcore or edgecore is not built; run `make test`")
}

/// The setpoint there, the reading back, and both again after the line was cut and mended.
fn shows_a_device(said: &str) {
    let asked = if find_program("kubectl").is_some() {
        "kubectl get devicestatus living-room: "
    } else {
        "devicestatus living-room: "
    };
    let steps = [
        ("a device and its mapper", ""),
        ("another setpoint", "the device has taken 23 degrees over; "),
        ("the line to the cloud cut, another setpoint, the line mended", "19 degrees taken over "),
    ];
    for (step, result) in steps {
        let line =
            said.lines().find(|line| line.starts_with(step)).unwrap_or_else(|| panic!("{step} is not in\n{said}"));
        let (_, reading) = line.split_once(asked).unwrap_or_else(|| panic!("no reading: {line}"));
        let degrees = reading.split(' ').next().unwrap_or_default().parse::<f64>();
        assert!(degrees.is_ok_and(|degrees| (15.0..=23.0).contains(&degrees)), "{line}");
        assert!(line.contains(result), "{line}");
    }
    assert!(said.contains("no process, mount, control group or network interface is left"), "{said}");
}

async fn serves_a_page_and_leaves_nothing_behind() -> Result<Outcome> {
    let Some(said) = said_once(&[]).await else { return not_built() };
    shows_a_device(&said);
    if std::env::var_os("CI").is_some() {
        assert!(said.contains("serves the ConfigMap"), "containers must run in CI:\n{said}");
    }
    Ok(Outcome::Proved)
}

async fn shows_a_device_also_without_containers() -> Result<Outcome> {
    let Some(said) = said_once(&["--without-containers"]).await else { return not_built() };
    shows_a_device(&said);
    assert!(!said.contains("serves the ConfigMap"), "{said}");
    Ok(Outcome::Proved)
}
