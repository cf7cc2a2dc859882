//! How ServiceBus and the views are served, and what ServiceBus may call.

use std::{net::TcpListener, path::Path, sync::Arc};

use anyhow::{Context, Result, anyhow, bail};
use kubeedge_actors::{
    servicebus::{ServiceBusConfig, allow::Allow},
    system::Observed,
    views::ViewsConfig,
    web::{server_tls, tokens::Tokens},
};

use crate::config::{ServiceBus, Views};

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
    fn a_certificate_is_whole_or_left_out_and_a_list_names_services() {
        let good = ServiceBus { allow: vec!["plc.local:80".parse().unwrap()], ..ServiceBus::default() };
        assert!(super::settings(&good).unwrap().allow.check("plc.local:80").is_ok());
        let half = ServiceBus { tls_cert_file: "/a".into(), ..ServiceBus::default() };
        assert!(super::settings(&half).err().unwrap().to_string().contains("belong together"));
        let missing = ServiceBus { tls_private_key_file: "/nowhere/key".into(), ..half };
        assert!(format!("{:#}", super::settings(&missing).err().unwrap()).contains("/a"));
    }
}
