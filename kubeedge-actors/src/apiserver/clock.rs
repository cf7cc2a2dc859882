//! Times as the API writes them. The clock itself comes from outside (`Config::clock`).

use jiff::Timestamp;

pub(crate) use crate::kubeapi::time::now as system;

/// RFC 3339 with whole seconds, in UTC: `2026-01-01T00:00:00Z`.
pub(crate) fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

/// Seconds since 1970, when `text` is a time.
pub(crate) fn parse(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_whole_seconds_and_read_back() {
        assert_eq!(rfc3339(1_767_225_600), "2026-01-01T00:00:00Z");
        assert_eq!(parse("2026-01-01T00:00:00Z"), Some(1_767_225_600));
        assert_eq!(parse("2026-01-01T01:00:00.5+01:00"), Some(1_767_225_600));
        assert_eq!(parse("yesterday"), None);
    }
}
