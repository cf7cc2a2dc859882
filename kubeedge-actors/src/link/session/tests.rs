//! Two ends face to face, step by step.

use std::time::Duration;

use kubeedge_proto::{
    resource,
    v1::{
        self, Ack, AckRange, CallReply, Chunk, Data, Disposition, Envelope, Frame, GoodbyeReason, Hello,
        InventoryEntry, KubeObject, ObjectKey, ObjectTombstone, ObjectUpsert, PodTerminated, Priority, Settled,
        StatusUpdate, TrafficClass, envelope::Body, frame::Frame as F,
    },
};
use prost::Message;

use super::{types::frame, *};
use crate::link::config::{KeyRate, Window, Windows};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn hello() -> Hello {
    Hello { instance_id: vec![7; 16].into(), connection: 1, ..Default::default() }
}

fn envelope(id: u8, body: Body) -> Envelope {
    Envelope {
        id: vec![id; 16].into(),
        priority: body.default_priority().into(),
        body: Some(body),
        ..Default::default()
    }
}

fn object(name: &str, uid: &str, version: u64, bytes: usize) -> KubeObject {
    KubeObject {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: uid.into(),
        resource_version: version.to_string(),
        json: vec![b'x'; bytes].into(),
        projection_hash: version,
    }
}

fn upsert(name: &str, uid: &str, version: u64) -> Body {
    Body::ObjectUpsert(ObjectUpsert { object: Some(object(name, uid, version, 10)), needs: vec![] })
}

fn big(name: &str, bytes: usize) -> Body {
    Body::ObjectUpsert(ObjectUpsert { object: Some(object(name, name, 1, bytes)), needs: vec![] })
}

fn tombstone(name: &str, uid: &str) -> Body {
    Body::ObjectTombstone(ObjectTombstone {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: uid.into(),
        resource_version: "9".into(),
    })
}

fn status(name: &str, generation: u64) -> Body {
    Body::StatusUpdate(StatusUpdate {
        r#type: Some(resource::pods()),
        key: Some(ObjectKey::new("ns", name)),
        uid: "u".into(),
        generation,
        status_json: b"{}".as_slice().into(),
    })
}

/// One end with what came out of it, frames apart.
struct End {
    session: Session,
    now: Duration,
    sent: Vec<Frame>,
    events: Vec<Output>,
    /// Reports frames as drained at once.
    drains: bool,
}

impl End {
    fn new(session: Session) -> Self {
        Self { session, now: Duration::ZERO, sent: Vec::new(), events: Vec::new(), drains: true }
    }

    fn give(&mut self, input: Input) {
        let mut out = Vec::new();
        self.session.handle(self.now, input, &mut out);
        self.sort(out);
        self.poll();
    }

    fn poll(&mut self) {
        loop {
            let mut out = Vec::new();
            self.session.poll(self.now, &mut out);
            if !self.sort(out) || !self.drains {
                return;
            }
        }
    }

    fn sort(&mut self, out: Vec<Output>) -> bool {
        let mut sent = false;
        for output in out {
            if let Output::Send(frame) = output {
                if self.drains {
                    let mut none = Vec::new();
                    let drained = Input::Drained { frames: 1, bytes: frame.encoded_len() };
                    self.session.handle(self.now, drained, &mut none);
                }
                self.sent.push(frame);
                sent = true;
            } else {
                self.events.push(output);
            }
        }
        sent
    }

    fn receive(&mut self, frame: F) {
        self.give(Input::Frame(types::frame(frame)));
    }

    fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.events)
    }

    fn closed(&mut self) -> Option<Closed> {
        self.take().into_iter().find_map(|event| if let Output::Closed(closed) = event { Some(closed) } else { None })
    }
}

/// Moves frames both ways until nothing moves.
fn exchange(a: &mut End, b: &mut End) {
    while !a.sent.is_empty() || !b.sent.is_empty() {
        for frame in std::mem::take(&mut a.sent) {
            b.give(Input::Frame(frame));
        }
        for frame in std::mem::take(&mut b.sent) {
            a.give(Input::Frame(frame));
        }
    }
}

fn admit() -> Input {
    Input::Admit { epoch: 1, cluster_uid: "c".into(), resource_version: 5 }
}

