//! `exec`, `attach` and `portForward`, as a kubelet takes them: an upgraded request with everything in path and query.
//! Pure.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::Uri;
use kubeedge_proto::{
    is_dns_subdomain,
    v1::{
        AttachStream, ExecStream, ObjectKey, OpenContainerStream, PortForwardStream, StreamChannels, StreamOpen,
        open_container_stream::Stream,
    },
};

use super::options::Refusal;

/// Ports of one request at most.
const MAX_PORTS: usize = 64;

/// Reads a request; `None` when the path is none of these three.
pub fn parse(open: &StreamOpen) -> Option<Result<OpenContainerStream, Refusal>> {
    let (path, query) = open.path_and_query.split_once('?').unwrap_or((&open.path_and_query, ""));
    let parts: Vec<&str> = path.split('/').collect();
    let (verb, namespace, pod, container) = match parts.as_slice() {
        ["", verb @ ("exec" | "attach"), namespace, pod, container] => (*verb, *namespace, *pod, Some(*container)),
        ["", verb @ "portForward", namespace, pod] => (*verb, *namespace, *pod, None),
        _ => return None,
    };
    Some(read(open, verb, (namespace, pod), container, query))
}

fn read(
    open: &StreamOpen,
    verb: &str,
    (namespace, pod): (&str, &str),
    container: Option<&str>,
    query: &str,
) -> Result<OpenContainerStream, Refusal> {
    let refusal = |code, message: String| Err(Refusal { code, message });
    if !matches!(open.method.as_str(), "GET" | "POST") {
        return refusal(405, format!("{} is not allowed: {verb} is asked for with GET or POST", open.method));
    }
    if !open.upgrade {
        return refusal(400, "Upgrade request required".into());
    }
    for (what, name) in [("namespace", Some(namespace)), ("pod", Some(pod)), ("container", container)] {
        if let Some(name) = name.filter(|name| !is_dns_subdomain(name)) {
            return refusal(400, format!("{name:?} is not the name of a {what}"));
        }
    }
    let query: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let stream = match container {
        None => Stream::PortForward(PortForwardStream { ports: ports(&query)? }),
        Some(container) => {
            let channels = channels(&query)?;
            let container = container.to_owned();
            if verb == "attach" {
                Stream::Attach(AttachStream { container, channels: Some(channels) })
            } else {
                let command: Vec<String> =
                    query.into_iter().filter(|(name, _)| name == "command").map(|(_, value)| value).collect();
                if command.first().is_none_or(String::is_empty) {
                    return refusal(400, "you must specify at least one command for the container".into());
                }
                Stream::Exec(ExecStream { container, command, channels: Some(channels) })
            }
        }
    };
    Ok(OpenContainerStream { pod: Some(ObjectKey::new(namespace.to_owned(), pod.to_owned())), stream: Some(stream) })
}

/// Which channels are wanted. A terminal has one output: with it errors have no channel of their own.
fn channels(query: &[(String, String)]) -> Result<StreamChannels, Refusal> {
    let flag = |wanted: &str| query.iter().find(|(name, _)| name == wanted).is_some_and(|(_, value)| value == "1");
    let tty = flag("tty");
    let channels = StreamChannels { stdin: flag("input"), stdout: flag("output"), stderr: flag("error") && !tty, tty };
    if !(channels.stdin || channels.stdout || channels.stderr) {
        return Err(Refusal { code: 400, message: "you must specify at least 1 of stdin, stdout, stderr".into() });
    }
    Ok(channels)
}

/// The ports that a WebSocket names before it begins; SPDY names them in its streams.
fn ports(query: &[(String, String)]) -> Result<Vec<i32>, Refusal> {
    let all = query.iter().filter(|(name, _)| name == "port").flat_map(|(_, value)| value.split(','));
    let mut ports = Vec::new();
    for text in all.take(MAX_PORTS + 1) {
        match text.parse::<u16>() {
            Ok(port) if port != 0 => ports.push(i32::from(port)),
            _ => return Err(Refusal { code: 400, message: format!("unable to parse {text:?} as a port") }),
        }
    }
    if ports.len() > MAX_PORTS {
        return Err(Refusal { code: 400, message: format!("more than {MAX_PORTS} ports in one request") });
    }
    Ok(ports)
}

/// Where the runtime serves a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamingServer {
    /// On this machine's loopback interface.
    pub address: SocketAddr,
    /// Good for one request.
    pub path_and_query: String,
}

