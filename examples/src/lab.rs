//! A cloud, an edge node and what they need, in one folder: started step by step, taken away in the reverse order.
//!
//! The quickstart tells its story with it. Tests also stop, kill and freeze parts of it, and look at what the container
//! runtime really holds. Several labs may run at once, each in a folder of its own.

mod disks;
mod faults;
mod look;
mod up;

use std::{
    fs::{self, DirBuilder, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Output},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{UnmountFlags, unmount};
use tokio::process::Command;

pub use crate::containerd::Container;
use crate::{
    containerd::{PrivateContainerd, Tools},
    image::{BusyboxImages, Image},
    leftovers::{self, Leftover},
    line::Line,
    process::{Launch, Process},
    registry::{Catalogue, Registry},
};
pub use disks::Side;
pub use faults::Ended;
pub use up::node_ready;

/// The edge node's name.
pub const NODE: &str = "edge-1";
const BUSYBOX: (&str, &str) = ("quickstart/busybox", "1");
/// The same under another name and with another configuration: another image to a runtime.
const OTHER: (&str, &str) = ("quickstart/other", "1");
const PAUSE: (&str, &str) = ("quickstart/pause", "1");
/// From the start of cloudcore to an API that answers.
const CLOUD_LIMIT: Duration = Duration::from_secs(30);
/// For one command: a token, a join.
const COMMAND_LIMIT: Duration = Duration::from_secs(40);
/// How long cloudcore and edgecore may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What runs so far.
pub struct Lab {
    folder: PathBuf,
    programs: PathBuf,
    registry: Option<Registry>,
    containerd: Option<PrivateContainerd>,
    cloud: Option<Process>,
    edge: Option<Process>,
    mapper: Option<Process>,
    line: Option<Line>,
    enrolment: Option<SocketAddr>,
    client: Option<Client>,
    /// Settings of the edge's kubelet, a line each, for the next [`join`](Self::join).
    pub settings: Vec<String>,
    /// More of the edge's `modules.edged`, a line each, for the next [`join`](Self::join).
    pub edged: Vec<String>,
    /// More of the cloud's `modules`, a line each, from the next [`start_cloud`](Self::start_cloud) on.
    pub modules: Vec<String>,
    /// Whether cloud and edge carry out rules, from the next [`start_cloud`](Self::start_cloud) and [`join`](Self::join)
    /// on. What the file of either says of them is in these lines.
    pub rules: Option<Rules>,
    pods: Vec<String>,
    /// Cloud and edge keep what they keep on disks of their own.
    small_disks: bool,
    /// Held while this lives: one quickstart a folder.
    _lock: File,
}

/// Where rules begin and end in a lab.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The cloud's REST server.
    pub rest: SocketAddr,
    /// The edge's ServiceBus.
    pub service_bus: SocketAddr,
    /// More of `modules.router`, such as `tls: true`.
    pub router: String,
    /// Seconds that ServiceBus waits.
    pub timeout: u32,
}

impl Rules {
    /// On free ports.
    pub fn on_free_ports() -> Result<Self> {
        let [rest, service_bus] = free_ports()?;
        let at = |port| (Ipv4Addr::LOCALHOST, port).into();
        Ok(Self { rest: at(rest), service_bus: at(service_bus), router: "restTimeout: 10".to_owned(), timeout: 30 })
    }
}

impl Lab {
    /// Takes the folder; nothing runs yet.
    pub fn open(folder: &Path, programs: Option<PathBuf>) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("create {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let lock = File::create(folder.join("lock")).context("create the lock file")?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("another quickstart runs in {}", folder.display()))?;
        let programs = match programs {
            Some(programs) => programs.canonicalize().with_context(|| format!("{}", programs.display()))?,
            None => std::env::current_exe()?.parent().context("this program is in a folder")?.to_owned(),
        };
        for program in ["cloudcore", "edgecore"] {
            let path = programs.join(program);
            ensure!(path.is_file(), "{} is not built: run `make build` first", path.display());
        }
        Ok(Self {
            folder,
            programs,
            registry: None,
            containerd: None,
            cloud: None,
            edge: None,
            mapper: None,
            line: None,
            enrolment: None,
            client: None,
            settings: Vec::new(),
            edged: Vec::new(),
            modules: Vec::new(),
            rules: None,
            pods: Vec::new(),
            small_disks: false,
            _lock: lock,
        })
    }

