//! The watches, and the reads of single objects, that [`super::follow`] orders: the shell around it.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use actix::{ActorFutureExt, AsyncContext, Handler, Message, WrapFuture};
use kubeedge_proto::resource;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use super::{
    EdgeController,
    desired::Effect,
    follow::{Follow, Order},
    list_watch::{self, Change, Scope},
    references::{ConfigKey, ConfigKind},
    version_of,
};
use crate::system::Context;

/// Objects of one page of a list: what is in memory at a time beside what is kept.
const POD_PAGE: u32 = 500;
/// ConfigMaps and Secrets may have 1 MiB each.
const CONFIG_PAGE: u32 = 100;
/// Single objects that are read at a time.
const FETCHES: usize = 16;
/// So long pods wait at the start for the Services that they see, and then go without: longer than a list takes.
const SERVICES_WITHIN: Duration = Duration::from_secs(5);
/// Before one that could not be read is tried again.
const FETCH_AGAIN: Duration = Duration::from_secs(2);

/// What runs.
#[derive(Default)]
pub(super) struct Watches {
    follow: Follow,
    pods: Option<AbortOnDropHandle<()>>,
    services: Option<AbortOnDropHandle<()>>,
    single: HashMap<ConfigKey, AbortOnDropHandle<()>>,
    /// By kind, with the number that its news bear.
    all: HashMap<ConfigKind, (u64, AbortOnDropHandle<()>)>,
    numbers: u64,
    to_fetch: VecDeque<(ConfigKey, u64)>,
    fetching: usize,
}

impl Watches {
    /// Whether a list of a whole kind is on its way.
    pub(super) fn is_listing(&self) -> bool {
        self.follow.is_listing()
    }
}

/// Which watch tells something.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The one of all bound pods.
    Pods,
    /// The one of all Services.
    Services,
    /// That of one object.
    Single(ConfigKey),
    /// That of a whole kind, the latest or one that was ended since.
    All(ConfigKind, u64),
}

/// A watch's news.
pub(super) struct Watched {
    source: Source,
    change: Change,
}

impl Message for Watched {
    type Result = ();
}

impl Handler<Watched> for EdgeController {
    type Result = ();

    fn handle(&mut self, Watched { source, change }: Watched, ctx: &mut Context<Self>) {
        let listed = matches!((&source, &change), (Source::Pods, Change::Listed(_)));
        match source {
            Source::Pods => {
                let effects = self.pods_changed(change);
                self.carry_out(effects, ctx);
            }
            Source::Services => self.services_changed(change, ctx),
            Source::Single(key) => {
                let effects = self.single_changed(&key, change);
                self.carry_out(effects, ctx);
            }
            Source::All(kind, number) => {
                if self.watches.all.get(&kind).is_some_and(|(latest, _)| *latest == number) {
                    self.kind_changed(kind, change, ctx);
                }
            }
        }
        if listed {
            let orders = self.watches.follow.begin();
            self.obey(orders, ctx);
            if !std::mem::replace(&mut self.listed, true) {
                self.recheck_nodes(ctx);
            }
        }
    }
}

impl EdgeController {
    /// Begins to watch the Services, and the pods when they are known: a pod's environment is made when it starts.
    pub(super) fn watch_services(&mut self, ctx: &mut Context<Self>) {
        let path = resource::services().path("", None);
        let scope = Scope { path, fields: String::new(), page: Some(POD_PAGE) };
        self.watches.services = Some(self.watch(scope, Source::Services, ctx));
        ctx.run_later(SERVICES_WITHIN, |this, ctx| this.watch_pods(ctx));
    }

    /// Begins to watch the pods, once.
    fn watch_pods(&mut self, ctx: &mut Context<Self>) {
        if self.watches.pods.is_some() {
            return;
        }
        let path = resource::pods().path("", None);
        let scope = Scope { path, fields: "spec.nodeName!=".into(), page: Some(POD_PAGE) };
        self.watches.pods = Some(self.watch(scope, Source::Pods, ctx));
    }

