//! What the machine says about itself: from `/proc`, `/sys`, `/etc` and the file systems.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// A file of the machine that must be there and cannot be read or understood.
#[derive(Debug, Error)]
#[error("cannot read {path}: {source}", path = path.display())]
pub struct ReadingError {
    /// The file or directory.
    pub path: PathBuf,
    /// The system's answer, or what is wrong with the content.
    pub source: io::Error,
}

/// Where to read.
#[derive(Clone, Debug)]
pub struct MachinePaths {
    /// `/proc`
    pub proc: PathBuf,
    /// `/sys`
    pub sys: PathBuf,
    /// `/etc`
    pub etc: PathBuf,
    /// The directory of pods' volumes: the file system that `ephemeral-storage` means.
    pub root_dir: PathBuf,
    /// The runtime's directory of images.
    pub image_dir: PathBuf,
}

impl Default for MachinePaths {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            sys: "/sys".into(),
            etc: "/etc".into(),
            root_dir: "/var/lib/kubelet".into(),
            image_dir: "/var/lib/containerd".into(),
        }
    }
}

/// The fill of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskReading {
    /// Its size, bytes.
    pub capacity: u64,
    /// What is free for everyone, bytes.
    pub available: u64,
    /// How many files it can hold; 0 if it does not count them.
    pub inodes: u64,
    /// How many more files it can hold.
    pub inodes_free: u64,
}

/// One look at the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineReadings {
    /// Processors that are online.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory: u64,
    /// Memory that can be had without swapping, bytes.
    pub memory_available: u64,
    /// Huge pages that are set aside, by their size in bytes.
    pub huge_pages: BTreeMap<u64, u64>,
    /// The file system of the pods' volumes.
    pub disk: DiskReading,
    /// The file system of the images; may be the same.
    pub image_disk: DiskReading,
    /// How many processes and threads there can be.
    pub pids: u64,
    /// How many there are.
    pub pids_used: u64,
    /// `/etc/machine-id`
    pub machine_id: String,
    /// The firmware's id of the machine; that of the operating system where there is none.
    pub system_uuid: String,
    /// Differs with each boot.
    pub boot_id: String,
    /// `uname -r`
    pub kernel_version: String,
    /// The operating system's name for people.
    pub os_image: String,
    /// Kubernetes' name of the architecture: `amd64`, `arm64`.
    pub architecture: &'static str,
}

impl MachineReadings {
    /// Looks at the machine. Some milliseconds of small reads: for the blocking pool.
    pub fn read(paths: &MachinePaths) -> Result<Self, ReadingError> {
        let (proc, sys, etc) = (&paths.proc, &paths.sys, &paths.etc);
        let (memory, memory_available) = parsed(&proc.join("meminfo"), meminfo)?;
        let pid_max = parsed(&proc.join("sys/kernel/pid_max"), number)?;
        let threads_max = parsed(&proc.join("sys/kernel/threads-max"), number)?;
        let machine_id = optional(&etc.join("machine-id"));
        let system_uuid = Some(optional(&sys.join("class/dmi/id/product_uuid"))).filter(|uuid| !uuid.is_empty());
        let os_release = [etc.join("os-release"), "/usr/lib/os-release".into()];
        let os_image = os_release.iter().find_map(|path| pretty_name(&optional(path)));
        Ok(Self {
            cpus: parsed(&sys.join("devices/system/cpu/online"), cpu_list)?,
            memory,
            memory_available,
            huge_pages: huge_pages(&sys.join("kernel/mm/hugepages")),
            disk: disk(&paths.root_dir)?,
            image_disk: disk(&paths.image_dir)?,
            pids: pid_max.min(threads_max),
            pids_used: parsed(&proc.join("loadavg"), tasks)?,
            system_uuid: system_uuid.unwrap_or_else(|| machine_id.clone()),
            machine_id,
            boot_id: parsed(&proc.join("sys/kernel/random/boot_id"), |text| Some(text.to_owned()))?,
            kernel_version: parsed(&proc.join("sys/kernel/osrelease"), |text| Some(text.to_owned()))?,
            os_image: os_image.unwrap_or_else(|| "Linux".to_owned()),
            architecture: architecture(),
        })
    }
}

