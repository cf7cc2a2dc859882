//! What components that serve HTTP share: which headers go along with a request, how large bodies may be, who may ask.

pub mod headers;
pub mod tokens;

use std::path::Path;

use crate::identity::{ClientAuth, IdentityError, files, server_config, system_clock};

/// Largest body of a request and of an answer, bytes: KubeEdge's bound for its router.
pub const MAX_BODY: usize = 12 * 1024 * 1024;

/// The header by which an answer says that it is not the service's own but that of who stands before it.
pub const ANSWERED_BY: &str = "x-kubeedge-answered-by";

/// What counts a body's bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted(usize);

impl Counted {
    /// Counts; false when it is over [`MAX_BODY`].
    pub fn add(&mut self, bytes: usize) -> bool {
        self.0 = self.0.saturating_add(bytes);
        self.0 <= MAX_BODY
    }
}

/// TLS of a server with the certificate and the key of these files, PEM.
pub fn server_tls(certificate: &Path, key: &Path) -> Result<rustls::ServerConfig, IdentityError> {
    let missing = |path: &Path| IdentityError::Missing { path: path.to_owned() };
    let chain = files::read_certificates(certificate)?.ok_or_else(|| missing(certificate))?;
    let bytes = files::read(key)?.ok_or_else(|| missing(key))?;
    let key = files::any_key(&bytes).map_err(|why| files::content(key, why))?;
    server_config(chain, key, ClientAuth::None, &[], system_clock())
}
