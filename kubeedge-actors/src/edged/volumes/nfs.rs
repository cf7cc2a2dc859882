//! `nfs`: a directory that a server exports, mounted by the kernel.
//!
//! The kernel is asked directly: no program on the node is needed, and nothing passes a shell. Where the options name no
//! version of the protocol, the newest that both sides have is found by trying, as `mount.nfs` does.

use std::{
    ffi::CString,
    fs, io,
    net::{IpAddr, ToSocketAddrs},
    path::Path,
};

use rustix::{
    io::Errno,
    mount::{MountFlags, mount},
};

use super::{
    error::{AtPath as _, SetUpError},
    mount_table::is_mount_point,
};

const PORT: u16 = 2049;
/// Versions of the protocol, best first.
const VERSIONS: [&str; 4] = ["4.2", "4.1", "4.0", "3"];
/// Options of one mount.
const MAX_OPTIONS: usize = 64;

/// An export and how it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nfs {
    server: String,
    path: String,
    flags: MountFlags,
    /// Those that are the file system's own.
    options: Vec<String>,
}

impl Nfs {
    pub(crate) fn plan(server: &str, path: &str, read_only: bool, options: &[String]) -> Result<Self, SetUpError> {
        let invalid = |field, value: &str, expected| SetUpError::Invalid {
            field,
            value: value.chars().take(300).collect(),
            expected,
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
        if !(1..=253).contains(&server.len()) || !server.bytes().all(plain) {
            return Err(invalid("nfs.server", server, "a host name or an address"));
        }
        let steps_back = path.split('/').any(|part| part == "..");
        if !path.starts_with('/') || steps_back || path.len() > 1024 || path.bytes().any(|byte| byte.is_ascii_control())
        {
            return Err(invalid("nfs.path", path, "an absolute path without \"..\""));
        }
        if options.len() > MAX_OPTIONS {
            return Err(invalid("mountOptions", "too many", "64 options or fewer"));
        }
        let mut flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        let mut own = Vec::new();
        for option in options.iter().flat_map(|option| option.split(',')).map(str::trim).filter(|one| !one.is_empty()) {
            let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"=._-:/".contains(&byte);
            if !option.bytes().all(harmless) || option.len() > 100 {
                return Err(invalid("mountOptions", option, "options such as hard or vers=4.1"));
            }
            match option {
                "ro" => flags |= MountFlags::RDONLY,
                "nosuid" => flags |= MountFlags::NOSUID,
                "nodev" => flags |= MountFlags::NODEV,
                "noexec" => flags |= MountFlags::NOEXEC,
                "noatime" => flags |= MountFlags::NOATIME,
                "nodiratime" => flags |= MountFlags::NODIRATIME,
                "sync" => flags |= MountFlags::SYNCHRONOUS,
                // What a mount has anyway, and what only programs read.
                "rw" | "defaults" | "suid" | "dev" | "exec" | "atime" | "async" | "auto" | "_netdev" => {}
                own_one if own_one.starts_with("addr=") || own_one.starts_with("clientaddr=") => {
                    return Err(invalid("mountOptions", own_one, "no addresses: they follow from the server"));
                }
                own_one => own.push(own_one.to_owned()),
            }
        }
        Ok(Self { server: server.to_owned(), path: path.to_owned(), flags, options: own })
    }

    /// `server:/path`
    fn source(&self) -> String {
        if self.server.contains(':') {
            format!("[{}]:{}", self.server, self.path)
        } else {
            format!("{}:{}", self.server, self.path)
        }
    }

    /// The options of each try.
    fn tries(&self, address: IpAddr) -> Vec<String> {
        let told = |option: &String| ["vers=", "nfsvers=", "v3", "v4"].iter().any(|start| option.starts_with(start));
        let with = |version: Option<&str>| {
            let version = version.map(|version| format!("vers={version}"));
            let all = version.into_iter().chain(self.options.iter().cloned()).chain([format!("addr={address}")]);
            all.collect::<Vec<_>>().join(",")
        };
        if self.options.iter().any(told) {
            return vec![with(None)];
        }
        VERSIONS.iter().map(|version| with(Some(version))).collect()
    }

    /// Mounts it, unless it is.
    pub(crate) fn set_up(&self, dir: &Path) -> Result<(), SetUpError> {
        fs::create_dir_all(dir).at("create", dir)?;
        if is_mount_point(dir)? {
            return Ok(());
        }
        let named = |error: io::Error| SetUpError::Nfs { source_name: self.source(), source: error };
        let mut addresses = (self.server.as_str(), PORT).to_socket_addrs().map_err(named)?;
        let address = addresses.next().ok_or_else(|| named(io::Error::other("the server has no address")))?;
        let mut last = Errno::PROTONOSUPPORT;
        for options in self.tries(address.ip()) {
            let options = CString::new(options).map_err(|error| named(error.into()))?;
            match mount(self.source(), dir, "nfs", self.flags, options.as_c_str()) {
                Ok(()) => return Ok(()),
                // The kernel or the server has no such version.
                Err(error @ (Errno::PROTONOSUPPORT | Errno::INVAL | Errno::OPNOTSUPP)) => last = error,
                Err(error) => return Err(named(error.into())),
            }
        }
        Err(named(last.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(server: &str, path: &str, options: &[&str]) -> Result<Nfs, SetUpError> {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        Nfs::plan(server, path, false, &options)
    }

    #[test]
    fn the_newest_version_is_tried_first_unless_one_is_named() {
        let address = "192.0.2.9".parse().unwrap();
        let nfs = plan("files.example", "/exports/a", &["hard,nosuid", "rsize=65536", "_netdev"]).unwrap();
        assert_eq!((nfs.source().as_str(), nfs.flags), ("files.example:/exports/a", MountFlags::NOSUID));
        let tries = nfs.tries(address);
        assert_eq!(tries[0], "vers=4.2,hard,rsize=65536,addr=192.0.2.9");
        assert_eq!((tries.len(), tries[3].as_str()), (4, "vers=3,hard,rsize=65536,addr=192.0.2.9"));
        let nfs = plan("2001:db8::1", "/", &["nfsvers=4.1", "ro"]).unwrap();
        assert_eq!((nfs.source().as_str(), nfs.flags), ("[2001:db8::1]:/", MountFlags::RDONLY));
        assert_eq!(nfs.tries(address), ["nfsvers=4.1,addr=192.0.2.9"]);
        assert_eq!(Nfs::plan("s", "/", true, &[]).unwrap().flags, MountFlags::RDONLY);
    }

    #[test]
    fn what_could_mean_something_else_to_the_kernel_is_refused() {
        for (server, path, option) in [
            ("", "/a", "hard"),
            ("a b", "/a", "hard"),
            ("a/b", "/a", "hard"),
            ("s", "a", "hard"),
            ("s", "/a/../b", "hard"),
            ("s", "/a\nb", "hard"),
            ("s", "/a", "hard addr"),
            ("s", "/a", "addr=192.0.2.1"),
            ("s", "/a", "x\0y"),
        ] {
            let refused = plan(server, path, &[option]).unwrap_err();
            assert!(refused.is_final(), "{server:?} {path:?} {option:?}: {refused}");
        }
        assert!(Nfs::plan("s", "/", false, &vec!["hard".to_owned(); 65]).is_err());
    }

    #[test]
    fn a_server_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        // A name that no resolver has (RFC 6761).
        let error = plan("nobody.invalid", "/a", &[]).unwrap().set_up(dir.path()).unwrap_err();
        assert!(error.to_string().contains("nobody.invalid:/a") && !error.is_final(), "{error}");
    }
}
