//! The binary as an operator meets it.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::SystemTime,
};

use kubeedge_actors::identity::{CertificateAuthority, NodeKey, NodeRequest};

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

#[test]
fn a_file_that_cannot_be_read_or_is_no_yaml_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edgecore.yaml");
    let said = |file: &Path| {
        let refused = edgecore(&["--config", file.to_str().unwrap()]);
        assert!(!refused.status.success());
        let said = text(&refused.stderr);
        assert!(said.starts_with(&format!("edgecore: {}", file.display())), "{said}");
        said
    };
    assert!(said(&file).contains("No such file"));
    assert!(said(folder.path()).contains("directory"));
    for (content, place) in [("modules: [\n", "1:10: modules: "), ("kind: a: b\n", "1:"), ("- a\n", "1:1: ")] {
        fs::write(&file, content).unwrap();
        let said = said(&file);
        assert!(said.contains(&format!("{}:{place}", file.display())), "{content:?}: {said}");
    }
    fs::write(&file, [0xff, 0xfe, 0]).unwrap();
    assert!(said(&file).contains("UTF-8"));
}

#[test]
fn a_wrong_type_is_refused_with_its_place_and_what_is_expected() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edgecore.yaml");
    let path = file.to_str().unwrap();
    for (content, place, expected) in [
        (
            "modules:\n  edged:\n    tailoredKubeletConfig:\n      maxPods: many\n",
            "4:16: modules.edged.tailoredKubeletConfig.maxPods",
            "expected a whole number",
        ),
        ("modules:\n  edgeHub:\n    enable: [1]\n", "3:13: modules.edgeHub.enable", "expected"),
        ("modules:\n  edged: 5\n", "2:10: modules.edged", "expected"),
        ("database:\n  dataSource: {a: b}\n", "2:15: database.dataSource", "expected"),
    ] {
        fs::write(&file, content).unwrap();
        let refused = edgecore(&["--config", path]);
        assert!(!refused.status.success());
        let said = text(&refused.stderr);
        let begins = format!("edgecore: {path}:{place}: ");
        assert!(said.starts_with(&begins) && said.contains(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

/// A node that has joined a cloud which is not there, without pods.
struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { folder: tempfile::tempdir().unwrap() };
        let now = SystemTime::now();
        let authority = CertificateAuthority::load_or_create(&node.path("authority"), now).unwrap();
        let key = NodeKey::load_or_create(&node.path("identity")).unwrap();
        let request = NodeRequest::parse(&key.request(&"edge-1".parse().unwrap()).unwrap()).unwrap();
        key.accept(&authority.sign(&request, now).unwrap(), &authority.ca_hash(), now).unwrap();
        // A port that nobody serves.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let identity = node.path("identity");
        let config = format!(
            "database: {{dataSource: {}}}\nmodules:\n  edgeHub:\n    websocket: {{server: \"127.0.0.1:{port}\"}}\n    \
             tlsCaFile: {id}/ca/rootCA.crt\n    tlsCertFile: {id}/certs/server.crt\n    \
             tlsPrivateKeyFile: {id}/certs/server.key\n  edged: {{enable: false}}\n",
            node.path("edgecore.db").display(),
            id = identity.display(),
        );
        fs::write(node.path("edgecore.yaml"), config).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("edgecore.store")
    }

    fn set_aside(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_string_lossy().contains("edgecore.store.set-aside-")).collect()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgecore"));
        command.arg("--config").arg(self.path("edgecore.yaml")).env_remove("RUST_LOG");
        command
    }

    /// Refused at the start; what was said.
    fn refused(&self) -> String {
        let refused = self.command().output().unwrap();
        assert!(!refused.status.success());
        text(&refused.stderr)
    }

    /// Puts these modules into its configuration, in the place of Edged, which is off in it.
    fn configure(&self, modules: &str) {
        let file = self.path("edgecore.yaml");
        let config = fs::read_to_string(&file).unwrap();
        fs::write(file, config.replace("  edged: {enable: false}\n", modules)).unwrap();
    }

    /// Runs; what was said up to there.
    fn runs(&self) -> (Child, String) {
        says(&mut self.command(), "edgecore runs")
    }

    fn runs_once(&self) -> String {
        let (mut child, said) = self.runs();
        stop(&mut child);
        said
    }
}

