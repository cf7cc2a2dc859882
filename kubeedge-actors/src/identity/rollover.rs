//! One authority takes over from another: for a time both are trusted.
//!
//! [`CertificateAuthority::roll_over`] makes a new CA in the folder of the old one. The old key signs the new one's
//! certificate once (the *cross certificate*) and is gone. From the next start of the cloud on
//!
//! - everything new is signed by the new CA, and certificates of both are accepted;
//! - servers present the cross certificate as well: a node that knows only the old CA accepts them, whatever it missed;
//! - an answer to a request for a certificate carries both CAs, and a node takes the new one on the strength of the
//!   cross certificate ([`vouched`]), not because a server says so.
//!
//! [`CertificateAuthority::end_rollover`] ends the trust in the old one. A node that has renewed in between does not
//! notice; one that has not has to join again.
//!
//! A power cut at any moment leaves an authority that loads: the new key's file is the turning point, [`finish`] does
//! what comes after it.

use std::{path::Path, time::SystemTime};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::CertificateDer;

use super::{
    CaHash, CertificateAuthority, IdentityError,
    authority::{KEY_FILE, NAME, ca_params, pem},
    files::{self, Access},
    hash::sha256,
    names,
};

const NEXT_FILE: &str = "rootCA.crt.next";
const PREVIOUS_FILE: &str = "previousCA.crt";
const CROSS_FILE: &str = "crossCA.crt";

/// The authority before this one.
pub(super) struct Rollover {
    /// Its certificate.
    pub(super) previous: CertificateDer<'static>,
    /// The new CA's name and key, signed by the old one.
    pub(super) cross: CertificateDer<'static>,
}

impl Rollover {
    /// What is in the folder, if it belongs to `current`. Files of a rollover that was cut off before its turning point
    /// do not.
    pub(super) fn load(dir: &Path, current: &CertificateDer<'_>) -> Result<Option<Self>, IdentityError> {
        let one = |name: &str| match files::read_certificates(&dir.join(name))? {
            Some(mut found) if found.len() == 1 => Ok(found.pop()),
            Some(found) => Err(files::content(&dir.join(name), format!("{} certificates, expected one", found.len()))),
            None => Ok(None),
        };
        let (Some(previous), Some(cross)) = (one(PREVIOUS_FILE)?, one(CROSS_FILE)?) else { return Ok(None) };
        let fits = vouched(current, std::slice::from_ref(&cross), std::slice::from_ref(&previous));
        Ok(fits.then_some(Self { previous, cross }))
    }
}

/// Whether one of `trusted` has signed a certificate of this CA's name and key that is in `chain` (`P-CA-VOUCHED`).
pub(super) fn vouched(ca: &CertificateDer<'_>, chain: &[CertificateDer<'_>], trusted: &[CertificateDer<'_>]) -> bool {
    let Ok(ca) = names::parse(ca) else { return false };
    chain.iter().filter_map(|cross| names::parse(cross).ok()).any(|cross| {
        cross.is_ca()
            && cross.subject().as_raw() == ca.subject().as_raw()
            && cross.public_key().raw == ca.public_key().raw
            && trusted.iter().filter_map(|root| names::parse(root).ok()).any(|root| {
                root.subject().as_raw() == cross.issuer().as_raw()
                    && cross.verify_signature(Some(root.public_key())).is_ok()
            })
    })
}

/// Whether a certificate is signed by its own key.
pub(super) fn is_root(certificate: &CertificateDer<'_>) -> bool {
    names::parse(certificate).is_ok_and(|parsed| parsed.is_ca() && parsed.verify_signature(None).is_ok())
}

/// Gives the certificate of a key that has just taken over its place.
pub(super) fn finish(dir: &Path, certificate: &Path, key: &KeyPair) -> Result<(), IdentityError> {
    let next = dir.join(NEXT_FILE);
    let Some(found) = files::read_certificates(&next)? else { return Ok(()) };
    let belongs = found.first().and_then(|found| names::parse(found).ok());
    if belongs.is_some_and(|found| found.public_key().raw == key.subject_public_key_info()) {
        files::rename(&next, certificate)
    } else {
        files::remove(&next)
    }
}

impl CertificateAuthority {
    /// Makes a new CA in the folder of this one, which stays trusted until [`Self::end_rollover`]. It counts from the
    /// next [`Self::load_or_create`] on. The hash is the new one's.
    pub fn roll_over(dir: &Path, now: SystemTime) -> Result<CaHash, IdentityError> {
        let key_path = dir.join(KEY_FILE);
        if files::read_key(&key_path)?.is_none() {
            return Err(IdentityError::Missing { path: key_path });
        }
        let old = Self::load_or_create(dir, now)?;
        if old.rollover.is_some() {
            return Err(files::content(&dir.join(PREVIOUS_FILE), "a rollover is under way already: end it first"));
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        // A name of its own: who looks for an issuer by name finds the right one.
        let id: String = sha256(&key.subject_public_key_info())[..4].iter().map(|b| format!("{b:02x}")).collect();
        let params = ca_params(&format!("{NAME} {id}"), now)?;
        let new = params.self_signed(&key)?;
        let mut params = params.clone();
        params.use_authority_key_identifier_extension = true;
        let cross = params.signed_by(&key, &old.issuer)?;
        let write = |name: &str, text: &str| files::write(&dir.join(name), text.as_bytes(), Access::Everyone);
        write(PREVIOUS_FILE, old.certificate_pem())?;
        write(CROSS_FILE, &pem(cross.der()))?;
        write(NEXT_FILE, &pem(new.der()))?;
        files::write(&key_path, key.serialize_pem().as_bytes(), Access::Owner)?;
        finish(dir, &dir.join(super::authority::CERTIFICATE_FILE), &key)?;
        Ok(CaHash::of(new.der()))
    }

    /// Ends the trust in the CA before this one; its hash. `None` when there is none.
    pub fn end_rollover(dir: &Path, now: SystemTime) -> Result<Option<CaHash>, IdentityError> {
        let ended = Self::load_or_create(dir, now)?.rollover.map(|rollover| CaHash::of(&rollover.previous));
        files::remove(&dir.join(PREVIOUS_FILE))?;
        files::remove(&dir.join(CROSS_FILE))?;
        Ok(ended)
    }
}
