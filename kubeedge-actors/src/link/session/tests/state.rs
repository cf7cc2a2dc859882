//! State and Events: order, coalescing, windows, rates, priorities, chunks.

use super::*;

#[test]
fn state_waits_for_welcome_and_calls_fail_offline() {
    let mut edge = End::new(Session::edge(hello(), Config::default()));
    edge.give(Input::Submit(Box::new(envelope(1, status("a", 1)))));
    edge.give(Input::Submit(Box::new(envelope(2, Body::RegisterNode(v1::RegisterNode::default())))));
    assert!(matches!(&edge.take()[..], [Output::CallFailed { why: CallFailure::Offline, .. }]));
    edge.receive(F::Welcome(v1::Welcome { version: 1, epoch: 1, ..Default::default() }.into()));
    assert_eq!(data_frames(&edge).len(), 1);
}

#[test]
fn only_the_newest_of_a_key_is_sent_and_one_at_a_time() {
    let (mut edge, mut cloud) = pair(Config::default());
    for generation in 1..=5 {
        edge.give(Input::Submit(Box::new(envelope(generation, status("a", generation.into())))));
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
    cloud.give(Input::Submit(Box::new(envelope(1, upsert("a", "old", 1)))));
    cloud.give(Input::Submit(Box::new(envelope(2, tombstone("a", "old")))));
    cloud.give(Input::Submit(Box::new(envelope(3, upsert("a", "new", 3)))));
    cloud.give(Input::Submit(Box::new(envelope(4, upsert("a", "new", 4)))));
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
    edge.give(Input::Submit(Box::new(envelope(1, status("a", 1)))));
    let terminated = PodTerminated {
        key: Some(ObjectKey::new("ns", "a")),
        uid: "u".into(),
        generation: 2,
        status_json: b"{}".as_slice().into(),
    };
    edge.give(Input::Submit(Box::new(envelope(2, Body::PodTerminated(terminated)))));
    edge.give(Input::Submit(Box::new(envelope(3, status("a", 3)))));
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
        edge.give(Input::Submit(Box::new(envelope(generation, status("a", generation.into())))));
        let seen = settle_all(&mut edge, &mut cloud);
        assert_eq!(seen, if generation < 3 { vec![generation] } else { vec![] });
    }
    edge.give(Input::Submit(Box::new(envelope(9, status("b", 1)))));
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
        edge.give(Input::Submit(Box::new(envelope(id, status(&format!("p{id}"), 1)))));
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
        edge.give(Input::Submit(Box::new(envelope(id, status(&format!("p{id}"), 1)))));
    }
    exchange(&mut edge, &mut cloud);
    assert_eq!(delivered(&mut cloud).len(), 2);
    cloud.give(Input::Settle { class: Class::State, seq: 2, settled: Settled::applied() });
    exchange(&mut edge, &mut cloud);
    assert_eq!(delivered(&mut cloud).len(), 1);
}

#[test]
fn big_object_is_chunked_and_others_go_in_between() {
    let (mut edge, mut cloud) = pair(Config::default());
    edge.drains = false;
    cloud.drains = false;
    cloud.give(Input::Submit(Box::new(envelope(1, big("big", 1 << 20)))));
    cloud.give(Input::Submit(Box::new(envelope(2, upsert("small", "s", 1)))));
    let mut call = envelope(3, Body::ObjectQuery(v1::ObjectQuery::default()));
    call.priority = Priority::Control.into();
    cloud.give(Input::Submit(Box::new(call)));
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
            outbox.push_event(it.into(), 1000);
        }
    }
    let mut counts = [0; 6];
    for _ in 0..1350 {
        let sent = outbox.next_frame(Duration::ZERO).unwrap();
        let Some(F::Data(Data { payload: Some(v1::data::Payload::Envelope(it)), .. })) = sent.0.frame else { panic!() };
        counts[usize::from(Envelope::decode(it).unwrap().id[0])] += 1;
    }
    // Weights 16, 8, -, 2, 1.
    assert_eq!(counts, [0, 800, 400, 0, 100, 50]);
}

/// P-MEMORY-BOUNDED
#[test]
fn state_queue_is_bounded_and_refuses_aloud() {
    let mut edge = End::new(Session::edge(hello(), Config { max_queued_state: 2, ..Config::default() }));
    for (id, name) in [(1, "a"), (2, "b"), (3, "a"), (4, "c")] {
        edge.give(Input::Submit(Box::new(envelope(id, status(name, id.into())))));
    }
    // A newer message takes its predecessor's place; a further object has none.
    assert!(matches!(&edge.take()[..], [
        Output::Coalesced { envelope: old },
        Output::Refused { envelope: refused, why: Refusal::QueueFull { limit: 2, .. } },
    ] if old.id[0] == 1 && refused.id[0] == 4));
    assert_eq!(edge.session.queued_state(), 2);
}

#[test]
fn event_queue_is_bounded_and_refuses_aloud() {
    let mut edge = End::new(Session::edge(hello(), Config { max_queued_events: 2, ..Config::default() }));
    for id in 1..=3 {
        edge.give(Input::Submit(Box::new(envelope(id, Body::UserMessage(v1::UserMessage::default())))));
    }
    assert!(matches!(&edge.take()[..], [Output::Refused { envelope, why: Refusal::QueueFull { .. } }]
        if envelope.id[0] == 3));
    assert_eq!(edge.session.stats().refused, 1);
}
