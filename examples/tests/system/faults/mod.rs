//! Faults between real processes: cloudcore and edgecores in network namespaces of their own, under a stream of changes.
//!
//! Each scenario breaks something in its way for some seconds while everyone writes; then everything is mended, and
//! within [`RECOVERED`] every node has to have what was acknowledged and the API has to know of it. At the end the
//! stores of all edges are compared with the API. The edges keep their pods in memory; one more has real containers.
//!
//! A seventh of `FAULTS_SECONDS`, 21 unless told, is how long each goes on that has no length of its own; floors are in
//! proportion, and a slow machine goes on until they are reached; each scenario has to reach a quarter of an equal
//! part by itself. `FAULTS_SEED` replays the choices of an earlier run; the
//! interleaving is the machine's.

mod containers;
mod disk;
mod processes;
mod site;
mod slow;
mod store;
mod traffic;
mod trust;
mod wires;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kubeedge_examples::{containerd::Tools, netns::Net};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

use crate::report::{self, Outcome, Report};
use containers::{Containers, REAL};
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
const POWER: &str = "faults::a_box_that_loses_its_power_loses_nothing_acknowledged";
const FULL_DISK: &str = "faults::an_edge_whose_disk_is_full_catches_up_by_itself";
const FAILED_DISK: &str = "faults::an_edge_whose_disk_fails_catches_up_when_it_is_mended";
const IN_1970: &str = "faults::a_box_that_boots_in_1970_is_a_node_as_others_are";
const EXPIRED: &str = "faults::certificates_that_end_while_nodes_are_offline_are_renewed_when_they_are_back";
const ROTATED: &str = "faults::certificates_are_renewed_while_state_flows_and_sessions_stand";
const ROLLED_OVER: &str = "faults::a_new_authority_takes_over_under_traffic";
const OLD_GONE: &str = "faults::the_old_authority_is_trusted_no_more_and_nobody_notices";
const CONTAINERS: &str = "faults::real_containers_run_on_behind_a_line_that_breaks";
const STORES: &str = "faults::the_edges_stores_hold_what_the_api_has";
const DOWN: &str = "faults::nothing_is_left_on_the_machine";
const ALL: [&str; 18] = [
    CUT,
    VANISHED,
    FLAPPING,
    LOSSY,
    FIRST_SYNC,
    PAUSED,
    KILLED,
    RESTARTED,
    POWER,
    FULL_DISK,
    FAILED_DISK,
    IN_1970,
    EXPIRED,
    ROTATED,
    ROLLED_OVER,
    OLD_GONE,
    CONTAINERS,
    STORES,
];

/// Lines, with a node at the end of each.
const LINES: u8 = 2;
/// From everything mended to nodes that have everything: reconnecting waits up to 30 s after many failures.
const RECOVERED: Duration = Duration::from_secs(40);
/// Scenarios that take the time that they are given.
const SHARES: u32 = 7;
/// All in which something is tried.
const TRIED: u64 = ALL.len() as u64 - 1;
/// How long all of them take unless told.
const SHORT_SECONDS: u64 = 21;
/// The floors of a run of two minutes.
const FULL: Duration = Duration::from_secs(120);
const FULL_ACKNOWLEDGED: f64 = 10_000.0;
const FULL_FAULTS: f64 = 30.0;
/// On a slow machine faults go on for so many times their period, until the floors are reached.
const PATIENCE: u32 = 3;
/// A line in which packets vanish is found within this (`P-HALF-OPEN`); who misses it is waited for a little longer, so
/// that it is told by how much.
const HALF_OPEN: Duration = Duration::from_secs(25);
const SLACK: Duration = Duration::from_secs(10);

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

    /// The writes of one scenario: a quarter of an equal part, since the API is away in some.
    fn floor_of_one(&self) -> u64 {
        self.floor(FULL_ACKNOWLEDGED) / TRIED / 4
    }
}

/// What one of the scenarios is, beside what it does.
struct Scenario {
    /// Its choices are its own.
    number: u64,
    /// Faults, at least, in a short run and in a full one.
    faults: [u64; 2],
    /// It is done again when a slow machine has not reached the floors.
    again: bool,
    /// Whose edgecore may refuse events, and says that it does.
    refuses: Option<u8>,
}

