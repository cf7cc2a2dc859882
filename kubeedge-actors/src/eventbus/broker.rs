//! The broker of our own, for an edge where no other runs: the crate `mqtt5`. It starts only when the mode asks for it.
//!
//! What listens is ours: the crate's own server brings its bridges, configuration files, passwords, tokens and TLS into
//! the program, and nothing here asks for them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mqtt5::broker::{
    AllowAllAuthProvider, AuthProvider, BrokerConfig, DynamicStorage, MemoryBackend, ResourceLimits, ResourceMonitor,
    StorageBackend, client_handler::ClientHandler, router::MessageRouter, storage::QueueLimits,
    sys_topics::BrokerStats, transport::BrokerTransport,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::broadcast,
};
use tokio_util::task::AbortOnDropHandle;

use super::client::MAX_PAYLOAD;

/// Clients at a time.
const CLIENTS: usize = 256;
/// Bytes that may wait for one client that is away or slow.
const QUEUED_BYTES: usize = 4 * 1024 * 1024;
/// Sessions are kept this long.
const SESSIONS: Duration = Duration::from_secs(24 * 60 * 60);
/// Messages that are kept for who subscribes later.
const RETAINED: usize = 4096;
/// Connections a second, and from one address: as the crate's own server has it.
const CONNECTIONS: u32 = 10_000;
/// Between two looks for sessions and messages whose time is over, and for counters of clients that are away.
const SESSION_SWEEP: Duration = Duration::from_secs(60 * 60);
const COUNTER_SWEEP: Duration = Duration::from_secs(60);
/// After a connection that could not be accepted, as where no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where it listens, and what it keeps.
#[derive(Clone, Debug)]
pub struct EmbeddedBroker {
    /// Its address.
    pub address: SocketAddr,
    /// Messages that wait for one client: so many on their way to it, and as many beyond, of which the oldest go.
    pub queue: usize,
}

/// Binds and serves until dropped. Sessions and retained messages live as long as it does.
pub async fn start(config: EmbeddedBroker) -> Result<(SocketAddr, AbortOnDropHandle<()>), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", config.address);
    let listener = TcpListener::bind(config.address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let serving = tokio::spawn(Serving::new(config.queue).run(listener));
    Ok((address, AbortOnDropHandle::new(serving)))
}

/// What the connections share.
struct Serving {
    config: Arc<BrokerConfig>,
    router: Arc<MessageRouter>,
    everybody: Arc<dyn AuthProvider>,
    storage: Arc<DynamicStorage>,
    stats: Arc<BrokerStats>,
    monitor: Arc<ResourceMonitor>,
    /// Nothing is sent: connections end when it is dropped.
    end: broadcast::Sender<()>,
}

impl Serving {
    fn new(queue: usize) -> Self {
        let config = BrokerConfig::new()
            .with_max_clients(CLIENTS)
            .with_session_expiry(SESSIONS)
            // A little more than what is taken, so that who sends too much hears why.
            .with_max_packet_size(16 * MAX_PAYLOAD)
            .with_max_retained_messages(RETAINED)
            // On their way to a client that is there, before any are kept for it: then who publishes waits, two seconds at
            // most. The crate's own 10,000 are some 7 MB a client.
            .with_client_channel_capacity(queue)
            .with_sys_topics_enabled(false);
        let limits = QueueLimits { max_messages: queue, max_bytes: QUEUED_BYTES };
        let storage = Arc::new(DynamicStorage::Memory(MemoryBackend::with_queue_limits(limits)));
        let router = MessageRouter::with_storage(Arc::clone(&storage)).with_retained_limits(RETAINED, 0);
        let monitor = ResourceMonitor::new(ResourceLimits {
            max_connections: CLIENTS,
            max_connections_per_ip: CONNECTIONS as usize,
            // A client is not slowed down.
            max_message_rate_per_client: 0,
            max_bandwidth_per_client: 0,
            max_connection_rate: CONNECTIONS,
            rate_limit_window: Duration::from_secs(1),
        });
        Self {
            config: Arc::new(config),
            router: Arc::new(router),
            everybody: Arc::new(AllowAllAuthProvider),
            storage,
            stats: Arc::new(BrokerStats::new()),
            monitor: Arc::new(monitor),
            end: broadcast::channel(1).0,
        }
    }

    async fn run(self, listener: TcpListener) {
        let mut sessions = tokio::time::interval(SESSION_SWEEP);
        let mut counters = tokio::time::interval(COUNTER_SWEEP);
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, from)) => self.connected(stream, from).await,
                    Err(error) => {
                        tracing::error!("the embedded broker takes no connection: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                _ = sessions.tick() => {
                    if let Err(error) = self.storage.cleanup_expired().await {
                        tracing::error!("the embedded broker keeps what is out of date: {error}");
                    }
                    self.router.sweep_sessions().await;
                }
                _ = counters.tick() => self.monitor.cleanup_expired_windows().await,
            }
        }
    }

    async fn connected(&self, stream: TcpStream, from: SocketAddr) {
        if !self.monitor.can_accept_connection(from.ip()).await {
            tracing::warn!(%from, "the embedded broker has as many clients as it takes");
            return;
        }
        // A message is small, and waits for no other.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::warn!(%from, "a connection to the embedded broker may be slow: {error}");
        }
        let client = ClientHandler::new(
            BrokerTransport::tcp(stream),
            from,
            Arc::clone(&self.config),
            Arc::clone(&self.router),
            Arc::clone(&self.everybody),
            Some(Arc::clone(&self.storage)),
            Arc::clone(&self.stats),
            Arc::clone(&self.monitor),
            self.end.subscribe(),
        );
        tokio::spawn(async move {
            match client.run().await {
                Ok(()) => {}
                Err(error) if error.is_normal_disconnect() => {}
                Err(error) => tracing::warn!(%from, "a client of the embedded broker: {error}"),
            }
        });
    }
}
