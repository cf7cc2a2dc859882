//! Paths: what a rule's template takes of a request's. Pure.
//!
//! A template matches whole segments from the first one on, so `/a` takes `/a` and `/a/b`, and never `/ab` or `/x/a`. What
//! is behind it goes on to the target.

use std::fmt;

use thiserror::Error;

/// Longest path of a template, bytes.
pub const MAX_PATH: usize = 1024;

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text:?} is no path: {why}; expected such as \"/orders/{{id}}\"")]
pub struct InvalidTemplate {
    text: String,
    why: &'static str,
}

/// Why a request's path is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidPath {
    /// `.` or `..`, plain or encoded, also between encoded slashes: services do not agree on what it means.
    #[error("a segment of the path is \".\" or \"..\"")]
    Dots,
    /// `%` without two hexadecimal digits.
    #[error("a % in the path is not followed by two hexadecimal digits")]
    Escape,
    /// Not UTF-8, or with control characters.
    #[error("the path holds characters that no path has")]
    Characters,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// `{x}`: one segment, whatever it is.
    Any,
    Literal(String),
}

/// A rule's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

impl Template {
    /// Reads one. A slash at either end does not count; `/` alone takes every path.
    pub fn parse(text: &str) -> Result<Self, InvalidTemplate> {
        let wrong = |why| InvalidTemplate { text: text.chars().take(80).collect(), why };
        if text.len() > MAX_PATH {
            return Err(wrong("it is longer than 1024 bytes"));
        }
        let inner = text.strip_prefix('/').unwrap_or(text);
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        if inner.is_empty() {
            return if text.is_empty() { Err(wrong("it is empty")) } else { Ok(Self { parts: Vec::new() }) };
        }
        let parts = inner.split('/').map(|segment| {
            if let Some(name) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                return if is_name {
                    Ok(Part::Any)
                } else {
                    Err(wrong("a placeholder has no name of letters and digits"))
                };
            }
            match segment {
                "" => Err(wrong("a segment is empty")),
                "." | ".." => Err(wrong("a segment is \".\" or \"..\"")),
                _ if segment.contains(['{', '}']) => Err(wrong("a placeholder is not a whole segment")),
                _ if segment.contains(['?', '#', '%']) || segment.chars().any(char::is_control) => {
                    Err(wrong("it holds ?, #, % or a control character"))
                }
                _ => Ok(Part::Literal(segment.to_owned())),
            }
        });
        Ok(Self { parts: parts.collect::<Result<_, _>>()? })
    }

    /// How many segments of a path it takes, if it does.
    pub fn takes(&self, path: &[Segment<'_>]) -> Option<usize> {
        let fits = |(part, segment): (&Part, &Segment<'_>)| match part {
            Part::Any => !segment.text.is_empty(),
            Part::Literal(text) => *text == segment.text,
        };
        (self.parts.len() <= path.len() && self.parts.iter().zip(path).all(fits)).then_some(self.parts.len())
    }

    /// Of two that take a path the one with more segments counts, and of those the one with more literal ones.
    pub fn rank(&self) -> (usize, usize) {
        (self.parts.len(), self.parts.iter().filter(|part| **part != Part::Any).count())
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Any => f.write_str("/{}")?,
                Part::Literal(text) => write!(f, "/{text}")?,
            }
        }
        Ok(())
    }
}

/// A segment of a request's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// As it came.
    pub raw: &'a str,
    /// With its escapes undone.
    pub text: String,
}

/// The segments of a path that begins with a slash; a slash at the end makes an empty last one.
pub fn segments(path: &str) -> Result<Vec<Segment<'_>>, InvalidPath> {
    let inner = path.strip_prefix('/').unwrap_or(path);
    inner.split('/').map(|raw| Ok(Segment { raw, text: unescape(raw)? })).collect()
}

