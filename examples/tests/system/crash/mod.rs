//! Both programs are killed at random under a stream of changes, and nothing that was acknowledged is lost.
//!
//! Writers change ConfigMaps and Secrets, which pods show as pages, and make, change and delete pods. Each has a
//! [`Ledger`](kubeedge_examples::ledger::Ledger) for every object. Meanwhile cloudcore and edgecore are killed with
//! SIGKILL and started again, also while they start. After a write without an answer the writer reads what is there;
//! at the end everything is read, at the API, through the pods and in the container runtime.
//!
//! `CRASH_SECONDS` is how long it goes on, 24 unless told; the floors are in proportion, and a slow machine takes longer. `CRASH_SEED` replays the
//! choices of an earlier run: who is killed and when, what is written in which order. The interleaving is the machine's.

mod writers;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::{join_all, try_join_all};
use kube::{Api, Client};
use kubeedge_examples::{
    containerd::Tools,
    lab::{Container, Lab},
    leftovers::mounts_below,
};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

use crate::{
    cluster::{
        NAMESPACE, apply, container, delete, gone, node_ready, nothing_left, one_sandbox, page_becomes, pods, poll,
        restarts, running, uid,
    },
    pods::{serving, up},
    report::{Outcome, Report},
    shims::end_lost_shims,
};
use writers::{Maps, Pods, Secrets, Writer};

const UP: &str = "crash::a_lab_comes_up";
const DOWN: &str = "crash::nothing_is_left_on_the_machine";
const KILLS: &str = "crash::nothing_acknowledged_is_lost_and_nothing_is_left_over";
const ALL: [&str; 1] = [KILLS];

/// The floors of a run of two minutes.
const FULL: Duration = Duration::from_secs(120);
const FULL_ACKNOWLEDGED: f64 = 10_000.0;
const FULL_KILLS: f64 = 30.0;
/// Of the writes: pods that were made, changed or deleted.
const FULL_POD_WRITES: f64 = 200.0;
/// How long it goes on unless told: each program is killed several times.
const SHORT_SECONDS: u64 = 24;
/// For what comes after: both programs start, the edge catches up, everything is looked at and taken away.
const AFTER: Duration = Duration::from_secs(240);

/// On a slow machine it goes on for up to so many times its period, until the floors are reached.
const PATIENCE: u32 = 4;

/// Pods that show what the edge has of ConfigMaps and Secrets.
const READERS: usize = 2;
/// Writers of ConfigMaps and of Secrets, each with one object that a reader shows and others that no pod uses.
const MAP_WRITERS: usize = 8;
const SECRET_WRITERS: usize = 4;
/// Writers of pods, each with one pod at a time.
const POD_WRITERS: usize = 3;
/// Writes a second that all writers of ConfigMaps and Secrets aim at; what an outage cost is caught up.
const RATE: f64 = 150.0;

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
        let seconds = number("CRASH_SECONDS")?.unwrap_or(SHORT_SECONDS);
        ensure!((10..=3600).contains(&seconds), "CRASH_SECONDS={seconds}: expected 10 to 3600");
        let seed = number("CRASH_SEED")?.unwrap_or_else(|| rand::rng().next_u64());
        Ok(Self { period: Duration::from_secs(seconds), seed })
    }

    /// A stream of choices of its own for each who chooses.
    fn choices(&self, who: usize) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_add(who as u64))
    }

    fn floor(&self, of_two_minutes: f64) -> u64 {
        (of_two_minutes * self.period.as_secs_f64() / FULL.as_secs_f64()) as u64
    }
}

pub(crate) async fn stage(report: &mut Report, tools: &Result<Tools>) {
    if !report.begins(&ALL) {
        return;
    }
    let Some(tools) = report.tools(tools, &ALL) else { return };
    let Some((mut lab, folder)) = report.lab(UP, async |lab| up(lab, tools).await).await else { return };
    let plan = Plan::from_environment();
    let limit = plan.as_ref().map_or(AFTER, |plan| plan.period * PATIENCE + AFTER);
    report.run_within(KILLS, limit, async { kills(&mut lab, plan?).await }).await;
    report.close(DOWN, lab, folder, Ok(())).await;
}

