//! The door to a broker on TLS: a unix socket.
//!
//! It is made for each connection, in a folder of its own that only this user can enter, and is gone when paho's connection
//! is taken on it. Another process that finds the way is not let in: it would speak with this node's certificate. While a
//! broker is slow paho fills the socket's buffer (`net.core.wmem_default`, some 200 KB) once a second, and no faster.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};
use uuid::Uuid;

/// Where one client of this process connects.
pub(in crate::eventbus) struct PrivateDoor {
    folder: PathBuf,
}

impl PrivateDoor {
    /// A place for it; nothing is made yet.
    pub(in crate::eventbus) fn new() -> Self {
        // In memory where that can be: a full disk must not keep a broker away.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Self { folder: place.join(format!("kubeedge-mqtt-{}", Uuid::new_v4().simple())) }
    }

    /// As paho takes it.
    pub(in crate::eventbus) fn uri(&self) -> String {
        format!("unix://{}", self.path().display())
    }

    fn path(&self) -> PathBuf {
        self.folder.join("door")
    }

    /// Makes it.
    pub(in crate::eventbus) fn open(&self) -> Result<Opened, String> {
        let failed = |error| format!("a socket in {}: {error}", self.folder.display());
        DirBuilder::new().mode(0o700).create(&self.folder).map_err(failed)?;
        // From here on it is taken away, whatever happens.
        let mut opened = Opened { folder: self.folder.clone(), listener: None };
        opened.listener = Some(UnixListener::bind(self.path()).map_err(failed)?);
        Ok(opened)
    }
}

/// An open door; dropped, nothing of it is left.
pub(in crate::eventbus) struct Opened {
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
    pub(in crate::eventbus) async fn own(self) -> io::Result<UnixStream> {
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
        let door = PrivateDoor::new();
        let opened = door.open().unwrap();
        assert_eq!(door.folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let taken = tokio::spawn(opened.own());
        let other = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "eventbus::door::private::tests::another_process_is_sent_away"])
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
}
