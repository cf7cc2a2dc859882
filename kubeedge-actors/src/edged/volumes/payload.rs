//! The files of a volume that is made from objects: paths, contents, modes. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use k8s_openapi::api::core::v1::KeyToPath;

use super::error::SetUpError;

/// The mode of files whose volume names none.
pub(crate) const DEFAULT_MODE: i32 = 0o644;

/// A relative path inside a volume, normalised: no `.`, no `..`, no empty part, and its first part does not begin with
/// `..`, which belongs to the atomic writer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FilePath(String);

impl FilePath {
    pub(crate) fn parse(text: &str) -> Result<Self, SetUpError> {
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let good = text.len() <= 4096
            && !text.starts_with('/')
            && !parts.is_empty()
            && !text.contains('\0')
            && parts.iter().all(|part| *part != ".." && part.len() <= 255)
            && parts.first().is_some_and(|first| !first.starts_with(".."));
        if good {
            return Ok(Self(parts.join("/")));
        }
        Err(SetUpError::Invalid {
            field: "path",
            value: text.chars().take(300).collect(),
            expected: "a relative path of at most 4096 bytes, without \"..\" and not beginning with \"..\"",
        })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The first part: what is to be seen in the volume's directory.
    pub(crate) fn top(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }
}

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) data: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// The owner, if not root.
    pub(crate) uid: Option<u32>,
}

/// Contents may be secret.
impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({} bytes, {:04o}, uid {:?})", self.data.len(), self.mode, self.uid)
    }
}

/// The files of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Payload {
    files: BTreeMap<FilePath, File>,
}

impl Payload {
    /// Puts a file; a later one replaces an earlier one at the same path. A path may not be file and directory at once.
    pub(crate) fn put(&mut self, path: &str, data: Vec<u8>, mode: i32) -> Result<(), SetUpError> {
        self.put_owned(path, data, mode, None)
    }

    /// [`Self::put`] for a file with an owner.
    pub(crate) fn put_owned(
        &mut self,
        path: &str,
        data: Vec<u8>,
        mode: i32,
        uid: Option<u32>,
    ) -> Result<(), SetUpError> {
        let invalid = |expected| SetUpError::Invalid { field: "mode", value: format!("{mode:o}"), expected };
        let mode = u32::try_from(mode).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| invalid("0000 to 0777"))?;
        let path = FilePath::parse(path)?;
        if self.collides(&path) {
            let expected = "no other file of the volume at or below this path";
            return Err(SetUpError::Invalid { field: "path", value: path.0, expected });
        }
        self.files.insert(path, File { data, mode, uid });
        Ok(())
    }

    fn collides(&self, path: &FilePath) -> bool {
        let below = FilePath(format!("{}/", path.0));
        let after = FilePath(format!("{}0", path.0)); // '0' follows '/'
        let above =
            path.0.match_indices('/').any(|(at, _)| self.files.contains_key(&FilePath(path.0[..at].to_owned())));
        above || self.files.range(below..after).next().is_some()
    }

    /// Takes all files of another payload.
    pub(crate) fn merge(&mut self, other: Self) -> Result<(), SetUpError> {
        for (path, file) in other.files {
            self.put_owned(&path.0, file.data, file.mode as i32, file.uid)?;
        }
        Ok(())
    }

    /// Puts the keys of an object: all of them, or those of `items` at their paths.
    pub(crate) fn put_keys<'d>(
        &mut self,
        kind: &'static str,
        data: &BTreeMap<&'d str, &'d [u8]>,
        items: Option<&Vec<KeyToPath>>,
        default_mode: Option<i32>,
        optional: Option<bool>,
    ) -> Result<(), SetUpError> {
        let default_mode = default_mode.unwrap_or(DEFAULT_MODE);
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (key, value) in data {
                self.put(key, value.to_vec(), default_mode)?;
            }
            return Ok(());
        };
        for item in items {
            match data.get(item.key.as_str()) {
                Some(value) => self.put(&item.path, value.to_vec(), item.mode.unwrap_or(default_mode))?,
                None if optional == Some(true) => {}
                None => return Err(SetUpError::KeyNotFound { kind, key: item.key.clone() }),
            }
        }
        Ok(())
    }

    /// Lets the volume's group read everything, as `fsGroup` asks.
    pub(crate) fn readable_by_group(&mut self) {
        for file in self.files.values_mut() {
            file.mode |= 0o440;
        }
    }

    /// The files by path.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&FilePath, &File)> {
        self.files.iter()
    }

    /// What is to be seen in the volume's directory.
    pub(crate) fn tops(&self) -> BTreeSet<&str> {
        self.files.keys().map(FilePath::top).collect()
    }

    #[cfg(test)]
    pub(crate) fn text(&self, path: &str) -> Option<(&str, u32)> {
        let file = self.files.get(&FilePath(path.to_owned()))?;
        Some((std::str::from_utf8(&file.data).ok()?, file.mode))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_that_leave_the_volume_or_touch_the_writers_names_are_refused() {
        let long = "a/".repeat(3000);
        let wide = "a".repeat(256);
        for bad in ["", "/", "/a", ".", "./", "..", "../a", "a/../b", "a/..", "..a", "..data", "a\0", &long, &wide] {
            assert!(FilePath::parse(bad).is_err(), "{bad:?}");
        }
        for (good, clean) in [("a", "a"), ("a//b/./c/", "a/b/c"), ("./a", "a"), (".a", ".a"), ("a/..b", "a/..b")] {
            assert_eq!(FilePath::parse(good).unwrap().as_str(), clean);
        }
    }

    #[test]
    fn a_path_is_not_file_and_directory_at_once() {
        let mut payload = Payload::default();
        payload.put("a/b", Vec::new(), 0o644).unwrap();
        payload.put("a/b", b"again".to_vec(), 0o600).unwrap();
        payload.put("a-b", Vec::new(), 0o644).unwrap();
        payload.put("ab", Vec::new(), 0o644).unwrap();
        assert!(payload.put("a", Vec::new(), 0o644).unwrap_err().is_final());
        assert!(payload.put("a/b/c", Vec::new(), 0o644).unwrap_err().is_final());
        assert_eq!(payload.text("a/b"), Some(("again", 0o600)));
        assert!(payload.put("m", Vec::new(), 0o1000).is_err() && payload.put("m", Vec::new(), -1).is_err());
    }

    proptest! {
        #[test]
        fn a_path_that_is_taken_stays_below_the_volume(text in "[a./\\\\]{0,12}") {
            if let Ok(path) = FilePath::parse(&text) {
                let components: Vec<_> = std::path::Path::new(path.as_str()).components().collect();
                prop_assert!(!components.is_empty());
                prop_assert!(components.iter().all(|c| matches!(c, std::path::Component::Normal(_))));
                prop_assert!(!path.top().starts_with(".."));
            }
        }
    }
}
