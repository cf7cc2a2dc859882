//! One page over HTTP/1.1: what `httpGet` of a probe or a hook asks for.
//!
//! As kubelet does it: a connection of its own, no proxy, redirects followed while they stay on the same host and for
//! at most [`MAX_REDIRECTS`]. Everything from the server is bounded: the head by hyper's buffer, the body by [`MAX_BODY`].

use std::{fmt, io};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_util::task::AbortOnDropHandle;

use super::{HttpCheck, tls};

/// Most bytes of an answer's body that are read; what follows is left.
pub const MAX_BODY: usize = 10 * 1024;
/// Most redirects that are followed.
pub const MAX_REDIRECTS: usize = 10;
/// Largest head of an answer, bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Who asks: what the server is told as `User-Agent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A probe.
    Probe,
    /// A lifecycle hook.
    Hook,
}

impl Asker {
    fn user_agent(self) -> &'static str {
        match self {
            Self::Probe => "kube-probe/1.33",
            Self::Hook => "kube-lifecycle/1.33",
        }
    }
}

/// Where a page is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    tls: bool,
    host: String,
    port: u16,
    /// Path and query, in characters that a request line may have.
    target: String,
}

impl Url {
    /// The page of a check; `address` is the pod's.
    pub fn of(check: &HttpCheck, address: &str) -> Self {
        let host = check.host.clone().unwrap_or_else(|| address.to_owned());
        Self { tls: check.tls, host, port: check.port, target: target(&check.path) }
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        let (host, port) = (self.host.trim_matches(['[', ']']), self.port);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// The page that an answer's `Location` names, and whether it names a host of its own.
    pub fn join(&self, location: &str) -> Result<(Self, bool), String> {
        let location = location.split('#').next().unwrap_or_default();
        let (scheme, rest) = match location.split_once("://") {
            Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => (Some(scheme), rest),
            _ => match location.strip_prefix("//") {
                Some(rest) => (None, rest),
                None => return Ok((Self { target: self.relative(location), ..self.clone() }, false)),
            },
        };
        let tls = match scheme {
            None => self.tls,
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => false,
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => true,
            Some(other) => return Err(format!("unsupported protocol scheme {other:?}")),
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
        let default = if tls { 443 } else { 80 };
        let wrong = || format!("invalid redirect {location:?}");
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, if port.is_empty() { default } else { port.parse().map_err(|_| wrong())? })
            }
            _ => (authority, default),
        };
        let host = host.trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(wrong());
        }
        Ok((Self { tls, host: host.to_owned(), port, target: target(path) }, true))
    }

    fn relative(&self, location: &str) -> String {
        let path = self.target.split('?').next().unwrap_or_default();
        if location.starts_with('/') {
            target(location)
        } else if location.starts_with('?') {
            target(&format!("{path}{location}"))
        } else {
            let folder = path.rfind('/').map_or("/", |at| &path[..=at]);
            target(&format!("{folder}{location}"))
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target)
    }
}

/// Path and query as a request line has them.
fn target(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%?".contains(&byte) {
            target.push(char::from(byte));
        } else {
            target.push_str(&format!("%{byte:02X}"));
        }
    }
    target
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The last answer's status.
    pub status: u16,
    /// The beginning of its body.
    pub body: String,
}

/// Asks for a page and follows redirects. The error is for a person, in kubelet's words. Has no deadline of its own.
pub async fn get(check: &HttpCheck, address: &str, asker: Asker) -> Result<Page, String> {
    let first = Url::of(check, address);
    let mut url = first.clone();
    let mut own_host = true;
    for _ in 0..=MAX_REDIRECTS {
        let (page, location) =
            ask(&url, &check.headers, own_host, asker).await.map_err(|error| format!("Get \"{url}\": {error}"))?;
        let Some(location) = location else { return Ok(page) };
        let (next, names_host) = url.join(&location).map_err(|error| format!("Get \"{url}\": {error}"))?;
        if next.host != first.host {
            return Ok(page);
        }
        own_host &= !names_host;
        url = next;
    }
    Err(format!("Get \"{url}\": stopped after {MAX_REDIRECTS} redirects"))
}

