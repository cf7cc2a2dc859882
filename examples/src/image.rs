//! OCI images assembled in memory from a static busybox: what a machine without a registry can still run.

use std::{io::Read, path::Path};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::json;

/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an image's configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of an uncompressed layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Where distributions put the statically linked busybox.
const BUSYBOX: [&str; 4] = ["/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static", "/usr/bin/busybox-static"];
/// A static busybox is one to three megabytes; anything above this is something else.
const MAX_BUSYBOX: u64 = 16 * 1024 * 1024;
/// The applets that a shell in the pod can be expected to need; each is a link to the one program.
const APPLETS: [&str; 50] = [
    "ash", "awk", "basename", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "dirname", "du", "echo", "env",
    "expr", "false", "find", "grep", "head", "hostname", "httpd", "id", "ip", "kill", "ln", "ls", "mkdir", "mktemp",
    "mv", "nc", "nslookup", "ping", "printf", "ps", "rm", "rmdir", "sed", "sh", "sleep", "sort", "stty", "tail", "tar",
    "test", "touch", "tr", "true", "wc", "wget",
];

/// One content-addressed piece of an image.
#[derive(Clone, Debug)]
pub struct Blob {
    /// What the bytes are.
    pub media_type: &'static str,
    /// `sha256:<hex>` of the bytes.
    pub digest: String,
    /// The content; cheap to clone.
    pub bytes: Bytes,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: digest(&bytes), bytes: bytes.into() }
    }

    fn descriptor(&self) -> serde_json::Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// An image: the manifest names the configuration and the layers.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest, itself addressed by its digest.
    pub manifest: Blob,
    /// Configuration and layers.
    pub blobs: Vec<Blob>,
}

impl Image {
    /// An image of one layer that starts `command` with `env` (`NAME=value`).
    pub fn new(layer: &Blob, command: &[&str], env: &[&str]) -> Result<Self> {
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Env": env, "Entrypoint": [], "Cmd": command, "WorkingDir": "/" },
            "rootfs": { "type": "layers", "diff_ids": [layer.digest] },
            "history": [{ "created_by": "kubeedge-examples" }],
        });
        let config = Blob::new(CONFIG, serde_json::to_vec(&config)?);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        });
        let manifest = Blob::new(MANIFEST, serde_json::to_vec(&manifest)?);
        Ok(Self { manifest, blobs: vec![config, layer.clone()] })
    }
}

/// The images of the quickstart and of the tests. Both share one layer.
#[derive(Clone, Debug)]
pub struct BusyboxImages {
    /// A small userland; starts a shell unless the pod says otherwise.
    pub busybox: Image,
    /// Holds a pod's namespaces open and does nothing.
    pub pause: Image,
}

impl BusyboxImages {
    /// Builds both images from this machine's static busybox.
    pub fn build() -> Result<Self> {
        let layer = busybox_layer(&static_busybox()?)?;
        let path = "PATH=/bin";
        Ok(Self {
            busybox: Image::new(&layer, &["/bin/sh"], &[path])?,
            // The runtime ends a sandbox with SIGKILL, so that it needs no handler of its own.
            pause: Image::new(&layer, &["/bin/busybox", "sleep", "infinity"], &[path])?,
        })
    }
}

/// Reads this machine's busybox, which must not need a dynamic linker: the image holds no libraries.
pub fn static_busybox() -> Result<Vec<u8>> {
    let mut dynamic = None;
    for path in BUSYBOX.map(Path::new) {
        let Ok(file) = std::fs::File::open(path) else { continue };
        let mut bytes = Vec::new();
        file.take(MAX_BUSYBOX + 1).read_to_end(&mut bytes).with_context(|| format!("read {}", path.display()))?;
        if bytes.len() as u64 <= MAX_BUSYBOX && is_static_elf(&bytes) {
            return Ok(bytes);
        }
        dynamic = Some(path);
    }
    let found = dynamic.map(|path| format!(" ({} is not one)", path.display())).unwrap_or_default();
    anyhow::bail!("no statically linked busybox{found}: install the package busybox-static")
}

