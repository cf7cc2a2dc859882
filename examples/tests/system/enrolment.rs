//! Who is not let in, and what both sides say about it. Two clouds, no containers.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::FutureExt;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::ListParams};
use kubeedge_examples::{
    lab::Lab,
    process::{Launch, Process},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;

use crate::{
    cluster::{log_says, poll},
    report::{Outcome, Report},
};

const UP: &str = "enrolment::two_clouds_come_up";
const DOWN: &str = "enrolment::nothing_is_left_of_the_one_cloud";
const OTHER_DOWN: &str = "enrolment::nothing_is_left_of_the_other_cloud";
const SECRET: &str = "enrolment::a_wrong_token_is_refused";
const UNKNOWN: &str = "enrolment::an_unknown_token_is_refused";
const EXPIRED: &str = "enrolment::an_expired_token_is_refused";
const FOREIGN: &str = "enrolment::a_token_for_another_node_is_refused";
const USED: &str = "enrolment::a_used_token_is_refused_to_another_box";
const CLOUD: &str = "enrolment::a_cloud_with_another_ca_gets_no_token";
const LINK: &str = "enrolment::a_certificate_of_another_ca_does_not_open_the_link";
const ALL: [&str; 7] = [SECRET, UNKNOWN, EXPIRED, FOREIGN, USED, CLOUD, LINK];

/// For edgecore to end in order.
const STOP: Duration = Duration::from_secs(20);
/// How cloudcore's log begins a refusal.
const REFUSED: &str = "enrolment refused";

pub(crate) async fn stage(report: &mut Report) {
    if !report.begins(&ALL) {
        return;
    }
    let Some((lab, folder)) = report.lab(UP, async |lab| lab.start_cloud().await.map(drop)).await else { return };
    let other = report.lab(UP, async |lab| lab.start_cloud().await.map(drop)).await;
    if let Some((other, other_folder)) = other {
        report
            .together(vec![
                (SECRET, wrong_secret(&lab).boxed_local()),
                (UNKNOWN, unknown(&lab, &other).boxed_local()),
                (EXPIRED, expired(&lab).boxed_local()),
                (FOREIGN, foreign(&lab).boxed_local()),
                (USED, used(&lab).boxed_local()),
                (CLOUD, other_cloud(&lab, &other).boxed_local()),
            ])
            .await;
        // Last: its log is looked at as a whole.
        report.run(LINK, other_certificate(&lab, &other)).await;
        report.close(OTHER_DOWN, other, other_folder, Ok(())).await;
    }
    report.close(DOWN, lab, folder, Ok(())).await;
}

/// Joins, and is refused; both sides say all of `why`, and there is no certificate.
async fn refused(lab: &Lab, node: &str, token: &str, why: &[&str]) -> Result<Outcome> {
    let folder = lab.folder().join(node);
    let output = lab.join_as(node, token, &folder).await?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{node} joined: {}", String::from_utf8_lossy(&output.stdout));
    ensure!(why.iter().all(|part| stderr.contains(part)), "expected {why:?}, edgecore says {stderr:?}");
    let id = token.split('.').nth(1).context("a token has an id")?;
    ensure!(stderr.contains(id), "it does not say which token: {stderr:?}");
    let line = log_says(lab, "cloudcore", 0, &[REFUSED, node, id]).await?;
    ensure!(why.iter().all(|part| line.contains(part)), "expected {why:?}, cloudcore says {line:?}");
    let secret = token.rsplit('.').next().context("a token has a secret")?;
    ensure!(!stderr.contains(secret) && !lab.log("cloudcore")?.contains(secret), "the token's secret is told");
    no_certificate(&folder)
}

fn no_certificate(folder: &Path) -> Result<Outcome> {
    for file in ["certs/server.crt", "edgecore.yaml"] {
        ensure!(!folder.join(file).exists(), "{} was written", folder.join(file).display());
    }
    Ok(Outcome::Proved)
}

async fn wrong_secret(lab: &Lab) -> Result<Outcome> {
    let token = lab.token(&[]).await?;
    let (rest, secret) = token.rsplit_once('.').context("a token has a secret")?;
    let wrong: String = secret.chars().rev().collect();
    ensure!(wrong != secret);
    refused(lab, "wrong-secret", &format!("{rest}.{wrong}"), &["has another secret"]).await
}

/// A token of the other cloud, with this cloud's hash: nobody here knows it.
async fn unknown(lab: &Lab, other: &Lab) -> Result<Outcome> {
    let (here, there) = (lab.token(&[]).await?, other.token(&[]).await?);
    let hash = here.split('.').next().context("a token has a hash")?;
    let (_, credential) = there.split_once('.').context("a token has a credential")?;
    refused(lab, "unknown-token", &format!("{hash}.{credential}"), &["is not known"]).await
}

async fn expired(lab: &Lab) -> Result<Outcome> {
    let token = lab.token(&["--ttl", "1s"]).await?;
    let id = token.split('.').nth(1).context("a token has an id")?.to_owned();
    let data_dir = lab.folder().join("cloud");
    let data_dir = data_dir.to_str().context("a path of UTF-8")?;
    poll("the token is not listed any more", async || {
        let listed = lab.command("cloudcore", &["token", "list", "--data-dir", data_dir]).await?;
        let listed = String::from_utf8(listed.stdout)?;
        Ok(if listed.contains(&id) { Err(listed) } else { Ok(()) })
    })
    .await?;
    refused(lab, "expired-token", &token, &["expired"]).await
}

async fn foreign(lab: &Lab) -> Result<Outcome> {
    let token = lab.token(&["--node", "somebody-else"]).await?;
    refused(lab, "foreign-node", &token, &["is for node somebody-else, not for foreign-node"]).await
}

async fn used(lab: &Lab) -> Result<Outcome> {
    let token = lab.token(&[]).await?;
    let first = lab.join_as("used-first", &token, &lab.folder().join("used-first")).await?;
    ensure!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    refused(lab, "used-second", &token, &["was already used by node used-first"]).await
}

/// The token names its cloud by the hash of the CA: another cloud does not even get to see its secret.
async fn other_cloud(lab: &Lab, other: &Lab) -> Result<Outcome> {
    let token = other.token(&[]).await?;
    let folder = lab.folder().join("other-cloud");
    let output = lab.join_as("other-cloud", &token, &folder).await?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "it joined a cloud that the token does not name");
    let hash = token.split('.').next().context("a token has a hash")?;
    ensure!(stderr.contains("CA") && stderr.contains(hash), "edgecore says {stderr:?}");
    // The cloud knows no more than what TLS tells it: the peer does not take its certificate.
    log_says(lab, "cloudcore", 0, &["connection to enrolment refused", "does not accept our certificate"]).await?;
    no_certificate(&folder)
}

