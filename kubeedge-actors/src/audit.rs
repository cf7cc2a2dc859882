//! The audit log: a line for what was refused to a node or to a stranger.
//!
//! The lines have the tracing target `audit`, so that a filter (`RUST_LOG=audit=warn`) or a layer of its own can keep them
//! apart. What comes from outside is written quoted and cut: it cannot make lines of its own.
//!
//! Nor can it fill a disk. In a minute [`OF_ONE`] lines are written of one origin, which is who and what was tried;
//! [`OF_STRANGERS`] of all strangers, and apart from them [`OF_NODES`] of all who have shown who they are, so that nobody
//! from outside can hide what a node does. What is beyond is counted, and the first refusal after that minute comes
//! with the count. Each thread counts for itself: a program has a few that refuse anything, and always the same.

mod bounded;
#[cfg(any(test, feature = "test-kit"))]
pub mod testing;

use std::{
    cell::RefCell,
    fmt::Display,
    net::{IpAddr, SocketAddr},
    thread::LocalKey,
    time::Instant,
};

use self::bounded::{Bounded, Origin};
pub use self::bounded::{OF_NODES, OF_ONE, OF_STRANGERS, WINDOW};

/// The target of every line.
pub const TARGET: &str = "audit";
/// Characters of what a peer sent that are written.
const CUT: usize = 300;

thread_local! {
    static NODES: RefCell<Bounded> = RefCell::new(Bounded::new(OF_NODES));
    static STRANGERS: RefCell<Bounded> = RefCell::new(Bounded::new(OF_STRANGERS));
}

/// Writes that something was refused to a node, or to somebody else who has shown who it is.
///
/// `action` is what was tried (`session`, or a message's type), `who` the node by its certificate, `what` the object that
/// it was about, `why` what the other side is told.
pub fn refused(action: &str, who: impl Display, what: impl Display, why: impl Display) {
    let who = cut(who);
    if counted(&NODES, action, &who) {
        write(action, &who, what, why);
    }
}

/// Writes that something was refused to a stranger: somebody of whom nothing but the address is known. `None` is for a
/// server that does not say it.
///
/// The port is in the line, and is no origin of its own; neither is one of the addresses of a network of version 6.
pub fn refused_stranger(action: &str, peer: impl Into<Option<SocketAddr>>, what: impl Display, why: impl Display) {
    let peer: Option<SocketAddr> = peer.into();
    let origin = peer.map_or_else(String::new, |peer| network(peer.ip()).to_string());
    if counted(&STRANGERS, action, &origin) {
        let who = peer.map_or_else(|| "an unknown address".to_owned(), |peer| peer.to_string());
        write(action, &who, what, why);
    }
}

/// Whether there is a line for it. Says what was left out in the minute before.
fn counted(lines: &'static LocalKey<RefCell<Bounded>>, action: &str, who: &str) -> bool {
    let origin = Origin { action: action.to_owned(), who: who.to_owned() };
    let (left_out, written) = lines.with_borrow_mut(|lines| lines.take(origin, Instant::now()));
    if let Some(left_out) = left_out {
        tracing::warn!(target: TARGET, refusals = left_out.refusals, "{left_out}");
    }
    written
}

fn write(action: &str, who: &str, what: impl Display, why: impl Display) {
    let (what, why) = (cut(what), cut(why));
    tracing::warn!(target: TARGET, action, %who, %what, "{action} refused: {why}");
}

/// In one line, without control characters, and not long.
fn cut(text: impl Display) -> String {
    let mut text = text.to_string();
    if let Some((at, _)) = text.char_indices().nth(CUT) {
        text.truncate(at);
        text.push_str("...");
    }
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// What of an address counts as one stranger: who has one address of the first 64 bits of version 6 has them all.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::Heard, *};

    #[test]
    fn a_long_text_is_cut_between_two_characters_and_stays_one_line() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut("one\nWARN audit: two\u{1b}[0m"), "one\u{fffd}WARN audit: two\u{fffd}[0m");
        let long = "\u{e9}".repeat(CUT + 1);
        assert_eq!(cut(&long), format!("{}...", "\u{e9}".repeat(CUT)));
    }

    /// In a thread of its own, which has written nothing yet.
    fn in_a_new_thread(test: impl FnOnce(Heard) + Send + 'static) {
        let run = move || {
            let heard = Heard::default();
            let _here = heard.here();
            test(heard);
        };
        std::thread::spawn(run).join().unwrap();
    }

    #[test]
    fn a_stranger_with_many_ports_or_addresses_of_one_network_has_its_lines_and_no_more() {
        in_a_new_thread(|heard| {
            for flood in ["10.0.0.1:PORT", "[2001:db8::PORT]:1"] {
                for port in 1..=500 {
                    let peer: SocketAddr = flood.replace("PORT", &port.to_string()).parse().unwrap();
                    refused_stranger("connection", peer, "address", "too many");
                }
                assert_eq!(heard.take().len(), OF_ONE as usize, "{flood}");
            }
            // Another action of the same stranger, and the same one of another, are told.
            let peer: SocketAddr = "10.0.0.1:9".parse().unwrap();
            refused_stranger("enrolment", peer, "token", "unknown");
            refused_stranger("connection", SocketAddr::from(([10, 0, 0, 2], 9)), "address", "too many");
            let lines = heard.take();
            assert!(lines.len() == 2 && lines[0].contains("who=10.0.0.1:9"), "{lines:?}");
        });
    }

    #[test]
    fn a_flood_of_strangers_is_bounded_and_hides_no_node() {
        in_a_new_thread(|heard| {
            for n in 0..2 * OF_STRANGERS {
                refused_stranger("connection", SocketAddr::from((n.to_be_bytes(), 1)), "address", "too many");
            }
            assert_eq!(heard.take().len(), OF_STRANGERS as usize);
            refused("StatusUpdate", "edge-1", "v1/pods a/b", "not its own");
            let lines = heard.take();
            assert!(lines.len() == 1 && lines[0].contains("who=edge-1"), "{lines:?}");
        });
    }
}
