//! What the benches of the link share: certificates, and the cloud's end of a session.

#![allow(unreachable_pub, dead_code, reason = "a module of several benches, none of which needs all of it")]

use std::{sync::Arc, time::SystemTime};

use kubeedge_actors::{
    identity::{self, CertificateAuthority, ClientAuth, IssuedCertificate, NodeIdentity, NodeKey, system_clock},
    link::{
        Config, FrameSink, FrameStream, Session, driver,
        queues::{self, InputSender, OutputReceiver},
        server::{self, Accepted, Limits},
    },
};
use kubeedge_proto::NodeName;
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{net::TcpListener, sync::mpsc};

/// The node of every bench.
pub const NODE: &str = "edge-1";

/// An authority, a cloud and a node, in a folder of their own.
pub struct Pki {
    pub folder: tempfile::TempDir,
    pub authority: CertificateAuthority,
    pub cloud: IssuedCertificate,
    pub node: NodeIdentity,
}

impl Pki {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let now = SystemTime::now();
        let authority = CertificateAuthority::load_or_create(&folder.path().join("ca"), now).expect("an authority");
        let names = [ServerName::try_from("localhost").expect("a name")];
        let cloud = authority.issue_server(&names, now).expect("a server certificate");
        let name = NODE.parse::<NodeName>().expect("a node name");
        let key = NodeKey::load_or_create(folder.path()).expect("a key");
        let request = key.request(&name).expect("a request");
        let chain = authority.sign_node_csr(&request, &name, now).expect("a certificate");
        let node = key.accept(&chain, &authority.ca_hash(), now).expect("an identity");
        Self { folder, authority, cloud, node }
    }

    /// The cloud's TLS: clients show a certificate.
    pub fn server(&self) -> Arc<ServerConfig> {
        let clients = ClientAuth::Required(self.authority.certificate().clone());
        let tls = identity::server_config(self.cloud.chain(), self.cloud.key(), clients, &[], system_clock());
        Arc::new(tls.expect("the server's TLS"))
    }

    /// The node's TLS.
    pub fn client(&self) -> ClientConfig {
        identity::client_config(&self.node, &[], system_clock()).expect("the client's TLS")
    }
}

/// The cloud's listener: the link's `host:port`, and who connects.
pub async fn listen(pki: &Pki) -> (String, mpsc::Receiver<Accepted>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (accept, accepted) = mpsc::channel(1);
    let identify: server::Identify = Arc::new(|_| NODE.parse::<NodeName>().map_err(|error| error.to_string()));
    tokio::spawn(server::serve_link(listener, pki.server(), identify, accept, Limits::default()));
    (format!("localhost:{port}"), accepted)
}

/// Runs a session; its commands and events.
pub fn run(session: Session, sink: FrameSink, stream: FrameStream) -> (InputSender, OutputReceiver) {
    let (commands, inputs) = queues::inputs();
    let (outputs, events) = queues::outputs();
    tokio::spawn(driver::run(session, sink, stream, inputs, outputs));
    (commands, events)
}

/// The cloud's end.
pub fn cloud_session(accepted: Accepted) -> (InputSender, OutputReceiver) {
    run(Session::cloud(Config::default()).stamped(), accepted.sink, accepted.stream)
}
