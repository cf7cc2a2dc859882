//! The examples of embedding do what they say.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use futures_util::FutureExt;
use kubeedge_actors::{
    cloudhub::{CloudHub, CloudHubConfig, EnrolmentConfig, enrolment::EnrolmentService},
    edgehub::join::join,
    identity::{CertificateAuthority, Registrar, Revocations, ServerCredentials, TokenRules, Tokens},
    link,
    store::Store,
    system::{
        Ports,
        testing::{Recorder, TestSystem},
    },
};
use kubeedge_proto::{digest::projection_hash, resource, v1::*};
use tokio::sync::{mpsc, oneshot};

use crate::report::{Outcome, Report};

const TOUR: &str = "embedding::the_tour_shows_what_the_kit_does";
const GATEWAY: &str = "embedding::the_gateway_prints_what_the_cloud_wants_and_stops_in_order";

const SOON: Duration = Duration::from_secs(30);

pub(crate) async fn stage(report: &mut Report) {
    if report.begins(&[TOUR, GATEWAY]) {
        report.together(vec![(TOUR, alone(tour).boxed_local()), (GATEWAY, alone(gateway).boxed_local())]).await;
    }
}

/// Runs in an actix system of its own, as an embedder's `main` does, and on a thread of its own: it may block.
async fn alone<F: Future<Output = ()>>(work: impl FnOnce() -> F + Send + 'static) -> Result<Outcome> {
    let (done, outcome) = oneshot::channel();
    std::thread::spawn(move || {
        actix_rt::System::new().block_on(work());
        done.send(Outcome::Proved)
    });
    outcome.await.context("it panicked")
}

async fn tour() {
    // The panic that it shows would have its backtrace looked up on the arbiter's thread, for seconds on a busy machine:
    // that is a blocked arbiter, which is another story.
    let output = Command::new(env!("CARGO_BIN_EXE_actor_tour")).env("RUST_BACKTRACE", "0").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for line in [
        "sensor asks Keep, which no component answers: add a component whose contract answers it",
        "the mean is Some(21.0)",
        "of 10 told at once, 6 were refused and handed back: its queue holds 4",
        "who asked is told: Err(Crashed)",
        "the display shows sun",
        "kept 26, that is 7",
        "kept 27, that is 8",
        "sensor: 10 handled, 1 panics, 2 restarts",
        "sensor: 1 times stuck, 0 events superseded",
        "display: 0 times stuck, 2 events superseded",
        "Measured was parked by sensor: NaN is no measurement",
        "kubeedge_actor_restarts_total{component=\"sensor\"} 2",
        "the archive closes with 9 values",
        "sensor: stopped",
        "archive: stopped",
    ] {
        assert!(text.lines().any(|have| have.trim() == line), "no line {line:?} in\n{text}");
    }
}

/// Ended with the test, however that ends.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn gateway() {
    let folder = tempfile::tempdir().unwrap();
    let (identity, cloud) = cloud_and_identity(folder.path()).await;
    let (test, address) = cloud;

    let child = Command::new(env!("CARGO_BIN_EXE_custom_gateway"))
        .args([&identity, Path::new(&address), &folder.path().join("store")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut gateway = Program(child);
    let output = BufReader::new(gateway.0.stdout.take().unwrap());
    let (sender, mut lines) = mpsc::channel(100);
    std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.blocking_send(line)));
    let mut wanted = vec!["the cloud is there".to_owned(), "Pod ns/a is".to_owned()];
    while !wanted.is_empty() {
        let line = tokio::time::timeout(SOON, lines.recv()).await.expect("a line in time").expect("it still runs");
        wanted.retain(|wanted| *wanted != line);
    }

    let pid = rustix::process::Pid::from_child(&gateway.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    while tokio::time::timeout(SOON, lines.recv()).await.expect("it ends in time").is_some() {}
    assert!(gateway.0.wait().unwrap().success());
    test.assert_quiet().await;
}

/// A cloud that wants one pod of node `e1`, the address of its link, and the folder of that node's certificate.
async fn cloud_and_identity(folder: &Path) -> (std::path::PathBuf, (TestSystem, String)) {
    let now = SystemTime::now();
    let authority = Arc::new(CertificateAuthority::load_or_create(&folder.join("pki"), now).unwrap());
    let tokens = Tokens::new(&Store::in_memory());
    let registrar = Registrar::new(authority.clone(), Revocations::in_memory(), Duration::ZERO);
    let server = ServerCredentials::new(authority.clone(), vec!["127.0.0.1".try_into().unwrap()], now).unwrap();
    let tls = |clients| Arc::new(server.server_config(clients, &[]).unwrap());
    let listen = || Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
    let (listener, enrolment) = (listen(), listen());
    let address = listener.local_addr().unwrap().to_string();
    let enrolment_address = enrolment.local_addr().unwrap().to_string();
    let config = CloudHubConfig {
        listener,
        tls: tls(registrar.link_clients().unwrap()),
        node_limit: 10,
        link: link::Config::default(),
        enrolment: Some(EnrolmentConfig {
            listener: enrolment,
            tls: tls(registrar.enrolment_clients().unwrap()),
            service: Arc::new(EnrolmentService::new(registrar.clone(), tokens.clone(), address.clone())),
        }),
        registrar: Some(registrar),
    };
    let test = TestSystem::builder()
        .component(move |ports: &Ports| CloudHub::new(config.clone(), ports))
        .records(&Recorder::<QueryCluster>::answering(|_| Cluster { uid: "cluster-1".into(), resource_version: 100 }))
        .records(&Recorder::<QueryDesired>::answering(|_| DesiredState {
            kinds: vec![one_pod()],
            ..DesiredState::default()
        }))
        .records(&Recorder::<ApplyFromNode>::answering(|_| Settled::applied()))
        .records(&Recorder::<CallFromNode>::answering(|_| CallReply::error(501, "Unsupported", "no calls here")))
        .records(&Recorder::<NodeHeartbeat>::answering(|_| ()))
        .start();
    let token = tokens.create(authority.ca_hash(), TokenRules::default(), now).await.unwrap();
    let identity = folder.join("e1");
    join(&enrolment_address, &token, &"e1".parse().unwrap(), &identity).await.unwrap();
    (identity, (test, address))
}

fn one_pod() -> DesiredKind {
    let json = serde_json::json!({"metadata": {"name": "a", "namespace": "ns", "uid": "u1"}});
    let pod = KubeObject {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", "a")),
        uid: "u1".into(),
        resource_version: "5".into(),
        projection_hash: projection_hash(&json),
        json: json.to_string().into(),
    };
    let upsert = ObjectUpsert { object: Some(pod), ..ObjectUpsert::default() };
    DesiredKind { r#type: Some(resource::pods()), complete: true, as_of: 10, objects: vec![upsert] }
}
