//! Keys and certificates as files: read with a bound, written whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};

use super::IdentityError;

/// Largest key or certificate file, bytes.
const LIMIT: u64 = 256 * 1024;

/// Who may read a file.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    /// Certificates.
    Everyone,
    /// Keys.
    Owner,
}

/// The bytes of a file; `None` when there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    read_at_most(path, LIMIT)
}

/// The same of another file than a key or a certificate.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, IdentityError> {
    let fail = |source| IdentityError::File { path: path.to_owned(), doing: "read", source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > limit {
        return Err(content(path, format!("over {limit} bytes, nothing that belongs here is that large")));
    }
    Ok(Some(bytes))
}

/// A key's file; others are locked out of it if they were not.
pub(crate) fn read_key(path: &Path) -> Result<Option<PrivateKeyDer<'static>>, IdentityError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let metadata = fs::metadata(path).map_err(|source| file_error(path, "inspect", source))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "this key could be read by others: its permissions are set to 0600");
        fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(|source| file_error(path, "set the permissions of", source))?;
    }
    let key = PrivateKeyDer::from_pem_slice(&bytes);
    Ok(Some(key.map_err(|error| content(path, format!("no private key in PEM: {error}")))?))
}

/// All certificates of a PEM file, at least one.
pub(crate) fn read_certificates(path: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, IdentityError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    certificates(&bytes).map(Some).map_err(|why| content(path, why))
}

/// All certificates in PEM text, at least one.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("no certificate in PEM".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("no certificate in PEM: {error}")),
    }
}

/// Writes a file so that after a power cut there is the old one or the new one.
pub(crate) fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), IdentityError> {
    let (mode, directory_mode) = match access {
        Access::Everyone => (0o644, 0o755),
        Access::Owner => (0o600, 0o755),
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = PathBuf::from(draft);
    let written = (|| -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(directory_mode).create(parent)?;
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // `create_new` follows no link that somebody left there.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(parent)?.sync_all()
    })();
    written.map_err(|source| file_error(path, "write", source))
}

/// Gives a file another name, in the same folder, so that after a power cut it has one of them.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), IdentityError> {
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let renamed = fs::rename(from, to).and_then(|()| File::open(parent)?.sync_all());
    renamed.map_err(|source| file_error(to, "rename another file to", source))
}

/// Takes a file away; one that is not there is away.
pub(crate) fn remove(path: &Path) -> Result<(), IdentityError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(file_error(path, "remove", error)),
        _ => Ok(()),
    }
}

/// A key in PEM or DER.
pub(crate) fn any_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    if bytes.trim_ascii_start().starts_with(b"-----") {
        PrivateKeyDer::from_pem_slice(bytes).map_err(|error| format!("no private key in PEM: {error}"))
    } else {
        PrivateKeyDer::try_from(bytes).map(|key| key.clone_key()).map_err(|why| format!("no private key in DER: {why}"))
    }
}

fn file_error(path: &Path, doing: &'static str, source: io::Error) -> IdentityError {
    IdentityError::File { path: path.to_owned(), doing, source }
}

pub(crate) fn content(path: &Path, why: impl Into<String>) -> IdentityError {
    IdentityError::Content { path: path.to_owned(), why: why.into() }
}

/// A key in PKCS#8. Keys of Go's KubeEdge are SEC1 and get the wrapping that says which curve they are for.
pub(crate) fn pkcs8(key: &PrivateKeyDer<'_>) -> Result<PrivatePkcs8KeyDer<'static>, String> {
    // AlgorithmIdentifier { id-ecPublicKey, prime256v1 }, RFC 5480
    const P256: [u8; 21] =
        [0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    match key {
        PrivateKeyDer::Pkcs8(key) => Ok(key.clone_key()),
        PrivateKeyDer::Sec1(key) => {
            let key = key.secret_sec1_der();
            // A P-256 key has about 121 bytes: one length byte is enough for it, and two for what is around it.
            let inner = u8::try_from(key.len()).ok().filter(|len| *len < 128);
            let inner = inner.ok_or("expected an ECDSA key on P-256, this one is larger")?;
            let body = [&[2, 1, 0], P256.as_slice(), &[4, inner], key].concat();
            let header =
                if body.len() < 128 { vec![0x30, body.len() as u8] } else { vec![0x30, 0x81, body.len() as u8] };
            Ok([header, body].concat().into())
        }
        _ => Err("expected an ECDSA key on P-256, this is another kind".to_owned()),
    }
}
