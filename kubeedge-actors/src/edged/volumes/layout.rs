//! The kubelet's directories: `<root>/pods/<uid>/...`.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use super::error::InvalidName;

/// A pod's uid, safe as a directory's name: 1 to 128 letters, digits and `-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(String);

impl PodUid {
    /// The uid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PodUid {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if good {
            return Ok(Self(text.to_owned()));
        }
        let expected = "1 to 128 letters, digits and '-'";
        Err(InvalidName { what: "pod uid", text: text.chars().take(140).collect(), expected })
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a volume or container: a DNS-1123 label, so safe as a directory's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Label(String);

impl Label {
    pub(crate) fn parse(what: &'static str, text: &str) -> Result<Self, InvalidName> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=63).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('-') && !text.ends_with('-') {
            return Ok(Self(text.to_owned()));
        }
        let expected = "a DNS label of 1 to 63 lower case letters, digits and '-'";
        Err(InvalidName { what, text: text.chars().take(70).collect(), expected })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The kinds of volume that have a directory of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plugin {
    EmptyDir,
    ConfigMap,
    Secret,
    Projected,
    DownwardApi,
    Nfs,
}

impl Plugin {
    fn directory(self) -> &'static str {
        match self {
            Self::EmptyDir => "kubernetes.io~empty-dir",
            Self::ConfigMap => "kubernetes.io~configmap",
            Self::Secret => "kubernetes.io~secret",
            Self::Projected => "kubernetes.io~projected",
            Self::DownwardApi => "kubernetes.io~downward-api",
            Self::Nfs => "kubernetes.io~nfs",
        }
    }
}

/// The directory that holds a directory for each pod.
pub(crate) fn pods_dir(root: &Path) -> PathBuf {
    root.join("pods")
}

/// One pod's directory.
#[derive(Clone, Debug)]
pub(crate) struct PodDir(PathBuf);

impl PodDir {
    pub(crate) fn new(root: &Path, uid: &PodUid) -> Self {
        Self(pods_dir(root).join(uid.as_str()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// `volumes/kubernetes.io~secret`
    pub(crate) fn plugin(&self, plugin: Plugin) -> PathBuf {
        self.0.join("volumes").join(plugin.directory())
    }

    /// `volumes/kubernetes.io~secret/<name>`
    pub(crate) fn volume(&self, plugin: Plugin, name: &Label) -> PathBuf {
        self.plugin(plugin).join(name.as_str())
    }

    /// `plugins/kubernetes.io~empty-dir/<name>`: what is remembered about a volume.
    pub(crate) fn meta(&self, plugin: Plugin, name: &Label) -> PathBuf {
        self.0.join("plugins").join(plugin.directory()).join(name.as_str())
    }

    /// `volume-subpaths/<volume>/<container>/<index>`
    pub(crate) fn sub_path(&self, volume: &Label, container: &Label, index: usize) -> PathBuf {
        self.0.join("volume-subpaths").join(volume.as_str()).join(container.as_str()).join(index.to_string())
    }

    /// `containers/<name>`: the termination logs.
    pub(crate) fn container(&self, name: &Label) -> PathBuf {
        self.0.join("containers").join(name.as_str())
    }

    /// The managed hosts file.
    pub(crate) fn etc_hosts(&self) -> PathBuf {
        self.0.join("etc-hosts")
    }

    /// The service account tokens that were handed out, so that the pod starts without the cloud.
    pub(crate) fn tokens(&self) -> PathBuf {
        self.0.join("tokens")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_leave_the_directory_is_refused() {
        for bad in ["", ".", "..", "a/b", "../x", "a.b", "a\0b", "a b", "ü"] {
            assert!(bad.parse::<PodUid>().is_err(), "{bad:?}");
            assert!(Label::parse("volume", bad).is_err(), "{bad:?}");
        }
        assert!("a".repeat(129).parse::<PodUid>().is_err());
        assert!(Label::parse("volume", &"a".repeat(64)).is_err());
        assert!(Label::parse("volume", "-a").is_err() && Label::parse("volume", "A").is_err());
    }

    #[test]
    fn paths_are_those_of_the_kubelet() {
        let uid = "8d0b5d0e-4c4e-4b0a-9f2e-000000000001".parse().unwrap();
        let pod = PodDir::new(Path::new("/var/lib/kubelet"), &uid);
        let label = |text| Label::parse("volume", text).unwrap();
        let base = "/var/lib/kubelet/pods/8d0b5d0e-4c4e-4b0a-9f2e-000000000001";
        for (path, tail) in [
            (pod.volume(Plugin::ConfigMap, &label("v")), "volumes/kubernetes.io~configmap/v"),
            (pod.volume(Plugin::Secret, &label("v")), "volumes/kubernetes.io~secret/v"),
            (pod.volume(Plugin::Projected, &label("v")), "volumes/kubernetes.io~projected/v"),
            (pod.volume(Plugin::DownwardApi, &label("v")), "volumes/kubernetes.io~downward-api/v"),
            (pod.volume(Plugin::EmptyDir, &label("v")), "volumes/kubernetes.io~empty-dir/v"),
            (pod.sub_path(&label("v"), &label("c"), 3), "volume-subpaths/v/c/3"),
            (pod.container(&label("c")), "containers/c"),
            (pod.etc_hosts(), "etc-hosts"),
        ] {
            assert_eq!(path, Path::new(base).join(tail));
        }
    }
}
