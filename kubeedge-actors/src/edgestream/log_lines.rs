//! The container runtime's log format, `<time> <stream> <tags> <text>\n`, turned into what a person reads. Pure.
//!
//! The tag `P` says that the line goes on in the next one, `F` that it ends. Runtimes cut lines at 16 KiB.

use std::io::{self, Read, Seek, SeekFrom};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;

use super::options::LogOptions;

/// Longest raw line that is kept; a longer one is not the runtime's and is left out.
pub const MAX_RAW_LINE: usize = 256 * 1024;
/// Bytes that are read at a time while looking for the last lines.
const BLOCK: u64 = 64 * 1024;

/// Reads raw bytes as they come and gives text.
#[derive(Debug)]
pub struct LogLines {
    since: Option<Timestamp>,
    timestamps: bool,
    /// Bytes that may still be given.
    left: Option<u64>,
    /// The beginning of a line whose end has not come.
    pending: BytesMut,
    /// In a line that is too long.
    skipping: bool,
    /// The last line given goes on.
    partial: bool,
    /// Lines that were not the runtime's.
    malformed: u64,
}

impl LogLines {
    /// For these options; `tail` and `follow` are about where to read, not how.
    pub fn new(options: &LogOptions) -> Self {
        Self {
            since: options.since,
            timestamps: options.timestamps,
            left: options.limit,
            pending: BytesMut::new(),
            skipping: false,
            partial: false,
            malformed: 0,
        }
    }

    /// Whether the limit is reached.
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Lines that were not in the format, and left out.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Takes raw bytes, wherever they are cut, and gives the text of the lines that are whole.
    pub fn push(&mut self, mut raw: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        while let Some(end) = raw.iter().position(|byte| *byte == b'\n') {
            let (rest, next) = (&raw[..end], &raw[end + 1..]);
            raw = next;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if self.pending.is_empty() {
                self.line(rest, &mut out);
            } else {
                self.pending.extend_from_slice(rest);
                let line = self.pending.split();
                self.line(&line, &mut out);
            }
        }
        if !self.skipping {
            self.pending.extend_from_slice(raw);
            if self.pending.len() > MAX_RAW_LINE {
                self.pending.clear();
                self.skipping = true;
                self.malformed += 1;
            }
        }
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        out.freeze()
    }

    fn line(&mut self, raw: &[u8], out: &mut BytesMut) {
        let Some((time, text, whole)) = parts(raw) else {
            self.malformed += 1;
            return;
        };
        let continues = std::mem::replace(&mut self.partial, !whole);
        if let Some(since) = self.since {
            match time.parse::<Timestamp>() {
                Ok(time) if time >= since => {}
                Ok(_) => return,
                Err(_) => {
                    self.malformed += 1;
                    return;
                }
            }
        }
        if self.timestamps && !continues {
            out.extend_from_slice(nine_digits(time).as_bytes());
            out.extend_from_slice(b" ");
        }
        out.extend_from_slice(text);
        if whole {
            out.extend_from_slice(b"\n");
        }
    }
}

/// Time, text, and whether the line ends here.
fn parts(raw: &[u8]) -> Option<(&str, &[u8], bool)> {
    let mut parts = raw.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok().filter(|time| time.contains('T'))?;
    if !matches!(parts.next()?, b"stdout" | b"stderr") {
        return None;
    }
    // Tags are separated by colons, the first says whether the line is whole.
    let whole = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some((time, parts.next().unwrap_or_default(), whole))
}

/// Nanoseconds in full, as a kubelet shows them, so that times stand below each other.
fn nine_digits(time: &str) -> String {
    let zone = time.rfind(['Z', '+', '-']).unwrap_or(time.len());
    let (time, zone) = time.split_at(zone);
    match time.split_once('.') {
        Some((seconds, fraction)) => format!("{seconds}.{fraction:0<9}{zone}"),
        None => format!("{time}.000000000{zone}"),
    }
}

