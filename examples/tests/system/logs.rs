//! `kubectl logs`, from the API server through the gateway and the node's stream connection to the file, and back.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use kubeedge_examples::{containerd::Tools, lab::Lab};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{
    cluster::{apply, log_says, poll, restarts, running, until_pod},
    kubectls::{self, command, outcome},
    pods::{script, up},
    report::{Outcome, Report},
    stream_figures, streams,
};

const UP: &str = "logs::a_lab_comes_up";
const DOWN: &str = "logs::nothing_is_left_on_the_machine";
const READ: &str = "logs::of_a_running_pod_are_read_whole_and_in_part";
const FOLLOWED: &str = "logs::a_follower_that_goes_frees_its_stream";
const PREVIOUS: &str = "logs::of_the_instance_before_are_kept";
const OFFLINE: &str = "logs::of_an_offline_node_are_an_error_in_bounded_time";
const ALL: [&str; 4] = [READ, FOLLOWED, PREVIOUS, OFFLINE];

/// What an error about an offline node may take, kubectl's own start included.
const BOUNDED: Duration = Duration::from_secs(10);
const POD: &str = "talker";

pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    let all = [&ALL[..], &streams::ALL[..]].concat();
    if !report.begins(&all) {
        return;
    }
    let Some(tools) = report.tools(tools, &all) else { return };
    let begin = async |lab: &mut Lab| {
        up(lab, tools).await?;
        lab.guarded(talk).await
    };
    let Some((mut lab, folder)) = report.lab(UP, begin).await else { return };
    report.run(READ, lab.guarded(read)).await;
    report.run(FOLLOWED, lab.guarded(followed)).await;
    report.run(PREVIOUS, lab.guarded(previous)).await;
    // The lab is theirs, too.
    if streams::ALL.iter().any(|name| report.wants(name)) {
        report.always(streams::BEGUN, lab.guarded(streams::begin)).await;
        report.run(streams::EXEC, lab.guarded(streams::exec)).await;
        report.run(streams::STDIN, lab.guarded(streams::stdin)).await;
        report.run(streams::TERMINAL, lab.guarded(streams::terminal)).await;
        report.run(streams::ATTACH, lab.guarded(streams::attach)).await;
        report.run(streams::FORWARD, lab.guarded(streams::forward)).await;
        report.run(streams::COPY, lab.guarded(streams::copy)).await;
        report.run(streams::REFUSED, lab.guarded(streams::refused)).await;
    }
    if stream_figures::wanted() {
        report.run(stream_figures::FIGURES, lab.guarded(stream_figures::figures)).await;
    }
    report.run(OFFLINE, offline(&mut lab)).await;
    report.close(DOWN, lab, folder, Ok(())).await;
}

/// Says three lines, and one more every two seconds.
async fn talk(lab: &Lab) -> Result<()> {
    let story = "echo one; echo two >&2; echo three; i=0; \
                 while :; do sleep 0.2; i=$((i+1)); [ $((i % 10)) = 0 ] && echo tick $i; done";
    apply(lab, &script(POD, "Always", story)).await?;
    running(&lab.client()?, POD).await.map(drop)
}

async fn logs(lab: &Lab, kubectl: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    outcome(lab, kubectl, &[&["logs"], arguments].concat()).await
}

async fn read(lab: &Lab) -> Result<Outcome> {
    let Some(kubectls) = kubectls::all() else { return kubectls::missing() };
    for (version, kubectl) in kubectls {
        read_by(lab, &kubectl).await.with_context(|| format!("kubectl {version}"))?;
    }
    Ok(Outcome::Proved)
}

