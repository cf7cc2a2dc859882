//! ServiceBus: HTTP between this node's applications and the cloud's rules.
//!
//! | | |
//! |---|---|
//! | answers | `ServeService` (EdgeHub): the cloud calls a service here |
//! | listens | HTTP, while a rule names a URL: an application calls what the rule names; `ObjectsChanged`, `ObjectsReloaded` (MetaManager); none may be lost |
//! | asks | `CallCloud` (EdgeHub), `ReadObjects` (MetaManager) |
//! | stores | nothing: rules are MetaManager's |
//! | offline | applications are told so at once: code 503 |
//!
//! [`allow`] says which services may be called, `service` is one such call, bodies streamed; `server` takes what
//! applications post, as KubeEdge's does on its port 9060:
//!
//! ```json
//! {"method": "POST", "targetURL": "http://orders.example/in", "payload": {"any": "thing"}}
//! ```
//!
//! It is answered with status 200 always, and `{"code": 200, "msg": "...", "body": "..."}`.
//!
//! Bounds: [`server::MAX_CONNECTIONS`] connections, a body of [`server::MAX_POSTED`] bytes, [`server::HELD`] bytes of them
//! in memory at a time; as many calls of services as a connection has streams, [`crate::web::MAX_BODY`] bytes each way.

pub mod allow;
pub mod server;
mod service;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, ResponseActFuture, WrapFuture};
use kubeedge_proto::{
    resource,
    v1::{CallCloud, KubeObject, ObjectKey, ObjectsChanged, ObjectsReloaded, ReadObjects},
};
use tokio::task::JoinSet;

use self::allow::Allow;
use crate::{
    audit,
    link::streams::{ServeService, connection::REQUESTS},
    rule::types::{RuleSpec, Source},
    serving::Serving,
    system::{Component, Context, Contract, Overflow, Port, Ports, Stage},
};

/// How long MetaManager may take to read what is on disk.
const STORE_WITHIN: Duration = Duration::from_secs(30);
/// Pause before it is asked again.
const READ_AGAIN: Duration = Duration::from_secs(2);
/// Pauses before a port that was taken is tried again: each twice the one before. An own server that was just told to
/// stop gives it back in a moment, a stranger may keep it.
const LISTEN_AGAIN: std::ops::RangeInclusive<Duration> = Duration::from_millis(200)..=Duration::from_secs(30);

/// How ServiceBus works.
#[derive(Clone)]
pub struct ServiceBusConfig {
    /// Where applications call it.
    pub listen: SocketAddr,
    /// TLS there, if wanted.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// How long a service, or the cloud, may take to answer.
    pub within: Duration,
    /// Which services the cloud may have called.
    pub allow: Allow,
}

/// The rules by the URL that applications name.
pub(crate) type Targets = Arc<RwLock<BTreeMap<String, ObjectKey>>>;

/// The component. See the module's page.
pub struct ServiceBus {
    config: ServiceBusConfig,
    read: Port<ReadObjects>,
    call: Port<CallCloud>,
    targets: Targets,
    /// The URL of each rule that has one.
    rules: BTreeMap<(String, String), String>,
    serving: Option<Serving>,
    /// An attempt to listen is on the clock.
    waiting: bool,
    /// The pause before the one after it.
    listen_again: Duration,
    /// Dropped with this value, which gives their streams up.
    calls: JoinSet<()>,
}

impl ServiceBus {
    /// Not listening yet.
    pub fn new(config: ServiceBusConfig, ports: &Ports) -> Self {
        Self {
            config,
            read: ports.port(),
            call: ports.port(),
            targets: Targets::default(),
            rules: BTreeMap::new(),
            serving: None,
            waiting: false,
            listen_again: *LISTEN_AGAIN.start(),
            calls: JoinSet::new(),
        }
    }

