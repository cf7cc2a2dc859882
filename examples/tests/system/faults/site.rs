//! A cloud and nodes in network namespaces, as processes of the stock programs.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use kubeedge_examples::{
    leftovers::{mounts_below, processes_naming},
    loop_disk::LoopDisk,
    netns::{CLOUD, Inside, Net},
    process::{Launch, Process},
};
use kubeedge_proto::v1::KubeObject;
use rustix::process::Signal;
use tempfile::TempDir;

use super::{containers::Containers, store};
use crate::cluster::TICK;

/// From a start to an API that answers, or to a node that is Ready.
const START: Duration = Duration::from_secs(60);
/// Bytes of a disk of its own: store and volumes of some hundred pods.
const DISK: u64 = 256 << 20;
/// For an orderly end.
const STOP: Duration = Duration::from_secs(30);

/// Whose process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// cloudcore.
    Cloud,
    /// edgecore at the end of this line.
    Edge(u8),
}

/// What runs.
pub(super) struct Site {
    processes: BTreeMap<u8, Process>,
    /// How often an edge was started.
    starts: BTreeMap<u8, usize>,
    cloud: Option<Process>,
    client: Option<Client>,
    folder: TempDir,
    programs: PathBuf,
    /// Of the edges that have one of their own.
    disks: BTreeMap<u8, LoopDisk>,
    /// What edges run under that are not to know the time.
    clocks: BTreeMap<u8, Vec<(&'static str, OsString)>>,
    /// At the end of the line that is theirs.
    containers: Option<Containers>,
    /// Before `net`, so that this thread has left it when it is taken down.
    inside: Inside,
    net: Net,
}

impl Site {
    /// Starts a cloud and a node at the end of each of so many lines, and waits until all are Ready. There is one line
    /// more, for a node with real containers. The node at the end of `disk` gets a disk of its own, if that can be.
    pub(super) async fn up(lines: u8, disk: u8) -> Result<Self> {
        let net = Net::up(lines + 1)?;
        let folder = tempfile::Builder::new().prefix("ke").tempdir()?;
        let programs = Path::new(env!("CARGO_BIN_EXE_quickstart")).parent().context("a program is in a folder")?;
        for program in ["cloudcore", "edgecore"] {
            ensure!(programs.join(program).is_file(), "{program} is not built beside {}", programs.display());
        }
        let inside = Inside::enter(&net.cloud())?;
        let mut site = Self {
            processes: BTreeMap::new(),
            starts: BTreeMap::new(),
            cloud: None,
            client: None,
            folder,
            programs: programs.to_owned(),
            disks: BTreeMap::new(),
            clocks: BTreeMap::new(),
            containers: None,
            inside,
            net,
        };
        let own = LoopDisk::new(site.folder.path().join("disk.ext4"), site.edge_folder(disk));
        match own.format(DISK).await {
            Ok(()) => drop(site.disks.insert(disk, own)),
            Err(why) => println!("     no disk of its own for {}: {why:#}", node(disk)),
        }
        site.start_cloud().await?;
        for line in 0..lines {
            site.join(line).await?;
            site.spawn(Who::Edge(line))?;
        }
        for line in 0..lines {
            site.node_ready(line, START).await?;
        }
        Ok(site)
    }

    /// The lines, to do something to them.
    pub(super) fn net(&self) -> &Net {
        &self.net
    }

    /// A client of the cluster, not over any of the lines.
    pub(super) fn client(&self) -> Result<Client> {
        self.client.clone().context("the cloud was not started")
    }

    async fn start_cloud(&mut self) -> Result<()> {
        let folder = self.cloud_folder();
        fs::create_dir(&folder)?;
        // The ports are the usual ones: the namespace is the cloud's own.
        let config = format!(
            "apiVersion: cloudcore.config.kubeedge.io/v1alpha1\nkind: CloudCore\nmodules:\n  cloudHub:\n    \
             advertiseAddress: [{CLOUD}]\n    tlsCAFile: ''\n    tlsCAKeyFile: ''\n  \
             cloudStream: {{streamPort: 0}}\n"
        );
        fs::write(folder.join("cloudcore.yaml"), config)?;
        self.spawn(Who::Cloud)?;
        self.api_answers().await
    }

    /// Waits until the API answers to the kubeconfig as it is now.
    pub(super) async fn api_answers(&mut self) -> Result<()> {
        let kubeconfig = self.cloud_folder().join("kubeconfig");
        let ask = async || -> Result<Client> {
            let config = Kubeconfig::read_from(&kubeconfig)?;
            let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
            let client = Client::try_from(config)?;
            client.apiserver_version().await?;
            Ok(client)
        };
        let client = until("the API answers", START, async || ask().await.map_err(|error| format!("{error:#}"))).await;
        self.client = Some(client.with_context(|| self.tail(Who::Cloud))?);
        Ok(())
    }

