//! Requests from the cloud to the URLs that rules name: connections that are kept, certificates that are verified.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject};
use thiserror::Error;

use crate::{
    identity::tls::provider,
    web::headers::{self, Headers},
};

/// Largest answer that is kept, bytes: what KubeEdge's ServiceBus takes.
pub const MAX_ANSWER: usize = 5_000_000;
/// Idle connections to one host that are kept.
const IDLE: usize = 32;
/// How long they are kept.
const IDLE_FOR: Duration = Duration::from_secs(60);
/// How long a host may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Makes the requests. Clones share connections.
#[derive(Clone, Debug)]
pub struct Outbound {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// Why there is none.
#[derive(Debug, Error)]
pub enum NoOutbound {
    /// A file of authorities.
    #[error("modules.router.tlsCAFile {}: {why}", .path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The TLS library.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP's.
    pub status: u16,
    /// Those that go along.
    pub headers: Headers,
    /// All of it.
    pub body: Bytes,
}

impl Outbound {
    /// With the authorities that this machine trusts, and those of a PEM file beside them.
    pub fn new(authorities: Option<PathBuf>) -> Result<Self, NoOutbound> {
        let mut roots = RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        let (added, left_out) = roots.add_parsable_certificates(native.certs);
        tracing::debug!(added, left_out, "authorities of this machine");
        if let Some(path) = authorities {
            let wrong = |why: String| NoOutbound::Authorities { path: path.clone(), why };
            let read = CertificateDer::pem_file_iter(&path).map_err(|error| wrong(error.to_string()))?;
            for certificate in read {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
        }
        let tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut sockets = HttpConnector::new();
        sockets.enforce_http(false);
        sockets.set_nodelay(true);
        sockets.set_connect_timeout(Some(CONNECT_WITHIN));
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(sockets);
        // On a connection that was kept and has ended meanwhile it tries another one: only a request of which nothing was
        // sent.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_FOR)
            .pool_max_idle_per_host(IDLE)
            .build(connector);
        Ok(Self { client })
    }

    /// Posts once; a redirection is an answer like any other. The error says why there is none; then the request may have
    /// arrived all the same.
    pub async fn post(&self, url: &str, more: &[(&'static str, String)], body: Bytes) -> Result<Answer, String> {
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
        let media = if json { "application/json; charset=utf-8" } else { "application/octet-stream" };
        let mut request = Request::builder().method(Method::POST).uri(url).header(header::CONTENT_TYPE, media);
        for (name, value) in more {
            let value = HeaderValue::from_str(value).map_err(|error| format!("{name}: {error}"))?;
            request = request.header(HeaderName::from_static(name), value);
        }
        let request = request.body(Full::new(body)).map_err(|error| format!("{url}: {error}"))?;
        let response = self.client.request(request).await.map_err(|error| format!("{url}: {}", chain(&error)))?;
        let status = response.status().as_u16();
        let pairs = response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let headers = headers::collect(pairs).map_err(|error| format!("{url}: its answer: {error}"))?;
        match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
            Ok(body) => Ok(Answer { status, headers, body: body.to_bytes() }),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(format!("{url}: its answer has more than {MAX_ANSWER} bytes"))
            }
            Err(error) => Err(format!("{url}: its answer broke off: {error}")),
        }
    }
}

/// An error with what is behind it: hyper's own text says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
