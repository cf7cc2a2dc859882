//! Two ends joined by a wire that delays, and a model of what must arrive.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use kubeedge_proto::v1::{StreamClose, StreamCredit, StreamFrame, StreamHead, StreamOpen, stream_frame::Frame as F};
use proptest::prelude::*;

use super::{
    FRAME_BYTES, OPEN_STREAMS, SEND_BUFFER, WINDOW,
    mux::{Event, Mux, Read, Side},
};

fn head() -> StreamHead {
    StreamHead { status: 200, ..StreamHead::default() }
}

struct Pair {
    cloud: Mux,
    edge: Mux,
    down: VecDeque<StreamFrame>,
    up: VecDeque<StreamFrame>,
    opened: Vec<u64>,
}

impl Pair {
    fn new() -> Self {
        Self {
            cloud: Mux::new(Side::Opener),
            edge: Mux::new(Side::Acceptor),
            down: VecDeque::new(),
            up: VecDeque::new(),
            opened: Vec::new(),
        }
    }

    /// One frame each way onto the wire and off it.
    fn step(&mut self) -> bool {
        let sent = [
            self.cloud.next_frame().map(|(frame, _)| self.down.push_back(frame)),
            self.edge.next_frame().map(|(frame, _)| self.up.push_back(frame)),
        ];
        let mut moved = sent.iter().any(Option::is_some);
        if let Some(frame) = self.down.pop_front() {
            moved = true;
            if let Some(Event::Opened(id, _)) = self.edge.receive(frame).unwrap() {
                self.opened.push(id);
            }
        }
        if let Some(frame) = self.up.pop_front() {
            moved = true;
            self.cloud.receive(frame).unwrap();
        }
        moved
    }

    fn settle(&mut self) {
        while self.step() {}
    }

