//! The run: a cloud, its nodes, and one phase after the other.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use kubeedge_actors::edgecontroller::upstream::REQUESTS_AT_ONCE;
use kubeedge_examples::{
    netns::{Inside, Net},
    scale::{Clouds, Fleet, Place, Tally, Workload, generator::Plan as Nodes},
};

use super::{figures, phases};

/// Nodes behind one address: a site.
const SITE: usize = 200;
/// Nodes of one generator.
const GENERATOR: usize = 2500;
/// The nodes that are there first, against which all of them are compared.
pub(super) const FEW: usize = 100;
/// For all nodes to have what they should have.
const STEADY: Duration = Duration::from_secs(600);
const TICK: Duration = Duration::from_millis(100);

/// What is asked for.
pub(super) struct Plan {
    pub(super) nodes: usize,
    pub(super) programs: PathBuf,
    pub(super) idle: Duration,
    pub(super) traffic: Duration,
}

/// What runs.
pub(super) struct Trial {
    pub(super) plan: Plan,
    pub(super) clouds: Clouds,
    pub(super) fleet: Fleet,
    pub(super) work: Workload,
    pub(super) net: Net,
    folder: PathBuf,
}

/// Measures everything and prints it.
pub(super) async fn run(plan: Plan) -> Result<()> {
    let load = std::fs::read_to_string("/proc/loadavg").context("read the load")?;
    let cores = std::thread::available_parallelism()?;
    println!("machine: {cores} cores, load before the start {}", load.split(' ').next().unwrap_or_default());
    let folder = tempfile::Builder::new().prefix("ke-scale").tempdir()?;
    let net = Net::up(1)?;
    let sites = u8::try_from(plan.nodes.div_ceil(SITE)).context("too many sites")?;
    let addresses = net.sites(0, sites)?;
    let inside = Inside::enter(&net.cloud())?;
    let place = Place {
        folder: folder.path().to_owned(),
        programs: plan.programs.clone(),
        addresses,
        node_limit: plan.nodes + 100,
    };
    let clouds = Clouds::start(place).await?;
    println!(
        "API server: the embedded one of cloudcore --standalone, a process of its own; of cloudcore it has at most \
         {REQUESTS_AT_ONCE} requests at a time, beside lists and watches"
    );
    println!("nodes: {} hollow ones behind {sites} addresses", plan.nodes);
    let fleet = Fleet::new(std::env::current_exe()?, Some(net.edge(0)));
    let work = Workload::new(clouds.client());
    let mut trial = Trial { plan, clouds, fleet, work, net, folder: folder.path().to_owned() };
    let done = phases::all(&mut trial).await;
    let Trial { clouds, fleet, net, .. } = trial;
    let stopped = async {
        fleet.stop().await?;
        clouds.stop().await
    };
    let stopped = stopped.await;
    drop(inside);
    let left = net.close();
    match &done {
        Ok(rows) => figures::print(rows),
        Err(_) => println!("logs are kept in {}", folder.keep().display()),
    }
    done.map(drop)?;
    stopped?;
    let left = left?;
    ensure!(left.is_empty(), "left on this machine: {left:?}");
    Ok(())
}

impl Trial {
    /// Starts generators of these nodes; their stores are in memory.
    pub(super) fn start_nodes(&mut self, nodes: std::ops::Range<usize>) -> Result<()> {
        self.start(nodes, None)
    }

    /// Ends all nodes and starts this one, whose store is on disk.
    pub(super) async fn only_node(&mut self, node: usize) -> Result<()> {
        let next = self.fleet.none_yet();
        std::mem::replace(&mut self.fleet, next).stop().await?;
        self.start(node..node + 1, Some(self.folder.join("stores")))
    }

    fn start(&mut self, nodes: std::ops::Range<usize>, stores: Option<PathBuf>) -> Result<()> {
        for first in nodes.clone().step_by(GENERATOR) {
            let log = self.folder.join(format!("nodes-{}.log", self.fleet.processes()));
            let count = GENERATOR.min(nodes.end - first);
            let (links, authority, stores) = (self.clouds.links(), self.clouds.authority(), stores.clone());
            self.fleet.start(&Nodes { first, count, links, authority, stores }, &log)?;
        }
        Ok(())
    }

    /// Waits until each of these nodes holds this object with this stamp.
    pub(super) async fn held(&mut self, stamps: &[(String, String, u64)]) -> Result<()> {
        let began = Instant::now();
        loop {
            let held = self.fleet.held().await?;
            let of = |node: &str, object: &str| held.get(node).and_then(|held| held.get(object));
            let Some((node, object, stamp)) =
                stamps.iter().find(|(node, object, stamp)| of(node, object) != Some(stamp))
            else {
                return Ok(());
            };
            ensure!(
                began.elapsed() < STEADY,
                "within {STEADY:?}: {node} holds {:?} of {object}, expected {stamp}",
                of(node, object)
            );
            tokio::time::sleep(TICK).await;
        }
    }

    /// Waits until what all nodes have counted is so; the time and that tally.
    pub(super) async fn until(&mut self, what: &str, so: impl Fn(&Tally) -> bool) -> Result<(Duration, Tally)> {
        let began = Instant::now();
        loop {
            let tally = self.fleet.tally().await?;
            if so(&tally) {
                return Ok((began.elapsed(), tally));
            }
            if began.elapsed() > STEADY {
                let Tally { started, connected, ready, held, failed, .. } = tally;
                bail!(
                    "within {STEADY:?}: expected that {what}; {started} started, {connected} connected, {ready} ready, \
                     {held} objects held, {failed} registrations failed; cloudcore: {}",
                    self.clouds.cloud()?.log_tail()
                );
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Waits until every pod is reported as running.
    pub(super) async fn all_run(&self) -> Result<()> {
        let began = Instant::now();
        while phases::some_wait(self.clouds.client()).await? {
            ensure!(began.elapsed() < STEADY, "within {STEADY:?}: expected that all pods run");
            tokio::time::sleep(TICK * 5).await;
        }
        Ok(())
    }
}
