//! One kubectl of a known version, with a kubeconfig and a home of its own.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// Longest time for one command.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Kubectl {
    program: PathBuf,
    folder: PathBuf,
}

/// A kubectl that goes on, and the lines it prints. It ends with this.
pub(super) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Kubectl {
    /// The program of this version where `tools/install-kubectl` puts it; `None` when it is not there.
    pub(super) fn find(version: &str, folder: &Path) -> Option<Self> {
        // The target folder, whatever it is called.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let program = target.join("kubectl").join(version).join("kubectl");
        program.is_file().then(|| Self { program, folder: folder.to_owned() })
    }

    /// Makes `kubectl edit` change files by this script of sed.
    pub(super) fn editor(&self, script: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        self.write("editor", &format!("#!/bin/sh\nsed -i '{script}' \"$1\"\n"));
        std::fs::set_permissions(self.folder.join("editor"), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The server's URL, as the kubeconfig has it.
    pub(super) fn server(&self) -> String {
        let text = std::fs::read_to_string(self.folder.join("kubeconfig")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["clusters"][0]["cluster"]["server"].as_str().expect("a server").to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &self.folder).env("KUBECONFIG", self.folder.join("kubeconfig"));
        command.env("EDITOR", self.folder.join("editor")).current_dir(&self.folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    pub(super) async fn output(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output();
        let output = tokio::time::timeout(PATIENCE, output).await;
        output.unwrap_or_else(|_| panic!("kubectl {}: no end", arguments.join(" "))).unwrap()
    }

    /// Runs a command that must succeed without a warning; gives what it printed.
    pub(super) async fn run(&self, line: &str) -> String {
        self.run_with(line, &[]).await
    }

    /// The same with further arguments, as they are.
    pub(super) async fn run_with(&self, line: &str, more: &[&str]) -> String {
        let arguments: Vec<&str> = line.split_whitespace().chain(more.iter().copied()).collect();
        let output = self.output(&arguments).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {line} {more:?}: {err}{out}");
        // The server calls itself 1.33: `version` of a kubectl two versions away says so.
        let warned = err.lines().any(|line| line.contains("Warning") && !line.contains("version difference"));
        assert!(!warned, "kubectl {line} {more:?}: {err}");
        out.into_owned()
    }

    /// Runs a command that must succeed and says with `-v=8` what it does; gives what it printed, and the URLs it got.
    pub(super) async fn run_telling(&self, line: &str) -> (String, Vec<String>) {
        let arguments: Vec<&str> = line.split_whitespace().chain(["-v=8"]).collect();
        let output = self.output(&arguments).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {line}: {err}{out}");
        // 1.32 writes `GET <url>`, 1.36 `verb="GET" url="<url>"`.
        let request = |line: &str| {
            let (_, rest) = line.split_once("] GET ").or_else(|| line.split_once("verb=\"GET\" url=\""))?;
            rest.split([' ', '"']).next().map(str::to_owned)
        };
        (out.into_owned(), err.lines().filter_map(request).collect())
    }

    /// Runs a command that must fail; gives what it said.
    pub(super) async fn fail(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.output(&arguments).await;
        assert!(!output.status.success(), "kubectl {line} succeeds: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Starts a command that goes on, such as `get -w`.
    pub(super) fn start(&self, line: &str) -> Running {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let mut child = self.command(&arguments).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, lines }
    }

    /// Writes a file where the commands run.
    pub(super) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.join(name), text).unwrap();
    }
}

impl Running {
    /// The next line it prints, its words.
    pub(super) async fn line(&mut self) -> Vec<String> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("kubectl prints a line");
        let line = line.unwrap().expect("kubectl has ended");
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// Waits for its end; gives the rest of what it printed.
    pub(super) async fn end(mut self) -> String {
        let mut rest = String::new();
        let end = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                rest.push_str(&line);
                rest.push('\n');
            }
            self.child.wait().await.unwrap()
        };
        let status = tokio::time::timeout(PATIENCE, end).await.expect("kubectl ends");
        assert!(status.success(), "{status}: {rest}");
        rest
    }
}
