//! Calls and their deadlines.

use super::{
    outbox::{MAX_REPLIES, MAX_REPLY_BYTES},
    *,
};
use v1::call_reply::Result as Replied;

#[test]
fn call_gets_its_reply() {
    let (mut edge, mut cloud) = pair(Config::default());
    let mut call = envelope(1, Body::RegisterNode(v1::RegisterNode::default()));
    call.timeout_ms = 500;
    edge.give(Input::Submit(Box::new(call)));
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
    edge.give(Input::Submit(Box::new(call)));
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
        edge.give(Input::Submit(Box::new(envelope(id, Body::RegisterNode(v1::RegisterNode::default())))));
        cloud.give(Input::Submit(Box::new(envelope(10 + id, Body::ApiRequest(v1::ApiRequest::default())))));
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

/// `P-MEMORY-BOUNDED`
#[test]
fn a_peer_that_asks_on_and_acknowledges_no_reply_is_held_to_the_bounds_of_replies() {
    let (_, mut cloud) = pair(Config::default());
    let large = || {
        let response = v1::ApiResponse { body: vec![0; 4 << 20].into(), ..Default::default() };
        CallReply { result: Some(Replied::ApiResponse(Box::new(response))) }
    };
    let mut refused = 0;
    for asked in 0..=3 * MAX_REPLIES {
        if cloud.session.is_closed() {
            assert!(refused > 0 && asked >= MAX_REPLIES, "{refused} of {asked}");
            let closed = cloud.closed().unwrap().to_string();
            assert!(closed.contains("replies that are not acknowledged"), "{closed}");
            return;
        }
        // The request arrives and what the cloud sends does not.
        let mut call = envelope(1, Body::ApiRequest(v1::ApiRequest::default()));
        call.id = (asked as u128).to_be_bytes().to_vec().into();
        let seq = asked as u64 + 1;
        cloud.receive(F::Data(Data {
            class: v1::TrafficClass::Call.into(),
            seq,
            payload: Some(v1::data::Payload::Envelope(call.encode_to_vec().into())),
        }));
        let before = cloud.session.outbox.waiting_replies();
        cloud.give(Input::Reply { seq, reply: large() });
        let after = cloud.session.outbox.waiting_replies();
        refused += usize::from(after.0 > before.0 && after.1 < before.1 + (1 << 20));
        assert!(after.1 <= MAX_REPLY_BYTES + (1 << 20), "{after:?}");
    }
    panic!("{refused} answers were refused, and the session goes on");
}
