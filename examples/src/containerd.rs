//! A private containerd: its own root, state, sockets, CNI network, bridge and subnet, all in one folder.
//!
//! The machine's own containerd, CNI configuration and images are not touched. What is shared and stays: the kernel's
//! `net.ipv4.ip_forward` (the bridge plugin switches it on) and the empty iptables chains of the portmap plugin.

mod cni;
mod config;
mod look;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use kubeedge_proto::cri::{
    ListPodSandboxRequest, RemovePodSandboxRequest, StopPodSandboxRequest, runtime_service_client::RuntimeServiceClient,
};
use rustix::process::Signal;
use tonic::transport::{Channel, Endpoint};

use crate::{
    leftovers::{self, Leftover},
    process::{Launch, Process, find_program, search_path},
};
use config::Snapshotter;
pub use look::Container;
pub(crate) use look::by_uid;

/// How long containerd may take to answer after its start. Two seconds are usual; a slow disk takes more.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long one pod may take to end and be removed.
const POD_LIMIT: Duration = Duration::from_secs(40);
/// How long containerd itself may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long its children may go on after it. What is there then is reported.
const ENDING_LIMIT: Duration = Duration::from_secs(5);
/// A shorter uid could be part of another's name.
const MIN_UID: usize = 32;
/// `sun_path` of a unix socket address holds this many bytes.
const MAX_SOCKET_PATH: usize = 107;

/// The programs and folders that running containers takes.
#[derive(Clone, Debug)]
pub struct Tools {
    containerd: PathBuf,
    cni_plugins: PathBuf,
    ip: PathBuf,
}

impl Tools {
    /// Looks for what is needed, and says everything that is missing at once.
    pub fn find() -> Result<Self> {
        let mut missing = Vec::new();
        let mut program = |name: &str, package: &str| {
            find_program(name).unwrap_or_else(|| {
                missing.push(format!("the program {name} (package {package})"));
                PathBuf::new()
            })
        };
        let containerd = program("containerd", "containerd");
        let ip = program("ip", "iproute2");
        for (name, package) in [("containerd-shim-runc-v2", "containerd"), ("runc", "runc"), ("iptables", "iptables")] {
            program(name, package);
        }
        let cni_plugins = cni::plugins().unwrap_or_else(|| {
            missing.push(
                "the CNI plugins bridge, portmap, host-local and loopback (package containernetworking-plugins)".into(),
            );
            PathBuf::new()
        });
        if !rustix::process::geteuid().is_root() {
            missing.push("the rights of root".into());
        } else {
            for (name, bit) in [("CAP_SYS_ADMIN", 21), ("CAP_NET_ADMIN", 12)] {
                if !config::has_capability(bit)? {
                    missing.push(format!("the capability {name}"));
                }
            }
        }
        ensure!(missing.is_empty(), "containers cannot run here; missing: {}", missing.join(", "));
        Ok(Self { containerd, cni_plugins, ip })
    }
}

/// A running private containerd.
pub struct PrivateContainerd {
    folder: PathBuf,
    socket: PathBuf,
    network: cni::Network,
    snapshotter: Snapshotter,
    tools: Tools,
    process: Process,
}

const CONFIG: &str = "config.toml";

fn launch(tools: &Tools, folder: &Path) -> Launch {
    Launch::new("containerd", &tools.containerd, folder.join("containerd.log")).arg("--config").arg(folder.join(CONFIG))
}

