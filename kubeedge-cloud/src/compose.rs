//! Which actors run, with which settings.

mod authority;
#[cfg(feature = "standalone")]
mod standalone;
mod streams;
mod tokens;

use std::{
    fs::DirBuilder,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail};
use futures_util::future::select_all;
use kubeedge_actors::{
    admission::{Admission, AdmissionConfig},
    cloudhub::{CloudHub, CloudHubConfig, EnrolmentConfig, enrolment::EnrolmentService},
    cloudstream::CloudStream,
    devicecontroller::{DeviceController, pace::Rates},
    dynamiccontroller::{DynamicController, DynamicControllerConfig},
    edgecontroller::EdgeController,
    identity::{CertificateAuthority, ClientAuth, Registrar, Revocations, ServerCredentials, Tokens},
    link,
    program::{StopSignals, abort_when_blocked, raise_descriptor_limit},
    route::own_address,
    router::{Router, RouterConfig, outbound::Outbound},
    store::{Options, Store},
    system::{Exit, Observed, Ports, System},
    views::{ViewsConfig, cloud::CloudViews},
    web::tokens::Tokens as BearerTokens,
};

use tokio_util::task::AbortOnDropHandle;

use crate::{
    config::{CloudCore, StatusWrites},
    control::Control,
};

/// How long an orderly stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Runs cloudcore until it is told to stop.
pub fn run(config: CloudCore) -> Result<()> {
    actix_rt::System::new().block_on(async {
        // First of all: a signal during the start ends it in order, too.
        let mut signals = StopSignals::listen().context("catch signals")?;
        private_folder(&config.standalone.data_dir)?;
        room_for(config.modules.cloud_hub.node_limit);
        let running = tokio::select! {
            running = start(&config) => running?,
            signal = signals.next() => bail!("{signal} while starting"),
        };
        let failed = select_all(running.systems.iter().map(|system| Box::pin(system.failed())));
        let outcome = tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "stopping");
                Ok(())
            }
            ((component, exit), ..) = failed => Err(anyhow::anyhow!("{component} {exit}: it does not come back by restarts")),
        };
        tokio::select! {
            stopped = running.stop() => stopped.and(outcome),
            signal = signals.next() => bail!("{signal} while stopping: not everything was stopped in order"),
        }
    })
}

/// What runs.
struct Running {
    /// In the order in which they stop.
    systems: Vec<System>,
    control: Control,
    store: Store,
    /// The server's certificate is issued anew before it ends.
    _renewing: AbortOnDropHandle<()>,
}

