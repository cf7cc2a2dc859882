//! Who is slow is waited for, within bounds, each way.

use std::{collections::BTreeSet, sync::Arc};

use actix::{Actor, AsyncContext, Handler, WrapFuture};
use futures_util::{StreamExt, stream::FuturesUnordered};
use kubeedge_actors::{
    eventbus::client::{PATIENCE, QUEUE, UNSENT},
    system::{Component, Context, Contract, Stage},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Semaphore, mpsc as channel},
};

use super::*;

/// A DeviceTwin that takes nothing while its gate is shut.
struct Gated {
    gate: Arc<Semaphore>,
    taken: channel::Sender<Vec<u8>>,
}

impl Actor for Gated {
    type Context = Context<Self>;
}

impl Component for Gated {
    const NAME: &'static str = "gated";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<TwinMessage>();
    }
}

impl Handler<TwinMessage> for Gated {
    type Result = ();

    fn handle(&mut self, message: TwinMessage, ctx: &mut Context<Self>) {
        let (gate, taken) = (Arc::clone(&self.gate), self.taken.clone());
        let taking = async move {
            let _open = gate.acquire().await.unwrap();
            taken.send(message.payload.to_vec()).await.unwrap();
        };
        ctx.wait(taking.into_actor(self));
    }
}

fn gated(broker: Broker) -> (TestSystem, Arc<Semaphore>, channel::Receiver<Vec<u8>>) {
    let gate = Arc::new(Semaphore::new(1));
    let (sender, taken) = channel::channel(10_000);
    let config = EventBusConfig { brokers: vec![broker] };
    let component_gate = Arc::clone(&gate);
    let test = TestSystem::builder()
        .component(move |ports: &Ports| EventBus::new(config.clone(), ports))
        .component(move |_: &Ports| Gated { gate: Arc::clone(&component_gate), taken: sender.clone() })
        .start();
    (test, gate, taken)
}

/// A number that EventBus tells.
fn figure(test: &TestSystem, name: &str) -> u64 {
    let all = test.system().figures();
    let (_, value) = all.iter().flat_map(|(_, figures)| figures).find(|(figure, _)| figure.name == name).unwrap();
    *value
}

/// An application without paho, whose one lock in a process is what is tried here: it speaks MQTT 3.1.1 itself, at QoS 1.
struct Wire(TcpStream);

impl Wire {
    async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04wire").await.unwrap();
        let mut taken = [0; 4];
        within(stream.read_exact(&mut taken)).await.unwrap();
        assert_eq!(taken, [0x20, 2, 0, 0]);
        Self(stream)
    }

    /// Publishes all of them, and waits until the broker has them.
    async fn publish(&mut self, payloads: impl Iterator<Item = Vec<u8>>) {
        let mut packets = Vec::new();
        let mut count = 0u16;
        for payload in payloads {
            count += 1;
            let length = u8::try_from(2 + UPDATE.len() + 2 + payload.len()).unwrap();
            assert!(length < 128, "its length would take two bytes");
            packets.extend_from_slice(&[0x32, length, 0, UPDATE.len() as u8]);
            packets.extend_from_slice(UPDATE.as_bytes());
            packets.extend_from_slice(&count.to_be_bytes());
            packets.extend_from_slice(&payload);
        }
        let (mut read, mut write) = self.0.split();
        let mut acknowledged = vec![0; 4 * usize::from(count)];
        let (written, read) =
            within(async { tokio::join!(write.write_all(&packets), read.read_exact(&mut acknowledged)) }).await;
        written.unwrap();
        read.unwrap();
        assert!(acknowledged.chunks(4).all(|ack| ack.starts_with(&[0x40, 2])), "{acknowledged:?}");
    }
}

/// Publishes until it arrives: the subscription follows the connection.
async fn until_subscribed(app: &mut Wire, taken: &mut channel::Receiver<Vec<u8>>) {
    within(async {
        loop {
            app.publish(std::iter::once(b"first".to_vec())).await;
            if tokio::time::timeout(Duration::from_millis(200), taken.recv()).await.is_ok() {
                return;
            }
        }
    })
    .await;
}

async fn publish_numbers(app: &mut Wire, count: usize) {
    app.publish((0..count).map(|count| count.to_string().into_bytes())).await;
}

#[actix_rt::test]
async fn who_takes_nothing_for_a_while_keeps_the_broker_waiting_and_gets_all_in_order() {
    let Some(program) = mosquitto("who_takes_nothing_for_a_while_keeps_the_broker_waiting_and_gets_all_in_order")
    else {
        return;
    };
    keeps_waiting(Kind::Mosquitto(program)).await;
}

#[actix_rt::test]
async fn who_takes_nothing_for_a_while_keeps_the_embedded_broker_waiting_too() {
    keeps_waiting(Kind::Embedded).await;
}