async fn kills(lab: &mut Lab, plan: Plan) -> Result<Outcome> {
    println!("     CRASH_SEED={} CRASH_SECONDS={}", plan.seed, plan.period.as_secs());
    let client = lab.client()?;
    let mounts = mounts_below(lab.folder())?;
    let mut writers = writers(lab, &client, &plan)?;
    try_join_all(writers.iter_mut().map(Writer::begin)).await?;
    let readers = lab.guarded(async |lab| Readers::start(lab, &client).await).await?;

    let goal = Goal::of(&plan);
    let pace = Duration::from_secs_f64((MAP_WRITERS + SECRET_WRITERS) as f64 / RATE);
    // All of them end, also when one fails: what is left over is told as well.
    let writing = join_all(writers.iter_mut().map(|writer| writer.write_until(&goal, pace)));
    let (killed, wrote) = futures_util::join!(kill_until(lab, &goal, plan.choices(0)), writing);
    killed?;
    wrote.into_iter().collect::<Result<Vec<()>>>()?;

    let wrote_for = goal.began.elapsed();
    let began = Instant::now();
    let said = lab
        .guarded(async |lab| {
            node_ready(&client).await?;
            try_join_all(writers.iter_mut().map(Writer::settle)).await?;
            readers.show(lab, &client, &writers).await?;
            let settled = began.elapsed();
            let said = pods_are_as_wanted(lab, &client, &writers, &readers).await?;
            Ok(format!("{said}; the edge had caught up after {:.1} s", settled.as_secs_f32()))
        })
        .await?;

    let unanswered: u64 = writers.iter().map(Writer::unanswered).sum();
    let (acknowledged, cloud, edge) = (goal.acknowledged.get(), goal.killed_cloud.get(), goal.killed_edge.get());
    println!(
        "     {acknowledged} writes acknowledged, {} of them of pods, {unanswered} without an answer, in {:.0} s; \
         {cloud} kills of cloudcore, {edge} of edgecore; {said}",
        goal.pods_acknowledged.get(),
        wrote_for.as_secs_f32()
    );
    lab.guarded(async |lab| all_goes_away(lab, &client, &writers, &readers, &mounts).await).await?;

    let floors = (goal.writes, goal.pod_writes, goal.kills);
    ensure!(goal.reached(), "too little was tried to prove anything: expected {floors:?} writes, of pods, and kills");
    Ok(Outcome::Proved)
}

fn writers(lab: &Lab, client: &Client, plan: &Plan) -> Result<Vec<Writer>> {
    let image = lab.busybox()?;
    // The first stream of choices is the killer's.
    let mut who = 1..;
    let mut choices = || plan.choices(who.next().unwrap_or_default());
    let mut all = Vec::new();
    for n in 0..MAP_WRITERS {
        all.push(Writer::of_objects(Rc::new(Maps(client.clone())), format!("map-{n}"), choices()));
    }
    for n in 0..SECRET_WRITERS {
        all.push(Writer::of_objects(Rc::new(Secrets(client.clone())), format!("key-{n}"), choices()));
    }
    for n in 0..POD_WRITERS {
        let pods = Pods { client: client.clone(), image: image.clone() };
        all.push(Writer::of_pods(pods, format!("brief-{n}"), choices()));
    }
    Ok(all)
}

/// When it is over: after its time, or later on a slow machine, when the floors are reached.
pub(super) struct Goal {
    began: Instant,
    end: Instant,
    /// Later than that nobody waits for the floors.
    latest: Instant,
    writes: u64,
    pod_writes: u64,
    kills: u64,
    acknowledged: Cell<u64>,
    pods_acknowledged: Cell<u64>,
    killed_cloud: Cell<u64>,
    killed_edge: Cell<u64>,
}

impl Goal {
    fn of(plan: &Plan) -> Self {
        let now = Instant::now();
        Self {
            began: now,
            end: now + plan.period,
            latest: now + plan.period * PATIENCE,
            writes: plan.floor(FULL_ACKNOWLEDGED),
            pod_writes: plan.floor(FULL_POD_WRITES),
            kills: plan.floor(FULL_KILLS),
            acknowledged: Cell::default(),
            pods_acknowledged: Cell::default(),
            killed_cloud: Cell::default(),
            killed_edge: Cell::default(),
        }
    }

