//! Why TLS did not come about, said for the person who has to mend it.

use std::{error::Error as StdError, io};

use rustls::{AlertDescription, CertificateError, Error, OtherError};

/// What an error of a TLS stream means. Errors of the network are said as they are.
pub(crate) fn explain(error: &io::Error) -> String {
    match of(error) {
        Some(error) => reason(error),
        None => error.to_string(),
    }
}

/// The TLS error that is the cause of another one, however deep.
pub(super) fn of<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<Error>() {
            return Some(found);
        }
        // `io::Error::source` leaves out the error that it carries, and gives the source of that one.
        let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match carried {
            Some(carried) => Some(carried),
            None => error.source(),
        };
    }
    None
}

/// Whether it is about certificates: then somebody has to do something.
pub(crate) fn is_about_certificates(error: &io::Error) -> bool {
    match of(error) {
        Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => true,
        Some(Error::AlertReceived(alert)) => refused_by_peer(*alert).is_some(),
        _ => false,
    }
}

/// Whether one end has refused the other: for a certificate, or because they have no version or cipher in common.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    is_about_certificates(error) || matches!(of(error), Some(Error::PeerIncompatible(_)))
}

/// Our reading of a TLS error.
pub(super) fn reason(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.to_string(),
        // Two authorities may have the same name: then it is the signature that does not fit.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the other side's certificate is of another CA than ours".to_owned()
        }
        Error::InvalidCertificate(error) => format!("the other side's certificate is not accepted: {error}"),
        Error::NoCertificatesPresented => "the other side shows no certificate".to_owned(),
        Error::AlertReceived(alert) => match refused_by_peer(*alert) {
            Some(why) => format!("the other side does not accept our certificate: {why}"),
            None => error.to_string(),
        },
        _ => error.to_string(),
    }
}

/// The alerts with which a certificate is refused (RFC 8446, 6.2).
fn refused_by_peer(alert: AlertDescription) -> Option<&'static str> {
    match alert {
        // What rustls sends when the issuer's name is known and the signature is another's.
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            Some("it is of another CA than the one it trusts")
        }
        AlertDescription::CertificateUnknown => Some("it is not one that it trusts"),
        AlertDescription::CertificateExpired => Some("it has expired, or one of the clocks is wrong"),
        AlertDescription::CertificateRevoked => Some("it was revoked"),
        AlertDescription::CertificateRequired => Some("none was shown"),
        AlertDescription::BadCertificate => Some("it is not valid, or not for the name that was dialled"),
        AlertDescription::UnsupportedCertificate => Some("it is not for this use"),
        AlertDescription::AccessDenied => Some("access is denied"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_cause_is_found_inside_of_others() {
        let deep = io::Error::other(io::Error::other(Error::NoCertificatesPresented));
        assert_eq!(explain(&deep), "the other side shows no certificate");
        assert!(is_about_certificates(&deep));
        let network = io::Error::from(io::ErrorKind::ConnectionReset);
        assert!(of(&network).is_none() && !is_about_certificates(&network));
        assert_eq!(explain(&network), network.to_string());
    }

    #[test]
    fn a_verifiers_own_words_are_told_as_they_are() {
        let own = Arc::new(io::Error::other("the token pins another CA"));
        let error = io::Error::other(Error::InvalidCertificate(CertificateError::Other(OtherError(own))));
        assert_eq!(explain(&error), "the token pins another CA");
    }

    #[test]
    fn both_sides_name_the_ca() {
        for error in [CertificateError::UnknownIssuer, CertificateError::BadSignature] {
            let alert = Error::AlertReceived(AlertDescription::from(error.clone()));
            for told in [reason(&error.into()), reason(&alert)] {
                assert!(told.contains("of another CA"), "{told}");
            }
        }
    }
}
