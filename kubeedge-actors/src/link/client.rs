//! The edge's sockets: the link, over mutual TLS 1.3, and enrolment.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kubeedge_proto::v1::{
    EnrolRequest, EnrolResponse, RenewRequest, StreamFrame, enrolment_client::EnrolmentClient, link_client::LinkClient,
};
use rustls::{AlertDescription, ClientConfig, ProtocolVersion, pki_types::ServerName};
use thiserror::Error;
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
};

use super::{
    abrupt::{Abrupt, Reset},
    config::MAX_FRAME_BYTES,
    overheard::{Alert, Overheard},
    refusal,
    socket::{HANDSHAKE, SEND_BUFFER, STREAM_WINDOW, tune},
    streams::connection::TRANSPORT_FRAMES,
    transport::{FrameSink, FrameStream, TaskGuard, describe},
};

/// An enrolment may wait for the cloud's store.
const ENROLMENT_TIME: Duration = Duration::from_secs(30);

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// No such host, refused, unreachable.
    #[error("cannot reach {address}: {source}")]
    Dial {
        /// `host:port`
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The name is neither a DNS name nor an IP address.
    #[error("{address:?} does not begin with a DNS name or an IP address and end with a port")]
    Name {
        /// As given.
        address: String,
    },
    /// Certificates, versions.
    #[error("TLS with {address}: {why}")]
    Tls {
        /// `host:port`
        address: String,
        /// The cause, and whose certificate it is about.
        why: String,
    },
    /// TLS 1.2 or older.
    #[error("TLS with {address}: 1.3 is needed, it speaks {version:?}")]
    OldTls {
        /// `host:port`
        address: String,
        /// What it speaks.
        version: Option<ProtocolVersion>,
    },
    /// The other side speaks no HTTP/2.
    #[error("HTTP/2 with {address}: {source}")]
    Http {
        /// `host:port`
        address: String,
        /// The cause.
        source: hyper::Error,
    },
    /// The other side ended TLS after the handshake: it does not accept our certificate.
    #[error("TLS with {address}: {}", refusal::reason(.error))]
    Alert {
        /// `host:port`
        address: String,
        /// What it said.
        error: Box<rustls::Error>,
    },
    /// The other side answered with an error.
    #[error("{address} refused: {}", describe(.status))]
    Refused {
        /// `host:port`
        address: String,
        /// Its answer.
        status: Box<Status>,
    },
    /// Not in time.
    #[error("{address} did not answer within {after:?}")]
    Timeout {
        /// `host:port`
        address: String,
        /// How long it had.
        after: Duration,
    },
}

impl ConnectError {
    /// Whether the other side has refused our certificate because it has ended, by its clock.
    pub fn says_expired(&self) -> bool {
        use rustls::Error::AlertReceived;
        matches!(self, Self::Alert { error, .. } if **error == AlertReceived(AlertDescription::CertificateExpired))
    }
}

/// Opens the link at `address` (`host:port`), within 10 s. `tls` brings the node's certificate and trusts the cloud's CA;
/// its ALPN is set here. The certificate of the cloud must be for `server_name`, by default the host of the address.
pub async fn connect(
    address: &str,
    server_name: Option<ServerName<'static>>,
    tls: &ClientConfig,
) -> Result<(FrameSink, FrameStream), ConnectError> {
    in_time(address, HANDSHAKE, async {
        let Dialled { channel, origin, guard, alert, reset } = dial(address, server_name, tls).await?;
        let mut client = LinkClient::with_origin(channel, origin).max_decoding_message_size(MAX_FRAME_BYTES);
        let (sink, outgoing) = FrameSink::new();
        let response = client.connect(outgoing).await.map_err(|status| refused(address, status, &alert))?;
        Ok((sink, FrameStream::grpc(response.into_inner(), reset, Some(guard))))
    })
    .await
}

/// Opens a connection for streams, as [`connect`] opens the link. It ends when the guard is dropped.
pub async fn open_streams(address: &str, tls: &ClientConfig) -> Result<StreamsTransport, ConnectError> {
    in_time(address, HANDSHAKE, async {
        let Dialled { channel, origin, guard, alert, .. } = dial(address, None, tls).await?;
        let mut client = LinkClient::with_origin(channel, origin).max_decoding_message_size(MAX_FRAME_BYTES);
        let (outgoing, frames) = mpsc::channel(TRANSPORT_FRAMES);
        let response = client.streams(ReceiverStream::new(frames)).await;
        let response = response.map_err(|status| refused(address, status, &alert))?;
        Ok(StreamsTransport { outgoing, incoming: response.into_inner(), _guard: guard })
    })
    .await
}

