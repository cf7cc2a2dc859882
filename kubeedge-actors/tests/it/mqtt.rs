//! EventBus on brokers: the same suite on mosquitto, on mosquitto with TLS, client certificates and a password, and on the
//! embedded one.

mod gone;
mod pressure;
mod sessions;

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Stdio,
    sync::mpsc,
    time::{Duration, SystemTime},
};

use kubeedge_actors::{
    eventbus::{
        EventBus, EventBusConfig,
        broker::{self, EmbeddedBroker},
        client::{Broker, MAX_PAYLOAD},
        tls::BrokerTls,
    },
    identity::FlooredClock,
    system::{
        Ports,
        testing::{Recorder, TestSystem},
    },
};
use kubeedge_proto::v1::{MqttReceived, MqttStateChanged, PublishMqtt, SubscribeMqtt, TwinMessage, UnsubscribeMqtt};
use paho_mqtt::{AsyncClient, ConnectOptionsBuilder, CreateOptionsBuilder, Message};
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

use crate::skip::missing;

const SOON: Duration = Duration::from_secs(30);
const UPDATE: &str = "$hw/events/device/ns/d/twin/update";

/// A broker that can be ended and begun again at its address.
pub(crate) enum Kind {
    Mosquitto(PathBuf),
    /// It keeps sessions on disk when it is told to end.
    MosquittoKeeping(PathBuf),
    /// EventBus' listener has TLS and asks for a certificate and a password; the other one is for applications.
    MosquittoTls(PathBuf),
    Embedded,
}

pub(crate) struct Running {
    kind: Kind,
    /// For applications, in the clear.
    pub(crate) address: SocketAddr,
    /// For EventBus.
    secure: SocketAddr,
    child: Option<Child>,
    embedded: Option<AbortOnDropHandle<()>>,
    folder: tempfile::TempDir,
}

