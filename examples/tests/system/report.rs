//! Runs scenarios by name and tells how each went.

use std::{
    collections::BTreeSet,
    fmt::Display,
    panic::AssertUnwindSafe,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use kubeedge_examples::{containerd::Tools, lab::Lab};
use tempfile::TempDir;

/// No scenario may take longer: what hangs is a failure.
const LIMIT: Duration = Duration::from_secs(150);

/// How a scenario went, unless it failed.
pub(crate) enum Outcome {
    /// It holds.
    Proved,
    /// It could not be tried here, for this reason.
    Skipped(String),
}

/// What a scenario comes to without something that a machine of CI surely has: skipped, in CI failed.
pub(crate) fn missing(why: impl Display) -> Result<Outcome> {
    match std::env::var_os("CI") {
        None => Ok(Outcome::Skipped(why.to_string())),
        Some(_) => Err(anyhow!("{why}")),
    }
}

/// A scenario at work.
pub(crate) type Work<'a> = LocalBoxFuture<'a, Result<Outcome>>;

/// What was asked for and what came of it.
pub(crate) struct Report {
    filters: Vec<String>,
    list: bool,
    passed: usize,
    skipped: usize,
    failed: BTreeSet<&'static str>,
}

impl Report {
    /// Takes the parts of names that `cargo test` passes on; flags of the usual test program have no meaning here.
    pub(crate) fn from_arguments(arguments: impl Iterator<Item = String>) -> Self {
        let (flags, filters): (Vec<_>, Vec<_>) = arguments.partition(|argument| argument.starts_with('-'));
        let list = flags.iter().any(|flag| flag == "--list");
        Self { filters, list, passed: 0, skipped: 0, failed: BTreeSet::new() }
    }

    /// For stages beside this report's, to be added at their end.
    pub(crate) fn another(&self) -> Self {
        Self { filters: self.filters.clone(), list: self.list, passed: 0, skipped: 0, failed: BTreeSet::new() }
    }

    /// Adds what came of stages beside this report's.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.skipped += other.skipped;
        self.failed.extend(other.failed);
    }

    /// Whether this scenario was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter.as_str()))
    }

    /// Whether a stage with these scenarios has anything to do. Lists them, if that was all that was asked for.
    pub(crate) fn begins(&self, names: &[&str]) -> bool {
        let mut wanted = names.iter().filter(|name| self.wants(name)).peekable();
        if self.list {
            wanted.for_each(|name| println!("{name}: test"));
            return false;
        }
        wanted.peek().is_some()
    }

    /// The tools that containers take; without them the scenarios are skipped, in CI failed.
    pub(crate) fn tools(&mut self, tools: &Result<Tools>, names: &[&'static str]) -> Option<Tools> {
        let why = match tools {
            Ok(tools) => return Some(tools.clone()),
            Err(why) => format!("{why:#}"),
        };
        for name in names.iter().copied().filter(|name| self.wants(name)).collect::<Vec<_>>() {
            self.tell(name, missing(&why), Duration::ZERO);
        }
        None
    }

    /// Runs one scenario, if it was asked for.
    pub(crate) async fn run(&mut self, name: &'static str, work: impl Future<Output = Result<Outcome>>) {
        self.run_within(name, LIMIT, work).await;
    }

    /// Runs one scenario that may take longer than others, if it was asked for.
    pub(crate) async fn run_within(
        &mut self,
        name: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<Outcome>>,
    ) {
        if self.wants(name) {
            let (outcome, took) = guarded_for(limit, work).await;
            self.tell(name, outcome, took);
        }
    }

    /// Runs what others need, whatever was asked for.
    pub(crate) async fn always(&mut self, name: &'static str, work: impl Future<Output = Result<Outcome>>) {
        let (outcome, took) = guarded(work).await;
        self.tell(name, outcome, took);
    }

    /// Whether anything failed so far.
    pub(crate) fn failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Runs scenarios that do not disturb each other at the same time.
    pub(crate) async fn together(&mut self, scenarios: Vec<(&'static str, Work<'_>)>) {
        let wanted = scenarios.into_iter().filter(|(name, _)| self.wants(name)).collect::<Vec<_>>();
        let mut running: FuturesUnordered<_> = wanted
            .into_iter()
            .map(|(name, work)| guarded(work).map(move |(outcome, took)| (name, outcome, took)))
            .collect();
        while let Some((name, outcome, took)) = running.next().await {
            self.tell(name, outcome, took);
        }
    }

    /// Brings a lab up in a temporary folder. One that does not come up is taken away again.
    pub(crate) async fn lab(
        &mut self,
        name: &'static str,
        up: impl AsyncFnOnce(&mut Lab) -> Result<()>,
    ) -> Option<(Lab, TempDir)> {
        let opened = || -> Result<(Lab, TempDir)> {
            let folder = tempfile::Builder::new().prefix("ke").tempdir()?;
            let program = Path::new(env!("CARGO_BIN_EXE_quickstart"));
            let programs = program.parent().context("a program is in a folder")?;
            Ok((Lab::open(folder.path(), Some(programs.to_owned()))?, folder))
        };
        let (mut lab, folder) = match opened() {
            Ok(opened) => opened,
            Err(error) => {
                self.tell(name, Err(error), Duration::ZERO);
                return None;
            }
        };
        let (outcome, took) = guarded(async {
            up(&mut lab).await?;
            Ok(Outcome::Proved)
        })
        .await;
        let ready = outcome.is_ok();
        self.tell(name, outcome, took);
        if ready {
            return Some((lab, folder));
        }
        self.close(name, lab, folder, Ok(())).await;
        None
    }

    /// Takes a lab away; what it left on the machine is a failure. Keeps the folder's logs when something failed.
    /// `ended` is an early end of one of its processes.
    pub(crate) async fn close(&mut self, name: &'static str, lab: Lab, folder: TempDir, ended: Result<()>) {
        let work = async {
            let left = lab.close().await;
            ended?;
            let left = left?;
            ensure!(left.is_empty(), "left on this machine: {left:?}");
            Ok(Outcome::Proved)
        };
        let (outcome, took) = guarded(work).await;
        self.tell(name, outcome, took);
        if !self.failed.is_empty() {
            println!("     logs are kept in {}", folder.keep().display());
        }
    }

    fn tell(&mut self, name: &'static str, outcome: Result<Outcome>, took: Duration) {
        let seconds = took.as_secs_f32();
        match outcome {
            Ok(Outcome::Proved) => {
                self.passed += 1;
                println!("test {name} ... ok ({seconds:.1} s)");
            }
            Ok(Outcome::Skipped(why)) => {
                self.skipped += 1;
                println!("test {name} ... skipped: {why}");
            }
            Err(error) => {
                println!("test {name} ... FAILED ({seconds:.1} s)\n     {error:#}");
                self.failed.insert(name);
            }
        }
    }

    /// The sum.
    pub(crate) fn finish(self) -> ExitCode {
        if self.list {
            return ExitCode::SUCCESS;
        }
        let Self { passed, skipped, failed, .. } = self;
        println!("\nsystem: {passed} passed, {} failed, {skipped} skipped", failed.len());
        for name in &failed {
            println!("    {name}");
        }
        if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

async fn guarded(work: impl Future<Output = Result<Outcome>>) -> (Result<Outcome>, Duration) {
    guarded_for(LIMIT, work).await
}

/// A panic or a hang fails one scenario, not the others.
async fn guarded_for(limit: Duration, work: impl Future<Output = Result<Outcome>>) -> (Result<Outcome>, Duration) {
    let began = Instant::now();
    let outcome = match tokio::time::timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(outcome)) => outcome,
        // The panic's own message is on standard error already.
        Ok(Err(_)) => Err(anyhow!("it panicked")),
        Err(elapsed) => Err(elapsed).with_context(|| format!("it did not end within {limit:?}")),
    };
    (outcome, began.elapsed())
}
