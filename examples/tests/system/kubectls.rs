//! The kubectls that scenarios run, for the lab's cluster.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use kubeedge_examples::{lab::Lab, process::find_program};
use tokio::process::Command;

use crate::report::{self, Outcome};

/// The oldest and the newest that is promised to work.
const VERSIONS: [&str; 2] = ["1.32", "1.36"];
/// For one kubectl. Each takes a second or two here, most of it its own start.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Where `tools/install-kubectl` puts them.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap_or(Path::new("target")).join("kubectl")
}

/// The oldest and the newest that is promised to work, as `tools/install-kubectl` fetches them; and whichever is on PATH
/// where neither is there. `None` where there is none, and in CI where one of the two is missing.
pub(crate) fn all() -> Option<Vec<(String, PathBuf)>> {
    let pinned = VERSIONS.map(|version| (version.to_owned(), folder().join(version).join("kubectl")));
    let found: Vec<_> = pinned.into_iter().filter(|(_, program)| program.is_file()).collect();
    if std::env::var_os("CI").is_some() {
        return (found.len() == VERSIONS.len()).then_some(found);
    }
    if found.is_empty() {
        return Some(vec![("on PATH".to_owned(), find_program("kubectl")?)]);
    }
    Some(found)
}

/// The newest of them.
pub(crate) fn newest() -> Option<PathBuf> {
    Some(all()?.pop()?.1)
}

/// Whether `tools/install-kubectl` put it there: then its version is known.
pub(crate) fn is_pinned(program: &Path) -> bool {
    program.starts_with(folder())
}

/// What a scenario comes to without them.
pub(crate) fn missing() -> Result<Outcome> {
    report::missing(format!("kubectl {}: run tools/install-kubectl", VERSIONS.join(" or ")))
}

/// One of them, about to be started.
pub(crate) fn command(lab: &Lab, program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    // Its cache of the API's kinds would be in the home folder.
    command.env("KUBECONFIG", lab.kubeconfig()).arg("--cache-dir").arg(lab.folder().join("kubectl")).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// One of them, to its end.
pub(crate) async fn output(lab: &Lab, program: &Path, arguments: &[&str]) -> Result<Output> {
    let output = tokio::time::timeout(LIMIT, command(lab, program, arguments).output());
    Ok(output.await.with_context(|| format!("kubectl {arguments:?} did not end"))??)
}

/// Whether it succeeded, and what it printed if it did, or what it complained of.
pub(crate) async fn outcome(lab: &Lab, program: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    let output = output(lab, program, arguments).await?;
    let text = if output.status.success() { output.stdout } else { output.stderr };
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// What one of them printed that has to succeed.
pub(crate) async fn said(lab: &Lab, program: &Path, arguments: &[&str]) -> Result<String> {
    let output = output(lab, program, arguments).await?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {arguments:?}: {}: {}", output.status, stderr.trim());
    Ok(String::from_utf8(output.stdout)?)
}
