//! CloudViews: what the cloud shows.
//!
//! | | |
//! |---|---|
//! | listens | HTTP or HTTPS: [`PATH`](super::PATH); `NodeSessionChanged` (CloudHub), the newest of each node |
//! | watches | Nodes, Pods and DeviceStatuses of the cluster, each only while a client wants it |
//! | asks, stores | nothing |
//! | a node offline | is what the kind `link` shows |

use std::time::Duration;

use actix::{Actor, AsyncContext, Handler, Message, ResponseActFuture, WrapFuture};
use kubeedge_proto::{
    resource,
    v1::{NodeSessionChanged, ResourceType},
};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::{ViewsConfig, board::Board, filter::Kind, item, server, show_components};
use crate::{
    controllers::{
        list_watch::{self, Change, Scope},
        objects::{key_of, text},
    },
    serving::Serving,
    system::{Component, Context, Contract, Overflow, Ports, Stage},
};

/// How often components are looked at while somebody wants to see them.
const LOOK: Duration = Duration::from_secs(1);
/// What is watched.
const WATCHED: [Kind; 3] = [Kind::Nodes, Kind::Pods, Kind::Twins];
/// Nodes whose newest news may wait.
const NEWS: usize = 16_384;

/// The component. See the module's page.
pub struct CloudViews {
    client: kube::Client,
    config: ViewsConfig,
    board: Board,
    watches: [Option<AbortOnDropHandle<()>>; WATCHED.len()],
    wishing: Option<AbortOnDropHandle<()>>,
    serving: Option<Serving>,
}

impl CloudViews {
    /// Of the cluster that `client` talks to.
    pub fn new(client: kube::Client, config: ViewsConfig, _: &Ports) -> Self {
        Self { client, config, board: Board::default(), watches: Default::default(), wishing: None, serving: None }
    }

    /// Watches what somebody wants to see, and nothing else.
    fn follow(&mut self, ctx: &mut Context<Self>) {
        let wishes = self.board.wishes();
        for (kind, watch) in WATCHED.into_iter().zip(&mut self.watches) {
            match (wishes.wants(kind), watch.is_some()) {
                (true, false) => {
                    let address = ctx.address();
                    let scope = Scope { path: type_of(kind).path("", None), fields: String::new(), page: None };
                    let run = list_watch::run(self.client.clone(), scope, move |change| {
                        // Waits for room and for the event to be handled. An error: this component was stopped or rebuilt.
                        let sent = address.send(Watched { kind, change });
                        async move { sent.await.is_ok() }
                    });
                    *watch = Some(AbortOnDropHandle::new(tokio::task::spawn_local(run)));
                }
                (false, true) => {
                    *watch = None;
                    self.board.retain(kind, |_| false);
                }
                _ => {}
            }
        }
    }
}

fn type_of(kind: Kind) -> ResourceType {
    match kind {
        Kind::Nodes => resource::nodes(),
        Kind::Twins => resource::device_statuses(),
        _ => resource::pods(),
    }
}

/// What is shown of an object, and where it is.
fn shown(kind: Kind, object: &Value) -> (String, Value) {
    let at = |pointer: &str| object.pointer(pointer).cloned().unwrap_or_default();
    match kind {
        Kind::Nodes => {
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
            let ready = conditions.filter(|one| one["type"] == "Ready").map(|one| one["status"].clone()).next();
            let shown = json!({
                "ready": ready.unwrap_or_else(|| "Unknown".into()),
                "unschedulable": at("/spec/unschedulable") == true,
                "version": at("/status/nodeInfo/kubeletVersion"),
                "addresses": at("/status/addresses"),
            });
            (text(object, "/metadata/name").to_owned(), shown)
        }
        Kind::Twins => {
            let status = json!({
                "state": at("/status/state"),
                "lastOnlineTime": at("/status/lastOnlineTime"),
                "twins": at("/status/twins"),
            });
            (String::new(), status)
        }
        _ => {
            let containers = object.pointer("/status/containerStatuses").and_then(Value::as_array);
            let restarts: i64 =
                containers.into_iter().flatten().filter_map(|container| container["restartCount"].as_i64()).sum();
            let shown = json!({
                "uid": at("/metadata/uid"),
                "phase": at("/status/phase"),
                "podIP": at("/status/podIP"),
                "restarts": restarts,
                "deleting": !at("/metadata/deletionTimestamp").is_null(),
            });
            (text(object, "/spec/nodeName").to_owned(), shown)
        }
    }
}

