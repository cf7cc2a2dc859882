//! What Edged does on a box: the shell around its book of pods, between what it hears, what is on disk and what runs.

use std::collections::BTreeSet;

use kubeedge_actors::edged::book::Effect;
use kubeedge_proto::resource;

use super::{
    edge::{Box_, News, ordered, understand},
    faults::Good,
    world::World,
};

impl World {
    pub fn apply(&mut self, box_: usize, effects: Vec<Effect>) {
        for effect in effects {
            let order = ordered(effect);
            if order.run {
                self.boxes[box_].runtime.entry(order.uid.clone()).or_insert_with(|| super::checks::summary(&order));
            } else {
                self.check_end(box_, &order.uid);
                if let Some(edge) = &mut self.boxes[box_].edge {
                    edge.ending.insert(order.uid.clone(), order.report_end);
                }
            }
        }
    }

    /// Edged handles the next thing it was told.
    pub fn edged_hears(&mut self, box_: usize) -> bool {
        let Some(edge) = &mut self.boxes[box_].edge else { return false };
        let Some(news) = edge.news.pop_front() else { return false };
        let effects = match news {
            News::Changed(changed) if changed.r#type == Some(resource::pods()) => match &changed.object {
                Some(object) => {
                    let (pod, plan) = understand(object);
                    edge.book.upsert(pod, plan)
                }
                None => {
                    let key = changed.key.expect("a change names its object");
                    edge.book.gone(&(key.namespace, key.name), &changed.uid)
                }
            },
            News::Changed(_) => Vec::new(),
            News::Reloaded => {
                self.edged_reloads(box_);
                Vec::new()
            }
            News::PodsComplete => {
                if edge.book.completed() {
                    self.edged_reloads(box_);
                }
                Vec::new()
            }
        };
        self.apply(box_, effects);
        true
    }

    pub fn edged_reloads(&mut self, box_: usize) {
        let Some(edge) = &mut self.boxes[box_].edge else { return };
        if edge.book.is_loading() {
            edge.load_again = true;
        } else {
            edge.book.reload();
            edge.asked = true;
        }
    }

    /// MetaManager's answer to Edged's question for the pods on disk.
    pub fn edged_reads(&mut self, box_: usize) -> bool {
        if !self.boxes[box_].edge.as_ref().is_some_and(|edge| edge.asked) {
            return false;
        }
        let pods = self.boxes[box_].pods_on_disk();
        let uids: BTreeSet<String> = pods.iter().map(|(_, plan)| plan.uid.clone()).collect();
        let Some(edge) = &mut self.boxes[box_].edge else { return false };
        let complete = edge.meta.state.index.is_complete(&resource::pods());
        edge.asked = false;
        let effects = edge.book.loaded(pods, &uids.iter().map(String::as_str).collect(), complete);
        self.apply(box_, effects);
        let told_end = &self.boxes[box_].told_end;
        let Some(edge) = &self.boxes[box_].edge else { return false };
        let looked_after: BTreeSet<&str> = edge.book.uids().collect();
        for uid in uids.iter().filter(|uid| !told_end.contains(*uid)) {
            // What is still to be heard or read brings the rest.
            if !edge.news.is_empty() || edge.load_again {
                break;
            }
            let runs = looked_after.contains(uid.as_str());
            promise!(runs, "P-OFFLINE-BOOT", "pod {uid} is on the disk of box {box_} and does not run");
        }
        if edge.hub.connection.is_none() && !uids.is_empty() {
            self.counts.saw(Good::OfflineBoot);
        }
        let Some(edge) = &mut self.boxes[box_].edge else { return false };
        if std::mem::take(&mut edge.load_again) {
            self.edged_reloads(box_);
        }
        true
    }

    /// Edged sees what containerd runs.
    pub fn edged_lists(&mut self, box_: usize) {
        let Box_ { edge, runtime, .. } = &mut self.boxes[box_];
        let Some(edge) = edge else { return };
        let effects = edge.book.seen(runtime.values());
        self.apply(box_, effects);
    }
}
