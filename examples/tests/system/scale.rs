//! Two hundred hollow nodes and one cloudcore: the short form of `make scale`, which holds the logic and no figures.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{ObjectMeta, PostParams},
};
use kubeedge_examples::scale::{
    Clouds, Fleet, Place, Tally, Workload,
    generator::{Plan, node_name},
    workload::{PODS, SETTINGS, config_name},
};
use tempfile::TempDir;

use crate::{
    cluster::TICK,
    report::{Outcome, Report},
};

const UP: &str = "scale::hollow_nodes_connect_and_hold_what_they_should";
const CHANGE: &str = "scale::a_change_reaches_the_nodes_that_it_concerns_and_no_other";
const RESTART: &str = "scale::a_cloud_that_restarts_under_its_nodes_gets_all_of_them_back_and_loses_nothing";
const DISTURBED: &str = "scale::heartbeats_pass_others_first_syncs_and_shared_changes";
const DOWN: &str = "scale::everything_ends_in_order";
const ALL: [&str; 3] = [CHANGE, RESTART, DISTURBED];

const NODES: usize = 200;
/// Objects that change, one node each; and the nodes that all need one more.
const CHANGED: usize = 20;
const INTERESTED: usize = 15;
const SHARED: &str = "shared";
/// Nodes that come for the first time, one after the other, and what each of them gets: ConfigMaps, so many in a pod.
const LATE: usize = 8;
const FIRST_SYNC: usize = 300;
const IN_A_POD: usize = 60;
/// ConfigMaps that change meanwhile, each at so many nodes.
const BUSY: usize = 50;
const BUSY_AT: usize = 15;
/// The most that a heartbeat of 99 in 100 nodes takes meanwhile, of this build on two shared cores; `make scale` has the
/// figure of a release.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// What takes longer is a failure.
const LIMIT: Duration = Duration::from_secs(90);

/// What runs.
struct Trial {
    clouds: Clouds,
    fleet: Fleet,
    work: Workload,
    folder: TempDir,
    plan: Plan,
}

pub(crate) async fn stage(report: &mut Report) {
    if !report.begins(&ALL) {
        return;
    }
    let mut begun = None;
    // It is asked for with any of the others.
    report
        .always(UP, async {
            begun = Some(Trial::begin().await?);
            Ok(Outcome::Proved)
        })
        .await;
    let Some(mut trial) = begun else { return };
    report.run(CHANGE, trial.change()).await;
    report.run(RESTART, trial.restart()).await;
    report.run(DISTURBED, trial.disturbed()).await;
    let keep = report.failed();
    report.always(DOWN, trial.end(keep)).await;
}

