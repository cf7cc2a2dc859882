//! Where a manifest wants readings pushed, checked. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use kubeedge_proto::dmi;

use super::Read;
use crate::eventbus::filters::is_topic;

/// For an HTTP server whose manifest says no `timeout`, and for a broker.
pub(super) const WITHIN: Duration = Duration::from_secs(5);
/// The longest `timeout`.
const LONGEST: i64 = 60;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Target {
    Http(Http),
    Mqtt(Mqtt),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Http {
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Begins with a slash.
    pub(super) path: String,
    pub(super) within: Duration,
    pub(super) property: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mqtt {
    pub(super) address: String,
    pub(super) topic: String,
    pub(super) qos: u8,
    pub(super) retained: bool,
}

impl Target {
    /// What a `pushMethod` says of HTTP or MQTT; `None` when it says neither.
    pub(super) fn read(push: &dmi::PushMethod, property: &str) -> Result<Option<Self>, String> {
        match (&push.http, &push.mqtt) {
            (Some(_), Some(_)) => Err("pushMethod has both http and mqtt, expected one of them".to_owned()),
            (Some(http), None) => Http::read(http, property).map(Self::Http).map(Some),
            (None, Some(mqtt)) => Mqtt::read(mqtt).map(Self::Mqtt).map(Some),
            (None, None) if push.otel.is_some() || push.db_method.is_some() => {
                Err("pushMethod: expected http or mqtt, others are not built".to_owned())
            }
            (None, None) => Ok(None),
        }
    }
}

impl Http {
    fn read(http: &dmi::PushMethodHttp, property: &str) -> Result<Self, String> {
        let name = http.hostname.trim_end_matches('/');
        let host = match name.split_once("://") {
            Some(("http", host)) => host,
            Some((scheme, _)) => {
                return Err(format!("pushMethod.http.hostName: {scheme}:// is not built, expected http://"));
            }
            None => name,
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains(['/', '@', '?', '#', ' ']) {
            return Err(format!("pushMethod.http.hostName: {name:?} is no host, expected such as http://192.0.2.1"));
        }
        let port = u16::try_from(http.port).ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| format!("pushMethod.http.port: {} is no port", http.port))?;
        let path = match http.requestpath.as_str() {
            "" => "/".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        if path.parse::<::http::uri::PathAndQuery>().is_err() {
            return Err(format!("pushMethod.http.requestPath: {path:?} is no path"));
        }
        let within = match http.timeout {
            ..=0 => WITHIN,
            seconds => Duration::from_secs(seconds.min(LONGEST).unsigned_abs()),
        };
        Ok(Self { host: host.to_owned(), port, path, within, property: property.to_owned() })
    }

    /// Such as `192.0.2.1:80`, for a `Host` header.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    pub(super) fn body(&self, read: &Read) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair(&self.property, &read.value).append_pair("time", &time(read.at));
        form.finish()
    }
}

impl Mqtt {
    fn read(mqtt: &dmi::PushMethodMqtt) -> Result<Self, String> {
        let (scheme, rest) = mqtt.address.split_once("://").unwrap_or(("tcp", &mqtt.address));
        if !matches!(scheme, "tcp" | "mqtt") {
            return Err(format!("pushMethod.mqtt.address: {scheme}:// is not built, expected tcp://"));
        }
        if !rest.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) {
            let text = format!("{:?} is no broker, expected such as tcp://127.0.0.1:1883", mqtt.address);
            return Err(format!("pushMethod.mqtt.address: {text}"));
        }
        if !is_topic(&mqtt.topic) {
            return Err(format!("pushMethod.mqtt.topic: {:?} is no topic", mqtt.topic));
        }
        let qos = u8::try_from(mqtt.qos).ok().filter(|qos| *qos <= 2);
        let qos = qos.ok_or_else(|| format!("pushMethod.mqtt.qos: {} is not valid, expected 0, 1 or 2", mqtt.qos))?;
        Ok(Self { address: format!("tcp://{rest}"), topic: mqtt.topic.clone(), qos, retained: mqtt.retained })
    }

    pub(super) fn payload(&self, read: &Read) -> String {
        format!("time is {}  {}: {}", time(read.at), self.topic, read.value)
    }
}

fn time(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    Timestamp::from_second(seconds).unwrap_or_default().strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(hostname: &str, port: i64, requestpath: &str, timeout: i64) -> Result<Http, String> {
        let said = dmi::PushMethodHttp { hostname: hostname.into(), port, requestpath: requestpath.into(), timeout };
        Http::read(&said, "temperature")
    }

    #[test]
    fn a_host_is_read_in_every_spelling_that_mappers_take() {
        for (said, meant) in [
            ("http://192.0.2.1", "192.0.2.1:80"),
            ("sink.example", "sink.example:80"),
            ("http://[2001:db8::1]/", "[2001:db8::1]:80"),
        ] {
            assert_eq!(http(said, 80, "", 0).unwrap().authority(), meant);
        }
        for (host, port, path, said) in [
            ("https://a", 80, "", "https:// is not built"),
            ("", 80, "", "is no host"),
            ("http://a/b", 80, "", "is no host"),
            ("a", 0, "", "0 is no port"),
            ("a", 65_536, "", "65536 is no port"),
            ("a", 80, "a b", "is no path"),
        ] {
            let refused = http(host, port, path, 0).unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
    }

    #[test]
    fn a_timeout_is_bounded() {
        for (said, seconds) in [(0, 5), (-3, 5), (7, 7), (i64::MAX, 60)] {
            assert_eq!(http("a", 80, "p", said).unwrap().within.as_secs(), seconds);
        }
    }

    #[test]
    fn what_is_sent_is_what_mappers_of_kubeedge_send() {
        let read = Read { value: "19.5 & more".into(), at: UNIX_EPOCH + Duration::from_secs(1_769_903_999) };
        let http = http("a", 80, "p", 0).unwrap();
        assert_eq!(http.body(&read), "temperature=19.5+%26+more&time=2026-01-31+23%3A59%3A59");
        let said = dmi::PushMethodMqtt { address: "mqtt://b:1883".into(), topic: "a/b".into(), qos: 1, retained: true };
        let mqtt = Mqtt::read(&said).unwrap();
        assert_eq!(mqtt.address, "tcp://b:1883");
        assert_eq!(mqtt.payload(&read), "time is 2026-01-31 23:59:59  a/b: 19.5 & more");
    }

    #[test]
    fn a_broker_that_cannot_be_is_refused() {
        for (address, topic, qos, said) in [
            ("ssl://b:8883", "t", 0, "ssl:// is not built"),
            ("tcp://b", "t", 0, "is no broker"),
            ("tcp://b:1", "t/#", 0, "is no topic"),
            ("tcp://b:1", "t", 3, "expected 0, 1 or 2"),
        ] {
            let mqtt = dmi::PushMethodMqtt { address: address.into(), topic: topic.into(), qos, retained: false };
            let refused = Mqtt::read(&mqtt).unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
    }

    #[test]
    fn a_method_is_one_of_two() {
        let none = dmi::PushMethod::default();
        assert_eq!(Target::read(&none, "t"), Ok(None));
        let other = dmi::PushMethod { otel: Some(dmi::PushMethodOtel::default()), ..none.clone() };
        assert!(Target::read(&other, "t").is_err());
        let both = dmi::PushMethod { http: Some(Default::default()), mqtt: Some(Default::default()), ..none };
        assert!(Target::read(&both, "t").is_err());
    }
}
