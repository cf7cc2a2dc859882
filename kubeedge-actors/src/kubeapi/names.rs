//! The formats of names, labels and keys. Each check returns its complaints in Kubernetes' words, none when all is
//! well.

const LABEL_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FORMAT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// Longest DNS label, port name, label value and name part of a qualified name, bytes (RFC 1123).
const LABEL_MAX: usize = 63;
/// Longest DNS subdomain, bytes (RFC 1123).
const SUBDOMAIN_MAX: usize = 253;

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} bytes")
}

fn format_error(what: &str, format: &str, examples: &[&str]) -> String {
    let examples: Vec<_> = examples.iter().map(|e| format!("'{e}'")).collect();
    format!("{what} (e.g. {}, regex used for validation is '{format}')", examples.join(",  or "))
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            is_lower(*first) && is_lower(*last) && bytes.iter().all(|b| is_lower(*b) || *b == b'-')
        }
        _ => false,
    }
}

/// Names of pods, nodes, config maps and most other objects.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        all.push(too_long(SUBDOMAIN_MAX));
    }
    if !text.split('.').all(is_label) {
        all.push(format_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character",
            &format!("{LABEL_FORMAT}(\\.{LABEL_FORMAT})*"),
            &["example.com"],
        ));
    }
    all
}

/// Names of namespaces, containers and volumes.
pub fn dns_label(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > LABEL_MAX {
        all.push(too_long(LABEL_MAX));
    }
    if !is_label(text) {
        all.push(format_error(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
             end with an alphanumeric character",
            LABEL_FORMAT,
            &["my-name", "123-abc"],
        ));
    }
    all
}

/// Names of Services: labels that begin with a letter (RFC 1035).
pub fn dns_1035_label(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > LABEL_MAX {
        all.push(too_long(LABEL_MAX));
    }
    if !is_label(text) || text.starts_with(|c: char| c.is_ascii_digit()) {
        all.push(format_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    all
}

fn is_qualified_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

/// Keys of labels, annotations, taints and extended resources: `[prefix/]name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let what = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                alphanumeric character";
    let examples = ["MyName", "my.name", "123-abc"];
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => {
            let what = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and \
                        end with an alphanumeric character";
            let optional = " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return vec![format_error(what, QUALIFIED_FORMAT, &examples) + optional];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                all.push("prefix part must be non-empty".to_owned());
            } else {
                all.extend(dns_subdomain(prefix).into_iter().map(|why| format!("prefix part {why}")));
            }
            name
        }
    };
    if name.is_empty() {
        all.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        all.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_qualified_part(name) {
        all.push(format_error(what, QUALIFIED_FORMAT, &examples));
    }
    all
}

/// Values of labels.
pub fn label_value(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > LABEL_MAX {
        all.push(too_long(LABEL_MAX));
    }
    if !text.is_empty() && !is_qualified_part(text) {
        all.push(format_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            &format!("({QUALIFIED_FORMAT})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    all
}

/// Keys of config maps and secrets.
pub fn config_key(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > SUBDOMAIN_MAX {
        all.push(too_long(SUBDOMAIN_MAX));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        all.push(format_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    if text == "." {
        all.push("must not be '.'".to_owned());
    } else if text == ".." {
        all.push("must not be '..'".to_owned());
    } else if text.starts_with("..") {
        all.push("must not start with '..'".to_owned());
    }
    all
}

/// Names of environment variables: since Kubernetes 1.34 anything printable in ASCII but `=`.
pub fn env_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// Names of ports.
pub fn port_name(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    if text.len() > 15 {
        all.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|b| is_lower(b) || b == b'-') {
        all.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        all.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        all.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        all.push("must not begin or end with a hyphen".to_owned());
    }
    all
}

/// Networks: an address and the bits of its prefix.
pub fn cidr(text: &str) -> Vec<String> {
    let good = text.split_once('/').is_some_and(|(address, bits)| {
        let most = match address.parse() {
            Ok(std::net::IpAddr::V4(_)) => 32,
            Ok(std::net::IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        bits.parse::<u8>().is_ok_and(|bits| bits <= most)
    });
    if good { Vec::new() } else { vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()] }
}

/// IP addresses.
pub fn ip(text: &str) -> Vec<String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn good_names_pass_and_bad_ones_do_not() {
        for good in ["a", "a.b", "1-2.c", "kube-root-ca.crt"] {
            assert!(dns_subdomain(good).is_empty(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", ".a", "a_b", "é"] {
            assert!(!dns_subdomain(bad).is_empty(), "{bad}");
        }
        assert!(dns_label("a.b").len() == 1);
        assert!(dns_label(&"a".repeat(63)).is_empty() && dns_label(&"a".repeat(64)) == [too_long(63)]);
        assert!(dns_subdomain(&"a".repeat(253)).is_empty() && !dns_subdomain(&"a".repeat(254)).is_empty());
        for good in ["a", "example.com/My_Name", "node-role.kubernetes.io/edge"] {
            assert!(qualified_name(good).is_empty(), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "Exa/mple/", "-a", "A/b"] {
            assert!(!qualified_name(bad).is_empty(), "{bad}");
        }
        assert!(label_value("").is_empty() && label_value("a_B.1").is_empty() && !label_value("a b").is_empty());
        assert!(config_key("..data").len() == 1 && config_key("a b").len() == 1 && config_key("a.b").is_empty());
        assert!(env_name("1 bad").is_empty() && !env_name("a=b").is_empty() && !env_name("").is_empty());
        assert!(port_name("http-1").is_empty() && !port_name("80").is_empty() && !port_name("a--b").is_empty());
    }

    proptest! {
        #[test]
        fn every_dns_label_is_a_subdomain_a_config_key_and_a_label_value(text in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?") {
            prop_assert!(dns_label(&text).is_empty());
            prop_assert!(dns_subdomain(&text).is_empty());
            prop_assert!(config_key(&text).is_empty());
            prop_assert!(label_value(&text).is_empty());
            prop_assert!(qualified_name(&text).is_empty());
        }
    }
}
