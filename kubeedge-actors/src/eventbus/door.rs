//! The door through which paho gets to a broker: a unix socket within this process.
//!
//! Two things need it. A broker on TLS: it is spoken to by rustls, and paho speaks plain MQTT. And a broker that goes away
//! while paho publishes: when a write fails at once, paho's library (1.3.16, its issues 1621 and 1622) frees a publication
//! of QoS 1 or 2 twice, which ends the process, or damages what others have in memory. Through the door no write of paho's
//! fails: its other end is open for as long as paho may write ([`KeptOpen`]), and what a broker cannot be told any more is
//! read and forgotten; paho keeps what is not confirmed, as after any loss of a connection. `P-BROKER-GONE`
//!
//! For each connection the broker is dialled first. Then a unix socket is made in a folder of its own that only this user
//! can enter, paho's connection is taken on it, and socket and folder go again. Another process that finds the way is not
//! let in: it would speak with this node's certificate. Bytes go through in both directions with a bounded buffer each, so
//! that a slow side slows the other down.

use std::{
    fs::DirBuilder,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional_with_sizes},
    net::{UnixListener, UnixStream},
};
use uuid::Uuid;

/// Bytes under way in each direction.
const BUFFER: usize = 16 * 1024;

/// Where one client of this process connects, instead of at its broker.
pub(super) struct Door {
    folder: PathBuf,
}

impl Door {
    /// A place for it; nothing is made yet.
    pub(super) fn new() -> Self {
        // In memory where that can be: a full disk must not keep a broker away.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Self { folder: place.join(format!("kubeedge-mqtt-{}", Uuid::new_v4().simple())) }
    }

    /// As paho takes it.
    pub(super) fn uri(&self) -> String {
        format!("unix://{}", self.path().display())
    }

    fn path(&self) -> PathBuf {
        self.folder.join("door")
    }

    /// Makes it.
    pub(super) fn open(&self) -> Result<Opened, String> {
        let failed = |error| format!("a socket in {}: {error}", self.folder.display());
        DirBuilder::new().mode(0o700).create(&self.folder).map_err(failed)?;
        // From here on it is taken away, whatever happens.
        let mut opened = Opened { folder: self.folder.clone(), listener: None };
        opened.listener = Some(UnixListener::bind(self.path()).map_err(failed)?);
        Ok(opened)
    }
}

/// An open door; dropped, nothing of it is left.
pub(super) struct Opened {
    folder: PathBuf,
    listener: Option<UnixListener>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(path = %self.folder.display(), "a folder is left: {error}");
        }
    }
}

impl Opened {
    /// The connection of this very process.
    async fn own(self) -> io::Result<UnixStream> {
        let Some(listener) = &self.listener else { return Err(io::ErrorKind::NotConnected.into()) };
        let us = std::process::id();
        loop {
            let (stream, _) = listener.accept().await?;
            match stream.peer_cred()?.pid() {
                Some(pid) if u32::try_from(pid) == Ok(us) => return Ok(stream),
                other => tracing::warn!(pid = other, "another process came to the door of our MQTT client"),
            }
        }
    }

    /// Takes the client's connection through to the broker, until both have ended it: when the broker does, the client is
    /// told, and what it still writes is taken and lost. The error is the broker's side's.
    pub(super) async fn through(
        self,
        mut broker: impl AsyncRead + AsyncWrite + Unpin,
        kept: KeptOpen,
    ) -> io::Result<()> {
        let mut client = self.own().await?;
        kept.keep(client.as_fd())?;
        let ended = copy_bidirectional_with_sizes(&mut client, &mut broker, BUFFER, BUFFER).await.map(drop);
        // One of the two may have ended it: these fail then.
        let _ = client.shutdown().await;
        let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
        ended
    }
}

/// What keeps the latest connection through the door open, until the next one or until the last of these is dropped:
/// whoever drops it after paho's client does not let paho write to a closed socket.
#[derive(Clone, Default)]
pub(super) struct KeptOpen(Arc<Mutex<Option<OwnedFd>>>);

impl KeptOpen {
    fn keep(&self, door: BorrowedFd<'_>) -> io::Result<()> {
        let door = door.try_clone_to_owned()?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(door);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Which door another process is to go to: this test's own program, started again.
    const KNOCKS: &str = "KUBEEDGE_TEST_KNOCKS";

    /// In that other process: the door is there, and nobody speaks with it.
    #[tokio::test]
    async fn another_process_is_sent_away() {
        let Some(path) = std::env::var_os(KNOCKS) else { return };
        let mut stream = UnixStream::connect(path).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_door_lets_in_its_own_process_alone_and_is_gone_afterwards() {
        let door = Door::new();
        let opened = door.open().unwrap();
        assert_eq!(door.folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let taken = tokio::spawn(opened.own());
        let other = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "eventbus::door::tests::another_process_is_sent_away"])
            .env(KNOCKS, door.path())
            .output();
        let said = other.await.unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
        assert!(String::from_utf8_lossy(&said.stdout).contains("1 passed"));
        assert!(!taken.is_finished());

        let mut ours = UnixStream::connect(door.path()).await.unwrap();
        let mut taken = taken.await.unwrap().unwrap();
        ours.write_all(b"in").await.unwrap();
        let mut heard = [0; 2];
        taken.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"in");
        assert!(!door.folder.exists());
    }

    /// What paho writes is taken also when nobody is there any more, for as long as paho can write.
    #[tokio::test]
    async fn who_comes_through_can_write_after_the_broker_has_gone_and_after_the_way_has_ended() {
        let (door, kept) = (Door::new(), KeptOpen::default());
        let (broker, far) = tokio::io::duplex(64);
        let way = tokio::spawn(door.open().unwrap().through(broker, kept.clone()));
        let mut ours = UnixStream::connect(door.path()).await.unwrap();
        drop(far);
        assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0, "the end is told");
        ours.write_all(&[0; 1024 * 1024]).await.unwrap();
        assert!(!way.is_finished());
        way.abort();
        assert!(way.await.unwrap_err().is_cancelled());
        ours.write_all(b"more").await.unwrap();
        drop(kept);
        assert_eq!(ours.write_all(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn the_way_ends_with_the_client() {
        let door = Door::new();
        let (broker, mut far) = tokio::io::duplex(64);
        let way = tokio::spawn(door.open().unwrap().through(broker, KeptOpen::default()));
        let mut ours = UnixStream::connect(door.path()).await.unwrap();
        ours.write_all(b"last").await.unwrap();
        drop(ours);
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last");
        drop(far);
        way.await.unwrap().unwrap();
    }
}
