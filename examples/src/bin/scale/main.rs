//! How many nodes one cloudcore carries, and what each costs: `make scale NODES=n`.
//!
//! `scale nodes` is a process of hollow nodes; `scale` alone starts a cloud and such processes and measures. Needs root:
//! the nodes are at the other end of a veth pair, whose counters say what the line carries. `docs/scaling.md` says what
//! each figure means.

#![allow(clippy::print_stdout, reason = "its output is for a person")]

mod figures;
mod measure;
mod phases;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use kubeedge_examples::scale::generator::{self, Plan};

/// Hollow nodes, and what they cost a cloudcore.
#[derive(Parser)]
#[command(name = "scale", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    measure: Measure,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run hollow nodes until standard input ends
    Nodes(Nodes),
}

/// What is measured.
#[derive(Args)]
struct Measure {
    /// How many nodes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(200..=19_000))]
    nodes: u32,
    /// Where cloudcore is
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    /// How many seconds the nodes are idle before their memory is looked at
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// How many seconds the line of idle nodes is watched
    #[arg(long, default_value_t = 600)]
    traffic: u64,
}

#[derive(Args)]
struct Nodes {
    /// The number of the first
    #[arg(long)]
    first: usize,
    /// How many
    #[arg(long)]
    count: usize,
    /// An address of the link, host:port; they take turns
    #[arg(long = "link", required = true)]
    links: Vec<String>,
    /// The folder of the authority that signs their certificates
    #[arg(long)]
    authority: PathBuf,
    /// The folder of their stores; without it they are in memory
    #[arg(long)]
    stores: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Cli::parse() {
        Cli { command: Some(Command::Nodes(nodes)), .. } => run_nodes(nodes),
        Cli { measure, .. } => run(measure),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_nodes(Nodes { first, count, links, authority, stores }: Nodes) -> Result<()> {
    kubeedge_actors::program::log();
    generator::run(&Plan { first, count, links, authority, stores })
}

fn run(arguments: Measure) -> Result<()> {
    let plan = measure::Plan {
        nodes: arguments.nodes as usize,
        programs: arguments.programs.canonicalize()?,
        idle: Duration::from_secs(arguments.idle),
        traffic: Duration::from_secs(arguments.traffic),
    };
    // One thread: children are told when the thread that started them ends, and this one ends last.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure::run(plan))
}
