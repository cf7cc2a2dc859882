//! `kubectl exec`, `attach`, `port-forward` and `cp`: from the API server through the gateway and the node's stream
//! connection to the container runtime's own streaming server, and back.

use std::{fs, net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use kubeedge_examples::{http, lab::Lab};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};

use crate::{
    cluster::{apply, running},
    kubectls::{self, LIMIT, command, output, said},
    pods::script,
    report::Outcome,
};

pub(crate) const BEGUN: &str = "streams::a_pod_to_get_into_runs";
pub(crate) const EXEC: &str = "streams::exec_runs_a_command_and_keeps_its_output_and_its_exit_code";
pub(crate) const STDIN: &str = "streams::exec_takes_standard_input_to_its_end";
pub(crate) const TERMINAL: &str = "streams::a_terminal_has_the_size_of_the_persons_and_follows_it";
pub(crate) const ATTACH: &str = "streams::attach_speaks_with_the_containers_own_process";
pub(crate) const FORWARD: &str = "streams::a_forwarded_port_serves_http";
pub(crate) const COPY: &str = "streams::cp_brings_files_in_and_out";
pub(crate) const REFUSED: &str = "streams::what_cannot_be_is_refused_in_kubernetes_words";
pub(crate) const ALL: [&str; 7] = [EXEC, STDIN, TERMINAL, ATTACH, FORWARD, COPY, REFUSED];

const POD: &str = "worker";

/// A process that takes standard input, a page, and a folder.
pub(crate) async fn begin(lab: &Lab) -> Result<Outcome> {
    let story = "echo page > /work/page; httpd -p 8080 -h /work; exec cat";
    let manifest = script(POD, "Always", story).replace("    imagePullPolicy", "    stdin: true\n    imagePullPolicy");
    apply(lab, &manifest).await?;
    running(&lab.client()?, POD).await?;
    Ok(Outcome::Proved)
}

pub(crate) async fn exec(lab: &Lab) -> Result<Outcome> {
    let Some(kubectls) = kubectls::all() else { return kubectls::missing() };
    for (version, kubectl) in kubectls {
        let printed = said(lab, &kubectl, &["exec", POD, "--", "echo", "hi"]).await?;
        ensure!(printed == "hi\n", "kubectl {version}: {printed:?}");
        let story = "echo out; echo err >&2; exit 7";
        let ended = output(lab, &kubectl, &["exec", POD, "-c", "main", "--", "sh", "-c", story]).await?;
        let stderr = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.code() == Some(7), "kubectl {version}: {}: {stderr}", ended.status);
        ensure!(ended.stdout == b"out\n" && stderr.starts_with("err\n"), "kubectl {version}: {ended:?}");
    }
    Ok(Outcome::Proved)
}

pub(crate) async fn stdin(lab: &Lab) -> Result<Outcome> {
    let Some(kubectls) = kubectls::all() else { return kubectls::missing() };
    let file = lab.folder().join("stdin");
    let bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    fs::write(&file, &bytes)?;
    for (version, kubectl) in kubectls {
        let mut command = command(lab, &kubectl, &["exec", "-i", POD, "--", "cat"]);
        command.stdin(fs::File::open(&file)?);
        let ended = tokio::time::timeout(LIMIT, command.output()).await.context("cat did not see the end")??;
        let stderr = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "kubectl {version}: {}: {stderr}", ended.status);
        ensure!(ended.stdout == bytes, "kubectl {version}: {} of {} bytes came back", ended.stdout.len(), bytes.len());
    }
    Ok(Outcome::Proved)
}

/// `script` gives kubectl a terminal, which is then made larger.
pub(crate) async fn terminal(lab: &Lab) -> Result<Outcome> {
    let Some(kubectl) = kubectls::newest() else { return kubectls::missing() };
    let story = "while read x; do busybox stty size; done";
    let line = format!(
        "stty rows 31 cols 71; tty; exec '{}' --cache-dir '{}' exec -it {POD} -- sh -c '{story}'",
        kubectl.display(),
        lab.folder().join("kubectl").display()
    );
    let mut script = Command::new("script");
    script.args(["-qefc", &line, "/dev/null"]).env("KUBECONFIG", lab.kubeconfig()).env("SHELL", "/bin/sh");
    script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
    let mut script = script.spawn().context("start script (package bsdutils)")?;
    let mut keys = script.stdin.take().context("its input is ours")?;
    let mut lines = BufReader::new(script.stdout.take().context("its output is ours")?).lines();
    let seen = tokio::time::timeout(LIMIT, async {
        let tty = lines.next_line().await?.context("script ended")?.trim().to_owned();
        ensure!(tty.starts_with("/dev/pts/"), "the terminal is {tty:?}");
        until(&mut keys, &mut lines, "31 71").await?;
        let resized = Command::new("stty").args(["-F", &tty, "rows", "42", "cols", "99"]).status().await?;
        ensure!(resized.success(), "stty: {resized}");
        until(&mut keys, &mut lines, "42 99").await?;
        // The end of the input of a terminal.
        keys.write_all(b"\x04").await?;
        keys.flush().await?;
        Ok(script.wait().await?)
    });
    let ended = seen.await.context("the terminal did not come to its end")??;
    ensure!(ended.success(), "kubectl ended with {ended}");
    Ok(Outcome::Proved)
}

