//! Promises that look at more than one part of the world.

use std::{collections::BTreeMap, time::Duration};

use kubeedge_actors::{edged::runtime::PodSummary, link::session::Closed};
use kubeedge_proto::v1::GoodbyeReason;

use super::{
    api::{Kind, NAMESPACE, name_of},
    cloud::node_name,
    edge::{BOUNDS, Ordered},
    line::Line,
    world::{MAIN, OTHER, World},
};

/// For an end to find out that nothing reaches it any more.
const HALF_OPEN: Duration = Duration::from_secs(25);

/// What containerd has of a pod that runs.
pub fn summary(order: &Ordered) -> PodSummary {
    PodSummary {
        namespace: NAMESPACE.into(),
        name: order.name.clone(),
        uid: order.uid.clone(),
        sandboxes: BTreeMap::from([(format!("s-{}", order.uid), true)]),
        containers: BTreeMap::new(),
        grace_seconds: Some(1),
    }
}

impl World {
    /// After every step.
    pub fn check(&self) {
        for (number, box_) in self.boxes.iter().enumerate() {
            let pinned = &box_.disk.this_box.cluster_uid;
            for object in box_.disk.objects.values() {
                let own = object.uid.split('-').next() == Some(pinned.as_str());
                promise!(own, "P-CLUSTER-PINNED", "box {number} of cluster {pinned} holds {}", object.uid);
            }
            if let Some(edge) = &box_.edge {
                let events = edge.hub.ledger.queue();
                promise!(
                    events.len() <= BOUNDS.max_events && events.bytes() <= BOUNDS.max_bytes,
                    "P-MEMORY-BOUNDED",
                    "the outbox of box {number} holds {} events of {} bytes",
                    events.len(),
                    events.bytes()
                );
            }
        }
        for line in self.lines.values() {
            for end in [&line.edge, &line.cloud].into_iter().flatten() {
                let queued = end.session.queued_state();
                // One per key and uid: of what there can be here.
                promise!(queued <= 200, "P-MEMORY-BOUNDED", "{queued} State messages wait");
                let silent = self.now - end.heard;
                promise!(
                    end.session.is_closed() || silent <= HALF_OPEN,
                    "P-HALF-OPEN",
                    "an end of a connection of box {} has heard nothing for {silent:?} and takes it for alive",
                    line.box_
                );
            }
        }
        let Some(cloud) = &self.cloud else { return };
        for (node, id) in &cloud.live {
            let epoch = self.lines.get(id).and_then(|line| line.epoch);
            let held = cloud.registry.holder(&node_name(node)).map(|holder| holder.epoch);
            promise!(
                held.is_some() && held == epoch,
                "P-ONE-EPOCH-HOLDS",
                "epoch {epoch:?} is the session of {node}, and {held:?} holds it"
            );
        }
        let (live, held) = (cloud.live.len(), cloud.registry.len());
        promise!(live == held, "P-ONE-EPOCH-HOLDS", "{held} sessions are held, {live} live");
    }

    /// A pod is told to end: somebody has to have wanted it.
    pub fn check_end(&self, box_: usize, uid: &str) {
        self.note(|| format!("box {box_}: pod {uid} is told to end"));
        let api = &self.apis[0];
        let lost = api.lost.get(uid).is_some_and(|from| api.version >= *from);
        promise!(
            api.ended.contains(uid) || lost,
            "P-NO-END-FROM-IGNORANCE",
            "pod {uid} is told to end at box {box_}, and is wanted"
        );
    }

    /// A session ended: something has to have happened to it.
    pub fn check_closed(&self, line: &Line, at_edge: bool, closed: &Closed) {
        let side = if at_edge { "edge" } else { "cloud" };
        self.note(|| format!("session of box {} closed at the {side}: {closed}", line.box_));
        let fine = match closed {
            Closed::Transport(_) | Closed::ByPeer(_) => true,
            Closed::ByUs(goodbye) => match goodbye.reason() {
                GoodbyeReason::TimedOut => line.disturbed || line.swallows_up || line.swallows_down,
                GoodbyeReason::ProtocolError | GoodbyeReason::Limit => line.tampered,
                _ => true,
            },
        };
        promise!(fine, "P-HEARTBEAT-ALONE", "nothing had happened to the session of box {}: {closed}", line.box_);
    }

