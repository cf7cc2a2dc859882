//! Processes of the container runtime that it has lost itself.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use kubeedge_examples::leftovers::{children_of, processes_naming};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

/// For the shims of removed sandboxes to end by themselves, some moments later.
const PATIENCE: Duration = Duration::from_secs(4);
const TICK: Duration = Duration::from_millis(100);

/// containerd 1.6 now and then loses the shim of a sandbox whose client went away while it was made, or that it was killed
/// over itself: it says "shim disconnected" and the empty process stays (containerd issues 7496 and 8931). No CRI call
/// names it any more, so no node can end it. They are told and ended here, if they hold nothing; a shim with a process is
/// a failure. `folder` is the runtime's, where no sandbox is any more.
pub(crate) async fn end_lost_shims(folder: &Path) -> Result<()> {
    let shims = || -> Result<Vec<u32>> {
        let all = processes_naming(folder)?;
        Ok(all.into_iter().filter(|(_, line)| line.contains("containerd-shim")).map(|(pid, _)| pid).collect())
    };
    let mut tick = tokio::time::interval(TICK);
    let patience = Instant::now() + PATIENCE;
    while !shims()?.is_empty() && Instant::now() < patience {
        tick.tick().await;
    }
    for pid in shims()? {
        let children = children_of(pid)?;
        ensure!(children.is_empty(), "the shim {pid} is not known to containerd and holds {children:?}");
        println!("     containerd has lost the empty shim {pid}: ended");
        let pid = Pid::from_raw(pid.cast_signed()).context("a process id")?;
        kill_process(pid, Signal::KILL).context("end a lost shim")?;
    }
    Ok(())
}
