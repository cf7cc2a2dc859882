//! `kubectl`, as a person would use it, where it is installed.

use anyhow::{Context, Result, ensure};
use kubeedge_examples::{lab::Lab, process::find_program};
use tokio::process::Command;

/// What kubectl prints; `None` where there is none.
pub(crate) async fn run(lab: &Lab, arguments: &[&str]) -> Result<Option<String>> {
    let Some(kubectl) = find_program("kubectl") else { return Ok(None) };
    let output = Command::new(kubectl)
        .env("KUBECONFIG", lab.kubeconfig())
        // Its cache of the API's kinds would be in the home folder, and know the kinds of an earlier run.
        .arg("--cache-dir")
        .arg(lab.folder().join("cloud/kubectl"))
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .context("start kubectl")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), complaint.trim());
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// `kubectl apply` of a manifest, which stays in the lab's folder under this name. False where there is no kubectl.
pub(crate) async fn apply(lab: &Lab, name: &str, manifest: &str) -> Result<bool> {
    let file = lab.folder().join(name);
    tokio::fs::write(&file, manifest).await.with_context(|| format!("write {}", file.display()))?;
    let file = file.to_str().context("the folder's name is not UTF-8")?;
    Ok(run(lab, &["apply", "-f", file]).await?.is_some())
}
