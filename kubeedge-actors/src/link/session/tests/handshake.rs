//! Hello, Welcome, heartbeats and the end.

use super::*;

#[test]
fn versions_that_do_not_overlap_end_with_goodbye() {
    let mut cloud = End::new(Session::cloud(Config::default()));
    let versions = Some(v1::ProtocolVersions { lowest: 2, highest: 3 });
    cloud.receive(F::Hello(Hello { versions, ..hello() }.into()));
    assert!(matches!(cloud.closed(), Some(Closed::ByUs(bye)) if bye.reason() == GoodbyeReason::UnsupportedVersion));
    assert!(matches!(&cloud.sent[0].frame, Some(F::Goodbye(_))));
}

#[test]
fn newer_edge_is_welcomed_with_the_common_version() {
    let mut cloud = End::new(Session::cloud(Config::default()));
    let versions = Some(v1::ProtocolVersions { lowest: 1, highest: 9 });
    cloud.receive(F::Hello(Hello { versions, ..hello() }.into()));
    cloud.give(admit());
    assert!(matches!(&cloud.sent[0].frame, Some(F::Welcome(welcome)) if welcome.version == 1 && welcome.epoch == 1));
}

#[test]
fn edge_refuses_an_epoch_that_does_not_rise() {
    let mut edge = End::new(Session::edge(Hello { last_epoch: 5, ..hello() }, Config::default()));
    edge.poll();
    edge.receive(F::Welcome(v1::Welcome { version: 1, epoch: 5, ..Default::default() }.into()));
    assert!(matches!(edge.closed(), Some(Closed::ByUs(bye)) if bye.reason() == GoodbyeReason::ProtocolError));
}

#[test]
fn heartbeat_only_when_silent_and_death_after_23_seconds() {
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
    assert!(matches!(edge.take()[..], [Output::RoundTrip(took)] if took == ms(0)));
    let frames = edge.session.stats().frames_received;
    assert_eq!(edge.session.stats().round_trip_ms, 0);
    assert_eq!(frames, 2, "Welcome and the answer");
    edge.now = ms(32_999);
    edge.poll();
    assert!(!edge.session.is_closed());
    edge.now = ms(33_000);
    edge.poll();
    assert!(matches!(edge.closed(), Some(Closed::ByUs(bye)) if bye.reason() == GoodbyeReason::TimedOut));
}

/// Runs both ends for a minute, as their deadlines say; `passes` carries a frame up (true) or down. When each end closed.
fn lived(passes: impl Fn(bool, Duration) -> bool) -> [Option<Duration>; 2] {
    let (mut edge, mut cloud) = pair(Config::default());
    let mut closed = [None; 2];
    for now in (0..60_000).step_by(50).map(ms) {
        (edge.now, cloud.now) = (now, now);
        edge.poll();
        cloud.poll();
        while !edge.sent.is_empty() || !cloud.sent.is_empty() {
            for frame in std::mem::take(&mut edge.sent).into_iter().filter(|_| passes(true, now)) {
                cloud.give(Input::Frame(frame));
            }
            for frame in std::mem::take(&mut cloud.sent).into_iter().filter(|_| passes(false, now)) {
                edge.give(Input::Frame(frame));
            }
        }
        for (end, closed) in [&edge, &cloud].into_iter().zip(&mut closed) {
            *closed = closed.or(end.session.is_closed().then_some(now));
        }
    }
    closed
}

/// P-HALF-OPEN
#[test]
fn a_half_open_link_is_found_by_both_ends_within_25_seconds() {
    assert_eq!(lived(|_, _| true), [None, None], "a quiet link that is whole lives");
    for broken in (0..30_000).step_by(700).map(ms) {
        // TCP stops both directions soon after one is broken: what is not acknowledged is sent no further. What was under
        // way arrives for a second more.
        let late = ms(1_000);
        for (up, down) in [(broken, broken + late), (broken + late, broken), (broken, broken)] {
            let closed = lived(|is_up, now| now < if is_up { up } else { down });
            for (end, closed) in ["edge", "cloud"].into_iter().zip(closed) {
                let after = closed.expect("it is found").checked_sub(broken).expect("not before");
                assert!(after <= ms(25_000), "broken at {broken:?}, the {end} finds it after {after:?}");
            }
        }
    }
}

#[test]
fn the_edge_tells_its_progress_at_every_interval_also_when_data_flows() {
    let (mut edge, mut cloud) = pair(Config::default());
    let mut told = Vec::new();
    for now in (0..60_000).step_by(500) {
        (edge.now, cloud.now) = (ms(now), ms(now));
        edge.give(Input::Submit(Box::new(envelope(1, status("a", now + 1)))));
        exchange(&mut edge, &mut cloud);
        for event in cloud.take() {
            match event {
                Output::Heartbeat { .. } => told.push(now),
                Output::Deliver { class, seq, .. } => {
                    cloud.give(Input::Settle { class, seq, settled: Settled::applied() });
                }
                _ => {}
            }
        }
        exchange(&mut edge, &mut cloud);
        cloud.poll();
    }
    assert_eq!(told, [10_000, 20_000, 30_000, 40_000, 50_000]);
}

/// P-HEARTBEAT-ALONE
#[test]
fn a_heartbeat_passes_what_waits_to_be_sent() {
    let (mut edge, mut cloud) = pair(Config::default());
    // More than the transport takes, and it takes nothing.
    cloud.drains = false;
    for n in 0..40 {
        cloud.give(Input::Submit(Box::new(envelope(n, big(&format!("big-{n}"), 100_000)))));
    }
    let under_way = cloud.sent.len();
    assert!(under_way > 0);
    (edge.now, cloud.now) = (ms(10_000), ms(10_000));
    edge.give(Input::Progress { age_ms: 7 });
    for frame in std::mem::take(&mut edge.sent) {
        cloud.give(Input::Frame(frame));
    }
    assert!(cloud.take().iter().any(|it| matches!(it, Output::Heartbeat { progress_age_ms: 7 })));
    // One place gets free: it is the answer's, before all that waits.
    let first = cloud.sent[0].encoded_len();
    cloud.give(Input::Drained { frames: 1, bytes: first });
    let next = &cloud.sent[under_way].frame;
    assert!(matches!(next, Some(F::Heartbeat(answer)) if answer.answers != 0), "{next:?}");
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
        edge.receive(F::Welcome(welcome.into()));
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
