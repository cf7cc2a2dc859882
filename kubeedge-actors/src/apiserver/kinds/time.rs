//! Times: RFC 3339 as Kubernetes reads and writes it, and ages as `kubectl get` prints them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

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

/// Seconds since 1970 of a stored time.
pub(crate) fn seconds(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

/// The age of a stored time at `now` (seconds since 1970), `<unknown>` without one.
pub(crate) fn age(text: Option<&str>, now: i64) -> String {
    match text.and_then(seconds) {
        Some(then) => duration(now.saturating_sub(then)),
        None => "<unknown>".to_owned(),
    }
}

/// A duration in at most two units and about three digits, as Kubernetes' `HumanDuration` writes it.
pub(crate) fn duration(seconds: i64) -> String {
    let two = |whole: i64, unit: char, rest: i64, small: char| match rest {
        0 => format!("{whole}{unit}"),
        rest => format!("{whole}{unit}{rest}{small}"),
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        ..=-2 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(hours / 24, 'd', hours % 24, 'h'),
        _ if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        _ if hours < 24 * 365 * 8 => two(hours / 24 / 365, 'y', hours / 24 % 365, 'd'),
        _ => format!("{}y", hours / 24 / 365),
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

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600, "9h"),
            (50 * 3600, "2d2h"),
            (8 * 86400, "8d"),
            (326 * 86400, "326d"),
            (800 * 86400, "2y70d"),
            (3000 * 86400, "8y"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds} s");
        }
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

        #[test]
        fn any_duration_has_a_text(seconds in any::<i64>()) {
            prop_assert!(!duration(seconds).is_empty());
        }
    }
}