    /// Makes the box at the end of a line a node.
    pub(super) async fn join(&self, line: u8) -> Result<()> {
        let folder = self.edge_folder(line);
        fs::create_dir(&folder)?;
        if let Some(disk) = self.disks.get(&line) {
            disk.mount().await?;
        }
        let token = self.cloudcore(&["token", "create", "--node", &node(line)]).await?;
        let mut join = Launch::new("join", self.programs.join("edgecore"), self.log(Who::Edge(line)))
            .in_network(self.net.edge(line))
            .arg("join")
            .arg(CLOUD.to_string())
            .args(["--token", token.trim(), "--node-name", &node(line), "--data-dir"])
            .arg(&folder)
            .args(self.real(line).map(|it| ["--remote-runtime-endpoint".into(), it.endpoint()]).into_iter().flatten())
            .spawn()?;
        let status = tokio::time::timeout(START, join.ended()).await.context("join does not end")??;
        if !status.success() {
            return Err(join.ended_early(status));
        }
        // How full this machine is is not what is tried here. The file ends with the kubelet's settings.
        let config = folder.join("edgecore.yaml");
        let text = fs::read_to_string(&config)? + "      evictionHard: {}\n";
        fs::write(&config, text)?;
        Ok(())
    }

    /// Starts a program and does not wait for it.
    pub(super) fn spawn(&mut self, who: Who) -> Result<()> {
        let log = self.log(who);
        match who {
            Who::Cloud => {
                let folder = self.cloud_folder();
                let cloud = Launch::new("cloudcore", self.programs.join("cloudcore"), log)
                    .in_network(self.net.cloud())
                    .arg("--standalone")
                    .arg("--config")
                    .arg(folder.join("cloudcore.yaml"))
                    .arg("--data-dir")
                    .arg(&folder);
                self.cloud = Some(cloud.spawn()?);
            }
            Who::Edge(line) => {
                let edge = Launch::new("edgecore", self.programs.join("edgecore"), log)
                    .in_network(self.net.edge(line))
                    .args(self.real(line).is_none().then_some("--fake-runtime"))
                    .arg("--config")
                    .arg(self.edge_folder(line).join("edgecore.yaml"));
                let clock = self.clocks.get(&line).into_iter().flatten();
                let edge = clock.fold(edge, |edge, (name, value)| edge.env(name, value));
                self.processes.insert(line, edge.spawn()?);
                *self.starts.entry(line).or_default() += 1;
            }
        }
        Ok(())
    }

    /// How often each edge was started.
    pub(super) fn starts(&self) -> BTreeMap<u8, usize> {
        self.starts.clone()
    }

    /// Ends a program with SIGKILL.
    pub(super) async fn kill(&mut self, who: Who) -> Result<()> {
        self.take(who)?.kill().await
    }

    /// Ends a program in order.
    pub(super) async fn stop(&mut self, who: Who) -> Result<()> {
        let process = self.take(who)?;
        let status = process.stop(STOP).await?;
        ensure!(status.success(), "{who:?} ended with {status}; {}", self.tail(who));
        Ok(())
    }

    fn take(&mut self, who: Who) -> Result<Process> {
        let taken = match who {
            Who::Cloud => self.cloud.take(),
            Who::Edge(line) => self.processes.remove(&line),
        };
        taken.with_context(|| format!("{who:?} does not run"))
    }

    /// Sends a signal to a program.
    pub(super) fn signal(&self, who: Who, signal: Signal) -> Result<()> {
        let process = match who {
            Who::Cloud => self.cloud.as_ref(),
            Who::Edge(line) => self.processes.get(&line),
        };
        process.with_context(|| format!("{who:?} does not run"))?.signal(signal)
    }

    /// The runtime of the node at the end of a line, if that is a real one.
    pub(super) fn real(&self, line: u8) -> Option<&Containers> {
        self.containers.as_ref().filter(|_| line == self.net.lines() - 1)
    }

    /// The node at the end of the last line is to have this runtime; the one that it had.
    pub(super) fn set_containers(&mut self, containers: Option<Containers>) -> Option<Containers> {
        std::mem::replace(&mut self.containers, containers)
    }

    /// What pods on a node are made of.
    pub(super) fn image(&self, line: u8) -> String {
        self.real(line).map_or_else(|| "example.test/any:1".to_owned(), Containers::image)
    }

    /// The disk of a node, if it has one of its own.
    pub(super) fn disk(&self, line: u8) -> Option<&LoopDisk> {
        self.disks.get(&line)
    }

    /// From its next start on a node's edgecore runs under these variables.
    pub(super) fn set_clock(&mut self, line: u8, clock: Vec<(&'static str, OsString)>) {
        self.clocks.insert(line, clock);
    }

    /// Does work where the machine itself is, not the cloud.
    pub(super) async fn outside<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let outside = self.inside.leave()?;
        let done = work.await;
        drop(outside);
        done
    }