/// More than is queued here.
const MANY: usize = 2 * QUEUE + 500;

async fn keeps_waiting(kind: Kind) {
    let running = Running::start(kind).await;
    let (test, gate, mut taken) = gated(running.broker());
    let mut app = Wire::connect(running.address).await;
    until_subscribed(&mut app, &mut taken).await;
    let shut = gate.clone().acquire_owned().await.unwrap();
    publish_numbers(&mut app, MANY).await;
    // What is tested is a time: less than after which messages are dropped, longer than the queues are filled in.
    tokio::time::sleep(PATIENCE / 3).await;
    drop(shut);
    let mut next = 0;
    while next < MANY {
        let payload = within(taken.recv()).await.unwrap();
        if payload != b"first" {
            assert_eq!(payload, next.to_string().into_bytes());
            next += 1;
        }
    }
    assert_eq!(figure(&test, "messages_dropped"), 0);
    test.assert_quiet().await;
}

#[actix_rt::test]
async fn who_takes_nothing_for_too_long_loses_messages_which_are_counted_and_the_others_stay_in_order() {
    let Some(program) = mosquitto("who_takes_nothing_for_too_long_loses_messages_which_are_counted") else { return };
    takes_nothing(Kind::Mosquitto(program)).await;
}

#[actix_rt::test]
async fn what_is_lost_of_the_embedded_brokers_messages_is_counted_too() {
    takes_nothing(Kind::Embedded).await;
}

async fn takes_nothing(kind: Kind) {
    let running = Running::start(kind).await;
    let (test, gate, mut taken) = gated(running.broker());
    let mut app = Wire::connect(running.address).await;
    until_subscribed(&mut app, &mut taken).await;
    let shut = gate.clone().acquire_owned().await.unwrap();
    publish_numbers(&mut app, MANY).await;
    within(async {
        while figure(&test, "messages_dropped") == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    drop(shut);
    let (mut last, mut count) = (None, 0);
    let newest = MANY - 1;
    while last != Some(newest) {
        let payload = within(taken.recv()).await.unwrap();
        if payload == b"first" {
            continue;
        }
        let number: usize = String::from_utf8(payload).unwrap().parse().unwrap();
        assert!(last.is_none_or(|last| last < number), "{number} after {last:?}");
        (last, count) = (Some(number), count + 1);
    }
    // The meter follows every few seconds.
    within(async {
        while figure(&test, "messages_dropped") != (MANY - count) as u64 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    test.assert_quiet().await;
}

/// A broker that stands still: the embedded one cannot without its edgecore.
#[actix_rt::test]
async fn a_broker_that_takes_nothing_has_publications_refused_at_the_bound_and_those_taken_arrive() {
    let Some(program) = mosquitto("a_broker_that_takes_nothing_has_publications_refused_at_the_bound") else { return };
    let running = Running::start(Kind::Mosquitto(program)).await;
    let site = Site::start(running.broker());
    site.connected(true).await;
    let app = App::connect(running.address).await;
    running.signal("-STOP").await;
    // Large ones, so that the sockets' buffers take few.
    // Some are sent before the broker's buffers are full.
    let many = UNSENT + 2500;
    let port = site.test.port::<PublishMqtt>();
    let mut sent: FuturesUnordered<_> = (0..many)
        .map(|count| {
            let payload = format!("{count:>8}").into_bytes().repeat(256);
            let message = PublishMqtt { topic: "told/n".into(), payload: payload.into(), qos: Some(1), retain: None };
            let port = port.clone();
            async move { (count, port.ask(message, SOON).await.unwrap().code) }
        })
        .collect();
    // The first refusal comes while nothing is taken.
    let (mut taken, mut refused) = (Vec::new(), 0u64);
    while refused == 0 {
        match within(sent.next()).await.expect("none is refused") {
            (_, 429) => refused += 1,
            (count, 0) => taken.push(count),
            other => panic!("{other:?}"),
        }
    }
    running.signal("-CONT").await;
    while let Some((count, code)) = within(sent.next()).await {
        match code {
            429 => refused += 1,
            0 => taken.push(count),
            code => panic!("{count}: {code}"),
        }
    }
    assert_eq!(taken.len() + refused as usize, many);
    assert!(taken.len() >= UNSENT, "{} were taken", taken.len());
    assert_eq!(figure(&site.test, "publications_refused"), refused);
    taken.sort_unstable();
    // At least once is what QoS 1 says, and twice what becomes of some when a slow machine loses the connection.
    let mut heard = BTreeSet::new();
    while heard.len() < taken.len() {
        let (_, payload) = app.hears().await;
        heard.insert(String::from_utf8_lossy(&payload[..8]).trim().parse::<usize>().unwrap());
    }
    assert!(heard.into_iter().eq(taken), "something else arrived than what was taken");
    site.test.assert_quiet().await;
}
