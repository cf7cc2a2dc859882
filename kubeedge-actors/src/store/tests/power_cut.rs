//! The power goes: an ext4 file system is shut down under a committing process, and what was not synced is gone.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    crash::{acknowledgements, child, holds},
    open_whole,
};

/// A loop mount that goes away with the test.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Disk {
    fn new(directory: &Path) -> Self {
        let disk = Self { image: directory.join("image"), mount: directory.join("mount") };
        std::fs::create_dir(&disk.mount).unwrap();
        std::fs::File::create(&disk.image).unwrap().set_len(128 << 20).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&disk.image));
        disk.on();
        disk
    }

    fn on(&self) {
        run(Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.mount]));
    }

    fn off(&self) {
        run(Command::new("umount").arg(&self.mount));
    }

    /// FS_IOC_SHUTDOWN with "no log flush": nothing more reaches the disk, the journal included.
    fn cut(&self) {
        let program = "import fcntl, os, struct, sys\n\
                       fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        run(Command::new("python3").args(["-c", program]).arg(&self.mount));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Not mounted any more in the good case.
        let _ = Command::new("umount").arg(&self.mount).stderr(Stdio::null()).status();
    }
}

#[test]
#[ignore = "needs root, loop devices, mkfs.ext4 and python3"]
fn acknowledged_commits_survive_a_power_cut() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::new(directory.path());
    let path = disk.mount.join("store");
    let mut acknowledged = Vec::new();
    for round in 0..12 {
        let mut child = child("store::tests::crash::committing_child", &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = acknowledgements(&mut child);
        acknowledged.extend(lines.by_ref().take(5 + round * 23));
        disk.cut();
        // With the disk gone the child fails by itself; what it acknowledged before is still in the pipe.
        acknowledged.extend(lines);
        child.wait().unwrap();
        disk.off();
        disk.on();
        let store = open_whole(&path);
        holds(&store, &acknowledged, round);
        drop(store);
    }
    disk.off();
    assert!(acknowledged.len() > 500, "{}", acknowledged.len());
}
