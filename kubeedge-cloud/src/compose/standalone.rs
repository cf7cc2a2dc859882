//! The embedded API server: its key material, its administrator's kubeconfig, and the client that cloudcore uses.

use std::{
    fs,
    io::Write,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use kubeedge_actors::{
    apiserver::{ApiServer, Config, ISSUER, Listen, WhereServed, write_kubeconfig},
    cloudstream::API_SERVER_USER,
    identity::{
        CertificateAuthority, ClientAuth, ServerCredentials, ServiceAccountTokens, issued_client_config, system_clock,
    },
    program::abort_when_blocked,
    route::own_address,
    store::Store,
    system::{Ports, System},
};
use ring::rand::{SecureRandom, SystemRandom};

use crate::config::{AdvertiseAddress, CloudCore, Standalone};

/// How long the API server may take to read its objects and listen.
const UP_WITHIN: Duration = Duration::from_secs(60);

/// Starts the API server, writes `<data dir>/kubeconfig`, and says how a client reaches it with an administrator's rights.
pub(super) async fn start(
    config: &CloudCore,
    authority: &Arc<CertificateAuthority>,
    server: &ServerCredentials,
    store: Store,
) -> Result<(System, kube::Config)> {
    let data = &config.standalone.data_dir;
    let tls = server.server_config(ClientAuth::None, &[b"http/1.1"])?;
    let token = admin_token(&data.join("pki").join("admin-token"))?;
    let accounts = ServiceAccountTokens::load_or_create(&data.join("pki").join("service-account.key"), ISSUER)?;
    let listen = Listen::Tls { address: config.standalone.socket(), config: Arc::new(tls) };
    let ca = authority.certificate_pem().to_owned();
    let mut settings = Config::new(store, listen, token.clone(), ca.clone());
    settings.service_account_tokens = Some(Arc::new(accounts));
    settings.service_range = config.standalone.service_cluster_ip_range.unwrap_or_default();
    settings.advertise = advertised(&config.standalone);
    // What the stream gateway knows this API server by.
    let client = authority.issue_client(API_SERVER_USER, "kubeedge", SystemTime::now())?;
    let kubelet_client = issued_client_config(authority.certificate().clone(), &client, system_clock())?;
    settings.kubelet_client = Some(Arc::new(kubelet_client));
    // A port in use is an error of the start that names it, not a component that fails again and again.
    drop(super::listen("the API server", "standalone", "port", (config.standalone.address, config.standalone.port))?);
    // A system of its own: it is up before the controllers start, and stops after their last write.
    let system = System::builder("standalone")
        .when_blocked(abort_when_blocked)
        .component(move |_: &Ports| ApiServer::new(settings.clone()))
        .asks::<WhereServed>()
        .start()?;
    let where_served = system.port::<WhereServed>();
    let address = tokio::select! {
        served = where_served.ask(WhereServed, UP_WITHIN) => served?.context("the API server does not listen")?,
        (component, exit) = system.failed() => bail!("{component} {exit}"),
    };
    let host = if address.ip().is_unspecified() { "127.0.0.1".into() } else { address.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let url = format!("https://{host}:{}", address.port());
    let kubeconfig = data.join("kubeconfig");
    write_kubeconfig(&kubeconfig, &url, &ca, &token).with_context(|| format!("write {}", kubeconfig.display()))?;
    tracing::info!(%url, kubeconfig = %kubeconfig.display(), "the administrator's kubeconfig is written");

    let read = kube::config::Kubeconfig::read_from(&kubeconfig)?;
    Ok((system, kube::Config::from_custom_kubeconfig(read, &Default::default()).await?))
}

/// Where pods and nodes reach the API server: as the configuration says, or where it listens; `None` where that is every
/// address and this machine has none of its own.
pub(super) fn advertised(standalone: &Standalone) -> Option<IpAddr> {
    match standalone.advertise_address {
        Some(AdvertiseAddress(address)) => Some(address),
        None if standalone.address.is_unspecified() => own_address(),
        None => Some(standalone.address),
    }
}

/// The names by which pods know the API server, and the address of its Service.
pub(super) fn service_names(standalone: &Standalone) -> (Vec<String>, Vec<IpAddr>) {
    let service = "kubernetes.default.svc";
    let names = ["kubernetes", "kubernetes.default", service, "kubernetes.default.svc.cluster.local"];
    let range = standalone.service_cluster_ip_range.unwrap_or_default();
    let addresses = std::iter::once(range.first().into()).chain(advertised(standalone)).collect();
    (names.map(str::to_owned).to_vec(), addresses)
}

/// The administrator's bearer token: 32 random bytes in hexadecimal, made once.
fn admin_token(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(token) if token.trim().len() >= 32 => return Ok(token.trim().to_owned()),
        Ok(_) => bail!("{} holds no token: remove it, and a new one is made", path.display()),
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
