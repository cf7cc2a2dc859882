//! Where a broker is.

use std::str::FromStr;

use tokio::net::TcpStream;

/// Host and port of a broker's address, whatever its scheme.
pub(super) struct Address {
    host: String,
    port: u16,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(uri: &str) -> Result<Self, String> {
        let (host, port) = uri.split_once("://").map_or(uri, |(_, rest)| rest).rsplit_once(':').unwrap_or((uri, ""));
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match port.parse() {
            Ok(port) if !host.is_empty() => Ok(Self { host: host.to_owned(), port }),
            _ => Err(format!("{uri:?} has no host and port, expected such as tcp://127.0.0.1:1883")),
        }
    }
}

impl Address {
    #[cfg(feature = "eventbus-tls")]
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// A connection to it.
    pub(super) async fn dial(&self) -> Result<TcpStream, String> {
        let stream = TcpStream::connect((&*self.host, self.port)).await.map_err(|error| error.to_string())?;
        // Small messages that wait for an answer.
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brokers_host_and_port_are_found_in_every_spelling() {
        for (uri, expected) in [
            ("ssl://broker.example:8883", ("broker.example", 8883)),
            ("tcp://[2001:db8::1]:1883", ("2001:db8::1", 1883)),
        ] {
            let address: Address = uri.parse().unwrap();
            assert_eq!((&*address.host, address.port), expected, "{uri}");
        }
        for wrong in ["ssl://broker", "ssl://:8883", "ssl://broker:x", ""] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
