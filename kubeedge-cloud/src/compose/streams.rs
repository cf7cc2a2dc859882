//! The gateway to the logs at the edge: its listener, whom it lets in, and how nodes name it.

use std::sync::Arc;

use anyhow::{Context, Result};
use kubeedge_actors::{
    cloudstream::CloudStreamConfig,
    edgecontroller::StreamGateway,
    identity::{CertificateAuthority, ClientAuth, ServerCredentials},
    route::own_address,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::config::CloudCore;

/// Binds the gateway's port; `None` where it is switched off or what it needs is.
pub(super) fn prepare(
    config: &CloudCore,
    authority: &CertificateAuthority,
    server: &ServerCredentials,
) -> Result<Option<(CloudStreamConfig, StreamGateway)>> {
    let modules = &config.modules;
    let settings = &modules.cloud_stream;
    if !(settings.enable && modules.cloud_hub.enable && modules.edge_controller.enable) {
        return Ok(None);
    }
    let clients = ClientAuth::Optional(client_authority(config, authority)?);
    let tls = server.server_config(clients, &[b"http/1.1"])?;
    let listener = super::listen(
        "the stream gateway",
        "modules.cloudStream",
        "streamPort",
        (settings.address, settings.stream_port),
    )?;
    let port = listener.local_addr()?.port();
    let gateway = StreamGateway { host: host(config), port };
    tracing::info!(host = gateway.host, port, "the stream gateway is served");
    Ok(Some((CloudStreamConfig { listener: Arc::new(listener), tls: Arc::new(tls) }, gateway)))
}

/// Whose certificates the gateway takes from its clients.
fn client_authority(config: &CloudCore, own: &CertificateAuthority) -> Result<CertificateDer<'static>> {
    let file = &config.modules.cloud_stream.tls_stream_ca_file;
    if config.standalone.enable || file.as_os_str().is_empty() || !file.exists() {
        return Ok(own.certificate().clone());
    }
    CertificateDer::from_pem_file(file)
        .with_context(|| format!("modules.cloudStream.tlsStreamCAFile {}", file.display()))
}

/// By which name or address the API server reaches the gateway; its certificate is for all of these.
fn host(config: &CloudCore) -> String {
    let (hub, address) = (&config.modules.cloud_hub, config.modules.cloud_stream.address);
    if !address.is_unspecified() {
        return address.to_string();
    }
    let advertised = hub.advertise_address.first().map(ToString::to_string).or_else(|| hub.dns_names.first().cloned());
    advertised
        .or_else(|| own_address().map(|address| address.to_string()))
        .unwrap_or_else(|| std::net::Ipv4Addr::LOCALHOST.to_string())
}
