//! sled's file, made to respect a power cut.
//!
//! sled calls stable what `sync_file_range` returned for, and says in the header of each new segment how far its log is
//! stable. `sync_file_range` writes bytes, but neither their place in a file that grew nor the disk's cache. A commit
//! that first grows the file and then goes on in segments that were free can so have a header on disk that vouches for
//! bytes which a power cut takes back. sled looks for the end of its log from there on: it misses the hole before it
//! (`cannot find pid` of a page that was moved there), or finds no log at all and opens empty. No sync after sled's
//! flush can mend that, so every write of sled is durable before it returns: the file is synchronous (`chattr +S`),
//! which is `O_DSYNC` for whoever opens it.

use std::{fs::File, io, os::unix::fs::OpenOptionsExt, path::Path};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

/// A descriptor of sled's file beside sled's own.
pub(super) struct Data {
    file: File,
    /// sled's writes are durable when they return: a commit needs no sync of its own.
    synchronous: bool,
}

impl Data {
    /// To be called before sled opens the file: what a killed process wrote without a sync is made durable here, since
    /// sled takes all that it can read for stable and writes over the rest.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(super::open::FILE_MODE);
        let file = options.open(path)?;
        file.sync_all()?;
        let synchronous = match synchronous(&file) {
            Ok(()) => true,
            Err(error) => {
                let file = path.display();
                tracing::warn!(%file, %error, "no synchronous files here: a power cut in a commit may break the store");
                false
            }
        };
        Ok(Self { file, synchronous })
    }

    /// Called when sled has flushed a commit: it is durable when this returns.
    pub(super) fn commit(&self) -> io::Result<()> {
        if self.synchronous { Ok(()) } else { self.file.sync_data() }
    }

    /// Makes all of the file durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn synchronous(file: &File) -> rustix::io::Result<()> {
    let flags = ioctl_getflags(file)?;
    if flags.contains(IFlags::SYNC) {
        return Ok(());
    }
    ioctl_setflags(file, flags | IFlags::SYNC)
}