/// Both established, resync done with nothing desired.
fn pair(config: Config) -> (End, End) {
    let mut edge = End::new(Session::edge(hello(), config.clone()));
    let mut cloud = End::new(Session::cloud(config));
    edge.poll();
    exchange(&mut edge, &mut cloud);
    assert!(matches!(cloud.take()[..], [Output::HelloReceived(_)]));
    cloud.give(admit());
    assert!(matches!(cloud.take()[..], [Output::Established(_), Output::NeedDesired]));
    cloud.give(Input::DesiredKnown(v1::DesiredState::default()));
    exchange(&mut edge, &mut cloud);
    assert!(matches!(&edge.take()[..], [Output::Established(it)] if it.epoch == 1 && it.cluster_uid == "c"));
    (edge, cloud)
}

fn delivered(end: &mut End) -> Vec<(Class, u64, Envelope)> {
    let (delivered, rest) = end.take().into_iter().partition(|event| matches!(event, Output::Deliver { .. }));
    end.events = rest;
    delivered
        .into_iter()
        .filter_map(|event| match event {
            Output::Deliver { class, seq, envelope } => Some((class, seq, envelope)),
            _ => None,
        })
        .collect()
}

fn data_frames(end: &End) -> Vec<&Data> {
    end.sent.iter().filter_map(|it| if let Some(F::Data(data)) = &it.frame { Some(data) } else { None }).collect()
}

#[test]
fn versions_that_do_not_overlap_end_with_goodbye() {
    let mut cloud = End::new(Session::cloud(Config::default()));
    let versions = Some(v1::ProtocolVersions { lowest: 2, highest: 3 });
    cloud.receive(F::Hello(Hello { versions, ..hello() }));
    assert!(matches!(cloud.closed(), Some(Closed::ByUs(bye)) if bye.reason() == GoodbyeReason::UnsupportedVersion));
    assert!(matches!(&cloud.sent[0].frame, Some(F::Goodbye(_))));
}

#[test]
fn newer_edge_is_welcomed_with_the_common_version() {
    let mut cloud = End::new(Session::cloud(Config::default()));
    let versions = Some(v1::ProtocolVersions { lowest: 1, highest: 9 });
    cloud.receive(F::Hello(Hello { versions, ..hello() }));
    cloud.give(admit());
    assert!(matches!(&cloud.sent[0].frame, Some(F::Welcome(welcome)) if welcome.version == 1 && welcome.epoch == 1));
}

#[test]
fn edge_refuses_an_epoch_that_does_not_rise() {
    let mut edge = End::new(Session::edge(Hello { last_epoch: 5, ..hello() }, Config::default()));
    edge.poll();
    edge.receive(F::Welcome(v1::Welcome { version: 1, epoch: 5, ..Default::default() }));
    assert!(matches!(edge.closed(), Some(Closed::ByUs(bye)) if bye.reason() == GoodbyeReason::ProtocolError));
}

#[test]
fn state_waits_for_welcome_and_calls_fail_offline() {
    let mut edge = End::new(Session::edge(hello(), Config::default()));
    edge.give(Input::Submit(envelope(1, status("a", 1))));
    edge.give(Input::Submit(envelope(2, Body::RegisterNode(v1::RegisterNode::default()))));
    assert!(matches!(&edge.take()[..], [Output::CallFailed { why: CallFailure::Offline, .. }]));
    edge.receive(F::Welcome(v1::Welcome { version: 1, epoch: 1, ..Default::default() }));
    assert_eq!(data_frames(&edge).len(), 1);
}

#[test]
fn only_the_newest_of_a_key_is_sent_and_one_at_a_time() {
    let (mut edge, mut cloud) = pair(Config::default());
    for generation in 1..=5 {
        edge.give(Input::Submit(envelope(generation, status("a", generation.into()))));
    }
    exchange(&mut edge, &mut cloud);
    let first = delivered(&mut cloud);
    assert_eq!(first.len(), 1, "the second waits for the first to settle");
    let coalesced = edge.take().into_iter().filter(|event| matches!(event, Output::Coalesced { .. })).count();
    assert_eq!(coalesced, 3);
    cloud.give(Input::Settle { class: Class::State, seq: 1, settled: Settled::applied() });
    exchange(&mut edge, &mut cloud);
    let second = delivered(&mut cloud);
    assert!(matches!(&second[..], [(Class::State, 2, it)] if it.id[0] == 5));
    assert!(matches!(&edge.take()[..], [Output::Settled { envelope, .. }] if envelope.id[0] == 1));
}