    /// Runs a command of cloudcore about what it keeps.
    pub(super) async fn cloudcore(&self, arguments: &[&str]) -> Result<String> {
        let output = tokio::process::Command::new(self.programs.join("cloudcore"))
            .args(arguments)
            .arg("--data-dir")
            .arg(self.cloud_folder())
            .arg("--config")
            .arg(self.cloud_folder().join("cloudcore.yaml"))
            .output()
            .await?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Where everything else is kept.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn cloud_folder(&self) -> PathBuf {
        self.folder.path().join("cloud")
    }

    pub(super) fn edge_folder(&self, line: u8) -> PathBuf {
        self.folder.path().join(node(line))
    }

    /// Where a pod's ConfigMap volume shows up.
    pub(super) fn volume(&self, line: u8, pod_uid: &str, volume: &str) -> PathBuf {
        let kind = format!("kubelet/pods/{pod_uid}/volumes/kubernetes.io~projected/{volume}");
        self.edge_folder(line).join(kind)
    }

    fn log(&self, who: Who) -> PathBuf {
        self.folder.path().join(match who {
            Who::Cloud => "cloudcore.log".to_owned(),
            Who::Edge(line) => format!("{}.log", node(line)),
        })
    }

    /// Everything that a program wrote to its log.
    pub(super) fn said(&self, who: Who) -> Result<String> {
        let path = self.log(who);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn tail(&self, who: Who) -> String {
        let said = self.said(who).unwrap_or_default();
        let lines: Vec<&str> = said.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Waits until a log says this after its first `from` bytes; how long that took.
    pub(super) async fn says(&self, who: Who, from: usize, what: &str, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        until(&format!("the log of {who:?} says {what:?}"), limit, async || {
            let said = self.said(who).map_err(|error| format!("{error:#}"))?;
            let news = said.get(from..).unwrap_or_default();
            if news.contains(what) { Ok(()) } else { Err(format!("{} bytes of other things", news.len())) }
        })
        .await?;
        Ok(began.elapsed())
    }

    /// Whether a node is Ready now.
    pub(super) async fn is_ready(&self, line: u8) -> Result<bool> {
        let node = Api::<Node>::all(self.client()?).get_opt(&node(line)).await?;
        let conditions = node.and_then(|node| node.status?.conditions).unwrap_or_default();
        Ok(conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True"))
    }

    /// Waits until a node is Ready; how long that took.
    pub(super) async fn node_ready(&self, line: u8, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        let what = format!("{} is Ready", node(line));
        let ready = until(&what, limit, async || match self.is_ready(line).await {
            Ok(true) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        ready.await.with_context(|| self.tail(Who::Edge(line)))?;
        Ok(began.elapsed())
    }

    /// A stopped edge begins anew, with an empty store.
    pub(super) fn forget(&self, line: u8) -> Result<()> {
        let store = self.edge_folder(line).join("edgecore.store");
        fs::remove_dir_all(&store).with_context(|| format!("remove {}", store.display()))
    }

    /// Stops the edge of a line and reads what its store holds of a kind.
    pub(super) async fn stored(
        &mut self,
        line: u8,
        kind: fn() -> kubeedge_proto::v1::ResourceType,
    ) -> Result<Vec<KubeObject>> {
        if self.processes.contains_key(&line) {
            self.stop(Who::Edge(line)).await?;
        }
        self.read_store(line, kind).await
    }

    /// Reads what the store of an edge that does not run holds of a kind.
    pub(super) async fn read_store(
        &self,
        line: u8,
        kind: fn() -> kubeedge_proto::v1::ResourceType,
    ) -> Result<Vec<KubeObject>> {
        store::read(self.edge_folder(line).join("edgecore.store"), kind).await
    }

    /// Stops everything and looks at what is left. The folder stays if `keep`, and is told.
    pub(super) async fn close(mut self, keep: bool) -> Result<()> {
        let mut faults = Vec::new();
        let edges: Vec<u8> = self.processes.keys().copied().collect();
        for who in edges.into_iter().map(Who::Edge).chain(self.cloud.is_some().then_some(Who::Cloud)) {
            // One that was stopped for a while ends as well.
            self.signal(who, Signal::CONT)?;
            if let Err(error) = self.stop(who).await {
                faults.push(format!("{error:#}"));
            }
        }
        if let Some(containers) = self.containers.take() {
            self.outside(containers.close()).await?;
        }
        let Self { folder, net, inside, .. } = self;
        let path = folder.path().to_owned();
        for mount in mounts_below(&path)? {
            // What holds tokens is in memory, and outlives an edgecore as its pods do.
            rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty())
                .with_context(|| format!("unmount {}", mount.display()))?;
        }
        let processes = processes_naming(&path)?;
        if keep || !faults.is_empty() {
            faults.push(format!("logs are kept in {}", folder.keep().display()));
        }
        drop(inside);
        let networks = net.close()?;
        ensure!(processes.is_empty() && networks.is_empty(), "left on this machine: {processes:?} {networks:?}");
        ensure!(faults.is_empty(), "{}", faults.join("; "));
        Ok(())
    }
}

/// The node at the end of a line.
pub(super) fn node(line: u8) -> String {
    format!("edge-{line}")
}

/// Looks again and again; the error says what was seen last.
pub(super) async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        match look().await {
            Ok(seen) => return Ok(seen),
            Err(seen) if Instant::now() > deadline => bail!("within {limit:?}: expected that {what}; seen: {seen}"),
            Err(_) => {}
        }
    }
}