    fn open(&mut self) -> u64 {
        let id = self.cloud.open(StreamOpen::default()).unwrap();
        self.cloud.finish(id);
        self.settle();
        assert_eq!(self.opened.last(), Some(&id));
        self.edge.respond(id, head());
        id
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Write(usize, usize),
    Finish(usize),
    Read(usize),
    CloudDrops(usize),
    EdgeDrops(usize),
    Wire(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stream = 0..8usize;
    let step = prop_oneof![
        2 => Just(Step::Open),
        6 => (stream.clone(), 1..100_000usize).prop_map(|(s, n)| Step::Write(s, n)),
        1 => stream.clone().prop_map(Step::Finish),
        5 => stream.clone().prop_map(Step::Read),
        1 => stream.clone().prop_map(Step::CloudDrops),
        1 => stream.prop_map(Step::EdgeDrops),
        8 => (1..20u8).prop_map(Step::Wire),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    /// What is read is a prefix of what was written, and all of it when nobody gave the stream up; buffers stay in their
    /// bounds whatever happens; in the end nothing is left at either end.
    #[test]
    fn bytes_arrive_in_order_within_bounds_and_ends_free_both_sides(steps in steps()) {
        let mut pair = Pair::new();
        let mut written: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut read: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut ids = Vec::new();
        let mut dropped = Vec::new();
        let mut counter = 0u8;
        for step in steps {
            let pick = |at: usize| ids.get(at).copied().filter(|id| !dropped.contains(id));
            match step {
                Step::Open => if let Some(id) = pair.cloud.open(StreamOpen::default()) {
                    pair.cloud.finish(id);
                    ids.push(id);
                },
                Step::Write(at, n) => if let Some(id) = pick(at).filter(|id| pair.opened.contains(id)) {
                    pair.edge.respond(id, head());
                    let bytes: Vec<u8> = (0..n).map(|_| { counter = counter.wrapping_add(1); counter }).collect();
                    let mut left = Bytes::from(bytes.clone());
                    if pair.edge.write(id, &mut left).is_ok() {
                        written.entry(id).or_default().extend(&bytes[..n - left.len()]);
                    }
                },
                Step::Finish(at) => if let Some(id) = pick(at).filter(|id| pair.opened.contains(id)) {
                    pair.edge.respond(id, head());
                    pair.edge.finish(id);
                    // What is written after the end does not count.
                    dropped.push(id);
                },
                Step::Read(at) => if let Some(id) = ids.get(at).copied()
                    && let Read::Data(bytes) = pair.cloud.read(id) {
                    read.entry(id).or_default().extend(bytes);
                },
                Step::CloudDrops(at) => if let Some(id) = pick(at) {
                    pair.cloud.release(id, "test");
                    dropped.push(id);
                },
                Step::EdgeDrops(at) => if let Some(id) = pick(at).filter(|id| pair.opened.contains(id)) {
                    pair.edge.release(id, "test");
                    dropped.push(id);
                },
                Step::Wire(n) => for _ in 0..n { pair.step(); },
            }
            prop_assert!(pair.cloud.len() <= OPEN_STREAMS && pair.edge.len() <= 2 * OPEN_STREAMS);
            prop_assert!(pair.cloud.buffered() <= pair.cloud.len() * (WINDOW + SEND_BUFFER));
            prop_assert!(pair.edge.buffered() <= pair.edge.len() * (WINDOW + SEND_BUFFER));
        }
        // Everybody finishes and reads to the end.
        loop {
            let mut moved = pair.step();
            for &id in &ids {
                if pair.opened.contains(&id) {
                    pair.edge.respond(id, head());
                    pair.edge.finish(id);
                }
                if let Read::Data(bytes) = pair.cloud.read(id) {
                    moved = true;
                    read.entry(id).or_default().extend(bytes);
                }
            }
            if !moved { break; }
        }
        for &id in &ids {
            let (written, read) = (written.entry(id).or_default(), read.entry(id).or_default());
            prop_assert!(written.starts_with(read), "stream {id}: what is read is not what was written");
            if !dropped.contains(&id) {
                prop_assert_eq!(written.len(), read.len(), "stream {} lost bytes", id);
            }
            pair.cloud.release(id, "end");
            pair.edge.release(id, "end");
        }
        pair.settle();
        prop_assert!(pair.cloud.is_empty() && pair.edge.is_empty(), "{:?} {:?}", pair.cloud, pair.edge);
    }
}

#[test]
fn a_stream_that_nobody_reads_stops_itself_and_no_other() {
    let mut pair = Pair::new();
    let (idle, busy) = (pair.open(), pair.open());
    for _ in 0..100 {
        for id in [idle, busy] {
            pair.edge.write(id, &mut Bytes::from(vec![7; FRAME_BYTES])).unwrap();
        }
        pair.settle();
        assert!(matches!(pair.cloud.read(busy), Read::Data(_)));
    }
    assert_eq!(pair.cloud.buffered(), WINDOW);
    assert_eq!(pair.edge.buffered(), SEND_BUFFER);
    assert!(matches!(pair.cloud.read(idle), Read::Data(bytes) if bytes.len() == WINDOW));
}

#[test]
fn streams_take_turns_frame_by_frame() {
    let mut pair = Pair::new();
    let ids = [pair.open(), pair.open(), pair.open()];
    pair.settle();
    for id in ids {
        pair.edge.write(id, &mut Bytes::from(vec![1; 2 * FRAME_BYTES])).unwrap();
    }
    let order: Vec<u64> = std::iter::from_fn(|| pair.edge.next_frame().map(|(frame, _)| frame.stream)).collect();
    assert_eq!(order.len(), 6);
    for round in order.chunks(3) {
        let mut round = round.to_vec();
        round.sort_unstable();
        assert_eq!(round, ids);
    }
}

/// `P-STREAM-FREED`
#[test]
fn giving_a_stream_up_frees_both_ends_at_once() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.edge.write(id, &mut Bytes::from(vec![1; SEND_BUFFER])).unwrap();
    pair.settle();
    pair.cloud.release(id, "the client is gone");
    pair.settle();
    assert!(pair.cloud.is_empty());
    assert_eq!(pair.edge.write(id, &mut Bytes::from_static(b"x")), Err("the client is gone".into()));
    assert_eq!(pair.edge.buffered(), 0);
    pair.edge.release(id, "");
    assert!(pair.edge.is_empty());
}

#[test]
fn one_stream_too_many_is_refused_and_the_others_go_on() {
    let mut pair = Pair::new();
    let first = pair.open();
    for _ in 1..OPEN_STREAMS {
        pair.open();
    }
    assert_eq!(pair.cloud.open(StreamOpen::default()), None);
    // A cloud that does not count: the edge does.
    let open = |stream| StreamFrame { stream, frame: Some(F::Open(StreamOpen::default())) };
    for stream in 1000..1000 + OPEN_STREAMS as u64 {
        assert!(matches!(pair.edge.receive(open(stream)), Ok(Some(Event::Opened(..)))));
    }
    assert_eq!(pair.edge.receive(open(2000)), Ok(None));
    let refused = std::iter::from_fn(|| pair.edge.next_frame()).any(|(frame, _)| {
        frame.stream == 2000 && matches!(&frame.frame, Some(F::Close(close)) if close.error.contains("open already"))
    });
    assert!(refused);
    assert!(pair.edge.write(first, &mut Bytes::from_static(b"still here")).is_ok());
}

#[test]
fn a_peer_that_breaks_the_rules_ends_the_connection() {
    let data = |n: usize| F::Data(vec![0; n].into());
    let credit = |bytes| F::Credit(StreamCredit { bytes });
    let close = || F::Close(StreamClose { half: true, error: String::new() });
    let cases: [(&str, u64, Vec<F>); 8] = [
        ("never opened", 9, vec![data(1)]),
        ("data before the head", 1, vec![data(1)]),
        ("more data than", 1, vec![F::Head(head()), data(WINDOW + 1)]),
        ("a head that", 1, vec![F::Head(head()), F::Head(head())]),
        ("without an HTTP status", 1, vec![F::Head(StreamHead::default())]),
        ("after the end", 1, vec![F::Head(head()), close(), data(1)]),
        ("a second end", 1, vec![close(), close()]),
        ("more credit", 1, vec![credit(u64::MAX)]),
    ];
    for (expected, stream, frames) in cases {
        let mut cloud = Mux::new(Side::Opener);
        cloud.open(StreamOpen::default()).unwrap();
        while cloud.next_frame().is_some() {}
        let last = frames.into_iter().map(|frame| cloud.receive(StreamFrame { stream, frame: Some(frame) })).last();
        let violation = last.unwrap().expect_err(expected);
        assert!(violation.what.contains(expected), "{violation}");
    }
    let mut edge = Mux::new(Side::Acceptor);
    let open = || StreamFrame { stream: 5, frame: Some(F::Open(StreamOpen::default())) };
    edge.receive(open()).unwrap();
    assert!(edge.receive(open()).unwrap_err().what.contains("used before"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_streams_is_closed_after_a_while() {
    use tokio_stream::{StreamExt, wrappers::ReceiverStream};

    use super::connection::{Connection, IDLE, REQUESTS, TRANSPORT_FRAMES};

    let (to_edge, at_edge) = tokio::sync::mpsc::channel(TRANSPORT_FRAMES);
    let (to_cloud, at_cloud) = tokio::sync::mpsc::channel(TRANSPORT_FRAMES);
    let whole = |frames| ReceiverStream::new(frames).map(Ok::<_, String>);
    let (cloud, edge) = (Connection::new(Side::Opener), Connection::new(Side::Acceptor));
    let (requested, mut requests) = tokio::sync::mpsc::channel(REQUESTS);
    let running = cloud.clone();
    let mut cloud_task = tokio::spawn(async move { running.run(to_edge, whole(at_cloud), None).await });
    let edge_task = tokio::spawn(async move { edge.run(to_cloud, whole(at_edge), Some(requested)).await });

    let mut stream = cloud.open(StreamOpen::default()).unwrap();
    let mut served = requests.recv().await.unwrap().stream;
    // Not while a stream is open, however quiet.
    assert!(tokio::time::timeout(10 * IDLE, &mut cloud_task).await.is_err());
    stream.finish();
    served.respond(head());
    served.finish();
    assert_eq!(stream.read().await, Ok(None));
    let from = tokio::time::Instant::now();
    drop((stream, served));
    assert_eq!(cloud_task.await.unwrap(), "it was idle");
    assert!(from.elapsed() >= IDLE && from.elapsed() < 2 * IDLE);
    assert_eq!(edge_task.await.unwrap(), "the other end closed it");
    assert!(cloud.is_closed());
}
