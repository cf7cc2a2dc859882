//! What is sent after a reconnect.

use super::*;

#[test]
fn completion_comes_after_the_state_of_its_kind_is_settled() {
    let (mut edge, mut cloud) = pair(Config::default());
    cloud.give(Input::Submit(Box::new(envelope(1, upsert("a", "a", 1)))));
    cloud.give(Input::Submit(Box::new(envelope(2, upsert("a", "a", 2)))));
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
    let objects =
        objects.into_iter().map(|object| ObjectUpsert { object: Some(object), ..ObjectUpsert::default() }).collect();
    let kind = v1::DesiredKind { r#type: Some(resource::pods()), complete, as_of, objects };
    v1::DesiredState { kinds: vec![kind], ..Default::default() }
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
        edge.give(Input::InventoryKnown { type_: resource::pods().into(), entries: vec![held("a", "a1", 7)] });
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
    cloud.give(Input::Submit(Box::new(envelope(1, tombstone("a", "a1")))));
    exchange(&mut edge, &mut cloud);
    edge.give(Input::Settle { class: Class::State, seq: 1, settled: Settled::applied() });
    cloud.give(Input::DesiredKnown(desired(true, 5, vec![object("a", "a1", 1, 10), object("b", "b1", 1, 10)])));
    exchange(&mut edge, &mut cloud);
    edge.take();
    edge.give(Input::InventoryKnown { type_: resource::pods().into(), entries });
    exchange(&mut edge, &mut cloud);
    assert!(matches!(&edge.take()[..], [Output::Completed(it)] if it.count == 1), "the older upsert must not follow");
}

#[test]
fn kind_is_not_complete_while_something_of_it_could_not_be_stored() {
    let (mut edge, mut cloud) = pair(Config::default());
    cloud.give(Input::Recheck);
    for (settled, completions) in [(Settled::rejected(500, "disk full"), 0), (Settled::applied(), 1)] {
        cloud.give(Input::DesiredKnown(desired(true, 5, vec![object("a", "a1", 1, 10)])));
        exchange(&mut edge, &mut cloud);
        edge.give(Input::InventoryKnown { type_: resource::pods().into(), entries: vec![] });
        exchange(&mut edge, &mut cloud);
        let (class, seq, _) = delivered(&mut edge).remove(0);
        edge.give(Input::Settle { class, seq, settled });
        let completed = edge.take().into_iter().filter(|event| matches!(event, Output::Completed(_))).count();
        assert_eq!(completed, completions);
        exchange(&mut edge, &mut cloud);
        cloud.now += ms(1000);
        cloud.take();
        cloud.poll();
        let asked = cloud.take().iter().any(|event| matches!(event, Output::NeedDesired));
        assert_eq!(asked, completions == 0, "it is compared again after a failure only");
    }
}

/// P-ABSENCE-KNOWN
#[test]
fn the_end_of_an_old_object_does_not_complete_a_kind_whose_new_one_could_not_be_stored() {
    let (mut edge, mut cloud) = pair(Config::default());
    let complete = v1::InventoryComplete { r#type: Some(resource::pods()), as_of: 9, count: 1 };
    for (bodies, answers, completions) in [
        (vec![upsert("a", "a2", 9)], vec![Settled::rejected(503, "what it needs is not there")], 0),
        (vec![tombstone("a", "a1")], vec![Settled::applied()], 0),
        (vec![upsert("a", "a2", 9)], vec![Settled::applied()], 1),
        // Of one that could not be stored its own end is an answer.
        (
            vec![upsert("a", "a3", 10), tombstone("a", "a3")],
            vec![Settled::rejected(507, "full"), Settled::applied()],
            1,
        ),
    ] {
        for (n, body) in bodies.into_iter().enumerate() {
            cloud.give(Input::Submit(Box::new(envelope(n as u8, body))));
        }
        cloud.give(Input::Complete(complete.clone()));
        let mut completed = 0;
        for settled in answers {
            exchange(&mut edge, &mut cloud);
            let (class, seq, _) = delivered(&mut edge).remove(0);
            edge.give(Input::Settle { class, seq, settled });
            exchange(&mut edge, &mut cloud);
            completed += edge.events.iter().filter(|event| matches!(event, Output::Completed(_))).count();
            edge.events.retain(|event| !matches!(event, Output::Completed(_)));
        }
        assert_eq!(completed, completions);
    }
}
