//! Who looks whether components make progress: a task of the system, and one thread of the process.
//!
//! The task has a timer's clock (a test may stop it) and finds components that are served and do nothing: those lives
//! are ended. It cannot look while its own arbiter is blocked, so a thread looks for turns that do not end. Neither
//! reads a clock for a message: both compare counters in rounds.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use super::{
    Phase,
    port::Watched,
    progress::{self, Block, Blocking, Judgement, Lack, Watch},
    vitals::Verdict,
};

/// How often the thread looks. A turn that lasts two rounds is always seen.
const ROUND: Duration = Duration::from_millis(250);

/// A component that holds its arbiter's thread and does not give it back; see
/// [`SystemBuilder::when_blocked`](super::SystemBuilder::when_blocked).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Blocked {
    /// The system's name.
    pub system: String,
    /// The component's name.
    pub component: &'static str,
    /// How long it has held its arbiter, at least.
    pub held: Duration,
}

/// What the program does about a component that is given up.
pub(crate) type WhenBlocked = Arc<dyn Fn(&Blocked) + Send + Sync>;

/// Looks at components until all have ended.
pub(crate) async fn watch(components: Vec<Arc<dyn Watched>>) {
    let mut watched: Vec<_> = components.into_iter().map(|component| (component, Watch::default())).collect();
    while !watched.is_empty() {
        let limits = watched.iter().flat_map(|(component, _)| {
            std::iter::once(component.heartbeat()).chain(component.vitals().heartbeats.shortest())
        });
        let round = progress::round(limits);
        tokio::time::sleep(round).await;
        watched.retain_mut(|(component, watch)| {
            look_at(&**component, watch, round);
            component.vitals().phase() != Phase::Exited
        });
    }
}

fn look_at(component: &dyn Watched, watch: &mut Watch, round: Duration) {
    let (vitals, limit) = (component.vitals(), component.heartbeat());
    let look = component.look();
    let (judgement, lack) = watch.look(look, round, limit);
    // Beats are not asked of a component that is down, and its next life begins without any.
    let beats = if look.running { vitals.heartbeats.look(look.turns, round) } else { (Judgement::Fine, "", limit) };
    let verdict = match (judgement, beats) {
        (Judgement::Stuck, _) => {
            let what = match lack {
                Lack::Held => "one exclusive future did not end",
                Lack::Deaf => "messages waited and none was taken, for all its replies are under way",
            };
            Verdict { life: look.life, stood: limit, text: format!("{what} within {limit:?}") }
        }
        (_, (Judgement::Stuck, what, within)) => {
            let text = format!("the heartbeat of {what} was missed for {within:?}");
            Verdict { life: look.life, stood: within, text }
        }
        (Judgement::Fine, (Judgement::Fine, ..)) => return,
        _ => return vitals.wake(),
    };
    *watch = Watch::default();
    vitals.condemn(verdict);
}

/// One component that the thread looks at.
struct Guarded {
    system: String,
    component: Weak<dyn Watched>,
    blocking: Blocking,
    worst: Block,
    when_blocked: Option<WhenBlocked>,
}

/// The thread, and what it looks at.
struct Guard {
    list: Arc<Mutex<Vec<Guarded>>>,
    thread: Thread,
}

static GUARD: OnceLock<Option<Guard>> = OnceLock::new();

fn lock(list: &Mutex<Vec<Guarded>>) -> MutexGuard<'_, Vec<Guarded>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the thread look at these components until they end.
pub(crate) fn guard(system: &str, components: &[Arc<dyn Watched>], when_blocked: Option<&WhenBlocked>) {
    let Some(guard) = GUARD.get_or_init(start) else { return };
    lock(&guard.list).extend(components.iter().map(|component| Guarded {
        system: system.to_owned(),
        component: Arc::downgrade(component),
        blocking: Blocking::default(),
        worst: Block::None,
        when_blocked: when_blocked.cloned(),
    }));
    guard.thread.unpark();
}

fn start() -> Option<Guard> {
    let list = Arc::new(Mutex::new(Vec::new()));
    let looks_at = Arc::clone(&list);
    match thread::Builder::new().name("actor-watchdog".into()).spawn(move || run(&looks_at)) {
        Ok(handle) => Some(Guard { list, thread: handle.thread().clone() }),
        Err(error) => {
            tracing::error!(%error, "no thread for the watchdog: a component that blocks its arbiter is not found");
            None
        }
    }
}

/// The thread: asleep while there is nobody to look at.
fn run(list: &Mutex<Vec<Guarded>>) {
    loop {
        // What was found is told without the lock: the program's hook may start a system.
        let mut lost = Vec::new();
        let nobody = {
            let mut list = lock(list);
            list.retain_mut(|one| one.look(&mut lost));
            list.is_empty()
        };
        lost.into_iter().for_each(|(blocked, tell): (Blocked, WhenBlocked)| tell(&blocked));
        if nobody {
            thread::park();
            continue;
        }
        let next = Instant::now() + ROUND;
        while let Some(left) = next.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            thread::park_timeout(left);
        }
    }
}

impl Guarded {
    /// One round later; `false` when the component is gone.
    fn look(&mut self, lost: &mut Vec<(Blocked, WhenBlocked)>) -> bool {
        let Some(component) = self.component.upgrade() else { return false };
        let (vitals, limit) = (component.vitals(), component.heartbeat());
        if vitals.phase() == Phase::Exited {
            return false;
        }
        let found = self.blocking.look(vitals.turns(), ROUND, limit);
        let held = self.blocking.stood();
        vitals.seen_blocking(held);
        if found <= self.worst {
            self.worst = found;
            return true;
        }
        self.worst = found;
        let (system, name) = (&self.system, vitals.name);
        match found {
            Block::None | Block::Slow => {}
            Block::Blocked => {
                tracing::error!(system, component = name, ?held, "blocks its arbiter: nobody on that thread goes on");
                vitals.condemn(Verdict {
                    life: vitals.life(),
                    stood: limit,
                    text: format!("its turn did not end within {limit:?}"),
                });
            }
            Block::Lost => {
                tracing::error!(
                    system,
                    component = name,
                    ?held,
                    "blocks its arbiter and is given up: a thread cannot be ended, only the process can"
                );
                vitals.give_up();
                let blocked = Blocked { system: system.clone(), component: name, held };
                lost.extend(self.when_blocked.clone().map(|tell| (blocked, tell)));
            }
        }
        true
    }
}
