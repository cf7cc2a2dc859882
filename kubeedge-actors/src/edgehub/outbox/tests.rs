//! The queue against a model of the disk: what was promised is sent, counted as dropped, or still there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use kubeedge_proto::v1::{Envelope, GapMarker, OutboxRecord, Settled, UserMessage, envelope::Body};
use proptest::prelude::*;
use prost::Message;

use super::{bounds::*, queue::*};

const SMALL: Bounds = Bounds { max_events: 8, max_bytes: 2_000, max_age: Duration::from_secs(100) };

/// A queue, its disk, and what it has promised.
struct Box_ {
    bounds: Bounds,
    queue: Queue,
    disk: BTreeMap<u64, OutboxRecord>,
    now: Now,
    ids: u128,
    /// Published and answered.
    promised: BTreeSet<Bytes>,
    /// Settled for good.
    done: BTreeSet<Bytes>,
    /// Told by markers that were settled, the newest count per marker.
    told: HashMap<Bytes, u64>,
    under_way: Vec<(u64, Envelope)>,
}

fn id_of(ids: &mut u128) -> Bytes {
    *ids += 1;
    ids.to_be_bytes().to_vec().into()
}

impl Box_ {
    fn new(bounds: Bounds) -> Self {
        let now = Now { clock: Duration::ZERO, unix_ms: 1_800_000_000_000 };
        let (queue, changes) = Queue::load(bounds, now, std::iter::empty(), Bytes::new);
        assert!(changes.is_empty());
        Self {
            bounds,
            queue,
            disk: BTreeMap::new(),
            now,
            ids: 0,
            promised: BTreeSet::new(),
            done: BTreeSet::new(),
            told: HashMap::new(),
            under_way: Vec::new(),
        }
    }

    fn write(&mut self, changes: Changes) {
        for (place, record) in changes {
            match record {
                Some(record) => drop(self.disk.insert(place, record)),
                None => drop(self.disk.remove(&place)),
            }
        }
    }

    fn publish(&mut self, bytes: usize, reaches_the_disk: bool) -> Result<Bytes, Refused> {
        let id = id_of(&mut self.ids);
        let payload = vec![b'x'; bytes].into();
        let body = Body::UserMessage(UserMessage { topic: "t".into(), payload, ..UserMessage::default() });
        let envelope = Envelope { id: id.clone(), body: Some(body), ..Envelope::default() };
        let ids = &mut self.ids;
        let (place, mut changes) = self.queue.push(self.now, envelope, || id_of(ids))?;
        if reaches_the_disk {
            self.write(changes);
            self.queue.written(place);
            self.promised.insert(id.clone());
        } else {
            // What was dropped for it is written with the next commit.
            changes.insert(place, None);
            self.write(changes);
            self.queue.not_written(place);
        }
        Ok(id)
    }

    fn send(&mut self) -> Option<Envelope> {
        let place = self.queue.next(self.now)?;
        let envelope = self.queue.marker(place).or_else(|| self.disk[&place].envelope.clone()).unwrap();
        self.under_way.push((place, envelope.clone()));
        Some(envelope)
    }

    fn settle(&mut self, at: usize, settled: &Settled) {
        if self.under_way.is_empty() {
            return;
        }
        let (place, envelope) = self.under_way.remove(at % self.under_way.len());
        match self.queue.settled(self.now, &envelope.id, settled) {
            Outcome::Done(done) => {
                assert_eq!(done, place);
                self.disk.remove(&place);
                match envelope.body {
                    Some(Body::GapMarker(marker)) => drop(self.told.insert(envelope.id, marker.dropped_count)),
                    _ => drop(self.done.insert(envelope.id)),
                }
            }
            Outcome::Later => assert!(settled.code >= 500),
            Outcome::Unknown => panic!("what is under way is known"),
        }
    }

    fn break_link(&mut self) {
        self.under_way.clear();
        self.queue.session_over();
    }

    fn restart(&mut self) {
        self.under_way.clear();
        let records: Vec<_> = self.disk.iter().map(|(place, record)| (*place, record.clone())).collect();
        self.now.clock = Duration::ZERO;
        let ids = &mut self.ids;
        let (queue, changes) = Queue::load(self.bounds, self.now, records.into_iter(), || id_of(ids));
        self.queue = queue;
        self.write(changes);
    }

    fn pass(&mut self, time: Duration) {
        self.now.clock += time;
        self.now.unix_ms += u64::try_from(time.as_millis()).unwrap();
        let ids = &mut self.ids;
        let changes = self.queue.expire(self.now, || id_of(ids));
        self.write(changes);
    }

    fn on_disk(&self) -> (BTreeSet<Bytes>, Vec<(Bytes, GapMarker)>) {
        let mut events = BTreeSet::new();
        let mut markers = Vec::new();
        for envelope in self.disk.values().filter_map(|record| record.envelope.clone()) {
            match envelope.body {
                Some(Body::GapMarker(marker)) => markers.push((envelope.id, marker)),
                _ => assert!(events.insert(envelope.id)),
            }
        }
        (events, markers)
    }

