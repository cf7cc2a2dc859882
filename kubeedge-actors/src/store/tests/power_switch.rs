//! A file system whose power can be cut: ext4 in a file, over a loop device.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use super::skipped;

/// How often the power is cut unless `POWER_CUTS` says otherwise: seconds.
const CUTS: usize = 3;
/// Of the moments, unless `POWER_SEED` says otherwise.
const SEED: u64 = 7;
/// For the last one to close its files.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);
/// Size of the file system, bytes; the file has holes.
const SIZE: u64 = 2 << 30;

/// A loop mount that goes away with the test.
pub(crate) struct PowerSwitch {
    image: PathBuf,
    mount: PathBuf,
}

/// Nanoseconds since 1970, for all processes.
pub(crate) fn now() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()
}

/// The error says why it cannot be done here.
fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{name}: {said}")) }
}

impl PowerSwitch {
    /// A file system in this folder; `None`, which is told by the test's name, where there is no root, no loop device or
    /// no tool for it.
    pub(crate) fn new(test: &str, directory: &Path) -> Option<Self> {
        let switch = Self { image: directory.join("image"), mount: directory.join("mount") };
        fs::create_dir(&switch.mount).unwrap();
        File::create(&switch.image).unwrap().set_len(SIZE).unwrap();
        let ready = run(Command::new("python3").arg("--version"))
            .and_then(|()| run(Command::new("mkfs.ext4").arg("-q").arg(&switch.image)))
            .and_then(|()| switch.mounted());
        match ready {
            Ok(()) => Some(switch),
            Err(why) => {
                skipped(test, &format!("it takes root, loop devices, mkfs.ext4 and python3 ({why})"));
                None
            }
        }
    }

    /// How often the power is to be cut.
    pub(crate) fn cuts() -> usize {
        std::env::var("POWER_CUTS").map_or(CUTS, |text| text.parse().expect("POWER_CUTS is a number"))
    }

    /// Where the random moments of the cuts begin.
    pub(crate) fn seed() -> u64 {
        std::env::var("POWER_SEED").map_or(SEED, |text| text.parse().expect("POWER_SEED is a number"))
    }

    /// The folder on it.
    pub(crate) fn folder(&self) -> &Path {
        &self.mount
    }

    fn mounted(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop,errors=remount-ro"]).args([&self.image, &self.mount]))
    }

    /// Cuts the power under whoever writes, and gives the time just before, as [`now`]. FS_IOC_SHUTDOWN with "no log
    /// flush": nothing more reaches the disk, the journal included.
    ///
    /// Writers live on, as they would not without power, and ext4 may tell them meanwhile that a sync succeeded whose
    /// bytes it drops (seen without a store, with writes under `O_DSYNC`): what is acknowledged later counts for
    /// nothing.
    pub(crate) fn off(&self) -> u128 {
        let program = "import fcntl, os, struct, sys, time\n\
                       mount = os.open(sys.argv[1], os.O_RDONLY)\n\
                       before = time.time_ns()\n\
                       fcntl.ioctl(mount, 0x8004587d, struct.pack('I', 2))\n\
                       print(before)";
        let output = Command::new("python3").args(["-I", "-S", "-c", program]).arg(&self.mount).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    /// The file system meets an error of its own and takes no more writes, as one on a failing disk does.
    pub(crate) fn fail(&self) {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mount = self.mount.to_str().unwrap();
        let device =
            mounts.lines().find_map(|line| line.split_once(' ').filter(|(_, at)| at.starts_with(mount))).unwrap().0;
        let device = Path::new(device).file_name().unwrap().to_str().unwrap();
        fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1").unwrap();
    }

    /// A program that another test starts holds this process' files for a moment, until it is itself. Nothing tells of
    /// its end, so the kernel is asked again.
    #[expect(clippy::disallowed_methods, reason = "a thread of a test, which has nothing else to do")]
    fn unmounted(&self) {
        let until = Instant::now() + UNMOUNT_LIMIT;
        while let Err(why) = run(Command::new("umount").arg(&self.mount)) {
            assert!(why.contains("busy") && Instant::now() < until, "{why}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Gives it back, when nobody has a file open on it: with what had reached the disk.
    ///
    /// A mount namespace that somebody made meanwhile (a container's) holds the file system that was shut down, and a
    /// mount of the same image would be that one: then its content is mounted, as a copy.
    pub(crate) fn on_again(&self) {
        self.unmounted();
        let attached = Command::new("losetup").arg("-j").arg(&self.image).output().unwrap();
        if !attached.stdout.is_empty() {
            let copy = self.image.with_extension("copy");
            run(Command::new("cp").arg("--sparse=always").args([&self.image, &copy])).unwrap();
            fs::rename(copy, &self.image).unwrap();
        }
        self.mounted().unwrap();
    }
}

impl Drop for PowerSwitch {
    fn drop(&mut self) {
        // Not mounted where it could not be.
        let _ = Command::new("umount").arg(&self.mount).stderr(Stdio::null()).status();
    }
}