impl StreamingServer {
    /// Reads a URL of the runtime. It must be plain HTTP on the loopback interface: this program connects to where it
    /// says with the rights of a node. No name is looked up for it. `P-STREAM-LOOPBACK`.
    pub fn parse(url: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "the container runtime serves streams at {url:?}: {why}; expected such as http://127.0.0.1:PORT/TOKEN \
                 (containerd: stream_server_address = \"127.0.0.1\" and enable_tls_streaming = false)"
            )
        };
        let parsed: Uri = url.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
        if parsed.scheme_str() != Some("http") {
            return Err(wrong("it is not plain HTTP"));
        }
        let authority = parsed.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it names a user"));
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let ip = match host {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            literal => literal.parse().map_err(|_| wrong("its host is not an IP address"))?,
        };
        if !ip.is_loopback() {
            return Err(wrong("that is not on the loopback interface"));
        }
        let port = authority.port_u16().filter(|port| *port != 0).ok_or_else(|| wrong("it names no port"))?;
        let path = parsed.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self { address: SocketAddr::new(ip, port), path_and_query: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(method: &str, path: &str) -> StreamOpen {
        StreamOpen { method: method.into(), path_and_query: path.into(), upgrade: true, ..StreamOpen::default() }
    }

    fn read(path: &str) -> Result<Stream, (u32, String)> {
        let read = parse(&open("POST", path)).expect("one of the three");
        read.map(|read| read.stream.unwrap()).map_err(|refusal| (refusal.code, refusal.message))
    }

    #[test]
    fn a_request_is_read_as_a_kubelet_reads_it() {
        let exec = read("/exec/ns/p/main?command=sh&command=-c&command=echo+a%26b%20%C3%A4&input=1&output=1&error=1");
        let channels = StreamChannels { stdin: true, stdout: true, stderr: true, tty: false };
        let command = vec!["sh".to_owned(), "-c".to_owned(), "echo a&b ä".to_owned()];
        let expected = ExecStream { container: "main".into(), command, channels: Some(channels) };
        assert_eq!(exec, Ok(Stream::Exec(expected)));
        let attach = read("/attach/ns/p/main?input=1&output=1&error=1&tty=1");
        let channels = StreamChannels { stdin: true, stdout: true, stderr: false, tty: true };
        let expected = AttachStream { container: "main".into(), channels: Some(channels) };
        assert_eq!(attach, Ok(Stream::Attach(expected)));
        let forward = read("/portForward/ns/p?port=80,8080");
        assert_eq!(forward, Ok(Stream::PortForward(PortForwardStream { ports: vec![80, 8080] })));
        assert_eq!(read("/portForward/ns/p"), Ok(Stream::PortForward(PortForwardStream { ports: vec![] })));
        for other in ["/containerLogs/ns/p/main", "/exec/ns/p", "/portForward/ns/p/main", "/run/ns/p/main", ""] {
            assert!(parse(&open("POST", other)).is_none(), "{other}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_word() {
        let code = |path: &str| read(path).unwrap_err().0;
        let words = |path: &str| read(path).unwrap_err().1;
        assert_eq!(words("/exec/ns/p/main?output=1"), "you must specify at least one command for the container");
        assert_eq!(
            words("/exec/ns/p/main?command=&output=1"),
            "you must specify at least one command for the container"
        );
        let none = "you must specify at least 1 of stdin, stdout, stderr";
        assert_eq!(words("/exec/ns/p/main?command=ls"), none);
        assert_eq!(words("/attach/ns/p/main?tty=1&error=1"), none);
        assert_eq!(code("/exec/ns/../main?command=ls&output=1"), 400);
        assert_eq!(code("/portForward/ns/p?port=0"), 400);
        assert_eq!(code("/portForward/ns/p?port=80,x"), 400);
        let many = vec!["1"; MAX_PORTS + 1].join(",");
        assert!(words(&format!("/portForward/ns/p?port={many}")).contains("more than 64"));
        let refused = |open: &StreamOpen| parse(open).unwrap().unwrap_err().code;
        assert_eq!(refused(&open("PUT", "/exec/ns/p/main?command=ls&output=1")), 405);
        let plain = StreamOpen { upgrade: false, ..open("POST", "/exec/ns/p/main?command=ls&output=1") };
        assert_eq!(refused(&plain), 400);
    }

    /// `P-STREAM-LOOPBACK`
    #[test]
    fn a_stream_is_dialled_on_the_loopback_interface_only() {
        let good = [
            ("http://127.0.0.1:41379/exec/abc", "127.0.0.1:41379", "/exec/abc"),
            ("http://[::1]:80/x?y=z", "[::1]:80", "/x?y=z"),
            ("http://localhost:10010", "127.0.0.1:10010", "/"),
        ];
        for (url, address, path_and_query) in good {
            let expected = StreamingServer { address: address.parse().unwrap(), path_and_query: path_and_query.into() };
            assert_eq!(StreamingServer::parse(url), Ok(expected));
        }
        let bad = [
            ("http://10.0.0.1:80/exec/a", "not on the loopback"),
            ("http://169.254.169.254:80/latest/meta-data", "not on the loopback"),
            ("http://0.0.0.0:80/a", "not on the loopback"),
            ("http://[::ffff:127.0.0.1]:80/a", "not on the loopback"),
            ("http://127.0.0.1.evil.example:80/a", "not an IP address"),
            ("http://127.1:80/a", "not an IP address"),
            ("http://127.0.0.1@10.0.0.1:80/a", "names a user"),
            ("https://127.0.0.1:80/a", "not plain HTTP"),
            ("unix:///run/x", "invalid format"),
            ("http://127.0.0.1/a", "no port"),
            ("http://127.0.0.1:0/a", "no port"),
            ("/exec/a", "not plain HTTP"),
            ("", ""),
        ];
        for (url, why) in bad {
            let error = StreamingServer::parse(url).expect_err(url);
            assert!(error.contains(why) && error.contains("stream_server_address"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_url_leads_off_this_machine(url in "(http|https|ftp)://[a-z0-9.:@\\[\\]/%]{0,40}") {
            if let Ok(server) = StreamingServer::parse(&url) {
                prop_assert!(server.address.ip().is_loopback());
            }
        }

        #[test]
        fn no_request_panics(path in "/(exec|attach|portForward)[/a-z0-9.?&=%+,-]{0,60}") {
            let _ = parse(&open("GET", &path));
        }
    }
}