impl Trial {
    async fn begin() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ke").tempdir()?;
        let program = Path::new(env!("CARGO_BIN_EXE_scale"));
        let place = Place {
            folder: folder.path().to_owned(),
            programs: program.parent().context("a program is in a folder")?.to_owned(),
            addresses: vec![std::net::Ipv4Addr::LOCALHOST],
            node_limit: NODES + LATE,
        };
        let clouds = Clouds::start(place).await?;
        let mut fleet = Fleet::new(program.to_owned(), None);
        let plan = Plan { first: 0, count: NODES, links: clouds.links(), authority: clouds.authority(), stores: None };
        fleet.start(&plan, &folder.path().join("nodes.log"))?;
        let work = Workload::new(clouds.client());
        let mut trial = Self { clouds, fleet, work, folder, plan };
        trial.until("all nodes are ready", |tally| tally.ready == NODES as u64).await?;
        trial.work.create(0..NODES).await?;
        trial.until("all objects are held", |tally| tally.held == (NODES * PODS * 2) as u64).await?;
        Ok(trial)
    }

    /// Single changes, then one of an object that several nodes need.
    async fn change(&mut self) -> Result<Outcome> {
        let before = self.fleet.tally().await?.configs_applied;
        for number in 0..CHANGED {
            self.work.change(&config_name(number * 7, number % PODS)).await?;
        }
        let expected = before + CHANGED as u64;
        self.until("the changes are applied", |tally| tally.configs_applied >= expected).await?;

        self.work.create_configs(std::iter::once(SHARED.to_owned()), SETTINGS).await?;
        for node in 0..INTERESTED {
            self.work.create_pod(&format!("{SHARED}-{node}"), node, std::iter::once(SHARED)).await?;
        }
        let shared = expected + INTERESTED as u64;
        self.until("the shared object is held", |tally| tally.configs_applied >= shared).await?;
        self.work.change(SHARED).await?;
        let changed = shared + INTERESTED as u64;
        let tally = self.until("its change is applied", |tally| tally.configs_applied >= changed).await?;
        let applied = tally.configs_applied;
        ensure!(applied == changed, "{} more nodes than it concerns got a change", applied - changed);
        Ok(Outcome::Proved)
    }

    /// cloudcore dies; what changes while it is away, and what does not, is at every node afterwards.
    async fn restart(&mut self) -> Result<Outcome> {
        let before = self.fleet.tally().await?;
        let held = self.fleet.held().await?;
        self.clouds.kill().await?;
        self.until("the nodes have noticed", |tally| tally.connected == 0).await?;
        let mut expected = held;
        for number in 0..CHANGED {
            let node = number * 9;
            let name = config_name(node, 1);
            let stamp = self.work.change(&name).await?;
            let objects = expected.get_mut(&node_name(node)).context("every node holds something")?;
            objects.insert(format!("configmaps/default/{name}"), stamp);
        }
        let began = Instant::now();
        self.clouds.resume().await?;
        let back = self.until("all nodes are back", |tally| tally.ready == NODES as u64).await?;
        println!("     {NODES} nodes back after {:.1} s", began.elapsed().as_secs_f32());
        let news = before.configs_applied + CHANGED as u64;
        let after = self.until("what was missed is applied", |tally| tally.configs_applied >= news).await?;
        ensure!(after.configs_applied == news, "{} objects came that nobody had changed", after.configs_applied - news);
        let links = back.connections - before.connections;
        ensure!(links == NODES as u64, "{links} links for {NODES} nodes: some ended again");
        ensure!(self.fleet.held().await? == expected, "the nodes hold something else than what was written");
        Ok(Outcome::Proved)
    }

    /// Nodes come for the first time and get much, one after the other, while what others share changes all the time: that
    /// delays no other node's heartbeat (`P-HEARTBEAT-ALONE`).
    async fn disturbed(&mut self) -> Result<Outcome> {
        let busy = |number: usize| format!("busy-{number}");
        let groups = 5;
        let before = self.fleet.tally().await?;
        self.work.create_configs((0..BUSY).map(busy), SETTINGS).await?;
        for node in 0..groups * BUSY_AT {
            let configs: Vec<String> = (node % groups..BUSY).step_by(groups).map(busy).collect();
            self.work.create_pod(&format!("busy-{node}"), node, configs.iter().map(String::as_str)).await?;
        }
        let held = before.configs_applied + (BUSY * BUSY_AT) as u64;
        self.until("the shared objects are held", |tally| tally.configs_applied >= held).await?;

        let much = |number: usize| format!("much-{number}");
        self.work.create_configs((0..FIRST_SYNC).map(much), SETTINGS).await?;
        let configs: Vec<String> = (0..FIRST_SYNC).map(much).collect();
        for node in NODES..NODES + LATE {
            let metadata = ObjectMeta { name: Some(node_name(node)), ..ObjectMeta::default() };
            let made = Node { metadata, ..Node::default() };
            Api::<Node>::all(self.clouds.client().clone()).create(&PostParams::default(), &made).await?;
            for (part, configs) in configs.chunks(IN_A_POD).enumerate() {
                let name = format!("much-{node}-{part}");
                self.work.create_pod(&name, node, configs.iter().map(String::as_str)).await?;
            }
        }

        // Until most nodes have told a heartbeat, somebody syncs and something changes.
        let links = self.fleet.take_latencies().await?.connections;
        let mut late = Fleet::new(env!("CARGO_BIN_EXE_scale").into(), None);
        let (began, mut come, mut changes) = (Instant::now(), 0, 0);
        let after = loop {
            let each = (FIRST_SYNC + FIRST_SYNC / IN_A_POD) as u64;
            if come < LATE && late.tally().await?.held == come as u64 * each {
                let plan = Plan { first: NODES + come, count: 1, ..self.plan.clone() };
                late.start(&plan, &self.folder.path().join(format!("late-{come}.log")))?;
                come += 1;
            }
            self.work.change_all((0..BUSY).map(busy)).await?;
            changes += BUSY;
            let (tally, of_late) = (self.fleet.tally().await?, late.tally().await?);
            if tally.heartbeats.count() >= (NODES * 3 / 4) as u64 && of_late.held == come as u64 * each {
                break tally;
            }
            ensure!(began.elapsed() < LIMIT, "{come} nodes came: {of_late:?}; the others: {tally:?}");
        };
        let quantile = |part| after.heartbeats.quantile(part).context("no heartbeat was counted");
        let (median, p99) = (quantile(0.5)?, quantile(0.99)?);
        println!(
            "     {} heartbeats while {come} nodes got {FIRST_SYNC} objects each and {changes} changes went to {BUSY_AT} \
             nodes each, in {:.1} s: median {:.0} ms, p99 {:.0} ms",
            after.heartbeats.count(),
            began.elapsed().as_secs_f32(),
            median.as_secs_f64() * 1e3,
            p99.as_secs_f64() * 1e3
        );
        late.stop().await?;
        ensure!(after.connections == links, "links ended meanwhile");
        ensure!(come > 1, "nobody came for the first time");
        ensure!(p99 < HEARTBEAT, "heartbeats wait for what others get: {p99:?}");
        Ok(Outcome::Proved)
    }

    async fn until(&mut self, what: &str, so: impl Fn(&Tally) -> bool) -> Result<Tally> {
        let began = Instant::now();
        loop {
            let tally = self.fleet.tally().await?;
            if so(&tally) {
                return Ok(tally);
            }
            if began.elapsed() > LIMIT {
                bail!("within {LIMIT:?}: expected that {what}; {tally:?}; {}", self.clouds.cloud()?.log_tail());
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Stops everything. The folder stays if `keep`, and is told.
    async fn end(self, keep: bool) -> Result<Outcome> {
        let Self { clouds, fleet, folder, .. } = self;
        let ended = fleet.stop().await.and(clouds.stop().await);
        if keep || ended.is_err() {
            println!("     logs are kept in {}", folder.keep().display());
        }
        ended.map(|()| Outcome::Proved)
    }
}
