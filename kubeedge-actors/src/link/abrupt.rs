//! A socket that can be ended without a word.
//!
//! Where nothing that the peer sends arrives any more, none of its acknowledgements do: TCP sends again what it sent first,
//! ever more rarely, and what is written behind that, a Goodbye and the end of the stream, waits. A reset does not, so the
//! peer hears at once that this end has given up, instead of finding it out by itself.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Says that a connection ends abruptly. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Reset(Arc<AtomicBool>);

impl Reset {
    /// When the socket is dropped, its connection is reset, and what has not left is thrown away.
    pub(super) fn set(&self) {
        self.0.store(true, Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// A socket, and whether it ends abruptly.
#[derive(Debug)]
pub(super) struct Abrupt {
    stream: TcpStream,
    reset: Reset,
}

impl Abrupt {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, reset: Reset::default() }
    }

    pub(super) fn reset(&self) -> &Reset {
        &self.reset
    }
}

impl Drop for Abrupt {
    fn drop(&mut self) {
        if self.reset.is_set()
            && let Err(error) = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
        {
            tracing::debug!(%error, "a connection cannot be reset and ends in order");
        }
    }
}

impl AsyncRead for Abrupt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Abrupt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// What the far end reads after a word, when the near end is dropped.
    async fn end(abruptly: bool) -> io::Result<usize> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut near, (mut far, _)) = (Abrupt::new(near.unwrap()), far.unwrap());
        near.write_all(b"word").await.unwrap();
        far.read_exact(&mut [0; 4]).await.unwrap();
        if abruptly {
            near.reset().clone().set();
        }
        drop(near);
        far.read(&mut [0]).await
    }

    #[tokio::test]
    async fn a_connection_ends_in_order_unless_it_is_to_be_reset() {
        assert_eq!(end(false).await.unwrap(), 0);
        assert_eq!(end(true).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