    /// A pod names this object.
    pub(super) fn want(&mut self, key: ConfigKey, ctx: &mut Context<Self>) {
        let orders = self.watches.follow.want(key);
        self.obey(orders, ctx);
    }

    /// No pod does any more.
    pub(super) fn unwant(&mut self, key: &ConfigKey, ctx: &mut Context<Self>) {
        let orders = self.watches.follow.unwant(key);
        self.obey(orders, ctx);
    }

    fn obey(&mut self, orders: Vec<Order>, ctx: &mut Context<Self>) {
        for order in orders {
            match order {
                Order::Watch(key) => {
                    let watch = self.watch(one(&key), Source::Single(key.clone()), ctx);
                    self.watches.single.insert(key, watch);
                }
                Order::Unwatch(key) => {
                    self.watches.single.remove(&key);
                }
                Order::WatchAll(kind) => {
                    self.watches.numbers += 1;
                    let number = self.watches.numbers;
                    let path = kind.type_().path("", None);
                    let scope = Scope { path, fields: String::new(), page: Some(CONFIG_PAGE) };
                    let watch = self.watch(scope, Source::All(kind, number), ctx);
                    self.watches.all.insert(kind, (number, watch));
                }
                Order::UnwatchAll(kind) => {
                    self.watches.all.remove(&kind);
                    self.desired.configs_alone(kind);
                }
                Order::Fetch(key, number) => self.watches.to_fetch.push_back((key, number)),
            }
        }
        self.fetch(ctx);
    }

    fn watch(&self, scope: Scope, source: Source, ctx: &mut Context<Self>) -> AbortOnDropHandle<()> {
        let address = ctx.address();
        let client = self.client.clone();
        AbortOnDropHandle::new(tokio::task::spawn_local(list_watch::run(client, scope, move |change| {
            // Waits for room in the queue and for the event to be handled: the watch goes as fast as we do. An error
            // means that this component was stopped or rebuilt; it begins its watches anew.
            let sent = address.send(Watched { source: source.clone(), change });
            async move { sent.await.is_ok() }
        })))
    }

    fn pods_changed(&mut self, change: Change) -> Vec<Effect> {
        let now = self.now();
        match change {
            Change::Replaced(pods, as_of) => self.desired.pods_replaced(now, pods, as_of),
            Change::Listing => {
                self.desired.pods_listing();
                Vec::new()
            }
            Change::Page(pods, as_of) => self.desired.pods_page(now, pods, as_of),
            Change::Listed(as_of) => self.desired.pods_listed(as_of),
            Change::Applied(pod) => self.desired.pod_applied(now, pod),
            Change::Deleted(pod) => self.desired.pod_deleted(&pod),
            Change::Bookmark(version) => {
                self.desired.pods_bookmark(version);
                Vec::new()
            }
            Change::Forbidden => Vec::new(),
        }
    }

    fn services_changed(&mut self, change: Change, ctx: &mut Context<Self>) {
        let services = &mut self.desired.services;
        let mut known = false;
        let effects = match change {
            Change::Listing => {
                services.listing();
                Vec::new()
            }
            Change::Page(page, as_of) => services.page(&page, as_of),
            Change::Listed(as_of) => {
                known = true;
                services.listed(as_of)
            }
            Change::Applied(service) => services.applied(&service),
            Change::Deleted(service) => services.deleted(&service),
            Change::Bookmark(version) => {
                services.bookmark(version);
                Vec::new()
            }
            Change::Forbidden => {
                known = true;
                tracing::warn!("services may not be listed: pods at the edge get no variables of them");
                Vec::new()
            }
            // They are listed in pages.
            Change::Replaced(..) => Vec::new(),
        };
        self.carry_out(effects, ctx);
        if known {
            self.watch_pods(ctx);
        }
    }