    /// Every promised event was settled, is on disk, or is counted by exactly one marker.
    fn check(&self) {
        let (events, markers) = self.on_disk();
        assert!(self.queue.len() <= self.bounds.max_events && self.queue.bytes() <= self.bounds.max_bytes);
        assert_eq!(self.queue.len(), events.len());
        assert!(events.is_subset(&self.promised) && events.is_disjoint(&self.done));
        let lost = self.promised.len() - self.done.len() - events.len();
        let counted =
            markers.iter().map(|(_, marker)| marker.dropped_count).sum::<u64>() + self.told.values().sum::<u64>();
        assert_eq!(counted, lost as u64);
        assert!(markers.len() <= 1 + self.bounds.max_events / 2, "as many as may be under way, and one");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish(usize),
    FailToWrite(usize),
    Send,
    Settle(usize, u32),
    Break,
    Restart,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..400).prop_map(Step::Publish),
        1 => (0usize..400).prop_map(Step::FailToWrite),
        4 => Just(Step::Send),
        4 => (0usize..8, prop_oneof![4 => Just(0u32), 2 => Just(503), 1 => Just(400)])
            .prop_map(|(at, code)| Step::Settle(at, code)),
        1 => Just(Step::Break),
        1 => Just(Step::Restart),
        1 => (0u64..60).prop_map(Step::Pass),
    ]
}

fn settlement(code: u32) -> Settled {
    if code == 0 { Settled::applied() } else { Settled::rejected(code, "as scripted") }
}

proptest! {
    #[test]
    fn what_was_promised_is_settled_or_counted_whatever_happens(steps in prop::collection::vec(step(), 0..120)) {
        let mut outbox = Box_::new(SMALL);
        for step in steps {
            match step {
                Step::Publish(bytes) => {
                    let taken = outbox.publish(bytes, true);
                    prop_assert!(matches!(taken, Ok(_) | Err(Refused::Full)), "{taken:?}");
                }
                Step::FailToWrite(bytes) => drop(outbox.publish(bytes, false)),
                Step::Send => drop(outbox.send()),
                Step::Settle(at, code) => outbox.settle(at, &settlement(code)),
                Step::Break => outbox.break_link(),
                Step::Restart => outbox.restart(),
                Step::Pass(seconds) => outbox.pass(Duration::from_secs(seconds)),
            }
            outbox.check();
        }
        // In the end a cloud that takes everything has everything, in the order of the places.
        outbox.break_link();
        let mut last = None;
        while let Some(envelope) = outbox.send() {
            let place = outbox.under_way.last().map(|(place, _)| *place);
            prop_assert!(place > last, "{envelope:?} is out of order");
            last = place;
            outbox.settle(0, &Settled::applied());
        }
        outbox.check();
        prop_assert!(outbox.disk.is_empty() && outbox.queue.is_empty());
    }
}

fn events_and_gaps(outbox: &mut Box_) -> Vec<String> {
    let mut sent = Vec::new();
    while let Some(envelope) = outbox.send() {
        sent.push(match envelope.body {
            Some(Body::GapMarker(gap)) => format!("{} {} by {}", gap.dropped_count, gap.dropped_bytes, gap.bound),
            _ => u128::from_be_bytes(envelope.id[..].try_into().unwrap()).to_string(),
        });
        outbox.settle(0, &Settled::applied());
    }
    sent
}

/// P-MEMORY-BOUNDED
#[test]
fn a_full_outbox_drops_the_oldest_and_one_marker_says_so_in_their_place() {
    let mut outbox = Box_::new(SMALL);
    let ids: Vec<Bytes> = (0..12).map(|_| outbox.publish(10, true).unwrap()).collect();
    let (events, markers) = outbox.on_disk();
    assert_eq!(events, ids[4..].iter().cloned().collect());
    assert_eq!(markers.len(), 1);
    let one = outbox.disk.values().last().unwrap().envelope.as_ref().unwrap().encoded_len();
    let sent = events_and_gaps(&mut outbox);
    assert_eq!(sent[0], format!("4 {} by count", 4 * one));
    assert_eq!(sent.len(), 9);
    assert_eq!(outbox.queue.counts().dropped, [4, 0, 0]);
}

#[test]
fn each_bound_is_named() {
    let mut outbox = Box_::new(SMALL);
    for _ in 0..3 {
        outbox.publish(800, true).unwrap();
    }
    outbox.pass(Duration::from_secs(50));
    outbox.publish(10, true).unwrap();
    outbox.pass(Duration::from_secs(50));
    let sent = events_and_gaps(&mut outbox);
    assert!(sent[0].starts_with("3 ") && sent[0].ends_with(" by bytes,age"), "{sent:?}");
    assert_eq!(sent.len(), 2);
    assert_eq!(outbox.queue.counts().dropped, [0, 1, 2]);
}