impl Running {
    pub(crate) async fn start(kind: Kind) -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let [address, secure] = [free(), free()].map(|listener| listener.local_addr().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let mut broker = Self { kind, address, secure, child: None, embedded: None, folder };
        if let Kind::MosquittoTls(_) = broker.kind {
            broker.certificates();
            let done = Command::new("mosquitto_passwd")
                .arg("-b")
                .arg("-c")
                .arg(broker.folder.path().join("passwords"))
                .args(["edge", "secret"])
                .status();
            assert!(done.await.unwrap().success());
        }
        broker.begin().await;
        broker
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An authority, and what it issued to the broker and to EventBus; and another authority.
    fn certificates(&self) {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
        let named = |name: &str, address: Option<&str>| {
            let mut params =
                CertificateParams::new(address.map(str::to_owned).into_iter().collect::<Vec<_>>()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };
        let authority = |name: &str| {
            let mut params = named(name, None);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let ca = authority("authority");
        std::fs::write(self.file("ca.crt"), ca.pem()).unwrap();
        std::fs::write(self.file("other.crt"), authority("another authority").pem()).unwrap();
        for name in ["broker", "edge"] {
            let key = KeyPair::generate().unwrap();
            let issued = named(name, Some("127.0.0.1")).signed_by(&key, &ca).unwrap();
            std::fs::write(self.file(&format!("{name}.crt")), issued.pem()).unwrap();
            std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
    }

    /// As EventBus is told of it.
    fn broker(&self) -> Broker {
        let Kind::MosquittoTls(_) = self.kind else {
            return Broker::new(format!("tcp://{}", self.address), "kubeedge-n");
        };
        Broker {
            username: Some("edge".into()),
            password: Some("secret".into()),
            tls: Some(BrokerTls {
                ca: self.file("ca.crt"),
                identity: Some((self.file("edge.crt"), self.file("edge.key"))),
                clock: FlooredClock::with_system(None, SystemTime::now),
            }),
            ..Broker::new(format!("ssl://{}", self.secure), "kubeedge-n")
        }
    }

    pub(crate) async fn begin(&mut self) {
        match &self.kind {
            Kind::Mosquitto(program) | Kind::MosquittoKeeping(program) | Kind::MosquittoTls(program) => {
                let config = self.file("mosquitto.conf");
                let mut text = format!(
                    "per_listener_settings true\nuser root\nmax_queued_messages 0\n\
                     listener {} 127.0.0.1\nallow_anonymous true\n",
                    self.address.port()
                );
                if let Kind::MosquittoTls(_) = self.kind {
                    text += &format!(
                        "listener {} 127.0.0.1\nallow_anonymous false\nrequire_certificate true\n\
                         cafile {folder}/ca.crt\ncertfile {folder}/broker.crt\nkeyfile {folder}/broker.key\n\
                         password_file {folder}/passwords\n",
                        self.secure.port(),
                        folder = self.folder.path().display()
                    );
                }
                if let Kind::MosquittoKeeping(_) = self.kind {
                    text += &format!("persistence true\npersistence_location {}/\n", self.folder.path().display());
                }
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

    /// A signal for the broker's process.
    async fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().unwrap().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().await.unwrap().success());
    }

    /// Ends it in order: what it keeps is on disk. The embedded one keeps nothing.
    async fn stop(&mut self) {
        if self.child.is_some() {
            self.signal("-TERM").await;
        }
        if let Some(mut child) = self.child.take() {
            within(child.wait()).await.unwrap();
        }
        self.embedded = None;
    }

    pub(crate) async fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
        self.embedded = None;
    }
}

pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("in time")
}

/// An application, with a connection of its own.
pub(crate) struct App {
    client: AsyncClient,
    heard: mpsc::Receiver<(String, Vec<u8>)>,
}

impl App {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
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

    pub(crate) async fn hears(&self) -> (String, Vec<u8>) {
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
    fn start(broker: Broker) -> Self {
        let config = EventBusConfig { brokers: vec![broker] };
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

    /// Why there is no connection, in words that have this in them.
    async fn refused(&self, why: &str) {
        let state = within(self.states.next()).await;
        assert!(!state.connected && state.reason.contains(why), "{state:?}, expected {why}");
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
    let site = Site::start(broker.broker());
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

/// Debian's, if it is installed.
#[track_caller]
pub(crate) fn mosquitto(test: &str) -> Option<PathBuf> {
    let found = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/sbin/mosquitto"];
    let program = found.iter().map(PathBuf::from).find(|path| path.is_file());
    if program.is_none() {
        missing(test, "mosquitto is not installed");
    }
    program
}

#[actix_rt::test]
async fn the_suite_holds_on_mosquitto() {
    let Some(program) = mosquitto("the_suite_holds_on_mosquitto") else { return };
    suite(Kind::Mosquitto(program)).await;
}

#[actix_rt::test]
async fn the_suite_holds_on_mosquitto_with_tls_client_certificates_and_a_password() {
    let Some(program) = mosquitto("the_suite_holds_on_mosquitto_with_tls_client_certificates_and_a_password") else {
        return;
    };
    suite(Kind::MosquittoTls(program)).await;
}

#[actix_rt::test]
async fn a_broker_that_is_not_authenticated_gets_nothing_and_files_are_read_anew() {
    let Some(program) = mosquitto("a_broker_that_is_not_authenticated_gets_nothing_and_files_are_read_anew") else {
        return;
    };
    let running = Running::start(Kind::MosquittoTls(program)).await;
    let mut broker = running.broker();
    broker.tls.as_mut().unwrap().ca = running.file("trusted.crt");
    let site = Site::start(broker);
    site.refused("trusted.crt is missing").await;
    std::fs::copy(running.file("other.crt"), running.file("trusted.crt")).unwrap();
    site.refused("UnknownIssuer").await;
    assert_eq!(site.code("told/nobody", b"x".to_vec()).await, 503);
    // Whole at once, as certificates are to be replaced.
    std::fs::copy(running.file("ca.crt"), running.file("next.crt")).unwrap();
    std::fs::rename(running.file("next.crt"), running.file("trusted.crt")).unwrap();
    site.connected(true).await;
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_broker_that_does_not_authenticate_this_client_says_why() {
    let Some(program) = mosquitto("a_broker_that_does_not_authenticate_this_client_says_why") else { return };
    let running = Running::start(Kind::MosquittoTls(program)).await;
    let mut broker = running.broker();
    broker.tls.as_mut().unwrap().identity = None;
    let site = Site::start(broker);
    site.refused("CertificateRequired").await;
    site.test.assert_quiet().await;

    let site = Site::start(Broker { password: Some("guessed".into()), ..running.broker() });
    site.refused("the broker refuses: ").await;
    site.test.assert_quiet().await;

    // What listens there has no TLS.
    let site = Site::start(Broker { uri: format!("ssl://{}", running.address), ..running.broker() });
    site.refused("TLS: ").await;
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn the_suite_holds_on_the_embedded_broker() {
    suite(Kind::Embedded).await;
}
