//! The smallest HTTP/1.1 client that does for a test on the loopback interface: one connection a request, the answer
//! read to its end. It adds nothing and hides nothing, which a test of a server wants.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest time for one exchange; recorded watches end after at most two seconds.
const DEADLINE: Duration = Duration::from_secs(15);

/// Sends requests with one bearer token.
pub(crate) struct Client {
    address: SocketAddr,
    token: String,
    tls: Option<TlsConnector>,
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) text: String,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, token: &str) -> Self {
        Self { address, token: token.to_owned(), tls: None }
    }

    /// The same over TLS.
    pub(crate) fn over_tls(self, config: Arc<rustls::ClientConfig>) -> Self {
        Self { tls: Some(config.into()), ..self }
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> Answer {
        let exchange = self.exchange(method, path, headers, body.as_deref());
        let bytes =
            tokio::time::timeout(DEADLINE, exchange).await.unwrap_or_else(|_| panic!("{method} {path}: no end"));
        Answer::parse(&bytes.unwrap_or_else(|error| panic!("{method} {path}: {error}")))
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> std::io::Result<Vec<u8>> {
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAuthorization: Bearer {}\r\n",
            self.address, self.token
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = body {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        let request = format!("{head}\r\n{}", body.unwrap_or_default());
        let stream = TcpStream::connect(self.address).await?;
        match &self.tls {
            None => converse(stream, &request).await,
            Some(tls) => converse(tls.connect(ServerName::from(self.address.ip()), stream).await?, &request).await,
        }
    }
}

/// Sends everything, then reads everything.
async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> std::io::Result<Vec<u8>> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head with an end");
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status line");
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        let body = &bytes[end + 4..];
        let chunked = headers.get("transfer-encoding").is_some_and(|coding| coding.contains("chunked"));
        let body = if chunked { dechunk(body) } else { body.to_vec() };
        Self { status, headers, text: String::from_utf8(body).expect("answers are UTF-8") }
    }

    /// The start of the body, for messages.
    pub(crate) fn start(&self) -> String {
        self.text.chars().take(600).collect()
    }

    /// The body in the form of the recorded one: a recorded list is a watch, one event a line.
    pub(crate) fn body(&self, recorded: &Value) -> Result<Value, serde_json::Error> {
        let is_watch = recorded.is_array() || recorded.get("object").is_some();
        if !is_watch {
            return serde_json::from_str(&self.text);
        }
        self.text.lines().filter(|line| !line.is_empty()).map(serde_json::from_str::<Value>).collect()
    }
}

fn dechunk(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let size = String::from_utf8_lossy(&body[..end]);
        let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16).expect("a chunk size");
        let start = end + 2;
        whole.extend_from_slice(&body[start..start + size]);
        if size == 0 {
            break;
        }
        body = &body[start + size + 2..];
    }
    whole
}