impl Scenario {
    const fn new(number: u64, faults: [u64; 2]) -> Self {
        Self { number, faults, again: true, refuses: None }
    }

    /// Of what cannot be done twice.
    const fn once(number: u64) -> Self {
        Self { number, faults: [1, 1], again: false, refuses: None }
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
        let site = Site::up(LINES, disk::LINE).await?;
        let traffic = Traffic::begin(&site, LINES).await?;
        Ok(Self { plan, site, traffic })
    }

    /// Everyone writes while `fault` does its worst; then everything is as it was acknowledged.
    async fn run(
        &mut self,
        scenario: Scenario,
        fault: impl AsyncFn(&mut Site, &Figures, &mut Choices) -> Result<()>,
    ) -> Result<Outcome> {
        let (before, starts, made) = (self.traffic.figures.taken(), self.site.starts(), self.traffic.made());
        let duplicated_before = self.traffic.figures.duplicated.get();
        let mut choices = Choices {
            random: StdRng::seed_from_u64(self.plan.seed.wrapping_add(scenario.number)),
            end: Instant::now() + self.plan.share(),
            full: self.plan.is_full(),
        };
        let floors = (self.plan.floor_of_one(), scenario.faults[usize::from(self.plan.is_full())]);
        let latest = Instant::now() + self.plan.share() * PATIENCE;
        loop {
            let worst = async |site: &mut Site, figures: &Figures| fault(site, figures, &mut choices).await;
            let worst = self.traffic.during(&mut self.site, worst).await;
            for line in 0..self.site.net().lines() {
                self.site.net().mend(line)?;
            }
            worst?;
            let [acknowledged, .., faults] = self.traffic.figures.since(before);
            let reached = acknowledged >= floors.0 && faults >= floors.1;
            if reached || !scenario.again || Instant::now() > latest {
                break;
            }
            choices.end = Instant::now() + self.plan.share();
        }
        let recovered = self.traffic.settle(&self.site, RECOVERED).await?;
        let [acknowledged, unanswered, shown, told, faults] = self.traffic.figures.since(before);
        let duplicated = self.traffic.figures.duplicated.get() - duplicated_before;
        let ran_on = |line: &u8| starts.get(line) == self.site.starts().get(line) && scenario.refuses != Some(*line);
        let ran_on: Vec<u8> = starts.keys().copied().filter(ran_on).collect();
        let events = self.traffic.told_once(&ran_on, &made, RECOVERED).await?;
        println!(
            "     {acknowledged} writes acknowledged (floor {}), {unanswered} without an answer, {shown} values shown at \
             nodes, {told} changes of pods told, {events} events told once, {faults} faults (floor {}); of {} objects none \
             lost, went back {duplicated}, recovered after {:.1} s",
            floors.0,
            floors.1,
            self.traffic.objects(),
            recovered.as_secs_f32()
        );
        ensure!(duplicated == 0, "a value came after a newer one");
        ensure!(faults >= floors.1 && acknowledged >= floors.0, "too little was tried to prove anything");
        Ok(Outcome::Proved)
    }

    /// The same for what takes a disk of its own.
    async fn run_disk(
        &mut self,
        scenario: Scenario,
        fault: impl AsyncFn(&mut Site, &Figures, &mut Choices) -> Result<()>,
    ) -> Result<Outcome> {
        match self.site.disk(disk::LINE) {
            Some(_) => self.run(Scenario { refuses: Some(disk::LINE), ..scenario }, fault).await,
            None => Ok(Outcome::Skipped("it takes root, loop devices, mkfs.ext4 and python3".to_owned())),
        }
    }

    async fn run_in_1970(&mut self) -> Result<Outcome> {
        match trust::faketime() {
            Ok(_) => self.run(Scenario::new(12, [1, 2]), trust::in_1970).await,
            Err(why) => report::missing(format!("{why:#}")),
        }
    }

    /// What trusts the new authority alone goes on.
    async fn run_without_old(&mut self) -> Result<Outcome> {
        trust::end_rollover(&mut self.site).await?;
        self.traffic.set_client(self.site.client()?);
        self.run(Scenario::new(16, [1, 3]), processes::killed).await
    }

