//! What a Deployment says of itself: counts, whether it is available, how far it is.

use serde_json::{Value, json};

use super::super::pods::{find_condition, remove_condition, set_condition, set_counts};
use super::Wish;
use super::sets::{Set, Sets};
use crate::apiserver::clock;
use crate::apiserver::kinds::fields::{integer, text};

const PROGRESSING: &str = "Progressing";
const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
/// The deadline that means none.
const NO_DEADLINE: i64 = i32::MAX as i64;

/// What the step did beside changing sizes.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// A new state of the condition `Progressing`: status, reason, message.
    pub(super) progress: Option<(&'static str, &'static str, String)>,
}

impl Outcome {
    /// A set of a former revision is the new one.
    pub(super) fn found(&mut self, sets: &Sets) {
        self.progress =
            sets.newest().map(|set| ("True", "FoundNewReplicaSet", format!("Found new replica set {:?}", set.name())));
    }

    /// A new one was made.
    pub(super) fn made(&mut self, sets: &Sets) {
        self.progress = sets
            .newest()
            .map(|set| ("True", "NewReplicaSetCreated", format!("Created new replica set {:?}", set.name())));
    }
}

/// The new status, and when a deadline passes without progress.
pub(super) fn of(deployment: &Value, wish: &Wish, sets: &Sets, outcome: &Outcome, now: i64) -> (Value, Option<i64>) {
    let old = &deployment["status"];
    let mut status = old.clone();
    let sum = |of: fn(&Set) -> i64| sets.all().map(of).sum::<i64>();
    let present = sum(|set| set.counts().present);
    let available = sum(|set| set.counts().available);
    let updated = sets.newest().map_or(0, |set| set.counts().present);
    set_counts(
        &mut status,
        &[
            ("observedGeneration", integer(deployment, "/metadata/generation").unwrap_or_default()),
            ("replicas", present),
            ("updatedReplicas", updated),
            ("readyReplicas", sum(|set| set.counts().ready)),
            ("availableReplicas", available),
            ("unavailableReplicas", (sum(Set::replicas) - available).max(0)),
        ],
    );
    if sets.collisions > 0 {
        status["collisionCount"] = sets.collisions.into();
    }
    let (is_available, reason, message) = if available >= wish.replicas - wish.max_unavailable {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut status, "Available", is_available, reason, message, now);
    let deadline = progress(deployment, wish, sets, outcome, &mut status, now);
    match sets.newest().and_then(|set| find_condition(&set.value()["status"], "ReplicaFailure")) {
        Some(failure) => {
            set(&mut status, "ReplicaFailure", "True", text(failure, "/reason"), text(failure, "/message"), now);
        }
        None => remove_condition(&mut status, "ReplicaFailure"),
    }
    (status, deadline)
}

/// Whether the rollout is over: every pod is of the present template and available, and there are as many as wanted.
pub(super) fn is_complete(deployment: &Value, status: &Value) -> bool {
    let wanted = integer(deployment, "/spec/replicas").unwrap_or(1);
    ["updatedReplicas", "replicas", "availableReplicas"]
        .iter()
        .all(|field| status[*field].as_i64().unwrap_or_default() == wanted)
}

/// Sets `Progressing`; gives when it is too late.
fn progress(
    deployment: &Value,
    wish: &Wish,
    sets: &Sets,
    outcome: &Outcome,
    status: &mut Value,
    now: i64,
) -> Option<i64> {
    let seconds = integer(deployment, "/spec/progressDeadlineSeconds").filter(|seconds| *seconds < NO_DEADLINE);
    let Some(seconds) = seconds else {
        remove_condition(status, PROGRESSING);
        return None;
    };
    let known = find_condition(&deployment["status"], PROGRESSING);
    let reason = known.map(|known| text(known, "/reason")).unwrap_or_default();
    if let Some((state, reason, message)) = &outcome.progress {
        set(status, PROGRESSING, state, reason, message, now);
    } else if wish.paused != (reason == PAUSED) && reason != TIMED_OUT {
        let (reason, message) =
            if wish.paused { (PAUSED, "Deployment is paused") } else { ("DeploymentResumed", "Deployment is resumed") };
        set(status, PROGRESSING, "Unknown", reason, message, now);
    } else if !wish.paused {
        let count = |status: &Value, field: &str| status[field].as_i64().unwrap_or_default();
        let old = &deployment["status"];
        let left = |status: &Value| count(status, "replicas") - count(status, "updatedReplicas");
        let moved = left(status) < left(old)
            || ["updatedReplicas", "readyReplicas", "availableReplicas"]
                .iter()
                .any(|field| count(status, field) > count(old, field));
        let what = sets.newest().map_or_else(|| "Deployment".to_owned(), |set| format!("ReplicaSet {:?}", set.name()));
        let is_over = reason == NEW_AVAILABLE && left(status) == 0;
        if is_over {
            return None;
        } else if is_complete(deployment, status) && sets.newest().is_some() {
            let message = format!("{what} has successfully progressed.");
            set(status, PROGRESSING, "True", NEW_AVAILABLE, &message, now);
        } else if moved || known.is_none() {
            set(status, PROGRESSING, "True", "ReplicaSetUpdated", &format!("{what} is progressing."), now);
        } else if reason == NEW_AVAILABLE || reason == TIMED_OUT {
            return None;
        } else if since(known) + seconds < now {
            set(status, PROGRESSING, "False", TIMED_OUT, &format!("{what} has timed out progressing."), now);
        }
    }
    let after = find_condition(status, PROGRESSING)?;
    let is_final = matches!(text(after, "/reason"), NEW_AVAILABLE | TIMED_OUT | PAUSED);
    // The first second that is too late.
    (!is_final).then(|| since(Some(after)) + seconds + 1)
}

/// When a condition was last renewed.
fn since(condition: Option<&Value>) -> i64 {
    condition.and_then(|one| clock::parse(text(one, "/lastUpdateTime"))).unwrap_or_default()
}

/// Sets a condition; its update time stays while it says the same, but that progress is always news.
fn set(status: &mut Value, type_: &str, state: &str, reason: &str, message: &str, now: i64) {
    let mut condition = json!({"type": type_, "status": state, "reason": reason, "message": message});
    let same = |known: &&Value| known["status"] == state && known["reason"] == reason && known["message"] == message;
    condition["lastUpdateTime"] = match find_condition(status, type_).filter(same) {
        Some(known) if type_ != PROGRESSING => known["lastUpdateTime"].clone(),
        _ => clock::rfc3339(now).into(),
    };
    set_condition(status, condition, now);
}
