//! EventBus on brokers: the same suite on mosquitto and on the embedded one.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Stdio,
    sync::mpsc,
    time::Duration,
};

use kubeedge_actors::{
    eventbus::{
        EventBus, EventBusConfig,
        broker::{self, EmbeddedBroker},
        client::{Broker, MAX_PAYLOAD},
    },
    system::{
        Ports,
        testing::{Recorder, TestSystem},
    },
};
use kubeedge_proto::v1::{MqttReceived, MqttStateChanged, PublishMqtt, SubscribeMqtt, TwinMessage, UnsubscribeMqtt};
use paho_mqtt::{AsyncClient, ConnectOptionsBuilder, CreateOptionsBuilder, Message};
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

const SOON: Duration = Duration::from_secs(30);
const UPDATE: &str = "$hw/events/device/ns/d/twin/update";

/// A broker that can be ended and begun again at its address.
enum Kind {
    Mosquitto(PathBuf),
    Embedded,
}

struct Running {
    kind: Kind,
    address: SocketAddr,
    child: Option<Child>,
    embedded: Option<AbortOnDropHandle<()>>,
    folder: tempfile::TempDir,
}

impl Running {
    async fn start(kind: Kind) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut broker = Self { kind, address, child: None, embedded: None, folder: tempfile::tempdir().unwrap() };
        broker.begin().await;
        broker
    }

    async fn begin(&mut self) {
        match &self.kind {
            Kind::Mosquitto(program) => {
                let config = self.folder.path().join("mosquitto.conf");
                let text = format!(
                    "listener {} 127.0.0.1\nallow_anonymous true\nuser root\nmax_queued_messages 0\n",
                    self.address.port()
                );
                std::fs::write(&config, text).unwrap();
                let mut command = Command::new(program);
                command.arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
                self.child = Some(command.spawn().unwrap());
            }
            Kind::Embedded => {
                let config = EmbeddedBroker { address: self.address, queue: 10_000 };
                let (_, serving) = within(async {
                    loop {
                        match broker::start(config.clone()).await {
                            Ok(started) => return started,
                            // The port of the one before is not free yet.
                            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                        }
                    }
                })
                .await;
                self.embedded = Some(serving);
            }
        }
        within(async {
            while tokio::net::TcpStream::connect(self.address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    async fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
        self.embedded = None;
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("in time")
}

/// An application, with a connection of its own.
struct App {
    client: AsyncClient,
    heard: mpsc::Receiver<(String, Vec<u8>)>,
}

impl App {
    async fn connect(address: SocketAddr) -> Self {
        let options = CreateOptionsBuilder::new_v3()
            .server_uri(format!("tcp://{address}"))
            .client_id("app")
            .max_buffered_messages(10_000)
            .finalize();
        let client = AsyncClient::new(options).unwrap();
        let (sender, heard) = mpsc::sync_channel(10_000);
        client.set_message_callback(move |_, message| {
            if let Some(message) = message {
                let _ = sender.try_send((message.topic().to_owned(), message.payload().to_vec()));
            }
        });
        within(client.connect(ConnectOptionsBuilder::new_v3().finalize())).await.unwrap();
        within(client.subscribe("told/#", 1)).await.unwrap();
        Self { client, heard }
    }

    async fn publish(&self, topic: &str, payload: &[u8]) {
        within(self.client.publish(Message::new(topic, payload, 1))).await.unwrap();
    }

    async fn hears(&self) -> (String, Vec<u8>) {
        within(async {
            loop {
                match self.heard.try_recv() {
                    Ok(heard) => return heard,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await
    }
}

struct Site {
    test: TestSystem,
    twin: Recorder<TwinMessage>,
    received: Recorder<MqttReceived>,
    states: Recorder<MqttStateChanged>,
}

impl Site {
    fn start(address: SocketAddr) -> Self {
        let config = EventBusConfig {
            brokers: vec![Broker {
                uri: format!("tcp://{address}"),
                client_id: "kubeedge-n".into(),
                username: None,
                password: None,
                qos: 1,
                retain: false,
            }],
            forward_to_cloud: false,
        };
        let twin = Recorder::<TwinMessage>::answering(|_| ());
        let (received, states) = (Recorder::listening(), Recorder::listening());
        let test = TestSystem::builder()
            .component(move |ports: &Ports| EventBus::new(config.clone(), ports))
            .records(&twin)
            .hears(&received)
            .hears(&states)
            .asks::<PublishMqtt>()
            .asks::<SubscribeMqtt>()
            .asks::<UnsubscribeMqtt>()
            .start();
        Self { test, twin, received, states }
    }

    async fn connected(&self, wanted: bool) {
        while within(self.states.next()).await.connected != wanted {}
    }

    /// Publishes until DeviceTwin gets it: the subscription follows the connection.
    async fn subscribed(&self, app: &App, payload: &[u8]) {
        within(async {
            loop {
                app.publish(UPDATE, payload).await;
                if let Ok(message) = tokio::time::timeout(Duration::from_millis(200), self.twin.next()).await
                    && message.payload == payload
                {
                    return;
                }
            }
        })
        .await;
    }

    async fn code(&self, topic: &str, payload: Vec<u8>) -> u32 {
        let message = PublishMqtt { topic: topic.into(), payload: payload.into(), qos: Some(1), retain: None };
        within(self.test.ask(message)).await.code
    }
}

async fn suite(kind: Kind) {
    let mut broker = Running::start(kind).await;
    let site = Site::start(broker.address);
    site.connected(true).await;
    let app = App::connect(broker.address).await;
    site.subscribed(&app, b"first").await;

    // Out: confirmed by the broker, heard by the application; what cannot be is refused.
    assert_eq!(site.code("told/you", b"so".to_vec()).await, 0);
    assert_eq!(app.hears().await, ("told/you".to_owned(), b"so".to_vec()));
    assert_eq!(site.code("told/#", b"x".to_vec()).await, 400);
    assert_eq!(site.code("told/much", vec![0; MAX_PAYLOAD + 1]).await, 413);

    // In: what somebody subscribed to, and no more.
    let wanted = || SubscribeMqtt { filter: "sensors/+".into() };
    assert_eq!(site.test.ask(wanted()).await.code, 0);
    assert_eq!(site.test.ask(SubscribeMqtt { filter: "a/#/b".into() }).await.code, 400);
    let payload = b"7".to_vec();
    within(async {
        loop {
            app.publish("sensors/a", &payload).await;
            if tokio::time::timeout(Duration::from_millis(200), site.received.next()).await.is_ok() {
                return;
            }
        }
    })
    .await;
    app.publish("other/a", b"not wanted").await;
    app.publish("sensors/big", &vec![0; MAX_PAYLOAD + 1]).await;
    app.publish(UPDATE, &vec![b'{'; MAX_PAYLOAD + 1]).await;
    let large = loop {
        let next = within(site.twin.next()).await;
        if next.oversize > 0 {
            break next;
        }
        assert_eq!(next.payload, b"first"[..], "one more of the first");
    };
    assert_eq!((large.oversize, large.payload.len()), (MAX_PAYLOAD as u64 + 1, 0));

    // A burst is neither lost nor out of order.
    const BURST: usize = 1000;
    let sent: Vec<_> = (0..BURST).map(|count| app.client.publish(Message::new(UPDATE, count.to_string(), 1))).collect();
    for token in sent {
        within(token).await.unwrap();
    }
    for count in 0..BURST {
        assert_eq!(within(site.twin.next()).await.payload, count.to_string().into_bytes());
    }

    // The broker is killed and comes back: subscriptions are made anew, nobody has to do anything.
    broker.end().await;
    site.connected(false).await;
    assert_eq!(site.code("told/nobody", b"x".to_vec()).await, 503);
    broker.begin().await;
    site.connected(true).await;
    drop(app);
    let app = App::connect(broker.address).await;
    site.subscribed(&app, b"again").await;
    assert_eq!(site.code("told/you", b"again".to_vec()).await, 0);
    assert_eq!(app.hears().await.1, b"again");
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn the_suite_holds_on_mosquitto() {
    let found = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/sbin/mosquitto"];
    let Some(program) = found.iter().map(PathBuf::from).find(|path| path.is_file()) else {
        assert!(std::env::var_os("CI").is_none(), "mosquitto is not installed");
        println!("skipped: mosquitto is not installed");
        return;
    };
    suite(Kind::Mosquitto(program)).await;
}

#[actix_rt::test]
async fn the_suite_holds_on_the_embedded_broker() {
    suite(Kind::Embedded).await;
}
