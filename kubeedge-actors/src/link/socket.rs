//! What both ends set on their sockets and on HTTP/2.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Sent and not acknowledged for this long: the kernel gives the connection up. Below a session's `dead_after`.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// The kernel asks for more when less than this is unsent, so that what is urgent does not queue behind megabytes.
const NOTSENT_LOWAT: u32 = 16 * 1024;
/// For connections that carry no session yet.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3);

/// Bytes of a stream that the peer may send before it is read. At 100 ms round trip this is 2.5 MB/s.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes that HTTP/2 keeps back for a stream that the socket does not take.
pub(crate) const SEND_BUFFER: usize = 32 * 1024;
/// TCP, TLS and HTTP/2 together may take this long.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);

pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    }
    Ok(())
}
