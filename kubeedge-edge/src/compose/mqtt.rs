//! Which MQTT brokers EventBus uses, and whether our own runs.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use kubeedge_actors::eventbus::{
    EventBusConfig,
    broker::{self, EmbeddedBroker},
    client::Broker,
};
use kubeedge_proto::NodeName;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{EventBus, MqttMode};

/// How long a broker may take to answer before it counts as not there.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// EventBus' settings, and our own broker, which runs as long as this.
pub(super) struct Mqtt {
    pub(super) bus: EventBusConfig,
    pub(super) broker: Option<AbortOnDropHandle<()>>,
}

pub(super) async fn prepare(settings: &EventBus, node: &NodeName) -> Result<Mqtt> {
    if settings.event_bus_tls.enable {
        bail!("modules.eventBus.eventBusTLS.enable: TLS to a broker is not built yet; use a broker on this machine");
    }
    let external = || Broker {
        uri: settings.mqtt_server_external.clone(),
        client_id: match settings.mqtt_sub_client_id.as_str() {
            "" => format!("kubeedge-{node}"),
            given => given.to_owned(),
        },
        username: Some(settings.mqtt_username.clone()).filter(|name| !name.is_empty()),
        password: Some(settings.mqtt_password.clone()).filter(|password| !password.is_empty()),
        // As KubeEdge does it, whatever `mqttQOS` says.
        qos: 1,
        retain: false,
    };
    let own = async |uri: &str, field: &str| -> Result<(Broker, AbortOnDropHandle<()>)> {
        let address = EventBus::socket(uri)
            .ok_or_else(|| anyhow!("modules.eventBus.{field}: {uri} is not an address of this machine"))?;
        let config = EmbeddedBroker { address, queue: settings.mqtt_session_queue_size };
        let (address, serving) = broker::start(config).await.map_err(|error| {
            anyhow!("our own MQTT broker, modules.eventBus.{field}: {error}; another program may have this port")
        })?;
        tracing::info!(%address, "our own MQTT broker is served");
        let client = Broker {
            uri: format!("tcp://{address}"),
            client_id: format!("kubeedge-{node}"),
            username: None,
            password: None,
            qos: settings.mqtt_qos,
            retain: settings.mqtt_retain,
        };
        Ok((client, serving))
    };
    let (brokers, broker) = match settings.mqtt_mode {
        MqttMode::External => (vec![external()], None),
        MqttMode::Internal => {
            let (client, serving) = own(&settings.mqtt_server_internal, "mqttServerInternal").await?;
            (vec![client], Some(serving))
        }
        MqttMode::Both => {
            let (client, serving) = own(&settings.mqtt_server_internal, "mqttServerInternal").await?;
            (vec![client, external()], Some(serving))
        }
        MqttMode::Auto if answers(&settings.mqtt_server_external).await => (vec![external()], None),
        MqttMode::Auto => match own(&settings.mqtt_server_external, "mqttServerExternal").await {
            Ok((client, serving)) => (vec![client], Some(serving)),
            // Nobody asked for it: pods and the link do not wait for it.
            Err(error) => {
                tracing::error!(
                    "there is no MQTT until a broker answers at {}: {error:#}",
                    settings.mqtt_server_external
                );
                (vec![external()], None)
            }
        },
    };
    Ok(Mqtt { bus: EventBusConfig { brokers, forward_to_cloud: false }, broker })
}

async fn answers(uri: &str) -> bool {
    let address = uri.strip_prefix("tcp://").unwrap_or(uri);
    matches!(tokio::time::timeout(ANSWERS_WITHIN, TcpStream::connect(address)).await, Ok(Ok(_)))
}
