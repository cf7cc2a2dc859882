//! What happens to certificates and clocks while everyone writes.

use std::{
    ffi::OsString,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use kubeedge_actors::identity::{CertificateAuthority, FlooredClock, NodeCredentials, NodeIdentity, NodeKey};
use tokio::time::sleep;

use super::{
    Choices, LINES,
    site::{Site, Who, node, until},
    traffic::{Figures, bump},
    wires::{DOWN, UP},
};

/// A certificate that ends while its node is offline.
const BRIEF: Duration = Duration::from_secs(3);
/// One that is renewed, between 70 and 90 % of this, while State flows.
const SHORT: Duration = Duration::from_secs(8);
/// Certificates end on full seconds.
const ROUND: Duration = Duration::from_secs(1);
/// For a node to connect, and for a renewal.
const SOON: Duration = Duration::from_secs(30);
const RENEWED: &str = "the certificate was renewed";
const BY_PROOF: &str = "renewed by proof of its key";
/// The node whose box has no battery.
const BOX: u8 = 0;
/// What it takes the time for, at its start.
const YEAR_1970: &str = "@1970-01-01 00:00:10";

fn authority(site: &Site) -> Result<CertificateAuthority> {
    Ok(CertificateAuthority::load_or_create(&site.cloud_folder().join("pki"), SystemTime::now())?)
}

fn identity(site: &Site, line: u8) -> Result<NodeIdentity> {
    NodeIdentity::load(&site.edge_folder(line))?.context("no identity")
}

/// Stops an edge and gives it a certificate of its cloud's authority that lives so long.
async fn certify(site: &mut Site, line: u8, life: Duration) -> Result<()> {
    site.stop(Who::Edge(line)).await?;
    let (folder, now) = (site.edge_folder(line), SystemTime::now());
    let current = identity(site, line)?;
    let key = NodeKey::next(&folder)?;
    let signed =
        authority(site)?.with_node_life(life).sign_node_csr(&key.request(current.node())?, current.node(), now)?;
    key.renew(&signed, &current, Some(now))?;
    Ok(())
}

/// How much each log has in it.
fn said(site: &Site) -> Result<Vec<usize>> {
    (0..LINES).map(|line| Ok(site.said(Who::Edge(line))?.len())).collect()
}

/// The lines are cut until the certificates of both nodes have ended.
pub(super) async fn expired(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    while !choices.over() {
        let from = said(site)?;
        for line in 0..LINES {
            certify(site, line, BRIEF).await?;
            site.net().cut(line)?;
            bump(&figures.faults);
            site.spawn(Who::Edge(line))?;
        }
        sleep(BRIEF + ROUND).await;
        for line in 0..LINES {
            ensure!(identity(site, line)?.expires() <= SystemTime::now(), "{}: it has not ended", node(line));
            site.net().mend(line)?;
        }
        for line in 0..LINES {
            let who = Who::Edge(line);
            let took = site.says(who, from[usize::from(line)], BY_PROOF, SOON).await?;
            site.says(who, from[usize::from(line)], UP, SOON).await?;
            println!("     {} renewed {:.1} s after its line was back", node(line), took.as_secs_f32());
        }
        sleep(choices.pause(Duration::from_millis(500), Duration::from_secs(5))).await;
    }
    Ok(())
}

/// Certificates of both nodes are renewed while their sessions stand, and those go on past the end of the old ones.
pub(super) async fn rotated(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    while !choices.over() {
        let from = said(site)?;
        for line in 0..LINES {
            certify(site, line, SHORT).await?;
            site.spawn(Who::Edge(line))?;
        }
        let old_end = Instant::now() + SHORT + ROUND;
        for line in 0..LINES {
            let who = Who::Edge(line);
            site.says(who, from[usize::from(line)], UP, SOON).await?;
            site.says(who, from[usize::from(line)], RENEWED, SOON).await?;
            bump(&figures.faults);
        }
        sleep(old_end.saturating_duration_since(Instant::now())).await;
        for line in 0..LINES {
            let log = site.said(Who::Edge(line))?;
            let news = log.get(from[usize::from(line)]..).unwrap_or_default();
            ensure!(!news.contains(DOWN), "{}: the session did not outlive its certificate", node(line));
        }
    }
    Ok(())
}

/// A new authority takes over: cloudcore starts anew with it, and the nodes, whose certificates are due, get theirs of it.
pub(super) async fn rolled_over(site: &mut Site, figures: &Figures, _: &mut Choices) -> Result<()> {
    for line in 0..LINES {
        certify(site, line, SHORT).await?;
        site.spawn(Who::Edge(line))?;
    }
    let before = authority(site)?.ca_hash();
    site.cloudcore(&["authority", "rollover"]).await?;
    let after = authority(site)?.ca_hash();
    ensure!(after != before, "the authority is the same");
    site.stop(Who::Cloud).await?;
    site.spawn(Who::Cloud)?;
    bump(&figures.faults);
    let began = Instant::now();
    for line in 0..LINES {
        until(&format!("{} has a certificate of the new authority", node(line)), SOON, async || {
            let folder = site.edge_folder(line);
            let credentials = async || -> Result<NodeCredentials> {
                Ok(NodeCredentials::new(identity(site, line)?, FlooredClock::load(&folder))?)
            };
            match credentials().await {
                Ok(credentials) if credentials.is_of(&after) => Ok(()),
                Ok(_) => Err("of the old one".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await?;
    }
    println!("     both nodes are of the new authority after {:.1} s", began.elapsed().as_secs_f32());
    Ok(())
}

/// Nobody trusts the old authority any more. For the API's clients that is a new kubeconfig.
pub(super) async fn end_rollover(site: &mut Site) -> Result<()> {
    site.cloudcore(&["authority", "end-rollover"]).await?;
    site.stop(Who::Cloud).await?;
    site.spawn(Who::Cloud)?;
    site.api_answers().await
}

/// A library that tells a program of many threads another time, as Debian's package `faketime` has it.
pub(super) fn faketime() -> Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").context("read /usr/lib")?;
    let library = |folder: std::fs::DirEntry| folder.path().join("faketime/libfaketimeMT.so.1");
    let mut found = folders.flatten().map(library).filter(|path| path.is_file());
    found.next().context("libfaketime is not installed (package faketime)")
}

/// A box boots in 1970, and is a node as others are.
pub(super) async fn in_1970(site: &mut Site, figures: &Figures, choices: &mut Choices) -> Result<()> {
    let who = Who::Edge(BOX);
    let library: OsString = faketime()?.into();
    // Its uptime goes as ever.
    let clock = vec![
        ("LD_PRELOAD", library),
        ("FAKETIME", YEAR_1970.into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ("DONT_FAKE_MONOTONIC", "1".into()),
    ];
    let from = site.said(who)?.len();
    site.stop(who).await?;
    site.set_clock(BOX, clock);
    site.spawn(who)?;
    bump(&figures.faults);
    let took = site.says(who, from, UP, SOON).await?;
    let log = site.said(who)?;
    let news = log.get(from..).unwrap_or_default();
    ensure!(news.contains("1970-01-01T00:00:"), "{} does not live in 1970: {news}", node(BOX));
    println!("     {} is connected {:.1} s after its start in 1970", node(BOX), took.as_secs_f32());
    while !choices.over() {
        sleep(choices.pause(Duration::from_secs(1), Duration::from_secs(8))).await;
        site.net().cut(BOX)?;
        bump(&figures.faults);
        sleep(choices.pause(Duration::from_millis(500), Duration::from_secs(3))).await;
        site.net().mend(BOX)?;
    }
    // From its next start on it knows the time.
    site.set_clock(BOX, Vec::new());
    Ok(())
}
