//! EdgeViews: what a node shows.
//!
//! | | |
//! |---|---|
//! | listens | HTTP or HTTPS: [`PATH`](super::PATH); `LinkStateChanged` (EdgeHub), the newest; `MqttReceived` (EventBus, if there), the newest of each topic |
//! | asks | `ListPods`, `QueryProgress` (Edged, if there), `SubscribeMqtt`, `UnsubscribeMqtt` (EventBus, if there), each only while a client wants it |
//! | stores | nothing |
//! | offline | everything works |
//!
//! Twins are shown as DeviceTwin publishes them, from the first change on that comes while somebody looks.

use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Handler, Message, ResponseActFuture, WrapFuture};
use kubeedge_proto::{
    NodeName,
    v1::{LinkStateChanged, ListPods, MqttReceived, QueryProgress, SubscribeMqtt, UnsubscribeMqtt},
};
use serde_json::{Map, Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::{ViewsConfig, board::Board, filter::Kind, item, server, show_components};
use crate::{
    serving::Serving,
    system::{Component, Context, Contract, Overflow, Port, Ports, Stage},
};

/// How often pods, progress and components are looked at while somebody wants to see them.
const LOOK: Duration = Duration::from_secs(1);
/// How long Edged may take.
const EDGED_WITHIN: Duration = Duration::from_secs(10);
/// How long EventBus may take.
const BUS_WITHIN: Duration = Duration::from_secs(10);
/// What DeviceTwin publishes when a twin changes.
const TWINS: &str = "$hw/events/device/+/+/twin/update/document";
/// Topics whose newest news may wait.
const NEWS: usize = 4096;
/// Devices that are shown.
const MAX_DEVICES: usize = 4096;
/// Properties of one device that are shown.
const MAX_PROPERTIES: usize = 512;

/// The component. See the module's page.
pub struct EdgeViews {
    node: NodeName,
    config: ViewsConfig,
    board: Board,
    pods: Option<Port<ListPods>>,
    progress: Option<Port<QueryProgress>>,
    subscribe: Option<Port<SubscribeMqtt>>,
    unsubscribe: Option<Port<UnsubscribeMqtt>>,
    twins: std::collections::HashMap<(String, String), Map<String, Value>>,
    subscribed: bool,
    /// Edged is being asked.
    looking: bool,
    wishing: Option<AbortOnDropHandle<()>>,
    serving: Option<Serving>,
}

impl EdgeViews {
    /// Of this node.
    pub fn new(node: NodeName, config: ViewsConfig, ports: &Ports) -> Self {
        Self {
            node,
            config,
            board: Board::default(),
            pods: ports.optional(),
            progress: ports.optional(),
            subscribe: ports.optional(),
            unsubscribe: ports.optional(),
            twins: Default::default(),
            subscribed: false,
            looking: false,
            wishing: None,
            serving: None,
        }
    }

    /// Hears of twins while somebody wants to see them.
    fn follow(&mut self, ctx: &mut Context<Self>) {
        let wanted = self.board.wishes().wants(Kind::Twins);
        if wanted == self.subscribed {
            return;
        }
        let filter = TWINS.to_owned();
        let (subscribe, unsubscribe) = (self.subscribe.clone(), self.unsubscribe.clone());
        self.subscribed = wanted;
        if !wanted {
            self.twins.clear();
            self.board.retain(Kind::Twins, |_| false);
        }
        // In order: a client that goes and comes back leaves the subscription.
        ctx.wait(
            async move {
                let told = match (wanted, subscribe, unsubscribe) {
                    (true, Some(port), _) => port.ask(SubscribeMqtt { filter }, BUS_WITHIN).await,
                    (false, _, Some(port)) => port.ask(UnsubscribeMqtt { filter }, BUS_WITHIN).await,
                    _ => return,
                };
                match told {
                    Ok(settled) if settled.code == 0 => {}
                    Ok(settled) => tracing::warn!("twins are not shown: {}", settled.reason),
                    Err(error) => tracing::warn!("twins are not shown: EventBus: {error}"),
                }
            }
            .into_actor(self),
        );
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        let wishes = self.board.wishes();
        if wishes.wants(Kind::Actors) {
            show_components(&self.config.observed, &self.board);
        }
        let pods = self.pods.clone().filter(|_| wishes.wants(Kind::Pods));
        let progress = self.progress.clone().filter(|_| wishes.wants(Kind::Nodes));
        if (pods.is_none() && progress.is_none()) || std::mem::replace(&mut self.looking, true) {
            return;
        }
        let ask = async move {
            let pods = match pods {
                Some(port) => port.ask(ListPods {}, EDGED_WITHIN).await.ok(),
                None => None,
            };
            let progress = match progress {
                Some(port) => Some(port.ask(QueryProgress {}, EDGED_WITHIN).await.ok()),
                None => None,
            };
            (pods, progress)
        };
        ctx.spawn(ask.into_actor(self).map(|(pods, progress), this, _| {
            this.looking = false;
            if let Some(listing) = pods
                && let Ok(list) = serde_json::from_slice::<Value>(&listing.json)
            {
                this.show_pods(&list);
            }
            if let Some(progress) = progress {
                // Without an answer it makes none.
                let healthy = progress.is_some_and(|progress| progress.age_ms <= 180_000);
                let node = this.node.as_str();
                this.board.set(item(Kind::Nodes, "", node, node), json!({"healthy": healthy}));
            }
        }));
    }

    fn show_pods(&self, list: &Value) {
        let pods: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
        let text =
            |pod: &Value, pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = |pod: &Value| (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let keys: std::collections::HashSet<_> = pods.iter().map(|pod| key(pod)).collect();
        self.board.retain(Kind::Pods, |item| keys.contains(&(item.namespace.clone(), item.name.clone())));
        for pod in pods {
            let (namespace, name) = key(pod);
            let at = |pointer: &str| pod.pointer(pointer).cloned().unwrap_or_default();
            let shown = json!({
                "uid": at("/metadata/uid"),
                "phase": at("/status/phase"),
                "podIP": at("/status/podIP"),
                "deleting": !at("/metadata/deletionTimestamp").is_null(),
            });
            self.board.set(item(Kind::Pods, &namespace, &name, self.node.as_str()), shown);
        }
    }

    /// A twin has changed.
    fn twin(&mut self, topic: &str, payload: &[u8]) {
        let parts: Vec<&str> = topic.split('/').collect();
        let ["$hw", "events", "device", namespace, name, "twin", "update", "document"] = parts.as_slice() else {
            return;
        };
        let Ok(document) = serde_json::from_slice::<Value>(payload) else { return };
        let key = ((*namespace).to_owned(), (*name).to_owned());
        if self.twins.len() >= MAX_DEVICES && !self.twins.contains_key(&key) {
            return;
        }
        let twins = self.twins.entry(key).or_default();
        for (property, change) in document["twin"].as_object().into_iter().flatten() {
            match &change["current"] {
                Value::Null => drop(twins.remove(property)),
                current if twins.len() < MAX_PROPERTIES || twins.contains_key(property) => {
                    twins.insert(property.clone(), current.clone());
                }
                _ => {}
            }
        }
        let object = json!({"twins": twins});
        self.board.set(item(Kind::Twins, namespace, name, self.node.as_str()), object);
    }
}

/// Clients come and go.
struct WishesChanged;

impl Message for WishesChanged {
    type Result = ();
}

impl Actor for EdgeViews {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match server::start(&self.config, self.board.clone()) {
            Ok((_, handle)) => self.serving = Some(handle),
            Err(error) => return ctx.fail(format!("the listener of the views: {error}")),
        }
        let (mut wishes, address) = (self.board.wishes(), ctx.address());
        let follow = async move { while wishes.changed().await && address.send(WishesChanged).await.is_ok() {} };
        self.wishing = Some(AbortOnDropHandle::new(tokio::task::spawn_local(follow)));
        ctx.run_interval(LOOK, Self::look);
    }
}

impl Component for EdgeViews {
    const NAME: &'static str = "views";
    const STAGE: Stage = Stage::Source;

    fn contract(contract: &mut Contract<Self>) {
        contract.may_listen::<LinkStateChanged>(Overflow::drop_oldest(1));
        contract.may_listen::<MqttReceived>(Overflow::newest_per_key(NEWS, |said: &MqttReceived| said.topic.clone()));
        contract.may_ask::<ListPods>();
        contract.may_ask::<QueryProgress>();
        contract.may_ask::<SubscribeMqtt>();
        contract.may_ask::<UnsubscribeMqtt>();
    }

    fn stop(&mut self, _: &mut Context<Self>) -> ResponseActFuture<Self, ()> {
        let serving = self.serving.take();
        let stop = async move {
            if let Some(serving) = serving {
                serving.stop().await;
            }
        };
        Box::pin(stop.into_actor(self))
    }
}

impl Handler<WishesChanged> for EdgeViews {
    type Result = ();

    fn handle(&mut self, _: WishesChanged, ctx: &mut Context<Self>) {
        self.follow(ctx);
        self.look(ctx);
    }
}

impl Handler<LinkStateChanged> for EdgeViews {
    type Result = ();

    fn handle(&mut self, change: LinkStateChanged, _: &mut Context<Self>) {
        let LinkStateChanged { connected, reason } = change;
        let node = self.node.as_str();
        self.board.set(item(Kind::Link, "", node, node), json!({"connected": connected, "reason": reason}));
    }
}

impl Handler<MqttReceived> for EdgeViews {
    type Result = ();

    fn handle(&mut self, MqttReceived { topic, payload, .. }: MqttReceived, _: &mut Context<Self>) {
        if self.subscribed {
            self.twin(&topic, &payload);
        }
    }
}
