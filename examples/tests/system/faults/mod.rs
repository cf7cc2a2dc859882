//! Faults between real processes: cloudcore and edgecores in network namespaces of their own, under a stream of changes.
//!
//! Each scenario breaks something in its way for some seconds while everyone writes; then everything is mended, and
//! within [`RECOVERED`] every node has to have what was acknowledged and the API has to know of it. At the end the
//! stores of all edges are compared with the API. Runs no containers: the edges keep their pods in memory.
//!
//! `FAULTS_SECONDS` is how long all of them take together, 28 unless told; floors are in proportion, and a slow machine
//! goes on until they are reached. `FAULTS_SEED` replays the choices of an earlier run; the interleaving is the machine's.

mod processes;
mod site;
mod slow;
mod store;
mod traffic;
mod wires;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kubeedge_examples::netns::Net;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

use crate::report::{Outcome, Report};
use site::Site;
use traffic::{Figures, Traffic};

const UP: &str = "faults::a_cloud_and_nodes_come_up_in_namespaces";
const CUT: &str = "faults::a_line_that_is_cut_loses_nothing";
const VANISHED: &str = "faults::packets_that_vanish_in_one_direction_are_noticed_and_lose_nothing";
const FLAPPING: &str = "faults::a_flapping_line_loses_nothing";
const LOSSY: &str = "faults::a_slow_line_that_loses_packets_loses_no_messages";
const FIRST_SYNC: &str = "faults::heartbeats_pass_a_first_sync_on_a_line_of_one_megabit";
const PAUSED: &str = "faults::stopped_processes_go_on_and_lose_nothing";
const KILLED: &str = "faults::killed_processes_lose_nothing";
const RESTARTED: &str = "faults::a_cloud_that_restarts_loses_nothing";
const STORES: &str = "faults::the_edges_stores_hold_what_the_api_has";
const DOWN: &str = "faults::nothing_is_left_on_the_machine";
const ALL: [&str; 9] = [CUT, VANISHED, FLAPPING, LOSSY, FIRST_SYNC, PAUSED, KILLED, RESTARTED, STORES];

/// Lines, with a node at the end of each.
const LINES: u8 = 2;
/// From everything mended to nodes that have everything: reconnecting waits up to 30 s after many failures.
const RECOVERED: Duration = Duration::from_secs(40);
/// Scenarios that take the time that they are given.
const SHARES: u32 = 7;
/// How long all of them take unless told.
const SHORT_SECONDS: u64 = 28;
/// The floors of a run of two minutes.
const FULL: Duration = Duration::from_secs(120);
const FULL_ACKNOWLEDGED: f64 = 10_000.0;
const FULL_FAULTS: f64 = 30.0;
/// On a slow machine faults go on for so many times their period, until the floors are reached.
const PATIENCE: u32 = 3;
/// A line in which packets vanish is found within this; then there is time to notice the log.
const HALF_OPEN: Duration = Duration::from_secs(25);
const NOTICED: Duration = Duration::from_secs(1);

/// What was asked for.
struct Plan {
    period: Duration,
    seed: u64,
}

impl Plan {
    fn from_environment() -> Result<Self> {
        let number = |name: &str| match std::env::var(name) {
            Ok(text) => text.parse::<u64>().map(Some).with_context(|| format!("{name}={text}: expected a number")),
            Err(_) => Ok(None),
        };
        let seconds = number("FAULTS_SECONDS")?.unwrap_or(SHORT_SECONDS);
        ensure!((14..=3600).contains(&seconds), "FAULTS_SECONDS={seconds}: expected 14 to 3600");
        let seed = number("FAULTS_SEED")?.unwrap_or_else(|| rand::rng().next_u64());
        Ok(Self { period: Duration::from_secs(seconds), seed })
    }

    /// The time of one scenario.
    fn share(&self) -> Duration {
        self.period / SHARES
    }

    /// Whether there is time for what takes half a minute.
    fn is_full(&self) -> bool {
        self.period >= FULL
    }

    fn floor(&self, of_two_minutes: f64) -> u64 {
        (of_two_minutes * self.period.as_secs_f64() / FULL.as_secs_f64()) as u64
    }
}

/// What scenarios share: the system, who writes, and the choices.
struct Trial {
    plan: Plan,
    site: Site,
    traffic: Traffic,
}

impl Trial {
    async fn begin(plan: Plan) -> Result<Self> {
        println!("     FAULTS_SEED={} FAULTS_SECONDS={}", plan.seed, plan.period.as_secs());
        let site = Site::up(LINES).await?;
        let traffic = Traffic::begin(&site, LINES).await?;
        Ok(Self { plan, site, traffic })
    }

