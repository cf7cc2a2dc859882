//! What edgecore takes of a box: `make size`. Its file, and its memory while it is linked, Ready and idle.

#![allow(clippy::print_stdout, reason = "its output is for a person")]

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use kubeedge_examples::{containerd::Tools, lab::Lab, process::Memory};

/// Of a stock edgecore with every module on, bytes: file, and resident memory.
const FILE_LIMIT: u64 = 15_000_000;
const MEMORY_LIMIT: u64 = 15_000_000;
/// Between two looks at the memory.
const TICK: Duration = Duration::from_secs(1);

/// What edgecore takes of a box; fails beyond 15 MB of either.
#[derive(Parser)]
#[command(name = "size")]
struct Arguments {
    /// Where cloudcore and edgecore are, as `make build` makes them
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    /// How many seconds it is watched; the most memory in use counts
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

// One thread: children are told when the thread that started them ends, and this one ends last.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("size: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(Arguments { programs, seconds }: Arguments) -> Result<()> {
    for program in ["cloudcore", "edgecore"] {
        println!("{program:<10} {:>6.2} MB file", megabytes(file(&programs, program)?));
    }
    let tools = Tools::find()?;
    let folder = tempfile::Builder::new().prefix("ke").tempdir()?;
    let mut lab = Lab::open(folder.path(), Some(programs.clone()))?;
    let watched = watch(&mut lab, tools, Duration::from_secs(seconds)).await;
    let left = lab.close().await;
    let (first, most) = watched?;
    let left = left?;
    ensure!(left.is_empty(), "left on this machine: {left:?}");
    for (when, memory) in [("Ready", first), ("most of idle", most)] {
        println!(
            "edgecore   {:>6.2} MB resident, {:.2} MB of them its own, {when}",
            megabytes(memory.resident),
            megabytes(memory.anonymous)
        );
    }
    let size = file(&programs, "edgecore")?;
    ensure!(size < FILE_LIMIT, "edgecore is a file of {size} bytes, expected less than {FILE_LIMIT}");
    let resident = most.resident;
    ensure!(resident < MEMORY_LIMIT, "edgecore has {resident} bytes of memory, expected less than {MEMORY_LIMIT}");
    Ok(())
}

/// The memory when the node is Ready, and the most of it afterwards, without a pod.
async fn watch(lab: &mut Lab, tools: Tools, period: Duration) -> Result<(Memory, Memory)> {
    lab.up(tools).await?;
    let first = lab.edge_memory()?;
    let mut most = first;
    let mut tick = tokio::time::interval(TICK);
    let end = tokio::time::Instant::now() + period;
    while tokio::time::Instant::now() < end {
        tick.tick().await;
        let now = lab.edge_memory()?;
        if now.resident > most.resident {
            most = now;
        }
    }
    Ok((first, most))
}

fn file(programs: &Path, program: &str) -> Result<u64> {
    let path = programs.join(program);
    Ok(path.metadata().with_context(|| format!("{}: run `make build`", path.display()))?.len())
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
