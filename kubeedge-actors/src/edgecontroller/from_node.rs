//! What comes from nodes: reports, questions and heartbeats, each for as long as the session it came by is the node's.

use std::time::{Duration, Instant};

use actix::{Handler, ResponseFuture};
use kubeedge_proto::{
    NodeName, resource,
    v1::{
        ApplyFromNode, CallFromNode, CallReply, Envelope, LocatePod, NodeHeartbeat, NodeSessionChanged, ObjectKey,
        PodLocation, Settled, call_reply, envelope::Body,
    },
};
use serde_json::Value;

use super::{
    EdgeController, PROGRESS_WITHIN, RENEW_EVERY, WRITE_WITHIN,
    authorization::{Asked, may_have_token, may_mirror},
    events::events_dropped,
    ownership::may_tell,
    ready,
    references::{ConfigKey, ConfigKind},
    writes::{Bound, Write},
};
use crate::system::Context;

impl Handler<ApplyFromNode> for EdgeController {
    type Result = ResponseFuture<Settled>;

    /// Writes what a node reports, for as long as the session it came by is the node's. An attempt of an older session
    /// that is still under way must not overwrite what the newer one has written.
    fn handle(&mut self, message: ApplyFromNode, _: &mut Context<Self>) -> Self::Result {
        let Some(ended) = self.sessions.of(&message.node, message.epoch) else {
            return ready(Settled::rejected(503, "a newer session of this node has taken over"));
        };
        let asked = Asked::of(&message.node, message.envelope.as_ref());
        let write = self.write(message);
        Box::pin(async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => Settled::rejected(503, "the session has ended"),
                written = tokio::time::timeout(WRITE_WITHIN, write) => match written {
                    Ok(settled) => asked.settled(settled),
                    Err(_) => Settled::rejected(503, format!("not written within {WRITE_WITHIN:?}")),
                },
            }
        })
    }
}

impl EdgeController {
    fn write(&mut self, message: ApplyFromNode) -> ResponseFuture<Settled> {
        let upstream = self.upstream.clone();
        let node: NodeName = match message.node.parse() {
            Ok(node) => node,
            Err(error) => return ready(Settled::rejected(400, format!("{error}"))),
        };
        let Some(Envelope { id, time_unix_ms, body: Some(body), .. }) = message.envelope else {
            return ready(Settled::rejected(501, "this version does not know the message's type"));
        };
        match body {
            Body::StatusUpdate(update) => self.report(Write::status(&node, &update, upstream.gateway.as_ref())),
            Body::PodTerminated(pod) => self.report(Write::terminated(&node, &pod)),
            Body::KubernetesEvent(event) => {
                let Some(Ok(event)) = event.event.map(|object| serde_json::from_slice::<Value>(&object.json)) else {
                    return ready(Settled::rejected(400, "a KubernetesEvent carries no event in JSON"));
                };
                let node_of =
                    |namespace: &str, name: &str| self.desired.pod(namespace, name).map(|(node, _)| node.to_owned());
                match may_tell(node.as_str(), &event, node_of) {
                    Ok(()) => Box::pin(async move { upstream.event(&node, event).await }),
                    Err(why) => ready(Settled::rejected(403, why)),
                }
            }
            Body::GapMarker(gap) => {
                let (dropped, bytes, bound) = (gap.dropped_count, gap.dropped_bytes, gap.bound.as_str());
                self.events_dropped = self.events_dropped.saturating_add(dropped);
                let total = self.events_dropped;
                tracing::warn!(%node, dropped, bytes, bound, total, "the node's outbox has dropped events");
                let event = events_dropped(&node, &id, &gap, time_unix_ms);
                Box::pin(async move { upstream.event(&node, event).await })
            }
            _ => ready(Settled::rejected(501, "EdgeController takes no messages of this type")),
        }
    }
}

impl EdgeController {
    fn report(&self, write: Result<Write, Settled>) -> ResponseFuture<Settled> {
        let write = match write {
            Ok(write) => write,
            Err(settled) => return ready(settled),
        };
        let upstream = self.upstream.clone();
        let bound = self.desired.bound(write.key());
        Box::pin(async move { upstream.write(write, bound).await })
    }
}

impl Handler<CallFromNode> for EdgeController {
    type Result = ResponseFuture<CallReply>;

    fn handle(&mut self, message: CallFromNode, _: &mut Context<Self>) -> Self::Result {
        let asked = Asked::of(&message.node, message.envelope.as_ref());
        let reply = self.reply(message);
        Box::pin(async move { asked.replied(reply.await) })
    }
}

