//! `GET /containerLogs/<namespace>/<pod>/<container>?...`, as a kubelet takes it.

use jiff::{SignedDuration, Timestamp};
use kubeedge_proto::{
    is_dns_subdomain,
    v1::{ObjectKey, StreamOpen},
};

/// What is to be sent of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on while the container runs.
    pub follow: bool,
    /// The instance before.
    pub previous: bool,
    /// Each line with its time.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail: Option<u64>,
    /// Only lines from this time on.
    pub since: Option<Timestamp>,
    /// No more than these bytes.
    pub limit: Option<u64>,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRequest {
    /// The pod.
    pub pod: ObjectKey,
    /// The container's name.
    pub container: String,
    /// What of its log.
    pub options: LogOptions,
}

/// A request that is not served, as an HTTP status and words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub code: u32,
    /// The words.
    pub message: String,
}

impl LogRequest {
    /// Reads method, path and query.
    pub fn parse(open: &StreamOpen) -> Result<Self, Refusal> {
        let refusal = |code, message: String| Err(Refusal { code, message });
        let (path, query) = open.path_and_query.split_once('?').unwrap_or((&open.path_and_query, ""));
        let parts: Vec<&str> = path.split('/').collect();
        let ["", "containerLogs", namespace, pod, container] = parts.as_slice() else {
            return refusal(404, "404 page not found\n".into());
        };
        if open.method != "GET" || open.upgrade {
            return refusal(405, format!("{} is not allowed: logs are read with GET", open.method));
        }
        for (what, name) in [("namespace", namespace), ("pod", pod), ("container", container)] {
            if !is_dns_subdomain(name) {
                return refusal(400, format!("{name:?} is not the name of a {what}"));
            }
        }
        let options = LogOptions::parse(query, Timestamp::now()).map_err(|message| Refusal { code: 400, message })?;
        let pod = ObjectKey::new(namespace.to_string(), pod.to_string());
        Ok(Self { pod, container: container.to_string(), options })
    }
}

impl LogOptions {
    /// Reads a query; the first of a name counts, names that are not known are ignored, as a kubelet does.
    pub fn parse(query: &str, now: Timestamp) -> Result<Self, String> {
        let mut options = Self::default();
        let mut since_seconds = None;
        let mut seen = Vec::new();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            if value.is_empty() || seen.contains(&name) {
                continue;
            }
            seen.push(name);
            let flag = || match value {
                "1" | "true" => Ok(true),
                "0" | "false" => Ok(false),
                _ => Err(format!("{name}: {value:?} is not valid, expected true or false")),
            };
            let number = |least: u64| match value.parse::<u64>() {
                Ok(number) if number >= least => Ok(number),
                _ => Err(format!("{name}: {value:?} is not valid, expected a number of at least {least}")),
            };
            match name {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail = Some(number(0)?),
                "limitBytes" => options.limit = Some(number(1)?),
                "sinceSeconds" => since_seconds = Some(number(1)?),
                "sinceTime" => {
                    let text = value.replace("%3A", ":").replace("%3a", ":").replace("%2B", "+").replace("%2b", "+");
                    let time = text.parse().map_err(|error| {
                        format!("sinceTime: {text:?} is not valid, expected a time as RFC 3339 has it: {error}")
                    })?;
                    options.since = Some(time);
                }
                _ => {}
            }
        }
        if let Some(seconds) = since_seconds {
            if options.since.is_some() {
                return Err("at most one of sinceTime or sinceSeconds may be specified".into());
            }
            let ago = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            options.since = Some(now.checked_sub(ago).unwrap_or(Timestamp::MIN));
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(method: &str, path: &str) -> StreamOpen {
        StreamOpen { method: method.into(), path_and_query: path.into(), ..StreamOpen::default() }
    }

    #[test]
    fn a_request_is_read_as_a_kubelet_reads_it() {
        let request = LogRequest::parse(&open(
            "GET",
            "/containerLogs/ns/p/main?follow=true&previous=false&timestamps=true&tailLines=5&limitBytes=9&x=y\
             &sinceTime=2026-01-02T03%3A04%3A05Z",
        ));
        let request = request.unwrap();
        assert_eq!((request.pod, request.container), (ObjectKey::new("ns", "p"), "main".into()));
        let since = Some("2026-01-02T03:04:05Z".parse().unwrap());
        let options =
            LogOptions { follow: true, previous: false, timestamps: true, tail: Some(5), since, limit: Some(9) };
        assert_eq!(request.options, options);
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let since = LogOptions::parse("sinceSeconds=60", now).unwrap().since;
        assert_eq!(since, Some("2026-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!(LogOptions::parse("sinceSeconds=18446744073709551615", now).unwrap().since, Some(Timestamp::MIN));
    }

    #[test]
    fn what_is_no_log_is_refused_with_a_word() {
        let code = |method, path| LogRequest::parse(&open(method, path)).unwrap_err().code;
        assert_eq!(code("GET", "/exec/ns/p/main"), 404);
        assert_eq!(code("GET", "/containerLogs/ns/p"), 404);
        assert_eq!(code("POST", "/containerLogs/ns/p/main"), 405);
        assert_eq!(code("GET", "/containerLogs/ns/../main"), 400);
        assert_eq!(code("GET", "/containerLogs/ns/p/main?tailLines=-1"), 400);
        assert_eq!(code("GET", "/containerLogs/ns/p/main?sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z"), 400);
    }
}
