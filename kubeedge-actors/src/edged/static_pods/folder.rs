//! Which manifests there are, and which have changed.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use k8s_openapi::api::core::v1::Pod;

use super::manifest;

/// A larger file is no manifest.
pub const MAX_FILE: u64 = 1024 * 1024;
/// Manifests that are read of one folder.
pub const MAX_FILES: usize = 256;

/// A file as it was read last.
#[derive(Clone, Debug)]
struct Known {
    modified: Option<SystemTime>,
    size: u64,
    pod: Option<Pod>,
}

/// A folder of manifests, and what was read of it.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    node: String,
    files: BTreeMap<PathBuf, Known>,
}

/// What a look found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The pods that there are. Of two of one name the first file's.
    pub pods: Vec<Pod>,
    /// Files that could not be read or make no pod, with the reason; each is told once for each of its versions.
    pub broken: Vec<(PathBuf, String)>,
    /// Whether anything differs from the last look.
    pub changed: bool,
}

impl Folder {
    /// A folder, for the node of that name. It need not be there.
    pub fn new(path: PathBuf, node: String) -> Self {
        Self { path, node, files: BTreeMap::new() }
    }

    /// Looks. Only files that differ in time or size are read, all of them when `again`. File work: for the blocking
    /// pool.
    ///
    /// # Errors
    /// The folder is there and cannot be read: nothing is known then, and nothing has changed.
    pub fn look(&mut self, again: bool) -> io::Result<Found> {
        let mut found = Found::default();
        let listed = list(&self.path)?;
        let before = self.files.len();
        self.files.retain(|path, _| listed.iter().any(|(listed, _)| listed == path));
        found.changed = self.files.len() != before;
        for (path, metadata) in listed {
            let (modified, size) = (metadata.modified().ok(), metadata.len());
            let known = self.files.get(&path);
            if !again && known.is_some_and(|known| known.modified == modified && known.size == size) {
                continue;
            }
            let (pod, why) = match read(&path, size, &self.node) {
                Ok(pod) => (Some(pod), None),
                Err(why) => (None, Some(why)),
            };
            let newly = known.is_none_or(|known| known.pod != pod || known.modified != modified);
            if let Some(why) = why.filter(|_| newly) {
                found.broken.push((path.clone(), why));
            }
            found.changed |= newly;
            self.files.insert(path, Known { modified, size, pod });
        }
        let mut names = Vec::new();
        for (path, known) in &self.files {
            let Some(pod) = &known.pod else { continue };
            let name = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
            if names.contains(&name) {
                if found.changed {
                    found.broken.push((path.clone(), "another file has a pod of this name".to_owned()));
                }
                continue;
            }
            names.push(name);
            found.pods.push(pod.clone());
        }
        Ok(found)
    }
}

/// Regular files that are not hidden, by name; links are followed. A folder that is not there has none.
fn list(folder: &Path) -> io::Result<Vec<(PathBuf, fs::Metadata)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // One that goes away meanwhile is gone.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if metadata.is_file() {
            files.push((entry.path(), metadata));
        }
    }
    files.sort_by(|(a, _), (b, _)| a.cmp(b));
    if files.len() > MAX_FILES {
        let (files, limit) = (files.len(), MAX_FILES);
        tracing::warn!(folder = %folder.display(), files, limit, "more manifests than are read: the last are left out");
    }
    files.truncate(MAX_FILES);
    Ok(files)
}

fn read(path: &Path, size: u64, node: &str) -> Result<Pod, String> {
    if size > MAX_FILE {
        return Err(format!("it is larger than {MAX_FILE} bytes"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    manifest::pod(&text, node).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, image: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: {image}}}]}}"
        )
    }

    #[test]
    fn files_come_change_break_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("manifests");
        let mut folder = Folder::new(path.clone(), "n".into());
        let look = |folder: &mut Folder| {
            let found = folder.look(false).unwrap();
            let names = found.pods.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect::<Vec<_>>();
            (names, found.broken.len(), found.changed)
        };
        assert_eq!(look(&mut folder), (vec![], 0, false), "no folder, no pods");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("b.yaml"), manifest("b", "i")).unwrap();
        fs::write(path.join(".hidden"), "x").unwrap();
        assert_eq!(look(&mut folder), (vec!["b-n".into()], 0, true));
        assert_eq!(look(&mut folder), (vec!["b-n".into()], 0, false));
        let first = folder.look(false).unwrap().pods[0].metadata.uid.clone();

        fs::write(path.join("a.yaml"), "kind: [").unwrap();
        fs::write(path.join("b.yaml"), manifest("b", "other")).unwrap();
        assert_eq!(look(&mut folder), (vec!["b-n".into()], 1, true));
        assert_eq!(look(&mut folder), (vec!["b-n".into()], 0, false), "told once");
        assert!(folder.look(true).unwrap().broken.is_empty());
        assert_ne!(folder.look(false).unwrap().pods[0].metadata.uid, first);

        fs::write(path.join("a.yaml"), manifest("b", "i")).unwrap();
        let found = folder.look(false).unwrap();
        assert_eq!(found.broken[0].0, path.join("b.yaml"));
        assert_eq!((found.pods.len(), found.pods[0].metadata.uid.clone()), (1, first));
        fs::remove_file(path.join("a.yaml")).unwrap();
        fs::remove_file(path.join("b.yaml")).unwrap();
        assert_eq!(look(&mut folder), (vec![], 0, true));
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_an_error_and_no_empty_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Folder::new(file.path().to_owned(), "n".into()).look(false).is_err());
    }
}