/// Builds the system.
async fn start(config: &CloudCore) -> Result<Running> {
    let data = &config.standalone.data_dir;
    let now = SystemTime::now();
    let hub = &config.modules.cloud_hub;
    let cluster = if config.standalone.enable { None } else { Some(cluster(config).await?) };
    let client = cluster.clone().map(kube::Client::try_from).transpose()?;
    let authority = Arc::new(authority::load(config, client.as_ref(), now).await?);
    let revocations = Revocations::load(&data.join("pki").join("revoked-nodes.json"))?;
    let registrar = Registrar::new(authority.clone(), revocations.clone(), hub.certificate_grace());
    let opened = Store::open(&data.join("store"), Options::default())?;
    if let Some(aside) = &opened.set_aside {
        let lost = match config.standalone.enable {
            true => "join tokens have to be made and all objects of the embedded API server applied anew",
            false => "join tokens have to be made anew",
        };
        let path = aside.path.display();
        tracing::error!(%path, "the store could not be used and was set aside: {lost}: {}", aside.why);
    }
    let store = opened.store;
    let server = server_credentials(config, &authority, now)?;
    // Before the API server is there: once that answers, so should everything else.
    let router = router(config, &server)?;

    #[cfg(feature = "standalone")]
    let (api_server, cluster) = match cluster {
        Some(cluster) => (None, cluster),
        None => {
            let (api_server, cluster) = standalone::start(config, &authority, &server, store.clone()).await?;
            (Some(api_server), cluster)
        }
    };
    #[cfg(not(feature = "standalone"))]
    let (api_server, cluster) = match cluster {
        Some(cluster) => (None, cluster),
        None => bail!(
            "this cloudcore was built without the feature `standalone`: name a cluster in kubeAPIConfig.kubeConfig"
        ),
    };

    let client = match client {
        Some(client) => client,
        None => kube::Client::try_from(cluster.clone())?,
    };

    let tokens = Tokens::new(&store);
    let mut builder = System::builder("cloudcore").when_blocked(abort_when_blocked);
    let streams = streams::prepare(config, &authority, &server)?;
    let devices = &config.modules.device_controller;
    if devices.enable {
        let StatusWrites { per_node, total } = devices.status_writes;
        let (client, rates) = (client.clone(), Rates { per_node, total, ..Rates::default() });
        builder = builder.component(move |ports: &Ports| DeviceController::new(client.clone(), rates, ports));
    }
    let dynamic = &config.modules.dynamic_controller;
    if dynamic.enable {
        // Whoever brings a token of its own asks with nothing else.
        // Who asked tries again, or not: a write that took effect and seems to have failed is not made twice.
        let mut own = cluster;
        own.default_retry = false;
        let mut bare = own.clone();
        bare.auth_info = kube::config::AuthInfo::default();
        let settings = DynamicControllerConfig {
            grants: Arc::new(dynamic.grants.clone()),
            client: kube::Client::try_from(own)?,
            without_credentials: kube::Client::try_from(bare)?,
        };
        builder = builder.component(move |ports: &Ports| DynamicController::new(settings.clone(), ports));
    }
    if let Some(settings) = router {
        let client = client.clone();
        builder = builder.component(move |ports: &Ports| Router::new(client.clone(), settings.clone(), ports));
    }
    let observed = Observed::default();
    if let Some(settings) = views(config, &server, &observed)? {
        let client = client.clone();
        builder = builder.component(move |ports: &Ports| CloudViews::new(client.clone(), settings.clone(), ports));
    }
    if config.modules.edge_controller.enable {
        let gateway = streams.as_ref().map(|(_, gateway)| gateway.clone());
        builder = builder
            .component(move |ports: &Ports| EdgeController::new(client.clone(), ports).with_gateway(gateway.clone()));
    }
    if let Some((stream_config, _)) = streams {
        builder = builder.component(move |ports: &Ports| CloudStream::new(stream_config.clone(), ports));
    }
    let webhook = &config.modules.admission;
    if webhook.enable {
        let listener = listen("the webhook", "modules.admission", "port", (webhook.address, webhook.port))?;
        tracing::info!(address = %listener.local_addr()?, "the admission webhook is served");
        let tls = Arc::new(server.server_config(ClientAuth::None, &[])?);
        let settings = AdmissionConfig { listener: Arc::new(listener), tls };
        builder = builder.component(move |_: &Ports| Admission::new(settings.clone()));
    }
    if hub.enable {
        let link_listener =
            listen("the link", "modules.cloudHub.websocket", "port", (hub.websocket.address, hub.websocket.port))?;
        let link_address = format!(":{}", link_listener.local_addr()?.port());
        let tls = |clients| server.server_config(clients, &[]);
        let enrolment = if hub.https.enable {
            let listener = listen("enrolment", "modules.cloudHub.https", "port", (hub.https.address, hub.https.port))?;
            tracing::info!(address = %listener.local_addr()?, "enrolment is served");
            Some(EnrolmentConfig {
                listener: Arc::new(listener),
                tls: Arc::new(tls(registrar.enrolment_clients()?)?),
                service: Arc::new(EnrolmentService::new(registrar.clone(), tokens.clone(), link_address)),
            })
        } else {
            None
        };
        tracing::info!(address = %link_listener.local_addr()?, "the link is served");
        let hub_config = CloudHubConfig {
            listener: Arc::new(link_listener),
            tls: Arc::new(tls(registrar.link_clients()?)?),
            node_limit: hub.node_limit as usize,
            link: link::Config { dead_after: hub.dead_after(), ..link::Config::default() },
            enrolment,
            registrar: Some(registrar),
        };
        builder = builder.component(move |ports: &Ports| CloudHub::new(hub_config.clone(), ports));
    }
    let system = builder.start()?;
    observed.set(&system);
    let desk = tokens::Desk::new(tokens, authority.ca_hash());
    let control = Control::start(data, Arc::new(desk), revocations)?;
    let renewing = AbortOnDropHandle::new(tokio::spawn(server.keep_fresh()));
    tracing::info!(data_dir = %data.display(), "cloudcore runs");
    let systems = std::iter::once(system).chain(api_server).collect();
    Ok(Running { systems, control, store, _renewing: renewing })
}

impl Running {
    /// Stops in order: no new work, queues drained, the store last.
    async fn stop(self) -> Result<()> {
        let control = self.control.stop().await;
        let mut exits = Vec::new();
        for system in &self.systems {
            exits.extend(system.stop(STOP_LIMIT).await);
        }
        self.store.close().await?;
        control?;
        for (component, exit) in exits {
            match exit {
                Exit::Done | Exit::Stopped => tracing::info!(component, "{exit}"),
                _ => bail!("{component}: {exit}"),
            }
        }
        Ok(())
    }
}

