//! Network namespaces on this machine: a cloud, sites at the other end of a line each, and what can happen to a line.
//!
//! | what | how |
//! |---|---|
//! | [`Net::cut`] | the cloud's end of the line goes down: the other end loses its carrier |
//! | [`Net::drop_packets`] | iptables lets packets vanish where they arrive, in one direction or both, without a word |
//! | [`Net::lose`] | iptables `statistic` lets some of them vanish, in both directions |
//! | [`Net::slow`] | `tc tbf` at both ends |
//!
//! Packets do not vanish where they are sent: a kernel knows of what it drops itself, and its `TCP_USER_TIMEOUT` does not end
//! such a connection, as it does one whose packets get lost on their way (seen with Linux 6.18).
//!
//! Needs root. The names carry this process's id; what a process that is gone has left is taken away by the next one.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{find_program, search_path};

/// The cloud's one address, reached over every line.
pub const CLOUD: Ipv4Addr = Ipv4Addr::new(10, 99, 255, 1);
/// The most lines: each has a third byte of its own.
const MAX_LINES: u8 = 250;
/// Where `ip` keeps namespaces.
const FOLDER: &str = "/run/netns";
/// Our names: `ke`, the process's id, the place.
const PREFIX: &str = "ke";
/// Bytes that a slow line takes at once, and that wait in front of it at most: 1/8 s and 1/2 s at 1 Mbit/s.
const BURST: u32 = 16 * 1024;
const WAITING: u32 = 64 * 1024;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the edge.
    Down,
    /// To the cloud.
    Up,
    /// Either.
    Both,
}

impl Direction {
    /// Where packets of this direction arrive.
    fn ends(self) -> &'static [End] {
        match self {
            Self::Down => &[End::Edge],
            Self::Up => &[End::Cloud],
            Self::Both => &[End::Edge, End::Cloud],
        }
    }
}

/// Of a line.
#[derive(Clone, Copy)]
enum End {
    Edge,
    Cloud,
}

/// A cloud and lines to it. Taken down when dropped; [`Net::close`] says what went wrong with that.
#[derive(Debug)]
pub struct Net {
    lines: u8,
}

impl Net {
    /// Makes the namespaces. An error where the machine cannot do it, with nothing left.
    pub fn up(lines: u8) -> Result<Self> {
        ensure!(lines <= MAX_LINES, "{lines} lines, expected at most {MAX_LINES}");
        for program in ["ip", "iptables", "tc", "nsenter"] {
            ensure!(find_program(program).is_some(), "{program} is not installed");
        }
        sweep()?;
        let mut net = Self { lines: 0 };
        let cloud = net.cloud_name();
        ip(&format!("netns add {cloud}"))?;
        ip(&format!("-n {cloud} link set lo up"))?;
        ip(&format!("-n {cloud} addr add {CLOUD}/32 dev lo"))?;
        for line in 0..lines {
            let edge = edge_name(line);
            net.lines = line + 1;
            ip(&format!("netns add {edge}"))?;
            ip(&format!("-n {edge} link set lo up"))?;
            ip(&format!("link add line{line} netns {cloud} type veth peer name line netns {edge}"))?;
            ip(&format!("-n {cloud} addr add 10.99.{line}.1/24 dev line{line}"))?;
            ip(&format!("-n {edge} addr add 10.99.{line}.2/24 dev line"))?;
            ip(&format!("-n {edge} link set line up"))?;
            ip(&format!("-n {cloud} link set line{line} up"))?;
            ip(&format!("-n {edge} route add default via 10.99.{line}.1"))?;
            // What is done to packets that arrive from this line, apart from others'.
            net.iptables(line, End::Cloud, &format!("-N line{line}"))?;
            net.iptables(line, End::Cloud, &format!("-A INPUT -i line{line} -j line{line}"))?;
            // What the faults are made of has to be there.
            net.lose(line, 0.5)?;
            net.slow(line, 1_000_000)?;
            net.mend(line)?;
        }
        Ok(net)
    }

