//! Opening a store: lock, format, sled, checks; and setting a damaged one aside.
//!
//! | file in the directory | |
//! |---|---|
//! | `format` | the store's format, as text; read before anything else |
//! | `lock` | locked while open, holds the process id |
//! | `acknowledged` | number of the last acknowledged commit: a store that is behind it has lost commits |
//! | `reserve` | room for opening the store when the disk is full |
//! | `db` `conf` `blobs` `snap.*` | sled's |

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    OpenError, Opened, Options, SetAside, Store, StoreError,
    commit::{self, Committer, FORMAT},
    disk::{Disk, LOCK_AGAIN, LOCK_PATIENCE, SledFailure},
    engine::Engine,
    keys, table,
    writer::Writer,
};

/// How many damaged stores are kept beside the live one.
const KEPT: usize = 3;
const FORMAT_NAME: &str = "kubeedge-store ";
const DIRECTORY_MODE: u32 = 0o700;
pub(super) const FILE_MODE: u32 = 0o600;

/// Length of the `acknowledged` file.
pub(crate) const ACKNOWLEDGED_BYTES: usize = 12;

/// What the `acknowledged` file holds.
pub(crate) fn acknowledged_bytes(number: u64) -> [u8; ACKNOWLEDGED_BYTES] {
    let mut bytes = [0; ACKNOWLEDGED_BYTES];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&crc32fast::hash(&number.to_le_bytes()).to_le_bytes());
    bytes
}

fn acknowledged_number(bytes: &[u8]) -> Option<u64> {
    let (number, checksum) = bytes.split_first_chunk::<8>()?;
    (crc32fast::hash(number).to_le_bytes() == checksum).then(|| u64::from_le_bytes(*number))
}

/// Why an attempt did not give a store.
enum Attempt {
    Refused(OpenError),
    Damaged(String),
}

impl From<OpenError> for Attempt {
    fn from(error: OpenError) -> Self {
        Self::Refused(error)
    }
}

pub(crate) fn open(path: &Path, options: &Options) -> Result<Opened, OpenError> {
    let why = match attempt(path, options) {
        Ok((store, damaged)) => return Ok(Opened { store, set_aside: None, damaged }),
        Err(Attempt::Refused(error)) => return Err(error),
        Err(Attempt::Damaged(why)) => why,
    };
    let aside = set_aside(path)?;
    tracing::error!(
        store = %path.display(), set_aside = %aside.display(), why,
        "the store is damaged: it was set aside and an empty one takes its place"
    );
    match attempt(path, options) {
        Ok((store, damaged)) => Ok(Opened { store, set_aside: Some(SetAside { path: aside, why }), damaged }),
        Err(Attempt::Refused(error)) => Err(error),
        Err(Attempt::Damaged(why)) => Err(OpenError::Unusable { path: path.to_owned(), why }),
    }
}

fn attempt(path: &Path, options: &Options) -> Result<(Store, Vec<(String, String)>), Attempt> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE)))
        .map_err(OpenError::io(path, "make the directory"))?;
    let lock = lock(path)?;
    check_format(path)?;

    let mut acknowledged = private_file(&path.join("acknowledged"))?;
    let mut noted = Vec::new();
    (&mut acknowledged).take(64).read_to_end(&mut noted).map_err(OpenError::io(path, "read `acknowledged`"))?;

    let disk = Disk::open(path, options.cache_bytes, acknowledged, lock).map_err(|failure| match failure {
        SledFailure::Environment(error) => OpenError::io(path, "open the database")(error).into(),
        SledFailure::Damaged(why) => Attempt::Damaged(why),
    })?;
    let disk: Arc<dyn Engine> = Arc::new(disk);
    let checked = check(&*disk, acknowledged_number(&noted));
    let damaged = match checked {
        Ok(damaged) => damaged,
        Err(error) => {
            let why = error.to_string();
            return Err(match error {
                StoreError::Io(source) => match Arc::try_unwrap(source) {
                    Ok(source) if source.kind() == ErrorKind::UnexpectedEof => Attempt::Damaged(why),
                    Ok(source) => OpenError::io(path, "read the database")(source).into(),
                    Err(_) => Attempt::Damaged(why),
                },
                _ => Attempt::Damaged(why),
            });
        }
    };
    make_private(path)?;
    sync_directories(path)?;

    let started = Committer::new(disk.clone()).map(Writer::thread);
    match started {
        Ok(Ok(writer)) => Ok((Store::of(disk, writer), damaged)),
        Ok(Err(error)) => Err(OpenError::io(path, "start the writer's thread")(error).into()),
        Err(error) => Err(Attempt::Damaged(error.to_string())),
    }
}