/// A certificate for every name and address that nodes may know this cloud by.
fn server_credentials(
    config: &CloudCore,
    authority: &Arc<CertificateAuthority>,
    now: SystemTime,
) -> Result<ServerCredentials> {
    let hub = &config.modules.cloud_hub;
    let mut addresses: Vec<IpAddr> = vec![std::net::Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()];
    addresses.extend(hub.advertise_address.iter().copied());
    addresses.extend(own_address());
    let listened = [config.modules.cloud_stream.address, config.modules.router.address, config.modules.views.address];
    addresses.extend(listened.into_iter().filter(|address| !address.is_unspecified()));
    let mut names = vec!["localhost".to_owned()];
    names.extend(hub.dns_names.iter().cloned());
    #[cfg(feature = "standalone")]
    if config.standalone.enable {
        let (service, reached) = standalone::service_names(&config.standalone);
        names.extend(service);
        addresses.extend(reached);
    }
    let subjects = names
        .iter()
        .map(|name| rustls_pki_types::ServerName::try_from(name.clone()).context(format!("host name {name:?}")))
        .chain(addresses.iter().map(|address| Ok(rustls_pki_types::ServerName::IpAddress((*address).into()))))
        .collect::<Result<Vec<_>>>()?;
    Ok(ServerCredentials::new(authority.clone(), subjects, now)?)
}

/// Binds the REST server's port; `None` where there is none or it could reach no node.
fn router(config: &CloudCore, server: &ServerCredentials) -> Result<Option<RouterConfig>> {
    let settings = &config.modules.router;
    if !(settings.enable && config.modules.cloud_hub.enable) {
        return Ok(None);
    }
    let tls = if settings.tls { Some(Arc::new(server.server_config(ClientAuth::None, &[])?)) } else { None };
    let tokens =
        settings.token_file.as_deref().map(BearerTokens::load).transpose().context("modules.router.tokenFile")?;
    let outbound = Outbound::new(settings.tls_ca_file.clone())?;
    let listener = listen("the router", "modules.router", "port", (settings.address, settings.port))?;
    tracing::info!(address = %listener.local_addr()?, tls = tls.is_some(), "the router's REST server is served");
    if tokens.is_none() && !settings.address.is_loopback() {
        tracing::warn!("whoever reaches the router's port may send to nodes: modules.router.tokenFile asks for tokens");
    }
    let within = settings.rest_timeout.duration();
    Ok(Some(RouterConfig { listener: Arc::new(listener), tls, tokens, within, outbound }))
}

/// Binds the port of the views; `None` where they are switched off.
fn views(config: &CloudCore, server: &ServerCredentials, observed: &Observed) -> Result<Option<ViewsConfig>> {
    let settings = &config.modules.views;
    if !settings.enable {
        return Ok(None);
    }
    let tls = if settings.tls { Some(Arc::new(server.server_config(ClientAuth::None, &[])?)) } else { None };
    let tokens =
        settings.token_file.as_deref().map(BearerTokens::load).transpose().context("modules.views.tokenFile")?;
    if tokens.is_none() && !settings.address.is_loopback() {
        bail!(
            "modules.views.address is {}, which others reach: name a file of tokens in modules.views.tokenFile, or              listen on 127.0.0.1",
            settings.address
        );
    }
    let listener = listen("the views", "modules.views", "port", (settings.address, settings.port))?;
    tracing::info!(address = %listener.local_addr()?, tls = tls.is_some(), "the views are served");
    Ok(Some(ViewsConfig { listener: Arc::new(listener), tls, tokens, observed: observed.clone() }))
}

/// The cluster that the configuration names, or the one this process runs in.
async fn cluster(config: &CloudCore) -> Result<kube::Config> {
    Ok(match &config.kube_api_config.kube_config {
        Some(file) => {
            let kubeconfig = kube::config::Kubeconfig::read_from(file)
                .with_context(|| format!("kubeAPIConfig.kubeConfig {}", file.display()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?
        }
        None => kube::Config::infer().await.context(
            "no cluster: name a kubeconfig in kubeAPIConfig.kubeConfig, or run the embedded API server with --standalone",
        )?,
    })
}

/// Binds before anything runs, so that a port in use is an error of the start that names it.
///
/// `setting` is the part of the configuration that holds `address` and, by the name `port`, the port.
fn listen(what: &str, setting: &str, port: &str, address: impl Into<SocketAddr>) -> Result<TcpListener> {
    let address = address.into();
    TcpListener::bind(address).map_err(|error| {
        let advice = match error.kind() {
            ErrorKind::AddrInUse => format!(
                "another program has this port (`ss -ltnp` names it): stop it, or set {setting}.{port} to a free one"
            ),
            ErrorKind::AddrNotAvailable => format!("set {setting}.address to an address of this machine"),
            ErrorKind::PermissionDenied => format!("this user may not: set {setting}.{port} to 1024 or more"),
            _ => format!("see {setting}"),
        };
        anyhow!("cannot listen on {address} for {what}: {error}; {advice}")
    })
}

/// Every node is a descriptor; some more are files, and connections to the API server.
fn room_for(nodes: u32) {
    const OTHERS: u64 = 200;
    let needed = u64::from(nodes) + OTHERS;
    if let Some(limit) = raise_descriptor_limit().filter(|limit| *limit < needed) {
        tracing::warn!(
            limit,
            needed,
            "modules.cloudHub.nodeLimit is more than this process may have: raise its limit of open files (LimitNOFILE)"
        );
    }
}

/// The folder of keys and tokens: made if it is not there, for its owner only.
fn private_folder(folder: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("data folder {}", folder.display()))
}
