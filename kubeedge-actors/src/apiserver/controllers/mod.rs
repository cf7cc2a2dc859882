//! What keeps going by itself: the bootstrap namespaces, emptying namespaces, binding pods, watching over nodes and
//! evicting from them, collecting garbage, the endpoints of Services, the pods of Deployments and their like.
//!
//! Each controller is level-triggered: woken by any change of the kinds it looks at, it compares what is with what
//! should be and writes the difference. What it misses while it works it sees the next time.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Api;
use super::status::Status;
use super::storage::KindId;

mod apps;
mod binder;
pub(super) mod definitions;
mod endpoints;
mod events;
mod evictions;
mod garbage;
mod kubernetes;
mod namespaces;
mod nodes;
mod usage;
mod volumes;

/// Time after which a controller that failed, or that waits for time to pass, looks again.
const RETRY: Duration = Duration::from_secs(5);

/// The least time between two looks of a controller: a burst of changes is looked at once.
const PAUSE: Duration = Duration::from_millis(20);
/// A controller looks at all objects of its kinds each time. It rests for so many times as long as that kept the thread
/// busy: with ten thousand pods they would leave no time for requests.
const REST: u32 = 9;
/// The same for the garbage collector, which looks at every object.
const GARBAGE_PAUSE: Duration = Duration::from_millis(200);

/// The controllers of one server.
pub(super) struct Running {
    tasks: JoinSet<()>,
    bootstrapped: watch::Receiver<bool>,
}

impl Running {
    /// Resolves when the bootstrap namespaces and `default/kubernetes` are there, or the server stops.
    pub(super) async fn bootstrapped(&self) {
        // An error means that the controller has ended: there is nothing to wait for.
        let _ = self.bootstrapped.clone().wait_for(|done| *done).await;
    }

    /// Waits until all have ended, after the storage is closing.
    pub(super) async fn join(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a controller of the API server failed");
            }
        }
    }
}

/// Starts them all; `server` is where the API server is reached.
pub(super) fn start(api: &Arc<Api>, server: SocketAddr) -> Running {
    let mut tasks = JoinSet::new();
    let (done, bootstrapped) = watch::channel(false);
    let everything: Vec<KindId> = api.storage.kinds().map(|(id, _)| id).chain([KindId::CUSTOM]).collect();
    tasks.spawn(run("namespaces", api.clone(), everything, PAUSE, move |api| {
        let done = done.clone();
        async move {
            let outcome = namespaces::reconcile(&api).await;
            if outcome.is_ok() {
                // A server that is up has its own Service, too.
                if !*done.borrow() {
                    kubernetes::reconcile(&api, server).await?;
                }
                done.send_replace(true);
            }
            outcome
        }
    }));
    // Nodes renew leases and pods write events all the time; neither changes what these decide.
    let of =
        |plurals: &[&str]| -> Vec<KindId> { plurals.iter().filter_map(|plural| api.storage.core(plural)).collect() };
    let steady: Vec<KindId> = api
        .storage
        .kinds()
        .filter(|(_, kind)| !matches!(kind.plural, "leases" | "events"))
        .map(|(id, _)| id)
        .chain([KindId::CUSTOM])
        .collect();
    tasks.spawn(run(
        "garbage",
        api.clone(),
        steady,
        GARBAGE_PAUSE,
        |api| async move { garbage::reconcile(&api).await },
    ));
    tasks.spawn(run("definitions", api.clone(), definitions::watched(api), PAUSE, |api| async move {
        definitions::reconcile(&api).await
    }));
    let monitor = Arc::new(nodes::Monitor::default());
    tasks.spawn(run("nodes", api.clone(), of(&["nodes"]), PAUSE, move |api| {
        let monitor = monitor.clone();
        async move { nodes::reconcile(&api, &monitor).await }
    }));
    let claimed = of(&["persistentvolumes", "persistentvolumeclaims"]);
    tasks.spawn(run("volumes", api.clone(), claimed, PAUSE, |api| async move { volumes::reconcile(&api).await }));
    let usages = Arc::new(binder::Usages::default());
    let bound_by = of(&["pods", "nodes", "persistentvolumeclaims"]);
    tasks.spawn(run("binder", api.clone(), bound_by, PAUSE, move |api| {
        let usages = usages.clone();
        async move { binder::reconcile(&api, &usages).await }
    }));
    let sightings = Arc::new(evictions::Sightings::default());
    tasks.spawn(run("evictions", api.clone(), of(&["pods", "nodes"]), PAUSE, move |api| {
        let sightings = sightings.clone();
        async move { evictions::reconcile(&api, &sightings).await }
    }));
    let mut behind = of(&["services", "pods", "nodes", "endpoints"]);
    behind.extend(api.storage.find("discovery.k8s.io", "v1", "endpointslices"));
    tasks.spawn(run("endpoints", api.clone(), behind, PAUSE, |api| async move { endpoints::reconcile(&api).await }));
    tasks.spawn(run(
        "kubernetes",
        api.clone(),
        of(&["namespaces", "services", "endpoints"]),
        PAUSE,
        move |api| async move { kubernetes::reconcile(&api, server).await },
    ));
    apps::start(api, &mut tasks);
    tasks.spawn(run("events", api.clone(), Vec::new(), PAUSE, |api| async move { events::reconcile(&api).await }));
    Running { tasks, bootstrapped }
}