/// One request; with the place that its answer sends to.
async fn ask(
    url: &Url,
    headers: &[(String, String)],
    own_host: bool,
    asker: Asker,
) -> Result<(Page, Option<String>), String> {
    let host = headers.iter().rfind(|(name, value)| name.eq_ignore_ascii_case("host") && !value.is_empty());
    let host = host.filter(|_| own_host).map_or_else(|| url.authority(), |(_, value)| value.clone());
    let mut request = Request::get(&url.target).header(header::HOST, host).header(header::CONNECTION, "close");
    let given = |wanted: header::HeaderName| headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted.as_str()));
    if !given(header::USER_AGENT) {
        request = request.header(header::USER_AGENT, asker.user_agent());
    }
    if !given(header::ACCEPT) {
        request = request.header(header::ACCEPT, "*/*");
    }
    for (name, value) in headers {
        // An empty one takes the default away, and says nothing itself.
        let ours = name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case("connection");
        let taken_away = name.eq_ignore_ascii_case("accept") && value.is_empty();
        if !ours && !taken_away {
            request = request.header(name, value);
        }
    }
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| error.to_string())?;
    let stream = connect(&url.host, url.port).await?;
    if url.tls {
        let name = rustls::pki_types::ServerName::try_from(url.host.clone()).map_err(|error| error.to_string())?;
        let connector = tls::connector().map_err(|error| error.to_string())?;
        let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange<S>(stream: S, request: Request<Empty<bytes::Bytes>>) -> Result<(Page, Option<String>), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let handshake = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| error.to_string())?;
    // Ends with this request, whatever becomes of it.
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut text = Vec::new();
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        if let Some(data) = frame.data_ref() {
            let room = MAX_BODY - text.len();
            text.extend_from_slice(&data[..data.len().min(room)]);
        }
        if text.len() >= MAX_BODY {
            break;
        }
    }
    let follows = matches!(
        status,
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    let page = Page { status: status.as_u16(), body: String::from_utf8_lossy(&text).into_owned() };
    Ok((page, location.filter(|location| follows && !location.is_empty())))
}

/// Opens a connection. The error is in kubelet's words.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let host = host.trim_matches(['[', ']']);
    TcpStream::connect((host, port)).await.map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
            _ => error.to_string(),
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("dial tcp {host}:{port}: {why}")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url(path: &str) -> Url {
        let check = HttpCheck { tls: false, host: None, port: 8080, path: path.to_owned(), headers: Vec::new() };
        Url::of(&check, "10.0.0.1")
    }

    #[test]
    fn a_page_is_where_its_container_says() {
        assert_eq!(url("/a?b=c").to_string(), "http://10.0.0.1:8080/a?b=c");
        assert_eq!(url("").to_string(), "http://10.0.0.1:8080/");
        assert_eq!(url("healthz#x").to_string(), "http://10.0.0.1:8080/healthz");
        assert_eq!(url("/a b\r\nX: y").target, "/a%20b%0D%0AX:%20y");
        let check = HttpCheck { tls: true, host: Some("fe80::1".into()), port: 1, path: "/".into(), headers: vec![] };
        assert_eq!(Url::of(&check, "10.0.0.1").to_string(), "https://[fe80::1]:1/");
    }

    #[test]
    fn a_redirect_names_a_page_relative_to_the_one_before() {
        let to = |location: &str| url("/a/b?c").join(location).map(|(url, _)| url.to_string());
        assert_eq!(to("/x?y").unwrap(), "http://10.0.0.1:8080/x?y");
        assert_eq!(to("x").unwrap(), "http://10.0.0.1:8080/a/x");
        assert_eq!(to("?y").unwrap(), "http://10.0.0.1:8080/a/b?y");
        assert_eq!(to("//h/x").unwrap(), "http://h:80/x");
        assert_eq!(to("https://h").unwrap(), "https://h:443/");
        assert_eq!(to("https://u:p@[::1]:9/x#y").unwrap(), "https://[::1]:9/x");
        for wrong in ["ftp://h/", "http://:1/", "http://h:x/", "http:///"] {
            assert!(to(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_a_server_sends_never_leaves_the_request_line(base in ".{0,20}", location in ".{0,40}") {
            if let Ok((next, _)) = url(&base).join(&location) {
                prop_assert!(next.target.starts_with('/'));
                prop_assert!(next.target.bytes().all(|byte| byte.is_ascii_graphic()));
                prop_assert!(next.target.parse::<hyper::Uri>().is_ok(), "{:?}", next.target);
            }
        }
    }
}