#[test]
fn end_of_an_object_goes_before_its_successor() {
    let (mut edge, mut cloud) = pair(Config::default());
    cloud.give(Input::Submit(envelope(1, upsert("a", "old", 1))));
    cloud.give(Input::Submit(envelope(2, tombstone("a", "old"))));
    cloud.give(Input::Submit(envelope(3, upsert("a", "new", 3))));
    cloud.give(Input::Submit(envelope(4, upsert("a", "new", 4))));
    let mut order = Vec::new();
    for _ in 0..4 {
        exchange(&mut cloud, &mut edge);
        for (class, seq, it) in delivered(&mut edge) {
            order.push(it.id[0]);
            edge.give(Input::Settle { class, seq, settled: Settled::applied() });
        }
    }
    assert_eq!(order, [1, 2, 4]);
}

#[test]
fn terminated_is_not_overwritten_by_a_status() {
    let (mut edge, mut cloud) = pair(Config::default());
    edge.give(Input::Submit(envelope(1, status("a", 1))));
    let terminated = PodTerminated {
        key: Some(ObjectKey::new("ns", "a")),
        uid: "u".into(),
        generation: 2,
        status_json: b"{}".as_slice().into(),
    };
    edge.give(Input::Submit(envelope(2, Body::PodTerminated(terminated))));
    edge.give(Input::Submit(envelope(3, status("a", 3))));
    exchange(&mut edge, &mut cloud);
    assert_eq!(delivered(&mut cloud).len(), 1);
    cloud.give(Input::Settle { class: Class::State, seq: 1, settled: Settled::applied() });
    exchange(&mut edge, &mut cloud);
    assert!(matches!(&delivered(&mut cloud)[..], [(_, 2, it)] if it.id[0] == 2));
}

#[test]
fn key_over_its_rate_waits_without_a_window_slot_and_holds_nothing_up() {
    let rate = KeyRate { burst: 2, interval: ms(1000) };
    let windows = Windows { state: Window { messages: 1, bytes: 1 << 20 }, ..Windows::DEFAULT };
    let config = Config { key_rate: Some(rate), windows, ..Config::default() };
    let (mut edge, mut cloud) = pair(config);
    let settle_all = |edge: &mut End, cloud: &mut End| {
        let mut seen = Vec::new();
        loop {
            exchange(edge, cloud);
            let Some((class, seq, it)) = delivered(cloud).pop() else { return seen };
            seen.push(it.id[0]);
            cloud.give(Input::Settle { class, seq, settled: Settled::applied() });
        }
    };
    for generation in 1..=3 {
        edge.give(Input::Submit(envelope(generation, status("a", generation.into()))));
        let seen = settle_all(&mut edge, &mut cloud);
        assert_eq!(seen, if generation < 3 { vec![generation] } else { vec![] });
    }
    edge.give(Input::Submit(envelope(9, status("b", 1))));
    assert_eq!(settle_all(&mut edge, &mut cloud), [9]);
    assert_eq!(edge.session.next_deadline(), Some(ms(1000)));
    edge.now = ms(1000);
    edge.poll();
    assert_eq!(settle_all(&mut edge, &mut cloud), [3]);
}

#[test]
fn refused_and_slow_messages_hold_nothing_up() {
    let (mut edge, mut cloud) = pair(Config::default());
    for id in 1..=3 {
        edge.give(Input::Submit(envelope(id, status(&format!("p{id}"), 1))));
    }
    exchange(&mut edge, &mut cloud);
    assert_eq!(delivered(&mut cloud).len(), 3);
    cloud.give(Input::Settle { class: Class::State, seq: 3, settled: Settled::rejected(422, "no") });
    let ack = cloud.sent.iter().find_map(|it| if let Some(F::Ack(ack)) = &it.frame { Some(ack.clone()) } else { None });
    let ack = ack.unwrap();
    assert_eq!((ack.floor, ack.ranges[0].first, ack.ranges[0].code), (0, 3, 422));
    exchange(&mut edge, &mut cloud);
    assert!(matches!(&edge.take()[..], [Output::Settled { envelope, settled, .. }]
        if envelope.id[0] == 3 && settled.disposition() == Disposition::Rejected && settled.reason == "no"));
    cloud.give(Input::Settle { class: Class::State, seq: 1, settled: Settled::applied() });
    cloud.give(Input::Settle { class: Class::State, seq: 2, settled: Settled::applied() });
    exchange(&mut edge, &mut cloud);
    assert_eq!(edge.take().len(), 2);
}

#[test]
fn window_bounds_what_is_under_way() {
    let windows = Windows { state: Window { messages: 2, bytes: 1 << 20 }, ..Windows::DEFAULT };
    let (mut edge, mut cloud) = pair(Config { windows, ..Config::default() });
    for id in 1..=5 {
        edge.give(Input::Submit(envelope(id, status(&format!("p{id}"), 1))));
    }
    exchange(&mut edge, &mut cloud);
    assert_eq!(delivered(&mut cloud).len(), 2);
    cloud.give(Input::Settle { class: Class::State, seq: 2, settled: Settled::applied() });
    exchange(&mut edge, &mut cloud);
    assert_eq!(delivered(&mut cloud).len(), 1);
}

