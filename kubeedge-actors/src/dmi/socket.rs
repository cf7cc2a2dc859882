//! A unix socket with one gRPC service, for callers in any language.

use std::{
    convert::Infallible,
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tonic::{body::Body, codegen::Service};

use super::authority::Mended;

/// Connections at a time.
const CONNECTIONS: usize = 256;
/// Calls of one connection at a time.
const STREAMS: u32 = 64;
/// How often it is looked whether the socket is still there.
const LOOK: Duration = Duration::from_secs(1);
/// The longest pause between attempts to make it.
const LONGEST: Duration = Duration::from_secs(30);

/// Binds a socket. One that a dead process left is taken away; one that somebody answers on is not.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if path.symlink_metadata().is_ok() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            let text = format!("{} is served by another process", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Which socket is behind a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds. A file system gives the number of a file that is gone to the next one; nothing is ever
    /// written to a socket's file, so that its time is that at which it was made. Its mode and owner may change.
    made: (i64, i64),
}

/// What identifies the file behind a path: another one under the same name is told apart.
pub fn identity(path: &Path) -> Option<Identity> {
    let metadata = path.symlink_metadata().ok()?;
    let made = (metadata.mtime(), metadata.mtime_nsec());
    Some(Identity { device: metadata.dev(), inode: metadata.ino(), made })
}

/// Serves the socket until dropped; one that is taken away is made again. `make` makes the service of one connection, for
/// the process at its other end (0: not known). Must run within a `LocalSet`, as actix has it.
pub async fn serve<S>(path: PathBuf, who: &'static str, make: impl Fn(i32) -> S)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut connections = JoinSet::new();
    let mut pause = LOOK;
    loop {
        let listener = match bind(&path) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(path = %path.display(), who, again_in = ?pause, "nobody can come: {error}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST);
                continue;
            }
        };
        pause = LOOK;
        tracing::info!(path = %path.display(), "{who} are served");
        let ours = identity(&path);
        let mut look = tokio::time::interval(LOOK);
        while identity(&path) == ours {
            while connections.try_join_next().is_some() {}
            let stream = tokio::select! {
                stream = listener.accept() => stream,
                _ = look.tick() => continue,
            };
            match stream {
                Ok(_) if connections.len() >= CONNECTIONS => {
                    tracing::warn!(limit = CONNECTIONS, who, "a connection was not let in: there are too many");
                }
                Ok((stream, _)) => {
                    let caller = stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or_default();
                    connections.spawn_local(connection(stream, make(caller)));
                }
                Err(error) => {
                    tracing::warn!(who, "a connection was not let in: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        tracing::warn!(path = %path.display(), "the socket was taken away: it is made again");
    }
}

async fn connection<S>(stream: UnixStream, service: S)
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http2.max_concurrent_streams(STREAMS).max_header_list_size(16 * 1024);
    let io = TokioIo::new(Mended::new(stream));
    if let Err(error) = http2.serve_connection(io, TowerToHyperService::new(service)).await {
        tracing::debug!("a connection ended: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_made_anew_is_told_apart_also_with_the_number_of_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        assert_eq!(identity(&path), None);
        let mut seen: Vec<Identity> = Vec::new();
        for _ in 0..20 {
            // As after `kill -9`: the file is still there, and nobody answers on it.
            drop(bind(&path).unwrap());
            let now = identity(&path).unwrap();
            assert!(!seen.contains(&now), "{now:?} among {seen:?}");
            seen.push(now);
            // The clock of file times ticks some hundred times a second; no program starts again within a tick.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let kept = bind(&path).unwrap();
        let before = identity(&path);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(identity(&path), before, "another mode is the same socket");
        drop(kept);
    }
}
