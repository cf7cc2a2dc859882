//! The server as a value: started from a configuration, stopped in order.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use actix_http::error::DispatchError;
use actix_http::{HttpService, Protocol};
use actix_service::{ServiceFactoryExt as _, fn_service, map_config};
use actix_web::dev::{AppConfig, ServerHandle};
use actix_web::{App, web};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::task::TaskTracker;

use super::addresses::ServiceRange;
use super::auth::AdminToken;
use super::first_head::FirstHead;
use super::kinds;
use super::storage::{Disk, Storage};
use super::{Api, clock, controllers, http};
use crate::identity::{IdentityError, ServiceAccountTokens};
use crate::kubeapi::http::listen;
use crate::store::{Store, StoreError};

/// Where the server listens.
#[derive(Clone)]
pub enum Listen {
    /// TLS, HTTP/1.1.
    Tls {
        /// Port 0 takes a free one.
        address: SocketAddr,
        /// Certificate and key.
        config: Arc<rustls::ServerConfig>,
    },
    /// Without TLS on 127.0.0.1, for tests: whoever reads the loopback interface reads the tokens.
    InsecureLoopback {
        /// Port 0 takes a free one.
        port: u16,
    },
}

/// What a server is started with.
#[derive(Clone)]
pub struct Config {
    /// Where the objects are kept.
    pub store: Store,
    /// Where it listens.
    pub listen: Listen,
    /// The administrator's bearer token.
    pub admin_token: String,
    /// PEM of the authority of the server's certificate: goes into `kube-root-ca.crt`.
    pub root_ca: String,
    /// Signs and checks the tokens of service accounts, with the issuer [`ISSUER`]. `None` makes a key that ends with
    /// the process, and every token with it.
    pub service_account_tokens: Option<Arc<ServiceAccountTokens>>,
    /// TLS to kubelets, with the client certificate that they know this server by; ALPN is left to it. `None`: logs are
    /// not served.
    pub kubelet_client: Option<Arc<rustls::ClientConfig>>,
    /// The addresses that Services get; the first is that of `default/kubernetes`. Changing it leaves the Services there are
    /// with what they have.
    pub service_range: ServiceRange,
    /// Where pods and nodes reach the API server: the endpoint of `default/kubernetes`. `None` is the address listened on,
    /// and no endpoint where that is every address.
    pub advertise: Option<IpAddr>,
    /// Watches open at the same time; one more is answered 429. A watch takes about 2 KB beside its connection.
    pub max_watches: usize,
    /// Threads that serve requests.
    pub workers: usize,
    /// Seconds since 1970.
    pub clock: fn() -> i64,
}

impl Config {
    /// Defaults: Services in 10.96.0.0/16, a token key that ends with the process, two workers, 4096 watches, the system's clock.
    pub fn new(store: Store, listen: Listen, admin_token: String, root_ca: String) -> Self {
        Self {
            store,
            listen,
            admin_token,
            root_ca,
            service_account_tokens: None,
            kubelet_client: None,
            service_range: ServiceRange::default(),
            advertise: None,
            max_watches: 4096,
            workers: 2,
            clock: clock::system,
        }
    }

