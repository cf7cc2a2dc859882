//! Values of a configuration file, parsed where they come in.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de::Error as _};
use thiserror::Error;

/// A value that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{value:?} is not valid, expected {expected}")]
pub struct InvalidValue {
    value: String,
    expected: &'static str,
}

impl InvalidValue {
    fn new(value: &str, expected: &'static str) -> Self {
        Self { value: value.chars().take(260).collect(), expected }
    }
}

/// A span of whole seconds, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(u32);

impl Seconds {
    /// `seconds`, or one if it is zero.
    pub const fn new(seconds: u32) -> Self {
        Self(if seconds == 0 { 1 } else { seconds })
    }

    /// As a duration.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            0 => Err(D::Error::custom("0 is not valid, expected a number of seconds of at least 1")),
            seconds => Ok(Self(seconds)),
        }
    }
}

/// A host, by name or address, and a port: `cloud.example:10000`, `[2001:db8::1]:10000`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    const EXPECTED: &'static str =
        "a host and a port from 1 to 65535, such as \"cloud.example:10000\" or \"[::1]:10000\"";

    /// Reads `host:port`, or `host` with `default_port`.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::new(text, Self::EXPECTED);
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or_else(invalid)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| invalid())?;
                (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or_else(invalid)?) })
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| invalid())?,
            Some(_) => return Err(invalid()),
            None => default_port.ok_or_else(invalid)?,
        };
        if port == 0 || !(host.parse::<IpAddr>().is_ok() || is_host_name(host)) {
            return Err(invalid());
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// Reads `https://host:port`, with or without a slash at its end; without a port, `default_port`.
    pub fn of_https_url(url: &str, default_port: u16) -> Result<Self, InvalidValue> {
        url.strip_prefix("https://")
            .and_then(|rest| Self::parse(rest.strip_suffix('/').unwrap_or(rest), Some(default_port)).ok())
            .ok_or_else(|| InvalidValue::new(url, "an address such as \"https://cloud.example:10002\""))
    }

    /// The name or address, without brackets: what a certificate must be for.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same host, another port.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        Self { host: self.host.clone(), port }
    }
}

fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    // A last label of digits only is a mistyped address.
    host.len() <= 253
        && host.split('.').all(label)
        && !host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<(IpAddr, u16)> for HostPort {
    fn from((address, port): (IpAddr, u16)) -> Self {
        Self { host: address.to_string(), port }
    }
}

impl FromStr for HostPort {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, None)
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// A unix socket: `unix:///run/containerd/containerd.sock`, or the bare path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixEndpoint(PathBuf);

impl UnixEndpoint {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for UnixEndpoint {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.starts_with('/') && !path.contains('\0') {
            Ok(Self(path.into()))
        } else {
            Err(InvalidValue::new(text, "a unix socket such as \"unix:///run/containerd/containerd.sock\""))
        }
    }
}

/// A taint that a node registers with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Taint {
    /// Its key, such as `example.com/edge`.
    pub key: String,
    /// Its value, often empty.
    #[serde(default)]
    pub value: String,
    /// What it does to pods that do not tolerate it.
    pub effect: TaintEffect,
}

/// What a taint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum TaintEffect {
    /// No new pods.
    NoSchedule,
    /// No new pods if it can be helped.
    PreferNoSchedule,
    /// No pods.
    NoExecute,
}

impl TaintEffect {
    /// Kubernetes' own word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

/// A span of time as Go writes it: `2m0s`, `1h30m`, `500ms`, `0s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoDuration(Duration);

impl GoDuration {
    const EXPECTED: &'static str = "a span of time such as \"2m0s\", \"1h30m\" or \"500ms\"";

    /// That many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// As a duration.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for GoDuration {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::new(text, Self::EXPECTED);
        let mut rest = text;
        if rest == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let mut total: u128 = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest.get(..digits).and_then(|number| number.parse().ok()).ok_or_else(invalid)?;
            let unit_from = rest.get(digits..).ok_or_else(invalid)?;
            // The longer names first: "ms" is not "m" and something.
            let units: [(&str, u128); 7] = [
                ("ns", 1),
                ("us", 1_000),
                ("ms", 1_000_000),
                ("s", 1_000_000_000),
                ("m", 60 * 1_000_000_000),
                ("h", 3600 * 1_000_000_000),
                ("d", 0),
            ];
            let unit = units.iter().find(|(name, _)| unit_from.starts_with(name)).filter(|(_, size)| *size > 0);
            let (name, size) = unit.ok_or_else(invalid)?;
            total = total.checked_add(u128::from(number) * size).ok_or_else(invalid)?;
            rest = unit_from.get(name.len()..).ok_or_else(invalid)?;
        }
        // A century is more than anybody means.
        if text.is_empty() || total > 100 * 366 * 24 * 3600 * 1_000_000_000 {
            return Err(invalid());
        }
        let nanoseconds = u64::try_from(total).map_err(|_| invalid())?;
        Ok(Self(Duration::from_nanos(nanoseconds)))
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// A number of bytes as Kubernetes writes it: `10Mi`, `1G`, `4096`. Whole numbers only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::new(text, "a number of bytes such as \"10Mi\", \"1G\" or \"4096\"");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let size: u64 = match unit {
            "" => 1,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            _ => return Err(invalid()),
        };
        number.checked_mul(size).map(Self).ok_or_else(invalid)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// How little of something may be left: an amount, or a share of all of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// Bytes, or a count of what is not measured in bytes.
    Amount(u64),
    /// Tenths of a percent.
    PerMille(u16),
}