/// A store is what it was: its header is there, no acknowledged commit is missing, every page can be read.
fn check(engine: &dyn Engine, acknowledged: Option<u64>) -> Result<Vec<(String, String)>, StoreError> {
    let last = match commit::last_commit(engine)? {
        Some(last) => last,
        None if engine.page(&keys::range(&[], b""), 1)?.is_empty() => 0,
        None => return Err(StoreError::Engine("its header is missing".to_owned())),
    };
    if let Some(acknowledged) = acknowledged
        && acknowledged > last
    {
        let lost = acknowledged - last;
        return Err(StoreError::Engine(format!(
            "{lost} acknowledged commits are missing: the last one is {last} of {acknowledged}"
        )));
    }
    table::damaged_records(engine)
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let mut file = private_file(&path.join("lock"))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    let locked = loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::park_timeout(LOCK_AGAIN),
            other => break other,
        }
    };
    match locked {
        Ok(()) => {
            let id = std::process::id().to_string();
            // Only for the other's error message: the lock itself is the kernel's.
            let written = file.set_len(0).and_then(|()| file.write_all(id.as_bytes()));
            if let Err(error) = written {
                tracing::debug!(%error, "the process id was not noted in the lock file");
            }
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let known = (&mut file).take(20).read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if known { format!("process {}", holder.trim()) } else { "another process".to_owned() };
            Err(OpenError::Locked { path: path.to_owned(), holder })
        }
        Err(TryLockError::Error(error)) => Err(OpenError::io(path, "lock the store")(error)),
    }
}

/// The format stands in a text file of its own so that a newer store is known as such whatever its engine is.
fn check_format(path: &Path) -> Result<(), Attempt> {
    let file = path.join("format");
    let text = match File::open(&file) {
        Ok(open) => {
            let mut text = Vec::new();
            open.take(128).read_to_end(&mut text).map_err(OpenError::io(&file, "read"))?;
            String::from_utf8_lossy(&text).into_owned()
        }
        Err(error) if error.kind() == ErrorKind::NotFound && !path.join("db").exists() => {
            return write_format(path, &file).map_err(|error| OpenError::io(&file, "write")(error).into());
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Attempt::Damaged("its `format` file is missing".to_owned()));
        }
        Err(error) => return Err(OpenError::io(&file, "open")(error).into()),
    };
    match text.strip_prefix(FORMAT_NAME).and_then(|number| number.trim_end().parse::<u32>().ok()) {
        Some(FORMAT) => Ok(()),
        Some(found) if found > FORMAT => Err(OpenError::Newer { path: path.to_owned(), found, known: FORMAT }.into()),
        _ => Err(Attempt::Damaged(format!("its `format` file says {text:?}"))),
    }
}

fn write_format(directory: &Path, file: &Path) -> io::Result<()> {
    let draft = directory.join("format.new");
    let mut open = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&draft)?;
    open.write_all(format!("{FORMAT_NAME}{FORMAT}\n").as_bytes())?;
    open.sync_all()?;
    fs::rename(&draft, file)?;
    File::open(directory)?.sync_all()
}

fn private_file(path: &Path) -> Result<File, OpenError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    options.open(path).map_err(OpenError::io(path, "open"))
}

/// sled makes its files by the umask. The directory is closed to others in any case.
fn make_private(path: &Path) -> Result<(), OpenError> {
    let set = |path: &Path, mode| {
        let set = fs::set_permissions(path, Permissions::from_mode(mode));
        set.map_err(OpenError::io(path, "set the permissions"))
    };
    for entry in fs::read_dir(path).map_err(OpenError::io(path, "list the directory"))? {
        let entry = entry.map_err(OpenError::io(path, "list the directory"))?;
        let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        set(&entry.path(), if directory { DIRECTORY_MODE } else { FILE_MODE })?;
    }
    Ok(())
}

/// Names of new files, too, have to survive a power cut.
fn sync_directories(path: &Path) -> Result<(), OpenError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for directory in [&path.join("blobs"), path, parent] {
        File::open(directory).and_then(|open| open.sync_all()).map_err(OpenError::io(directory, "sync"))?;
    }
    Ok(())
}

/// Renames a damaged store and removes the oldest of those kept.
fn set_aside(path: &Path) -> Result<PathBuf, OpenError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let name = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".set-aside-{suffix}"));
        PathBuf::from(name)
    };
    let mut aside = name(&seconds.to_string());
    let mut again = 1;
    while aside.exists() {
        aside = name(&format!("{seconds}-{again}"));
        again += 1;
    }
    fs::rename(path, &aside).map_err(OpenError::io(path, "set the damaged store aside"))?;

    // A failure to tidy up does not stand in the way of a working store.
    let mut kept = kept_aside(path).unwrap_or_default();
    kept.sort();
    for (_, oldest) in kept.iter().take(kept.len().saturating_sub(KEPT)) {
        if let Err(error) = fs::remove_dir_all(oldest) {
            tracing::warn!(path = %oldest.display(), %error, "an old set-aside store was not removed");
        }
    }
    Ok(aside)
}

/// The stores that were set aside, with the time and number in their names.
fn kept_aside(path: &Path) -> Option<Vec<((u64, u64), PathBuf)>> {
    let prefix = format!("{}.set-aside-", path.file_name()?.to_str()?);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = fs::read_dir(parent).ok()?.filter_map(Result::ok);
    let kept = entries.filter_map(|entry| {
        let name = entry.file_name();
        let suffix = name.to_str()?.strip_prefix(&prefix)?;
        let (seconds, again) = suffix.split_once('-').unwrap_or((suffix, "0"));
        Some(((seconds.parse().ok()?, again.parse().ok()?), entry.path()))
    });
    Some(kept.collect())
}
