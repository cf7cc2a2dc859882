//! Where container logs are: kubelet's paths, which log collectors know.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::edged::{lifecycle::PodPlan, volumes::PodUid};

/// Longest file name.
const MAX_FILE_NAME: usize = 255;

/// The directories of logs below one root, `/var/log` by custom.
#[derive(Clone, Debug)]
pub struct LogDirs {
    root: PathBuf,
}

impl LogDirs {
    /// Logs below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// `<root>/pods/<namespace>_<name>_<uid>`
    pub fn pod(&self, plan: &PodPlan) -> PathBuf {
        self.root.join("pods").join(format!("{}_{}_{}", plan.namespace, plan.name, plan.uid))
    }

    /// `<container>/<attempt>.log`, below the pod's directory.
    pub fn relative(container: &str, attempt: u32) -> String {
        format!("{container}/{attempt}.log")
    }

    /// `<root>/containers/<name>_<namespace>_<container>-<id>.log`
    pub fn link(&self, plan: &PodPlan, container: &str, id: &str) -> PathBuf {
        let mut name = format!("{}_{}_{container}", plan.name, plan.namespace);
        let end = format!("-{id}.log");
        // Names are ASCII: any cut is between characters.
        name.truncate(MAX_FILE_NAME.saturating_sub(end.len()));
        self.root.join("containers").join(name + &end)
    }

    /// Makes the directory that a container logs to.
    pub fn prepare(&self, plan: &PodPlan, container: &str) -> io::Result<()> {
        std::fs::create_dir_all(self.pod(plan).join(container))
    }

    /// Links a container's log to where collectors look.
    pub fn publish(&self, plan: &PodPlan, container: &str, attempt: u32, id: &str) -> io::Result<()> {
        let link = self.link(plan, container, id);
        if let Some(directory) = link.parent() {
            std::fs::create_dir_all(directory)?;
        }
        match std::os::unix::fs::symlink(self.pod(plan).join(Self::relative(container, attempt)), &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Removes a container's log and the link to it.
    pub fn remove(&self, plan: &PodPlan, container: &str, attempt: u32, id: &str) -> io::Result<()> {
        gone(std::fs::remove_file(self.link(plan, container, id)))?;
        let path = self.pod(plan).join(Self::relative(container, attempt));
        // What was rotated goes first: by the log itself all of it is found again.
        let rotated = format!("{attempt}.log.");
        if let Some(folder) = path.parent().filter(|folder| folder.is_dir()) {
            for file in std::fs::read_dir(folder)? {
                let file = file?;
                if file.file_name().to_string_lossy().starts_with(&rotated) {
                    gone(std::fs::remove_file(file.path()))?;
                }
            }
        }
        gone(std::fs::remove_file(path))
    }

    /// Removes what is left of a pod's logs.
    pub fn remove_pod(&self, plan: &PodPlan) -> io::Result<()> {
        gone(std::fs::remove_dir_all(self.pod(plan)))
    }

    /// Removes the logs of a pod of which only the uid is known. Links to them go when they are looked for
    /// (`housekeeping::logs::sweep_links`).
    pub fn remove_orphan(&self, uid: &PodUid) -> io::Result<()> {
        let end = format!("_{uid}");
        let pods = match std::fs::read_dir(self.root.join("pods")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            pods => pods?,
        };
        for pod in pods {
            let pod = pod?;
            if pod.file_name().to_string_lossy().ends_with(&end) {
                gone(std::fs::remove_dir_all(pod.path()))?;
            }
        }
        Ok(())
    }

    /// The last bytes of a container's log, as text without the runtime's prefixes.
    pub fn tail(&self, plan: &PodPlan, container: &str, attempt: u32, bytes: u64) -> io::Result<String> {
        let raw = tail(&self.pod(plan).join(Self::relative(container, attempt)), bytes)?;
        let text = String::from_utf8_lossy(&raw);
        let mut out = String::with_capacity(text.len());
        for line in text.lines() {
            // `<time> <stream> <F or P> <text>`; the first line may be cut.
            let mut parts = line.splitn(4, ' ');
            if let (Some(_), Some("stdout" | "stderr"), Some(tag), content) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            {
                out.push_str(content.unwrap_or_default());
                if tag.starts_with('F') {
                    out.push('\n');
                }
            }
        }
        Ok(out)
    }
}

/// The last bytes of a file.
pub(crate) fn tail(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut out = Vec::new();
    file.take(bytes).read_to_end(&mut out)?;
    Ok(out)
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edged::lifecycle::RestartPolicy;

    fn plan() -> PodPlan {
        PodPlan {
            namespace: "ns".into(),
            name: "p".into(),
            uid: "u".into(),
            restart_policy: RestartPolicy::Always,
            grace_seconds: 1,
            deletion_grace_seconds: None,
            host_network: false,
            active_deadline: None,
            readiness_gates: Vec::new(),
            containers: Vec::new(),
        }
    }

    #[test]
    fn logs_are_where_kubelet_puts_them_and_go_with_the_container() {
        let root = tempfile::tempdir().unwrap();
        let logs = LogDirs::new(root.path());
        let plan = plan();
        logs.prepare(&plan, "c").unwrap();
        let file = root.path().join("pods/ns_p_u/c/3.log");
        std::fs::write(&file, "2026-01-01T00:00:00Z stdout P one \n2026-01-01T00:00:00Z stderr F two\ncut").unwrap();
        logs.publish(&plan, "c", 3, "abc").unwrap();
        logs.publish(&plan, "c", 3, "abc").unwrap();
        let link = root.path().join("containers/p_ns_c-abc.log");
        assert_eq!(std::fs::read_link(&link).unwrap(), file);
        assert_eq!(logs.tail(&plan, "c", 3, 2048).unwrap(), "one two\n");
        for name in ["3.log.1", "3.log.2", "33.log", "33.log.1"] {
            std::fs::write(file.with_file_name(name), "").unwrap();
        }
        logs.remove(&plan, "c", 3, "abc").unwrap();
        logs.remove(&plan, "c", 3, "abc").unwrap();
        assert!(!file.exists() && std::fs::symlink_metadata(&link).is_err());
        let mut left: Vec<_> =
            std::fs::read_dir(file.parent().unwrap()).unwrap().map(|it| it.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["33.log", "33.log.1"], "those of another instance stay");
        logs.remove_pod(&plan).unwrap();
        assert!(!root.path().join("pods/ns_p_u").exists());
    }

    #[test]
    fn logs_of_an_orphan_go_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        let logs = LogDirs::new(root.path());
        let orphan: PodUid = "u".parse().unwrap();
        logs.remove_orphan(&orphan).unwrap();
        let others = PodPlan { uid: "other-u".into(), ..plan() };
        for plan in [&plan(), &others] {
            logs.prepare(plan, "c").unwrap();
        }
        logs.remove_orphan(&orphan).unwrap();
        assert!(!logs.pod(&plan()).exists() && logs.pod(&others).exists());
    }

    #[test]
    fn a_link_fits_into_a_file_name() {
        let plan = PodPlan { name: "p".repeat(253), ..plan() };
        let link = LogDirs::new("/l").link(&plan, &"c".repeat(63), &"0".repeat(64));
        assert_eq!(link.file_name().unwrap().len(), MAX_FILE_NAME);
    }
}
