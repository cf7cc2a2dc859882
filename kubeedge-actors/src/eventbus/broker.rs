//! The broker of our own, for an edge where no other runs: the crate `mqtt5`. It starts only when the mode asks for it.

use std::{net::SocketAddr, time::Duration};

use mqtt5::broker::{
    BrokerConfig, MqttBroker,
    config::{StorageBackend, StorageConfig},
};
use tokio_util::task::AbortOnDropHandle;

use super::client::MAX_PAYLOAD;

/// Clients at a time.
const CLIENTS: usize = 256;
/// Bytes that may wait for one client that is away or slow.
const QUEUED_BYTES: usize = 4 * 1024 * 1024;
/// Sessions are kept this long.
const SESSIONS: Duration = Duration::from_secs(24 * 60 * 60);

/// Where it listens, and what it keeps.
#[derive(Clone, Debug)]
pub struct EmbeddedBroker {
    /// Its address.
    pub address: SocketAddr,
    /// Messages that wait for one client.
    pub queue: usize,
}

/// Binds and serves until dropped. Sessions and retained messages live as long as it does.
pub async fn start(config: EmbeddedBroker) -> Result<(SocketAddr, AbortOnDropHandle<()>), String> {
    let storage = StorageConfig::new()
        .with_backend(StorageBackend::Memory)
        .with_max_queued_messages_per_client(config.queue)
        .with_max_queued_bytes_per_client(QUEUED_BYTES);
    let settings = BrokerConfig::new()
        .with_bind_addresses(vec![config.address])
        .with_max_clients(CLIENTS)
        .with_session_expiry(SESSIONS)
        // A little more than what is taken, so that who sends too much hears why.
        .with_max_packet_size(16 * MAX_PAYLOAD)
        .with_max_retained_messages(4096)
        .with_sys_topics_enabled(false)
        .with_storage(storage);
    let failed = |error: mqtt5::MqttError| format!("{}: {error}", config.address);
    let mut broker = MqttBroker::with_config(settings).await.map_err(failed)?;
    let address = broker.local_addr().unwrap_or(config.address);
    let serving = tokio::spawn(async move {
        if let Err(error) = broker.run().await {
            tracing::error!("the embedded broker has ended: {error}");
        }
    });
    Ok((address, AbortOnDropHandle::new(serving)))
}
