//! Checks against real servers on the loopback interface, and commands against a runtime in memory.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::Timestamp;
use kubeedge_proto::health::health_server::{Health, HealthServer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tonic::{Request, body::Body, codegen::Service};

use super::*;
use crate::edged::{
    fake::{Command, FakeRuntime},
    probes::HttpCheck,
};

const WITHIN: Duration = Duration::from_secs(5);

fn fake() -> FakeRuntime {
    FakeRuntime::new(Arc::new(|| Timestamp::UNIX_EPOCH))
}

async fn ask_here(check: &Check, timeout: Duration) -> Answer {
    ask(check, Asked { runtime: &fake(), id: "c", address: "127.0.0.1", timeout }).await
}

fn page(port: u16, path: &str) -> HttpCheck {
    HttpCheck { tls: false, host: None, port, path: path.to_owned(), headers: Vec::new() }
}

/// A server that answers each connection by what its request line asks for, and notes the requests.
struct Server {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let request = head(&mut stream).await;
                let bytes = answer(request.split(' ').nth(1).unwrap_or_default());
                noted.lock().unwrap().push(request);
                // A client that has enough closes the connection.
                if stream.write_all(&bytes).await.is_ok() {
                    stream.shutdown().await.ok();
                }
            }
        });
        Self { port, requests, _task: tokio_util::task::AbortOnDropHandle::new(task) }
    }

    async fn ask(&self, path: &str) -> Answer {
        ask_here(&Check::Http(page(self.port, path)), WITHIN).await
    }

    fn paths(&self) -> Vec<String> {
        self.requests.lock().unwrap().drain(..).map(|head| head.split(' ').nth(1).unwrap().to_owned()).collect()
    }
}

async fn head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

