//! The link against a bare tonic stream: 1 KiB messages one way over mutual TLS on loopback.
//!
//! Both carry the same protobuf `Frame`s, and both ends of both have the `Envelope` in them as a type: it is encoded by the
//! sender and decoded by the receiver. The link's are acknowledged one by one: sequences, windows (256 messages or
//! 1 MiB unsettled), acks with dispositions, priorities, 64 KiB at a time to the socket; its outbox is in memory. The
//! bare stream has none of that: it counts what arrives. Both ends share a runtime with two threads.

#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::expect_used, clippy::panic, reason = "a bench that cannot run should say so and end")]

mod common;

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kubeedge_actors::link::{
    Class, Config, Input, Output, Session, client,
    queues::{InputSender, OutputReceiver},
};
use kubeedge_proto::v1::{
    Data, DesiredState, Envelope, Frame, Hello, Settled, StreamFrame, TrafficClass, UserMessage, data::Payload,
    envelope::Body, frame, link_client::LinkClient, link_server,
};
use prost::Message;
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::{Notify, mpsc},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

use self::common::{Pki, cloud_session, listen, run};

const PAYLOAD_BYTES: usize = 1024;
/// Events in the link's hands: more than a window, less than its queue's bound of 4096.
const UNSETTLED: u64 = 2048;
/// Frames in the bare stream's channel: the same.
const CHANNEL: usize = 2048;
/// HTTP/2 window of the bare stream, bytes.
const WINDOW: u32 = 1024 * 1024;

impl Pki {
    /// TLS of the bare server and its client, with the same certificates.
    fn bare(&self) -> (ServerTlsConfig, ClientTlsConfig) {
        let ca = Certificate::from_pem(self.authority.certificate_pem());
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join("certs").join(name)).expect("a file");
        let own = Identity::from_pem(read("server.crt"), read("server.key"));
        let cloud = Identity::from_pem(&self.cloud.chain_pem, &self.cloud.key_pem);
        let server = ServerTlsConfig::new().identity(cloud).client_ca_root(ca.clone());
        (server, ClientTlsConfig::new().ca_certificate(ca).identity(own).domain_name("localhost"))
    }
}

fn event() -> Envelope {
    let message = UserMessage { topic: "bench".into(), payload: vec![7; PAYLOAD_BYTES].into(), ..Default::default() };
    Envelope::new("bench", 1_700_000_000_000, Body::UserMessage(message))
}

// ---- the link ------------------------------------------------------------------------------------------------------

/// Both ends of an established link.
struct Link {
    submit: InputSender,
    settled: OutputReceiver,
}

impl Link {
    async fn new(pki: &Pki) -> Self {
        let (address, mut accepted) = listen(pki).await;
        let (sink, stream) = client::connect(&address, None, &pki.client()).await.expect("a link");
        let hello = Hello { instance_id: vec![1; 16].into(), connection: 1, ..Default::default() };
        let (submit, mut settled) = run(Session::edge(hello, Config::default()).stamped(), sink, stream);
        let (answer, events) = cloud_session(accepted.recv().await.expect("a node"));
        tokio::spawn(settle_all(answer, events));
        while !matches!(settled.recv().await.expect("a session"), Output::Established(_)) {}
        Self { submit, settled }
    }

    /// Sends `n` events and returns when the last is settled.
    async fn send(mut self, n: u64) -> Self {
        let event = event();
        let (mut sent, mut settled) = (0, 0);
        while settled < n {
            while sent < n && sent - settled < UNSETTLED {
                // Every message is one of its own: ids rise.
                let id = u128::from(sent).to_be_bytes().to_vec().into();
                self.submit.send(Input::Submit(Box::new(Envelope { id, ..event.clone() }))).await.expect("a session");
                sent += 1;
                if let Some(output) = self.settled.try_recv() {
                    settled += counts(&output);
                }
            }
            settled += counts(&self.settled.recv().await.expect("a session"));
        }
        self
    }
}

fn counts(output: &Output) -> u64 {
    match output {
        Output::Settled { class: Class::Event, settled, .. } if settled.code == 0 => 1,
        Output::Settled { .. } | Output::Refused { .. } | Output::Closed(_) => panic!("not settled: {output:?}"),
        _ => 0,
    }
}

/// The cloud's owner.
async fn settle_all(answer: InputSender, mut events: OutputReceiver) {
    while let Some(event) = events.recv().await {
        let input = match event {
            Output::HelloReceived(_) => Input::Admit { epoch: 1, cluster_uid: "c".into(), resource_version: 1 },
            Output::NeedDesired => Input::DesiredKnown(DesiredState::default()),
            Output::Deliver { class, seq, .. } => Input::Settle { class, seq, settled: Settled::applied() },
            _ => continue,
        };
        if answer.send(input).await.is_err() {
            return;
        }
    }
}

// ---- bare tonic ----------------------------------------------------------------------------------------------------

type Frames<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A server that says how many frames have come.
struct Count {
    arrived: Arc<Arrived>,
}

