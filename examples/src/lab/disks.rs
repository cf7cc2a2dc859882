//! Disks of their own for what cloud and edge keep: small ones, to be filled and broken.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::{FallocateFlags, fallocate, statvfs},
    io::Errno,
    mount::{UnmountFlags, unmount},
};
use tokio::process::Command;

use super::Lab;

/// For the last one to close its files after a process was killed.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);
/// What fills it.
const FILLER: &str = "filler";

/// Whose disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// cloudcore's.
    Cloud,
    /// edgecore's.
    Edge,
}

impl Side {
    fn folder(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Edge => "edge",
        }
    }
}

impl Lab {
    /// Gives each side an ext4 of this many bytes over a loop device. To be called before the cloud is started; it
    /// tries at once whether this machine can do it.
    pub async fn use_small_disks(&mut self, bytes: u64) -> Result<()> {
        for side in [Side::Cloud, Side::Edge] {
            let image = self.image(side);
            File::create(&image)?.set_len(bytes)?;
            run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image), &[0]).await?;
            let folder = self.disk(side);
            fs::create_dir_all(&folder)?;
            self.mount(side).await?;
            unmount(&folder, UnmountFlags::empty())?;
            fs::remove_dir(&folder)?;
        }
        self.small_disks = true;
        Ok(())
    }

    /// Makes the folder of one side, on its own disk if it has one.
    pub(super) async fn make_folder(&self, side: Side) -> Result<()> {
        fs::create_dir(self.disk(side)).with_context(|| format!("create {}", self.disk(side).display()))?;
        if self.small_disks { self.mount(side).await } else { Ok(()) }
    }

    /// Fills a disk up to so many bytes, 0 for all of it.
    pub fn fill_disk(&self, side: Side, leave: u64) -> Result<()> {
        let mut filler = File::options().create(true).append(true).open(self.disk(side).join(FILLER))?;
        let disk = statvfs(self.disk(side))?;
        let free = disk.f_bavail * disk.f_frsize;
        if free > leave {
            fallocate(filler.as_fd(), FallocateFlags::empty(), filler.metadata()?.len(), free - leave)
                .or_else(|error| if error == Errno::NOSPC { Ok(()) } else { Err(error) })?;
        }
        if leave > 0 {
            return Ok(());
        }
        loop {
            match filler.write_all(&[1; 4096]).and_then(|()| filler.sync_data()) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("fill a disk"),
            }
        }
    }

    /// Makes room on a disk again.
    pub fn empty_disk(&self, side: Side) -> Result<()> {
        fs::remove_file(self.disk(side).join(FILLER)).context("make room")
    }

    /// The file system meets an error of its own and takes no more writes, as one on a failing disk does.
    pub fn fail_disk(&self, side: Side) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let folder = self.disk(side);
        let at = |line: &&str| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == folder);
        let line = mounts.lines().find(at).context("the disk is not mounted")?;
        let device = Path::new(line.split(' ').next().unwrap_or_default()).file_name().unwrap_or_default();
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        fs::write(&trigger, "1").with_context(|| format!("write {}", trigger.display()))
    }

    /// Checks and mends a disk that nobody uses, and puts it back.
    pub async fn mend_disk(&self, side: Side) -> Result<()> {
        let deadline = Instant::now() + UNMOUNT_LIMIT;
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            tick.tick().await;
            match unmount(self.disk(side), UnmountFlags::empty()) {
                Ok(()) => break,
                Err(Errno::BUSY) if Instant::now() < deadline => {}
                Err(error) => bail!("unmount {}: {error}", self.disk(side).display()),
            }
        }
        // 1: errors were found and mended.
        run(Command::new("fsck.ext4").args(["-f", "-y"]).arg(self.image(side)), &[0, 1]).await?;
        self.mount(side).await
    }

    async fn mount(&self, side: Side) -> Result<()> {
        let mut mount = Command::new("mount");
        run(mount.args(["-o", "loop,errors=remount-ro"]).args([self.image(side), self.disk(side)]), &[0]).await
    }

    fn disk(&self, side: Side) -> PathBuf {
        self.folder.join(side.folder())
    }

    fn image(&self, side: Side) -> PathBuf {
        self.folder.join(format!("{}.ext4", side.folder()))
    }
}

async fn run(command: &mut Command, good: &[i32]) -> Result<()> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.output().await.with_context(|| name.clone())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code().is_some_and(|code| good.contains(&code)), "{name}: {}", said.trim());
    Ok(())
}