    /// Objects in memory and plain HTTP on a free port of the loopback interface, for tests; the token is `admin`.
    pub fn in_memory() -> Self {
        let listen = Listen::InsecureLoopback { port: 0 };
        Self { workers: 1, ..Self::new(Store::in_memory(), listen, "admin".into(), String::new()) }
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The objects cannot be read.
    #[error("cannot read the API server's objects: {0}")]
    Store(#[from] StoreError),
    /// Reading them ended early.
    #[error("reading the API server's objects was interrupted: {0}")]
    Interrupted(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// A key for the tokens of service accounts cannot be made.
    #[error("cannot make a key for service account tokens: {0}")]
    Tokens(#[from] IdentityError),
    /// An administrator's token that anyone could guess.
    #[error("the administrator's token is empty: set one")]
    NoToken,
}

/// The issuer of service account tokens and their usual audience: Kubernetes' own name for its API server.
pub const ISSUER: &str = "https://kubernetes.default.svc";

/// Time that running requests get at a stop.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// Logs that are read and upgraded connections at the same time; one more is answered 429.
const MAX_STREAMS: usize = 512;
/// Connections a worker takes at most.
const MAX_CONNECTIONS: usize = 4096;
/// Time a client has to send the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Time TLS may take.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// What is left of a connection that is closed may take this long.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection may be idle between requests: that of a real API server.
const KEEP_ALIVE: Duration = Duration::from_secs(180);
fn tls_acceptor(config: &rustls::ServerConfig) -> TlsAcceptor {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

type Connection = FirstHead<Either<TlsStream<TcpStream>, TcpStream>>;

/// What HTTP is spoken on.
async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
) -> Result<(Connection, Protocol, Option<SocketAddr>), DispatchError> {
    let peer = stream.peer_addr().ok();
    stream.set_nodelay(true).map_err(DispatchError::Io)?;
    let stream = match tls {
        Some(tls) => {
            let accepted = tokio::time::timeout(TLS_TIMEOUT, tls.accept(stream)).await;
            Either::Left(accepted.map_err(|_| DispatchError::SlowRequestTimeout)?.map_err(DispatchError::Io)?)
        }
        None => Either::Right(stream),
    };
    Ok((FirstHead::new(stream), Protocol::Http1, peer))
}

/// The API server.
pub struct Server;

/// A running server.
pub struct Handle {
    address: SocketAddr,
    http: ServerHandle,
    /// Taken by the stop.
    tasks: Option<(JoinHandle<std::io::Result<()>>, controllers::Running)>,
    api: Arc<Api>,
}

impl Server {
    /// Loads the objects, listens, serves, and starts the controllers, on the current tokio runtime.
    pub async fn start(config: Config) -> Result<Handle, StartError> {
        if config.admin_token.is_empty() {
            return Err(StartError::NoToken);
        }
        let tokens = match config.service_account_tokens {
            Some(tokens) => tokens,
            None => Arc::new(ServiceAccountTokens::in_memory(ISSUER)?),
        };
        let disk = Disk::new(config.store.clone());
        let storage = tokio::task::spawn_blocking(move || Storage::open(kinds::kinds(), disk))
            .await
            .map_err(|error| StartError::Interrupted(error.to_string()))??;
        let (address, tls) = match &config.listen {
            Listen::Tls { address, config } => (*address, Some(tls_acceptor(config))),
            Listen::InsecureLoopback { port } => (SocketAddr::from((Ipv4Addr::LOCALHOST, *port)), None),
        };
        let failed = |source| StartError::Listen { address, source };
        let listener = listen(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let api = Arc::new(Api {
            storage,
            admin: AdminToken::new(&config.admin_token),
            root_ca: config.root_ca.clone(),
            clock: config.clock,
            tokens,
            service_range: config.service_range,
            watches: Arc::new(Semaphore::new(config.max_watches)),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            kubelet_client: config.kubelet_client.clone(),
            requests: TaskTracker::new(),
            counted: Default::default(),
            address,
        });
        let data = web::Data::new(api.clone());
        // As actix-web's own server, but for what stands between the connection and HTTP.
        let server = actix_server::Server::build()
            .workers(config.workers.max(1))
            .max_concurrent_connections(MAX_CONNECTIONS)
            .disable_signals()
            .listen("apiserver", listener, move || {
                let tls = tls.clone();
                let app = App::new().app_data(data.clone()).default_service(web::to(http::handle));
                let app = map_config(app, |()| AppConfig::default());
                let http = HttpService::build()
                    .client_request_timeout(HEAD_TIMEOUT)
                    .client_disconnect_timeout(DISCONNECT_TIMEOUT)
                    .keep_alive(KEEP_ALIVE)
                    // A client that closes its end is gone: a quiet log or watch ends with it, not with the next line.
                    .h1_allow_half_closed(false)
                    .local_addr(address)
                    .finish(app.map_err(|error: actix_web::Error| error.error_response()));
                fn_service(move |stream: TcpStream| connection(stream, tls.clone())).and_then(http)
            })
            .map_err(failed)?;
        let server = server.run();
        let http = server.handle();
        let serving = tokio::spawn(server);
        let controllers =
            controllers::start(&api, SocketAddr::new(config.advertise.unwrap_or(address.ip()), address.port()));
        controllers.bootstrapped().await;
        Ok(Handle { address, http, tasks: Some((serving, controllers)), api })
    }
}

impl Handle {
    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The resourceVersion of the last change.
    pub fn resource_version(&self) -> u64 {
        self.api.storage.resource_version()
    }

    /// Logs that are read and upgraded connections that are open.
    pub fn streams(&self) -> usize {
        MAX_STREAMS.saturating_sub(self.api.streams.available_permits())
    }

    /// Ends watches and controllers, lets running requests finish, and returns when nothing writes any more.
    pub async fn stop(mut self) {
        self.api.storage.closing().cancel();
        // A graceful stop of actix looks once a second whether its connections are gone. What counts here are the
        // answers: when the last is written, or its time is over, what is left are idle connections.
        self.http.pause().await;
        self.api.requests.close();
        if tokio::time::timeout(SHUTDOWN, self.api.requests.wait()).await.is_err() {
            tracing::warn!(requests = self.api.requests.len(), seconds = SHUTDOWN.as_secs(), "not waited for longer");
        }
        self.http.stop(false).await;
        if let Some((serving, controllers)) = self.tasks.take() {
            controllers.join().await;
            if let Err(error) = serving.await {
                tracing::error!(%error, "the API server did not end by itself");
            }
        }
        drop(self.api.storage.write().await);
    }
}

impl Drop for Handle {
    /// A server that nobody holds any more ends by itself, without waiting for its requests.
    fn drop(&mut self) {
        if self.tasks.is_some() {
            self.api.storage.closing().cancel();
            // The command is sent here; the future would only wait for its end.
            drop(self.http.stop(false));
        }
    }
}