/// One layer with busybox, its links, and the few files programs look for.
pub fn busybox_layer(busybox: &[u8]) -> Result<Blob> {
    let mut tar = tar::Builder::new(Vec::new());
    for (folder, mode) in
        [("bin/", 0o755), ("etc/", 0o755), ("root/", 0o700), ("tmp/", 0o1777), ("var/", 0o755), ("var/www/", 0o755)]
    {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        tar.append_data(&mut header, folder, std::io::empty())?;
    }
    file(&mut tar, "bin/busybox", 0o755, busybox)?;
    for applet in APPLETS {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    file(&mut tar, "etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")?;
    file(&mut tar, "etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    Ok(Blob::new(LAYER, tar.into_inner()?))
}

fn file(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(tar::EntryType::Regular, mode, content.len() as u64);
    tar.append_data(&mut header, path, content)?;
    Ok(())
}

/// Owner root and time zero: the same busybox always gives the same digest.
fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// `sha256:<hex>`, the address of `bytes` in a registry.
pub fn digest(bytes: &[u8]) -> String {
    let sum = ring::digest::digest(&ring::digest::SHA256, bytes);
    let hex: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// This machine's architecture by the name that images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether `bytes` is a 64-bit little-endian ELF program without an interpreter.
fn is_static_elf(bytes: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
        bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
    let headers = || {
        let first = usize::try_from(u64::from_le_bytes(at(bytes, 0x20)?)).ok()?;
        let size = usize::from(u16::from_le_bytes(at(bytes, 0x36)?));
        let count = usize::from(u16::from_le_bytes(at(bytes, 0x38)?));
        (0..count)
            .map(|n| Some(u32::from_le_bytes(at(bytes, first.checked_add(n.checked_mul(size)?)?)?)))
            .collect::<Option<Vec<u32>>>()
    };
    bytes.starts_with(b"\x7fELF\x02\x01") && headers().is_some_and(|kinds| !kinds.contains(&PT_INTERP))
}

/// Refuses what is not `name` or `name/part`: lower case, digits, and separators inside.
pub(crate) fn check_repository(name: &str) -> Result<()> {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
    };
    ensure!(
        name.len() <= 255 && name.split('/').all(part),
        "repository {name:?} is not valid: expected lower case letters and digits, such as \"quickstart/busybox\""
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_the_sha256_of_the_bytes() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn layer_holds_busybox_links_and_a_sticky_tmp() {
        let layer = busybox_layer(b"program").unwrap();
        let mut archive = tar::Archive::new(&layer.bytes[..]);
        let mut seen = std::collections::BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            seen.insert(entry.path().unwrap().display().to_string(), (entry.header().mode().unwrap(), link));
        }
        assert_eq!(seen["bin/busybox"], (0o755, None));
        assert_eq!(seen["bin/httpd"].1.as_deref(), Some("busybox"));
        assert_eq!(seen["tmp/"].0, 0o1777);
        assert!(seen.contains_key("etc/passwd"));
    }

    #[test]
    fn same_content_gives_the_same_image() {
        let image = || Image::new(&busybox_layer(b"program").unwrap(), &["/bin/sh"], &[]).unwrap();
        assert_eq!(image().manifest.digest, image().manifest.digest);
        let manifest: serde_json::Value = serde_json::from_slice(&image().manifest.bytes).unwrap();
        let layer = busybox_layer(b"program").unwrap();
        assert_eq!(manifest["layers"][0]["digest"], layer.digest.as_str());
        assert_eq!(manifest["layers"][0]["size"], layer.bytes.len());
    }

    #[test]
    fn only_static_programs_count_as_static() {
        assert!(!is_static_elf(b"#!/bin/sh"));
        assert!(!is_static_elf(b"\x7fELF\x02\x01 cut off"));
        // The test program itself is linked dynamically on a gnu target.
        #[cfg(target_env = "gnu")]
        assert!(!is_static_elf(&std::fs::read(std::env::current_exe().unwrap()).unwrap()));
    }

    #[test]
    fn repository_names_are_checked() {
        assert!(check_repository("quickstart/busybox").is_ok());
        for bad in ["", "../etc", "Upper", "a//b", "a/.hidden"] {
            assert!(check_repository(bad).is_err(), "{bad}");
        }
    }
}
