//! How often the runtime is listed, with events and without.

use super::*;

/// Long enough for whatever still goes on to be over.
const SETTLED: Duration = Duration::from_secs(30);
const WATCHED: Duration = Duration::from_secs(600);

/// Lists while nothing happens.
async fn lists_at_rest(bench: &Bench) -> usize {
    tokio::time::sleep(SETTLED).await;
    let before = bench.runtime.lists();
    tokio::time::sleep(WATCHED).await;
    bench.runtime.lists() - before
}

/// From the end of a container to the report of the next one, which comes at once.
async fn until_restarted(bench: &Bench) -> Duration {
    let began = tokio::time::Instant::now();
    assert!(bench.runtime.exit("u1", "a", 1));
    bench.until("a restart", |site| restarted(site, "u1")).await;
    began.elapsed()
}

#[actix_rt::test]
async fn a_runtime_that_tells_events_is_listed_at_once_when_something_happens_and_rarely_otherwise() {
    let bench = bench(&[], true).await;
    bench.runtime.offer_events();
    tokio::time::pause();
    bench.tell(&pod("p", "u1")).await;
    bench.phase("u1", "Running").await;
    let lists = lists_at_rest(&bench).await;
    assert!((9..=11).contains(&lists), "{lists} lists in {WATCHED:?}");
    let took = until_restarted(&bench).await;
    assert!(took < relist::PERIOD / 2, "noticed after {took:?}");
    // The stream breaks: what happens then is found as without it.
    bench.runtime.end_events();
    bench.runtime.lose_sandbox("u1");
    let began = tokio::time::Instant::now();
    bench
        .until("the end of its container", |site| {
            let waits =
                |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
            lock(&site.reports).iter().any(|(_, _, status)| waits(status)).then_some(())
        })
        .await;
    assert!(began.elapsed() <= relist::PERIOD * 2, "noticed after {:?}", began.elapsed());
    tokio::time::resume();
    bench.stop().await;
}

#[actix_rt::test]
async fn a_runtime_without_events_is_listed_every_second() {
    let bench = bench(&[], true).await;
    tokio::time::pause();
    bench.tell(&pod("p", "u1")).await;
    bench.phase("u1", "Running").await;
    let lists = lists_at_rest(&bench).await;
    assert!((590..=601).contains(&lists), "{lists} lists in {WATCHED:?}");
    let took = until_restarted(&bench).await;
    assert!(took <= relist::PERIOD + relist::LEAST, "noticed after {took:?}");
    tokio::time::resume();
    bench.stop().await;
}
