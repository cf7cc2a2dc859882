//! What TLS said when a connection broke.
//!
//! In TLS 1.3 a server refuses a client's certificate after the client has finished its handshake: the alert comes as an
//! error of reading, and HTTP/2 keeps of that no more than its text. Here it is kept as it was.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::refusal;

/// The first error of TLS on a connection. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Alert(Arc<OnceLock<rustls::Error>>);

impl Alert {
    pub(super) fn get(&self) -> Option<rustls::Error> {
        self.0.get().cloned()
    }

    fn overhear(&self, error: &io::Error) {
        if let Some(error) = refusal::of(error) {
            // A later one follows from the first.
            let _ = self.0.set(error.clone());
        }
    }
}

/// A stream whose errors of TLS are kept.
pub(super) struct Overheard<S> {
    stream: S,
    alert: Alert,
}

impl<S> Overheard<S> {
    pub(super) fn new(stream: S) -> (Self, Alert) {
        let alert = Alert::default();
        (Self { stream, alert: alert.clone() }, alert)
    }

    fn heard<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            self.alert.overhear(error);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.heard(polled)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.heard(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.heard(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.heard(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.heard(polled)
    }
}
