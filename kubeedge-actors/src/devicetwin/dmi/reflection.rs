//! gRPC reflection on the socket: who writes a mapper asks it what it speaks (`grpcurl -unix ... list`).

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use hyper::body::Incoming;
use kubeedge_proto::dmi;
use tonic::{Status, body::Body, codegen::Service, server::NamedService};
use tonic_reflection::{pb, server::Builder};

/// What every version of reflection is below; clients of gRPC ask for `v1`, older ones for `v1alpha`.
const REFLECTION: &str = "/grpc.reflection.";
const V1: &str = "grpc.reflection.v1.ServerReflection";
const V1_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A service that is described, too.
#[derive(Clone, Debug)]
pub(super) struct Described<S>(pub(super) S);

impl<S> Service<Request<Incoming>> for Described<S>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future = Answer> + NamedService,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Incoming>) -> Answer {
        if request.uri().path().starts_with(REFLECTION) { describe(S::NAME, request) } else { self.0.call(request) }
    }
}

/// Reads the descriptions for this call alone: an edge that nobody asks keeps nothing of them.
fn describe(service: &str, request: Request<Incoming>) -> Answer {
    let builder = Builder::configure()
        .register_encoded_file_descriptor_set(dmi::DESCRIPTORS)
        .with_service_name(service)
        .with_service_name(V1)
        .with_service_name(V1_ALPHA)
        .include_reflection_service(false)
        .register_encoded_file_descriptor_set(pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(pb::v1alpha::FILE_DESCRIPTOR_SET);
    let path = request.uri().path();
    let answer = if path.strip_prefix('/').is_some_and(|path| path.starts_with(V1_ALPHA)) {
        builder.build_v1alpha().map(|mut service| service.call(request))
    } else {
        builder.build_v1().map(|mut service| service.call(request))
    };
    answer.unwrap_or_else(|error| {
        tracing::error!("gRPC reflection cannot read its descriptions: {error}");
        Box::pin(std::future::ready(Ok(Status::internal("the protocol is not described").into_http())))
    })
}