/// A node of the other cloud comes to this one's link. It does not take this cloud's certificate; given this cloud's CA
/// it knows that its own certificate is not of it; and somebody who does not care is not let in by the cloud.
async fn other_certificate(lab: &Lab, other: &Lab) -> Result<Outcome> {
    let folder = lab.folder().join("intruder");
    let joined = other.join_as("intruder", &other.token(&[]).await?, &folder).await?;
    ensure!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
    let config = folder.join("edgecore.yaml");
    let text = fs::read_to_string(&config)?;
    let (here, there) = (link(lab)?.to_string(), link(other)?.to_string());
    ensure!(text.contains(&there), "the link's address is in:\n{text}");
    // Without pods, so that it needs no container runtime.
    let text = text.replace(&there, &here).replace("  edged:\n", "  edged:\n    enable: false\n");
    fs::write(&config, text)?;

    let log = lab.folder().join("intruder.log");
    let edge = edgecore(&config, &log)?;
    let line = says(&log, &["not connected", "the other side's certificate is of another CA than ours"]).await;
    edge.stop(STOP).await?;
    line?;
    log_says(lab, "cloudcore", 0, &["connection to the link refused", "does not accept our certificate"]).await?;

    let authority = lab.folder().join("cloud/pki/rootCA.crt");
    fs::copy(&authority, folder.join("ca/rootCA.crt"))?;
    let mut edge = edgecore(&config, &log)?;
    ensure!(!edge.ended().await?.success(), "it started with a certificate of another CA than its own");
    says(&log, &["server.crt", "the certificate does not hold against the CA"]).await?;

    let refused = force(link(lab)?, &authority, &folder).await;
    let refused = refused.err().context("the link was opened with a certificate of another CA")?;
    let alert = refused.downcast_ref::<std::io::Error>().map(std::io::Error::to_string).unwrap_or_default();
    ensure!(alert.contains("alert"), "not an alert of TLS: {refused:#}");
    log_says(lab, "cloudcore", 0, &["connection to the link refused", "of another CA than ours"]).await?;
    let nodes = Api::<Node>::all(lab.client()?).list(&ListParams::default()).await?;
    ensure!(nodes.items.is_empty(), "it became a node: {:?}", nodes.items);
    Ok(Outcome::Proved)
}

/// Where a cloud serves the link.
fn link(lab: &Lab) -> Result<SocketAddr> {
    let text = fs::read_to_string(lab.folder().join("cloud/cloudcore.yaml"))?;
    let config: serde_json::Value = serde_saphyr::from_str(&text)?;
    let port = config["modules"]["cloudHub"]["websocket"]["port"].as_u64().context("the link has a port")?;
    Ok((Ipv4Addr::LOCALHOST, u16::try_from(port)?).into())
}

/// A TLS client with the certificate in `identity`, that trusts `authority`. The server judges a client's certificate
/// after the client has finished its part: so it reads.
async fn force(address: SocketAddr, authority: &Path, identity: &Path) -> Result<usize> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    let chain = CertificateDer::pem_file_iter(identity.join("certs/server.crt"))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(identity.join("certs/server.key"))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(address).await?;
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(address.ip().into(), stream).await?;
    // In HTTP/2 a server that takes the connection speaks first.
    Ok(stream.read(&mut [0; 64]).await?)
}

fn edgecore(config: &Path, log: &Path) -> Result<Process> {
    let programs = Path::new(env!("CARGO_BIN_EXE_quickstart")).parent().context("a program is in a folder")?;
    Launch::new("edgecore", programs.join("edgecore"), log).arg("--config").arg(config).spawn()
}

async fn says(log: &Path, parts: &[&str]) -> Result<String> {
    poll(&format!("{} says {parts:?}", log.display()), async || {
        let text = fs::read_to_string(log).unwrap_or_default();
        let found = text.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned);
        Ok(found.ok_or(text))
    })
    .await
}