#[test]
fn peer_that_ignores_the_window_is_sent_away() {
    let windows = Windows { state: Window { messages: 2, bytes: 1 << 20 }, ..Windows::DEFAULT };
    let (_, mut cloud) = pair(Config { windows, ..Config::default() });
    for seq in 1..=3 {
        let envelope = envelope(1, status(&format!("p{seq}"), 1));
        let payload = Some(v1::data::Payload::Envelope(envelope));
        cloud.receive(F::Data(Data { class: TrafficClass::State.into(), seq, payload }));
    }
    assert!(matches!(cloud.closed(), Some(Closed::ByUs(bye)) if bye.reason() == GoodbyeReason::Limit));
}

#[test]
fn gaps_repeats_and_unknown_acks_are_protocol_errors() {
    let data = |seq| {
        let payload = Some(v1::data::Payload::Envelope(envelope(1, status("a", 1))));
        F::Data(Data { class: TrafficClass::State.into(), seq, payload })
    };
    let ack = |floor, first, last| {
        let ranges = if first == 0 { vec![] } else { vec![AckRange { first, last, ..Default::default() }] };
        F::Ack(Ack { class: TrafficClass::State.into(), floor, ranges })
    };
    let chunk = |seq, index, total, len, last| {
        let data = vec![0; len].into();
        let chunk = Chunk { index, total_bytes: total, data, last };
        F::Data(Data { class: TrafficClass::State.into(), seq, payload: Some(v1::data::Payload::Chunk(chunk)) })
    };
    let wrong_class = F::Data(Data {
        class: TrafficClass::Event.into(),
        seq: 1,
        payload: Some(v1::data::Payload::Envelope(envelope(1, status("a", 1)))),
    });
    let cases: Vec<(&str, Vec<F>)> = vec![
        ("gap", vec![data(2)]),
        ("repeat", vec![data(1), data(1)]),
        ("zero", vec![data(0)]),
        ("ack of nothing", vec![ack(0, 1, 1)]),
        ("ack of everything", vec![ack(0, 1, u64::MAX)]),
        ("floor of nothing", vec![ack(1, 0, 0)]),
        ("chunk without a first", vec![chunk(1, 1, 10, 5, false)]),
        ("chunk repeated", vec![chunk(1, 0, 10, 5, false), chunk(1, 0, 10, 5, true)]),
        ("chunk too long", vec![chunk(1, 0, 10, 11, true)]),
        ("chunk empty", vec![chunk(1, 0, 10, 0, false)]),
        ("chunk not last", vec![chunk(1, 0, 10, 10, false)]),
        ("chunks of no envelope", vec![chunk(1, 0, 3, 3, true)]),
        ("message too large", vec![chunk(1, 0, 9 << 20, 10, false)]),
        ("wrong class", vec![wrong_class]),
        ("second hello", vec![F::Hello(hello())]),
        ("inventory nobody asked for", vec![F::Inventory(v1::Inventory::default())]),
        ("frame of the cloud", vec![F::OpenStreams(v1::OpenStreams {})]),
    ];
    for (what, frames) in cases {
        let (_, mut cloud) = pair(Config::default());
        for frame in frames {
            cloud.receive(frame);
        }
        let closed = cloud.closed();
        let reason = closed.as_ref().and_then(Closed::goodbye).map(v1::Goodbye::reason);
        assert!(matches!(reason, Some(GoodbyeReason::ProtocolError | GoodbyeReason::Limit)), "{what}: {closed:?}");
    }
}

#[test]
fn ack_twice_is_a_protocol_error() {
    let (mut edge, mut cloud) = pair(Config::default());
    edge.give(Input::Submit(envelope(1, status("a", 1))));
    exchange(&mut edge, &mut cloud);
    let ranges = vec![AckRange { first: 1, last: 1, disposition: 1, ..Default::default() }];
    let ack = Ack { class: TrafficClass::State.into(), floor: 1, ranges };
    edge.receive(F::Ack(ack.clone()));
    assert!(matches!(&edge.take()[..], [Output::Settled { .. }]));
    edge.receive(F::Ack(ack));
    assert!(edge.closed().is_some());
}

