//! What a stream through everything costs, printed when `STREAM_FIGURES` is set: an exec of `true` against the same
//! straight at the container runtime, and the log of 100 MB. Build with `--release`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use kubeedge_examples::lab::Lab;
use kubeedge_proto::cri::ExecRequest;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    cluster::{apply, container, running, uid},
    pods::script,
    report::Outcome,
};

pub(crate) const FIGURES: &str = "streams::figures";

const ROUNDS: usize = 50;
const LOG_BYTES: usize = 100_000_000;
const POD: &str = "verbose";

/// Whether they are asked for.
pub(crate) fn wanted() -> bool {
    std::env::var_os("STREAM_FIGURES").is_some()
}

pub(crate) async fn figures(lab: &Lab) -> Result<Outcome> {
    let block = "x".repeat(999);
    let lines = LOG_BYTES / 1000;
    let story = format!("busybox yes {block} | head -n {lines}; touch /work/done; while :; do sleep 1; done");
    apply(lab, &script(POD, "Always", &story)).await?;
    let pod = running(&lab.client()?, POD).await?;
    let api = Api::of(lab)?;
    exec(lab, &api, &container(lab, &uid(&pod)?, "main").await?.id).await?;
    logs(lab, &api).await?;
    Ok(Outcome::Proved)
}

async fn exec(lab: &Lab, api: &Api, container_id: &str) -> Result<()> {
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    let mut cri = lab.containerd()?.cri().await?;
    // In turns, so that both see the same machine.
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let request = ExecRequest {
            container_id: container_id.to_owned(),
            cmd: vec!["true".to_owned()],
            stdout: true,
            ..ExecRequest::default()
        };
        let url = cri.exec(request).await?.into_inner().url;
        let rest = url.strip_prefix("http://").context("a URL of HTTP")?;
        let (address, path) = rest.split_once('/').context("a URL with a path")?;
        let socket = TcpStream::connect(address).await?;
        run(socket, &format!("/{path}"), "").await?;
        direct.push(began.elapsed());

        let began = Instant::now();
        let path = format!("/api/v1/namespaces/default/pods/{POD}/exec?command=true&stdout=true");
        run(api.connect().await?, &path, &api.authorization()).await?;
        through.push(began.elapsed());
    }
    let (direct, through) = (median(direct), median(through));
    let ratio = through.as_secs_f64() / direct.as_secs_f64();
    println!("     exec of true: through everything {through:.1?}, at the runtime {direct:.1?}: {ratio:.2} x");
    Ok(())
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}

/// One command over a WebSocket, to its status. Nothing is sent, so that nothing need be masked.
async fn run(mut socket: impl AsyncRead + AsyncWrite + Unpin, path: &str, more: &str) -> Result<()> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: figures\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://figures\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n{more}\r\n"
    );
    socket.write_all(request.as_bytes()).await?;
    let mut said = Vec::new();
    loop {
        let count = socket.read_buf(&mut said).await.context("the answer broke off")?;
        let text = String::from_utf8_lossy(&said);
        if text.contains("\"status\":\"Success\"") {
            ensure!(text.starts_with("HTTP/1.1 101"), "{text}");
            return Ok(());
        }
        ensure!(count > 0, "no success: {text}");
    }
}

async fn logs(lab: &Lab, api: &Api) -> Result<()> {
    let client = lab.client()?;
    let pod = running(&client, POD).await?;
    let container = container(lab, &uid(&pod)?, "main").await?;
    crate::cluster::poll("the log is written", async || {
        Ok(lab.exec(&container.id, &["test", "-e", "/work/done"]).await.map(drop).map_err(|error| error.to_string()))
    })
    .await?;
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        let mut socket = api.connect().await?;
        let request = format!(
            "GET /api/v1/namespaces/default/pods/{POD}/log HTTP/1.1\r\nHost: figures\r\nConnection: close\r\n{}\r\n",
            api.authorization()
        );
        socket.write_all(request.as_bytes()).await?;
        let (mut total, mut buffer) = (0, vec![0; 64 * 1024]);
        loop {
            match socket.read(&mut buffer).await {
                Ok(0) => break,
                Ok(count) => total += count,
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error.into()),
            }
        }
        ensure!(total >= LOG_BYTES, "only {total} bytes of the log came");
        best = best.min(began.elapsed());
    }
    let rate = LOG_BYTES as f64 / best.as_secs_f64() / 1e6;
    println!("     logs of {} MB: {best:.2?}, {rate:.0} MB/s", LOG_BYTES / 1_000_000);
    Ok(())
}

/// The API server as a client of its own sees it.
struct Api {
    address: String,
    host: String,
    token: String,
    tls: TlsConnector,
}

impl Api {
    fn of(lab: &Lab) -> Result<Self> {
        let config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(lab.kubeconfig())?)?;
        let text = |path: &str| config.pointer(path).and_then(|value| value.as_str()).context(path.to_owned());
        let address = text("/clusters/0/cluster/server")?.strip_prefix("https://").context("https")?.to_owned();
        let host = address.split(':').next().unwrap_or_default().to_owned();
        let pem = STANDARD.decode(text("/clusters/0/cluster/certificate-authority-data")?)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem)?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = tls.with_root_certificates(roots).with_no_client_auth();
        let token = text("/users/0/user/token")?.to_owned();
        Ok(Self { address, host, token, tls: TlsConnector::from(Arc::new(tls)) })
    }

    async fn connect(&self) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let socket = TcpStream::connect(&self.address).await?;
        socket.set_nodelay(true)?;
        Ok(self.tls.connect(ServerName::try_from(self.host.clone())?, socket).await?)
    }

    fn authorization(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.token)
    }
}
