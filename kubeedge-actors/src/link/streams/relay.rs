//! A stream and a socket become one: what comes from either goes to the other, until one of them ends.

use std::io;

use bytes::BytesMut;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{FRAME_BYTES, Stream, StreamError};

/// Why a relay ended before its time.
#[derive(Debug, Error)]
pub enum RelayError {
    /// The stream's side.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The socket's side.
    #[error("the connection broke: {0}")]
    Socket(#[from] io::Error),
}

/// Which end has ended in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The stream's peer; what it had sent is in the socket.
    Stream,
    /// The socket's peer; what it had sent is in the stream.
    Socket,
}

/// Moves bytes both ways. What an end has sent before it ended arrives; then both are over, since an upgraded connection
/// of HTTP has no half that goes on alone. Neither direction waits for the other, and no more is read than there is room
/// for.
pub async fn relay(stream: &mut Stream, socket: impl AsyncRead + AsyncWrite) -> Result<Ended, RelayError> {
    let (mut from_socket, mut to_socket) = tokio::io::split(socket);
    let (mut from_stream, mut to_stream) = stream.split();
    let up = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(FRAME_BYTES);
            if from_socket.read_buf(&mut buffer).await? == 0 {
                to_stream.finish();
                return Ok::<_, RelayError>(Ended::Socket);
            }
            to_stream.write(buffer.split().freeze()).await?;
        }
    };
    let down = async {
        while let Some(bytes) = from_stream.read().await? {
            to_socket.write_all(&bytes).await?;
            to_socket.flush().await?;
        }
        to_socket.shutdown().await?;
        Ok::<_, RelayError>(Ended::Stream)
    };
    tokio::select! {
        ended = up => ended,
        ended = down => ended,
    }
}
