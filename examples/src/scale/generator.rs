//! A process of hollow nodes, all on one thread. It answers questions, one a line, until its standard input ends.

use std::{
    cell::RefCell,
    io::Write,
    path::PathBuf,
    rc::Rc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use kubeedge_actors::{
    identity::CertificateAuthority,
    store::{self, Store},
};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{
    Tally,
    node::{Node, start},
    tally::{Held, questions},
};

/// Descriptors of one process, of which some are not sockets.
pub const MOST_NODES: usize = 19_000;
/// Nodes that may be on their way to their first link at a time: a fleet that is switched on site by site.
const UNDER_WAY: u64 = 256;
/// How often it is looked whether more may start, and a part of the nodes' heartbeats is counted.
const TICK: Duration = Duration::from_millis(20);
/// Every node's heartbeat is looked at once in so many ticks: more often than heartbeats come.
const ROUND: usize = 250;

/// Which nodes, and where their cloud is.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The number of the first node; its name is `hollow-` and the number.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// `host:port` of the link; taken in turn, so that not all nodes come from one address.
    pub links: Vec<String>,
    /// The folder of the authority, which signs the nodes' certificates.
    pub authority: PathBuf,
    /// The folder of the nodes' stores; without one they are in memory.
    pub stores: Option<PathBuf>,
}

/// The name of a node.
pub fn node_name(number: usize) -> String {
    format!("hollow-{number}")
}

/// Runs them.
pub fn run(plan: &Plan) -> Result<()> {
    ensure!(plan.count <= MOST_NODES, "{} nodes, expected at most {MOST_NODES} in a process", plan.count);
    ensure!(!plan.links.is_empty(), "no address of the link");
    let authority = CertificateAuthority::load_or_create(&plan.authority, SystemTime::now())?;
    actix_rt::System::new().block_on(serve(plan, &authority))
}

async fn serve(plan: &Plan, authority: &CertificateAuthority) -> Result<()> {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let mut nodes: Vec<Node> = Vec::with_capacity(plan.count);
    let mut asked = questions_asked()?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut at = 0;
    loop {
        tokio::select! {
            question = asked.recv() => {
                let Some(question) = question else { return Ok(()) };
                match question?.as_str() {
                    questions::TALLY => answer(&*tally.borrow())?,
                    questions::LATENCIES => {
                        answer(&*tally.borrow())?;
                        tally.borrow_mut().forget_latencies();
                    }
                    questions::HELD => {
                        let held = nodes.iter().map(|node| (node.name.to_string(), node.configs.borrow().clone()));
                        answer(&held.collect::<Held>())?;
                    }
                    other => anyhow::bail!("{other:?} is no question"),
                }
            }
            _ = tick.tick() => {
                let under_way = nodes.len() as u64 - tally.borrow().connections.min(nodes.len() as u64);
                let more = UNDER_WAY.saturating_sub(under_way).min((plan.count - nodes.len()) as u64).min(16);
                for _ in 0..more {
                    let number = plan.first + nodes.len();
                    let link = plan.links[number % plan.links.len()].clone();
                    let name = node_name(number);
                    let store = match &plan.stores {
                        Some(folder) => Store::open(&folder.join(&name), store::Options::default())?.store,
                        None => Store::in_memory(),
                    };
                    let name = name.parse().context("a node's name")?;
                    nodes.push(start(name, link, store, authority, Rc::clone(&tally)).await?);
                    tally.borrow_mut().started += 1;
                }
                let part = nodes.len().div_ceil(ROUND);
                for _ in 0..part {
                    at = (at + 1) % nodes.len();
                    nodes[at].count_heartbeat(&mut tally.borrow_mut());
                }
            }
        }
    }
}

/// The lines of standard input, until it ends.
fn questions_asked() -> Result<mpsc::Receiver<std::io::Result<String>>> {
    let (ask, asked) = mpsc::channel(1);
    let read = move || {
        for line in std::io::stdin().lines() {
            if ask.blocking_send(line).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("questions".into()).spawn(read).context("start a thread")?;
    Ok(asked)
}

fn answer(value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).context("answer")
}
