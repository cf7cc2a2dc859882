//! Frames of the link: decoded as the transport does it, and given to a session that answers like a busy owner.

use std::time::Duration;

use kubeedge_actors::link::{Class, Config, Input, Output, Session};
use kubeedge_proto::v1::{
    CallReply, DesiredKind, DesiredState, Frame, Hello, Inventory, KindDigest, ProtocolVersions, Settled,
    frame::Frame as F,
};
use prost::Message;

/// The most entries of an inventory here: small, so that it is reached.
const ENTRIES: usize = 200;

fn limits() -> Config {
    Config { max_message_bytes: 100_000, max_inventory_entries: ENTRIES, max_queued_state: 1_000, ..Config::default() }
}

/// A session, and what its owner would do.
struct End {
    session: Session,
    now: Duration,
    closed: usize,
    settles: bool,
}

impl End {
    fn new(session: Session, settles: bool) -> Self {
        Self { session, now: Duration::ZERO, closed: 0, settles }
    }

    fn give(&mut self, input: Input) {
        let mut inputs = vec![input];
        // Each answer may bring about another one; the session ends that, or this does.
        for _ in 0..64 {
            let Some(input) = inputs.pop() else { break };
            let mut out = Vec::new();
            self.session.handle(self.now, input, &mut out);
            self.session.poll(self.now, &mut out);
            for output in out {
                inputs.extend(self.answer(output));
            }
        }
    }

    fn answer(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Send(frame, bytes) => {
                assert_eq!(bytes, frame.encoded_len());
                assert!(bytes <= 64 * 1024, "a frame of {bytes} bytes");
                Some(Input::Drained { frames: 1, bytes })
            }
            Output::HelloReceived(_) => {
                Some(Input::Admit { epoch: 7, cluster_uid: "cluster".into(), resource_version: 100 })
            }
            Output::NeedDesired => Some(Input::DesiredKnown(desired())),
            Output::NeedInventory(type_) => Some(Input::InventoryKnown { type_, entries: Vec::new() }),
            Output::Deliver { class: Class::Call, seq, .. } if self.settles => {
                Some(Input::Reply { seq, reply: CallReply::default() })
            }
            Output::Deliver { class, seq, .. } if self.settles => {
                Some(Input::Settle { class, seq, settled: Settled::applied() })
            }
            Output::Closed(_) => {
                self.closed += 1;
                None
            }
            _ => None,
        }
    }

    fn finish(self) {
        assert!(self.closed <= 1, "it ended {} times", self.closed);
        assert_eq!(self.closed == 1, self.session.is_closed());
        let _ = self.session.finish();
    }
}

fn desired() -> DesiredState {
    let kind =
        DesiredKind { r#type: Some(kubeedge_proto::resource::pods()), complete: true, as_of: 50, objects: vec![] };
    DesiredState { kinds: vec![kind], ..DesiredState::default() }
}

fn hello() -> Hello {
    Hello {
        versions: Some(ProtocolVersions { lowest: 1, highest: 1 }),
        instance_id: vec![7; 16].into(),
        connection: 1,
        ..Hello::default()
    }
}

/// Pieces of the input, each with its length before it in two bytes.
fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        bytes = rest;
        Some(piece)
    })
}

/// Any frames, to either end. The first byte chooses the end, whether it has been greeted, and whether it settles.
pub fn frame(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let session = if how & 1 == 0 { Session::cloud(limits()) } else { Session::edge(hello(), limits()) };
    let mut end = End::new(session, how & 2 != 0);
    if how & 4 != 0 && how & 1 == 0 {
        end.give(Input::Frame(Frame { frame: Some(F::Hello(hello().into())) }));
    }
    for piece in pieces(bytes) {
        end.now += Duration::from_millis(u64::from(piece.first().copied().unwrap_or_default()));
        if let Ok(frame) = Frame::decode(piece) {
            // What was read can be written, and reads the same again.
            assert_eq!(Frame::decode(frame.encode_to_vec().as_slice()).as_ref(), Ok(&frame));
            end.give(Input::Frame(frame));
        }
    }
    end.finish();
}

/// Inventories, to a cloud that has asked for one.
pub fn inventory(bytes: &[u8]) {
    let mut end = End::new(Session::cloud(limits()), true);
    let digest = KindDigest { r#type: Some(kubeedge_proto::resource::pods()), count: 1, ..KindDigest::default() };
    let hello = Hello { kinds: vec![digest], cluster_uid: "cluster".into(), ..hello() };
    end.give(Input::Frame(Frame { frame: Some(F::Hello(hello.into())) }));
    assert!(end.session.is_established());
    let mut entries = 0;
    for piece in pieces(bytes) {
        let Ok(inventory) = Inventory::decode(piece) else { continue };
        entries += inventory.entries.len();
        end.give(Input::Frame(Frame { frame: Some(F::Inventory(inventory.into())) }));
    }
    assert!(entries <= ENTRIES || end.session.is_closed(), "{entries} entries were taken");
    end.finish();
}