    /// Everyone writes while `fault` does its worst; then everything is as it was acknowledged.
    async fn run(
        &mut self,
        who: u64,
        fault: impl AsyncFnOnce(&mut Site, &Figures, &mut Choices) -> Result<()>,
    ) -> Result<Outcome> {
        let before = self.traffic.figures.taken();
        let duplicated_before = self.traffic.figures.duplicated.get();
        let mut choices = Choices {
            random: StdRng::seed_from_u64(self.plan.seed.wrapping_add(who)),
            end: Instant::now() + self.plan.share(),
            full: self.plan.is_full(),
        };
        let worst = self.traffic.during(&mut self.site, async |site, figures| fault(site, figures, &mut choices).await);
        let worst = worst.await;
        for line in 0..LINES {
            self.site.net().mend(line)?;
        }
        worst?;
        let recovered = self.traffic.settle(&self.site, RECOVERED).await?;
        let [acknowledged, unanswered, shown, told, faults] = self.traffic.figures.since(before);
        let duplicated = self.traffic.figures.duplicated.get() - duplicated_before;
        println!(
            "     {acknowledged} writes acknowledged, {unanswered} without an answer, {shown} values shown at nodes, \
             {told} changes of pods told, {faults} faults; of {} objects none lost, duplicated {duplicated}, recovered \
             after {:.1} s",
            self.traffic.objects(),
            recovered.as_secs_f32()
        );
        ensure!(duplicated == 0, "a value came after a newer one");
        ensure!(faults > 0 && acknowledged > 0, "nothing was tried");
        Ok(Outcome::Proved)
    }

    /// More of it until the floors are reached, then every store against the API.
    async fn compare(&mut self) -> Result<Outcome> {
        let floors = (self.plan.floor(FULL_ACKNOWLEDGED), self.plan.floor(FULL_FAULTS));
        let reached = |traffic: &Traffic| {
            traffic.figures.acknowledged.get() >= floors.0 && traffic.figures.faults.get() >= floors.1
        };
        let latest = Instant::now() + self.plan.period * PATIENCE;
        while !reached(&self.traffic) && Instant::now() < latest {
            self.run(100, wires::flapping).await?;
        }
        let compared = self.traffic.compare(&mut self.site).await?;
        let figures = &self.traffic.figures;
        println!(
            "     in all {} writes acknowledged (floor {}), {} faults (floor {}), {compared} objects compared, \
             duplicated {}",
            figures.acknowledged.get(),
            floors.0,
            figures.faults.get(),
            floors.1,
            figures.duplicated.get()
        );
        ensure!(reached(&self.traffic), "too little was tried to prove anything");
        Ok(Outcome::Proved)
    }
}

/// What is random in a scenario, and when it ends.
struct Choices {
    random: StdRng,
    end: Instant,
    full: bool,
}

impl Choices {
    fn over(&self) -> bool {
        Instant::now() > self.end
    }

    /// Some time: `short` at most in a short run, `full` at most in a full one.
    fn pause(&mut self, short: Duration, full: Duration) -> Duration {
        let most = if self.full { full } else { short };
        most.mul_f64(self.random.random_range(0.1..1.0))
    }

    fn line(&mut self) -> u8 {
        self.random.random_range(0..LINES)
    }
}

pub(crate) async fn stage(report: &mut Report) {
    if !report.begins(&ALL) {
        return;
    }
    if let Err(why) = Net::up(1).map(drop) {
        for name in ALL {
            report.run(name, async { Ok(Outcome::Skipped(format!("no network namespaces here: {why:#}"))) }).await;
        }
        return;
    }
    let mut begun = None;
    // It is asked for with any of the others.
    report
        .always(UP, async {
            begun = Some(Trial::begin(Plan::from_environment()?).await?);
            Ok(Outcome::Proved)
        })
        .await;
    let Some(mut trial) = begun else { return };
    let limit = trial.plan.period * (PATIENCE + 1) + Duration::from_secs(240);
    report.run_within(CUT, limit, trial.run(1, wires::cut)).await;
    report.run_within(VANISHED, limit, trial.run(2, wires::vanished)).await;
    report.run_within(FLAPPING, limit, trial.run(3, wires::flapping)).await;
    report.run_within(LOSSY, limit, trial.run(4, wires::lossy)).await;
    report.run_within(FIRST_SYNC, limit, trial.run(5, slow::first_sync)).await;
    report.run_within(PAUSED, limit, trial.run(6, processes::paused)).await;
    report.run_within(KILLED, limit, trial.run(7, processes::killed)).await;
    report.run_within(RESTARTED, limit, trial.run(8, processes::restarted)).await;
    report.run_within(STORES, limit, trial.compare()).await;
    let keep = report.failed();
    report.always(DOWN, async { trial.site.close(keep).await.map(|()| Outcome::Proved) }).await;
}