/// Where the last `lines` raw lines of the first `length` bytes begin. Reads backwards, a block at a time.
pub fn tail_start(log: &mut (impl Read + Seek), length: u64, lines: u64) -> io::Result<u64> {
    if lines == 0 {
        return Ok(length);
    }
    let mut newlines = 0;
    let mut end = length;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        log.seek(SeekFrom::Start(start))?;
        block.clear();
        log.by_ref().take(end - start).read_to_end(&mut block)?;
        for (at, byte) in block.iter().enumerate().rev() {
            let after = start + at as u64 + 1;
            // The newline at the very end closes the last line and begins none.
            if *byte == b'\n' && after < length {
                newlines += 1;
                if newlines == lines {
                    return Ok(after);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    const LOG: &str = "2026-01-01T00:00:00.1Z stdout F one\n\
                       2026-01-01T00:00:01.123456789Z stderr P tw\n\
                       2026-01-01T00:00:01.2Z stderr F o\n\
                       not a line\n\
                       2026-01-01T00:00:02Z stdout F\n\
                       2026-01-01T00:00:03Z stdout F:x three  x\n";

    fn text(options: &LogOptions, log: &str) -> String {
        String::from_utf8(LogLines::new(options).push(log.as_bytes()).to_vec()).unwrap()
    }

    #[test]
    fn pieces_are_joined_and_prefixes_go() {
        assert_eq!(text(&LogOptions::default(), LOG), "one\ntwo\n\nthree  x\n");
        let mut lines = LogLines::new(&LogOptions::default());
        lines.push(LOG.as_bytes());
        assert_eq!(lines.malformed(), 1);
    }

    #[test]
    fn times_are_shown_once_a_line_and_in_full() {
        let options = LogOptions { timestamps: true, ..LogOptions::default() };
        assert_eq!(
            text(&options, LOG),
            "2026-01-01T00:00:00.100000000Z one\n2026-01-01T00:00:01.123456789Z two\n\
             2026-01-01T00:00:02.000000000Z \n2026-01-01T00:00:03.000000000Z three  x\n"
        );
        assert_eq!(nine_digits("2026-01-01T00:00:00.5+02:00"), "2026-01-01T00:00:00.500000000+02:00");
    }

    #[test]
    fn what_is_older_or_too_much_is_left_out() {
        let since = LogOptions { since: Some("2026-01-01T00:00:02Z".parse().unwrap()), ..LogOptions::default() };
        assert_eq!(text(&since, LOG), "\nthree  x\n");
        let mut lines = LogLines::new(&LogOptions { limit: Some(5), ..LogOptions::default() });
        assert_eq!(lines.push(LOG.as_bytes()), "one\nt");
        assert!(lines.is_full());
        assert_eq!(lines.push(LOG.as_bytes()), "");
    }

    #[test]
    fn a_line_without_an_end_takes_bounded_memory() {
        let mut lines = LogLines::new(&LogOptions::default());
        for _ in 0..100 {
            assert_eq!(lines.push(&[b'x'; 64 * 1024]), "");
            assert!(lines.pending.len() <= MAX_RAW_LINE);
        }
        assert_eq!(lines.push(format!("\n{LOG}").as_bytes()), "one\ntwo\n\nthree  x\n");
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(cuts in proptest::collection::vec(0..LOG.len(), 0..10)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let mut lines = LogLines::new(&LogOptions::default());
            let mut out = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([LOG.len()]) {
                out.extend(lines.push(&LOG.as_bytes()[from..cut]));
                from = cut;
            }
            prop_assert_eq!(out, b"one\ntwo\n\nthree  x\n");
        }

        #[test]
        fn any_bytes_are_taken_without_a_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let options = LogOptions { timestamps: true, limit: Some(20), ..LogOptions::default() };
            prop_assert!(LogLines::new(&options).push(&raw).len() <= 20);
        }

        #[test]
        fn the_tail_is_the_last_lines(lines in proptest::collection::vec("[a-z]{0,40}", 0..12), n in 0..14u64, cut: bool) {
            let mut log: String = lines.iter().map(|line| format!("{line}\n")).collect();
            if cut { log.push_str("no end yet"); }
            let start = tail_start(&mut Cursor::new(log.as_bytes()), log.len() as u64, n).unwrap();
            let all: Vec<&str> = log.split_inclusive('\n').collect();
            let expected: String = all[all.len().saturating_sub(n as usize)..].concat();
            prop_assert_eq!(&log[start as usize..], expected);
        }
    }
}
