//! Readings pushed as manifests say, to a real HTTP server and to a real broker.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use kubeedge_actors::mapper::{
    Device, DeviceId,
    push::{Counts, MAX_VALUE, Pusher},
};
use kubeedge_proto::dmi;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::mqtt::{App, Kind, Running, mosquitto, within};

fn id() -> DeviceId {
    DeviceId { namespace: "default".into(), name: "boiler".into() }
}

/// A device with one property, pushed so.
fn device(push: dmi::PushMethod, cycle: i64) -> Device {
    let property = dmi::DeviceProperty {
        name: "temperature".into(),
        report_cycle: cycle,
        push_method: Some(push),
        ..Default::default()
    };
    let spec = dmi::DeviceSpec { properties: vec![property], ..Default::default() };
    Device { id: id(), spec, model: dmi::DeviceModelSpec::default(), state_report: Default::default() }
}

fn over_http(port: u16) -> dmi::PushMethod {
    let http = dmi::PushMethodHttp {
        hostname: "http://127.0.0.1".into(),
        port: port.into(),
        requestpath: "/readings".into(),
        timeout: 1,
    };
    dmi::PushMethod { http: Some(http), ..Default::default() }
}

/// Awaits counts.
async fn counted(pusher: &Pusher, is: impl Fn(Counts) -> bool) -> Counts {
    within(async {
        while !is(pusher.counts()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    pusher.counts()
}

/// An HTTP server that answers as it is told, and keeps what it got.
struct Sink {
    port: u16,
    got: Rc<RefCell<VecDeque<String>>>,
    /// What it answers; `None`: nothing, for ever.
    answer: Rc<Cell<Option<StatusCode>>>,
    _serving: AbortOnDropHandle<()>,
}

impl Sink {
    async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (got, answer) = (Rc::new(RefCell::new(VecDeque::new())), Rc::new(Cell::new(Some(StatusCode::NO_CONTENT))));
        let (keep, answers) = (Rc::clone(&got), Rc::clone(&answer));
        let serving = tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (keep, answers) = (Rc::clone(&keep), Rc::clone(&answers));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (keep, answers) = (Rc::clone(&keep), Rc::clone(&answers));
                    async move {
                        let kind = request.headers()["content-type"].to_str().unwrap().to_owned();
                        let line = format!("{} {} {kind} ", request.method(), request.uri());
                        let body = request.into_body().collect().await?.to_bytes();
                        keep.borrow_mut().push_back(line + std::str::from_utf8(&body).unwrap());
                        let Some(status) = answers.get() else { return std::future::pending().await };
                        let mut response = Response::new(Empty::<Bytes>::new());
                        *response.status_mut() = status;
                        Ok::<_, hyper::Error>(response)
                    }
                });
                tokio::task::spawn_local(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { port, got, answer, _serving: AbortOnDropHandle::new(serving) }
    }

    /// The value of the next reading that it gets.
    async fn value(&self) -> String {
        let next = within(async {
            loop {
                if let Some(next) = self.got.borrow_mut().pop_front() {
                    return next;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let rest = next.strip_prefix("POST /readings application/x-www-form-urlencoded temperature=");
        let (value, time) = rest.and_then(|rest| rest.split_once("&time=")).expect(&next);
        assert!(time.starts_with("20") && time.len() > 18, "{next}");
        value.to_owned()
    }
}

#[actix_rt::test]
async fn a_reading_is_pushed_over_http_the_first_at_once_and_then_the_newest_of_each_cycle() {
    let sink = Sink::serve().await;
    let mut pusher = Pusher::default();
    pusher.device(&device(over_http(sink.port), 300));
    pusher.reading(&id(), "temperature", "1");
    assert_eq!(sink.value().await, "1");
    for value in 2..=50 {
        pusher.reading(&id(), "temperature", &value.to_string());
    }
    assert_eq!(sink.value().await, "50");
    assert_eq!(counted(&pusher, |counts| counts.pushed == 2).await.failed, 0);
    // What is too long is not pushed, and neither is what no manifest names.
    pusher.reading(&id(), "temperature", &"x".repeat(MAX_VALUE + 1));
    pusher.reading(&id(), "unknown", "7");
    pusher.reading(&id(), "temperature", "51");
    assert_eq!(sink.value().await, "51");
    assert_eq!(counted(&pusher, |counts| counts.pushed == 3).await, Counts { pushed: 3, failed: 0, too_long: 1 });
    // A device that goes takes what waits with it.
    pusher.reading(&id(), "temperature", "52");
    pusher.gone(&id());
    pusher.reading(&id(), "temperature", "53");
    pusher.device(&device(over_http(sink.port), 50));
    pusher.reading(&id(), "temperature", "54");
    assert_eq!(sink.value().await, "54");
}

#[actix_rt::test]
async fn a_server_that_refuses_stalls_or_is_away_costs_a_count_and_gets_the_newest_when_it_is_back() {
    let sink = Sink::serve().await;
    let mut pusher = Pusher::default();
    pusher.device(&device(over_http(sink.port), 50));
    sink.answer.set(Some(StatusCode::INTERNAL_SERVER_ERROR));
    pusher.reading(&id(), "temperature", "1");
    // It is tried in each cycle, without a new reading.
    counted(&pusher, |counts| counts.failed >= 3).await;
    assert_eq!((sink.value().await, sink.value().await), ("1".to_owned(), "1".to_owned()));
    sink.answer.set(None);
    let before = pusher.counts().failed;
    counted(&pusher, |counts| counts.failed > before + 1).await;
    pusher.reading(&id(), "temperature", "2");
    sink.answer.set(Some(StatusCode::OK));
    // One that was on its way may get the answer, too.
    while sink.value().await != "2" {}
    let counts = counted(&pusher, |counts| counts.pushed >= 1).await;
    assert!(counts.failed >= 5, "{counts:?}");

    // Nobody listens there.
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    pusher.device(&device(over_http(away), 50));
    let before = pusher.counts().failed;
    pusher.reading(&id(), "temperature", "3");
    counted(&pusher, |counts| counts.failed > before).await;
}

async fn over_mqtt(kind: Kind) {
    let mut broker = Running::start(kind).await;
    let app = App::connect(broker.address).await;
    let mqtt = dmi::PushMethodMqtt {
        address: format!("tcp://{}", broker.address),
        topic: "told/boiler".into(),
        qos: 1,
        retained: true,
    };
    let push = dmi::PushMethod { mqtt: Some(mqtt), ..Default::default() };
    let mut pusher = Pusher::default();
    pusher.device(&device(push, 50));
    pusher.reading(&id(), "temperature", "19.5");
    let (topic, payload) = app.hears().await;
    let payload = String::from_utf8(payload).unwrap();
    assert_eq!(topic, "told/boiler");
    assert!(payload.starts_with("time is 20") && payload.ends_with("  told/boiler: 19.5"), "{payload}");
    assert_eq!(counted(&pusher, |counts| counts.pushed == 1).await.failed, 0);

    // The broker is away for longer than an attempt takes, and comes back.
    drop(app);
    broker.end().await;
    pusher.reading(&id(), "temperature", "20");
    counted(&pusher, |counts| counts.failed >= 1).await;
    pusher.reading(&id(), "temperature", "21");
    broker.begin().await;
    let app = App::connect(broker.address).await;
    while !app.hears().await.1.ends_with(b"told/boiler: 21") {}
    counted(&pusher, |counts| counts.pushed >= 2).await;
    // It is retained: who comes later hears it.
    drop(app);
    let late = App::connect(broker.address).await;
    assert!(late.hears().await.1.ends_with(b"told/boiler: 21"));
}

#[actix_rt::test]
async fn a_reading_is_pushed_over_mqtt_to_mosquitto() {
    let Some(program) = mosquitto("a_reading_is_pushed_over_mqtt_to_mosquitto") else { return };
    over_mqtt(Kind::Mosquitto(program)).await;
}

#[actix_rt::test]
async fn a_reading_is_pushed_over_mqtt_to_the_embedded_broker() {
    over_mqtt(Kind::Embedded).await;
}

#[actix_rt::test]
async fn a_method_that_cannot_be_used_is_left_out_and_a_changed_one_is_taken_over() {
    let (first, second) = (Sink::serve().await, Sink::serve().await);
    let mut pusher = Pusher::default();
    pusher.device(&device(dmi::PushMethod { otel: Some(Default::default()), ..Default::default() }, 50));
    pusher.reading(&id(), "temperature", "0");
    pusher.device(&device(over_http(first.port), 50));
    pusher.reading(&id(), "temperature", "1");
    assert_eq!(first.value().await, "1");
    pusher.device(&device(over_http(second.port), 50));
    pusher.reading(&id(), "temperature", "2");
    assert_eq!(second.value().await, "2");
    assert!(first.got.borrow().is_empty());
    assert_eq!(counted(&pusher, |counts| counts.pushed == 2).await.failed, 0);
}