impl PrivateContainerd {
    /// Starts containerd with everything it keeps below `folder`, which it shares with nobody else.
    /// Pods of an earlier run in the same folder are removed first.
    ///
    /// `pause_image` is what sandboxes run, as a full name: `127.0.0.1:5000/quickstart/pause:1`.
    /// Call it from a thread that lives as long as containerd should, see [`Launch::spawn`].
    pub async fn start(tools: Tools, folder: &Path, pause_image: &str) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let folder = folder.canonicalize().with_context(|| format!("resolve {}", folder.display()))?;
        let socket = folder.join("containerd.sock");
        ensure!(
            socket.as_os_str().len() + ".ttrpc".len() <= MAX_SOCKET_PATH,
            "{} is too long for a unix socket: choose a folder with a path of at most {} bytes",
            folder.display(),
            MAX_SOCKET_PATH - "/containerd.sock.ttrpc".len()
        );
        let network = cni::Network::prepare(&folder)?;
        let snapshotter = Snapshotter::choose(&folder)?;
        let config = config::Config {
            folder: &folder,
            socket: &socket,
            cni_plugins: &tools.cni_plugins,
            cni_config: network.config_folder(),
            pause_image,
            snapshotter,
            // Without it the runtime cannot lower a sandbox's OOM score, and sandboxes fail to start.
            restrict_oom_score: !config::has_capability(config::CAP_SYS_RESOURCE)?,
        };
        let path = folder.join(CONFIG);
        fs::write(&path, config.render()?).with_context(|| format!("write {}", path.display()))?;
        let process = launch(&tools, &folder).spawn()?;
        let mut containerd = Self { folder, socket, network, snapshotter, tools, process };
        containerd.answering().await?;
        containerd.remove_all_pods().await?;
        Ok(containerd)
    }

    /// The socket where it serves CRI.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The socket as an endpoint for `edgecore.yaml`: `unix:///...`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The name of a second runtime handler, for RuntimeClasses.
    pub fn second_handler(&self) -> &'static str {
        config::SECOND_HANDLER
    }

    /// Where a handler keeps the state of its containers, one folder each by id.
    pub fn handler_state(&self, handler: &str) -> PathBuf {
        self.folder.join(handler).join("k8s.io")
    }

    /// The least `oom_score_adj` that its containers get: without CAP_SYS_RESOURCE nobody can lower it below its own.
    pub fn least_oom_score(&self) -> Result<i64> {
        if config::has_capability(config::CAP_SYS_RESOURCE)? {
            return Ok(-1000);
        }
        // containerd has it from this process.
        let own = fs::read_to_string("/proc/self/oom_score_adj").context("read /proc/self/oom_score_adj")?;
        own.trim().parse().context("oom_score_adj")
    }

    /// The bridge that pods are attached to.
    pub fn bridge(&self) -> &str {
        self.network.bridge()
    }

    /// The subnet that pods get their addresses from, such as `10.201.7.0/24`.
    pub fn subnet(&self) -> String {
        self.network.subnet()
    }

    /// How layers are kept: `overlayfs`, or `native` (copies) where overlay does not work.
    pub fn snapshotter(&self) -> &'static str {
        self.snapshotter.name()
    }

    /// The containerd process, to signal it, to read its log or to wait for its end.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A `ctr` command for this containerd in the namespace that CRI uses, to which arguments can be added.
    pub fn ctr(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("ctr");
        command.env("PATH", search_path()).arg("--address").arg(&self.socket).args(["--namespace", "k8s.io"]);
        command
    }

    /// A CRI client of its own connection.
    pub async fn cri(&self) -> Result<RuntimeServiceClient<Channel>> {
        let channel = Endpoint::from_shared(self.endpoint())?
            .connect_timeout(Duration::from_secs(5))
            .connect()
            .await
            .with_context(|| format!("connect to {}", self.socket.display()))?;
        Ok(RuntimeServiceClient::new(channel))
    }

    /// Stops and removes every pod, as if it were forgotten: containers, namespaces, network, cgroups.
    pub async fn remove_all_pods(&self) -> Result<()> {
        let mut cri = self.cri().await?;
        let pods = cri.list_pod_sandbox(ListPodSandboxRequest::default()).await.context("list pods")?.into_inner();
        let mut uids = Vec::new();
        for pod in pods.items {
            remove_pod(&mut cri, &pod.id).await?;
            uids.extend(pod.metadata.map(|metadata| metadata.uid).filter(|uid| uid.len() >= MIN_UID));
        }
        // The runtime leaves the group above its containers' to whoever made the pod, and that one is gone. A pod may
        // have had more than one sandbox in it.
        uids.sort();
        uids.dedup();
        for uid in uids {
            for group in leftovers::cgroups_naming(&uid)? {
                fs::remove_dir(&group).with_context(|| format!("remove {}", group.display()))?;
            }
        }
        Ok(())
    }

    /// Removes all pods, ends containerd, takes the bridge away and returns what is still there: nothing, it is hoped.
    /// The folder stays.
    pub async fn stop(self) -> Result<Vec<Leftover>> {
        let Self { folder, network, tools, .. } = &self;
        let (folder, tools) = (folder.clone(), tools.clone());
        let bridge = network.bridge().to_owned();
        let pods = self.remove_all_pods().await;
        self.process.stop(STOP_LIMIT).await?;
        // What it had begun, such as the clearing away of a shim that was gone, ends by itself.
        let deadline = tokio::time::Instant::now() + ENDING_LIMIT;
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        while !leftovers::processes_naming(&folder)?.is_empty() && tokio::time::Instant::now() < deadline {
            tick.tick().await;
        }
        for mount in leftovers::mounts_below(&folder)? {
            // What containerd itself mounted and kept; a busy one is reported below.
            if let Err(error) = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty()) {
                eprintln!("{}: not unmounted: {error}", mount.display());
            }
        }
        if leftovers::link_exists(&bridge) {
            let status = tokio::process::Command::new(&tools.ip).args(["link", "delete", &bridge]).status().await?;
            ensure!(status.success(), "ip link delete {bridge}: {status}");
        }
        pods?;
        left(&folder, &bridge)
    }

    /// Ends containerd with SIGKILL, as a crash would: pods and mounts stay until the next start in this folder.
    pub async fn kill(self) -> Result<()> {
        self.process.kill().await
    }

    /// Kills it as a crash would and starts it again: pods and mounts are still there. Waits until CRI answers.
    pub async fn crash(&mut self) -> Result<()> {
        self.go_away().await?;
        self.come_back().await
    }

    /// Kills it as a crash would: pods and mounts stay, and nobody answers until [`Self::come_back`].
    pub async fn go_away(&mut self) -> Result<()> {
        self.process.signal(Signal::KILL)?;
        self.process.ended().await.map(drop)
    }

    /// Starts it again after [`Self::go_away`], and waits until CRI answers.
    pub async fn come_back(&mut self) -> Result<()> {
        self.process = launch(&self.tools, &self.folder).spawn()?;
        self.answering().await
    }

    /// Waits until CRI answers. containerd tells nobody that its CRI service is up, so it is asked until it is.
    async fn answering(&mut self) -> Result<()> {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let deadline = tokio::time::Instant::now() + START_LIMIT;
        let mut last = None;
        while tokio::time::Instant::now() < deadline {
            tokio::select! {
                status = self.process.ended() => return Err(self.process.ended_early(status?)),
                _ = tick.tick() => {}
            }
            let asked = async {
                let mut cri = self.cri().await?;
                anyhow::Ok(cri.list_pod_sandbox(ListPodSandboxRequest::default()).await?)
            };
            match asked.await {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        let last = last.map(|error| format!("{error:#}")).unwrap_or_default();
        bail!(
            "containerd did not answer within {START_LIMIT:?} ({last}); its log ends with:\n{}",
            self.process.log_tail()
        )
    }
}

/// Stops and removes one pod. A container whose start was cut short is "in starting state" until the runtime has given
/// it up, and cannot be removed before: what is refused is tried again within the limit.
async fn remove_pod(cri: &mut RuntimeServiceClient<Channel>, id: &str) -> Result<()> {
    let deadline = tokio::time::Instant::now() + POD_LIMIT;
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let mut refused = None;
    loop {
        let remove = async {
            tick.tick().await;
            cri.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
            cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await
        };
        match tokio::time::timeout_at(deadline, remove).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(status)) => refused = Some(status),
            Err(_) => {
                let refused = refused.map(|status| status.to_string()).unwrap_or_default();
                bail!("pod {id} was not removed within {POD_LIMIT:?}: {refused}")
            }
        }
    }
}

/// Everything that belongs to a private containerd in `folder` and is still on the machine. The pods' network namespaces
/// are mounts below the folder.
fn left(folder: &Path, bridge: &str) -> Result<Vec<Leftover>> {
    let mut left: Vec<Leftover> = leftovers::mounts_below(folder)?.into_iter().map(Leftover::Mount).collect();
    left.extend(leftovers::processes_naming(folder)?.into_iter().map(|(pid, command)| Leftover::Process(pid, command)));
    left.extend(leftovers::link_exists(bridge).then(|| Leftover::Link(bridge.to_owned())));
    Ok(left)
}