fn parsed<T>(path: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<T, ReadingError> {
    let failed = |source| ReadingError { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    let strange = || failed(io::Error::new(io::ErrorKind::InvalidData, "not in the form that Linux writes"));
    parse(text.trim()).ok_or_else(strange)
}

/// What is not on every machine; without it the node is only described less well.
fn optional(path: &Path) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// `MemTotal` and `MemAvailable`, in bytes.
fn meminfo(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((field("MemTotal")?, field("MemAvailable").or_else(|| field("MemFree"))?))
}

/// How many processors `0-3,5` are.
fn cpu_list(text: &str) -> Option<u32> {
    let mut count = 0_u32;
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// The number of tasks in `/proc/loadavg`: `0.00 0.01 0.05 1/123 4567`.
fn tasks(text: &str) -> Option<u64> {
    text.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

fn huge_pages(dir: &Path) -> BTreeMap<u64, u64> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeMap::new() };
    let page = |name: &str| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()?.checked_mul(1024);
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let size = page(entry.file_name().to_str()?)?;
            Some((size, optional(&entry.path().join("nr_hugepages")).parse().unwrap_or(0)))
        })
        .collect()
}

/// `PRETTY_NAME` of an `os-release`.
fn pretty_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned()).filter(|name| !name.is_empty())
}

/// The fill of the file system that holds `path`, or will hold it: its nearest ancestor that exists.
pub(crate) fn disk(path: &Path) -> Result<DiskReading, ReadingError> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let failed = |errno: rustix::io::Errno| ReadingError { path: existing.to_owned(), source: errno.into() };
    let stat = rustix::fs::statvfs(existing).map_err(failed)?;
    Ok(DiskReading {
        capacity: stat.f_blocks.saturating_mul(stat.f_frsize),
        available: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        inodes_free: stat.f_favail,
    })
}

/// Kubernetes' (that is Go's) name of this architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_linux_are_understood() {
        let text = "MemTotal:       24684100 kB\nMemFree:         100 kB\nMemAvailable:   23283964 kB\n";
        assert_eq!(meminfo(text), Some((24_684_100 << 10, 23_283_964 << 10)));
        assert_eq!(meminfo("MemTotal: 1 kB\nMemFree: 2 kB"), Some((1024, 2048)), "before Linux 3.14");
        assert_eq!(meminfo("MemTotal: x kB"), None);
        assert_eq!((cpu_list("0"), cpu_list("0-3"), cpu_list("0-3,5,8-9")), (Some(1), Some(4), Some(7)));
        assert_eq!((cpu_list(""), cpu_list("3-0"), cpu_list("0-4294967295")), (None, None, None));
        assert_eq!((tasks("0.00 0.01 0.05 1/123 4567"), tasks("0.00")), (Some(123), None));
        assert_eq!(pretty_name("NAME=x\nPRETTY_NAME=\"Some Linux 1 (a)\"\n").as_deref(), Some("Some Linux 1 (a)"));
        assert_eq!(pretty_name("NAME=x"), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        let readings = MachineReadings::read(&MachinePaths::default()).unwrap();
        assert!(readings.cpus > 0 && readings.memory > readings.memory_available && readings.memory_available > 0);
        assert!(readings.disk.capacity > readings.disk.available && readings.pids > readings.pids_used);
        assert_eq!(readings.boot_id.len(), 36);
        assert!(!readings.kernel_version.is_empty() && !readings.os_image.is_empty());
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let paths = MachinePaths { proc: dir.path().to_owned(), ..MachinePaths::default() };
        let error = MachineReadings::read(&paths).unwrap_err();
        assert_eq!(error.path, dir.path().join("meminfo"));
        fs::write(dir.path().join("meminfo"), "nonsense").unwrap();
        assert!(MachineReadings::read(&paths).unwrap_err().to_string().contains("not in the form"));
    }
}