#[test]
fn call_gets_its_reply() {
    let (mut edge, mut cloud) = pair(Config::default());
    let mut call = envelope(1, Body::RegisterNode(v1::RegisterNode::default()));
    call.timeout_ms = 500;
    edge.give(Input::Submit(call));
    exchange(&mut edge, &mut cloud);
    let (class, seq, it) = delivered(&mut cloud).remove(0);
    assert_eq!((class, seq, it.timeout_ms), (Class::Call, 1, 500));
    cloud.give(Input::Reply { seq, reply: CallReply::error(404, "NotFound", "") });
    exchange(&mut edge, &mut cloud);
    assert!(matches!(&edge.take()[..], [Output::Reply { id, .. }] if id[0] == 1));
    assert_eq!(cloud.session.stats().unexpected_answers, 0);
}

#[test]
fn call_fails_at_its_deadline_and_a_late_reply_is_dropped() {
    let (mut edge, mut cloud) = pair(Config::default());
    let mut call = envelope(1, Body::RegisterNode(v1::RegisterNode::default()));
    call.timeout_ms = 500;
    edge.give(Input::Submit(call));
    exchange(&mut edge, &mut cloud);
    let seq = delivered(&mut cloud)[0].1;
    assert_eq!(edge.session.next_deadline(), Some(ms(500)));
    edge.now = ms(500);
    edge.poll();
    assert!(matches!(&edge.take()[..], [Output::CallFailed { why: CallFailure::Timeout, .. }]));
    cloud.give(Input::Reply { seq, reply: CallReply::default() });
    exchange(&mut edge, &mut cloud);
    assert!(edge.take().is_empty());
    assert_eq!(edge.session.stats().late_replies, 1);
}

#[test]
fn calls_of_both_sides_do_not_wait_for_each_other() {
    let windows = Windows { call: Window { messages: 2, bytes: 1 << 20 }, ..Windows::DEFAULT };
    let (mut edge, mut cloud) = pair(Config { windows, ..Config::default() });
    for id in 1..=2 {
        edge.give(Input::Submit(envelope(id, Body::RegisterNode(v1::RegisterNode::default()))));
        cloud.give(Input::Submit(envelope(10 + id, Body::ApiRequest(v1::ApiRequest::default()))));
    }
    edge.session.outbox.set_windows(windows);
    cloud.session.outbox.set_windows(windows);
    exchange(&mut edge, &mut cloud);
    for end in [&mut edge, &mut cloud] {
        for (_, seq, _) in delivered(end) {
            end.give(Input::Reply { seq, reply: CallReply::default() });
        }
    }
    exchange(&mut edge, &mut cloud);
    assert_eq!((edge.take().len(), cloud.take().len()), (2, 2));
}

