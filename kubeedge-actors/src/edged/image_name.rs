//! Image names: `[registry/]repository[:tag][@digest]`.

use thiserror::Error;

/// Where a name without a registry is looked for.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Longest name, characters (the distribution specification's bound on a repository).
const MAX_REPOSITORY: usize = 255;

/// A name that no registry could serve.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "couldn't parse image name {given:?}: {why}; expected such as \"registry.example/team/app:1.0\" or \
     \"app@sha256:...\""
)]
pub struct InvalidImageName {
    given: String,
    why: &'static str,
}

/// A parsed image name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// Host, and port if there is one.
    pub registry: String,
    /// Path in the registry.
    pub repository: String,
    /// The tag; `latest` when the name has neither tag nor digest.
    pub tag: Option<String>,
    /// The digest.
    pub digest: Option<String>,
    /// As it is asked for: the name as given, with `:latest` when it has neither tag nor digest.
    pub asked: String,
}

impl ImageName {
    /// Parses a name.
    pub fn parse(given: &str) -> Result<Self, InvalidImageName> {
        let invalid = |why| InvalidImageName { given: given.chars().take(2 * MAX_REPOSITORY).collect::<String>(), why };
        let (name, digest) = match given.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (given, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(invalid("the digest is not algorithm:hex"));
        }
        let (path, tag) = match name.rsplit_once(':') {
            // A colon before a slash belongs to a port.
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (name, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("the tag is not 1 to 128 letters, digits, '_', '.', '-'"));
        }
        let (registry, repository) = match path.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => (DEFAULT_REGISTRY, path),
        };
        if !is_host(registry) {
            return Err(invalid("the registry is not a host with an optional port"));
        }
        if repository.len() > MAX_REPOSITORY || !repository.split('/').all(is_component) {
            return Err(invalid("the repository is not lower case letters and digits with single separators"));
        }
        let untagged = tag.is_none() && digest.is_none();
        Ok(Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: if untagged { Some("latest".to_owned()) } else { tag.map(str::to_owned) },
            digest: digest.map(str::to_owned),
            asked: if untagged { format!("{given}:latest") } else { given.to_owned() },
        })
    }

    /// Whether the name follows a moving tag, so that an unset pull policy means `Always`.
    pub fn is_latest(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref() == Some("latest")
    }
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, hex)| {
        algorithm.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'.' | b'_' | b'-'))
            && (32..=256).contains(&hex.len())
            && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            return address.parse::<std::net::Ipv6Addr>().is_ok()
                && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// Lower case letters and digits, separated by one '.', one or two '_', or any number of '-'.
fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let framed = bytes.first().copied().is_some_and(word) && bytes.last().copied().is_some_and(word);
    framed
        && bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'_' | b'-'))
        && bytes
            .split(|b| word(*b))
            .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let sha = format!("sha256:{}", "a".repeat(64));
        for (given, registry, repository, tag, digest) in [
            ("busybox", "docker.io", "busybox", Some("latest"), None),
            ("team/app:1.0", "docker.io", "team/app", Some("1.0"), None),
            ("localhost/app", "localhost", "app", Some("latest"), None),
            ("127.0.0.1:5000/quick/pause:1", "127.0.0.1:5000", "quick/pause", Some("1"), None),
            ("reg.example/a/b__c/d-e", "reg.example", "a/b__c/d-e", Some("latest"), None),
            ("[::1]:5000/a", "[::1]:5000", "a", Some("latest"), None),
            (&format!("app@{sha}"), "docker.io", "app", None, Some(sha.as_str())),
            (&format!("app:2@{sha}"), "docker.io", "app", Some("2"), Some(sha.as_str())),
        ] {
            let name = ImageName::parse(given).unwrap();
            let parts = (name.registry.as_str(), name.repository.as_str(), name.tag.as_deref(), name.digest.as_deref());
            assert_eq!(parts, (registry, repository, tag, digest), "{given}");
        }
    }

    #[test]
    fn names_no_registry_could_serve_are_refused() {
        for bad in [
            "",
            ":1",
            "App",
            "app:",
            "app: 1",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "-a",
            "app@sha256:12",
            "app@",
            "ex.am:99999/a",
            "app:latest\n",
            "a b",
            "http://x/y",
        ] {
            assert!(ImageName::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_is_asked_for_parses_again(text in "\\PC{0,40}|[a-z:@/.0-9_-]{0,60}") {
            if let Ok(name) = ImageName::parse(&text) {
                let again = ImageName::parse(&name.asked).unwrap();
                prop_assert_eq!(again, name);
            }
        }
    }
}
