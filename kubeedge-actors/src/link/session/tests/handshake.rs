//! Hello, Welcome, heartbeats and the end.

use super::*;

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
fn a_session_begins_with_the_progress_of_the_edge() {
    let (mut edge, mut cloud) = pair(Config::default());
    edge.now = ms(20);
    cloud.now = ms(20);
    edge.give(Input::Progress { age_ms: 1500 });
    exchange(&mut edge, &mut cloud);
    assert!(matches!(cloud.take()[..], [Output::Heartbeat { progress_age_ms: 1500 }]));
    edge.give(Input::Progress { age_ms: 0 });
    exchange(&mut edge, &mut cloud);
    assert!(cloud.take().is_empty(), "the next one comes when it is due");
    assert_eq!(edge.session.next_deadline(), Some(ms(10_020)));
}

#[test]
fn the_shorter_heartbeat_interval_of_the_two_ends_counts() {
    for (own, asked, counts) in [(10_000, 10_000, 10_000), (3_000, 10_000, 3_000), (10_000, 2_000, 2_000)] {
        let config = Config { heartbeat_interval: ms(own), ..Config::default() };
        let mut edge = End::new(Session::edge(hello(), config));
        edge.poll();
        let welcome = v1::Welcome { version: 1, epoch: 1, heartbeat_interval_ms: asked, ..Default::default() };
        edge.receive(F::Welcome(welcome));
        edge.sent.clear();
        assert_eq!(edge.session.next_deadline(), Some(ms(counts)), "{own} {asked}");
    }
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
    edge.give(Input::Submit(Box::new(envelope(1, status("a", 1)))));
    edge.give(Input::Submit(Box::new(envelope(2, status("a", 2)))));
    edge.give(Input::Submit(Box::new(envelope(3, Body::UserMessage(v1::UserMessage::default())))));
    edge.give(Input::Submit(Box::new(envelope(4, Body::RegisterNode(v1::RegisterNode::default())))));
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