    fn read_all(&self, ctx: &mut Context<Self>) {
        let read = self.read.clone();
        let message = ReadObjects { r#type: Some(resource::rules()), key: None };
        ctx.wait(async move { read.ask(message, STORE_WITHIN).await }.into_actor(self).map(|found, this, ctx| {
            match found {
                Ok(list) => {
                    // What was told in a life before is told again or gone, unless not everything could be read.
                    if list.complete {
                        this.rules.clear();
                    }
                    list.objects.iter().for_each(|rule| this.rule_changed(rule));
                    this.follow(ctx);
                }
                Err(error) => {
                    tracing::warn!(again_in = ?READ_AGAIN, "the rules on disk are not known yet: {error}");
                    ctx.run_later(READ_AGAIN, |this, ctx| this.read_all(ctx));
                }
            }
        }));
    }

    fn rule_changed(&mut self, object: &KubeObject) {
        let Some(key) = &object.key else { return };
        let key = (key.namespace.clone(), key.name.clone());
        match source_of(object) {
            Ok(Source::ServiceBus { target_url, .. }) => {
                self.rules.insert(key, target_url);
            }
            Ok(_) => {
                self.rules.remove(&key);
            }
            Err(error) => {
                tracing::warn!(namespace = key.0, rule = key.1, "a rule cannot be understood and is left out: {error}");
                self.rules.remove(&key);
            }
        }
    }

    /// Serves what the rules name, and nothing without them.
    fn follow(&mut self, ctx: &mut Context<Self>) {
        // Of two rules with one URL the first by name counts.
        let targets =
            self.rules.iter().rev().map(|((namespace, name), url)| (url.clone(), ObjectKey::new(namespace, name)));
        let targets: BTreeMap<String, ObjectKey> = targets.collect();
        let wanted = !targets.is_empty();
        *self.targets.write().unwrap_or_else(PoisonError::into_inner) = targets;
        match (wanted, &self.serving) {
            (true, None) => self.listen(ctx),
            (false, Some(_)) => {
                tracing::info!("ServiceBus has no rule to serve any more");
                self.serving = None;
            }
            _ => {}
        }
    }

    fn listen(&mut self, ctx: &mut Context<Self>) {
        let address = self.config.listen;
        if self.waiting {
            return;
        }
        match server::start(&self.config, self.targets.clone(), self.call.clone()) {
            Ok((bound, handle)) => {
                tracing::info!(address = %bound, "ServiceBus is served");
                self.listen_again = *LISTEN_AGAIN.start();
                self.serving = Some(handle);
            }
            Err(error) => {
                let again_in = self.listen_again;
                self.listen_again = (again_in * 2).min(*LISTEN_AGAIN.end());
                tracing::error!(
                    %address,
                    ?again_in,
                    "ServiceBus is not served: {error}; modules.serviceBus.port chooses another port"
                );
                self.waiting = true;
                ctx.run_later(again_in, |this, ctx| {
                    this.waiting = false;
                    this.follow(ctx);
                });
            }
        }
    }
}

/// What a rule says of its source.
pub(crate) fn source_of(rule: &KubeObject) -> Result<Source, String> {
    #[derive(serde::Deserialize)]
    struct Rule {
        spec: RuleSpec,
    }
    let rule: Rule = serde_json::from_slice(&rule.json).map_err(|error| error.to_string())?;
    rule.spec.source()
}

impl Actor for ServiceBus {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.read_all(ctx);
    }
}

impl Component for ServiceBus {
    const NAME: &'static str = "servicebus";
    const STAGE: Stage = Stage::Source;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<ServeService>();
        contract.listens::<ObjectsChanged>(Overflow::wait());
        contract.listens::<ObjectsReloaded>(Overflow::wait());
        contract.asks::<ReadObjects>();
        contract.asks::<CallCloud>();
    }

    fn stop(&mut self, _: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        self.calls.abort_all();
        let serving = self.serving.take();
        let stop = async move {
            if let Some(serving) = serving {
                serving.stop().await;
            }
        };
        Box::pin(stop.into_actor(self))
    }
}

impl Handler<ObjectsReloaded> for ServiceBus {
    type Result = ();

    fn handle(&mut self, _: ObjectsReloaded, ctx: &mut Context<Self>) {
        self.read_all(ctx);
    }
}

impl Handler<ObjectsChanged> for ServiceBus {
    type Result = ();

    fn handle(&mut self, change: ObjectsChanged, ctx: &mut Context<Self>) {
        if change.r#type.as_ref() != Some(&resource::rules()) {
            return;
        }
        match (&change.object, &change.key) {
            (Some(rule), _) => self.rule_changed(rule),
            (None, Some(key)) => {
                self.rules.remove(&(key.namespace.clone(), key.name.clone()));
            }
            (None, None) => {}
        }
        self.follow(ctx);
    }
}

impl Handler<ServeService> for ServiceBus {
    type Result = ();

    fn handle(&mut self, ServeService { request }: ServeService, _: &mut Context<Self>) {
        while self.calls.try_join_next().is_some() {}
        if self.calls.len() >= REQUESTS {
            // Dropped, which tells the cloud.
            let why = format!("{REQUESTS} calls are under way, as many as there may be");
            audit::refused(service::ACTION, service::CLOUD, &request.open.service, why);
            return;
        }
        let (allow, within) = (self.config.allow.clone(), self.config.within);
        self.calls.spawn_local(async move {
            let service = request.open.service.clone();
            if let Err(error) = service::serve(request, &allow, within).await {
                tracing::info!(service, "a call of a service was given up: {error}");
            }
        });
    }
}
