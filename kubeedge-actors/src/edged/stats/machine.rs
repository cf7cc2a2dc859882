//! What the machine uses, from `/proc`.

use std::{fs, io, path::Path};

use kubeedge_proto::v1::InterfaceStats;

use crate::edged::node::readings::ReadingError;

/// Ticks of `/proc/stat` a second: fixed in Linux' interface to programs.
const TICKS: u64 = 100;
/// Interfaces that are told at most.
const MAX_INTERFACES: usize = 32;

/// One look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineUsage {
    /// Processor time since the start that was not idle, nanoseconds of one core.
    pub cpu_nano_seconds: u64,
    /// When the machine was started, nanoseconds since 1970.
    pub booted: i64,
    /// All memory, bytes.
    pub memory: u64,
    /// Memory that nobody has, bytes.
    pub memory_free: u64,
    /// Memory of files that were not used of late, bytes.
    pub inactive_file: u64,
    /// Memory that belongs to no file, bytes.
    pub anonymous: u64,
    /// Page faults since the start.
    pub page_faults: u64,
    /// Those that had to wait for a disk.
    pub major_page_faults: u64,
    /// Network interfaces but loopback and pods' ends.
    pub interfaces: Vec<InterfaceStats>,
}

impl MachineUsage {
    /// Reads `proc`. Small reads of memory: for the blocking pool all the same.
    pub fn read(proc: &Path) -> Result<Self, ReadingError> {
        let file = |name: &str| {
            let path = proc.join(name);
            fs::read_to_string(&path).map_err(|source| ReadingError { path, source })
        };
        let strange = |name: &str| {
            let source = io::Error::new(io::ErrorKind::InvalidData, "not in the form that Linux writes");
            ReadingError { path: proc.join(name), source }
        };
        let stat = file("stat")?;
        let (cpu_nano_seconds, booted) = stat_fields(&stat).ok_or_else(|| strange("stat"))?;
        let memory = file("meminfo")?;
        let bytes = |name: &str| kibibytes(&memory, name);
        let faults = file("vmstat").unwrap_or_default();
        Ok(Self {
            cpu_nano_seconds,
            booted,
            memory: bytes("MemTotal").ok_or_else(|| strange("meminfo"))?,
            memory_free: bytes("MemFree").ok_or_else(|| strange("meminfo"))?,
            inactive_file: bytes("Inactive(file)").unwrap_or(0),
            anonymous: bytes("AnonPages").unwrap_or(0),
            page_faults: counter(&faults, "pgfault"),
            major_page_faults: counter(&faults, "pgmajfault"),
            interfaces: interfaces(&file("net/dev").unwrap_or_default()),
        })
    }
}

/// Time that was not idle, and the time of the start.
fn stat_fields(text: &str) -> Option<(u64, i64)> {
    let cpu = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = cpu.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    // user nice system idle iowait irq softirq steal; guests are in user.
    let busy =
        [0, 1, 2, 5, 6, 7].into_iter().filter_map(|at| ticks.get(at)).fold(0_u64, |sum, n| sum.saturating_add(*n));
    let booted: i64 = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some((busy.saturating_mul(1_000_000_000 / TICKS), booted.checked_mul(1_000_000_000)?))
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn counter(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn interfaces(text: &str) -> Vec<InterfaceStats> {
    let lines = text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let name = name.trim();
        let numbers: Vec<u64> = numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let [received_bytes, _, receive_errors, _, _, _, _, _, sent_bytes, _, send_errors, ..] = numbers[..] else {
            return None;
        };
        let own = name != "lo" && !name.starts_with("veth");
        own.then(|| InterfaceStats { name: name.to_owned(), received_bytes, receive_errors, sent_bytes, send_errors })
    });
    lines.take(MAX_INTERFACES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_linux_are_understood() {
        let stat = "cpu  10 20 30 4000 500 6 7 8 9 0\ncpu0 1 2 3\nbtime 1700000000\n";
        assert_eq!(stat_fields(stat), Some((81 * 10_000_000, 1_700_000_000_000_000_000)));
        assert_eq!((stat_fields("cpu  1 x\nbtime 1"), stat_fields("cpu  1 2 3")), (None, None));
        assert_eq!(kibibytes("MemFree:  3 kB\nInactive(file):  2 kB\n", "Inactive(file)"), Some(2048));
        assert_eq!((counter("pgfault 12\npgmajfault 3", "pgmajfault"), counter("", "pgfault")), (3, 0));
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                   eth0: 10 1 2 0 0 0 0 0 20 1 3 0 0 0 0 0\nveth1: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n bad: 1\n";
        let found = interfaces(dev);
        assert_eq!(found.len(), 1);
        let InterfaceStats { name, received_bytes, receive_errors, sent_bytes, send_errors } = &found[0];
        assert_eq!(
            (name.as_str(), *received_bytes, *receive_errors, *sent_bytes, *send_errors),
            ("eth0", 10, 2, 20, 3)
        );
    }

    #[test]
    fn this_machine_can_be_read() {
        let usage = MachineUsage::read(Path::new("/proc")).unwrap();
        assert!(usage.cpu_nano_seconds > 0 && usage.memory > usage.memory_free && usage.booted > 0);
        let missing = MachineUsage::read(Path::new("/nowhere")).unwrap_err();
        assert_eq!(missing.path, Path::new("/nowhere/stat"));
    }
}
