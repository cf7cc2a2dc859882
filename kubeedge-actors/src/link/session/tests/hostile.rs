//! A peer that breaks the rules, or speaks of things this version does not know.

use super::*;

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
fn frame_on_the_wire_is_never_larger_than_its_limit() {
    let (_, mut cloud) = pair(Config::default());
    let chunk = Chunk { index: 0, total_bytes: 70_000, data: vec![0; 70_000].into(), last: true };
    let payload = Some(v1::data::Payload::Chunk(chunk));
    cloud.give(Input::Frame(frame(F::Data(Data { class: TrafficClass::State.into(), seq: 1, payload }))));
    assert!(matches!(cloud.closed(), Some(Closed::ByUs(bye)) if bye.reason() == GoodbyeReason::Limit));
}
