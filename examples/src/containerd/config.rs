//! The private containerd's configuration file.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Bit of `CAP_SYS_RESOURCE` in a capability set.
pub(super) const CAP_SYS_RESOURCE: u32 = 24;

/// The name of the second handler and of the folder of its state.
pub(super) const SECOND_HANDLER: &str = "runc-2";

/// Everything the file is made of.
pub(super) struct Config<'a> {
    pub(super) folder: &'a Path,
    pub(super) socket: &'a Path,
    pub(super) cni_plugins: &'a Path,
    pub(super) cni_config: &'a Path,
    pub(super) pause_image: &'a str,
    pub(super) snapshotter: Snapshotter,
    pub(super) restrict_oom_score: bool,
}

impl Config<'_> {
    /// The file in containerd's version 2 format, which 1.6 and later read.
    pub(super) fn render(&self) -> Result<String> {
        let root = quote(&self.folder.join("root"))?;
        let state = quote(&self.folder.join("state"))?;
        let socket = quote(self.socket)?;
        let opt = quote(&self.folder.join("opt"))?;
        let runc = quote(&self.folder.join("runc"))?;
        let second = quote(&self.folder.join(SECOND_HANDLER))?;
        let plugins = quote(self.cni_plugins)?;
        let network = quote(self.cni_config)?;
        let pause = quote(Path::new(self.pause_image))?;
        let snapshotter = self.snapshotter.name();
        let restrict = self.restrict_oom_score;
        Ok(format!(
            r#"version = 2
root = {root}
state = {state}

[grpc]
  address = {socket}

[plugins."io.containerd.internal.v1.opt"]
  path = {opt}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {pause}
  restrict_oom_score_adj = {restrict}
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {plugins}
    conf_dir = {network}

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = {runc}

    # Another handler, for RuntimeClasses: the same program with a state of its own.
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{SECOND_HANDLER}]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{SECOND_HANDLER}.options]
        Root = {second}
"#
        ))
    }
}

/// A TOML literal string: nothing in it is interpreted.
fn quote(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    ensure!(
        !text.contains(|c: char| c == '\'' || c.is_control()),
        "{text:?} cannot be written to containerd's configuration: choose a path without quotes"
    );
    Ok(format!("'{text}'"))
}

/// How containerd keeps image layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Snapshotter {
    /// Overlay mounts: fast and small.
    Overlay,
    /// Copies: works on every file system.
    Native,
}

impl Snapshotter {
    /// The name in containerd's configuration.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlayfs",
            Self::Native => "native",
        }
    }

    /// Overlay if the kernel lets us mount one whose folders are below `folder`.
    pub(super) fn choose(folder: &Path) -> Result<Self> {
        let probe = folder.join("overlay-probe");
        let [lower, upper, work, target] = ["lower", "upper", "work", "target"].map(|name| probe.join(name));
        for path in [&lower, &upper, &work, &target] {
            fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        }
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let options = std::ffi::CString::new(options)?;
        let chosen = match mount("overlay", &target, "overlay", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => {
                unmount(&target, UnmountFlags::empty()).with_context(|| format!("unmount {}", target.display()))?;
                Self::Overlay
            }
            Err(_) => Self::Native,
        };
        fs::remove_dir_all(&probe).with_context(|| format!("remove {}", probe.display()))?;
        Ok(chosen)
    }
}

/// Whether this process holds the capability with this bit.
pub(super) fn has_capability(bit: u32) -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let set =
        status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("/proc/self/status has no CapEff")?;
    Ok(u64::from_str_radix(set.trim(), 16).context("CapEff")? >> bit & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_cannot_break_out_of_the_file() {
        assert_eq!(quote(Path::new("/a b")).unwrap(), "'/a b'");
        assert!(quote(Path::new("/a'\nroot = '/")).is_err());
    }

    #[test]
    fn everything_is_kept_in_the_folder() {
        let folder = Path::new("/data/q");
        let text = Config {
            folder,
            socket: &folder.join("containerd.sock"),
            cni_plugins: Path::new("/usr/lib/cni"),
            cni_config: &folder.join("cni"),
            pause_image: "127.0.0.1:5000/pause:1",
            snapshotter: Snapshotter::Native,
            restrict_oom_score: true,
        }
        .render()
        .unwrap();
        let paths: Vec<_> = text.split('\'').skip(1).step_by(2).filter(|text| text.starts_with('/')).collect();
        assert_eq!(paths.iter().filter(|path| !path.starts_with("/data/q/")).collect::<Vec<_>>(), [&"/usr/lib/cni"]);
        assert!(text.contains("restrict_oom_score_adj = true"));
    }
}