fn answer(line: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {line}\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn a_status_from_200_to_399_is_good_and_a_body_is_not_told() {
    let server = Server::start(|path| answer(&format!("{} X", &path[1..]), "", "secret")).await;
    assert_eq!(server.ask("/200").await, Answer::Good);
    assert_eq!(server.ask("/204").await, Answer::Good);
    // A redirect that leads nowhere.
    assert!(matches!(server.ask("/304").await, Answer::Warning(_)));
    assert!(matches!(server.ask("/302").await, Answer::Warning(_)));
    for status in [400, 404, 500, 503] {
        let expected = format!("HTTP probe failed with statuscode: {status}");
        assert_eq!(server.ask(&format!("/{status}")).await, Answer::Bad(expected));
    }
}

#[tokio::test]
async fn redirects_are_followed_on_the_same_host_and_no_further() {
    let server = Server::start(|path| match path {
        "/here" => answer("302 Found", "Location: /there?x\r\n", ""),
        "/there?x" => answer("200 OK", "", ""),
        "/bad" => answer("307 Temporary Redirect", "Location: missing\r\n", ""),
        "/away" => answer("301 Moved", "Location: http://192.0.2.1:1/\r\n", "elsewhere"),
        "/loop" => answer("308 Permanent Redirect", "Location: /loop\r\n", ""),
        _ => answer("404 Not Found", "", ""),
    })
    .await;
    assert_eq!(server.ask("/here").await, Answer::Good);
    assert_eq!(server.paths(), ["/here", "/there?x"]);
    assert!(matches!(server.ask("/bad").await, Answer::Bad(_)));
    assert_eq!(server.paths(), ["/bad", "/missing"]);
    let away = Answer::Warning("Probe terminated redirects, Response body: elsewhere".to_owned());
    assert_eq!(server.ask("/away").await, away);
    let Answer::Bad(looped) = server.ask("/loop").await else { panic!("a loop is not good") };
    assert!(looped.ends_with("stopped after 10 redirects"), "{looped}");
    assert_eq!(server.paths().iter().filter(|path| *path == "/loop").count(), 11);
}

#[tokio::test]
async fn headers_are_sent_as_given() {
    let server = Server::start(|_| answer("200 OK", "", "")).await;
    let plain = page(server.port, "/");
    assert_eq!(ask_here(&Check::Http(plain.clone()), WITHIN).await, Answer::Good);
    let named = |pairs: &[(&str, &str)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let headers = named(&[("Host", "shop.example"), ("X-Probe", "1"), ("user-agent", "mine"), ("Accept", "")]);
    assert_eq!(ask_here(&Check::Http(HttpCheck { headers, ..plain.clone() }), WITHIN).await, Answer::Good);
    let headers = named(&[("X", "a\r\nInjected: b")]);
    let refused = ask_here(&Check::Http(HttpCheck { headers, ..plain }), WITHIN).await;
    assert!(matches!(refused, Answer::Bad(_)), "{refused:?}");

    let requests = server.requests.lock().unwrap().clone();
    assert_eq!(requests.len(), 2);
    let lines = |at: usize| requests[at].to_ascii_lowercase().lines().map(str::to_owned).collect::<Vec<_>>();
    let has = |at: usize, line: &str| lines(at).iter().any(|found| found == line);
    assert!(has(0, &format!("host: 127.0.0.1:{}", server.port)) && has(0, "accept: */*"), "{requests:?}");
    assert!(has(0, "user-agent: kube-probe/1.33") && has(0, "connection: close"), "{requests:?}");
    assert!(has(1, "host: shop.example") && has(1, "x-probe: 1") && has(1, "user-agent: mine"), "{requests:?}");
    assert!(!lines(1).iter().any(|line| line.starts_with("accept:")), "{requests:?}");
}

#[tokio::test]
async fn hostile_servers_cost_little() {
    // An endless body, an endless head, and no HTTP at all.
    let server = Server::start(|path| match path {
        "/body" => {
            let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_vec();
            bytes.resize(4 << 20, b'x');
            bytes
        }
        "/head" => {
            let mut bytes = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
            bytes.resize(1 << 20, b'x');
            bytes
        }
        _ => b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
    })
    .await;
    assert_eq!(server.ask("/body").await, Answer::Good, "what was read so far is enough");
    assert!(matches!(server.ask("/head").await, Answer::Bad(_)));
    assert!(matches!(server.ask("/").await, Answer::Bad(_)));
}

#[tokio::test]
async fn what_does_not_answer_is_given_up_in_time() {
    // It listens and never accepts: the kernel takes the connection.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let short = Duration::from_millis(200);
    let Answer::Bad(http) = ask_here(&Check::Http(page(port, "/x")), short).await else { panic!("no answer") };
    assert!(http.starts_with(&format!("Get \"http://127.0.0.1:{port}/x\": context deadline exceeded")), "{http}");
    let Answer::Bad(grpc) = ask_here(&Check::Grpc { port, service: String::new() }, short).await else {
        panic!("no answer")
    };
    assert!(grpc.starts_with("timeout: "), "{grpc}");
    assert_eq!(ask_here(&Check::Tcp { host: None, port }, short).await, Answer::Good, "TCP asks no more than that");

    drop(listener);
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!(ask_here(&Check::Tcp { host: None, port }, WITHIN).await, Answer::Bad(refused.clone()));
    let expected = format!("Get \"http://127.0.0.1:{port}/x\": {refused}");
    assert_eq!(ask_here(&Check::Http(page(port, "/x")), WITHIN).await, Answer::Bad(expected));
    let Answer::Bad(grpc) = ask_here(&Check::Grpc { port, service: String::new() }, WITHIN).await else {
        panic!("nobody listens")
    };
    assert!(grpc.starts_with("error: failed to connect service"), "{grpc}");
}

#[tokio::test]
async fn https_asks_whatever_the_certificate_says() {
    let certificate = rcgen::generate_simple_self_signed(vec!["somebody.else".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut byte = [0; 4096];
        assert!(stream.read(&mut byte).await.unwrap() > 0);
        stream.write_all(&answer("200 OK", "", "")).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let check = Check::Http(HttpCheck { tls: true, ..page(port, "/") });
    assert_eq!(ask_here(&check, WITHIN).await, Answer::Good);
    served.await.unwrap();
}

struct Patient;

#[tonic::async_trait]
impl Health for Patient {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let status = match request.into_inner().service.as_str() {
            "" => ServingStatus::Serving,
            "ill" => ServingStatus::NotServing,
            "slow" => std::future::pending().await,
            _ => return Err(Status::not_found("unknown service")),
        };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }
}

/// A gRPC server that serves nothing.
#[derive(Clone)]
struct Nothing;

impl Service<::http::Request<Body>> for Nothing {
    type Response = ::http::Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: ::http::Request<Body>) -> Self::Future {
        std::future::ready(Ok(Status::unimplemented("unknown service").into_http()))
    }
}

/// Serves HTTP/2 without TLS.
async fn serve<S>(service: S) -> (u16, tokio_util::task::AbortOnDropHandle<()>)
where
    S: Service<::http::Request<Body>, Response = ::http::Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            let answer = service_fn(move |request: ::http::Request<Incoming>| {
                let mut service = service.clone();
                service.call(request.map(Body::new))
            });
            let served = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(served);
        }
    });
    (port, tokio_util::task::AbortOnDropHandle::new(task))
}

