//! Child processes with a log file each, that end with us: asked with SIGTERM, given time, then killed.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Where programs are looked for beside `PATH`: users other than root often lack the `sbin` folders.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `PATH` for us and our children.
pub fn search_path() -> OsString {
    match std::env::var_os("PATH") {
        Some(mut path) if !path.is_empty() => {
            path.push(":");
            path.push(SYSTEM_PATH);
            path
        }
        _ => SYSTEM_PATH.into(),
    }
}

/// Finds a program by name.
pub fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|path| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file())
}

/// A program about to be started.
pub struct Launch {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    log: PathBuf,
    network: Option<PathBuf>,
}

impl Launch {
    /// `name` is for messages; standard output and error go to the file `log`.
    pub fn new(name: &'static str, program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            name,
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log: log.into(),
            network: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts it in another network namespace (needs root, and `nsenter` of util-linux).
    #[must_use]
    pub fn in_network(mut self, namespace: impl Into<PathBuf>) -> Self {
        self.network = Some(namespace.into());
        self
    }

    /// Starts it in a process group of its own, so that Ctrl-C in a terminal reaches only us.
    ///
    /// The kernel sends it SIGTERM when the *thread* that called this ends, so call it from the main thread or one
    /// that lives as long as the child should (needs `setpriv` of util-linux; without it an orphan lives on).
    pub fn spawn(self) -> Result<Process> {
        self.start(false)
    }

    /// The same; its standard input and output are ours, and only its standard error goes to the log.
    pub fn spawn_piped(self) -> Result<(Process, ChildStdin, ChildStdout)> {
        let mut process = self.start(true)?;
        let (input, output) = (process.child.stdin.take(), process.child.stdout.take());
        Ok((process, input.context("its input is ours")?, output.context("its output is ours")?))
    }

    fn start(self, piped: bool) -> Result<Process> {
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(&self.log)
                .with_context(|| format!("open {}", self.log.display()))
        };
        let log = open()?;
        let start = log.metadata()?.len();
        let mut words: Vec<OsString> = Vec::new();
        if let Some(setpriv) = find_program("setpriv") {
            words.extend([setpriv.into(), "--pdeathsig".into(), "TERM".into(), "--".into()]);
        }
        if let Some(network) = &self.network {
            let nsenter = find_program("nsenter").context("nsenter is not installed")?;
            let mut network_flag = OsString::from("--net=");
            network_flag.push(network);
            words.extend([nsenter.into(), network_flag, "--".into()]);
        }
        words.push(self.program.clone().into());
        words.extend(self.arguments);
        let mut words = words.into_iter();
        let child = Command::new(words.next().context("there is at least the program")?)
            .args(words)
            .env("PATH", search_path())
            .envs(self.environment)
            .stdin(if piped { Stdio::piped() } else { Stdio::null() })
            .stdout(if piped { Stdio::piped() } else { log.into() })
            .stderr(open()?)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{}: start {}", self.name, self.program.display()))?;
        Ok(Process { name: self.name, child, log: self.log, start })
    }
}

/// Physical memory of a process, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All of it (`VmRSS`).
    pub resident: u64,
    /// What is not the content of a file, such as the program itself (`RssAnon`).
    pub anonymous: u64,
}

/// A running child process. Dropped without [`Process::stop`], it is killed.
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
    /// Where this run begins in the log.
    start: u64,
}

