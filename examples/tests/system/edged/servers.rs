//! Servers that probes ask: they listen in the test, on the node's own network.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures_util::{FutureExt, future::BoxFuture};
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kubeedge_proto::health::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, body::Body, codegen::Service};

/// A server that says whether it is well; at first it is not.
pub(super) struct Server {
    pub(super) port: u16,
    well: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    pub(super) fn turns(&self, well: bool) {
        self.well.store(well, Ordering::Release);
    }

    async fn serve(
        well: Arc<AtomicBool>,
        connection: impl Fn(TcpStream) -> BoxFuture<'static, ()> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream));
            }
        };
        Self { port, well, _task: AbortOnDropHandle::new(tokio::spawn(connections)) }
    }

    /// 200 or 503 behind a certificate of nobody's.
    pub(super) async fn https() -> Self {
        let certificate = rcgen::generate_simple_self_signed(vec!["somebody.else".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let well = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&well);
        let connection = move |stream| -> BoxFuture<'static, ()> {
            let (acceptor, asked) = (acceptor.clone(), Arc::clone(&asked));
            let answer = service_fn(move |request: Request<Incoming>| {
                let well = asked.load(Ordering::Acquire) && request.uri().path() == "/healthz";
                let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                let answer = Response::builder().status(status).body(Full::<Bytes>::default());
                std::future::ready(answer)
            });
            Box::pin(async move {
                // One that gives up is no concern of the next.
                if let Ok(stream) = acceptor.accept(stream).await {
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await);
                }
            })
        };
        Self::serve(well, connection).await
    }

    /// `grpc.health.v1.Health` for one service.
    pub(super) async fn grpc(service: &'static str) -> Self {
        let well = Arc::new(AtomicBool::new(false));
        let server = HealthServer::new(Asked { service, well: Arc::clone(&well) });
        let connection = move |stream| -> BoxFuture<'static, ()> {
            let server = server.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let mut server = server.clone();
                async move { server.call(request.map(Body::new)).await }
            });
            let served = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer);
            Box::pin(served.map(drop))
        };
        Self::serve(well, connection).await
    }
}

struct Asked {
    service: &'static str,
    well: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl Health for Asked {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        if request.get_ref().service != self.service {
            return Err(Status::not_found("unknown service"));
        }
        let well = self.well.load(Ordering::Acquire);
        let status = if well { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(tonic::Response::new(HealthCheckResponse { status: status.into() }))
    }
}