impl EdgeController {
    fn reply(&self, message: CallFromNode) -> ResponseFuture<CallReply> {
        let upstream = self.upstream.clone();
        let node: NodeName = match message.node.parse() {
            Ok(node) => node,
            Err(error) => return ready(CallReply::error(400, "BadRequest", format!("{error}"))),
        };
        match message.envelope.and_then(|envelope| envelope.body) {
            Some(Body::RegisterNode(register)) => {
                Box::pin(async move { upstream.register_node(&node, &register.node_json).await })
            }
            Some(Body::CreateMirrorPod(wanted)) => {
                let Ok(pod) = serde_json::from_slice::<Value>(&wanted.pod_json) else {
                    return ready(CallReply::error(400, "BadRequest", "the mirror pod is not JSON"));
                };
                match may_mirror(node.as_str(), &pod) {
                    Ok(()) => Box::pin(async move { upstream.create_mirror(&node, pod).await }),
                    Err(why) => ready(CallReply::error(403, "Forbidden", why)),
                }
            }
            Some(Body::RequestToken(wanted)) => {
                let key = ObjectKey::new(&wanted.namespace, &wanted.pod_name);
                if key.namespace.is_empty() || !key.is_valid() {
                    return ready(CallReply::error(400, "BadRequest", format!("{key:?} is not the name of a pod")));
                }
                Box::pin(async move {
                    // A token is a right: the pod is read anew, whatever the watch knows.
                    let pod = match upstream.get(&resource::pods(), &key).await.result {
                        Some(call_reply::Result::Object(pod)) => *pod,
                        refused => return CallReply { result: refused },
                    };
                    let Ok(pod) = serde_json::from_slice::<Value>(&pod.json) else {
                        return CallReply::error(503, "ServiceUnavailable", format!("pod {key} cannot be read"));
                    };
                    match may_have_token(node.as_str(), &wanted, &pod) {
                        Ok(()) => upstream.request_token(&wanted).await,
                        Err((code, why)) => CallReply::error(code, "Forbidden", why),
                    }
                })
            }
            Some(Body::ObjectQuery(query)) => {
                let (Some(type_), Some(key)) = (query.r#type, query.key) else {
                    return ready(CallReply::error(400, "BadRequest", "an ObjectQuery names no object"));
                };
                if !self.may_read(&node, &type_, &key) {
                    let text = format!("node {node} may not read {type_} {key}: no pod bound to it names it");
                    return ready(CallReply::error(403, "Forbidden", text));
                }
                Box::pin(async move { upstream.get(&type_, &key).await })
            }
            _ => ready(CallReply::error(501, "Unsupported", "this version does not answer calls of this type")),
        }
    }
}

impl EdgeController {
    fn may_read(&self, node: &NodeName, type_: &kubeedge_proto::v1::ResourceType, key: &ObjectKey) -> bool {
        let config = |kind| {
            let key = ConfigKey { kind, namespace: key.namespace.clone(), name: key.name.clone() };
            self.desired.names(node.as_str(), &key)
        };
        if *type_ == resource::nodes() {
            key.namespace.is_empty() && key.name == node.as_str()
        } else if *type_ == resource::pods() {
            self.desired.pod(&key.namespace, &key.name).is_some_and(|(bound, _)| bound == node.as_str())
        } else {
            ConfigKind::ALL.into_iter().find(|kind| *type_ == kind.type_()).is_some_and(config)
        }
    }
}

impl Handler<LocatePod> for EdgeController {
    type Result = ResponseFuture<PodLocation>;

    fn handle(&mut self, LocatePod { pod }: LocatePod, _: &mut Context<Self>) -> Self::Result {
        let Some(key) = pod.filter(|key| !key.namespace.is_empty() && key.is_valid()) else {
            return ready(PodLocation { code: 400, message: "no name of a pod".into(), ..PodLocation::default() });
        };
        let found = |Bound { node, uid, .. }| PodLocation { code: 200, message: String::new(), node, uid };
        if let Some(bound) = self.desired.bound(&key) {
            return ready(found(bound));
        }
        // The watch may be behind, and knows only pods that are bound.
        let upstream = self.upstream.clone();
        Box::pin(async move {
            match upstream.pod_binding(&key).await {
                Ok(Some(bound)) => found(bound),
                Ok(None) => {
                    let message = format!("pod {key} does not exist");
                    PodLocation { code: 404, message, ..PodLocation::default() }
                }
                Err(refused) => PodLocation { code: refused.code, message: refused.reason, ..PodLocation::default() },
            }
        })
    }
}

impl Handler<NodeHeartbeat> for EdgeController {
    type Result = ResponseFuture<()>;

    /// Renews the node's Lease, as long as the node reports progress.
    fn handle(&mut self, beat: NodeHeartbeat, _: &mut Context<Self>) -> Self::Result {
        let Ok(node) = beat.node.parse::<NodeName>() else { return ready(()) };
        let now = Instant::now();
        let due = self.leases.get(&beat.node).is_none_or(|last| now.duration_since(*last) >= RENEW_EVERY / 2);
        if !due {
            return ready(());
        }
        if Duration::from_millis(beat.progress_age_ms) > PROGRESS_WITHIN {
            tracing::warn!(%node, age_ms = beat.progress_age_ms, "no progress at the node: its lease is not renewed");
            return ready(());
        }
        self.leases.insert(beat.node, now);
        let upstream = self.upstream.clone();
        Box::pin(async move {
            let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
            if let Err(error) = upstream.renew_lease(&node, None, &time).await {
                tracing::warn!(%node, "the node's lease could not be renewed: {error}");
            }
        })
    }
}

impl Handler<NodeSessionChanged> for EdgeController {
    type Result = ();

    fn handle(&mut self, change: NodeSessionChanged, _: &mut Context<Self>) {
        if self.sessions.changed(&change) {
            self.leases.remove(&change.node);
        }
        tracing::info!(
            node = change.node,
            epoch = change.epoch,
            connected = change.connected,
            reason = change.reason,
            "node session"
        );
    }
}
