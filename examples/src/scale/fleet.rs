//! Generators, seen from outside.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{ChildStdin, ChildStdout},
};

use super::{
    Tally,
    generator::Plan,
    tally::{Held, questions},
};
use crate::process::{Launch, Process};

/// Processes of hollow nodes. They end with this value.
pub struct Fleet {
    program: PathBuf,
    network: Option<PathBuf>,
    generators: Vec<Generator>,
}

struct Generator {
    process: Process,
    questions: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Fleet {
    /// Of generators that `program nodes` runs, in a network namespace if one is named.
    pub fn new(program: PathBuf, network: Option<PathBuf>) -> Self {
        Self { program, network, generators: Vec::new() }
    }

    /// Another one of the same program and network, without processes.
    pub fn none_yet(&self) -> Self {
        Self::new(self.program.clone(), self.network.clone())
    }

    /// Starts one more.
    pub fn start(&mut self, plan: &Plan, log: &Path) -> Result<()> {
        let mut launch = Launch::new("hollow nodes", &self.program, log)
            .arg("nodes")
            .args(["--first".to_owned(), plan.first.to_string(), "--count".to_owned(), plan.count.to_string()])
            .arg("--authority")
            .arg(&plan.authority)
            .env("RUST_LOG", "error");
        if let Some(stores) = &plan.stores {
            launch = launch.arg("--stores").arg(stores);
        }
        for link in &plan.links {
            launch = launch.args(["--link", link]);
        }
        if let Some(network) = &self.network {
            launch = launch.in_network(network);
        }
        let (process, questions, answers) = launch.spawn_piped()?;
        self.generators.push(Generator { process, questions, answers: BufReader::new(answers).lines() });
        Ok(())
    }

    /// The sum of what all have counted.
    pub async fn tally(&mut self) -> Result<Tally> {
        self.sum(questions::TALLY).await
    }

    /// The same; latencies begin anew after it.
    pub async fn take_latencies(&mut self) -> Result<Tally> {
        self.sum(questions::LATENCIES).await
    }

    /// By node, the stamp of each object that it holds; 0 for one without a stamp.
    pub async fn held(&mut self) -> Result<Held> {
        let mut all = Held::new();
        for generator in &mut self.generators {
            all.extend(generator.ask::<Held>(questions::HELD).await?);
        }
        Ok(all)
    }

    /// Their processor time and resident memory, bytes.
    pub fn cost(&self) -> Result<(std::time::Duration, u64)> {
        let mut sum = (std::time::Duration::ZERO, 0);
        for generator in &self.generators {
            sum.0 += generator.process.processor_time()?;
            sum.1 += generator.process.memory()?.resident;
        }
        Ok(sum)
    }

    /// How many processes there are.
    pub fn processes(&self) -> usize {
        self.generators.len()
    }

    /// Ends them. An early end of one is an error.
    pub async fn stop(self) -> Result<()> {
        for Generator { mut process, questions, .. } in self.generators {
            drop(questions);
            let status = process.ended().await?;
            ensure!(status.success(), "{}", process.ended_early(status));
        }
        Ok(())
    }

    async fn sum(&mut self, question: &str) -> Result<Tally> {
        let mut sum = Tally::default();
        for generator in &mut self.generators {
            sum.add(&generator.ask::<Tally>(question).await?);
        }
        Ok(sum)
    }
}

impl Generator {
    async fn ask<T: DeserializeOwned>(&mut self, question: &str) -> Result<T> {
        let asked = async {
            self.questions.write_all(format!("{question}\n").as_bytes()).await?;
            self.answers.next_line().await?.context("it has ended")
        };
        match asked.await {
            Ok(answer) => Ok(serde_json::from_str(&answer)?),
            Err(error) => Err(error).with_context(|| format!("hollow nodes: {}", self.process.log_tail())),
        }
    }
}
