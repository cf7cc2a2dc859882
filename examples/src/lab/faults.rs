//! Ends parts of the lab: in order, or as a crash or a cut cable would.

use std::{
    path::PathBuf,
    process::ExitStatus,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::{Lab, STOP_LIMIT};
use crate::process::{Memory, Meter, Process};

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// With what.
    pub status: ExitStatus,
    /// From the signal on.
    pub took: Duration,
}

impl Lab {
    /// Whether cloudcore was started and not ended.
    pub fn cloud_runs(&self) -> bool {
        self.cloud.is_some()
    }

    /// Whether edgecore was started and not ended.
    pub fn edge_runs(&self) -> bool {
        self.edge.is_some()
    }

    /// Ends cloudcore with SIGTERM. [`Lab::resume_cloud`] starts it again.
    pub async fn stop_cloud(&mut self) -> Result<Ended> {
        self.client = None;
        stop(self.cloud.take().context("the cloud does not run")?).await
    }

    /// Ends edgecore with SIGTERM; its pods are not its children. [`Lab::start_edge`] starts it again.
    pub async fn stop_edge(&mut self) -> Result<Ended> {
        stop(self.edge.take().context("the edge does not run")?).await
    }

    /// Tells edgecore that the power goes, and waits until it has ended.
    pub async fn power_failure(&mut self) -> Result<()> {
        let mut edge = self.edge.take().context("the edge does not run")?;
        edge.signal(Signal::POWER)?;
        let ended = tokio::time::timeout(STOP_LIMIT, edge.ended()).await;
        let status = ended.with_context(|| format!("edgecore did not end within {STOP_LIMIT:?}"))??;
        ensure!(status.success(), "edgecore ended with {status}");
        Ok(())
    }

    /// Ends edgecore with SIGKILL.
    pub async fn kill_edge(&mut self) -> Result<()> {
        self.edge.take().context("the edge does not run")?.kill().await
    }

    /// Holds edgecore where it is, until [`Lab::thaw_edge`].
    pub fn freeze_edge(&self) -> Result<()> {
        self.edge.as_ref().context("the edge does not run")?.signal(Signal::STOP)
    }

    /// Lets edgecore go on.
    pub fn thaw_edge(&self) -> Result<()> {
        self.edge.as_ref().context("the edge does not run")?.signal(Signal::CONT)
    }

    /// Ends cloudcore with SIGKILL. [`Lab::resume_cloud`] starts it again.
    pub async fn kill_cloud(&mut self) -> Result<()> {
        self.client = None;
        self.cloud.take().context("the cloud does not run")?.kill().await
    }

    /// Ends the container runtime with SIGKILL; pods go on. [`Lab::resume_containerd`] starts it again.
    pub async fn kill_containerd(&mut self) -> Result<()> {
        self.containerd.as_mut().context("containerd does not run")?.go_away().await
    }

    /// Starts the container runtime again, and waits until it answers.
    pub async fn resume_containerd(&mut self) -> Result<()> {
        self.containerd.as_mut().context("containerd does not run")?.come_back().await
    }

    /// Ends the example's mapper with SIGKILL. [`Lab::start_mapper`] starts it again.
    pub async fn kill_mapper(&mut self) -> Result<()> {
        self.mapper.take().context("the mapper does not run")?.kill().await
    }

    /// Empties the box, as a new system on it does: certificate, store, volumes and pods are gone. edgecore must not
    /// run; [`Lab::join`] makes the box a node again.
    pub async fn wipe_edge(&self) -> Result<()> {
        ensure!(!self.edge_runs(), "edgecore still runs");
        self.containerd()?.remove_all_pods().await?;
        self.forget_one("edge")
    }

    /// The memory that edgecore has in use.
    pub fn edge_memory(&self) -> Result<Memory> {
        self.edge.as_ref().context("the edge does not run")?.memory()
    }

    /// The processor time that edgecore has used.
    pub fn edge_processor_time(&self) -> Result<Duration> {
        self.edge.as_ref().context("the edge does not run")?.processor_time()
    }

    /// What edgecore takes, to be read within [`Lab::guarded`], which holds the process itself.
    pub fn edge_meter(&self) -> Result<Meter> {
        self.edge.as_ref().context("the edge does not run")?.meter()
    }

    /// Where the edge keeps what it has to remember.
    pub fn edge_store(&self) -> PathBuf {
        self.folder.join("edge/edgecore.store")
    }
}

async fn stop(process: Process) -> Result<Ended> {
    let began = Instant::now();
    let status = process.stop(STOP_LIMIT).await?;
    Ok(Ended { status, took: began.elapsed() })
}