/// A watch's news.
struct Watched {
    kind: Kind,
    change: Change,
}

impl Message for Watched {
    type Result = ();
}

/// Clients come and go.
struct WishesChanged;

impl Message for WishesChanged {
    type Result = ();
}

impl Actor for CloudViews {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match server::start(&self.config, self.board.clone()) {
            Ok((_, handle)) => self.serving = Some(handle),
            Err(error) => return ctx.fail(format!("the listener of the views: {error}")),
        }
        let (mut wishes, address) = (self.board.wishes(), ctx.address());
        let follow = async move { while wishes.changed().await && address.send(WishesChanged).await.is_ok() {} };
        self.wishing = Some(AbortOnDropHandle::new(tokio::task::spawn_local(follow)));
        ctx.run_interval(LOOK, |this, _| {
            if this.board.wishes().wants(Kind::Actors) {
                show_components(&this.config.observed, &this.board);
            }
        });
    }
}

impl Component for CloudViews {
    const NAME: &'static str = "views";
    const STAGE: Stage = Stage::Source;

    fn contract(contract: &mut Contract<Self>) {
        contract.may_listen::<NodeSessionChanged>(Overflow::newest_per_key(NEWS, |change: &NodeSessionChanged| {
            change.node.clone()
        }));
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

impl Handler<WishesChanged> for CloudViews {
    type Result = ();

    fn handle(&mut self, _: WishesChanged, ctx: &mut Context<Self>) {
        self.follow(ctx);
    }
}

impl Handler<Watched> for CloudViews {
    type Result = ();

    fn handle(&mut self, Watched { kind, change }: Watched, _: &mut Context<Self>) {
        let set = |object: &Value| {
            let (namespace, name) = key_of(object);
            let (node, shown) = shown(kind, object);
            self.board.set(item(kind, &namespace, &name, &node), shown);
        };
        match change {
            // Of a watch that has just been ended.
            _ if !self.board.wishes().wants(kind) => {}
            Change::Replaced(objects, _) => {
                let keys: std::collections::HashSet<_> = objects.iter().map(key_of).collect();
                self.board.retain(kind, |item| keys.contains(&(item.namespace.clone(), item.name.clone())));
                objects.iter().for_each(set);
            }
            Change::Applied(object) => set(&object),
            Change::Deleted(object) => {
                let (namespace, name) = key_of(&object);
                self.board.unset(kind, &namespace, &name);
            }
            Change::Bookmark(_) | Change::Listing | Change::Page(..) | Change::Listed(_) | Change::Forbidden => {}
        }
    }
}

impl Handler<NodeSessionChanged> for CloudViews {
    type Result = ();

    fn handle(&mut self, change: NodeSessionChanged, _: &mut Context<Self>) {
        let NodeSessionChanged { node, epoch, connected, reason } = change;
        let object = json!({"connected": connected, "epoch": epoch, "reason": reason});
        self.board.set(item(Kind::Link, "", &node, &node), object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_object_what_a_page_shows_is_told_and_no_secrets() {
        let pod = json!({"metadata": {"name": "web", "namespace": "default", "uid": "u1"},
            "spec": {"nodeName": "edge-1", "containers": [{"env": [{"name": "PASSWORD", "value": "x"}]}]},
            "status": {"phase": "Running", "containerStatuses": [{"restartCount": 2}, {"restartCount": 1}]}});
        let (node, told) = shown(Kind::Pods, &pod);
        let expected = json!({"uid": "u1", "phase": "Running", "podIP": null, "restarts": 3, "deleting": false});
        assert_eq!((node.as_str(), told), ("edge-1", expected));
        let node = json!({"metadata": {"name": "edge-1"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"}}});
        let (at, told) = shown(Kind::Nodes, &node);
        assert_eq!((at.as_str(), &told["ready"], &told["unschedulable"]), ("edge-1", &json!("True"), &json!(false)));
        let (_, told) = shown(Kind::Twins, &json!({"status": {"state": "ok", "twins": [{"propertyName": "t"}]}}));
        assert_eq!((&told["state"], &told["twins"][0]["propertyName"]), (&json!("ok"), &json!("t")));
    }
}
