//! The headers that make an HTTP upgrade. No other header of a client or a runtime goes over the link.
//!
//! Pure. A header that comes several times, as SPDY clients list their protocols, is one entry whose values are joined by
//! line feeds, which no header's value can hold.

use std::collections::HashMap;

/// Headers of one message at most.
pub const MAX_HEADERS: usize = 32;
/// Bytes of their names and values at most.
pub const MAX_HEADER_BYTES: usize = 8 * 1024;

/// Between the values of one header.
const JOINT: char = '\n';

/// By lower-case name.
type Headers = HashMap<String, String>;

/// Why headers are not taken along.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Too many or too long.
    #[error("the headers of the upgrade are larger than {MAX_HEADERS} or {MAX_HEADER_BYTES} bytes")]
    TooLarge,
    /// Not of visible characters.
    #[error("the header {0} holds what a header cannot")]
    Invalid(String),
}

/// Whether a header belongs to the upgrade itself. `Connection` does not: each hop says it anew. `P-STREAM-HEADERS`.
fn belongs(name: &str) -> bool {
    matches!(name, "upgrade" | "origin" | "user-agent" | "x-accepted-stream-protocol-versions")
        || name.starts_with("sec-websocket-")
        || name.starts_with("x-stream-protocol-")
}

/// Those of a request or an answer that go along.
pub fn collect<'a>(headers: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Result<Headers, HeaderError> {
    let mut kept = Headers::new();
    let (mut count, mut bytes) = (0, 0);
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        if !belongs(&name) {
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
    let all = headers.iter().filter(|(name, _)| belongs(name));
    let all = all.flat_map(|(name, values)| values.split(JOINT).map(move |value| (name.as_str(), value)));
    all.filter(|(_, value)| is_value(value)).take(MAX_HEADERS)
}

fn is_value(value: &str) -> bool {
    value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `P-STREAM-HEADERS`
    #[test]
    fn an_upgrade_keeps_its_headers_and_every_value_of_them_and_nothing_else() {
        let sent: [(&str, &[u8]); 7] = [
            ("Authorization", b"Bearer secret"),
            ("Upgrade", b"SPDY/3.1"),
            ("X-Stream-Protocol-Version", b"v5.channel.k8s.io"),
            ("x-stream-protocol-version", b"v4.channel.k8s.io"),
            ("Cookie", b"a=b"),
            ("Impersonate-User", b"root"),
            ("Connection", b"Upgrade"),
        ];
        let kept = collect(sent).unwrap();
        let mut each: Vec<_> = each(&kept).collect();
        each.sort_unstable();
        assert_eq!(
            each,
            [
                ("upgrade", "SPDY/3.1"),
                ("x-stream-protocol-version", "v4.channel.k8s.io"),
                ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ]
        );
    }

    #[test]
    fn headers_have_bounds_and_hold_no_line_ends() {
        let many = vec![("sec-websocket-protocol", &b"x"[..]); MAX_HEADERS + 1];
        assert_eq!(collect(many), Err(HeaderError::TooLarge));
        let long = vec![b'x'; MAX_HEADER_BYTES];
        assert_eq!(collect([("upgrade", &long[..])]), Err(HeaderError::TooLarge));
        for bad in [&b"a\nb"[..], b"a\rb", b"\xff", b"\0"] {
            assert_eq!(collect([("upgrade", bad)]), Err(HeaderError::Invalid("upgrade".into())));
        }
    }

    proptest! {
        /// Whatever the other end sends: no header that does not belong, and none that would begin another line.
        #[test]
        fn what_the_other_end_says_injects_no_header(headers: HashMap<String, String>, value in "[\\x00-\\x7f]{0,40}") {
            let mut headers = headers;
            headers.insert("upgrade".into(), value.clone());
            headers.insert("authorization".into(), value.clone());
            headers.insert("x-stream-protocol-version".into(), value);
            for (name, value) in each(&headers) {
                prop_assert!(belongs(name));
                prop_assert!(!value.contains(['\r', '\n', '\0']));
            }
        }
    }
}
