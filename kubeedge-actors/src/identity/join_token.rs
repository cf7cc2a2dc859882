//! The token with which a box joins: what the operator pastes at the edge.

use std::{fmt, str::FromStr};

use thiserror::Error;

use super::CaHash;

/// Length of a token's id.
pub(crate) const ID_LEN: usize = 16;
/// Bounds of a secret's length.
pub(crate) const SECRET_LEN: std::ops::RangeInclusive<usize> = 32..=128;

/// `<hex sha256 of the CA certificate's DER>.<id>.<secret>`. Its debug form does not show the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The CA that the cloud has to present.
    pub ca_hash: CaHash,
    /// The part that is sent, once the cloud proved to have that CA.
    pub credential: Credential,
}

/// `<id>.<secret>`: the part of a join token that is sent to the cloud.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    pub(crate) id: String,
    pub(crate) secret: String,
}

/// Text that is no join token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "this is no join token: expected <64 hexadecimal digits>.<16 lower-case letters or digits>.<secret>, without \
     spaces or line breaks ({0})"
)]
pub struct InvalidJoinToken(&'static str);

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (hash, credential) = text.trim().split_once('.').ok_or(InvalidJoinToken("there is no dot in it"))?;
        let ca_hash = hash.parse().map_err(|_| InvalidJoinToken("its first part is no SHA-256 hash"))?;
        Ok(Self { ca_hash, credential: credential.parse()? })
    }
}

impl FromStr for Credential {
    type Err = InvalidJoinToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, secret) = text.split_once('.').ok_or(InvalidJoinToken("a part is missing"))?;
        if id.len() != ID_LEN || !id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return Err(InvalidJoinToken("its id is wrong"));
        }
        let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !SECRET_LEN.contains(&secret.len()) || !secret.bytes().all(known) {
            return Err(InvalidJoinToken("its secret is wrong"));
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
    }
}

impl Credential {
    /// Names the token without its secret.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The text that is sent.
    pub fn expose(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }
}

impl JoinToken {
    /// The whole token, for the operator.
    pub fn expose(&self) -> String {
        format!("{}.{}", self.ca_hash, self.credential.expose())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}.…)", self.id)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}.{:?})", self.ca_hash, self.credential)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_is_read_as_it_was_written(hash in "[0-9a-f]{64}", id in "[a-z0-9]{16}", secret in "[A-Za-z0-9_-]{32,128}") {
            let text = format!("{hash}.{id}.{secret}");
            let token: JoinToken = text.parse().unwrap();
            prop_assert_eq!(token.expose(), text);
            prop_assert_eq!(token.credential.expose(), format!("{id}.{secret}"));
            let shown = format!("{token:?}");
            prop_assert!(!shown.contains(&secret));
        }

        #[test]
        fn any_text_is_refused_or_read_without_a_panic(text in ".{0,200}") {
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert_eq!(token.expose(), text.trim());
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let (hash, id, secret) = ("a".repeat(64), "b".repeat(16), "c".repeat(32));
        for (text, part) in [
            (String::new(), "dot"),
            (format!("{}.{id}.{secret}", &hash[1..]), "hash"),
            (format!("{}g.{id}.{secret}", &hash[1..]), "hash"),
            (format!("{hash}.{id}"), "missing"),
            (format!("{hash}.{}.{secret}", id.to_uppercase()), "id"),
            (format!("{hash}.{id}.{}", &secret[1..]), "secret"),
            (format!("{hash}.{id}.{secret}.x"), "secret"),
        ] {
            let error = text.parse::<JoinToken>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
