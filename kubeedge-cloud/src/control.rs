//! The control socket: how `cloudcore token ...` reaches the running cloudcore, whose store no other process can open.
//!
//! JSON over HTTP on a unix socket below the data folder. Who may use it is decided by the file system: the socket is
//! in a folder that only its owner can enter. Every body has a limit.

mod client;
mod nodes;

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use actix_web::{App, HttpResponse, HttpServer, dev::ServerHandle, web};
use futures_util::future::BoxFuture;
use kubeedge_actors::identity::Revocations;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::task::JoinHandle;

pub use client::{Client, ClientError};
pub use nodes::RevokedNode;

/// A request is a handful of short fields.
const MAX_REQUEST: usize = 4 * 1024;
/// Connections at once: commands that a person types.
const MAX_CONNECTIONS: usize = 16;

/// Ask for a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewToken {
    /// Only this node may use it.
    pub node: Option<String>,
    /// How long it is valid.
    pub ttl_seconds: u64,
    /// Whether it may be used more than once.
    pub reusable: bool,
}

/// A token, with its secret: it leaves cloudcore only here.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedToken {
    /// `<hash of the authority>.<id>.<secret>`.
    pub token: String,
}

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// The middle part of the token.
    pub id: String,
    /// The node that it is for, if for one.
    pub node: Option<String>,
    /// When it ends, RFC 3339.
    pub expires: String,
    /// Whether it may be used more than once.
    pub reusable: bool,
}

/// A refusal in words for a person.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeskError {
    /// The request cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}

/// Who makes and keeps the tokens.
pub trait TokenDesk: Send + Sync + 'static {
    /// Makes a token.
    fn create(&self, token: NewToken) -> BoxFuture<'_, Result<CreatedToken, DeskError>>;
    /// The tokens that are valid.
    fn list(&self) -> BoxFuture<'_, Result<Vec<TokenInfo>, DeskError>>;
    /// Ends a token; false if there is none with this id.
    fn revoke(&self, id: String) -> BoxFuture<'_, Result<bool, DeskError>>;
}

/// Where the socket of a data folder is.
pub fn socket_of(data_dir: &Path) -> PathBuf {
    folder_of(data_dir).join("socket")
}

fn folder_of(data_dir: &Path) -> PathBuf {
    data_dir.join("control")
}

/// The running server.
pub struct Control {
    handle: ServerHandle,
    server: JoinHandle<io::Result<()>>,
    socket: PathBuf,
}

/// Why the control socket is not served.
#[derive(Debug, Error)]
#[error("control socket {}: {source}", socket.display())]
pub struct ControlError {
    socket: PathBuf,
    source: io::Error,
}

impl Control {
    /// Serves `desk` and the list of revoked nodes below `data_dir`, which must belong to this process alone: a socket that
    /// is there is of a process that ended. Needs a tokio runtime.
    pub fn start(data_dir: &Path, desk: Arc<dyn TokenDesk>, revocations: Revocations) -> Result<Self, ControlError> {
        let socket = socket_of(data_dir);
        let listener = bind(&folder_of(data_dir), &socket);
        let listener = listener.map_err(|source| ControlError { socket: socket.clone(), source })?;
        let desk = web::Data::from(desk);
        let revocations = web::Data::new(revocations);
        let server = HttpServer::new(move || {
            App::new()
                .app_data(desk.clone())
                .app_data(revocations.clone())
                .configure(nodes::routes)
                .app_data(web::JsonConfig::default().limit(MAX_REQUEST))
                .app_data(web::PayloadConfig::new(MAX_REQUEST))
                .service(web::resource("/tokens").route(web::get().to(list)).route(web::post().to(create)))
                .service(web::resource("/tokens/{id}").route(web::delete().to(revoke)))
        })
        .workers(1)
        .max_connections(MAX_CONNECTIONS)
        .disable_signals()
        .shutdown_timeout(2)
        .listen_uds(listener)
        .map_err(|source| ControlError { socket: socket.clone(), source })?
        .run();
        Ok(Self { handle: server.handle(), server: tokio::spawn(server), socket })
    }

    /// Finishes what is being answered, stops, and takes the socket away.
    pub async fn stop(self) -> Result<(), ControlError> {
        let Self { handle, server, socket } = self;
        handle.stop(true).await;
        let ended = server.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        ended.and_then(|()| remove(&socket)).map_err(|source| ControlError { socket, source })
    }
}

fn bind(folder: &Path, socket: &Path) -> io::Result<UnixListener> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // It may be there with other rights.
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    remove(socket)?;
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn remove(socket: &Path) -> io::Result<()> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn create(desk: web::Data<dyn TokenDesk>, token: web::Json<NewToken>) -> HttpResponse {
    answer(desk.create(token.into_inner()).await)
}

async fn list(desk: web::Data<dyn TokenDesk>) -> HttpResponse {
    answer(desk.list().await)
}

async fn revoke(desk: web::Data<dyn TokenDesk>, id: web::Path<String>) -> HttpResponse {
    match desk.revoke(id.into_inner()).await {
        Ok(true) => HttpResponse::NoContent().finish(),
        Ok(false) => HttpResponse::NotFound().finish(),
        Err(error) => answer::<()>(Err(error)),
    }
}

fn answer<T: Serialize>(result: Result<T, DeskError>) -> HttpResponse {
    match result {
        Ok(value) => HttpResponse::Ok().json(value),
        Err(error @ DeskError::Invalid(_)) => HttpResponse::BadRequest().body(error.to_string()),
        Err(error @ DeskError::Failed(_)) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
