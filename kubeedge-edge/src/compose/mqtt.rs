//! Which MQTT brokers EventBus uses, and whether our own runs.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, anyhow, bail};
use kubeedge_actors::{
    eventbus::{
        EventBusConfig,
        broker::{self, EmbeddedBroker},
        client::Broker,
        tls::BrokerTls,
    },
    identity::FlooredClock,
};
use kubeedge_proto::NodeName;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{EventBus, EventBusTls, MqttMode};

/// How long a broker may take to answer before it counts as not there.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// EventBus' settings, and our own broker, which runs as long as this.
pub(super) struct Mqtt {
    pub(super) bus: EventBusConfig,
    pub(super) broker: Option<AbortOnDropHandle<()>>,
}

pub(super) async fn prepare(settings: &EventBus, node: &NodeName, clock: &FlooredClock) -> Result<Mqtt> {
    let tls = tls(settings, clock)?;
    // Who says how a broker is authenticated means that broker: none of our own stands in for it.
    let mode = match settings.mqtt_mode {
        MqttMode::Auto if tls.is_some() => MqttMode::External,
        mode => mode,
    };
    let client_id = format!("kubeedge-{node}");
    let external = || Broker {
        username: Some(settings.mqtt_username.clone()).filter(|name| !name.is_empty()),
        password: Some(settings.mqtt_password.clone()).filter(|password| !password.is_empty()),
        tls: tls.clone(),
        // QoS 1 and not retained, as KubeEdge does it, whatever `mqttQOS` says.
        ..Broker::new(
            settings.mqtt_server_external.clone(),
            Some(settings.mqtt_sub_client_id.clone()).filter(|id| !id.is_empty()).unwrap_or_else(|| client_id.clone()),
        )
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
            qos: settings.mqtt_qos,
            retain: settings.mqtt_retain,
            ..Broker::new(format!("tcp://{address}"), client_id.clone())
        };
        Ok((client, serving))
    };
    let (brokers, broker) = match mode {
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
    Ok(Mqtt { bus: EventBusConfig { brokers }, broker })
}

/// How the external broker is authenticated; `None` when it is spoken to in the clear.
fn tls(settings: &EventBus, clock: &FlooredClock) -> Result<Option<BrokerTls>> {
    let EventBusTls { enable, tls_mqtt_ca_file: ca, tls_mqtt_cert_file: certificate, tls_mqtt_private_key_file: key } =
        settings.event_bus_tls.clone();
    if settings.mqtt_mode == MqttMode::Internal {
        return Ok(None);
    }
    if !enable {
        if settings.mqtt_server_external.starts_with("ssl://") {
            bail!(
                "modules.eventBus.mqttServerExternal: {} needs eventBusTLS.enable and, in tlsMqttCAFile, the authority of \
                 the broker's certificate, which is verified always",
                settings.mqtt_server_external
            );
        }
        return Ok(None);
    }
    let empty = |path: &PathBuf| path.as_os_str().is_empty();
    if empty(&ca) {
        bail!(
            "modules.eventBus.eventBusTLS.tlsMqttCAFile: expected the file of the authority of the broker's certificate"
        );
    }
    let identity = match (empty(&certificate), empty(&key)) {
        (true, true) => None,
        (false, false) => Some((certificate, key)),
        _ => bail!("modules.eventBus.eventBusTLS: tlsMqttCertFile and tlsMqttPrivateKeyFile belong together"),
    };
    Ok(Some(BrokerTls { ca, identity, clock: clock.clone() }))
}

async fn answers(uri: &str) -> bool {
    let address = uri.strip_prefix("tcp://").unwrap_or(uri);
    matches!(tokio::time::timeout(ANSWERS_WITHIN, TcpStream::connect(address)).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use kubeedge_actors::config::parse;

    use super::*;
    use crate::config::EdgeCore;

    fn read(fields: &str) -> Result<Option<BrokerTls>> {
        let text = format!("modules: {{eventBus: {{{fields}}}}}");
        let settings = parse::<EdgeCore>("edgecore.yaml", &text).unwrap().value.modules.event_bus;
        tls(&settings, &FlooredClock::with_system(None, std::time::SystemTime::now))
    }

    #[test]
    fn a_broker_is_spoken_to_in_the_clear_only_when_nothing_says_tls() {
        assert!(read("mqttMode: 2").unwrap().is_none());
        let refused = read("mqttServerExternal: 'ssl://b:8883'").unwrap_err().to_string();
        assert!(refused.contains("eventBusTLS.enable"), "{refused}");
        let usual = read("eventBusTLS: {enable: true}").unwrap().unwrap();
        assert_eq!(usual.ca, PathBuf::from("/etc/kubeedge/ca/rootCA.crt"));
        assert_eq!(usual.identity.unwrap().1, PathBuf::from("/etc/kubeedge/certs/server.key"));
    }

    #[test]
    fn a_client_certificate_is_whole_or_left_out() {
        let tls = |fields: &str| read(&format!("eventBusTLS: {{enable: true, {fields}}}"));
        assert!(tls("tlsMqttCertFile: '', tlsMqttPrivateKeyFile: ''").unwrap().unwrap().identity.is_none());
        assert!(tls("tlsMqttCertFile: ''").unwrap_err().to_string().contains("belong together"));
        assert!(tls("tlsMqttCAFile: ''").unwrap_err().to_string().contains("tlsMqttCAFile"));
    }
}
