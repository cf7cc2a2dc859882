//! Which actors run, with which settings.

mod edged;
mod http;
mod mqtt;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use kubeedge_actors::{
    devicetwin::{DeviceTwin, DeviceTwinConfig, dmi::bucket::Rate},
    edged::{Edged, Prepared},
    edgehub::{EdgeHub, EdgeHubConfig, renewal::Renewal},
    edgestream::EdgeStream,
    eventbus::EventBus,
    identity::{FlooredClock, JoinToken, NodeCredentials, NodeIdentity},
    kubeletapi::{KubeletApi, KubeletApiConfig},
    link::{self, backoff},
    metamanager::{MetaManager, Tables},
    metaserver::MetaServer,
    program::{POWER_FAILURE, StopSignals, abort_when_blocked, machine_goes_down},
    servicebus::ServiceBus,
    store::{Options, Store},
    system::{Exit, Observed, Ports, System},
    views::edge::EdgeViews,
};
use kubeedge_proto::v1::ShutDownPods;

use tokio_util::task::AbortOnDropHandle;

use crate::{config::EdgeCore, join};

/// How long an orderly stop may take. Pods are not stopped: they run on.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Where pods run.
#[derive(Clone, Copy, Debug)]
pub enum Runtime {
    /// In the container runtime that the configuration names.
    Cri,
    /// Nowhere: they are kept in memory, and end with the program. Every image is there.
    #[cfg(feature = "fake-runtime")]
    InMemory,
}

/// Runs edgecore until it is told to stop.
pub fn run(config: EdgeCore, runtime: Runtime) -> Result<()> {
    actix_rt::System::new().block_on(async {
        // First of all: a signal during the start ends it in order, too.
        let mut signals = StopSignals::listen().context("catch signals")?;
        let running = tokio::select! {
            running = start(&config, runtime) => running?,
            signal = signals.next() => {
                tracing::info!(signal, "stopped while starting");
                return Ok(());
            }
        };
        let outcome = tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "stopping");
                if signal == POWER_FAILURE || machine_goes_down() {
                    running.end_pods(&config, &mut signals).await;
                }
                Ok(())
            }
            (component, exit) = running.system.failed() => {
                Err(anyhow::anyhow!("{component} {exit}: it does not come back by restarts"))
            }
        };
        tokio::select! {
            stopped = running.stop() => stopped.and(outcome),
            signal = signals.next() => bail!("{signal} while stopping: not everything was stopped in order"),
        }
    })
}

/// What runs.
struct Running {
    system: System,
    store: Store,
    /// Our own MQTT broker, where it runs.
    _broker: Option<AbortOnDropHandle<()>>,
}

/// Builds the system. Needs nobody: with a certificate on disk it starts with the cable cut.
async fn start(config: &EdgeCore, runtime: Runtime) -> Result<Running> {
    let identity = identity(config).await?;
    let clock = FlooredClock::load(identity.dir());
    let credentials = NodeCredentials::new(identity, clock)?;
    let node = credentials.node();
    if credentials.clock().is_behind() {
        tracing::warn!(%node, "this box's clock is behind what it knows to be past: certificates are judged by that");
    }
    if credentials.has_expired() {
        tracing::warn!(%node, "the node's certificate has ended: it is renewed by proof of its key, if that is not too late");
    }
    let folder = config.database.store_folder();
    let opened = Store::open(&folder, Options::default())?;
    if let Some(aside) = &opened.set_aside {
        tracing::error!(
            path = %aside.path.display(),
            "the store could not be used and was set aside; running pods go on, and the rest comes from the cloud: {}",
            aside.why
        );
    }
    for (table, key) in &opened.damaged {
        tracing::error!(table, key, "a damaged record is left out; it comes from the cloud");
    }
    let store = opened.store;
    let tables = Tables::open(store.clone()).await?;
    let life = tables.life();

    let observed = Observed::default();
    let mut builder = System::builder("edgecore")
        .when_blocked(abort_when_blocked)
        .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports));
    if config.modules.edge_hub.enable {
        let settings = &config.modules.edge_hub;
        let renewal = settings
            .rotate_certificates
            .then(|| Renewal { credentials: credentials.clone(), enrolment: Some(settings.http_server.to_string()) });
        let hub = EdgeHubConfig {
            address: config.modules.edge_hub.websocket.server.to_string(),
            tls: Arc::new(credentials.client_config(&[])?),
            link: link::Config {
                heartbeat_interval: config.modules.edge_hub.heartbeat_interval(),
                ..link::Config::default()
            },
            store: store.clone(),
            outbox: config.modules.edge_hub.outbox.bounds(),
            renewal,
        };
        builder = builder.component(move |ports: &Ports| EdgeHub::new(hub.clone(), ports));
    }
    if config.modules.edged.enable {
        let settings = edged::settings(config, &node)?;
        let prepared = match runtime {
            Runtime::Cri => Prepared::new(settings).await?,
            #[cfg(feature = "fake-runtime")]
            Runtime::InMemory => {
                // It makes no control groups.
                let settings = kubeedge_actors::edged::EdgedConfig { cgroups_per_qos: false, ..settings };
                Prepared::with_runtime(settings, edged::in_memory()).await?
            }
        };
        builder = builder.component(move |ports: &Ports| Edged::new(prepared.clone(), ports));
        builder = builder.asks::<ShutDownPods>();
        let kubelet = &config.modules.edged.tailored_kubelet_config;
        let listen = (kubelet.read_only_port != 0).then(|| (kubelet.address, kubelet.read_only_port).into());
        let api = KubeletApiConfig { listen, observed: observed.clone() };
        builder = builder.component(move |ports: &Ports| KubeletApi::new(api.clone(), ports));
        if config.modules.edge_stream.enable {
            builder = builder.component(EdgeStream::new);
        }
    }
    let twin = &config.modules.device_twin;
    if twin.enable {
        let settings = DeviceTwinConfig {
            node: node.clone(),
            store: store.clone(),
            socket: Some(twin.socket()),
            rate: Rate { per_second: twin.mapper_rate.per_second, burst: twin.mapper_rate.burst },
        };
        builder = builder.component(move |ports: &Ports| DeviceTwin::new(settings.clone(), ports));
    }
    let mut broker = None;
    if config.modules.event_bus.enable {
        let mqtt = mqtt::prepare(&config.modules.event_bus, &node, credentials.clock()).await?;
        broker = mqtt.broker;
        let bus = mqtt.bus;
        builder = builder.component(move |ports: &Ports| EventBus::new(bus.clone(), ports));
    }
    if config.modules.service_bus.enable && config.modules.edge_hub.enable {
        let settings = http::settings(&config.modules.service_bus)?;
        builder = builder.component(move |ports: &Ports| ServiceBus::new(settings.clone(), ports));
    }
    if let Some(settings) = http::meta_server(&config.modules.meta_manager.meta_server, &node, life)? {
        builder = builder.component(move |ports: &Ports| MetaServer::new(settings.clone(), ports));
    }
    if let Some(settings) = http::views(&config.modules.views, &observed)? {
        let node = node.clone();
        builder = builder.component(move |ports: &Ports| EdgeViews::new(node.clone(), settings.clone(), ports));
    }
    let system = builder.start()?;
    observed.set(&system);
    tracing::info!(%node, store = %folder.display(), "edgecore runs");
    Ok(Running { system, store, _broker: broker })
}

