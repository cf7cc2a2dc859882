//! Users of a pod's own: the ids of the node that a pod with `hostUsers: false` runs as.
//!
//! Each such pod has 65,536 ids for itself, which the runtime maps to 0 to 65,535 inside. Which ones is noted in the pod's
//! directory, `pods/<uid>/userns`, in kubelet's form: they stay the same for the pod's whole life, over restarts of
//! edgecore, and are free again when the directory is removed.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::Pod;
use kubeedge_proto::cri::{IdMapping, NamespaceMode, UserNamespace};
use serde::{Deserialize, Serialize};

use super::{runtime::RuntimeFeatures, volumes::PodUid};

/// Ids of one pod (kubelet's).
pub const LENGTH: u32 = 65_536;
/// The node's own users have the first range; the last one ends with an id that means "none".
const RANGES: std::ops::Range<u32> = 1..65_535;
/// The file in a pod's directory.
const FILE: &str = "userns";
/// A longer one is not ours, bytes.
const MAX_FILE: u64 = 4096;

/// What is wrong with `hostUsers: false` of a pod, before anything is made: kubelet's words where it has some.
pub fn refusal(pod: &Pod, handler: &str, features: &RuntimeFeatures) -> Option<String> {
    let spec = pod.spec.as_ref().filter(|spec| spec.host_users == Some(false))?;
    if [spec.host_network, spec.host_pid, spec.host_ipc].contains(&Some(true)) {
        return Some("can't set `spec.hostUsers: false` together with hostNetwork, hostPID or hostIPC".to_owned());
    }
    if features.handler(handler).user_namespaces {
        return None;
    }
    let who = match handler {
        "" => format!("runtime ({})", features.runtime),
        handler => format!("RuntimeClass handler {handler:?} ({})", features.runtime),
    };
    Some(format!("can't set `spec.hostUsers: false`, {who} does not support user namespaces"))
}

/// The ids of a pod on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ids {
    /// The first of [`LENGTH`].
    pub first: u32,
}

impl Ids {
    /// From the node's to the pod's.
    pub fn mapping(self) -> IdMapping {
        IdMapping { host_id: self.first, container_id: 0, length: LENGTH }
    }