fn unescape(raw: &str) -> Result<String, InvalidPath> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).ok_or(InvalidPath::Escape);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        // Two hexadecimal digits.
        bytes.push((high * 16 + low) as u8);
    }
    let text = String::from_utf8(bytes).map_err(|_| InvalidPath::Characters)?;
    if text.chars().any(char::is_control) {
        return Err(InvalidPath::Characters);
    }
    if text.split(['/', '\\']).any(|part| part == "." || part == "..") {
        return Err(InvalidPath::Dots);
    }
    Ok(text)
}

/// `base` with what is left of a request's path behind it, raw.
pub fn append(base: &str, rest: &[Segment<'_>]) -> String {
    if rest.is_empty() {
        return base.to_owned();
    }
    let rest: Vec<&str> = rest.iter().map(|segment| segment.raw).collect();
    format!("{}/{}", base.trim_end_matches('/'), rest.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(template: &str, path: &str) -> Option<usize> {
        Template::parse(template).unwrap().takes(&segments(path).unwrap())
    }

    #[test]
    fn a_template_takes_whole_segments_from_the_first_one_on() {
        assert_eq!(taken("/a", "/a"), Some(1));
        assert_eq!(taken("a/", "/a/b/c"), Some(1));
        assert_eq!(taken("/a", "/ab"), None);
        assert_eq!(taken("/a", "/x/a"), None);
        assert_eq!(taken("/a/{id}/b", "/a/7/b"), Some(3));
        assert_eq!(taken("/a/{id}/b", "/a//b"), None);
        assert_eq!(taken("/a/{id}", "/a"), None);
        assert_eq!(taken("/", "/a"), Some(0));
        assert_eq!(taken("/a.c", "/abc"), None, "it is no regular expression");
        assert_eq!(taken("/ä", "/%C3%A4/x"), Some(1));
    }

    #[test]
    fn what_is_no_template_and_no_path_says_why() {
        for bad in ["", "a//b", "/a/../b", "/a{x}", "/{}", "/{a b}", "/a?b", "/a%2fb", "/\n", &"a".repeat(1025)] {
            assert!(Template::parse(bad).is_err(), "{bad:?}");
        }
        for (bad, why) in [
            ("/a/../b", InvalidPath::Dots),
            ("/a/%2e%2E", InvalidPath::Dots),
            ("/a/.", InvalidPath::Dots),
            ("/a/..%2f..%2fb", InvalidPath::Dots),
            ("/a/%2e%2e%2Fb", InvalidPath::Dots),
            ("/a/..%5cb", InvalidPath::Dots),
            ("/%", InvalidPath::Escape),
            ("/%4", InvalidPath::Escape),
            ("/%zz", InvalidPath::Escape),
            ("/%ff", InvalidPath::Characters),
            ("/%0d%0aHost:%20x", InvalidPath::Characters),
            ("/%00", InvalidPath::Characters),
        ] {
            assert_eq!(segments(bad).map(drop), Err(why), "{bad}");
        }
    }

    #[test]
    fn what_is_left_goes_behind_the_target() {
        let path = segments("/a/b%20c/d/").unwrap();
        assert_eq!(append("/x/", &path[1..]), "/x/b%20c/d/");
        assert_eq!(append("/x", &path[4..]), "/x");
        assert_eq!(append("/", &path[2..3]), "/d");
    }

    proptest! {
        #[test]
        fn a_path_is_taken_whole_or_not_at_all(literal in "[a-z]{1,4}(/[a-z]{1,4}){0,3}", more in "[a-z]{0,3}") {
            let template = Template::parse(&literal).unwrap();
            let path = format!("/{literal}{more}");
            let taken = template.takes(&segments(&path).unwrap());
            prop_assert_eq!(taken.is_some(), more.is_empty());
        }

        #[test]
        fn nothing_that_comes_makes_it_panic(template in "\\PC{0,20}", path in "\\PC{0,40}") {
            if let (Ok(template), Ok(path)) = (Template::parse(&template), segments(&path)) {
                let rest = template.takes(&path).map(|taken| append("/base", &path[taken..]));
                prop_assert!(rest.is_none_or(|rest| rest.starts_with("/base")));
            }
        }
    }
}