    /// How many lines there are.
    pub fn lines(&self) -> u8 {
        self.lines
    }

    /// The cloud's namespace.
    pub fn cloud(&self) -> PathBuf {
        Path::new(FOLDER).join(self.cloud_name())
    }

    /// The namespace at the end of a line.
    pub fn edge(&self, line: u8) -> PathBuf {
        Path::new(FOLDER).join(edge_name(line))
    }

    fn cloud_name(&self) -> String {
        format!("{PREFIX}{}-cloud", std::process::id())
    }

    /// Cuts a line.
    pub fn cut(&self, line: u8) -> Result<()> {
        ip(&format!("-n {} link set line{line} down", self.cloud_name()))
    }

    /// From now on packets vanish.
    pub fn drop_packets(&self, line: u8, direction: Direction) -> Result<()> {
        for end in direction.ends() {
            self.arriving(line, *end, "-j DROP")?;
        }
        Ok(())
    }

    /// From now on this part of the packets vanishes, either way: 0.1 is one of ten.
    pub fn lose(&self, line: u8, part: f64) -> Result<()> {
        for end in Direction::Both.ends() {
            self.arriving(line, *end, &format!("-m statistic --mode random --probability {part} -j DROP"))?;
        }
        Ok(())
    }

    /// From now on so many bits a second go through, either way.
    pub fn slow(&self, line: u8, bits: u32) -> Result<()> {
        let how = format!("root tbf rate {bits}bit burst {BURST} limit {WAITING}");
        for (name, link) in [(self.cloud_name(), format!("line{line}")), (edge_name(line), "line".to_owned())] {
            run("tc", &format!("-n {name} qdisc replace dev {link} {how}"))?;
        }
        Ok(())
    }

    /// Undoes all of it.
    pub fn mend(&self, line: u8) -> Result<()> {
        self.iptables(line, End::Edge, "-F INPUT")?;
        self.iptables(line, End::Cloud, &format!("-F line{line}"))?;
        for (name, link) in [(self.cloud_name(), format!("line{line}")), (edge_name(line), "line".to_owned())] {
            // An interface without one of its own has none to delete.
            if run("tc", &format!("-n {name} qdisc show dev {link}"))?.contains("tbf") {
                run("tc", &format!("-n {name} qdisc del dev {link} root"))?;
            }
        }
        ip(&format!("-n {} link set line{line} up", self.cloud_name()))
    }

    /// Bytes that went through a line since it was made: to the edge, to the cloud. Headers included.
    pub fn bytes(&self, line: u8) -> Result<(u64, u64)> {
        let shown = run("ip", &format!("-n {} -s -j link show dev line", edge_name(line)))?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        let bytes = |way: &str| shown[0]["stats64"][way]["bytes"].as_u64().context("no counter");
        Ok((bytes("rx")?, bytes("tx")?))
    }

    /// Gives the end of a line the addresses of so many sites, and the cloud one for each: who connects to the cloud's
    /// first address comes from the first site's, and so on. Returns the cloud's.
    pub fn sites(&self, line: u8, count: u8) -> Result<Vec<Ipv4Addr>> {
        let (cloud, edge) = (self.cloud_name(), edge_name(line));
        (0..count)
            .map(|site| {
                let here = Ipv4Addr::new(10, 98, line, site);
                ip(&format!("-n {cloud} addr add {here}/32 dev lo"))?;
                ip(&format!("-n {edge} addr add 10.97.{line}.{site}/32 dev line"))?;
                ip(&format!("-n {cloud} route add 10.97.{line}.{site}/32 via 10.99.{line}.2"))?;
                ip(&format!("-n {edge} route add {here}/32 via 10.99.{line}.1 src 10.97.{line}.{site}"))?;
                Ok(here)
            })
            .collect()
    }

