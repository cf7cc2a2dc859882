//! The door through which paho gets to a broker: a socket within this machine, from which the bytes are taken on.
//!
//! Two things need it. A broker on TLS: it is spoken to by rustls, and paho speaks plain MQTT. And a broker that goes away
//! while paho publishes: when a write fails at once, paho's library (1.3.16, its issues 1621 and 1622) frees a publication
//! of QoS 1 or 2 twice, which ends the process, or damages what others have in memory. Through the door no write of paho's
//! fails: its other end is open for as long as paho may write ([`KeptOpen`]), and what a broker cannot be told any more is
//! read and forgotten; paho keeps what is not confirmed, as after any loss of a connection. `P-BROKER-GONE`
//!
//! [`loopback`] is the door to a broker in the clear, `private` the one to a broker on TLS. Bytes go through in both
//! directions with a bounded buffer each, so that a slow side slows the other down.

pub(super) mod loopback;
#[cfg(feature = "eventbus-tls")]
pub(super) mod private;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes};

/// Bytes under way in each direction.
const BUFFER: usize = 16 * 1024;

/// Takes the client's connection through to the broker, until both have ended it: when the broker does, the client is told,
/// and what it still writes is taken and lost. The error is the broker's side's.
pub(super) async fn through(
    mut client: impl AsyncRead + AsyncWrite + AsFd + Unpin,
    mut broker: impl AsyncRead + AsyncWrite + Unpin,
    kept: KeptOpen,
) -> io::Result<()> {
    kept.keep(&client)?;
    let ended = copy_bidirectional_with_sizes(&mut client, &mut broker, BUFFER, BUFFER).await.map(drop);
    // One of the two may have ended it: these fail then.
    let _ = client.shutdown().await;
    let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
    ended
}

/// What keeps the latest connection through the door open, until the next one or until the last of these is dropped:
/// whoever drops it after paho's client does not let paho write to a closed socket.
#[derive(Clone, Default)]
pub(super) struct KeptOpen(Arc<Mutex<Option<OwnedFd>>>);

impl KeptOpen {
    fn keep(&self, door: &impl AsFd) -> io::Result<()> {
        let door = door.as_fd().try_clone_to_owned()?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(door);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (ours, accepted) = tokio::join!(connecting, listener.accept());
        (ours.unwrap(), accepted.unwrap().0)
    }

    /// What paho writes is taken also when nobody is there any more, for as long as paho can write.
    #[tokio::test]
    async fn who_comes_through_can_write_after_the_broker_has_gone_and_after_the_way_has_ended() {
        let ((mut ours, client), kept) = (pair().await, KeptOpen::default());
        let (broker, far) = tokio::io::duplex(64);
        let way = tokio::spawn(through(client, broker, kept.clone()));
        drop(far);
        assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0, "the end is told");
        ours.write_all(&[0; 16 * 1024 * 1024]).await.unwrap();
        assert!(!way.is_finished());
        way.abort();
        assert!(way.await.unwrap_err().is_cancelled());
        for _ in 0..100 {
            ours.write_all(b"more").await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(kept);
        while ours.write_all(b"more").await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn the_way_ends_with_the_client() {
        let (mut ours, client) = pair().await;
        let (broker, mut far) = tokio::io::duplex(64);
        let way = tokio::spawn(through(client, broker, KeptOpen::default()));
        ours.write_all(b"last").await.unwrap();
        drop(ours);
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last");
        drop(far);
        way.await.unwrap().unwrap();
    }
}
