//! The headers of a request or an answer that go along with it. Pure.
//!
//! Those of one connection stay behind (RFC 9110, 7.6.1), `Host` among them. A header that comes several times is one
//! entry whose values are joined by line feeds, which no header's value can hold.

use std::collections::HashMap;

use thiserror::Error;

/// Headers of one message at most.
pub const MAX_HEADERS: usize = 64;
/// Bytes of their names and values at most.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;
/// How long the body is, where it is known.
pub const CONTENT_LENGTH: &str = "content-length";

/// Between the values of one header.
const JOINT: char = '\n';

/// By lower-case name.
pub type Headers = HashMap<String, String>;

/// Why headers are not taken along.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Too many or too long.
    #[error("there are more than {MAX_HEADERS} headers, or more than {MAX_HEADER_BYTES} bytes of them")]
    TooLarge,
    /// Not of visible characters.
    #[error("the header {0} holds what a header cannot")]
    Invalid(String),
}

/// Whether a header is about a connection and not about what is sent over it.
fn stays(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "host"
            | "expect"
            | "content-length"
    )
}

/// Those that go along. Their `Content-Length` is not among them: whoever knows it adds it.
pub fn collect<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Headers, HeaderError> {
    let headers: Vec<_> = headers.collect();
    // What a `Connection` header names stays as well.
    let named = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
    let named: Vec<String> = named
        .filter_map(|(_, value)| std::str::from_utf8(value).ok())
        .flat_map(|value| value.split(',').map(|option| option.trim().to_ascii_lowercase()))
        .take(MAX_HEADERS)
        .collect();
    let mut kept = Headers::new();
    let (mut count, mut bytes) = (0, 0);
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        if stays(&name) || named.contains(&name) {
            continue;
        }
        count += 1;
        bytes += name.len() + value.len();
        if count > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
            return Err(HeaderError::TooLarge);
        }
        let value = std::str::from_utf8(value).ok().filter(|value| is_value(value));
        let Some(value) = value else { return Err(HeaderError::Invalid(name)) };
        kept.entry(name)
            .and_modify(|known| {
                known.push(JOINT);
                known.push_str(value);
            })
            .or_insert_with(|| value.to_owned());
    }
    Ok(kept)
}

/// What the other end says it collected, one header at a time: checked again, since it is another program.
pub fn each(headers: &Headers) -> impl Iterator<Item = (&str, &str)> {
    // Of one that holds what none can, nothing is taken.
    let good = |(name, values): &(&String, &String)| is_name(name) && !stays(name) && values.split(JOINT).all(is_value);
    let all = headers.iter().filter(good);
    all.flat_map(|(name, values)| values.split(JOINT).map(move |value| (name.as_str(), value))).take(MAX_HEADERS)
}

/// The length of the body, where it is known.
pub fn length(headers: &Headers) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.parse().ok()
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn is_value(value: &str) -> bool {
    value.chars().all(|it| it == '\t' || (' '..='~').contains(&it) || !it.is_ascii() && !it.is_control())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_about_the_connection_stays_and_everything_else_goes_along() {
        let sent: [(&str, &[u8]); 9] = [
            ("Content-Type", b"application/json"),
            ("X-A", b"1"),
            ("x-a", b"2"),
            ("Host", b"cloud:9443"),
            ("Connection", b"close, X-Hop"),
            ("x-hop", b"1"),
            ("Transfer-Encoding", b"chunked"),
            ("Content-Length", b"7"),
            ("Idempotency-Key", b"abc"),
        ];
        let kept = collect(sent.into_iter()).unwrap();
        let mut all: Vec<_> = each(&kept).collect();
        all.sort_unstable();
        let expected = [("content-type", "application/json"), ("idempotency-key", "abc"), ("x-a", "1"), ("x-a", "2")];
        assert_eq!(all, expected);
    }

    #[test]
    fn headers_that_hold_others_are_refused_and_not_passed_on() {
        let refused = |value: &[u8]| collect([("x-a", value)].into_iter()).unwrap_err();
        assert_eq!(refused(b"a\r\nHost: b"), HeaderError::Invalid("x-a".into()));
        assert_eq!(refused(b"\0"), HeaderError::Invalid("x-a".into()));
        assert_eq!(refused(&[b'a'; MAX_HEADER_BYTES + 1]), HeaderError::TooLarge);
        let many = std::iter::repeat_n(("x-a", &b""[..]), MAX_HEADERS + 1);
        assert_eq!(collect(many), Err(HeaderError::TooLarge));
        let from_afar: Headers = [
            ("x-b".to_owned(), "a\r\nhost: evil".to_owned()),
            ("host".to_owned(), "evil".to_owned()),
            ("x c".to_owned(), "1".to_owned()),
            ("x-d\r\nx".to_owned(), "1".to_owned()),
        ]
        .into();
        assert_eq!(each(&from_afar).collect::<Vec<_>>(), []);
    }

    proptest! {
        #[test]
        fn what_goes_along_is_a_header_of_its_own(name in "\\PC{0,12}", value in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(kept) = collect([(name.as_str(), value.as_slice())].into_iter()) {
                for (name, value) in each(&kept) {
                    prop_assert!(!name.contains(['\r', '\n', ':', ' ']) && !value.contains(['\r', '\n', '\0']));
                }
            }
        }
    }
}