/// Presses enter until the size is this.
async fn until(
    keys: &mut tokio::process::ChildStdin,
    lines: &mut tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    size: &str,
) -> Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(300));
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let line = line?.context("the terminal ended")?;
                if line.trim() == size {
                    return Ok(());
                }
            }
            _ = tick.tick() => {
                keys.write_all(b"\n").await?;
                keys.flush().await?;
            }
        }
    }
}

pub(crate) async fn attach(lab: &Lab) -> Result<Outcome> {
    let Some(kubectls) = kubectls::all() else { return kubectls::missing() };
    for (version, kubectl) in kubectls {
        let mut attached = command(lab, &kubectl, &["attach", "-i", POD]).stdin(Stdio::piped()).spawn()?;
        let mut keys = attached.stdin.take().context("its input is ours")?;
        let mut lines = BufReader::new(attached.stdout.take().context("its output is ours")?).lines();
        let echoed = tokio::time::timeout(LIMIT, async {
            keys.write_all(b"to the process\n").await?;
            keys.flush().await?;
            lines.next_line().await?.context("kubectl ended")
        });
        let echoed = echoed.await.with_context(|| format!("kubectl {version}: nothing came back"))??;
        ensure!(echoed == "to the process", "kubectl {version}: {echoed:?}");
        attached.kill().await?;
    }
    Ok(Outcome::Proved)
}

pub(crate) async fn forward(lab: &Lab) -> Result<Outcome> {
    let Some(kubectls) = kubectls::all() else { return kubectls::missing() };
    for (version, kubectl) in kubectls {
        let mut forwarding = command(lab, &kubectl, &["port-forward", POD, ":8080"]).spawn()?;
        let local = tokio::time::timeout(LIMIT, forwarded(&mut forwarding));
        let local = local.await.with_context(|| format!("kubectl {version} does not forward"))??;
        // One connection after the other, on one stream connection of kubectl.
        for _ in 0..2 {
            let answer = tokio::time::timeout(LIMIT, http::get(local, "/page")).await??;
            ensure!(answer.status == 200 && answer.body == b"page\n", "kubectl {version}: {answer:?}");
        }
        forwarding.kill().await?;
    }
    Ok(Outcome::Proved)
}

async fn forwarded(kubectl: &mut Child) -> Result<SocketAddr> {
    let mut lines = BufReader::new(kubectl.stdout.as_mut().context("its output is ours")?).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(rest) = line.strip_prefix("Forwarding from 127.0.0.1:") {
            let port = rest.split(' ').next().unwrap_or_default();
            return Ok((std::net::Ipv4Addr::LOCALHOST, port.parse::<u16>().context("a port")?).into());
        }
    }
    let mut stderr = String::new();
    kubectl.stderr.as_mut().context("its errors are ours")?.read_to_string(&mut stderr).await?;
    bail!("kubectl ended: {stderr}")
}

pub(crate) async fn copy(lab: &Lab) -> Result<Outcome> {
    let Some(kubectls) = kubectls::all() else { return kubectls::missing() };
    let file = lab.folder().join("to-copy");
    let bytes: Vec<u8> = (0..1_000_000u32).map(|at| (at % 241) as u8).collect();
    fs::write(&file, &bytes)?;
    for (version, kubectl) in kubectls {
        let back = lab.folder().join(format!("copied-{version}"));
        let inside = format!("{POD}:/work/copy-{version}");
        let (file, out) = (file.to_str().context("UTF-8")?, back.to_str().context("UTF-8")?);
        said(lab, &kubectl, &["cp", file, &inside]).await?;
        said(lab, &kubectl, &["cp", &inside, out]).await?;
        ensure!(fs::read(&back)? == bytes, "kubectl {version}: the file is another");
    }
    Ok(Outcome::Proved)
}

pub(crate) async fn refused(lab: &Lab) -> Result<Outcome> {
    let Some(kubectls) = kubectls::all() else { return kubectls::missing() };
    for (version, kubectl) in kubectls {
        let cases: [(&[&str], &str); 4] = [
            (&["exec", POD, "-c", "nobody", "--", "ls"], "container nobody is not valid for pod worker"),
            (&["exec", "nobody", "--", "ls"], "pods \"nobody\" not found"),
            (&["exec", POD, "--", "no-such-program"], "no-such-program"),
            (&["attach", POD, "-c", "nobody"], "nobody"),
        ];
        for (arguments, words) in cases {
            let output = output(lab, &kubectl, arguments).await?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(!output.status.success(), "kubectl {version} {arguments:?} is no error");
            ensure!(stderr.contains(words), "kubectl {version} {arguments:?}: {stderr}");
        }
    }
    Ok(Outcome::Proved)
}