#[derive(Default)]
struct Arrived {
    frames: std::sync::atomic::AtomicU64,
    wanted: std::sync::atomic::AtomicU64,
    there: Notify,
}

#[tonic::async_trait]
impl link_server::Link for Count {
    type ConnectStream = Frames<Frame>;
    type StreamsStream = Frames<StreamFrame>;

    async fn connect(&self, request: Request<Streaming<Frame>>) -> Result<Response<Self::ConnectStream>, Status> {
        use std::sync::atomic::Ordering::SeqCst;
        let mut frames = request.into_inner();
        let arrived = self.arrived.clone();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = frames.next().await {
                assert!(envelope(frame).is_some_and(|envelope| envelope.body.is_some()), "what was sent");
                if arrived.frames.fetch_add(1, SeqCst) + 1 == arrived.wanted.load(SeqCst) {
                    arrived.there.notify_one();
                }
            }
        });
        // Open until the client is gone.
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }

    async fn streams(&self, _: Request<Streaming<StreamFrame>>) -> Result<Response<Self::StreamsStream>, Status> {
        Err(Status::unimplemented("not part of this bench"))
    }
}

fn envelope(frame: Frame) -> Option<Box<Envelope>> {
    match frame.frame? {
        frame::Frame::Data(Data { payload: Some(Payload::Envelope(encoded)), .. }) => {
            Envelope::decode(encoded).ok().map(Box::new)
        }
        _ => None,
    }
}

struct Bare {
    frames: mpsc::Sender<Frame>,
    arrived: Arc<Arrived>,
    total: u64,
}

impl Bare {
    async fn new(pki: &Pki) -> Self {
        let (server_tls, client_tls) = pki.bare();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address: SocketAddr = listener.local_addr().expect("an address");
        let arrived = Arc::new(Arrived::default());
        let service = link_server::LinkServer::new(Count { arrived: arrived.clone() });
        // What makes it fast: no delayed acknowledgements, and room for a window as large as the link's.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder().initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let mut server = server.tls_config(server_tls).expect("the server's TLS");
        tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
        let endpoint = Endpoint::from_shared(format!("https://localhost:{}", address.port())).expect("an address");
        let channel = endpoint.tls_config(client_tls).expect("the client's TLS").connect().await;
        let (frames, outgoing) = mpsc::channel(CHANNEL);
        let mut client = LinkClient::new(channel.expect("a connection"));
        let mut incoming = client.connect(ReceiverStream::new(outgoing)).await.expect("a stream").into_inner();
        // Polled, so that the connection's flow control goes on.
        tokio::spawn(async move { while let Some(Ok(_)) = incoming.next().await {} });
        Self { frames, arrived, total: 0 }
    }

    /// Sends `n` frames and returns when the last has arrived.
    async fn send(mut self, n: u64) -> Self {
        use std::sync::atomic::Ordering::SeqCst;
        let event = event();
        self.total += n;
        self.arrived.wanted.store(self.total, SeqCst);
        for seq in 1..=n {
            let id = u128::from(seq).to_be_bytes().to_vec().into();
            let envelope = Box::new(Envelope { id, ..event.clone() });
            let payload = Some(Payload::Envelope(envelope.encode_to_vec().into()));
            let data = Data { class: TrafficClass::Event.into(), seq, payload };
            self.frames.send(Frame { frame: Some(frame::Frame::Data(data)) }).await.expect("a stream");
        }
        self.arrived.there.notified().await;
        assert_eq!(self.arrived.frames.load(SeqCst), self.total);
        self
    }
}

fn links(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let pki = Pki::new();
    let mut group = criterion.benchmark_group("link 1 KiB");
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(4)).sample_size(20);
    group.throughput(Throughput::Elements(1));
    let mut bare = Some(runtime.block_on(Bare::new(&pki)));
    group.bench_function("bare tonic", |bencher| {
        bencher.iter_custom(|n| timed(&runtime, &mut bare, |bare| bare.send(n)));
    });
    let mut link = Some(runtime.block_on(Link::new(&pki)));
    group.bench_function("link", |bencher| {
        bencher.iter_custom(|n| timed(&runtime, &mut link, |link| link.send(n)));
    });
    group.finish();
}

/// Lends `one` to `work`, which runs as a task like any owner of a session: the future that `block_on` drives itself
/// pays a system call to be woken.
fn timed<T, W, F>(runtime: &Runtime, one: &mut Option<T>, work: W) -> Duration
where
    T: Send + 'static,
    W: FnOnce(T) -> F,
    F: Future<Output = T> + Send + 'static,
{
    let lent = one.take().expect("given back by the last run");
    let work = work(lent);
    let task = async {
        let start = Instant::now();
        let lent = work.await;
        (lent, start.elapsed())
    };
    let (back, took) = runtime.block_on(async { tokio::spawn(task).await.expect("a sender that ends") });
    *one = Some(back);
    took
}

criterion_group!(benches, links);
criterion_main!(benches);
