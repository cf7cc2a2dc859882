//! A line between two programs of this machine that can be cut and mended: a relay of TCP connections.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

/// Connections at a time; more wait in the system's queue. A node has two.
const CONNECTIONS: usize = 16;
/// After an error of the listener.
const PAUSE: Duration = Duration::from_millis(100);

/// The near end. Dropped, the line is gone.
pub struct Line {
    address: SocketAddr,
    up: watch::Sender<bool>,
    _relay: AbortOnDropHandle<()>,
}

impl Line {
    /// A line to `far`, from a free port of the loopback interface.
    pub async fn to(far: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen at the near end of a line")?;
        let address = listener.local_addr()?;
        let (up, state) = watch::channel(true);
        let relay = AbortOnDropHandle::new(tokio::spawn(relay(listener, far, state)));
        Ok(Self { address, up, _relay: relay })
    }

    /// Where the near end is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every connection, and new ones as they come.
    pub fn cut(&self) {
        self.up.send_replace(false);
    }

    /// New connections go through again.
    pub fn mend(&self) {
        self.up.send_replace(true);
    }
}

async fn relay(listener: TcpListener, far: SocketAddr, up: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((near, _)) => {
                    connections.spawn(carry(near, far, up.clone()));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// What one end says reaches the other, while the line is there. An end that goes takes the other with it.
async fn carry(mut near: TcpStream, far: SocketAddr, mut up: watch::Receiver<bool>) {
    let carried = async {
        let mut far = TcpStream::connect(far).await?;
        copy_bidirectional(&mut near, &mut far).await
    };
    tokio::select! {
        biased;
        _ = up.wait_for(|up| !up) => {}
        _ = carried => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Whether a byte comes back over a connection.
    async fn echoes(connection: &mut TcpStream) -> bool {
        let mut byte = [0];
        connection.write_all(b"x").await.is_ok() && connection.read_exact(&mut byte).await.is_ok() && byte == *b"x"
    }

    #[tokio::test]
    async fn a_line_that_is_cut_ends_what_is_on_it_and_carries_again_when_it_is_mended() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let far = server.local_addr().unwrap();
        let _server = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok((mut connection, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = connection.split();
                    tokio::io::copy(&mut read, &mut write).await.ok();
                });
            }
        }));
        let line = Line::to(far).await.unwrap();
        let mut old = TcpStream::connect(line.address()).await.unwrap();
        assert!(echoes(&mut old).await);
        line.cut();
        assert!(!echoes(&mut old).await);
        let mut meanwhile = TcpStream::connect(line.address()).await.unwrap();
        assert!(!echoes(&mut meanwhile).await);
        line.mend();
        assert!(!echoes(&mut old).await, "a connection that was lost stays lost");
        let mut new = TcpStream::connect(line.address()).await.unwrap();
        assert!(echoes(&mut new).await);
    }
}
