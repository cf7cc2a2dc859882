//! The HTTPS listener: bounded connections, bounded bodies.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::{AdmissionConfig, PATHS, review};
use crate::audit;

/// What a request is in the audit log.
const ACTION: &str = "review by the admission webhook";
/// Connections at a time; more are closed at once. An API server keeps few and reuses them.
const MAX_CONNECTIONS: usize = 256;
/// Reviews that are read and answered at a time, each with a body in memory; more wait.
const MAX_REVIEWS: usize = 8;
/// Bytes of a body: an API server's requests have 3 MiB at most, and an update's review holds the old pod, too.
const MAX_BODY: usize = 8 << 20;
/// TLS may take this long.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The head of a request may take this long, and so may the pause before the next on the same connection.
const HEAD: Duration = Duration::from_secs(90);
/// A body may take this long: what an API server waits for a webhook at most.
const BODY: Duration = Duration::from_secs(30);
/// Pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the handle is dropped, which cuts every connection.
pub(super) fn listen(config: &AdmissionConfig) -> io::Result<AbortOnDropHandle<()>> {
    let listener = config.listener.try_clone()?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut tls = (*config.tls).clone();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(AbortOnDropHandle::new(tokio::task::spawn_local(accept(listener, TlsAcceptor::from(Arc::new(tls))))))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor) {
    let mut connections = JoinSet::new();
    let reviews = Arc::new(Semaphore::new(MAX_REVIEWS));
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "the admission webhook cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        // Those that have ended meanwhile do not count.
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            let why = format!("there are {MAX_CONNECTIONS} connections, as many as there may be");
            audit::refused_stranger(ACTION, peer, "limit", why);
            continue;
        }
        let (tls, reviews) = (tls.clone(), reviews.clone());
        connections.spawn_local(async move {
            if let Err(error) = serve(stream, peer, tls, reviews).await {
                tracing::debug!("a connection to the admission webhook ended: {error}");
            }
        });
    }
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
    reviews: Arc<Semaphore>,
) -> Result<(), Box<dyn std::error::Error>> {
    stream.set_nodelay(true)?;
    let stream = timeout(HANDSHAKE, tls.accept(stream)).await??;
    let service = service_fn(move |request| {
        let reviews = reviews.clone();
        async move { Ok::<_, Infallible>(respond(request, peer, &reviews).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

async fn respond(request: Request<Incoming>, peer: SocketAddr, reviews: &Semaphore) -> Response<Full<Bytes>> {
    let what = format!("{} {}", request.method(), request.uri().path());
    let (code, kind, text) = match reviewed(request, reviews).await {
        Ok(answer) => (StatusCode::OK, "application/json", answer),
        Err((code, why)) => {
            audit::refused_stranger(ACTION, peer, what, &why);
            (code, "text/plain; charset=utf-8", why)
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

async fn reviewed(request: Request<Incoming>, reviews: &Semaphore) -> Result<String, (StatusCode, String)> {
    if !PATHS.contains(&request.uri().path()) {
        let text = format!("nothing is served here, reviews are at {}", PATHS.join(", "));
        return Err((StatusCode::NOT_FOUND, text));
    }
    if request.method() != Method::POST {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "a review is posted".into()));
    }
    let json = |value: &http::HeaderValue| value.as_bytes().starts_with(b"application/json");
    if !request.headers().get(header::CONTENT_TYPE).is_some_and(json) {
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected application/json".into()));
    }
    // It is never closed.
    let _turn = reviews.acquire().await;
    let read = timeout(BODY, Limited::new(request.into_body(), MAX_BODY).collect()).await;
    let body = match read {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, format!("a review has at most {MAX_BODY} bytes")));
        }
        Ok(Err(error)) => return Err((StatusCode::BAD_REQUEST, format!("the body could not be read: {error}"))),
        Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {BODY:?}"))),
    };
    let answer = review::answer(&body).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    Ok(answer.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::time::SystemTime;

    use hyper::client::conn::http1;
    use serde_json::{Value, json};

    use super::super::review::tests::{patch, review};
    use super::*;
    use crate::audit::testing::Heard;
    use crate::identity::{CertificateAuthority, ClientAuth, issued_client_config, server_config, system_clock};

    /// One request as an API server sends it: over TLS, the authority from the webhook's configuration.
    async fn post(at: SocketAddr, ca: &CertificateAuthority, path: &str, media: &str, body: String) -> (u16, String) {
        let own = ca.issue_client("kube-apiserver", "kubeedge", SystemTime::now()).unwrap();
        let tls = issued_client_config(ca.certificate().clone(), &own, system_clock()).unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = TcpStream::connect(at).await.unwrap();
        let stream = tls.connect(at.ip().into(), stream).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = AbortOnDropHandle::new(tokio::task::spawn_local(connection));
        let request = Request::post(path).header("Host", "webhook").header("Content-Type", media);
        let answer = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
        let code = answer.status().as_u16();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        drop(connection);
        (code, String::from_utf8(text.to_vec()).unwrap())
    }

    /// A webhook that listens until the last value is dropped, and the authority that its certificate is of.
    fn webhook() -> (SocketAddr, CertificateAuthority, AbortOnDropHandle<()>) {
        let folder = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::load_or_create(folder.path(), SystemTime::now()).unwrap();
        let own = ca.issue_server(&[IpAddr::from(Ipv4Addr::LOCALHOST).into()], SystemTime::now()).unwrap();
        let tls = server_config(own.chain(), own.key(), ClientAuth::None, &[], system_clock()).unwrap();
        let listener = Arc::new(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let at = listener.local_addr().unwrap();
        (at, ca, listen(&AdmissionConfig { listener, tls: Arc::new(tls) }).unwrap())
    }

    #[actix::test]
    async fn an_api_server_gets_the_patch_over_https_and_others_a_reason() {
        let (at, ca, _serving) = webhook();
        let heard = Heard::default();
        let _here = heard.here();

        let json = "application/json";
        let asked = review("CREATE", "autonomy", &json!([])).to_string();
        let [pods, devices, ..] = PATHS;
        let (code, text) = post(at, &ca, pods, json, asked.clone()).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(code, 200, "{text}");
        assert_eq!(patch(&answer).unwrap()[0]["value"][0]["key"], "node.kubernetes.io/unreachable");
        assert_eq!(heard.take(), Vec::<String>::new());
        for (path, media, body, expected) in [
            ("/pods", json, asked.clone(), 404),
            (pods, "text/plain", asked, 415),
            (pods, json, "{}".into(), 400),
            (devices, json, " ".repeat(MAX_BODY + 1), 413),
        ] {
            let (code, text) = post(at, &ca, path, media, body).await;
            assert_eq!(code, expected, "{text}");
            let lines = heard.take();
            let told = format!("what=POST {path} ");
            assert!(lines.len() == 1 && lines[0].contains(&text) && lines[0].contains(&told), "{text}: {lines:?}");
        }
    }

    /// As KubeEdge's `ValidatingWebhookConfiguration` has it: each kind at a path of its own.
    #[actix::test]
    async fn devices_and_rules_that_cannot_be_are_refused_over_https_at_the_paths_of_their_kinds() {
        let (at, ca, _serving) = webhook();
        let bounds = json!([{"name": "a", "type": "INT", "accessMode": "ReadWrite", "minimum": "9", "maximum": "1"}]);
        for (resource, group, good, bad, field) in [
            (
                "devices",
                "devices.kubeedge.io",
                json!({"deviceModelRef": {"name": "m"}, "protocol": {"protocolName": "p"}}),
                json!({"protocol": {"protocolName": "p"}}),
                "spec.deviceModelRef.name",
            ),
            (
                "devicemodels",
                "devices.kubeedge.io",
                json!({"properties": []}),
                json!({"properties": bounds}),
                "spec.properties[0].minimum",
            ),
            (
                "ruleendpoints",
                "rules.kubeedge.io",
                json!({"ruleEndpointType": "servicebus", "properties": {"service_port": "80"}}),
                json!({"ruleEndpointType": "servicebus", "properties": {"service_port": "none"}}),
                "service_port",
            ),
        ] {
            for (spec, allowed) in [(good, true), (bad, false)] {
                let mut asked = review("CREATE", "no", &json!([]));
                asked["request"]["resource"] = json!({"group": group, "version": "v1", "resource": resource});
                asked["request"]["object"] = json!({"spec": spec});
                let path = format!("/{resource}");
                let (code, text) = post(at, &ca, &path, "application/json", asked.to_string()).await;
                let answer: Value = serde_json::from_str(&text).unwrap();
                assert_eq!((code, &answer["response"]["allowed"]), (200, &json!(allowed)), "{path}: {text}");
                assert_eq!(text.contains(field), !allowed, "{path}: {text}");
            }
        }
    }
}
