//! State acknowledged by one edge: EdgeHub and MetaManager with a store on disk, over mutual TLS on loopback.
//!
//! One message is an object of 1 KiB under a key of its own, at most [`UNSETTLED`] of them unsettled (the link's window
//! is 256 messages or 1 MiB). The edge is the stock one without Edged, whose place has a listener that counts: it runs
//! on one thread, and a message counts when the cloud's session says that the edge has committed it. The cloud's end is
//! a session with an owner that does nothing else.

#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::expect_used, clippy::panic, reason = "a bench that cannot run should say so and end")]

mod common;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use actix::{Actor, Handler};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kubeedge_actors::{
    edgehub::{EdgeHub, EdgeHubConfig, outbox::Bounds},
    link::{
        self, Class, Input, Output,
        queues::{InputSender, OutputReceiver},
    },
    metamanager::{MetaManager, Tables},
    store::{Options, Store},
    system::{Component, Context, Contract, Overflow, Ports, Stage, System},
};
use kubeedge_proto::{
    resource,
    v1::{DesiredState, Envelope, KubeObject, ObjectKey, ObjectUpsert, ObjectsChanged, envelope::Body},
};
use tokio::sync::{mpsc, oneshot};

use self::common::{Pki, cloud_session, listen};

/// Size of an object's JSON.
const OBJECT_BYTES: usize = 1024;
/// Objects, one after the other: an update comes long after the version before it is settled.
const KEYS: u64 = 10_000;
/// Messages in the link's hands: more than a window, fewer than there are keys.
const UNSETTLED: u64 = 1024;
/// For the edge to end in order.
const STOP: Duration = Duration::from_secs(10);

/// Stands for Edged: takes every change.
struct Listener(Arc<AtomicU64>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Component for Listener {
    const NAME: &'static str = "listener";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.listens::<ObjectsChanged>(Overflow::wait());
    }
}

impl Handler<ObjectsChanged> for Listener {
    type Result = ();

    fn handle(&mut self, _: ObjectsChanged, _: &mut Context<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// The edge, on a thread of its own.
struct Edge {
    changes: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Edge {
    fn start(address: String, tls: rustls::ClientConfig, folder: PathBuf) -> Self {
        let (stop, stopped) = oneshot::channel();
        let changes = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&changes);
        let work = async move {
            let store = Store::open(&folder, Options::default()).expect("the store opens").store;
            let tables = Tables::open(store.clone()).await.expect("the tables");
            let config = EdgeHubConfig {
                address,
                tls: Arc::new(tls),
                link: link::Config::default(),
                store: store.clone(),
                outbox: Bounds::default(),
                renewal: None,
            };
            let system = System::builder("edge")
                .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
                .component(move |ports: &Ports| EdgeHub::new(config.clone(), ports))
                .component(move |_: &Ports| Listener(Arc::clone(&count)))
                .start()
                .expect("the wiring");
            // Also when the bench panicked.
            let _ = stopped.await;
            system.stop(STOP).await;
            store.close().await.expect("the store closes");
        };
        let thread = std::thread::spawn(move || actix_rt::System::new().block_on(work));
        Self { changes, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the edge panicked");
        }
    }
}

/// The cloud's end of the link.
struct Cloud {
    commands: InputSender,
    events: OutputReceiver,
    sent: u64,
}

impl Cloud {
    /// Waits for the edge and lets it in.
    async fn accept(mut accepted: mpsc::Receiver<link::server::Accepted>) -> Self {
        let (commands, mut events) = cloud_session(accepted.recv().await.expect("a node"));
        loop {
            let answer = match events.recv().await.expect("a session") {
                Output::HelloReceived(_) => Input::Admit { epoch: 1, cluster_uid: "c".into(), resource_version: 1 },
                Output::NeedDesired => {
                    commands.send(Input::DesiredKnown(DesiredState::default())).await.expect("a session");
                    return Self { commands, events, sent: 0 };
                }
                _ => continue,
            };
            commands.send(answer).await.expect("a session");
        }
    }

    /// Sends `n` objects and returns when the edge has committed the last.
    async fn send(&mut self, n: u64) {
        let (mut sent, mut settled) = (0, 0);
        while settled < n {
            while sent < n && sent - settled < UNSETTLED {
                let body =
                    Body::ObjectUpsert(ObjectUpsert { object: Some(object(self.sent)), needs: Vec::new(), as_of: 0 });
                let envelope = Envelope::new("bench", 1_700_000_000_000, body);
                self.commands.send(Input::Submit(Box::new(envelope))).await.expect("a session");
                (sent, self.sent) = (sent + 1, self.sent + 1);
                if let Some(output) = self.events.try_recv() {
                    settled += counts(&output);
                }
            }
            settled += counts(&self.events.recv().await.expect("a session"));
        }
    }
}

/// The `n`th: versions rise, and a key comes again after [`KEYS`] others.
fn object(n: u64) -> KubeObject {
    let key = n % KEYS;
    KubeObject {
        r#type: Some(resource::config_maps()),
        key: Some(ObjectKey::new("bench", format!("object-{key}"))),
        uid: format!("00000000-0000-0000-0000-{key:012}"),
        resource_version: (n + 1).to_string(),
        projection_hash: n,
        json: vec![b'7'; OBJECT_BYTES].into(),
    }
}

fn counts(output: &Output) -> u64 {
    match output {
        Output::Settled { class: Class::State, settled, .. } if settled.code == 0 => 1,
        Output::Settled { .. } | Output::Refused { .. } | Output::Coalesced { .. } | Output::Closed(_) => {
            panic!("not settled: {output:?}")
        }
        _ => 0,
    }
}

fn state(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let pki = Pki::new();
    let (address, accepted) = runtime.block_on(listen(&pki));
    let edge = Edge::start(address, pki.client(), pki.folder.path().join("store"));
    let mut cloud = runtime.block_on(Cloud::accept(accepted));
    let mut group = criterion.benchmark_group("state 1 KiB");
    group.warm_up_time(Duration::from_secs(2)).measurement_time(Duration::from_secs(5)).sample_size(20);
    group.throughput(Throughput::Elements(1));
    group.bench_function("acked by one edge", |bencher| {
        bencher.iter_custom(|n| {
            runtime.block_on(async {
                let start = Instant::now();
                cloud.send(n).await;
                start.elapsed()
            })
        });
    });
    group.finish();
    // Every message was committed once, and told on before it was acknowledged.
    assert_eq!(edge.changes.load(SeqCst), cloud.sent);
}

criterion_group!(benches, state);
criterion_main!(benches);
