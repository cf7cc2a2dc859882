//! `hostPath`: a path of the node itself. It is checked and, if its type says so, made; never changed, never removed.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::error::{AtPath as _, SetUpError};

/// What is expected at the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostPathType {
    /// Nothing in particular.
    Unset,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

/// A host path that may be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPath {
    pub(crate) path: PathBuf,
    pub(crate) kind: HostPathType,
}

impl HostPath {
    pub(crate) fn plan(source: &HostPathVolumeSource) -> Result<Self, SetUpError> {
        let path = Path::new(&source.path);
        let backsteps = path.components().any(|component| component == Component::ParentDir);
        if !path.is_absolute() || backsteps || source.path.contains('\0') {
            return Err(SetUpError::Invalid {
                field: "hostPath.path",
                value: source.path.chars().take(300).collect(),
                expected: "an absolute path without \"..\"",
            });
        }
        let kind = match source.type_.as_deref().unwrap_or_default() {
            "" => HostPathType::Unset,
            "DirectoryOrCreate" => HostPathType::DirectoryOrCreate,
            "Directory" => HostPathType::Directory,
            "FileOrCreate" => HostPathType::FileOrCreate,
            "File" => HostPathType::File,
            "Socket" => HostPathType::Socket,
            "CharDevice" => HostPathType::CharDevice,
            "BlockDevice" => HostPathType::BlockDevice,
            other => {
                return Err(SetUpError::Invalid {
                    field: "hostPath.type",
                    value: other.chars().take(100).collect(),
                    expected: "DirectoryOrCreate, Directory, FileOrCreate, File, Socket, CharDevice, BlockDevice or \
                               nothing",
                });
            }
        };
        Ok(Self { path: path.to_owned(), kind })
    }

    /// Checks the path and makes what is to be made.
    pub(crate) fn set_up(&self) -> Result<(), SetUpError> {
        let path = &self.path;
        let found = || match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.file_type())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error).at("look at", path),
        };
        if self.kind == HostPathType::DirectoryOrCreate && found()?.is_none() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path).at("create", path)?;
        }
        if self.kind == HostPathType::FileOrCreate && found()?.is_none() {
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o644).open(path).at("create", path)?;
        }
        let is = |right: fn(&fs::FileType) -> bool, reason| match found()? {
            Some(kind) if right(&kind) => Ok(()),
            _ => Err(SetUpError::HostPath { path: path.clone(), reason }),
        };
        match self.kind {
            HostPathType::Unset => Ok(()),
            HostPathType::DirectoryOrCreate | HostPathType::Directory => is(fs::FileType::is_dir, "is not a directory"),
            HostPathType::FileOrCreate | HostPathType::File => is(fs::FileType::is_file, "is not a file"),
            HostPathType::Socket => is(|kind| kind.is_socket(), "is not a socket file"),
            HostPathType::CharDevice => is(|kind| kind.is_char_device(), "is not a character device"),
            HostPathType::BlockDevice => is(|kind| kind.is_block_device(), "is not a block device"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn check(path: &Path, kind: &str) -> Result<(), String> {
        let source = HostPathVolumeSource { path: path.display().to_string(), type_: Some(kind.to_owned()) };
        HostPath::plan(&source).and_then(|plan| plan.set_up()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_is_checked_for_its_type() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "").unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let fails = |name: &str, kind: &str, reason: &str| {
            let path = at(name);
            let message = format!("hostPath type check failed: {} {reason}", path.display());
            assert_eq!(check(&path, kind), Err(message), "{name} {kind}");
        };
        for (name, kind) in [("dir", "Directory"), ("file", "File"), ("socket", "Socket"), ("none", ""), ("file", "")] {
            assert_eq!(check(&at(name), kind), Ok(()), "{name} {kind}");
        }
        assert_eq!(check(Path::new("/dev/null"), "CharDevice"), Ok(()));
        fails("none", "Directory", "is not a directory");
        fails("file", "Directory", "is not a directory");
        fails("file", "DirectoryOrCreate", "is not a directory");
        fails("dir", "File", "is not a file");
        fails("dir", "FileOrCreate", "is not a file");
        fails("file", "Socket", "is not a socket file");
        fails("file", "CharDevice", "is not a character device");
        fails("file", "BlockDevice", "is not a block device");
    }

    #[test]
    fn what_is_to_be_made_is_made_and_what_is_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("a/b");
        assert_eq!(check(&made, "DirectoryOrCreate"), Ok(()));
        assert!(made.is_dir());
        let file = made.join("f");
        assert_eq!(check(&file, "FileOrCreate"), Ok(()));
        fs::write(&file, "kept").unwrap();
        assert_eq!(check(&file, "FileOrCreate"), Ok(()));
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
        assert!(check(&dir.path().join("none/f"), "FileOrCreate").is_err(), "directories are not made for a file");
    }

    #[test]
    fn paths_that_step_back_and_unknown_types_are_refused() {
        for (path, kind) in [("/a/../etc", ""), ("relative", ""), ("", ""), ("/a", "Dir"), ("/a\0b", "")] {
            let source = HostPathVolumeSource { path: path.to_owned(), type_: Some(kind.to_owned()) };
            assert!(HostPath::plan(&source).unwrap_err().is_final(), "{path:?} {kind:?}");
        }
    }
}
