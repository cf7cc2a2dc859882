//! How MetaServer, ServiceBus and the views are served, and what ServiceBus may call.

use std::{net::TcpListener, path::Path, sync::Arc};

use anyhow::{Context, Result, anyhow, bail};
use kubeedge_actors::{
    metaserver::{MetaServerConfig, Versions},
    servicebus::{ServiceBusConfig, allow::Allow},
    system::Observed,
    views::ViewsConfig,
    web::{server_tls, tokens::Tokens},
};
use kubeedge_proto::NodeName;

use crate::config::{MetaServer, ServiceBus, Views};

/// TLS by the files that a module names; `None` where it names none.
fn files(module: &str, certificate: &Path, key: &Path) -> Result<Option<Arc<rustls::ServerConfig>>> {
    match (certificate.as_os_str().is_empty(), key.as_os_str().is_empty()) {
        (true, true) => Ok(None),
        (false, false) => {
            let tls = server_tls(certificate, key);
            Ok(Some(Arc::new(tls.with_context(|| format!("modules.{module}.tlsCertFile and tlsPrivateKeyFile"))?)))
        }
        _ => bail!("modules.{module}: tlsCertFile and tlsPrivateKeyFile belong together"),
    }
}

/// Binds the port of the views; `None` where they are switched off.
pub(super) fn views(settings: &Views, observed: &Observed) -> Result<Option<ViewsConfig>> {
    if !settings.enable {
        return Ok(None);
    }
    let tls = files("views", &settings.tls_cert_file, &settings.tls_private_key_file)?;
    let tokens = match settings.token_file.as_os_str().is_empty() {
        true => None,
        false => Some(Tokens::load(&settings.token_file).context("modules.views.tokenFile")?),
    };
    if tokens.is_none() && !settings.address.is_loopback() {
        bail!(
            "modules.views.address is {}, which others reach: name a file of tokens in modules.views.tokenFile, or \
             listen on 127.0.0.1",
            settings.address
        );
    }
    let listener = TcpListener::bind((settings.address, settings.port)).with_context(|| {
        format!("cannot listen on {}:{} for modules.views: set its port to a free one", settings.address, settings.port)
    })?;
    tracing::info!(address = %listener.local_addr()?, tls = tls.is_some(), "the views are served");
    Ok(Some(ViewsConfig { listener: Arc::new(listener), tls, tokens, observed: observed.clone() }))
}

/// Where the local API is served; `None` where it is switched off. `life` is the store's.
pub(super) fn meta_server(settings: &MetaServer, node: &NodeName, life: u64) -> Result<Option<MetaServerConfig>> {
    if !settings.enable {
        return Ok(None);
    }
    if !settings.server.ip().is_loopback() {
        bail!(
            "modules.metaManager.metaServer.server is {}, which others reach, and would give this node's Secrets to all of \
             them: choose an address of the loopback interface, such as 127.0.0.1:10550",
            settings.server
        );
    }
    Ok(Some(MetaServerConfig { listen: settings.server, node: node.clone(), versions: Versions::of_life(life) }))
}

pub(super) fn settings(settings: &ServiceBus) -> Result<ServiceBusConfig> {
    let tls = files("serviceBus", &settings.tls_cert_file, &settings.tls_private_key_file)?;
    if tls.is_none() && !settings.server.is_loopback() {
        tracing::warn!(
            "modules.serviceBus.server is not on the loopback interface: whoever reaches it may call the cloud"
        );
    }
    let allow: Vec<String> = settings.allow.iter().map(ToString::to_string).collect();
    let allow = Allow::parse(&allow).map_err(|why| anyhow!("modules.serviceBus.allow: {why}"))?;
    Ok(ServiceBusConfig {
        listen: (settings.server, settings.port).into(),
        tls,
        within: settings.timeout.duration(),
        allow,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_api_is_for_this_machine_only() {
        let node = "edge-1".parse().unwrap();
        let at = |server: &str| MetaServer { enable: true, server: server.parse().unwrap() };
        assert!(super::meta_server(&MetaServer::default(), &node, 1).unwrap().is_none());
        assert!(super::meta_server(&at("[::1]:10550"), &node, 1).unwrap().is_some());
        for others in ["0.0.0.0:10550", "192.0.2.1:10550", "[::]:10550"] {
            assert!(
                super::meta_server(&at(others), &node, 1).err().unwrap().to_string().contains("loopback"),
                "{others}"
            );
        }
    }

    #[test]
    fn a_certificate_is_whole_or_left_out_and_a_list_names_services() {
        let good = ServiceBus { allow: vec!["plc.local:80".parse().unwrap()], ..ServiceBus::default() };
        assert!(super::settings(&good).unwrap().allow.check("plc.local:80").is_ok());
        let half = ServiceBus { tls_cert_file: "/a".into(), ..ServiceBus::default() };
        assert!(super::settings(&half).err().unwrap().to_string().contains("belong together"));
        let missing = ServiceBus { tls_private_key_file: "/nowhere/key".into(), ..half };
        assert!(format!("{:#}", super::settings(&missing).err().unwrap()).contains("/a"));
    }
}