impl Process {
    /// The name given at launch.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The process id; `None` once it has ended and was waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// The log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.with_context(|| format!("{}: wait", self.name))
    }

    /// An error that says it ended too early and shows the end of its log.
    pub fn ended_early(&self, status: ExitStatus) -> anyhow::Error {
        anyhow::anyhow!("{} ended ({status}); {} ends with:\n{}", self.name, self.log.display(), self.log_tail())
    }

    /// The last lines that this run wrote, at most 4 KiB.
    pub fn log_tail(&self) -> String {
        const TAIL: u64 = 4096;
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let from = file.metadata()?.len().saturating_sub(TAIL).max(self.start);
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.take(TAIL).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_else(|error| format!("(log not readable: {error})"))
    }

    /// SIGTERM, up to `grace` to end in order, then SIGKILL. An error says that it had to be killed.
    pub async fn stop(mut self, grace: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        match tokio::time::timeout(grace, self.child.wait()).await {
            Ok(status) => status.with_context(|| format!("{}: wait", self.name)),
            Err(_) => {
                self.child.kill().await.with_context(|| format!("{}: kill", self.name))?;
                bail!(
                    "{} did not end within {grace:?} of SIGTERM and was killed; see {}",
                    self.name,
                    self.log.display()
                )
            }
        }
    }

    /// SIGKILL at once, as a crash would end it. That it had ended by itself before is an error.
    pub async fn kill(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(self.ended_early(status));
        }
        self.child.kill().await.with_context(|| format!("{}: kill", self.name))
    }

    /// Its physical memory, as the kernel counts it.
    pub fn memory(&self) -> Result<Memory> {
        self.meter()?.memory()
    }

    /// The processor time that it has used, all threads together.
    pub fn processor_time(&self) -> Result<Duration> {
        self.meter()?.processor_time()
    }

    /// What it takes, to be read while somebody else waits for its end.
    pub fn meter(&self) -> Result<Meter> {
        let pid = self.child.id().with_context(|| format!("{} has ended", self.name))?;
        Ok(Meter { name: self.name, pid })
    }

    /// Sends a signal; nothing happens once the child was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else { return Ok(()) };
        kill_process(pid, signal).with_context(|| format!("{}: send {signal:?}", self.name))
    }
}

/// What a process takes. Of use as long as it was not waited for: then its id may be another's.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    name: &'static str,
    pid: u32,
}

impl Meter {
    /// Its physical memory, as the kernel counts it.
    pub fn memory(&self) -> Result<Memory> {
        let Self { name, pid } = self;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("{name}: read its status"))?;
        let bytes = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
            Ok::<_, anyhow::Error>(kibibytes.with_context(|| format!("{name}: no {field}"))? * 1024)
        };
        Ok(Memory { resident: bytes("VmRSS")?, anonymous: bytes("RssAnon")? })
    }

    /// The processor time that it has used, all threads together.
    pub fn processor_time(&self) -> Result<Duration> {
        let Self { name, pid } = self;
        let stat =
            std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("{name}: read its times"))?;
        // Its name may hold anything; what follows are numbers, utime the 12th and stime the 13th.
        let numbers = stat.rsplit_once(')').map(|(_, numbers)| numbers.split_ascii_whitespace().skip(11).take(2));
        let ticks: u64 = numbers.into_iter().flatten().filter_map(|number| number.parse::<u64>().ok()).sum();
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(folder: &Path, script: &str) -> Process {
        Launch::new("script", "/bin/sh", folder.join("log")).arg("-c").arg(script).spawn().unwrap()
    }

    #[tokio::test]
    async fn stop_gives_time_to_end_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("ready");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let script =
            format!("trap 'echo bye; exit 3' TERM; echo up > {}; while :; do sleep 0.05; done", fifo.display());
        let process = shell(folder.path(), &script);
        assert_eq!(tokio::fs::read_to_string(&fifo).await.unwrap(), "up\n");
        let log = process.log().to_owned();
        assert_eq!(process.stop(Duration::from_secs(20)).await.unwrap().code(), Some(3));
        assert_eq!(std::fs::read_to_string(log).unwrap(), "bye\n");
    }

    #[tokio::test]
    async fn stop_kills_who_does_not_listen() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("ready");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let script = format!("trap '' TERM; echo up > {}; while :; do sleep 0.05; done", fifo.display());
        let process = shell(folder.path(), &script);
        tokio::fs::read_to_string(&fifo).await.unwrap();
        let pid = process.id().unwrap();
        let error = process.stop(Duration::from_millis(100)).await.unwrap_err();
        assert!(error.to_string().contains("was killed"), "{error}");
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[tokio::test]
    async fn an_early_end_is_reported_with_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = shell(folder.path(), "echo no such thing >&2; exit 7");
        let status = process.ended().await.unwrap();
        let message = process.ended_early(status).to_string();
        assert!(message.contains("script ended (exit status: 7)") && message.contains("no such thing"), "{message}");
    }

    #[test]
    fn finds_programs_by_name_only() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-here").is_none());
    }
}
