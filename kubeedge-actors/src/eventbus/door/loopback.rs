//! The door to a broker in the clear: a port of the loopback interface, whose buffers are as large as those on the way to
//! the broker itself. Who else comes to it gets no further than to the broker, at which nobody is taken for this node.

use std::{io, net};

use tokio::net::{TcpListener, TcpStream};

/// Where one client of this process connects, for as long as the client is there.
pub(in crate::eventbus) struct LoopbackDoor {
    listener: net::TcpListener,
    address: net::SocketAddr,
}

impl LoopbackDoor {
    /// Makes it.
    pub(in crate::eventbus) fn new() -> io::Result<Self> {
        let listener = net::TcpListener::bind((net::Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// As paho takes it.
    pub(in crate::eventbus) fn uri(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// To take the next connection from.
    pub(in crate::eventbus) fn open(&self) -> io::Result<TcpListener> {
        TcpListener::from_std(self.listener.try_clone()?)
    }
}

/// The next connection that says something: an earlier one may have been given up before it was taken.
pub(in crate::eventbus) async fn next(listener: TcpListener) -> io::Result<TcpStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        if stream.peek(&mut [0; 1]).await.is_ok_and(|bytes| bytes > 0) {
            return Ok(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_was_given_up_is_let_pass() {
        let door = LoopbackDoor::new().unwrap();
        drop(TcpStream::connect(door.address).await.unwrap());
        let mut ours = TcpStream::connect(door.address).await.unwrap();
        ours.write_all(b"hello").await.unwrap();
        let taken = next(door.open().unwrap()).await.unwrap();
        assert_eq!(taken.peer_addr().unwrap(), ours.local_addr().unwrap());
    }
}