impl Running {
    /// The machine goes down: pods end, if the file says how long they may take. A second signal ends the wait.
    async fn end_pods(&self, config: &EdgeCore, signals: &mut StopSignals) {
        let kubelet = &config.modules.edged.tailored_kubelet_config;
        let grace = kubelet.shutdown_grace_period.duration();
        if grace.is_zero() || !config.modules.edged.enable {
            return;
        }
        let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        let message = ShutDownPods {
            grace_seconds: seconds(grace),
            critical_seconds: seconds(kubelet.shutdown_grace_period_critical_pods.duration()),
        };
        let port = self.system.port::<ShutDownPods>();
        tokio::select! {
            ended = port.ask(message, grace.saturating_add(STOP_LIMIT)) => {
                if let Err(error) = ended {
                    tracing::error!("pods did not end in order: {error}");
                }
            }
            signal = signals.next() => tracing::warn!(signal, "pods are not waited for any longer"),
        }
    }

    /// Stops in order: no new work, queues drained, the store last.
    async fn stop(self) -> Result<()> {
        let exits = self.system.stop(STOP_LIMIT).await;
        self.store.close().await?;
        for (component, exit) in exits {
            match exit {
                Exit::Done | Exit::Stopped => tracing::info!(component, "{exit}"),
                _ => bail!("{component}: {exit}"),
            }
        }
        Ok(())
    }
}

/// Who this node is: its certificate, or the one that the configured token gets it.
async fn identity(config: &EdgeCore) -> Result<NodeIdentity> {
    let hub = &config.modules.edge_hub;
    let folder = hub.identity_folder()?;
    let wanted = &config.modules.edged.hostname_override;
    if let Some(identity) = NodeIdentity::load(folder)? {
        if let Some(wanted) = wanted
            && wanted != identity.node()
        {
            bail!(
                "modules.edged.hostnameOverride is {wanted}, but the certificate in {} is for {}: join under the new \
                 name, or keep the old one",
                folder.display(),
                identity.node()
            );
        }
        return Ok(identity);
    }
    let Some(token) = hub.token.get() else {
        bail!(
            "there is no certificate in {}: run `edgecore join`, or put a token into modules.edgeHub.token",
            folder.display()
        );
    };
    let token: JoinToken = token.parse().context("modules.edgeHub.token")?;
    let node = wanted.clone().map_or_else(join::host_name, Ok)?;
    let mut failures = 0;
    loop {
        match join::enrol(&hub.http_server, &token, &node, folder).await {
            Ok((identity, _)) => return Ok(identity),
            Err(error) => {
                failures += 1;
                let pause = backoff::delay(failures, None, rand::random());
                tracing::warn!(%node, again_in = ?pause, "enrolment: {error}");
                tokio::time::sleep(pause).await;
            }
        }
    }
}