    /// What happens to packets that arrive at an end.
    fn arriving(&self, line: u8, end: End, what: &str) -> Result<()> {
        match end {
            End::Edge => self.iptables(line, end, &format!("-A INPUT -i line {what}")),
            End::Cloud => self.iptables(line, end, &format!("-A line{line} {what}")),
        }
    }

    fn iptables(&self, line: u8, end: End, rule: &str) -> Result<()> {
        let namespace = match end {
            End::Edge => self.edge(line),
            End::Cloud => self.cloud(),
        };
        let network = format!("--net={}", namespace.display());
        run("nsenter", &format!("{network} -- iptables -w {rule}")).map(drop)
    }

    /// Takes everything down, and returns what is still there.
    pub fn close(self) -> Result<Vec<String>> {
        let left = self.take_down();
        std::mem::forget(self);
        left?;
        names_of(std::process::id())
    }

    fn take_down(&self) -> Result<()> {
        let mut first = Ok(());
        for name in names_of(std::process::id())? {
            let deleted = ip(&format!("netns del {name}"));
            first = first.and(deleted);
        }
        first
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Whoever wants to know calls `close`; what stays is taken away by the next run.
        let _ = self.take_down();
    }
}

fn edge_name(line: u8) -> String {
    format!("{PREFIX}{}-edge{line}", std::process::id())
}

/// Namespaces of a process.
fn names_of(pid: u32) -> Result<Vec<String>> {
    Ok(names()?.into_iter().filter(|(owner, _)| *owner == pid).map(|(_, name)| name).collect())
}

/// Our namespaces, each with the id of the process that made it.
fn names() -> Result<Vec<(u32, String)>> {
    let entries = match fs::read_dir(FOLDER) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {FOLDER}"))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let ours = |name: String| {
        let owner = name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()?;
        Some((owner, name))
    };
    Ok(names.filter_map(ours).collect())
}

/// Takes away what processes that are gone have left.
fn sweep() -> Result<()> {
    for (owner, name) in names()? {
        if !Path::new("/proc").join(owner.to_string()).exists() {
            ip(&format!("netns del {name}"))?;
        }
    }
    Ok(())
}

/// This thread is in another network namespace as long as this lives: what it connects, and whom it starts.
#[derive(Debug)]
pub struct Inside {
    before: File,
}

impl Inside {
    /// Enters. Only this thread does; a runtime with one thread does as a whole.
    pub fn enter(namespace: &Path) -> Result<Self> {
        let before = File::open("/proc/thread-self/ns/net").context("open this thread's network namespace")?;
        let there = File::open(namespace).with_context(|| format!("open {}", namespace.display()))?;
        move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("enter {}", namespace.display()))?;
        Ok(Self { before })
    }
}

impl Inside {
    /// Goes back to where it came from for as long as what this returns lives.
    pub fn leave(&self) -> Result<Self> {
        let here = File::open("/proc/thread-self/ns/net").context("open this thread's network namespace")?;
        move_into_link_name_space(self.before.as_fd(), Some(LinkNameSpaceType::Network)).context("go back")?;
        Ok(Self { before: here })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // It came from there; should it not get back, what it does next fails and says so.
        let _ = move_into_link_name_space(self.before.as_fd(), Some(LinkNameSpaceType::Network));
    }
}

fn ip(arguments: &str) -> Result<()> {
    run("ip", arguments).map(drop)
}

/// Runs a command of which no argument has a space in it; what it printed.
fn run(program: &str, arguments: &str) -> Result<String> {
    let output = Command::new(find_program(program).with_context(|| format!("{program} is not installed"))?)
        .args(arguments.split(' '))
        .env("PATH", search_path())
        .output();
    let Output { status, stdout, stderr } = output.with_context(|| program.to_owned())?;
    if !status.success() {
        bail!("{program} {arguments}: {}", String::from_utf8_lossy(&stderr).trim());
    }
    String::from_utf8(stdout).with_context(|| format!("{program} {arguments}: not UTF-8"))
}
