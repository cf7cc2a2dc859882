//! Calls and their deadlines.

use super::*;

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
