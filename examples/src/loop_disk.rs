//! A disk that is filled, broken, and whose power is cut: ext4 in a file, over a loop device. Needs root.

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

use crate::leftovers::mounts_below;

/// For the last one to close its files after a process was killed.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);
/// What fills it.
const FILLER: &str = "filler";
/// FS_IOC_SHUTDOWN with "no log flush": nothing more reaches the disk, the journal included.
const SHUTDOWN: &str = "import fcntl, os, struct, sys\n\
                        fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// Where the disk is, and its file.
#[derive(Clone, Debug)]
pub struct LoopDisk {
    image: PathBuf,
    mount: PathBuf,
}

impl LoopDisk {
    /// Names it; nothing is made yet.
    pub fn new(image: impl Into<PathBuf>, mount: impl Into<PathBuf>) -> Self {
        Self { image: image.into(), mount: mount.into() }
    }

    /// The folder on it.
    pub fn folder(&self) -> &Path {
        &self.mount
    }

    /// Makes an empty file system of so many bytes, and tries whether this machine can mount it.
    pub async fn format(&self, bytes: u64) -> Result<()> {
        File::create(&self.image)?.set_len(bytes)?;
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&self.image), &[0]).await?;
        fs::create_dir_all(&self.mount)?;
        self.mount().await?;
        unmount(&self.mount, UnmountFlags::empty())?;
        fs::remove_dir(&self.mount).context("the folder of a disk")
    }

    /// Puts it into its place, which has to be there.
    pub async fn mount(&self) -> Result<()> {
        let mut mount = Command::new("mount");
        run(mount.args(["-o", "loop,errors=remount-ro"]).args([&self.image, &self.mount]), &[0]).await
    }

    /// Takes it out of its place, with what is mounted below it, once nobody uses it.
    pub async fn unmount(&self) -> Result<()> {
        let deadline = Instant::now() + UNMOUNT_LIMIT;
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        for mount in mounts_below(&self.mount)? {
            loop {
                tick.tick().await;
                match unmount(&mount, UnmountFlags::empty()) {
                    Ok(()) => break,
                    Err(Errno::BUSY) if Instant::now() < deadline => {}
                    Err(error) => bail!("unmount {}: {error}", mount.display()),
                }
            }
        }
        Ok(())
    }

    /// Fills it up to so many bytes, 0 for all of it.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let mut filler = File::options().create(true).append(true).open(self.mount.join(FILLER))?;
        let disk = statvfs(&self.mount)?;
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

    /// Makes room again.
    pub fn empty(&self) -> Result<()> {
        fs::remove_file(self.mount.join(FILLER)).context("make room")
    }

    /// The file system meets an error of its own and takes no more writes, as one on a failing disk does.
    pub fn fail(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let at = |line: &&str| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == self.mount);
        let line = mounts.lines().find(at).context("the disk is not mounted")?;
        let device = Path::new(line.split(' ').next().unwrap_or_default()).file_name().unwrap_or_default();
        let trigger = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        fs::write(&trigger, "1").with_context(|| format!("write {}", trigger.display()))
    }

    /// Checks and mends one that nobody uses any more, and puts it back.
    pub async fn mend(&self) -> Result<()> {
        self.take_out().await?;
        // 1: errors were found and mended.
        run(Command::new("fsck.ext4").args(["-f", "-y"]).arg(&self.image), &[0, 1]).await?;
        self.mount().await
    }

    /// Cuts the power: what is not on the disk now never will be. Whoever writes lives on and meets errors.
    ///
    /// ext4 may tell some of them of a success whose bytes it drops: what is acknowledged from now on counts for nothing.
    pub async fn power_off(&self) -> Result<()> {
        run(Command::new("python3").args(["-I", "-S", "-c", SHUTDOWN]).arg(&self.mount), &[0]).await
    }

    /// The power is back, when nobody has a file open on it: with what had reached the disk.
    pub async fn power_on(&self) -> Result<()> {
        self.take_out().await?;
        self.mount().await
    }

    /// Unmounts it so that the next mount is one of what is on the disk.
    ///
    /// A mount namespace that somebody made meanwhile (a container's) holds the file system that was shut down or has
    /// failed, and a mount of the same image would be that one: then its content is the image, as a copy.
    async fn take_out(&self) -> Result<()> {
        self.unmount().await?;
        let attached = Command::new("losetup").arg("-j").arg(&self.image).output().await.context("losetup")?;
        if !attached.stdout.is_empty() {
            let copy = self.image.with_extension("copy");
            run(Command::new("cp").arg("--sparse=always").args([&self.image, &copy]), &[0]).await?;
            fs::rename(copy, &self.image)?;
        }
        Ok(())
    }
}

async fn run(command: &mut Command, good: &[i32]) -> Result<()> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.output().await.with_context(|| name.clone())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code().is_some_and(|code| good.contains(&code)), "{name}: {}", said.trim());
    Ok(())
}