impl FromStr for Threshold {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::new(text, "an amount such as \"100Mi\" or a share such as \"10%\"");
        let Some(percent) = text.strip_suffix('%') else {
            return text.parse().map(|Bytes(amount)| Self::Amount(amount)).map_err(|_| invalid());
        };
        let (whole, tenths) = percent.split_once('.').unwrap_or((percent, "0"));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let valid = digits(whole) && digits(tenths) && tenths.len() == 1;
        let (whole, tenths) = (whole.parse::<u16>().map_err(|_| invalid())?, tenths.parse::<u16>());
        match (valid, whole.checked_mul(10), tenths) {
            (true, Some(whole), Ok(tenths)) if whole + tenths <= 1000 => Ok(Self::PerMille(whole + tenths)),
            _ => Err(invalid()),
        }
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// For `deserialize_with`: a string that is parsed.
pub fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// For `deserialize_with`: as [`parsed`], where nothing and the empty string mean that it is not set.
pub fn optional<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        Some(text) if !text.is_empty() => text.parse().map(Some).map_err(D::Error::custom),
        _ => Ok(None),
    }
}

/// For `deserialize_with`: nothing after the colon means the default, as Go reads it.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_and_port_in_every_spelling() {
        for (text, host, port) in [
            ("cloud.example:10000", "cloud.example", 10000),
            ("127.0.0.1:1", "127.0.0.1", 1),
            ("[::1]:65535", "::1", 65535),
        ] {
            let parsed: HostPort = text.parse().unwrap();
            assert_eq!((parsed.host(), parsed.port(), parsed.to_string()), (host, port, text.to_owned()));
        }
        for bad in
            ["", ":1", "a", "a:", "a:0", "a:65536", "a:+1", "a b:1", "::1:1", "[::1]", "[a]:1", "256.0.0.1:1", "-a:1"]
        {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }

    #[test]
    fn https_urls_only() {
        let url = |text| HostPort::of_https_url(text, 10002).map(|parsed| parsed.to_string());
        assert_eq!(url("https://cloud:10003"), Ok("cloud:10003".to_owned()));
        assert_eq!(url("https://[::1]/"), Ok("[::1]:10002".to_owned()));
        assert!(url("http://cloud:10002").is_err(), "never in the clear");
        assert!(url("https://cloud:10002/path").is_err());
    }

    #[test]
    fn sockets_with_and_without_scheme() {
        for text in ["unix:///run/c.sock", "/run/c.sock"] {
            assert_eq!(text.parse::<UnixEndpoint>().unwrap().path(), Path::new("/run/c.sock"));
        }
        assert!("tcp://127.0.0.1:1".parse::<UnixEndpoint>().is_err());
        assert!("".parse::<UnixEndpoint>().is_err());
    }

    #[test]
    fn spans_of_time_are_gos() {
        let span = |text: &str| text.parse::<GoDuration>().map(GoDuration::duration);
        for (text, millis) in
            [("2m0s", 120_000), ("1h30m", 5_400_000), ("500ms", 500), ("0s", 0), ("0", 0), ("1m1s1ms", 61_001)]
        {
            assert_eq!(span(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "5", "-1s", "1.5h", "s", "1 s", "1x", "1d", "99999999999999999999s", "999999999h", "1sm"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_are_kubernetes_and_shares_are_of_a_hundred() {
        let threshold = |text: &str| text.parse::<Threshold>().ok();
        assert_eq!(threshold("100Mi"), Some(Threshold::Amount(100 << 20)));
        assert_eq!(threshold("5000"), Some(Threshold::Amount(5000)));
        assert_eq!(
            (threshold("10%"), threshold("2.5%")),
            (Some(Threshold::PerMille(100)), Some(Threshold::PerMille(25)))
        );
        for bad in ["", "%", "101%", "100.1%", "1.25%", "-1", "1.5Gi", "1Xi", "99999999999999999999Ki", "70000%", "+5%"]
        {
            assert_eq!(threshold(bad), None, "{bad}");
        }
        assert_eq!("1G".parse(), Ok(Bytes(1_000_000_000)));
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_refused(text in "\\PC{0,12}|[0-9.%hmsKi]{0,24}") {
            let _ = (text.parse::<GoDuration>(), text.parse::<Bytes>());
            if let Ok(Threshold::PerMille(share)) = text.parse::<Threshold>() {
                prop_assert!(share <= 1000);
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused_and_what_is_parsed_reads_back(text in "\\PC{0,40}|[a-z0-9.:\\[\\]-]{0,24}") {
            if let Ok(parsed) = text.parse::<HostPort>() {
                prop_assert_eq!(parsed.to_string().parse::<HostPort>(), Ok(parsed));
            }
        }
    }
}
