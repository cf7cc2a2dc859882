//! Heartbeats: sent at every interval, by the cloud when it is silent, answered at once; and the judgement that a link is
//! dead.

use std::time::Duration;

use kubeedge_proto::v1::Heartbeat;

use crate::link::config::Config;

/// An interval is this part of `dead_after` at most: a second heartbeat has 2 s and more to arrive.
const MOST_OF_LIFE: f64 = 0.45;

#[derive(Debug)]
pub(crate) struct Liveness {
    is_edge: bool,
    interval: Duration,
    dead_after: Duration,
    sent: Duration,
    received: Duration,
    /// The edge's last heartbeat. The next one comes an interval later, even when data flows: it carries the edge's progress,
    /// for which the cloud renews the node's lease.
    told: Duration,
    /// The edge was told of its progress in this session, and whether that is still to be passed on: the cloud renews
    /// the node's lease on the strength of it. On a line that flaps faster than the interval nothing else would.
    introduced: bool,
    introduce: bool,
    nonce: u64,
    asked: Option<(u64, Duration)>,
    answer: Option<u64>,
    /// When Edged and the runtime last made progress.
    progress: Duration,
    /// How old that was when it was first told; time before the session's zero has no Duration.
    progress_before: Duration,
}

impl Liveness {
    pub(crate) fn new(config: &Config, is_edge: bool) -> Self {
        Self {
            is_edge,
            interval: config.heartbeat_interval,
            dead_after: config.dead_after,
            sent: Duration::ZERO,
            received: Duration::ZERO,
            told: Duration::ZERO,
            introduced: false,
            introduce: false,
            nonce: 0,
            asked: None,
            answer: None,
            progress: Duration::ZERO,
            progress_before: Duration::ZERO,
        }
    }

    /// The interval the cloud asks for. One that this end was set to stands if it is shorter; either must leave room for
    /// a second try before the link counts as dead.
    pub(crate) fn set_interval(&mut self, interval: Duration) {
        self.interval =
            interval.min(self.interval).clamp(Duration::from_millis(100), self.dead_after.mul_f64(MOST_OF_LIFE));
    }

    pub(crate) fn established(&mut self, now: Duration) {
        self.told = now;
        self.sent = now;
        self.received = now;
    }

    pub(crate) fn frame_sent(&mut self, now: Duration) {
        self.sent = now;
    }

    pub(crate) fn frame_received(&mut self, now: Duration) {
        self.received = now;
    }

    pub(crate) fn progress(&mut self, now: Duration, age_ms: u64) {
        let age = Duration::from_millis(age_ms);
        self.progress = now.saturating_sub(age);
        self.progress_before = age.saturating_sub(now);
        self.introduce |= self.is_edge && !self.introduced;
        self.introduced = true;
    }

    /// Takes a heartbeat; the round trip when it answers this end's last one.
    pub(crate) fn heartbeat(&mut self, now: Duration, heartbeat: &Heartbeat) -> Option<Duration> {
        if heartbeat.nonce != 0 {
            self.answer = Some(heartbeat.nonce);
        }
        let (nonce, at) = self.asked?;
        (heartbeat.answers == nonce).then(|| {
            self.asked = None;
            now.saturating_sub(at)
        })
    }

    /// The cloud waits longer, so that the edge's heartbeat usually comes first and one exchange does for both.
    fn due(&self) -> Duration {
        if self.introduce {
            Duration::ZERO
        } else if self.is_edge {
            self.told + self.interval
        } else {
            self.sent + self.interval + self.interval / 2
        }
    }

    /// A heartbeat that should go now.
    pub(crate) fn next(&mut self, now: Duration) -> Option<Heartbeat> {
        let answers = self.answer.take();
        let ask = now >= self.due();
        if answers.is_none() && !ask {
            return None;
        }
        let mut nonce = 0;
        if ask {
            self.introduce = false;
            self.nonce += 1;
            nonce = self.nonce;
            self.asked = Some((nonce, now));
        }
        self.told = now;
        let age = now.saturating_sub(self.progress) + self.progress_before;
        let progress_age_ms = if self.is_edge { u64::try_from(age.as_millis()).unwrap_or(u64::MAX) } else { 0 };
        Some(Heartbeat { nonce, answers: answers.unwrap_or(0), progress_age_ms })
    }

    /// `P-HALF-OPEN`
    pub(crate) fn is_dead(&self, now: Duration) -> bool {
        now >= self.dead_at()
    }

    pub(crate) fn silent_for(&self, now: Duration) -> Duration {
        now.saturating_sub(self.received)
    }

    pub(crate) fn dead_at(&self) -> Duration {
        self.received + self.dead_after
    }

    pub(crate) fn next_deadline(&self) -> Duration {
        if self.answer.is_some() { Duration::ZERO } else { self.due().min(self.dead_at()) }
    }
}
