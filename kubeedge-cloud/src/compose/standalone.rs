//! The embedded API server: its key material, its administrator's kubeconfig, and the client that cloudcore uses.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path, sync::Arc};

use anyhow::{Context, Result};
use kubeedge_actors::{
    apiserver::{Config, Handle, ISSUER, Listen, Server, write_kubeconfig},
    identity::{
        CertificateAuthority, ClientAuth, IssuedCertificate, ServiceAccountTokens, server_config, system_clock,
    },
    store::Store,
};
use ring::rand::{SecureRandom, SystemRandom};

use crate::config::CloudCore;

/// The running API server.
pub(super) struct ApiServer(Handle);

impl ApiServer {
    /// Finishes what is being answered and ends the watches.
    pub(super) async fn stop(self) {
        self.0.stop().await;
    }
}

/// Starts the API server, writes `<data dir>/kubeconfig`, and gives a client with an administrator's rights.
pub(super) async fn start(
    config: &CloudCore,
    authority: &Arc<CertificateAuthority>,
    server: &IssuedCertificate,
    store: Store,
) -> Result<(ApiServer, kube::Client)> {
    let data = &config.standalone.data_dir;
    let tls = server_config(server.chain(), server.key(), ClientAuth::None, &[b"http/1.1"], system_clock())?;
    let token = admin_token(&data.join("pki").join("admin-token"))?;
    let accounts = ServiceAccountTokens::load_or_create(&data.join("pki").join("service-account.key"), ISSUER)?;
    let listen = Listen::Tls { address: config.standalone.socket(), config: Arc::new(tls) };
    let ca = authority.certificate_pem().to_owned();
    let mut settings = Config::new(store, listen, token.clone(), ca.clone());
    settings.service_account_tokens = Some(Arc::new(accounts));
    let handle = Server::start(settings).await?;

    let address = handle.address();
    let host = if address.ip().is_unspecified() { "127.0.0.1".into() } else { address.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let url = format!("https://{host}:{}", address.port());
    let kubeconfig = data.join("kubeconfig");
    write_kubeconfig(&kubeconfig, &url, &ca, &token).with_context(|| format!("write {}", kubeconfig.display()))?;
    tracing::info!(%url, kubeconfig = %kubeconfig.display(), "the API server is up");

    let read = kube::config::Kubeconfig::read_from(&kubeconfig)?;
    let client = kube::Client::try_from(kube::Config::from_custom_kubeconfig(read, &Default::default()).await?)?;
    Ok((ApiServer(handle), client))
}

/// The administrator's bearer token: 32 random bytes in hexadecimal, made once.
fn admin_token(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(token) if token.trim().len() >= 32 => return Ok(token.trim().to_owned()),
        Ok(_) => anyhow::bail!("{} holds no token: remove it, and a new one is made", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    }
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("the operating system gives no random bytes"))?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = made.and_then(|mut file| file.write_all(token.as_bytes()).and_then(|()| file.sync_all()));
    written.with_context(|| format!("write {}", path.display()))?;
    Ok(token)
}