#[tokio::test]
async fn grpc_asks_for_the_health_of_a_service() {
    let (port, server) = serve(HealthServer::new(Patient)).await;
    let ask_for = async |service: &str| {
        ask_here(&Check::Grpc { port, service: service.to_owned() }, Duration::from_secs(1)).await
    };
    assert_eq!(ask_for("").await, Answer::Good);
    let ill = "service unhealthy (responded with \"NOT_SERVING\")".to_owned();
    assert_eq!(ask_for("ill").await, Answer::Bad(ill));
    assert_eq!(ask_for("none").await, Answer::Bad("error: health rpc probe failed: unknown service".to_owned()));
    assert_eq!(ask_for("slow").await, Answer::Bad("timeout: health rpc did not complete within 1s".to_owned()));
    drop(server);

    let unimplemented = Nothing;
    let (port, _server) = serve(unimplemented).await;
    let Answer::Bad(none) = ask_here(&Check::Grpc { port, service: String::new() }, WITHIN).await else {
        panic!("nothing is served")
    };
    assert!(none.starts_with("error: this server does not implement the grpc health protocol"), "{none}");
}

#[tokio::test(start_paused = true)]
async fn a_command_is_judged_by_its_exit_code() {
    let runtime = fake();
    let id = {
        use crate::edged::runtime::Runtime;
        runtime.add_image("i");
        let metadata = kubeedge_proto::cri::PodSandboxMetadata { uid: "u".into(), ..Default::default() };
        let sandbox = kubeedge_proto::cri::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        let in_sandbox = runtime.run_sandbox(&sandbox, "").await.unwrap();
        let config = kubeedge_proto::cri::ContainerConfig {
            metadata: Some(kubeedge_proto::cri::ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(kubeedge_proto::cri::ImageSpec { image: "i".into(), ..Default::default() }),
            ..Default::default()
        };
        let id = runtime.create_container(&in_sandbox, &config, &sandbox).await.unwrap();
        runtime.start_container(&id).await.unwrap();
        id
    };
    let check = Check::Exec { command: vec!["test".into(), "-e".into(), "/x".into()] };
    let ask_it =
        async || ask(&check, Asked { runtime: &runtime, id: &id, address: "", timeout: Duration::from_secs(2) }).await;
    assert_eq!(ask_it().await, Answer::Good);
    runtime.commands_end("c", Command::Ends(3));
    assert_eq!(ask_it().await, Answer::Bad("out err".to_owned()));
    runtime.commands_end("c", Command::Hangs);
    assert_eq!(ask_it().await, Answer::Bad("command timed out: \"test -e /x\" timed out after 2s".to_owned()));
    runtime.commands_end("c", Command::Fails("no runc".into()));
    assert!(matches!(ask_it().await, Answer::Unknown(why) if why.contains("no runc")));
}
