//! The audit log: one line for everything that was refused to a node or to a stranger.
//!
//! The lines have the tracing target `audit`, so that a filter (`RUST_LOG=audit=warn`) or a layer of its own can keep them
//! apart. What comes from outside is written quoted and cut: it cannot make lines of its own.

use std::fmt::Display;

/// The target of every line.
pub const TARGET: &str = "audit";
/// Characters of what a peer sent that are written.
const CUT: usize = 300;

/// Writes that something was refused.
///
/// `action` is what was tried (`enrolment`, `connection`, or a message's type), `who` the node by its certificate or the
/// address of a stranger, `what` the object or the token that it was about, `why` what the other side is told.
pub fn refused(action: &str, who: impl Display, what: impl Display, why: impl Display) {
    let (who, what, why) = (cut(who), cut(what), cut(why));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_two_characters_and_stays_one_line() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut("one\nWARN audit: two\u{1b}[0m"), "one\u{fffd}WARN audit: two\u{fffd}[0m");
        let long = "\u{e9}".repeat(CUT + 1);
        assert_eq!(cut(&long), format!("{}...", "\u{e9}".repeat(CUT)));
    }
}
