//! The client's side of the control socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use kubeedge_proto::NodeName;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::net::UnixStream;

use super::{CreatedToken, NewToken, RevokedNode, TokenInfo, socket_of};

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(10);
/// A list of thousands of tokens fits.
const MAX_ANSWER: usize = 1024 * 1024;

/// Why a command did not reach its end.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error("no cloudcore answers on {}: is it running with this data folder? ({source})", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// cloudcore said no.
    #[error("cloudcore refused: {0}")]
    Refused(String),
    /// The conversation broke off.
    #[error("talking to cloudcore on {}: {why}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        why: String,
    },
}

/// Talks to the cloudcore of one data folder.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client for the cloudcore that runs with this data folder.
    pub fn new(data_dir: &Path) -> Self {
        Self { socket: socket_of(data_dir) }
    }

    /// Makes a token.
    pub async fn create(&self, token: &NewToken) -> Result<CreatedToken, ClientError> {
        let (_, body) = self.call(Method::POST, "/tokens", Some(token)).await?;
        self.read(&body)
    }

    /// The tokens that are valid.
    pub async fn list(&self) -> Result<Vec<TokenInfo>, ClientError> {
        let (_, body) = self.call::<()>(Method::GET, "/tokens", None).await?;
        self.read(&body)
    }

    /// Ends a token; false if there is none with this id.
    pub async fn revoke(&self, id: &str) -> Result<bool, ClientError> {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Ok(false);
        }
        let (status, _) = self.call::<()>(Method::DELETE, &format!("/tokens/{id}"), None).await?;
        Ok(status != StatusCode::NOT_FOUND)
    }

    /// Refuses a node from now on and ends its session.
    pub async fn revoke_node(&self, node: &NodeName) -> Result<(), ClientError> {
        self.call::<()>(Method::PUT, &format!("/revoked-nodes/{node}"), None).await.map(drop)
    }

    /// Lets a revoked node join again; false if it is not revoked.
    pub async fn readmit_node(&self, node: &NodeName) -> Result<bool, ClientError> {
        let (status, _) = self.call::<()>(Method::DELETE, &format!("/revoked-nodes/{node}"), None).await?;
        Ok(status != StatusCode::NOT_FOUND)
    }

    /// The nodes that were ever revoked.
    pub async fn revoked_nodes(&self) -> Result<Vec<RevokedNode>, ClientError> {
        let (_, body) = self.call::<()>(Method::GET, "/revoked-nodes", None).await?;
        self.read(&body)
    }

    async fn call<T: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&T>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |why: String| ClientError::Broken { socket: self.socket.clone(), why };
        let exchange = async {
            let stream = UnixStream::connect(&self.socket)
                .await
                .map_err(|source| ClientError::NotRunning { socket: self.socket.clone(), source })?;
            let (mut sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.to_string()))?;
            let body = body.map(serde_json::to_vec).transpose().map_err(|error| broken(error.to_string()))?;
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, "cloudcore")
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::<Bytes>::from(body.unwrap_or_default()))
                .map_err(|error| broken(error.to_string()))?;
            // The connection's own end says nothing more than the answer does.
            let connection = AbortOnDrop(tokio::spawn(connection));
            let response = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            drop(connection);
            Ok((status, body.map_err(|error| broken(error.to_string()))?.to_bytes()))
        };
        let (status, body) = match tokio::time::timeout(LIMIT, exchange).await {
            Ok(answer) => answer?,
            Err(_) => return Err(broken(format!("no answer within {LIMIT:?}"))),
        };
        if status.is_success() || status == StatusCode::NOT_FOUND {
            Ok((status, body))
        } else {
            Err(ClientError::Refused(format!("{} ({status})", String::from_utf8_lossy(&body))))
        }
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body)
            .map_err(|error| ClientError::Broken { socket: self.socket.clone(), why: error.to_string() })
    }
}

/// A task that ends with the command.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
