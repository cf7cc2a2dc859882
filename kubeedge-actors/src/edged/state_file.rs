//! A small file of what has to survive a restart: read whole, written whole or not at all.

use std::{
    fs::{self, File},
    io::{self, BufReader, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Serialize, de::DeserializeOwned};

/// One such file. Clones are of the same file.
#[derive(Clone, Debug, Default)]
pub(super) struct StateFile {
    path: PathBuf,
    /// Longer ones are not ours, bytes.
    limit: u64,
    version: u64,
    /// The newest version that is on disk.
    written: Arc<Mutex<u64>>,
}

impl StateFile {
    /// The file at `path`, which need not be there.
    pub(super) fn new(path: PathBuf, limit: u64) -> Self {
        Self { path, limit, ..Self::default() }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds; the default if it is not there.
    pub(super) fn read<T: DeserializeOwned + Default>(&self) -> io::Result<T> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
            file => file?,
        };
        if file.metadata()?.len() > self.limit {
            let message = format!("it is larger than {} bytes", self.limit);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(serde_json::from_reader(BufReader::new(file))?)
    }

    /// Writes `value`, on the blocking pool. An older one that comes later does nothing.
    pub(super) fn save<T: Serialize + Send>(&mut self, value: T) -> impl FnOnce() -> io::Result<()> + Send + use<T> {
        self.version += 1;
        let this = self.clone();
        move || {
            // The guard is held over the write: of two, the older one must not come last.
            let mut written = this.written.lock().unwrap_or_else(PoisonError::into_inner);
            if *written < this.version {
                write(&this.path, &value)?;
                *written = this.version;
            }
            Ok(())
        }
    }
}

/// The whole file or nothing, through a name beside it.
fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_write_that_comes_later_does_nothing_and_what_is_not_ours_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = StateFile::new(folder.path().join("state.json"), 16);
        assert_eq!(file.read::<Vec<u8>>().unwrap(), Vec::<u8>::new());
        let (older, newer) = (file.save(vec![1_u8]), file.save(vec![2_u8]));
        newer().unwrap();
        older().unwrap();
        assert_eq!(file.read::<Vec<u8>>().unwrap(), [2]);
        fs::write(file.path(), "[1,2,3,4,5,6,7,8,9]").unwrap();
        assert!(file.read::<Vec<u8>>().unwrap_err().to_string().contains("larger than 16 bytes"));
        fs::write(file.path(), "{").unwrap();
        assert!(file.read::<Vec<u8>>().is_err());
    }
}
