//! Disks of their own for what cloud and edge keep: small ones, to be filled and broken.

use std::fs;

use anyhow::{Context, Result};

use super::Lab;
use crate::loop_disk::LoopDisk;

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
            self.disk(side).format(bytes).await?;
        }
        self.small_disks = true;
        Ok(())
    }

    /// Makes the folder of one side, on its own disk if it has one.
    pub(super) async fn make_folder(&self, side: Side) -> Result<()> {
        let disk = self.disk(side);
        fs::create_dir(disk.folder()).with_context(|| format!("create {}", disk.folder().display()))?;
        if self.small_disks { disk.mount().await } else { Ok(()) }
    }

    /// The disk of one side, if [`Lab::use_small_disks`] gave it one.
    pub fn disk(&self, side: Side) -> LoopDisk {
        let name = side.folder();
        LoopDisk::new(self.folder.join(format!("{name}.ext4")), self.folder.join(name))
    }
}
