//! Times: RFC 3339 as Kubernetes reads and writes it.

use jiff::Timestamp;
use jiff::tz::TimeZone;

pub(crate) use crate::kubeapi::time::age;

/// How fine a time is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Precision {
    /// `metav1.Time`.
    Seconds,
    /// `metav1.MicroTime`: six fractional digits, no more and no fewer.
    Micros,
}

impl Precision {
    /// The layout in Go's notation, part by part.
    fn layout(self) -> &'static [&'static str] {
        match self {
            Self::Seconds => &["2006", "-", "01", "-", "02", "T", "15", ":", "04", ":", "05", "Z07:00"],
            Self::Micros => &["2006", "-", "01", "-", "02", "T", "15", ":", "04", ":", "05", ".000000", "Z07:00"],
        }
    }
}

/// Reads a time and writes it in UTC; the error is what Go's `time.Parse` says.
pub(crate) fn parse(text: &str, precision: Precision) -> Result<String, String> {
    let layout = precision.layout();
    let refuse = |why: String| format!("parsing time {text:?} as {:?}: {why}", layout.concat());
    let mut rest = text;
    for part in layout {
        let length = match *part {
            "Z07:00" => zone(rest),
            // Go accepts a fraction of seconds after any layout that ends in seconds.
            "05" if precision == Precision::Seconds => digits(rest, 2).map(|n| n + fraction(&rest[n..])),
            ".000000" => rest.strip_prefix('.').and_then(|r| digits(r, 6)).map(|n| n + 1),
            literal if literal.len() == 1 => rest.starts_with(literal).then_some(1),
            number => digits(rest, number.len()),
        };
        match length {
            Some(length) => rest = &rest[length..],
            None => return Err(refuse(format!("cannot parse {rest:?} as {part:?}"))),
        }
    }
    if !rest.is_empty() {
        return Err(refuse(format!("extra text: {rest:?}")));
    }
    let time: Timestamp = text.parse().map_err(|_| refuse("day out of range".to_owned()))?;
    Ok(write(time, precision))
}

/// Writes a time in UTC.
pub(crate) fn write(time: Timestamp, precision: Precision) -> String {
    let utc = time.to_zoned(TimeZone::UTC);
    let format = match precision {
        Precision::Seconds => "%Y-%m-%dT%H:%M:%SZ",
        Precision::Micros => "%Y-%m-%dT%H:%M:%S%.6fZ",
    };
    utc.strftime(format).to_string()
}

fn digits(text: &str, count: usize) -> Option<usize> {
    let all = text.as_bytes().get(..count)?.iter().all(u8::is_ascii_digit);
    all.then_some(count)
}

/// The length of a fraction of seconds, 0 when there is none.
fn fraction(text: &str) -> usize {
    match text.strip_prefix(['.', ',']) {
        Some(rest) => match rest.bytes().take_while(u8::is_ascii_digit).count() {
            0 => 0,
            digits => digits + 1,
        },
        None => 0,
    }
}

fn zone(text: &str) -> Option<usize> {
    match text.as_bytes() {
        [b'Z', ..] => Some(1),
        [b'+' | b'-', a, b, b':', c, d, ..] if [a, b, c, d].iter().all(|x| x.is_ascii_digit()) => Some(6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_kept_in_utc_and_to_their_precision() {
        assert_eq!(parse("2026-01-01T02:03:04+02:00", Precision::Seconds).as_deref(), Ok("2026-01-01T00:03:04Z"));
        assert_eq!(parse("2026-01-01T02:03:04.9Z", Precision::Seconds).as_deref(), Ok("2026-01-01T02:03:04Z"));
        assert_eq!(
            parse("2026-01-01T00:00:00.000000Z", Precision::Micros).as_deref(),
            Ok("2026-01-01T00:00:00.000000Z")
        );
    }

    #[test]
    fn the_part_that_does_not_fit_is_named() {
        let why = |text: &str, precision| parse(text, precision).expect_err("refused");
        assert!(why("2026-1-01", Precision::Seconds).ends_with("cannot parse \"1-01\" as \"01\""));
        assert!(why("2026-01-01T00:00:00Z", Precision::Micros).ends_with("cannot parse \"Z\" as \".000000\""));
        assert!(why("2026-02-30T00:00:00Z", Precision::Seconds).ends_with(": day out of range"));
        assert!(why("2026-01-01T00:00:00Zz", Precision::Seconds).ends_with("extra text: \"z\""));
        assert!(why("", Precision::Seconds).ends_with("cannot parse \"\" as \"2006\""));
    }

    /// Anything, and what looks like a time.
    const TEXTS: &str = "\\PC{0,40}|[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{6})?\
        (Z|[+-][0-2][0-9]:[0-6][0-9])";

    proptest! {
        #[test]
        fn any_text_is_refused_or_becomes_a_time_that_reads_the_same(text in TEXTS) {
            for precision in [Precision::Seconds, Precision::Micros] {
                if let Ok(time) = parse(&text, precision) {
                    prop_assert_eq!(parse(&time, precision), Ok(time.clone()));
                }
            }
        }
    }
}
