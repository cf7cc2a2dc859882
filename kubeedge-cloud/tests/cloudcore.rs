//! The binary as an operator meets it.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStderr, Command, Output, Stdio},
};

fn cloudcore(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cloudcore")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_printed_configuration_passes_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cloudcore.yaml");
    for flag in ["--defaultconfig", "--minconfig"] {
        let printed = cloudcore(&[flag]);
        assert!(printed.status.success());
        std::fs::write(&file, printed.stdout).unwrap();
        let checked = cloudcore(&["check", "--config", file.to_str().unwrap()]);
        assert!(checked.status.success(), "{}", text(&checked.stderr));
        assert_eq!(text(&checked.stdout), "the configuration is valid\n");
    }
}

#[test]
fn a_wrong_configuration_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cloudcore.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "modules:\n  cloudHub:\n    nodeLimit: none\n").unwrap();
    let refused = cloudcore(&["--config", path]);
    assert!(!refused.status.success());
    let expected =
        format!("cloudcore: {path}:3:16: modules.cloudHub.nodeLimit: expected a whole number from 0 to 4294967295\n");
    assert_eq!(text(&refused.stderr), expected);
    std::fs::write(&file, "modules: {cloudHub: {nodeLimitt: 1}}").unwrap();
    let refused = cloudcore(&["check", "--config", path]);
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("unknown fields: modules.cloudHub.nodeLimitt"));
}

#[test]
fn a_file_that_cannot_be_read_or_is_no_yaml_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cloudcore.yaml");
    let said = |file: &Path| {
        let refused = cloudcore(&["--config", file.to_str().unwrap()]);
        assert!(!refused.status.success());
        let said = text(&refused.stderr);
        assert!(said.starts_with(&format!("cloudcore: {}", file.display())), "{said}");
        said
    };
    assert!(said(&file).contains("No such file"));
    assert!(said(folder.path()).contains("directory"));
    for (content, place) in [("modules: [\n", "1:10: modules: "), ("kind: a: b\n", "1:"), ("- a\n", "1:1: ")] {
        std::fs::write(&file, content).unwrap();
        let said = said(&file);
        assert!(said.contains(&format!("{}:{place}", file.display())), "{content:?}: {said}");
    }
    std::fs::write(&file, [0xff, 0xfe, 0]).unwrap();
    assert!(said(&file).contains("UTF-8"));
}

#[cfg(feature = "standalone")]
#[test]
fn a_port_in_use_is_told_with_its_setting() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cloudcore.yaml");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let settings = [
        "modules.cloudHub.websocket.port",
        "modules.cloudHub.https.port",
        "modules.cloudStream.streamPort",
        "modules.router.port",
        "modules.views.port",
        "modules.admission.port",
        "standalone.port",
    ];
    for setting in settings {
        let port = |of: &str| if of == setting { taken.port() } else { 0 };
        let [link, enrolment, stream, router, views, admission, api] = settings.map(port);
        let config = format!(
            "modules:\n  cloudHub:\n    websocket: {{address: 127.0.0.1, port: {link}}}\n    \
             https: {{address: 127.0.0.1, port: {enrolment}}}\n    tlsCAFile: ''\n  \
             cloudStream: {{address: 127.0.0.1, streamPort: {stream}}}\n  \
             router: {{enable: true, address: 127.0.0.1, port: {router}}}\n  \
             views: {{enable: true, address: 127.0.0.1, port: {views}}}\n  \
             admission: {{enable: true, address: 127.0.0.1, port: {admission}}}\n\
             standalone: {{address: 127.0.0.1, port: {api}}}\n"
        );
        std::fs::write(&file, config).unwrap();
        let data = folder.path().join(setting);
        let arguments = ["--standalone", "--config", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
        let refused = cloudcore(&arguments);
        assert!(!refused.status.success());
        let said = text(&refused.stderr);
        let expected = format!("cannot listen on {taken} for ");
        assert!(said.contains(&expected) && said.contains(&format!("set {setting} to a free one")), "{said}");
    }
}

#[cfg(feature = "standalone")]
#[test]
fn a_store_of_a_newer_version_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (child, _log) = standalone(folder.path());
    stop(child);
    let store = folder.path().join("data/store");
    std::fs::write(store.join("format"), "kubeedge-store 999\n").unwrap();
    let before = std::fs::read(store.join("db")).unwrap();
    let (file, data) = (folder.path().join("cloudcore.yaml"), folder.path().join("data"));
    let arguments = ["--standalone", "--config", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
    let refused = cloudcore(&arguments);
    assert!(!refused.status.success());
    let said = text(&refused.stderr);
    assert!(said.contains("has format 999") && said.contains("use the newer build"), "{said}");
    assert!(std::fs::read(store.join("db")).unwrap() == before, "the store is left as it is");
    let names: Vec<_> = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("set-aside")), "{names:?}");
}