    fn reached(&self) -> bool {
        let (cloud, edge) = (self.killed_cloud.get(), self.killed_edge.get());
        let written = self.acknowledged.get() >= self.writes && self.pods_acknowledged.get() >= self.pod_writes;
        written && cloud + edge >= self.kills && cloud.min(edge) > 0
    }

    /// Its time is over and it was killed enough.
    fn only_writes_lack(&self) -> bool {
        let (cloud, edge) = (self.killed_cloud.get(), self.killed_edge.get());
        Instant::now() > self.end && cloud + edge >= self.kills && cloud.min(edge) > 0
    }

    /// Whether it ends this much later.
    fn over_in(&self, ahead: Duration) -> bool {
        let then = Instant::now() + ahead;
        then > self.latest || (then > self.end && self.reached())
    }

    fn over(&self) -> bool {
        self.over_in(Duration::ZERO)
    }

    fn count(&self) {
        bump(&self.acknowledged);
    }

    fn count_pod(&self) {
        self.count();
        bump(&self.pods_acknowledged);
    }
}

fn bump(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// Kills one of the programs or both, again and again; starts them soon after and does not wait until they work.
async fn kill_until(lab: &mut Lab, goal: &Goal, mut choices: StdRng) -> Result<()> {
    loop {
        // Mostly there is time to work in between; now and then it strikes a program that is still starting.
        // On a slow machine the kills are many before the writes are: then the writers get time to work.
        let millis = match choices.random_ratio(1, 4) {
            _ if goal.only_writes_lack() => 8000..16_000,
            true => 50..700,
            false => 1500..4000,
        };
        let pause = Duration::from_millis(choices.random_range(millis));
        let (who, down) = (choices.random_range(0..5_u8), Duration::from_millis(choices.random_range(0..400)));
        if goal.over_in(pause) {
            break;
        }
        tokio::time::sleep(pause).await;
        let (cloud, edge) = (who != 0 && who != 1, who != 2 && who != 3);
        if cloud {
            lab.kill_cloud().await?;
            bump(&goal.killed_cloud);
        }
        if edge {
            lab.kill_edge().await?;
            bump(&goal.killed_edge);
        }
        tokio::time::sleep(down).await;
        if cloud {
            lab.spawn_cloud()?;
        }
        if edge {
            lab.start_edge()?;
        }
    }
    lab.cloud_answers().await
}

/// Pods that serve, from one volume each, what they see of the writers' objects. They live through all of it.
struct Readers(Vec<Reader>);

struct Reader {
    name: String,
    uid: String,
    sandbox: String,
    container: Container,
}

impl Readers {
    async fn start(lab: &Lab, client: &Client) -> Result<Self> {
        let mut readers = Vec::new();
        for n in 0..READERS {
            let name = format!("reader-{n}");
            let maps = (0..MAP_WRITERS).map(|n| format!("configMap: {{name: map-{n}-0, {}}}", item("map", n)));
            let secrets = (0..SECRET_WRITERS).map(|n| format!("secret: {{name: key-{n}-0, {}}}", item("key", n)));
            let sources: Vec<String> = maps.chain(secrets).map(|source| format!("{{{source}}}")).collect();
            let manifest = serving(&name, "/www")
                .replace("    ports:", "    volumeMounts: [{name: www, mountPath: /www}]\n    ports:")
                + &format!("  volumes: [{{name: www, projected: {{sources: [{}]}}}}]\n", sources.join(", "));
            apply(lab, &manifest).await?;
            let uid = uid(&running(client, &name).await?)?;
            let (sandbox, container) = (one_sandbox(lab, &uid).await?, container(lab, &uid, "web").await?);
            readers.push(Reader { name, uid, sandbox, container });
        }
        Ok(Self(readers))
    }

    /// The pods show the last value of each object, from the containers that were there before all kills.
    async fn show(&self, lab: &Lab, client: &Client, writers: &[Writer]) -> Result<()> {
        for reader in &self.0 {
            let pod = running(client, &reader.name).await?;
            ensure!(uid(&pod)? == reader.uid && restarts(&pod) == 0, "{} is another pod or was restarted", reader.name);
            for (name, stamp) in writers.iter().filter_map(Writer::shown) {
                page_becomes(&pod, &format!("/{name}"), &stamp).await?;
            }
            let now = lab.containers(&reader.uid).await?;
            ensure!(now == [reader.container.clone()], "{}: was {:?}, is {now:?}", reader.name, reader.container);
            ensure!(one_sandbox(lab, &reader.uid).await? == reader.sandbox, "{} has another sandbox", reader.name);
        }
        Ok(())
    }
}

fn item(prefix: &str, n: usize) -> String {
    format!("items: [{{key: stamp, path: {prefix}-{n}-0}}]")
}

/// The runtime has one sandbox for each pod that is wanted, and none beside them.
async fn pods_are_as_wanted(lab: &Lab, client: &Client, writers: &[Writer], readers: &Readers) -> Result<String> {
    let mut wanted: BTreeSet<String> = readers.0.iter().map(|reader| reader.uid.clone()).collect();
    let mut ended = BTreeMap::new();
    for (name, uid, lives) in writers.iter().flat_map(Writer::pods_seen) {
        if lives {
            let pod = running(client, &name).await?;
            ensure!(pod.metadata.uid.as_ref() == Some(&uid), "{name} is another pod than the one acknowledged");
            container(lab, &uid, "main").await?;
            wanted.insert(uid);
        } else {
            ended.insert(uid, name);
        }
    }
    for (uid, name) in &ended {
        gone(client, name, uid).await?;
    }
    let wanted: Vec<String> = wanted.into_iter().collect();
    poll("one sandbox for each pod that is wanted, none beside", async || {
        let seen = lab.pods_in_runtime().await?;
        Ok(if seen == wanted { Ok(()) } else { Err(format!("wanted {wanted:?}, the runtime has {seen:?}")) })
    })
    .await?;
    // What an edgecore was killed over is found by a later one, some seconds after its start.
    for uid in ended.keys() {
        poll(&format!("nothing is left of pod {uid}"), async || {
            let left = async {
                nothing_left(lab, uid).await?;
                let mut left = Vec::new();
                for folder in ["edge/logs/pods", "edge/kubelet/pods"] {
                    let entries = fs::read_dir(lab.folder().join(folder)).context(folder)?.flatten();
                    left.extend(entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(uid)));
                }
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            };
            Ok(left.await.map_err(|error: anyhow::Error| format!("{error:#}")))
        })
        .await?;
    }
    Ok(format!("{} pods came, {} went", wanted.len() + ended.len(), ended.len()))
}

