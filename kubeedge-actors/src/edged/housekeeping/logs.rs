//! Rotation of container logs: a log that has grown is renamed, and the runtime opens a new one. `kubectl logs` reads the
//! newest file of an instance, as it does at a kubelet; older ones are for log collectors.
//!
//! `<container>/<attempt>.log` becomes `<container>/<attempt>.log.<time>`. They are not compressed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

use crate::edged::runtime::{InstanceState, Runtime};

/// How large logs become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPolicy {
    /// A file of this size or larger is rotated, bytes (`containerLogMaxSize`).
    pub max_size: u64,
    /// Files of one instance, the one that is written included; at least 2 (`containerLogMaxFiles`).
    pub max_files: usize,
    /// Pause between two looks (`containerLogMonitorInterval`).
    pub interval: Duration,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 5, interval: Duration::from_secs(10) }
    }
}

/// A link whose log is not there for so long is left behind: the runtime makes the log right after the link.
const DANGLES_FOR: Duration = Duration::from_secs(60);

/// Removes links in `containers` to logs below `pods` that are gone, as an edgecore that was killed leaves them; answers
/// how many. Other files and links there are somebody else's.
pub fn sweep_links(containers: &Path, pods: &Path, now: SystemTime) -> io::Result<usize> {
    let entries = match fs::read_dir(containers) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        let link = entry.path();
        let made = fs::symlink_metadata(&link).and_then(|metadata| metadata.modified());
        let is_old = made.is_ok_and(|made| now.duration_since(made).is_ok_and(|age| age >= DANGLES_FOR));
        if is_old && fs::read_link(&link).is_ok_and(|log| log.starts_with(pods) && !log.exists()) {
            gone(fs::remove_file(&link))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// A log that has to be rotated or opened anew.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Due {
    pod_uid: String,
    container: String,
    attempt: u32,
    /// `<attempt>.log`
    path: PathBuf,
    /// Rotated files that have to go first, oldest first.
    excess: Vec<PathBuf>,
    /// A rotation was broken off: the file is renamed already.
    renamed: bool,
}

/// Rotates what is due below `pods`, one after the other; answers how many.
pub async fn rotate(runtime: &dyn Runtime, pods: &Path, policy: &LogPolicy, now: Timestamp) -> io::Result<usize> {
    let (folder, look) = (pods.to_owned(), policy.clone());
    let due = tokio::task::spawn_blocking(move || scan(&folder, &look)).await.map_err(io::Error::other)??;
    let mut rotated = 0;
    for log in due {
        let path = log.path.clone();
        match rotate_one(runtime, log, now).await {
            Ok(true) => rotated += 1,
            Ok(false) => {}
            Err(error) => tracing::warn!(path = %path.display(), "this log is not rotated: {error}"),
        }
    }
    Ok(rotated)
}

async fn rotate_one(runtime: &dyn Runtime, log: Due, now: Timestamp) -> io::Result<bool> {
    let observed = runtime.observe(&log.pod_uid).await.map_err(io::Error::other)?;
    let running = observed.instances.into_iter().find(|instance| {
        instance.name == log.container && instance.attempt == log.attempt && instance.state == InstanceState::Running
    });
    // What has ended grows no more.
    let Some(instance) = running else { return Ok(false) };
    let aside = aside(&log.path, now);
    let (path, excess, renamed) = (log.path.clone(), log.excess, log.renamed);
    let to = aside.clone();
    let rename = move || {
        for old in excess {
            gone(fs::remove_file(old))?;
        }
        if renamed { Ok(()) } else { fs::rename(path, to) }
    };
    tokio::task::spawn_blocking(rename).await.map_err(io::Error::other)??;
    if let Err(error) = runtime.reopen_log(&instance.id).await {
        // The runtime still writes to the renamed file: it gets its name back, unless a new one is there after all.
        if !renamed && !log.path.exists() {
            fs::rename(&aside, &log.path)?;
        }
        return Err(io::Error::other(error));
    }
    Ok(true)
}

/// The name of a rotated file. Sorted by name, they are sorted by time.
fn aside(path: &Path, now: Timestamp) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(now.strftime(".%Y%m%d-%H%M%S").to_string());
    path.with_file_name(name)
}