/// Calls `reconcile` now and after every change of `kinds`, with a pause in between, until the server stops. One that
/// panics is called again like one that fails.
async fn run<F, R>(name: &'static str, api: Arc<Api>, kinds: Vec<KindId>, pause: Duration, mut reconcile: F)
where
    F: FnMut(Arc<Api>) -> R,
    R: Future<Output = Result<Again, Status>>,
{
    let closing = api.storage.closing().clone();
    let mut changes: Vec<watch::Receiver<u64>> = kinds.into_iter().map(|id| api.storage.subscribe(id)).collect();
    let work = async {
        loop {
            for change in &mut changes {
                change.borrow_and_update();
            }
            let mut busy = Busy { work: Box::pin(reconcile(api.clone())), spent: Duration::ZERO };
            let outcome = AssertUnwindSafe(&mut busy).catch_unwind().await;
            let pause = pause.max(busy.spent * REST);
            let again = match outcome.unwrap_or_else(|_| Err(Status::internal("a controller panicked"))) {
                Ok(Again::OnChange) => None,
                Ok(Again::After(time)) => Some(time),
                Err(error) => {
                    tracing::warn!(controller = name, %error, "trying again");
                    Some(RETRY)
                }
            };
            tokio::time::sleep(pause).await;
            let retry = async {
                match again {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = any_change(&mut changes) => {}
                () = retry => {}
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = closing.cancelled() => {}
    }
}

/// Counts the time for which a future keeps its thread; what it waits for does not count.
struct Busy<R> {
    work: Pin<Box<R>>,
    spent: Duration,
}

impl<R: Future> Future for Busy<R> {
    type Output = R::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R::Output> {
        let began = Instant::now();
        let polled = self.work.as_mut().poll(cx);
        self.spent += began.elapsed();
        polled
    }
}

async fn any_change(changes: &mut [watch::Receiver<u64>]) {
    if changes.is_empty() {
        std::future::pending::<()>().await;
    }
    let any = changes.iter_mut().map(|change| Box::pin(change.changed()));
    // The sender lives in the storage, which the controller holds: it does not end.
    let (_, _, _) = futures_util::future::select_all(any).await;
}

/// When a controller looks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// When something changes.
    OnChange,
    /// When something changes, and after this time.
    After(Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_controller_waits_for_is_not_what_it_rests_for() {
        let work = async {
            let until = Instant::now() + Duration::from_millis(20);
            while Instant::now() < until {}
            tokio::time::sleep(Duration::from_millis(400)).await;
        };
        let mut busy = Busy { work: Box::pin(work), spent: Duration::ZERO };
        let began = Instant::now();
        (&mut busy).await;
        assert!(began.elapsed() >= Duration::from_millis(420));
        assert!(busy.spent >= Duration::from_millis(20));
        assert!(busy.spent < began.elapsed() - Duration::from_millis(300), "{:?}", busy.spent);
    }
}