    fn single_changed(&mut self, key: &ConfigKey, change: Change) -> Vec<Effect> {
        match change {
            Change::Replaced(found, as_of) => self.desired.config_listed(key, found.into_iter().next(), as_of),
            Change::Applied(object) => {
                let version = version_of(&object);
                self.desired.config_known(key, Some(object), version)
            }
            Change::Deleted(object) => self.desired.config_known(key, None, version_of(&object)),
            Change::Bookmark(version) => {
                self.desired.config_bookmark(key, version);
                Vec::new()
            }
            // It is not listed in pages; without the right to read it, it stays unknown.
            Change::Listing | Change::Page(..) | Change::Listed(_) | Change::Forbidden => Vec::new(),
        }
    }

    fn kind_changed(&mut self, kind: ConfigKind, change: Change, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        let mut orders = Vec::new();
        match change {
            Change::Listing => self.watches.follow.listing(kind),
            Change::Page(objects, as_of) => {
                self.desired.configs_listing(kind, as_of);
                for object in objects {
                    let key = key_of(kind, &object);
                    if self.watches.follow.found(&key) {
                        effects.extend(self.desired.config_listed(&key, Some(object), as_of));
                    }
                }
            }
            Change::Listed(as_of) => {
                let (absent, late) = self.watches.follow.listed(kind);
                for key in absent {
                    effects.extend(self.desired.config_listed(&key, None, as_of));
                }
                self.desired.configs_bookmark(kind, as_of);
                orders = late;
            }
            Change::Applied(object) => {
                let (key, version) = (key_of(kind, &object), version_of(&object));
                if self.watches.follow.wants(&key) {
                    effects = self.desired.config_applied(&key, object);
                }
                self.desired.configs_bookmark(kind, version);
            }
            Change::Deleted(object) => {
                let key = key_of(kind, &object);
                if self.watches.follow.wants(&key) {
                    effects = self.desired.config_deleted(&key, &object);
                }
                self.desired.configs_bookmark(kind, version_of(&object));
            }
            Change::Bookmark(version) => self.desired.configs_bookmark(kind, version),
            Change::Forbidden => {
                orders = self.watches.follow.refused(kind);
                if !orders.is_empty() {
                    tracing::warn!("{} may not be listed: each that is needed gets a watch", kind.type_());
                }
            }
            // It is listed in pages.
            Change::Replaced(..) => {}
        }
        // A list that went back says so once, however many objects it is about.
        let compare = effects.contains(&Effect::Compare);
        effects.retain(|effect| *effect != Effect::Compare);
        effects.extend(compare.then_some(Effect::Compare));
        self.carry_out(effects, ctx);
        self.obey(orders, ctx);
    }

    /// Reads as many as may be read at a time.
    fn fetch(&mut self, ctx: &mut Context<Self>) {
        while self.watches.fetching < FETCHES
            && let Some((key, number)) = self.watches.to_fetch.pop_front()
        {
            self.watches.fetching += 1;
            let client = self.client.clone();
            let read = async move {
                let read = list_watch::list(&client, &one(&key)).await;
                (key, read)
            };
            ctx.spawn(read.into_actor(self).map(move |(key, read), this, ctx| {
                this.watches.fetching -= 1;
                match read {
                    Ok((found, as_of)) => {
                        if this.watches.follow.fetched(&key, number) {
                            let effects = this.desired.config_fetched(&key, found.into_iter().next(), as_of);
                            this.carry_out(effects, ctx);
                        }
                    }
                    Err(error) => {
                        let ConfigKey { kind, namespace, name } = &key;
                        tracing::warn!("{} {namespace}/{name} cannot be read: {error}", kind.type_());
                        ctx.run_later(FETCH_AGAIN, move |this, ctx| {
                            if this.watches.follow.is_fetching(&key, number) {
                                this.watches.to_fetch.push_back((key, number));
                                this.fetch(ctx);
                            }
                        });
                    }
                }
                this.fetch(ctx);
            }));
        }
    }
}

/// A single object.
fn one(key: &ConfigKey) -> Scope {
    let path = key.kind.type_().path(&key.namespace, None);
    Scope { path, fields: format!("metadata.name={}", key.name), page: None }
}

fn key_of(kind: ConfigKind, object: &Value) -> ConfigKey {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    ConfigKey { kind, namespace: text("/metadata/namespace"), name: text("/metadata/name") }
}
