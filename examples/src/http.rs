//! One small HTTP request, enough to look at a page that a pod serves.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// No answer here is larger than this.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// What the server said.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Status line and headers as sent.
    pub head: String,
    /// The body as sent.
    pub body: Vec<u8>,
}

/// Fetches `path` from `address`.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    request("GET", address, path).await
}

/// Asks `address` for `path`. HTTP/1.0: the answer ends with the connection.
pub async fn request(method: &str, address: SocketAddr, path: &str) -> Result<Answer> {
    ensure!(path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()), "path {path:?} is not valid");
    send(&format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\n\r\n"), b"", address).await
}

/// Sends `body` to `address`; `headers` are whole lines, each with its line feed.
pub async fn post(address: SocketAddr, path: &str, headers: &str, body: &[u8]) -> Result<Answer> {
    ensure!(path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()), "path {path:?} is not valid");
    let length = body.len();
    let head = format!("POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n{headers}\r\n");
    send(&head, body, address).await
}

/// Sends these very bytes and reads the answer to the end of the connection.
pub async fn send(head: &str, body: &[u8], address: SocketAddr) -> Result<Answer> {
    let path = head.split(' ').nth(1).unwrap_or_default();
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    stream.write_all(head.as_bytes()).await?;
    // A server may answer before it has read everything.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    parse(&answer).with_context(|| format!("http://{address}{path} did not answer in HTTP"))
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(answer.get(..end)?).ok()?.to_owned();
    let status = head.lines().next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head, body: answer.get(end + 4..)?.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_status_and_body() {
        let answer = parse(b"HTTP/1.0 404 Not Found\r\nA: b\r\n\r\nbody").unwrap();
        assert_eq!((answer.status, answer.body), (404, b"body".to_vec()));
        assert!(parse(b"220 mail.example").is_none());
    }
}
