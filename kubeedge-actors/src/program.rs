//! What a program needs around its actors: a log on standard error, and the signals that ask it to stop.

use std::{future::pending, io};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// Writes log lines to standard error. `RUST_LOG` chooses what: a level, or `target=level` pairs with commas between;
/// what cannot be read is reported and `info` is used. A second call changes nothing.
pub fn log() {
    let asked = std::env::var("RUST_LOG").ok();
    let (filter, fault) = match asked.as_deref().map(str::parse::<Targets>) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (usual(), Some(error)),
        None => (usual(), None),
    };
    let lines =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(rustix::termios::isatty(io::stderr()));
    if tracing_subscriber::registry().with(lines).with(filter).try_init().is_ok()
        && let Some(error) = fault
    {
        tracing::warn!(RUST_LOG = asked, %error, "not a filter; using info");
    }
}

/// What is logged unless told otherwise: the HTTP servers' workers are nobody's concern.
fn usual() -> Targets {
    Targets::new().with_default(tracing::Level::INFO).with_target("actix_server", tracing::Level::WARN)
}

/// The number of SIGPWR on Linux' usual architectures.
const SIGPWR: i32 = 30;
/// The name of the signal that says that the power goes: the machine goes down.
pub const POWER_FAILURE: &str = "SIGPWR";

/// What init systems make when the machine goes down: systemd's note of the shutdown, and the one that keeps people out.
const GOING_DOWN: [&str; 2] = ["/run/systemd/shutdown/scheduled", "/run/nologin"];

/// Whether the machine is going down, as far as its init system says; a signal that asks a program to end is part of that
/// then.
pub fn machine_goes_down() -> bool {
    GOING_DOWN.iter().any(|path| std::path::Path::new(path).exists())
}

/// SIGTERM, SIGINT and SIGPWR, caught from the moment this is made.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    power: Signal,
}

impl StopSignals {
    /// Catches them from now on. Needs a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, power: signal(SignalKind::from_raw(SIGPWR))? })
    }

    /// The next one, by name. Call it again while stopping: a second signal means that the person is in a hurry.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.terminate.recv() => "SIGTERM",
            Some(()) = self.interrupt.recv() => "SIGINT",
            Some(()) = self.power.recv() => POWER_FAILURE,
            // The runtime is ending: nobody is left to be told.
            else => pending().await,
        }
    }
}

/// Ends the process with SIGABRT, for the service manager to start it again and a core file to show where it hung: what
/// a program on one arbiter does [when a component blocks it](crate::system::SystemBuilder::when_blocked), for then
/// nothing else of it can run. What was acknowledged is on disk.
pub fn abort_when_blocked(blocked: &crate::system::Blocked) {
    tracing::error!(component = blocked.component, held = ?blocked.held, "nothing goes on: the process ends");
    std::process::abort();
}

/// Takes as many descriptors as the process may have: a node is one at a cloud, and the limit that programs begin with
/// is often 1,024 for the sake of `select(2)`, which nothing here uses. Returns how many that are; `None` is any number.
pub fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of descriptors stays where it was");
        }
    }
    getrlimit(Resource::Nofile).current
}

/// An error and its causes in one line, for a person. A cause that the text before it already tells is left out.
pub fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_sent_to_us_is_told() {
        let mut signals = StopSignals::listen().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        assert_eq!(signals.next().await, "SIGTERM");
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT).unwrap();
        assert_eq!(signals.next().await, "SIGINT");
    }

    #[test]
    fn as_many_descriptors_as_may_be_are_taken() {
        use rustix::process::{Resource, getrlimit};
        let most = getrlimit(Resource::Nofile).maximum;
        assert_eq!(raise_descriptor_limit(), most);
        assert_eq!(getrlimit(Resource::Nofile).current, most);
    }

    #[test]
    fn a_cause_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("read a.yaml: {source}")]
        struct Read {
            source: io::Error,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("no configuration")]
        struct Missing(#[source] Read);
        let error = Missing(Read { source: io::Error::other("it is not there") });
        assert_eq!(explain(&error), "no configuration: read a.yaml: it is not there");
    }
}
