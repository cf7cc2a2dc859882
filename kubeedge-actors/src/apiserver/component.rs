//! The API server as a component of an actor system.

use std::net::SocketAddr;

use actix::{Actor, ActorFutureExt as _, AsyncContext as _, Handler, Message, ResponseActFuture, WrapFuture as _};

use super::{Config, Handle, Server};
use crate::system::{Component, Context, Contract, Stage};

/// Asks where the API server listens; `None` while it is not up. With port 0 this is the only way to know.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Option<SocketAddr>")]
pub struct WhereServed;

/// Runs a [`Server`] from its start to the ordered stop. A server that cannot start is tried again by the system's
/// restart policy; one of an earlier life is stopped before the next begins.
pub struct ApiServer {
    config: Config,
    running: Option<Handle>,
}

impl ApiServer {
    /// With this configuration; nothing is opened before the component starts.
    pub fn new(config: Config) -> Self {
        Self { config, running: None }
    }
}

impl Actor for ApiServer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let start = Server::start(self.config.clone()).into_actor(self);
        // Messages wait until it is up.
        ctx.wait(start.map(|started, server, ctx| match started {
            Ok(handle) => {
                tracing::info!(address = %handle.address(), "the API server is up");
                server.running = Some(handle);
            }
            Err(error) => ctx.fail(error),
        }));
    }
}

impl Component for ApiServer {
    const NAME: &'static str = "apiserver";
    /// Messages wait until it is up, and a large store takes its time to read.
    const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(120);
    const STAGE: Stage = Stage::Source;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<WhereServed>();
    }

    fn stop(&mut self, _ctx: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        let running = self.running.take();
        let stop = async move {
            if let Some(handle) = running {
                handle.stop().await;
            }
        };
        Box::pin(stop.into_actor(self))
    }
}

impl Handler<WhereServed> for ApiServer {
    type Result = Option<SocketAddr>;

    fn handle(&mut self, _: WhereServed, _ctx: &mut Context<Self>) -> Self::Result {
        self.running.as_ref().map(Handle::address)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::system::{Exit, Ports, System};

    #[actix_rt::test]
    async fn the_component_serves_until_the_ordered_stop() {
        let config = Config::in_memory();
        let system = System::builder("test")
            .component(move |_: &Ports| ApiServer::new(config.clone()))
            .asks::<WhereServed>()
            .start()
            .unwrap();
        let served = system.port::<WhereServed>().ask(WhereServed, Duration::from_secs(10)).await.unwrap();
        let address = served.unwrap();
        assert!(tokio::net::TcpStream::connect(address).await.is_ok());
        assert_eq!(system.stop(Duration::from_secs(10)).await, [("apiserver", Exit::Stopped)]);
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }
}
