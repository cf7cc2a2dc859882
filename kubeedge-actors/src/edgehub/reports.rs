//! Which reports are on their way to the cloud in this session. Pure.

use std::collections::{HashMap, HashSet};

use kubeedge_proto::{
    body::StateKey,
    v1::{Envelope, ReportSettled, ReportStatus, Settled, envelope::Body, report_status::Report},
};

/// Reports fetched at a time.
pub const FETCH: u32 = 256;

/// The reports in flight, by object and generation.
#[derive(Default)]
pub struct InFlight {
    generations: HashMap<StateKey, u64>,
    /// What the cloud could not take for now: not sent again before [`InFlight::retry`], newer or not.
    later: HashSet<StateKey>,
    /// The last fetch brought as many as it may: there are more.
    more: bool,
}

impl InFlight {
    /// The bodies to send of what was fetched: what is not in flight in this generation.
    pub fn take(&mut self, fetched: Vec<ReportStatus>) -> Vec<Body> {
        self.more = fetched.len() >= FETCH as usize;
        let mut bodies = Vec::new();
        for report in fetched {
            let (body, generation) = match report.report {
                Some(Report::Update(update)) => {
                    let generation = update.generation;
                    (Body::StatusUpdate(update), generation)
                }
                Some(Report::Terminated(pod)) => {
                    let generation = pod.generation;
                    (Body::PodTerminated(pod), generation)
                }
                Some(Report::Device(device)) => {
                    let generation = device.generation;
                    (Body::DeviceReport(device), generation)
                }
                None => continue,
            };
            let Some(key) = body.state_key() else { continue };
            if !self.later.contains(&key) && self.generations.insert(key, generation) != Some(generation) {
                bodies.push(body);
            }
        }
        bodies
    }

    /// The cloud is done with a report. What MetaManager is told, if the message was one.
    pub fn settled(&mut self, envelope: &Envelope, settled: Settled) -> Option<ReportSettled> {
        let (key, generation) = envelope.body.as_ref().and_then(identity)?;
        if self.generations.get(&key) == Some(&generation) {
            self.generations.remove(&key);
        }
        if settled.code == 429 {
            self.later.insert(key.clone());
        }
        Some(ReportSettled {
            r#type: Some(key.type_),
            key: Some(key.key),
            uid: key.uid,
            generation,
            settled: Some(settled),
        })
    }

    /// A report did not get into the session: it may be taken again.
    pub fn forget(&mut self, envelope: &Envelope) {
        let Some((key, generation)) = envelope.body.as_ref().and_then(identity) else { return };
        if self.generations.get(&key) == Some(&generation) {
            self.generations.remove(&key);
        }
    }

    /// What the cloud could not take may be sent again.
    pub fn retry(&mut self) {
        self.later.clear();
    }

    /// Whether a fetch would bring more than may be on its way: what is new waits until something is settled.
    pub fn is_busy(&mut self) -> bool {
        let busy = self.generations.len() >= FETCH as usize / 2;
        self.more |= busy;
        busy
    }

    /// Whether to fetch again now: there were more than fitted, and half of them are done.
    pub fn wants_more(&self) -> bool {
        self.more && self.generations.len() < FETCH as usize / 2
    }

    /// The session is over: everything not settled goes again in the next.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Which report a message is; `None` when it is none.
fn identity(body: &Body) -> Option<(StateKey, u64)> {
    let generation = match body {
        Body::StatusUpdate(update) => update.generation,
        Body::PodTerminated(pod) => pod.generation,
        Body::DeviceReport(device) => device.generation,
        _ => return None,
    };
    Some((body.state_key()?, generation))
}

#[cfg(test)]
mod tests {
    use kubeedge_proto::{
        resource,
        v1::{ObjectKey, StatusUpdate},
    };

    use super::*;

    fn report(name: &str, generation: u64) -> ReportStatus {
        ReportStatus {
            report: Some(Report::Update(StatusUpdate {
                r#type: Some(resource::pods()),
                key: Some(ObjectKey::new("ns", name)),
                uid: "u".into(),
                generation,
                status_json: "{}".into(),
            })),
        }
    }

    #[test]
    fn a_report_is_sent_once_per_generation_and_session() {
        let mut reports = InFlight::default();
        let sent = reports.take(vec![report("a", 1)]);
        assert_eq!(sent.len(), 1);
        assert!(reports.take(vec![report("a", 1)]).is_empty());
        assert_eq!(reports.take(vec![report("a", 2)]).len(), 1);

        let first = Envelope { body: Some(sent[0].clone()), ..Envelope::default() };
        let told = reports.settled(&first, Settled::applied()).unwrap();
        assert_eq!((told.generation, told.uid.as_str()), (1, "u"));
        assert!(reports.take(vec![report("a", 2)]).is_empty(), "generation 2 is still on its way");

        reports.clear();
        assert_eq!(reports.take(vec![report("a", 2)]).len(), 1);
    }

    #[test]
    fn what_the_cloud_cannot_take_for_now_is_not_sent_again_at_once() {
        let mut reports = InFlight::default();
        let sent = reports.take(vec![report("a", 1), report("b", 1)]);
        let of = |body: &Body| Envelope { body: Some(body.clone()), ..Envelope::default() };
        reports.settled(&of(&sent[0]), Settled::rejected(429, "too much"));
        assert!(reports.take(vec![report("a", 1)]).is_empty());
        assert!(reports.take(vec![report("a", 2)]).is_empty(), "a newer one waits as well");
        reports.retry();
        assert_eq!(reports.take(vec![report("a", 2)]).len(), 1);
    }

    #[test]
    fn more_is_fetched_when_half_is_done() {
        let mut reports = InFlight::default();
        let all: Vec<_> = (0..FETCH).map(|i| report(&format!("p{i}"), 1)).collect();
        let sent = reports.take(all);
        assert!(!reports.wants_more() && reports.is_busy());
        for body in &sent[..=FETCH as usize / 2] {
            reports.settled(&Envelope { body: Some(body.clone()), ..Envelope::default() }, Settled::applied());
        }
        assert!(reports.wants_more());
    }
}