    /// A node with real containers comes, has its part, and goes.
    async fn run_real(&mut self, tools: Tools) -> Result<Outcome> {
        let folder = self.site.folder().to_owned();
        let begun = self.site.outside(Containers::begin(tools, &folder)).await?;
        self.site.set_containers(Some(begun));
        self.site.join(REAL).await?;
        self.site.spawn(site::Who::Edge(REAL))?;
        self.site.node_ready(REAL, RECOVERED).await?;
        self.traffic.add(&self.site, REAL).await?;
        self.traffic.settle(&self.site, RECOVERED).await?;
        self.run(Scenario::new(17, [1, 2]), containers::broken).await?;
        // Stopped, its store is compared as the others' are at the end; its containers run on meanwhile.
        let compared = self.traffic.compare_one(&mut self.site, REAL).await?;
        println!("     {compared} objects compared with the store of {}", site::node(REAL));
        self.site.spawn(site::Who::Edge(REAL))?;
        self.site.node_ready(REAL, RECOVERED).await?;
        self.traffic.settle(&self.site, RECOVERED).await?;
        self.traffic.sees(&self.site, REAL).await?;
        self.traffic.remove(REAL, RECOVERED).await?;
        self.site.stop(site::Who::Edge(REAL)).await?;
        if let Some(containers) = self.site.set_containers(None) {
            self.site.outside(containers.close()).await?;
        }
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
            self.run(Scenario::new(100, [1, 2]), wires::flapping).await?;
        }
        let compared = self.traffic.compare(&mut self.site).await?;
        let figures = &self.traffic.figures;
        println!(
            "     in all {} writes acknowledged (floor {}), {} faults (floor {}), {compared} objects compared, went back {}",
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

pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    if !report.begins(&ALL) {
        return;
    }
    if let Err(why) = Net::up(1).map(drop) {
        for name in ALL {
            let why = format!("no network namespaces here: {why:#}");
            report.run(name, async { report::missing(why) }).await;
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
    report.run_within(CUT, limit, trial.run(Scenario::new(1, [2, 4]), wires::cut)).await;
    report.run_within(VANISHED, limit, trial.run(Scenario::new(2, [4, 4]), wires::vanished)).await;
    report.run_within(FLAPPING, limit, trial.run(Scenario::new(3, [1, 2]), wires::flapping)).await;
    report.run_within(LOSSY, limit, trial.run(Scenario::new(4, [2, 2]), wires::lossy)).await;
    report.run_within(FIRST_SYNC, limit, trial.run(Scenario::once(5), slow::first_sync)).await;
    report.run_within(PAUSED, limit, trial.run(Scenario::new(6, [1, 3]), processes::paused)).await;
    report.run_within(KILLED, limit, trial.run(Scenario::new(7, [1, 3]), processes::killed)).await;
    report.run_within(RESTARTED, limit, trial.run(Scenario::new(8, [1, 3]), processes::restarted)).await;
    report.run_within(POWER, limit, trial.run_disk(Scenario::new(9, [1, 2]), disk::power)).await;
    report.run_within(FULL_DISK, limit, trial.run_disk(Scenario::new(10, [1, 1]), disk::full)).await;
    report.run_within(FAILED_DISK, limit, trial.run_disk(Scenario::new(11, [1, 1]), disk::failing)).await;
    report.run_within(IN_1970, limit, trial.run_in_1970()).await;
    report.run_within(EXPIRED, limit, trial.run(Scenario::new(13, [1, 2]), trust::expired)).await;
    report.run_within(ROTATED, limit, trial.run(Scenario::new(14, [1, 2]), trust::rotated)).await;
    report.run_within(ROLLED_OVER, limit, trial.run(Scenario::once(15), trust::rolled_over)).await;
    report.run_within(OLD_GONE, limit, trial.run_without_old()).await;
    if let Some(tools) = report.tools(tools, &[CONTAINERS]) {
        report.run_within(CONTAINERS, limit, trial.run_real(tools)).await;
    }
    report.run_within(STORES, limit, trial.compare()).await;
    let keep = report.failed();
    report.always(DOWN, async { trial.site.close(keep).await.map(|()| Outcome::Proved) }).await;
}