/// Looks at every log below `pods`: `<namespace>_<name>_<uid>/<container>/<attempt>.log`.
fn scan(pods: &Path, policy: &LogPolicy) -> io::Result<Vec<Due>> {
    let mut due = Vec::new();
    for pod in entries(pods)? {
        let name = pod.file_name();
        let Some(pod_uid) = name.to_str().and_then(|name| name.rsplit_once('_')).map(|(_, uid)| uid.to_owned()) else {
            continue;
        };
        for container in entries(&pod.path())? {
            let Ok(container_name) = container.file_name().into_string() else { continue };
            let mut files = BTreeMap::new();
            for file in entries(&container.path())? {
                if let (Ok(name), Ok(metadata)) = (file.file_name().into_string(), file.metadata()) {
                    files.insert(name, metadata.len());
                }
            }
            due.extend(decide(&files, policy).into_iter().map(|(attempt, renamed, excess)| Due {
                pod_uid: pod_uid.clone(),
                container: container_name.clone(),
                attempt,
                path: container.path().join(format!("{attempt}.log")),
                excess: excess.into_iter().map(|name| container.path().join(name)).collect(),
                renamed,
            }));
        }
    }
    Ok(due)
}

/// What is in a directory; nothing in one that is gone.
fn entries(path: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(path) {
        Ok(entries) => entries.collect(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Which instances' logs are due: number, whether the rename is done already, and the files that go first. From the
/// sizes of the files of one container, by name.
fn decide(files: &BTreeMap<String, u64>, policy: &LogPolicy) -> Vec<(u32, bool, Vec<String>)> {
    let attempts: BTreeSet<u32> = files.keys().filter_map(|name| name.split_once(".log")?.0.parse().ok()).collect();
    attempts
        .into_iter()
        .filter_map(|attempt| {
            let current = format!("{attempt}.log");
            let prefix = format!("{current}.");
            let rotated: Vec<&String> = files.keys().filter(|name| name.starts_with(&prefix)).collect();
            let renamed = match files.get(&current) {
                Some(size) if *size >= policy.max_size => false,
                Some(_) => return None,
                None if rotated.is_empty() => return None,
                None => true,
            };
            // The one that is written, and the one that it becomes.
            let keep = if renamed { policy.max_files.max(2) - 1 } else { policy.max_files.max(2) - 2 };
            let excess = rotated.len().saturating_sub(keep);
            Some((attempt, renamed, rotated.into_iter().take(excess).cloned().collect()))
        })
        .collect()
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kubeedge_proto::cri;
    use proptest::prelude::*;

    use super::*;
    use crate::edged::fake::FakeRuntime;

    fn policy(max_files: usize) -> LogPolicy {
        LogPolicy { max_size: 10, max_files, ..LogPolicy::default() }
    }

    fn files(names: &[(&str, u64)]) -> BTreeMap<String, u64> {
        names.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
    }

    #[test]
    fn what_has_grown_is_rotated_and_the_oldest_go() {
        let all = files(&[
            ("0.log", 99),
            ("1.log", 10),
            ("1.log.1", 1),
            ("1.log.2", 1),
            ("1.log.3", 1),
            ("2.log", 9),
            ("x", 99),
        ]);
        let old = vec!["1.log.1".to_owned(), "1.log.2".to_owned()];
        assert_eq!(decide(&all, &policy(3)), [(0, false, vec![]), (1, false, old)]);
        // A rotation that was broken off behind its rename.
        assert_eq!(decide(&files(&[("4.log.1", 99)]), &policy(3)), [(4, true, vec![])]);
        assert_eq!(decide(&files(&[("10.log", 3), ("1.log.5", 3)]), &policy(3)), [(1, true, vec![])]);
    }

    #[test]
    fn links_to_logs_that_are_gone_go_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (containers, pods) = (root.path().join("containers"), root.path().join("pods"));
        assert_eq!(sweep_links(&containers, &pods, SystemTime::now()).unwrap(), 0, "there is no such folder yet");
        fs::create_dir_all(&containers).unwrap();
        fs::create_dir_all(pods.join("ns_a_u/main")).unwrap();
        fs::write(pods.join("ns_a_u/main/0.log"), "").unwrap();
        fs::write(containers.join("file.log"), "").unwrap();
        let link = |name: &str, to: PathBuf| std::os::unix::fs::symlink(to, containers.join(name)).unwrap();
        link("there.log", pods.join("ns_a_u/main/0.log"));
        link("gone.log", pods.join("ns_b_u/main/0.log"));
        link("foreign.log", root.path().join("elsewhere/0.log"));
        let names = || -> Vec<String> {
            let entries = fs::read_dir(&containers).unwrap().map(|entry| entry.unwrap().file_name());
            entries.map(|name| name.into_string().unwrap()).collect::<BTreeSet<_>>().into_iter().collect()
        };
        assert_eq!(sweep_links(&containers, &pods, SystemTime::now()).unwrap(), 0, "the runtime makes its log now");
        assert_eq!(names().len(), 4);
        let later = SystemTime::now() + DANGLES_FOR;
        assert_eq!(sweep_links(&containers, &pods, later).unwrap(), 1);
        assert_eq!(names(), ["file.log", "foreign.log", "there.log"]);
    }

    proptest! {
        #[test]
        fn there_are_never_more_files_than_allowed(rotated in 0_usize..12, max_files in 0_usize..8, size in 0_u64..20) {
            let mut all: BTreeMap<String, u64> = (0..rotated).map(|n| (format!("0.log.{n:02}"), 1)).collect();
            all.insert("0.log".to_owned(), size);
            for (_, renamed, excess) in decide(&all, &policy(max_files)) {
                prop_assert!(!renamed && size >= 10);
                let left = all.len() - excess.len() + 1;
                prop_assert!(left <= max_files.max(2));
                prop_assert!(excess.iter().all(|name| name != "0.log"));
            }
        }
    }

    #[tokio::test]
    async fn a_runtime_that_does_not_open_it_anew_keeps_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = FakeRuntime::new(Arc::new(Timestamp::now));
        runtime.add_image("i");
        let metadata =
            cri::PodSandboxMetadata { name: "p".into(), uid: "u".into(), namespace: "ns".into(), attempt: 0 };
        let sandbox = cri::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        let id = runtime.run_sandbox(&sandbox, "").await.unwrap();
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 2 }),
            image: Some(cri::ImageSpec { image: "i".into(), ..Default::default() }),
            ..Default::default()
        };
        let container = runtime.create_container(&id, &config, &sandbox).await.unwrap();
        runtime.start_container(&container).await.unwrap();
        let logs = folder.path().join("ns_p_u/c");
        fs::create_dir_all(&logs).unwrap();
        let path = logs.join("2.log");
        fs::write(&path, "twelve bytes").unwrap();

        let now = Timestamp::from_second(1_700_000_000).unwrap();
        runtime.fail_next("reopen_log", "busy");
        assert_eq!(rotate(&runtime, folder.path(), &policy(2), now).await.unwrap(), 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), "twelve bytes");
        assert_eq!(rotate(&runtime, folder.path(), &policy(2), now).await.unwrap(), 1);
        assert!(!path.exists(), "this runtime writes nothing");
        assert_eq!(fs::read_to_string(logs.join("2.log.20231114-221320")).unwrap(), "twelve bytes");
        assert_eq!(runtime.calls().iter().filter(|call| call.starts_with("reopen_log")).count(), 2);
        // One that has ended is left alone.
        runtime.exit("u", "c", 0);
        fs::write(&path, "twelve bytes").unwrap();
        assert_eq!(rotate(&runtime, folder.path(), &policy(2), now).await.unwrap(), 0);
        assert!(path.exists());
    }
}