    /// For a sandbox and its containers.
    pub fn namespace(self) -> UserNamespace {
        let ids = vec![self.mapping()];
        UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Noted {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

/// Hands out ids. Clones are of the same node.
#[derive(Clone, Debug)]
pub struct UserNamespaces {
    pods: PathBuf,
    /// Two pods at once must not be given the same.
    one_at_a_time: Arc<Mutex<()>>,
}

impl UserNamespaces {
    /// Of the pods below a root directory.
    pub fn new(root_dir: &Path) -> Self {
        Self { pods: root_dir.join("pods"), one_at_a_time: Arc::default() }
    }

    /// The ids of a pod: those it has, or the first that nobody has. Blocks.
    ///
    /// # Errors
    /// A note of any pod that cannot be read: its ids are not known, and nobody is to share them.
    pub fn of(&self, uid: &PodUid) -> io::Result<Ids> {
        let _guard = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let own = self.pods.join(uid.as_str());
        if let Some(ids) = read(&own.join(FILE))? {
            return Ok(ids);
        }
        let mut taken = BTreeSet::new();
        let entries = match fs::read_dir(&self.pods) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries?),
        };
        for entry in entries.into_iter().flatten() {
            taken.extend(read(&entry?.path().join(FILE))?);
        }
        let none = || io::Error::new(io::ErrorKind::QuotaExceeded, "every range of ids on this node is taken");
        let free = RANGES.map(|range| Ids { first: range * LENGTH }).find(|ids| !taken.contains(ids));
        let ids = free.ok_or_else(none)?;
        fs::create_dir_all(&own)?;
        write(&own.join(FILE), ids)?;
        Ok(ids)
    }
}

fn read(path: &Path) -> io::Result<Option<Ids>> {
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let text = match fs::metadata(path).map_err(at) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
        Ok(metadata) if metadata.len() > MAX_FILE => return Err(at(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => fs::read(path).map_err(at)?,
    };
    let invalid = |why: String| at(io::Error::new(io::ErrorKind::InvalidData, why));
    let noted: Noted = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    match (noted.uid_mappings.as_slice(), noted.gid_mappings.as_slice()) {
        ([uids], [gids])
            if uids == gids
                && uids.container_id == 0
                && uids.length == LENGTH
                && uids.host_id % LENGTH == 0
                && RANGES.contains(&(uids.host_id / LENGTH)) =>
        {
            Ok(Some(Ids { first: uids.host_id }))
        }
        _ => Err(invalid(format!("expected one range of {LENGTH} ids, the same for users and groups"))),
    }
}

/// Whole and on disk before anything is made with it, or not at all.
fn write(path: &Path, ids: Ids) -> io::Result<()> {
    let mapping = Mapping { host_id: ids.first, container_id: 0, length: LENGTH };
    let noted = Noted { uid_mappings: vec![mapping], gid_mappings: vec![mapping] };
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(&noted)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::edged::runtime::HandlerFeatures;

    fn uid(text: &str) -> PodUid {
        text.parse().unwrap()
    }

    #[test]
    fn no_two_pods_share_ids_and_one_keeps_its_own_until_its_directory_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let users = UserNamespaces::new(root.path());
        let one = users.of(&uid("one")).unwrap();
        let two = users.of(&uid("two")).unwrap();
        assert_eq!((one.first, two.first), (65_536, 131_072));
        // Another edgecore, later.
        let users = UserNamespaces::new(root.path());
        assert_eq!(users.of(&uid("two")).unwrap(), two);
        fs::remove_dir_all(root.path().join("pods/one")).unwrap();
        assert_eq!(users.of(&uid("three")).unwrap(), one);
        assert_eq!(users.of(&uid("four")).unwrap().first, 196_608);
        let note = fs::read_to_string(root.path().join("pods/two/userns")).unwrap();
        let mapping = r#"[{"hostId":131072,"containerId":0,"length":65536}]"#;
        assert_eq!(note, format!(r#"{{"uidMappings":{mapping},"gidMappings":{mapping}}}"#));
    }

    #[test]
    fn a_note_that_cannot_be_read_is_named_and_nobody_gets_ids() {
        let root = tempfile::tempdir().unwrap();
        let users = UserNamespaces::new(root.path());
        fs::create_dir_all(root.path().join("pods/broken")).unwrap();
        let mapping = |host: u32, length: u32| json!([{"hostId": host, "containerId": 0, "length": length}]);
        let other = mapping(LENGTH * 2, LENGTH);
        for note in [
            "{".to_owned(),
            json!({"uidMappings": [], "gidMappings": []}).to_string(),
            json!({"uidMappings": mapping(0, LENGTH), "gidMappings": mapping(0, LENGTH)}).to_string(),
            json!({"uidMappings": mapping(LENGTH, 1), "gidMappings": mapping(LENGTH, 1)}).to_string(),
            json!({"uidMappings": mapping(LENGTH, LENGTH), "gidMappings": other}).to_string(),
            "x".repeat(5000),
        ] {
            fs::write(root.path().join("pods/broken/userns"), &note).unwrap();
            let error = users.of(&uid("one")).unwrap_err().to_string();
            assert!(error.contains("pods/broken/userns"), "{note}: {error}");
        }
        assert!(!root.path().join("pods/one").exists());
    }

    #[test]
    fn what_cannot_have_users_of_its_own_is_refused_by_name() {
        let of = |spec: serde_json::Value, handler: &str| {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let able = HandlerFeatures { user_namespaces: true, recursive_read_only: false };
            let handlers = [("able".to_owned(), able)].into();
            let features = RuntimeFeatures { runtime: "containerd 1.6".to_owned(), handlers, ..Default::default() };
            refusal(&pod, handler, &features)
        };
        assert_eq!(of(json!({}), ""), None);
        assert_eq!(of(json!({"hostUsers": true, "hostPID": true}), ""), None);
        assert_eq!(of(json!({"hostUsers": false}), "able"), None);
        assert_eq!(
            of(json!({"hostUsers": false}), "").unwrap(),
            "can't set `spec.hostUsers: false`, runtime (containerd 1.6) does not support user namespaces"
        );
        let named = of(json!({"hostUsers": false}), "gone").unwrap();
        assert!(named.contains("RuntimeClass handler \"gone\" (containerd 1.6) does not"), "{named}");
        for shared in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(of(json!({"hostUsers": false, shared: true}), "able").unwrap().contains("together with"));
        }
    }
}
