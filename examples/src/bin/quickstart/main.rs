//! A cloud, an edge node and a pod on this machine, in one folder: `make quickstart`.
//!
//! A registry in memory, a private containerd, `cloudcore --standalone` and `edgecore`, each a process of its own, then
//! a ConfigMap and a pod that serves it as a page, and a device with its mapper. Shows what happens until Ctrl-C, and takes
//! everything away again. `ONCE=1` checks that all of it works and that nothing is left, and ends. Without containerd, or with
//! `--without-containers`, it does all but the pod.

#![allow(clippy::print_stdout, reason = "its output is for a person")]

mod changes;
mod demo;
mod device;
mod kubectl;
mod progress;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use kubeedge_examples::{
    containerd::Tools,
    lab::{self, Lab},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use progress::Progress;

/// A cloud, an edge node and a pod on this machine. ONCE=1 in the environment: check and leave.
#[derive(Parser)]
#[command(name = "quickstart")]
struct Arguments {
    /// Keep everything here; logs stay when it ends
    #[arg(long, default_value = ".quickstart")]
    folder: PathBuf,
    /// Where cloudcore and edgecore are; without it, where this program is
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Run no pod, as where containerd is not installed
    #[arg(long)]
    without_containers: bool,
}

// One thread: children are told when the thread that started them ends, and this one ends last.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nquickstart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    let once = std::env::var_os("ONCE").is_some_and(|value| !value.is_empty() && value != "0");
    let mut stop = Stop::listen()?;
    let mut lab = Lab::open(&arguments.folder, arguments.programs)?;
    let mut progress = Progress::default();
    let story = tokio::select! {
        told = tell(&mut lab, &mut progress, once, arguments.without_containers) => told,
        () = stop.asked() => Ok(()),
    };
    progress.interrupted();
    progress.begin("taking everything away");
    let left = tokio::select! {
        left = lab.close() => left,
        () = stop.asked() => Err(anyhow::anyhow!("stopped while cleaning up; the next run in this folder goes on with it")),
    };
    // What went wrong first is what a person wants to read.
    let left = match (story, left) {
        (Err(error), Err(later)) => return Err(error.context(format!("(and the cleaning up failed: {later:#})"))),
        (Err(error), Ok(_)) => return Err(error),
        (Ok(()), left) => left?,
    };
    ensure!(
        left.is_empty(),
        "left on this machine:\n{}",
        left.iter().map(|it| format!("  {it}\n")).collect::<String>()
    );
    progress.done("no process, mount, control group or network interface is left");
    Ok(())
}

/// Brings everything up, and stays unless told to do it once.
async fn tell(lab: &mut Lab, progress: &mut Progress, once: bool, without_containers: bool) -> Result<()> {
    let tools = match Tools::find() {
        _ if without_containers => None,
        Ok(tools) => Some(tools),
        Err(why) => {
            println!("{why}\nEverything but the pod runs.\n");
            None
        }
    };
    let pod = match tools {
        Some(tools) => {
            progress.begin("images and registry");
            let registry = lab.start_registry()?;
            progress.done(&format!("http://{registry}/v2/"));
            progress.begin("private containerd");
            progress.done(&lab.start_containerd(tools).await?);
            true
        }
        None => false,
    };
    progress.begin("cloudcore --standalone");
    let api = lab.start_cloud().await?;
    progress.done(&api);
    progress.begin("edgecore join");
    lab.join().await?;
    lab.draw_line().await?;
    progress.done("a token, a certificate, a configuration file");
    progress.begin("edgecore");
    lab.start_edge_with(if pod { &[] } else { &["--fake-runtime"] })?;
    let version = lab.guarded(async |lab| demo::node_ready(lab.client()?).await).await?;
    progress.done(&format!("node {} is Ready ({version})", lab::NODE));
    if pod {
        progress.begin("a ConfigMap and a pod");
        demo::apply(lab).await?;
        let pod = lab.guarded(async |lab| demo::pod_running(lab.client()?).await).await?;
        lab.watch_for_leftovers(pod.uid.clone());
        progress.done(&format!("pod {} is Running at {}", demo::POD, pod.address));
        progress.begin("its page");
        let page = lab.guarded(async |_| demo::page(&pod).await).await?;
        progress.done(&page);
    }
    progress.begin("a device and its mapper");
    lab.start_mapper()?;
    progress.done(&lab.guarded(device::apply).await?);
    progress.begin("another setpoint");
    progress.done(&lab.guarded(device::turn_up).await?);
    progress.begin("the line to the cloud cut, another setpoint, the line mended");
    progress.done(&lab.guarded(device::turn_down_offline).await?);
    if once {
        if pod {
            progress.begin("deleting the pod");
            lab.guarded(async |lab| demo::delete(lab.client()?).await).await?;
            progress.done("gone");
        }
        return Ok(());
    }
    let kubeconfig = lab.kubeconfig();
    println!("\nlogs: {}/*.log\n\n  export KUBECONFIG={}", lab.folder().display(), kubeconfig.display());
    if pod {
        println!("  kubectl get nodes,pods -o wide");
        println!("  kubectl edit configmap {}", demo::CONFIG_MAP);
        println!("  kubectl delete pod {}", demo::POD);
    } else {
        println!(
            "  kubectl get namespaces\n  kubectl create configmap greeting --from-literal=text=hello\n  kubectl get configmaps -w"
        );
    }
    println!("  kubectl edit device {0}; kubectl get devicestatus {0} -o yaml", device::DEVICE);
    println!("\nWhat happens from now on (Ctrl-C ends it and takes everything away):");
    lab.guarded(async |lab| changes::show(lab.client()?).await).await
}

/// SIGINT and SIGTERM.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("catch signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
