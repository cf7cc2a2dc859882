//! The first bytes of a connection, so that an upgrade to SPDY gets its bytes.
//!
//! actix gives a handler the raw bytes behind a request's head where `Upgrade` says `websocket`, and nowhere else; Go's
//! clients of `exec`, `attach` and `portforward` say `SPDY/3.1`, on a connection that they dial for it. So when the first
//! line of a connection asks for one of these, `Upgrade: websocket` is put behind it, before the client's own headers;
//! the handler goes by the last. Nothing else is changed, and nothing of the other connections.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A first line that is longer is not looked at. What a client can send as a command fits.
const MAX_LINE: usize = 64 * 1024;
const MARK: &[u8] = b"Upgrade: websocket\r\n";

/// A connection whose first head is looked at.
pub(super) struct FirstHead<T> {
    io: T,
    /// `None` once it is told.
    looking: Option<BytesMut>,
    /// Looked at, and to be read first.
    read: BytesMut,
}

impl<T> FirstHead<T> {
    pub(super) fn new(io: T) -> Self {
        Self { io, looking: Some(BytesMut::new()), read: BytesMut::new() }
    }
}

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
enum First {
    /// More is needed to tell.
    Unknown,
    /// An upgrade, whose line ends here.
    Stream(usize),
    /// Anything else.
    Other,
}

fn look(bytes: &[u8]) -> First {
    const STARTS: [&[u8]; 2] = [b"POST /api/v1/namespaces/", b"GET /api/v1/namespaces/"];
    let begins = |start: &&[u8]| bytes.iter().zip(start.iter()).all(|(is, wanted)| is == wanted);
    if !STARTS.iter().any(begins) {
        return First::Other;
    }
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < MAX_LINE { First::Unknown } else { First::Other };
    };
    let line = &bytes[..end];
    let mut words = line.split(|byte| *byte == b' ').skip(1);
    let path = words.next().unwrap_or_default().split(|byte| *byte == b'?').next().unwrap_or_default();
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    match parts.as_slice() {
        [_, _, _, b"namespaces", _, b"pods", _, b"exec" | b"attach" | b"portforward"] => First::Stream(end + 2),
        _ => First::Other,
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for FirstHead<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while let Some(seen) = &mut this.looking {
            seen.reserve(4096);
            let count = ready!(tokio_util::io::poll_read_buf(Pin::new(&mut this.io), cx, seen))?;
            let first = if count == 0 { First::Other } else { look(seen) };
            match first {
                First::Unknown => continue,
                First::Other => this.read = std::mem::take(seen),
                First::Stream(end) => {
                    let rest = seen.split_off(end);
                    this.read = std::mem::take(seen);
                    this.read.extend_from_slice(MARK);
                    this.read.extend_from_slice(&rest);
                }
            }
            this.looking = None;
            if this.read.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        if this.read.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, out);
        }
        let count = this.read.len().min(out.remaining());
        out.put_slice(&this.read[..count]);
        this.read.advance(count);
        if this.read.is_empty() {
            this.read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for FirstHead<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn read(pieces: &[&[u8]]) -> Vec<u8> {
        let mut connection = connection(pieces);
        let mut seen = Vec::new();
        connection.read_to_end(&mut seen).await.unwrap();
        seen
    }

    /// A connection that gives these pieces and ends.
    fn connection(pieces: &[&[u8]]) -> FirstHead<impl AsyncRead + Unpin + use<>> {
        let pieces: Vec<io::Result<bytes::Bytes>> =
            pieces.iter().map(|piece| Ok(bytes::Bytes::copy_from_slice(piece))).collect();
        FirstHead::new(tokio_util::io::StreamReader::new(futures_util::stream::iter(pieces)))
    }

    #[tokio::test]
    async fn an_upgrade_is_marked_and_its_bytes_are_kept() {
        let line = b"POST /api/v1/namespaces/ns/pods/p/exec?command=ls HTTP/1.1\r\n";
        let rest = b"Upgrade: SPDY/3.1\r\n\r\n\x80\x03";
        let whole = [&line[..], MARK, rest].concat();
        assert_eq!(read(&[&[&line[..], rest].concat()]).await, whole);
        // However it comes.
        let bytes = [&line[..], rest].concat();
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single).await, whole);
    }

    #[test]
    fn nothing_else_is_touched() {
        for other in [
            "GET /api/v1/namespaces/ns/pods/p/log HTTP/1.1\r\n",
            "POST /api/v1/namespaces/ns/pods HTTP/1.1\r\n",
            "DELETE /api/v1/namespaces/ns/pods/p/exec HTTP/1.1\r\n",
            "GET /apis/apps/v1/namespaces/ns/pods/p/exec HTTP/1.1\r\n",
            "GET /api/v1/namespaces/ns/pods/p/exec/more HTTP/1.1\r\n",
            "GET /healthz",
            "\r\n",
        ] {
            assert_eq!(look(other.as_bytes()), First::Other, "{other}");
        }
        assert_eq!(look(b"GET /api/v1/names"), First::Unknown);
        assert_eq!(look(&[b"GET /api/v1/namespaces/", &vec![b'x'; MAX_LINE][..]].concat()), First::Other);
    }

    proptest! {
        /// What is not marked is as it was, byte for byte, whatever its pieces are.
        #[test]
        fn bytes_pass_unchanged(bytes: Vec<u8>, piece in 1..9usize) {
            let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            prop_assert_eq!(runtime.block_on(read(&pieces)), bytes.clone());
        }
    }
}