#[test]
fn unknown_bodies_are_answered_unsupported() {
    let (mut edge, mut cloud) = pair(Config::default());
    for (class, seq) in [(TrafficClass::State, 1), (TrafficClass::Event, 1), (TrafficClass::Call, 1)] {
        let envelope = Envelope { id: vec![1; 16].into(), ..Default::default() };
        let payload = Some(v1::data::Payload::Envelope(envelope));
        cloud.receive(F::Data(Data { class: class.into(), seq, payload }));
    }
    let mut acks = 0;
    let mut replies = 0;
    for it in &cloud.sent {
        match &it.frame {
            Some(F::Ack(ack)) => {
                acks += 1;
                let unsupported = ack.ranges[0].code == 501 || ack.class() == TrafficClass::Call;
                assert!(unsupported, "{ack:?}");
            }
            Some(F::Data(data)) => {
                let Some(v1::data::Payload::Envelope(it)) = &data.payload else { panic!("{data:?}") };
                let Some(Body::CallReply(reply)) = &it.body else { panic!("{it:?}") };
                let Some(v1::call_reply::Result::Error(error)) = &reply.result else { panic!("{reply:?}") };
                assert_eq!((error.code, error.reason.as_str()), (501, "Unsupported"));
                replies += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((acks, replies), (3, 1));
    assert!(!cloud.session.is_closed());
    cloud.give(Input::Frame(Frame { frame: None }));
    assert!(!cloud.session.is_closed(), "a frame of a later version is passed over");
    let _ = edge.take();
}

#[test]
fn big_object_is_chunked_and_others_go_in_between() {
    let (mut edge, mut cloud) = pair(Config::default());
    edge.drains = false;
    cloud.drains = false;
    cloud.give(Input::Submit(envelope(1, big("big", 1 << 20))));
    cloud.give(Input::Submit(envelope(2, upsert("small", "s", 1))));
    let mut call = envelope(3, Body::ObjectQuery(v1::ObjectQuery::default()));
    call.priority = Priority::Control.into();
    cloud.give(Input::Submit(call));
    let mut order = Vec::new();
    while !cloud.sent.is_empty() {
        let outstanding: usize = cloud.sent.iter().map(Message::encoded_len).sum();
        assert!(outstanding <= 64 * 1024, "{outstanding} bytes handed out");
        let frames = std::mem::take(&mut cloud.sent);
        for frame in frames {
            let bytes = frame.encoded_len();
            assert!(bytes <= 33 * 1024);
            edge.give(Input::Frame(frame));
            order.extend(delivered(&mut edge).into_iter().map(|(_, _, it)| it.id[0]));
            assert!(edge.session.inbox.assembling() <= 1 << 21);
            cloud.give(Input::Drained { frames: 1, bytes });
        }
    }
    assert_eq!(order.last(), Some(&1), "the small ones overtake");
    assert_eq!(order.len(), 3);
    assert_eq!(edge.session.inbox.assembling(), 0);
}

#[test]
fn saturated_levels_share_by_weight_and_none_starves() {
    let config = Config { max_queued_events: 100_000, max_queued_event_bytes: 1 << 30, ..Config::default() };
    let mut outbox = outbox::Outbox::new(&config);
    let everything = Window { messages: u32::MAX, bytes: u64::MAX };
    outbox.set_windows(Windows { state: everything, event: everything, call: everything });
    for priority in [Priority::Telemetry, Priority::Bulk, Priority::Control, Priority::Liveness] {
        for _ in 0..2000 {
            let message = v1::UserMessage { payload: vec![0; 1000].into(), ..Default::default() };
            let mut it = envelope(priority as u8, Body::UserMessage(message));
            it.priority = priority.into();
            outbox.push_event(it, 1000);
        }
    }
    let mut counts = [0; 6];
    for _ in 0..1350 {
        let sent = outbox.next_frame(Duration::ZERO).unwrap();
        let Some(F::Data(Data { payload: Some(v1::data::Payload::Envelope(it)), .. })) = sent.frame else { panic!() };
        counts[usize::from(it.id[0])] += 1;
    }
    // Weights 16, 8, -, 2, 1.
    assert_eq!(counts, [0, 800, 400, 0, 100, 50]);
}

#[test]
fn heartbeat_only_when_silent_and_death_after_25_seconds() {
    let (mut edge, mut cloud) = pair(Config::default());
    edge.now = ms(9_999);
    edge.poll();
    assert!(edge.sent.is_empty());
    assert_eq!(edge.session.next_deadline(), Some(ms(10_000)));
    edge.now = ms(10_000);
    cloud.now = ms(10_000);
    edge.give(Input::Progress { age_ms: 1500 });
    exchange(&mut edge, &mut cloud);
    assert!(matches!(cloud.take()[..], [Output::Heartbeat { progress_age_ms: 1500 }]));
    assert!(cloud.sent.is_empty());
    let frames = edge.session.stats().frames_received;
    assert_eq!(edge.session.stats().round_trip_ms, 0);
    assert_eq!(frames, 2, "Welcome and the answer");
    edge.now = ms(34_999);
    edge.poll();
    assert!(!edge.session.is_closed());
    edge.now = ms(35_000);
    edge.poll();
    assert!(matches!(edge.closed(), Some(Closed::ByUs(bye)) if bye.reason() == GoodbyeReason::TimedOut));
}

#[test]
fn handshake_has_a_deadline() {
    let mut cloud = End::new(Session::cloud(Config::default()));
    cloud.poll();
    assert_eq!(cloud.session.next_deadline(), Some(ms(10_000)));
    cloud.now = ms(10_000);
    cloud.poll();
    assert!(cloud.closed().is_some());
}

#[test]
fn what_is_not_settled_comes_back_at_the_end() {
    let (mut edge, mut cloud) = pair(Config::default());
    edge.give(Input::Submit(envelope(1, status("a", 1))));
    edge.give(Input::Submit(envelope(2, status("a", 2))));
    edge.give(Input::Submit(envelope(3, Body::UserMessage(v1::UserMessage::default()))));
    edge.give(Input::Submit(envelope(4, Body::RegisterNode(v1::RegisterNode::default()))));
    exchange(&mut edge, &mut cloud);
    edge.give(Input::TransportEnded("cut".into()));
    let events = edge.take();
    assert!(matches!(
        &events[..],
        [Output::Closed(Closed::Transport(_)), Output::CallFailed { why: CallFailure::Offline, .. }]
    ));
    let ids = |envelopes: Vec<Envelope>| envelopes.iter().map(|it| it.id[0]).collect::<Vec<_>>();
    let remains = edge.session.finish();
    assert_eq!((ids(remains.state), ids(remains.events)), (vec![1, 2], vec![3]));
}

#[test]
fn event_queue_is_bounded_and_refuses_aloud() {
    let mut edge = End::new(Session::edge(hello(), Config { max_queued_events: 2, ..Config::default() }));
    for id in 1..=3 {
        edge.give(Input::Submit(envelope(id, Body::UserMessage(v1::UserMessage::default()))));
    }
    assert!(matches!(&edge.take()[..], [Output::Refused { envelope, why: Refusal::QueueFull { .. } }]
        if envelope.id[0] == 3));
    assert_eq!(edge.session.stats().refused, 1);
}

#[test]
fn completion_comes_after_the_state_of_its_kind_is_settled() {
    let (mut edge, mut cloud) = pair(Config::default());
    cloud.give(Input::Submit(envelope(1, upsert("a", "a", 1))));
    cloud.give(Input::Submit(envelope(2, upsert("a", "a", 2))));
    let complete = v1::InventoryComplete { r#type: Some(resource::pods()), as_of: 2, count: 1 };
    cloud.give(Input::Complete(complete.clone()));
    exchange(&mut edge, &mut cloud);
    assert_eq!(delivered(&mut edge).len(), 1);
    edge.give(Input::Settle { class: Class::State, seq: 1, settled: Settled::applied() });
    exchange(&mut edge, &mut cloud);
    assert!(matches!(&edge.take()[..], [Output::Deliver { seq: 2, .. }]), "held until 2 is settled too");
    edge.give(Input::Settle { class: Class::State, seq: 2, settled: Settled::applied() });
    assert!(matches!(&edge.take()[..], [Output::Completed(it)] if *it == complete));
}

fn desired(complete: bool, as_of: u64, objects: Vec<KubeObject>) -> v1::DesiredState {
    let objects = objects.into_iter().map(|object| ObjectUpsert { object: Some(object), needs: vec![] }).collect();
    v1::DesiredState { kinds: vec![v1::DesiredKind { r#type: Some(resource::pods()), complete, as_of, objects }] }
}

fn held(name: &str, uid: &str, hash: u64) -> InventoryEntry {
    InventoryEntry {
        key: Some(ObjectKey::new("ns", name)),
        uid: uid.into(),
        projection_hash: hash,
        resource_version: hash.to_string(),
    }
}

/// What the cloud sends to an edge that holds these, as (id of nothing, body) in order; completions as a count.
fn resync(pinned: &str, entries: Vec<InventoryEntry>, state: v1::DesiredState) -> (Vec<String>, usize) {
    let digest = v1::KindDigest {
        r#type: Some(resource::pods()),
        count: entries.len() as u32,
        digest: kubeedge_proto::digest::kind_digest(&entries).to_vec().into(),
        max_resource_version: entries.iter().map(|entry| entry.projection_hash).max().unwrap_or(0),
        bookmark: String::new(),
    };
    let hello = Hello { cluster_uid: pinned.into(), kinds: vec![digest], ..hello() };
    let mut edge = End::new(Session::edge(hello, Config::default()));
    let mut cloud = End::new(Session::cloud(Config::default()));
    edge.poll();
    exchange(&mut edge, &mut cloud);
    cloud.give(admit());
    cloud.give(Input::DesiredKnown(state));
    let mut sent = Vec::new();
    let mut completed = 0;
    for _ in 0..20 {
        exchange(&mut edge, &mut cloud);
        for event in edge.take() {
            match event {
                Output::NeedInventory(type_) => edge.give(Input::InventoryKnown { type_, entries: entries.clone() }),
                Output::Deliver { class, seq, envelope } => {
                    sent.push(match envelope.body {
                        Some(Body::ObjectUpsert(it)) => format!("+{}", it.object.unwrap().uid),
                        Some(Body::ObjectTombstone(it)) => format!("-{}", it.uid),
                        other => panic!("{other:?}"),
                    });
                    edge.give(Input::Settle { class, seq, settled: Settled::applied() });
                }
                Output::Completed(_) => completed += 1,
                _ => {}
            }
        }
    }
    (sent, completed)
}

#[test]
fn equal_digests_send_nothing_but_the_completion() {
    let state = desired(true, 9, vec![object("a", "a1", 3, 10)]);
    assert_eq!(resync("c", vec![held("a", "a1", 3)], state), (vec![], 1));
}

#[test]
fn difference_is_sent_where_digests_differ() {
    let state = desired(true, 9, vec![object("a", "a1", 3, 10), object("b", "b1", 5, 10), object("c", "c2", 6, 10)]);
    let entries = vec![held("a", "a1", 3), held("b", "b1", 4), held("c", "c1", 2), held("d", "d1", 2)];
    let (sent, completed) = resync("c", entries, state);
    assert_eq!((sent, completed), (["+b1", "-c1", "-d1", "+c2"].map(String::from).to_vec(), 1));
}

#[test]
fn nothing_is_deleted_by_absence_when_too_little_is_known() {
    let entries = || vec![held("a", "a1", 7), held("b", "b1", 4)];
    let objects = || vec![object("a", "a1", 8, 10)];
    let updated = (vec!["+a1".to_owned()], 0);
    assert_eq!(resync("c", entries(), desired(false, 9, objects())), updated, "no complete list");
    assert_eq!(resync("c", entries(), desired(true, 6, objects())), updated, "older than what the edge has seen");
    assert_eq!(resync("other", entries(), desired(true, 9, objects())), updated, "another cluster");
    let (sent, completed) = resync("c", entries(), desired(true, 9, objects()));
    assert_eq!((sent.len(), completed), (2, 1));
}

#[test]
fn list_older_than_what_the_edge_has_seen_is_asked_for_again() {
    let digest =
        v1::KindDigest { r#type: Some(resource::pods()), count: 1, max_resource_version: 7, ..Default::default() };
    let mut edge = End::new(Session::edge(Hello { kinds: vec![digest], ..hello() }, Config::default()));
    let mut cloud = End::new(Session::cloud(Config::default()));
    edge.poll();
    exchange(&mut edge, &mut cloud);
    cloud.give(admit());
    cloud.take();
    for (as_of, wait) in [(5, Some(1000)), (6, Some(3000)), (7, None)] {
        cloud.give(Input::DesiredKnown(desired(true, as_of, vec![])));
        exchange(&mut edge, &mut cloud);
        edge.give(Input::InventoryKnown { type_: resource::pods(), entries: vec![held("a", "a1", 7)] });
        exchange(&mut edge, &mut cloud);
        let Some(at) = wait else { break };
        assert_eq!(delivered(&mut edge), []);
        assert_eq!(cloud.session.next_deadline(), Some(ms(at)));
        cloud.now = ms(at);
        cloud.poll();
        assert!(matches!(cloud.take()[..], [Output::NeedDesired]));
    }
    let sent = delivered(&mut edge);
    assert!(matches!(&sent[..], [(_, _, it)] if matches!(it.body, Some(Body::ObjectTombstone(_)))));
}

#[test]
fn state_submitted_while_the_desired_set_is_asked_for_wins() {
    let entries = vec![held("a", "a1", 1), held("b", "b1", 1)];
    let digest = v1::KindDigest { r#type: Some(resource::pods()), count: 2, ..Default::default() };
    let mut edge = End::new(Session::edge(Hello { kinds: vec![digest], ..hello() }, Config::default()));
    let mut cloud = End::new(Session::cloud(Config::default()));
    edge.poll();
    exchange(&mut edge, &mut cloud);
    cloud.give(admit());
    cloud.give(Input::Submit(envelope(1, tombstone("a", "a1"))));
    exchange(&mut edge, &mut cloud);
    edge.give(Input::Settle { class: Class::State, seq: 1, settled: Settled::applied() });
    cloud.give(Input::DesiredKnown(desired(true, 5, vec![object("a", "a1", 1, 10), object("b", "b1", 1, 10)])));
    exchange(&mut edge, &mut cloud);
    edge.take();
    edge.give(Input::InventoryKnown { type_: resource::pods(), entries });
    exchange(&mut edge, &mut cloud);
    assert!(matches!(&edge.take()[..], [Output::Completed(it)] if it.count == 1), "the older upsert must not follow");
}

#[test]
fn frame_on_the_wire_is_never_larger_than_its_limit() {
    let (_, mut cloud) = pair(Config::default());
    let chunk = Chunk { index: 0, total_bytes: 70_000, data: vec![0; 70_000].into(), last: true };
    let payload = Some(v1::data::Payload::Chunk(chunk));
    cloud.give(Input::Frame(frame(F::Data(Data { class: TrafficClass::State.into(), seq: 1, payload }))));
    assert!(matches!(cloud.closed(), Some(Closed::ByUs(bye)) if bye.reason() == GoodbyeReason::Limit));
}
