//! A peer that breaks the rules, or speaks of things this version does not know.

use proptest::prelude::*;

use super::*;

#[test]
fn peer_that_ignores_the_window_is_sent_away() {
    let windows = Windows { state: Window { messages: 2, bytes: 1 << 20 }, ..Windows::DEFAULT };
    let (_, mut cloud) = pair(Config { windows, ..Config::default() });
    for seq in 1..=3 {
        let envelope = envelope(1, status(&format!("p{seq}"), 1));
        let payload = Some(v1::data::Payload::Envelope(envelope.encode_to_vec().into()));
        cloud.receive(F::Data(Data { class: TrafficClass::State.into(), seq, payload }));
    }
    assert!(matches!(cloud.closed(), Some(Closed::ByUs(bye)) if bye.reason() == GoodbyeReason::Limit));
}

#[test]
fn gaps_repeats_and_unknown_acks_are_protocol_errors() {
    let data = |seq| {
        let payload = Some(v1::data::Payload::Envelope(envelope(1, status("a", 1)).encode_to_vec().into()));
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
        payload: Some(v1::data::Payload::Envelope(envelope(1, status("a", 1)).encode_to_vec().into())),
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
        ("second hello", vec![F::Hello(hello().into())]),
        ("inventory nobody asked for", vec![F::Inventory(v1::Inventory::default().into())]),
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
    edge.give(Input::Submit(Box::new(envelope(1, status("a", 1)))));
    exchange(&mut edge, &mut cloud);
    let ranges = vec![AckRange { first: 1, last: 1, disposition: 1, ..Default::default() }];
    let ack = Ack { class: TrafficClass::State.into(), floor: 1, ranges };
    edge.receive(F::Ack(ack.clone()));
    assert!(matches!(&edge.take()[..], [Output::Settled { .. }]));
    edge.receive(F::Ack(ack));
    assert!(edge.closed().is_some());
}

/// P-ABSENCE-KNOWN
#[test]
fn no_kind_is_complete_after_state_that_this_version_does_not_know() {
    let (mut edge, mut cloud) = pair(Config::default());
    let complete = v1::InventoryComplete { r#type: Some(resource::pods()), as_of: 9, count: 1 };
    cloud.give(Input::Complete(complete.clone()));
    exchange(&mut edge, &mut cloud);
    assert!(matches!(&edge.take()[..], [Output::Completed(_)]));

    let unknown = Envelope { id: vec![1; 16].into(), ..Default::default() };
    let payload = Some(v1::data::Payload::Envelope(unknown.encode_to_vec().into()));
    edge.receive(F::Data(Data { class: TrafficClass::State.into(), seq: 1, payload }));
    cloud.give(Input::Complete(complete));
    for frame in std::mem::take(&mut cloud.sent) {
        edge.give(Input::Frame(frame));
    }
    assert!(edge.take().is_empty(), "what it was about may be a pod of that list");
    assert!(!edge.session.is_closed());
}

#[test]
fn unknown_bodies_are_answered_unsupported() {
    let (mut edge, mut cloud) = pair(Config::default());
    for (class, seq) in [(TrafficClass::State, 1), (TrafficClass::Event, 1), (TrafficClass::Call, 1)] {
        let envelope = Envelope { id: vec![1; 16].into(), ..Default::default() };
        let payload = Some(v1::data::Payload::Envelope(envelope.encode_to_vec().into()));
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
                let it = Envelope::decode(it.clone()).unwrap();
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

fn any_frame() -> impl Strategy<Value = F> {
    let class = 0..5i32;
    let small = prop_oneof![0u64..6, Just(u64::MAX)];
    let length = prop_oneof![0usize..40, Just(17_000)];
    let body = prop_oneof![
        Just(None),
        Just(Some(status("a", 1))),
        Just(Some(Body::StatusUpdate(StatusUpdate::default()))),
        Just(Some(Body::RegisterNode(v1::RegisterNode::default()))),
        Just(Some(Body::CallReply(CallReply::default()))),
        Just(Some(Body::UserMessage(v1::UserMessage::default()))),
    ];
    let message = (class.clone(), small.clone(), body, 0usize..20).prop_map(|(class, seq, body, id)| {
        let envelope = Envelope { id: vec![1; id].into(), body, ..Default::default() };
        F::Data(Data { class, seq, payload: Some(v1::data::Payload::Envelope(envelope.encode_to_vec().into())) })
    });
    let chunk = (class.clone(), small.clone(), 0u32..4, any::<u32>(), length, any::<bool>()).prop_map(
        |(class, seq, index, total, length, last)| {
            let total_bytes = if total % 4 == 0 { total } else { 3 * length as u32 };
            let chunk = Chunk { index, total_bytes, data: vec![0; length].into(), last };
            F::Data(Data { class, seq, payload: Some(v1::data::Payload::Chunk(chunk)) })
        },
    );
    let range = (small.clone(), small.clone(), 0..5i32).prop_map(|(first, last, disposition)| AckRange {
        first,
        last,
        disposition,
        ..Default::default()
    });
    let ack = (class, small.clone(), prop::collection::vec(range, 0..3))
        .prop_map(|(class, floor, ranges)| F::Ack(Ack { class, floor, ranges }));
    let type_ = prop_oneof![Just(None), Just(Some(resource::pods()))];
    prop_oneof![
        4 => message,
        4 => chunk,
        2 => ack,
        1 => (small.clone(), small.clone()).prop_map(|(nonce, answers)| {
            F::Heartbeat(v1::Heartbeat { nonce, answers, progress_age_ms: nonce })
        }),
        1 => type_.clone().prop_map(|r#type| F::Inventory(v1::Inventory { r#type, ..Default::default() }.into())),
        1 => (type_.clone(), small).prop_map(|(r#type, as_of)| {
            F::InventoryComplete(v1::InventoryComplete { r#type, as_of, count: 0 }.into())
        }),
        1 => type_.prop_map(|r#type| F::InventoryRequest(v1::InventoryRequest {
            types: r#type.into_iter().collect(),
        })),
        1 => Just(F::Welcome(v1::Welcome::default().into())),
        1 => Just(F::Goodbye(v1::Goodbye::default())),
    ]
}

proptest! {
    /// Nothing that a peer sends makes an end panic, keep more than its limits, or end more than once.
    #[test]
    fn no_sequence_of_frames_breaks_an_end(
        frames in prop::collection::vec((any_frame(), 0u8..3), 1..40),
        at_edge in any::<bool>(),
    ) {
        let config = Config { max_message_bytes: 100_000, ..Config::default() };
        let (edge, cloud) = pair(config);
        let mut end = if at_edge { edge } else { cloud };
        end.give(Input::Submit(Box::new(envelope(1, status("mine", 1)))));
        let mut closed = 0;
        for (frame, answer) in frames {
            end.receive(frame);
            for event in end.take() {
                match event {
                    Output::Closed(_) => closed += 1,
                    Output::Deliver { class: Class::Call, seq, .. } if answer == 1 => {
                        end.give(Input::Reply { seq, reply: CallReply::default() });
                    }
                    Output::Deliver { class, seq, .. } if answer == 1 => {
                        end.give(Input::Settle { class, seq, settled: Settled::applied() });
                    }
                    _ => {}
                }
            }
            prop_assert!(end.session.inbox.assembling() <= 3 * (1 << 20));
        }
        prop_assert!(closed <= 1);
        prop_assert_eq!(closed == 1, end.session.is_closed());
        let remains = end.session.finish().state.len();
        prop_assert!(remains <= 1);
    }
}