/// The edge's end of a connection for streams. Dropping it closes the connection.
pub struct StreamsTransport {
    /// To the cloud.
    pub outgoing: mpsc::Sender<StreamFrame>,
    /// From it.
    pub incoming: tonic::Streaming<StreamFrame>,
    _guard: TaskGuard,
}

impl fmt::Debug for StreamsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamsTransport").finish_non_exhaustive()
    }
}

/// Asks for the first certificate, within 30 s. `tls` trusts the CA that the token pins and brings no certificate.
pub async fn enrol(
    address: &str,
    server_name: Option<ServerName<'static>>,
    tls: &ClientConfig,
    request: EnrolRequest,
) -> Result<EnrolResponse, ConnectError> {
    in_time(address, ENROLMENT_TIME, async {
        let Dialled { channel, origin, guard: _guard, alert, .. } = dial(address, server_name, tls).await?;
        let mut client = EnrolmentClient::with_origin(channel, origin).max_decoding_message_size(MAX_FRAME_BYTES);
        let response = client.enrol(request).await.map_err(|status| refused(address, status, &alert))?;
        Ok(response.into_inner())
    })
    .await
}

/// Asks for the next certificate after the old one has ended, within 30 s. `tls` brings the old one and its key.
pub async fn renew(
    address: &str,
    server_name: Option<ServerName<'static>>,
    tls: &ClientConfig,
    request: RenewRequest,
) -> Result<EnrolResponse, ConnectError> {
    in_time(address, ENROLMENT_TIME, async {
        let Dialled { channel, origin, guard: _guard, alert, .. } = dial(address, server_name, tls).await?;
        let mut client = EnrolmentClient::with_origin(channel, origin).max_decoding_message_size(MAX_FRAME_BYTES);
        let response = client.renew(request).await.map_err(|status| refused(address, status, &alert))?;
        Ok(response.into_inner())
    })
    .await
}

async fn in_time<T>(
    address: &str,
    after: Duration,
    work: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let late = || ConnectError::Timeout { address: address.into(), after };
    timeout(after, work).await.map_err(|_| late())?
}

fn refused(address: &str, status: Status, alert: &Alert) -> ConnectError {
    let address = address.into();
    match alert.get() {
        Some(error) => ConnectError::Alert { address, error: Box::new(error) },
        None => ConnectError::Refused { address, status: Box::new(status) },
    }
}

/// A connection.
struct Dialled {
    channel: Http2,
    origin: http::Uri,
    /// The connection ends with it.
    guard: TaskGuard,
    alert: Alert,
    reset: Reset,
}

/// TCP, TLS and HTTP/2.
async fn dial(
    address: &str,
    server_name: Option<ServerName<'static>>,
    tls: &ClientConfig,
) -> Result<Dialled, ConnectError> {
    let name = || ConnectError::Name { address: address.into() };
    let origin: http::Uri = format!("https://{address}").parse().map_err(|_| name())?;
    let server_name = match server_name {
        Some(server_name) => server_name,
        None => {
            let host = origin.host().ok_or_else(name)?.trim_start_matches('[').trim_end_matches(']');
            ServerName::try_from(host.to_owned()).map_err(|_| name())?
        }
    };
    let dial = |source| ConnectError::Dial { address: address.into(), source };
    let stream = TcpStream::connect(address).await.map_err(dial)?;
    tune(&stream).map_err(dial)?;
    let stream = Abrupt::new(stream);
    let reset = stream.reset().clone();

    let mut tls = tls.clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(server_name, stream)
        .await
        .map_err(|error| ConnectError::Tls { address: address.into(), why: refusal::explain(&error) })?;
    let version = stream.get_ref().1.protocol_version();
    if version != Some(ProtocolVersion::TLSv1_3) {
        return Err(ConnectError::OldTls { address: address.into(), version });
    }

    let (stream, alert) = Overheard::new(stream);
    let http = |source: hyper::Error| match alert.get() {
        Some(error) => ConnectError::Alert { address: address.into(), error: Box::new(error) },
        None => ConnectError::Http { address: address.into(), source },
    };
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(2 * STREAM_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    let task = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "link connection ended");
        }
    });
    Ok(Dialled { channel: Http2(sender), origin, guard: TaskGuard(task), alert, reset })
}

/// One HTTP/2 connection as the generated clients want it: no pool, no reconnecting behind the session's back.
struct Http2(SendRequest<Body>);

impl Service<http::Request<Body>> for Http2 {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