async fn read_by(lab: &Lab, kubectl: &Path) -> Result<()> {
    let whole = poll("the first lines are in the log", async || {
        let (done, text) = logs(lab, kubectl, &[POD]).await?;
        Ok(if done && text.contains("three\n") { Ok(text) } else { Err(text) })
    })
    .await?;
    // Two pipes: which of their lines comes first is not promised.
    let first: Vec<&str> = whole.lines().take(3).collect();
    for line in ["one", "two", "three"] {
        ensure!(first.contains(&line), "{line} is not among the first lines:\n{whole}");
    }
    let (done, tail) = logs(lab, kubectl, &[POD, "--tail", "1"]).await?;
    ensure!(done && tail.lines().count() == 1, "--tail 1: {tail:?}");
    let (done, none) = logs(lab, kubectl, &[POD, "--tail", "0"]).await?;
    ensure!(done && none.is_empty(), "--tail 0: {none:?}");
    let (done, cut) = logs(lab, kubectl, &[POD, "--limit-bytes", "2"]).await?;
    ensure!(done && cut.len() == 2, "--limit-bytes 2: {cut:?}");
    let (done, timed) = logs(lab, kubectl, &[POD, "--timestamps", "-c", "main", "--since", "1h"]).await?;
    let time = timed.split(' ').next().unwrap_or_default();
    ensure!(done && time.len() >= 30 && time.contains('T'), "--timestamps: {timed:?}");
    let (done, wrong) = logs(lab, kubectl, &[POD, "-c", "nobody"]).await?;
    ensure!(!done && wrong.contains("container nobody is not valid for pod talker"), "{wrong:?}");
    let (done, wrong) = logs(lab, kubectl, &[POD, "--previous"]).await?;
    let words = "previous terminated container \"main\" in pod \"talker\" not found";
    ensure!(!done && wrong.contains(words), "{wrong:?}");
    Ok(())
}

async fn followed(lab: &Lab) -> Result<Outcome> {
    let Some(kubectls) = kubectls::all() else { return kubectls::missing() };
    for (version, kubectl) in kubectls {
        followed_by(lab, &kubectl).await.with_context(|| format!("kubectl {version}"))?;
    }
    Ok(Outcome::Proved)
}

async fn followed_by(lab: &Lab, kubectl: &Path) -> Result<()> {
    let mut following = command(lab, kubectl, &["logs", "-f", POD]).spawn().context("start kubectl")?;
    let mut lines = BufReader::new(following.stdout.take().context("its output is ours")?).lines();
    let seen = lines.next_line().await?.context("kubectl ended")?;
    let (done, now) = logs(lab, kubectl, &[POD]).await?;
    ensure!(done && now.contains(&seen), "{now:?}");
    // Lines that were not there when it began.
    let fresh = tokio::time::timeout(Duration::from_secs(30), async {
        let known = now.lines().count();
        for _ in 0..known {
            lines.next_line().await?.context("kubectl ended")?;
        }
        anyhow::Ok(())
    });
    fresh.await.context("no new line within 30 s")??;
    let before = lab.log("edgecore")?.len();
    following.kill().await?;
    log_says(lab, "edgecore", before, &["a stream was given up"]).await?;
    Ok(())
}

async fn previous(lab: &Lab) -> Result<Outcome> {
    let Some(kubectls) = kubectls::all() else { return kubectls::missing() };
    let name = "crashing";
    let story = "if [ -e /work/again ]; then echo second; while :; do sleep 1; done; fi; \
                 touch /work/again; echo first; exit 3";
    apply(lab, &script(name, "Always", story)).await?;
    until_pod(&lab.client()?, name, "started again", |pod| restarts(pod) == 1).await?;
    for (version, kubectl) in kubectls {
        for (arguments, expected) in [(vec![name], "second\n"), (vec![name, "-p"], "first\n")] {
            poll(&format!("kubectl {version} logs {arguments:?} is {expected:?}"), async || {
                let (done, text) = logs(lab, &kubectl, &arguments).await?;
                Ok(if done && text == expected { Ok(()) } else { Err(text) })
            })
            .await?;
        }
    }
    Ok(Outcome::Proved)
}

async fn offline(lab: &mut Lab) -> Result<Outcome> {
    let Some(kubectls) = kubectls::all() else { return kubectls::missing() };
    lab.stop_edge().await?;
    for (version, kubectl) in kubectls {
        let asked = Instant::now();
        let (done, said) = logs(lab, &kubectl, &[POD]).await?;
        ensure!(!done && said.contains("node edge-1 is not connected"), "kubectl {version}: {said:?}");
        ensure!(asked.elapsed() < BOUNDED, "kubectl {version}: it took {:?}", asked.elapsed());
    }
    Ok(Outcome::Proved)
}