    /// Where everything is kept.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The cluster's administrator.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("cloud/kubeconfig")
    }

    /// A client of the cluster.
    pub fn client(&self) -> Result<Client> {
        self.client.clone().context("the cloud does not run")
    }

    /// The full name of the busybox image.
    pub fn busybox(&self) -> Result<String> {
        Ok(self.registry.as_ref().context("the registry does not run")?.image(BUSYBOX.0, BUSYBOX.1))
    }

    /// The full name of an image that nothing uses.
    pub fn other_image(&self) -> Result<String> {
        Ok(self.registry.as_ref().context("the registry does not run")?.image(OTHER.0, OTHER.1))
    }

    /// Nothing of this pod may be left at the end.
    pub fn watch_for_leftovers(&mut self, pod_uid: String) {
        self.pods.push(pod_uid);
    }

    /// Does `work` while all processes run; the end of one of them is an error that shows its log.
    pub async fn guarded<T>(&mut self, work: impl AsyncFnOnce(&Lab) -> Result<T>) -> Result<T> {
        let (mut cloud, mut edge) = (self.cloud.take(), self.edge.take());
        let done = tokio::select! {
            done = work(self) => done,
            ended = ended(&mut cloud) => Err(ended),
            ended = ended(&mut edge) => Err(ended),
        };
        (self.cloud, self.edge) = (cloud, edge);
        done
    }

    /// Builds the images and serves them.
    pub fn start_registry(&mut self) -> Result<SocketAddr> {
        let images = BusyboxImages::build()?;
        let layer = images.busybox.blobs.get(1).context("an image has a layer")?;
        let other = Image::new(layer, &["/bin/sh"], &["PATH=/bin", "OTHER=1"])?;
        let catalogue = Catalogue::default()
            .with(BUSYBOX.0, BUSYBOX.1, &images.busybox)?
            .with(OTHER.0, OTHER.1, &other)?
            .with(PAUSE.0, PAUSE.1, &images.pause)?;
        let registry = Registry::start(catalogue, 0)?;
        Ok(self.registry.insert(registry).address())
    }

    /// Starts containerd, which also takes away the pods of a run that did not end in order.
    pub async fn start_containerd(&mut self, tools: Tools) -> Result<String> {
        let pause = self.registry.as_ref().context("the registry does not run")?.image(PAUSE.0, PAUSE.1);
        let containerd = PrivateContainerd::start(tools, &self.folder.join("containerd"), &pause).await?;
        let containerd = self.containerd.insert(containerd);
        Ok(format!("{}, pods in {} on {}", containerd.snapshotter(), containerd.subnet(), containerd.bridge()))
    }

    /// Starts the cloud with an empty store and waits until its API answers; returns where.
    pub async fn start_cloud(&mut self) -> Result<String> {
        self.forget()?;
        let folder = self.folder.join("cloud");
        self.make_folder(Side::Cloud).await?;
        let [link, enrolment, api] = free_ports()?;
        let config = folder.join("cloudcore.yaml");
        let router = self.rules.as_ref().map_or_else(String::new, |rules| {
            format!(
                "  router: {{enable: true, address: {}, port: {}, {}}}\n",
                rules.rest.ip(),
                rules.rest.port(),
                rules.router
            )
        });
        let more: String = self.modules.iter().map(|line| format!("  {line}\n")).collect();
        let text = format!(
            "apiVersion: cloudcore.config.kubeedge.io/v1alpha1\nkind: CloudCore\nmodules:\n  cloudHub:\n    \
             advertiseAddress: [127.0.0.1]\n    websocket: {{address: 127.0.0.1, port: {link}}}\n    \
             https: {{address: 127.0.0.1, port: {enrolment}}}\n    tlsCAFile: ''\n    tlsCAKeyFile: ''\n  \
             cloudStream: {{address: 127.0.0.1, streamPort: 0}}\n{router}{more}\
             standalone: {{address: 127.0.0.1, port: {api}}}\n"
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        // It outlives a disk that fails: without the file cloudcore would take its defaults.
        for path in [&config, &folder] {
            File::open(path).and_then(|open| open.sync_all()).with_context(|| format!("sync {}", path.display()))?;
        }
        self.enrolment = Some((Ipv4Addr::LOCALHOST, enrolment).into());
        self.resume_cloud().await?;
        Ok(format!("https://127.0.0.1:{api}"))
    }

    /// Starts the cloud with what it had when it ended, and waits until its API answers.
    pub async fn resume_cloud(&mut self) -> Result<()> {
        self.spawn_cloud()?;
        self.cloud_answers().await
    }

    /// Starts the cloud with what it had, and does not wait for it.
    pub fn spawn_cloud(&mut self) -> Result<()> {
        let folder = self.folder.join("cloud");
        let cloud = Launch::new("cloudcore", self.programs.join("cloudcore"), self.folder.join("cloudcore.log"))
            .arg("--standalone")
            .arg("--config")
            .arg(folder.join("cloudcore.yaml"))
            .arg("--data-dir")
            .arg(&folder)
            .spawn()?;
        self.cloud = Some(cloud);
        Ok(())
    }

    /// Waits until the API of a started cloud answers.
    pub async fn cloud_answers(&mut self) -> Result<()> {
        self.client = Some(self.guarded(answering).await?);
        Ok(())
    }

    /// Makes a join token; `rules` are flags of `cloudcore token create`.
    pub async fn token(&self, rules: &[&str]) -> Result<String> {
        let data_dir = self.folder.join("cloud");
        let arguments = [&["token", "create", "--data-dir", utf8(&data_dir)?], rules].concat();
        let printed = succeeded(self.command("cloudcore", &arguments).await?)?;
        Ok(printed.trim().to_owned())
    }

    /// Makes this machine a node: a token from the cloud, a certificate for it.
    pub async fn join(&self) -> Result<()> {
        self.make_folder(Side::Edge).await?;
        let token = self.token(&["--node", NODE]).await?;
        let folder = self.folder.join("edge");
        succeeded(self.join_as(NODE, &token, &folder).await?)?;
        // The usual port may be another edgecore's on this machine.
        let [port] = free_ports()?;
        self.set_kubelet(&format!("readOnlyPort: {port}"))?;
        // How full this machine is is not what a lab is for.
        self.set_kubelet("evictionHard: {}")?;
        self.settings.iter().try_for_each(|setting| self.set_kubelet(setting))?;
        self.set_edged(&folder)?;
        self.set_broker(&folder)
    }

    fn set_edged(&self, folder: &Path) -> Result<()> {
        let path = folder.join("edgecore.yaml");
        let config = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        // The kubelet's settings stand last so that more can be added.
        let (head, tail) = config.split_once("  edged:\n").context("the configuration has no edged")?;
        let more: String = self.edged.iter().map(|line| format!("    {line}\n")).collect();
        fs::write(&path, format!("{head}  edged:\n{more}{tail}")).with_context(|| format!("write {}", path.display()))
    }

    /// From now on the edge reaches the cloud over a line that can be cut; before [`Lab::start_edge`].
    pub async fn draw_line(&mut self) -> Result<()> {
        let path = self.folder.join("edge/edgecore.yaml");
        let text = fs::read_to_string(&path).context("the machine is no node")?;
        let far = text.split_once("    websocket:\n").and_then(|(_, link)| {
            let mut lines = link.lines().take_while(|line| line.starts_with("      "));
            lines.find_map(|line| line.trim().strip_prefix("server: "))
        });
        let far = far.with_context(|| format!("{} does not say where the cloud is", path.display()))?.to_owned();
        // As `join` writes it: in quotes.
        let cloud = far.trim_matches('"').parse().with_context(|| format!("the cloud's address {far}"))?;
        let line = Line::to(cloud).await?;
        let text = text.replace(&format!("      server: {far}\n"), &format!("      server: \"{}\"\n", line.address()));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        self.line = Some(line);
        Ok(())
    }

    /// The line between cloud and edge.
    pub fn line(&self) -> Result<&Line> {
        self.line.as_ref().context("cloud and edge have no line of their own")
    }

    /// A broker of its own: what others run on this machine is none of a lab's business.
    fn set_broker(&self, folder: &Path) -> Result<()> {
        let [port] = free_ports()?;
        let path = folder.join("edgecore.yaml");
        let config = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let broker = format!(
            "  eventBus:\n    mqttMode: 0\n    mqttQOS: 1\n    mqttSessionQueueSize: 10000\n    mqttServerInternal: tcp://127.0.0.1:{port}\n"
        );
        let rules = self.rules.as_ref().map_or_else(String::new, |rules| {
            let (server, port) = (rules.service_bus.ip(), rules.service_bus.port());
            format!("  serviceBus: {{enable: true, server: {server}, port: {port}, timeout: {}}}\n", rules.timeout)
        });
        // Before the kubelet's settings, which stand last so that more can be added.
        let (head, tail) = config.split_once("modules:\n").context("the configuration has no modules")?;
        fs::write(&path, format!("{head}modules:\n{broker}{rules}{tail}"))
            .with_context(|| format!("write {}", path.display()))
    }

    /// From its next start on the edge uses a broker that others run: what stands below `modules.eventBus`, a line each.
    pub fn use_broker(&self, settings: &[String]) -> Result<()> {
        let path = self.folder.join("edge/edgecore.yaml");
        let config = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let (head, tail) = config.split_once("  eventBus:\n").context("the configuration has no eventBus")?;
        let rest = tail.lines().skip_while(|line| line.starts_with("    "));
        let settings = settings.iter().map(|setting| format!("    {setting}\n"));
        let tail: String = settings.chain(rest.map(|line| format!("{line}\n"))).collect();
        fs::write(&path, format!("{head}  eventBus:\n{tail}")).with_context(|| format!("write {}", path.display()))
    }

    /// Where the edge's MQTT broker is served.
    pub fn mqtt(&self) -> Result<SocketAddr> {
        let config = fs::read_to_string(self.folder.join("edge/edgecore.yaml")).context("the machine is no node")?;
        let line = config.lines().find_map(|line| line.trim().strip_prefix("mqttServerInternal: tcp://"));
        Ok(line.context("the node has no broker")?.parse()?)
    }

    /// Adds a setting to the edge's `tailoredKubeletConfig`; counts from its next start on.
    pub fn set_kubelet(&self, setting: &str) -> Result<()> {
        let path = self.folder.join("edge/edgecore.yaml");
        let mut text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(text.contains("\n    tailoredKubeletConfig:\n"), "{} has no kubelet's settings", path.display());
        // Not twice: a later setting takes the place of an earlier one.
        let name = setting.split(':').next().unwrap_or_default();
        text = text
            .lines()
            .filter(|line| !line.starts_with(&format!("      {name}:")))
            .map(|line| format!("{line}\n"))
            .collect();
        text.push_str(&format!("      {setting}\n"));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Where the edge serves the node's own API.
    pub fn node_api(&self) -> Result<SocketAddr> {
        let text = fs::read_to_string(self.folder.join("edge/edgecore.yaml"))?;
        let port = text.lines().find_map(|line| line.trim().strip_prefix("readOnlyPort: "));
        Ok((Ipv4Addr::LOCALHOST, port.context("readOnlyPort is not set")?.parse()?).into())
    }

    /// `edgecore join` at this cloud under any name, with any token, into any folder; it may well be refused.
    pub async fn join_as(&self, node: &str, token: &str, data_dir: &Path) -> Result<Output> {
        let cloud = self.enrolment.context("the cloud does not run")?.to_string();
        let mut arguments = vec!["join", &cloud, "--token", token, "--node-name", node];
        arguments.extend(["--data-dir", utf8(data_dir)?]);
        let runtime = self.containerd.as_ref().map(PrivateContainerd::endpoint);
        if let Some(runtime) = &runtime {
            arguments.extend(["--remote-runtime-endpoint", runtime]);
        }
        self.command("edgecore", &arguments).await
    }

    /// Starts the edge.
    pub fn start_edge(&mut self) -> Result<()> {
        self.start_edge_with(&[])
    }

    /// Starts the edge with more flags than it needs.
    pub fn start_edge_with(&mut self, flags: &[&str]) -> Result<()> {
        let edge = Launch::new("edgecore", self.programs.join("edgecore"), self.folder.join("edgecore.log"))
            .arg("--config")
            .arg(self.folder.join("edge/edgecore.yaml"))
            .args(flags)
            .spawn()?;
        self.edge = Some(edge);
        Ok(())
    }

    /// Starts the example's mapper for thermostats.
    pub fn start_mapper(&mut self) -> Result<()> {
        let program = self.programs.join("thermostat");
        ensure!(program.is_file(), "{} is not built", program.display());
        let mapper = Launch::new("thermostat", program, self.folder.join("thermostat.log"))
            .arg("--edgecore")
            .arg(self.folder.join("edge/dmi.sock"))
            .arg("--socket")
            .arg(self.folder.join("thermostat.sock"))
            .spawn()?;
        self.mapper = Some(mapper);
        Ok(())
    }

    /// Stops everything, edge first, and returns what is still on the machine. Logs stay in the folder.
    pub async fn close(mut self) -> Result<Vec<Leftover>> {
        let mut faults = Vec::new();
        for process in [self.mapper.take(), self.edge.take(), self.cloud.take()].into_iter().flatten() {
            let name = process.name();
            let log = process.log().to_owned();
            match process.stop(STOP_LIMIT).await {
                Ok(status) if !status.success() => {
                    faults.push(format!("{name} ended with {status}; see {}", log.display()))
                }
                Ok(_) => {}
                Err(error) => faults.push(format!("{error:#}")),
            }
        }
        let mut left = Vec::new();
        if let Some(containerd) = self.containerd.take() {
            match containerd.stop().await {
                Ok(found) => left.extend(found),
                Err(error) => faults.push(format!("containerd: {error:#}")),
            }
        }
        if let Some(registry) = self.registry.take() {
            registry.stop().await?;
        }
        self.forget()?;
        for uid in &self.pods {
            left.extend(leftovers::cgroups_naming(uid)?.into_iter().map(Leftover::Cgroup));
        }
        left.extend(leftovers::mounts_below(&self.folder)?.into_iter().map(Leftover::Mount));
        left.extend(
            leftovers::processes_naming(&self.folder)?.into_iter().map(|(pid, name)| Leftover::Process(pid, name)),
        );
        left.sort();
        left.dedup();
        ensure!(faults.is_empty(), "{}", faults.join("; "));
        if left.is_empty() {
            remove(&self.folder.join("containerd"))?;
        }
        Ok(left)
    }

    /// Removes the state of cloud and edge, this run's or an earlier one's.
    fn forget(&self) -> Result<()> {
        self.forget_one("edge")?;
        self.forget_one("cloud")
    }

    fn forget_one(&self, name: &str) -> Result<()> {
        let folder = self.folder.join(name);
        // Secrets are kept in memory file systems.
        for mount in leftovers::mounts_below(&folder)? {
            unmount(&mount, UnmountFlags::empty()).with_context(|| format!("unmount {}", mount.display()))?;
        }
        remove(&folder)
    }

    /// Runs one of our programs to its end.
    pub async fn command(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let child = Command::new(self.programs.join(program)).args(arguments).kill_on_drop(true).output();
        match tokio::time::timeout(COMMAND_LIMIT, child).await {
            Ok(output) => output.with_context(|| format!("start {program}")),
            Err(_) => bail!("{program} {} did not end within {COMMAND_LIMIT:?}", arguments.first().unwrap_or(&"")),
        }
    }
}

/// What a command printed; an error with what it complained of if it failed.
fn succeeded(output: Output) -> Result<String> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    String::from_utf8(output.stdout).context("something else than text was printed")
}

/// Ends when the process does, with an error about it; never without a process.
async fn ended(process: &mut Option<Process>) -> anyhow::Error {
    let Some(process) = process else { return std::future::pending().await };
    let status: Result<ExitStatus> = process.ended().await;
    match status {
        Ok(status) => process.ended_early(status),
        Err(error) => error,
    }
}

/// Waits until the API answers: first its kubeconfig is written, then it listens.
async fn answering(lab: &Lab) -> Result<Client> {
    let path = lab.kubeconfig();
    let ask = async || -> Result<Client> {
        let config = Kubeconfig::read_from(&path)?;
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        client.apiserver_version().await?;
        Ok(client)
    };
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let deadline = tokio::time::Instant::now() + CLOUD_LIMIT;
    loop {
        tick.tick().await;
        match ask().await {
            Ok(client) => return Ok(client),
            Err(error) if tokio::time::Instant::now() > deadline => {
                return Err(error.context(format!("the API did not answer within {CLOUD_LIMIT:?}")));
            }
            Err(_) => {}
        }
    }
}

/// Ports that were free a moment ago.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All are held until all are known, so that they differ.
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener.and_then(|listener| listener.local_addr()).context("find a free port")?.port();
    }
    Ok(ports)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
