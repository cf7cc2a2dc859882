//! The binary as an operator meets it.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::{Command, Output};

fn edgecore(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edgecore")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_printed_configuration_passes_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edgecore.yaml");
    for flag in ["--defaultconfig", "--minconfig"] {
        let printed = edgecore(&[flag]);
        assert!(printed.status.success());
        std::fs::write(&file, printed.stdout).unwrap();
        let checked = edgecore(&["check", "--config", file.to_str().unwrap()]);
        assert!(checked.status.success(), "{}", text(&checked.stderr));
        assert_eq!(text(&checked.stdout), "the configuration is valid\n");
    }
}

#[test]
fn a_wrong_configuration_is_refused_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edgecore.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "modules:\n  edgeHub:\n    websocket:\n      server: cloud\n").unwrap();
    let refused = edgecore(&["--config", path]);
    assert!(!refused.status.success());
    let said = text(&refused.stderr);
    let place = format!("edgecore: {path}:4:15: modules.edgeHub.websocket.server: \"cloud\" is not valid, expected");
    assert!(said.starts_with(&place), "{said}");
    std::fs::write(&file, "modules: {edgeHub: {heartbeatt: 1, messageQPS: 30}}").unwrap();
    let refused = edgecore(&["check", "--config", path]);
    assert!(text(&refused.stderr).contains("unknown fields: modules.edgeHub.heartbeatt;"), "{}", text(&refused.stderr));
}

#[test]
fn a_join_that_fails_writes_no_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().to_str().unwrap();
    // A port that nobody serves.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cloud = format!("127.0.0.1:{port}");
    let token = format!("{}.abcdefgh12345678.{}", "0".repeat(64), "s".repeat(43));
    let refused = edgecore(&["join", &cloud, "--token", &token, "--node-name", "edge-1", "--data-dir", data_dir]);
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains(&cloud), "{}", text(&refused.stderr));
    assert!(!folder.path().join("edgecore.yaml").exists());
    let refused = edgecore(&["join", &cloud, "--token", "nonsense", "--node-name", "edge-1", "--data-dir", data_dir]);
    assert!(text(&refused.stderr).contains("this is no join token"), "{}", text(&refused.stderr));
}
