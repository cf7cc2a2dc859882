//! Which services may be called. Pure.

use std::net::IpAddr;

use thiserror::Error;

/// Entries of a list at most.
pub const MAX_ENTRIES: usize = 256;

/// What the configuration allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allow {
    /// Any port of the loopback interface.
    #[default]
    Loopback,
    /// These and no others.
    These(Vec<Service>),
}

/// A service by host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// An address, or a lower-case name.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Why a service is not called.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Forbidden {
    /// Not `host:port`.
    #[error("{0:?} is no service: expected host:port, such as 127.0.0.1:8080")]
    Invalid(String),
    /// Not on the list.
    #[error(
        "this node does not call {0}: modules.serviceBus.allow names what it calls, without it the loopback interface"
    )]
    NotAllowed(String),
}

impl Service {
    /// Reads `host:port`; an IPv6 address stands in brackets. `localhost` is 127.0.0.1, whatever a resolver says.
    pub fn parse(text: &str) -> Result<Self, Forbidden> {
        let wrong = || Forbidden::Invalid(text.chars().take(80).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| *port != 0 && digits).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            // One way to write each address.
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?.to_string(),
            None => match host.to_ascii_lowercase() {
                host if host == "localhost" => "127.0.0.1".to_owned(),
                // What looks like an address is one: `127.1` or `0x7f.1` is another host to whom one asks.
                host if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') || host.starts_with("0x") => {
                    host.parse::<std::net::Ipv4Addr>().map_err(|_| wrong())?.to_string()
                }
                host if kubeedge_proto::is_dns_subdomain(&host) => host,
                _ => return Err(wrong()),
            },
        };
        Ok(Self { host, port })
    }

    fn is_loopback(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl Allow {
    /// Reads a configuration's list; an empty one is [`Allow::Loopback`].
    pub fn parse<S: AsRef<str>>(list: &[S]) -> Result<Self, String> {
        if list.is_empty() {
            return Ok(Self::Loopback);
        }
        if list.len() > MAX_ENTRIES {
            return Err(format!("{} entries, expected at most {MAX_ENTRIES}", list.len()));
        }
        let services = list.iter().map(|entry| Service::parse(entry.as_ref()).map_err(|error| error.to_string()));
        Ok(Self::These(services.collect::<Result<_, _>>()?))
    }

    /// The service, if it may be called. `P-SERVICE-ALLOWED`.
    pub fn check(&self, service: &str) -> Result<Service, Forbidden> {
        let service = Service::parse(service)?;
        let allowed = match self {
            Self::Loopback => service.is_loopback(),
            Self::These(services) => services.contains(&service),
        };
        if allowed { Ok(service) } else { Err(Forbidden::NotAllowed(format!("{}:{}", service.host, service.port))) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `P-SERVICE-ALLOWED`
    #[test]
    fn without_a_list_nothing_off_this_machine_is_called() {
        for good in ["127.0.0.1:80", "127.9.9.9:65535", "[::1]:8080", "localhost:80", "LOCALHOST:80"] {
            assert!(Allow::Loopback.check(good).is_ok(), "{good}");
        }
        for bad in [
            "10.0.0.1:80",
            "169.254.169.254:80",
            "0.0.0.0:80",
            "[::]:80",
            "[::ffff:127.0.0.1]:80",
            "[fd00::1]:80",
            "127.0.0.1.evil.example:80",
            "evil.example:80",
            "localhost.:80",
            "127.1:80",
            "2130706433:80",
            "0x7f.0.0.1:80",
            "127.0.0.1@evil.example:80",
            "127.0.0.1:80@evil.example:80",
            "127.0.0.1",
            "127.0.0.1:0",
            "127.0.0.1:+80",
            "127.0.0.1:80/x",
            "127.0.0.1:80\r\nHost: x",
            ":80",
            "",
        ] {
            assert!(Allow::Loopback.check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_list_names_all_there_is() {
        let allow = Allow::parse(&["plc.local:8080", "192.168.1.7:80", "[FD00::7]:80"]).unwrap();
        for good in ["PLC.local:8080", "192.168.1.7:80", "[fd00:0::7]:80"] {
            assert!(allow.check(good).is_ok(), "{good}");
        }
        for bad in ["plc.local:8081", "192.168.1.8:80", "127.0.0.1:80"] {
            assert!(matches!(allow.check(bad), Err(Forbidden::NotAllowed(_))), "{bad}");
        }
        assert_eq!(Allow::parse::<&str>(&[]), Ok(Allow::Loopback));
        assert!(Allow::parse(&["plc.local"]).unwrap_err().contains("host:port"));
        assert!(Allow::parse(&vec!["a:1"; MAX_ENTRIES + 1]).is_err());
    }

    proptest! {
        /// `P-SERVICE-ALLOWED`
        #[test]
        fn no_text_leads_off_this_machine(text in "[a-z0-9.:@\\[\\]/%x]{0,30}") {
            if let Ok(service) = Allow::Loopback.check(&text) {
                prop_assert!(service.host.parse::<IpAddr>().unwrap().is_loopback());
            }
        }
    }
}