    /// Whether everybody agrees. The text says what is missing.
    pub fn agreement(&self) -> Result<(), String> {
        let api = &self.apis[0];
        for (number, node) in [(MAIN, "edge-1"), (OTHER, "edge-2")] {
            let box_ = &self.boxes[number];
            let mut wanted = BTreeMap::new();
            for (place, pod) in api.objects.iter().filter(|(place, pod)| place.0 == Kind::Pod && pod.node == node) {
                wanted.insert(format!("pods/{}", name_of(*place)), (pod.uid.clone(), pod.content));
                for config in &pod.names {
                    let place = (Kind::Config, *config);
                    if let Some(config) = api.objects.get(&place) {
                        let at = format!("configmaps/{}", name_of(place));
                        wanted.insert(at, (config.uid.clone(), config.content));
                    }
                }
            }
            let held: BTreeMap<String, (String, u64)> = (box_.disk.objects.iter())
                .map(|(at, object)| {
                    let json: serde_json::Value = serde_json::from_slice(&object.json).expect("JSON");
                    let content = json["metadata"]["labels"]["content"].as_str().and_then(|it| it.parse().ok());
                    (at.clone(), (object.uid.clone(), content.unwrap_or(u64::MAX)))
                })
                .collect();
            if wanted != held {
                return Err(format!("box {number} holds {held:?}, wanted is {wanted:?}"));
            }
            // A pod that was told to end has ended, also when a backup brings it back: of its uid there is no second life.
            let lives = |uid: &&String| !box_.told_end.contains(*uid);
            let runs: Vec<&String> = box_.runtime.keys().filter(lives).collect();
            let should: Vec<&String> = {
                let mut uids: Vec<&String> = wanted
                    .iter()
                    .filter(|(at, _)| at.starts_with("pods/"))
                    .map(|(_, (uid, _))| uid)
                    .filter(lives)
                    .collect();
                uids.sort();
                uids
            };
            if runs != should {
                return Err(format!("box {number} runs {runs:?}, wanted is {should:?}"));
            }
            // What a full disk did not let go of stays there, and is told once more after a restart.
            let reports = box_.edge.as_ref().map_or(0, |edge| edge.meta.reports.len());
            if reports > 0 {
                return Err(format!("box {number} has {reports} reports left"));
            }
            if !box_.disk.outbox.is_empty() {
                return Err(format!("box {number} has {} events left", box_.disk.outbox.len()));
            }
        }
        if let Some(event) = self.down_events.values().find(|event| !event.done) {
            return Err(format!("an event for {} is not done", event.node));
        }
        if let Some((id, _)) = self.calls.iter().find(|(_, (.., ends))| *ends != 1) {
            return Err(format!("call {id:?} has not ended"));
        }
        Ok(())
    }

    /// When everybody agrees: nothing that was promised is missing.
    pub fn check_promised(&self) {
        let api = &self.apis[0];
        let count = |event: &serde_json::Value| event["count"].as_u64().unwrap_or(0);
        let dropped: u64 = api.events.values().filter(|event| event["reason"] == "EventsDropped").map(count).sum();
        let told = api.events.values().filter(|event| event["reason"] != "EventsDropped").count() as u64;
        let promised: u64 = [MAIN, OTHER].iter().map(|number| self.boxes[*number].promised.len() as u64).sum();
        promise!(
            told + dropped + self.given_up >= promised,
            "P-ACKED-IS-KEPT",
            "{promised} events were taken, {told} arrived and {dropped} are said to be dropped; {} more are not, since the \
             word of them was refused",
            self.given_up
        );
        for (place, pod) in &api.objects {
            let Some((box_, last, _)) = pod.status else { continue };
            let said = self.boxes[box_].statuses.get(&pod.uid).copied().unwrap_or(0);
            // A backup brings old statuses back; a pod tells the new one when it has something to tell.
            if box_ != super::world::TWIN && api.incarnation == 0 {
                let newest = last >= said;
                promise!(newest, "P-CONVERGES", "{} has status {last}, {said} was taken last", name_of(*place));
            }
        }
    }
}