/// Runs until it says this; what was said up to there.
fn says(command: &mut Command, words: &str) -> (Child, String) {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut lines = String::new();
    while !lines.contains(words) {
        assert_ne!(log.read_line(&mut lines).unwrap(), 0, "edgecore ended:\n{lines}");
    }
    // Read to its end, so that it can go on writing.
    std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
    (child, lines)
}

fn stop(child: &mut Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success(), "SIGTERM is an orderly stop");
}

#[test]
fn a_port_of_the_views_in_use_is_told_with_its_setting_and_refuses_the_start() {
    let node = Node::new();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let views = format!("  views: {{enable: true, address: 127.0.0.1, port: {}}}\n", taken.port());
    node.configure(&format!("  edged: {{enable: false}}\n{views}"));
    let said = node.refused();
    let expected = format!("cannot listen on {taken} for modules.views: set its port to a free one");
    assert!(said.contains(&expected) && said.contains("Address already in use"), "{said}");
    drop(holder);
    assert!(node.runs_once().contains("the views are served"));
}

/// Pods run on without their node's own API, so that its port is no reason not to start.
#[cfg(feature = "fake-runtime")]
#[test]
fn a_port_of_the_nodes_api_in_use_is_logged_with_its_setting_and_the_edge_runs() {
    let node = Node::new();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    node.configure(&format!(
        "  edged:\n    rootDirectory: {}\n    tailoredKubeletConfig:\n      podLogsDir: {}\n      \
         address: 127.0.0.1\n      readOnlyPort: {}\n",
        node.path("kubelet").display(),
        node.path("logs/pods").display(),
        taken.port()
    ));
    let (mut child, said) = says(node.command().arg("--fake-runtime"), "the node's API is not served");
    stop(&mut child);
    assert!(said.contains("edgecore runs"), "{said}");
    let line = said.lines().last().unwrap();
    let setting = "modules.edged.tailoredKubeletConfig.readOnlyPort chooses another port, 0 none";
    for part in [&taken.to_string(), "Address already in use", setting] {
        assert!(line.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_as_it_is() {
    let node = Node::new();
    node.runs_once();
    fs::write(node.store().join("format"), "kubeedge-store 999\n").unwrap();
    let before = fs::read(node.store().join("db")).unwrap();
    let said = node.refused();
    assert!(said.contains("has format 999") && said.contains("use the newer build"), "{said}");
    assert!(said.contains(node.store().to_str().unwrap()), "{said}");
    assert!(fs::read(node.store().join("db")).unwrap() == before, "the store is left as it is");
    assert!(node.set_aside().is_empty());
}

#[test]
fn a_broken_store_is_set_aside_with_a_message_and_the_edge_runs() {
    let node = Node::new();
    assert!(!node.runs_once().contains("set aside"));
    fs::write(node.store().join("db"), "no database").unwrap();
    let said = node.runs_once();
    for part in ["was set aside", "running pods go on", "edgecore.store.set-aside-"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(node.set_aside()[0].join("db").exists(), "{:?}", node.set_aside());
    assert!(!node.runs_once().contains("set aside"), "the new store is whole");
}

#[test]
fn a_store_in_use_is_refused_with_who_has_it() {
    let node = Node::new();
    let (mut child, _) = node.runs();
    let said = node.refused();
    assert!(said.contains(&format!("is in use by process {}", child.id())), "{said}");
    child.kill().unwrap();
    child.wait().unwrap();
    node.runs_once();
}

#[test]
fn a_damaged_certificate_is_refused_with_its_file() {
    let node = Node::new();
    let certificate = node.path("identity/certs/server.crt");
    fs::write(&certificate, "no certificate").unwrap();
    let said = node.refused();
    assert!(said.contains(certificate.to_str().unwrap()), "{said}");
    fs::remove_file(&certificate).unwrap();
    let said = node.refused();
    assert!(said.contains("there is no certificate in") && said.contains("run `edgecore join`"), "{said}");
}