/// Everything is deleted: the edge leaves no sandbox, no mount and no control group.
async fn all_goes_away(
    lab: &Lab,
    client: &Client,
    writers: &[Writer],
    readers: &Readers,
    mounts: &[PathBuf],
) -> Result<()> {
    let brief = writers.iter().flat_map(Writer::pods_seen).filter(|(_, _, lives)| *lives);
    let brief = brief.map(|(name, uid, _)| (name, uid));
    let all: Vec<_> = brief.chain(readers.0.iter().map(|it| (it.name.clone(), it.uid.clone()))).collect();
    for (name, _) in &all {
        delete(client, name, 1).await?;
    }
    for (name, uid) in &all {
        gone(client, name, uid).await?;
        nothing_left(lab, uid).await?;
    }
    let left: Vec<PathBuf> = mounts_below(lab.folder())?.into_iter().filter(|mount| !mounts.contains(mount)).collect();
    ensure!(left.is_empty(), "all pods are gone and these mounts are not: {left:?}");
    if let Some(left) = pods(client).list(&Default::default()).await?.items.first() {
        bail!("a pod that nobody made: {:?}", left.metadata);
    }
    let sandboxes = lab.pods_in_runtime().await?;
    ensure!(sandboxes.is_empty(), "all pods are gone and the runtime still has sandboxes of {sandboxes:?}");
    end_lost_shims(&lab.folder().join("containerd")).await
}

/// The API of a kind in the scenarios' namespace.
fn api<K: kube::Resource<Scope = kube::core::NamespaceResourceScope>>(client: &Client) -> Api<K>
where
    K::DynamicType: Default,
{
    Api::namespaced(client.clone(), NAMESPACE)
}