#[cfg(feature = "standalone")]
#[test]
fn a_broken_store_is_set_aside_with_what_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (child, _log) = standalone(folder.path());
    stop(child);
    let store = folder.path().join("data/store");
    std::fs::write(store.join("db"), "no database").unwrap();
    let (child, said) = standalone_saying(folder.path());
    stop(child);
    for part in ["was set aside", "all objects of the embedded API server applied anew", "store.set-aside-"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let kept = std::fs::read_dir(folder.path().join("data")).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<_> = kept.filter(|path| path.to_string_lossy().contains("store.set-aside-")).collect();
    assert!(kept[0].join("db").exists(), "{kept:?}");
}

#[test]
fn without_a_running_cloudcore_a_token_command_says_so_once() {
    let folder = tempfile::tempdir().unwrap();
    let refused = cloudcore(&["token", "list", "--data-dir", folder.path().to_str().unwrap()]);
    assert!(!refused.status.success());
    let said = text(&refused.stderr);
    assert!(said.contains("is it running with this data folder?"), "{said}");
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
}

#[cfg(feature = "standalone")]
#[test]
fn a_flag_with_an_impossible_address_is_refused_by_its_name() {
    for (flag, value, expected) in [
        ("--service-cluster-ip-range", "10.0.0.0/8", "prefix of 12 to 29 bits"),
        ("--advertise-address", "127.0.0.1", "by which pods and nodes reach this machine"),
    ] {
        let refused = cloudcore(&["--standalone", flag, value]);
        assert!(!refused.status.success());
        let said = text(&refused.stderr);
        assert!(said.contains(flag) && said.contains(expected), "{said}");
    }
}

/// A cloudcore on free ports, up once its last line of the start is logged.
fn standalone(folder: &Path) -> (Child, BufReader<ChildStderr>) {
    let (child, log, _) = started(folder);
    (child, log)
}

/// The same with what it said up to there.
#[cfg(feature = "standalone")]
fn standalone_saying(folder: &Path) -> (Child, String) {
    let (child, mut log, lines) = started(folder);
    // Read to its end, so that it can go on writing.
    std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
    (child, lines)
}

fn started(folder: &Path) -> (Child, BufReader<ChildStderr>, String) {
    let file = folder.join("cloudcore.yaml");
    let config = "modules:\n  cloudHub:\n    websocket: {address: 127.0.0.1, port: 0}\n    \
        https: {address: 127.0.0.1, port: 0}\n    tlsCAFile: ''\n  \
        cloudStream: {address: 127.0.0.1, streamPort: 0}\nstandalone: {port: 0}\n";
    std::fs::write(&file, config).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_cloudcore"))
        .arg("--standalone")
        .arg("--config")
        .arg(&file)
        .arg("--data-dir")
        .arg(folder.join("data"))
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut lines = String::new();
    while !lines.contains("cloudcore runs") {
        assert_ne!(log.read_line(&mut lines).unwrap(), 0, "cloudcore ended:\n{lines}");
    }
    (child, log, lines)
}

fn stop(mut child: Child) {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success(), "SIGTERM is an orderly stop");
}

#[cfg(feature = "standalone")]
#[test]
fn tokens_outlive_a_restart_and_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let token = |arguments: &[&str]| {
        let mut all = vec!["token"];
        all.extend(arguments);
        all.extend(["--data-dir", data_dir.to_str().unwrap()]);
        let output = cloudcore(&all);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let (child, _log) = standalone(folder.path());
    let kubeconfig = std::fs::read_to_string(data_dir.join("kubeconfig")).unwrap();
    let first = token(&["create", "--node", "edge-1", "--ttl", "7d"]);
    let id = first.split('.').nth(1).unwrap().to_owned();
    assert!(token(&["list"]).contains(&id));
    stop(child);

    let (mut child, _log) = standalone(folder.path());
    assert!(token(&["list"]).contains(&id));
    let second = token(&["create", "--reusable"]);
    assert_eq!(first.split('.').next(), second.split('.').next(), "the authority is the same");
    // As the power does it.
    child.kill().unwrap();
    child.wait().unwrap();

    let (child, _log) = standalone(folder.path());
    let listed = token(&["list"]);
    assert!(listed.contains(&id) && listed.contains(second.split('.').nth(1).unwrap()), "{listed}");
    token(&["revoke", &id]);
    assert!(!token(&["list"]).contains(&id));
    let secret = |kubeconfig: &str| kubeconfig.split("token").nth(1).map(str::to_owned);
    let kubeconfig_now = std::fs::read_to_string(data_dir.join("kubeconfig")).unwrap();
    assert_eq!(secret(&kubeconfig_now), secret(&kubeconfig), "an administrator's token stays good");
    stop(child);
}