#[test]
fn what_is_under_way_is_not_dropped_and_markers_become_one() {
    let mut outbox = Box_::new(SMALL);
    for _ in 0..9 {
        outbox.publish(1, true).unwrap();
    }
    // The marker and the first events are under way: as many as may be.
    while outbox.send().is_some() {}
    assert_eq!(outbox.under_way.len(), SMALL.max_events / 2);
    for _ in 0..5 {
        outbox.publish(1, true).unwrap();
    }
    let (_, markers) = outbox.on_disk();
    assert_eq!(markers.iter().map(|(_, gap)| gap.dropped_count).collect::<Vec<_>>(), [1, 5]);
    // The link breaks before the cloud said anything: both markers wait again, and the next drop makes them one.
    let first = markers[0].0.clone();
    outbox.break_link();
    outbox.publish(1, true).unwrap();
    let (_, markers) = outbox.on_disk();
    assert_eq!(markers.len(), 1);
    assert_eq!((markers[0].0.clone(), markers[0].1.dropped_count), (first, 7));
    outbox.check();
}

#[test]
fn what_the_cloud_could_not_take_waits_longer_each_time_and_holds_up_nothing() {
    let mut outbox = Box_::new(Bounds::default());
    let stubborn = outbox.publish(1, true).unwrap();
    let mut pause = RETRY_FIRST;
    for _ in 0..12 {
        let other = outbox.publish(1, true).unwrap();
        assert_eq!(outbox.send().unwrap().id, stubborn);
        assert_eq!(outbox.send().unwrap().id, other, "it goes although the first is not settled");
        outbox.settle(0, &Settled::rejected(503, "away"));
        outbox.settle(0, &Settled::applied());
        assert!(outbox.send().is_none());
        outbox.pass(pause - Duration::from_millis(1));
        assert!(outbox.send().is_none());
        outbox.pass(Duration::from_millis(1));
        pause = (pause * 2).min(RETRY_LAST);
    }
    assert_eq!(outbox.send().unwrap().id, stubborn);
    outbox.settle(0, &Settled::rejected(501, "no such type"));
    assert!(outbox.disk.is_empty(), "refused for good is done with");
    let counts = outbox.queue.counts();
    assert_eq!((counts.taken, counts.applied, counts.refused, counts.retried), (13, 12, 1, 12));
}

#[test]
fn nothing_overtakes_an_event_that_is_not_on_disk_yet() {
    let mut outbox = Box_::new(SMALL);
    let envelope = |id: u128| Envelope {
        id: id.to_be_bytes().to_vec().into(),
        body: Some(Body::UserMessage(UserMessage::default())),
        ..Envelope::default()
    };
    let (first, _) = outbox.queue.push(outbox.now, envelope(1), Bytes::new).unwrap();
    let (second, _) = outbox.queue.push(outbox.now, envelope(2), Bytes::new).unwrap();
    let again = outbox.queue.push(outbox.now, envelope(1), Bytes::new).unwrap_err();
    assert_eq!(again, Refused::Known { place: first, durable: false });
    outbox.queue.written(second);
    assert_eq!(outbox.queue.next(outbox.now), None);
    outbox.queue.written(first);
    assert_eq!(outbox.queue.next(outbox.now), Some(first));
    assert_eq!(outbox.queue.next(outbox.now), Some(second));
}

#[test]
fn what_is_no_event_or_too_large_is_refused() {
    let mut outbox = Box_::new(SMALL);
    assert!(matches!(outbox.publish(1_000, true), Err(Refused::TooLarge { limit: 1_000, .. })));
    let no_id = Envelope { body: Some(Body::UserMessage(UserMessage::default())), ..Envelope::default() };
    let marker = Envelope::new("app", 0, Body::GapMarker(GapMarker::default()));
    for envelope in [no_id, marker, Envelope::default()] {
        assert_eq!(outbox.queue.push(outbox.now, envelope, Bytes::new), Err(Refused::Malformed));
    }
}

#[test]
fn a_clock_that_was_not_set_makes_nothing_old() {
    let mut outbox = Box_::new(SMALL);
    outbox.now.unix_ms = 5_000;
    outbox.publish(1, true).unwrap();
    outbox.now.unix_ms = 1_800_000_000_000;
    outbox.restart();
    assert_eq!(events_and_gaps(&mut outbox), ["1"]);
    // With a clock, time that passed between two runs counts.
    outbox.publish(1, true).unwrap();
    outbox.now.unix_ms += 101_000;
    outbox.restart();
    let sent = events_and_gaps(&mut outbox);
    assert!(sent.len() == 1 && sent[0].ends_with(" by age"), "{sent:?}");
}
