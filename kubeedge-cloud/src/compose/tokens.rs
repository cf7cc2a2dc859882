//! Join tokens behind the control socket.

use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use kubeedge_actors::identity::{CaHash, TokenError, TokenRules, Tokens};

use crate::control::{CreatedToken, DeskError, NewToken, TokenDesk, TokenInfo};

/// The tokens of this cloud.
pub(super) struct Desk {
    tokens: Tokens,
    authority: CaHash,
}

impl Desk {
    /// Tokens that pin `authority`.
    pub(super) fn new(tokens: Tokens, authority: CaHash) -> Self {
        Self { tokens, authority }
    }
}

fn failed(error: TokenError) -> DeskError {
    match error {
        TokenError::Store(_) | TokenError::Random => DeskError::Failed(error.to_string()),
        _ => DeskError::Invalid(error.to_string()),
    }
}

impl TokenDesk for Desk {
    fn create(&self, token: NewToken) -> BoxFuture<'_, Result<CreatedToken, DeskError>> {
        Box::pin(async move {
            let node = token.node.as_deref().map(str::parse).transpose();
            let node = node.map_err(|error| DeskError::Invalid(format!("{error}")))?;
            let rules = TokenRules { life: Duration::from_secs(token.ttl_seconds), node, reusable: token.reusable };
            let made = self.tokens.create(self.authority, rules, SystemTime::now()).await.map_err(failed)?;
            Ok(CreatedToken { token: made.expose() })
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<TokenInfo>, DeskError>> {
        Box::pin(async move {
            let now = SystemTime::now();
            let tokens = self.tokens.list().map_err(failed)?;
            let valid = tokens.into_iter().filter(|token| {
                let spent = token.used_by.is_some() && !token.reusable;
                !token.revoked && !spent && token.expires > now
            });
            valid
                .map(|token| {
                    let expires = jiff::Timestamp::try_from(token.expires)
                        .map_err(|error| DeskError::Failed(format!("token {}: {error}", token.id)))?;
                    Ok(TokenInfo {
                        id: token.id,
                        node: token.node.map(|node| node.to_string()),
                        expires: expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                        reusable: token.reusable,
                    })
                })
                .collect()
        })
    }

    fn revoke(&self, id: String) -> BoxFuture<'_, Result<bool, DeskError>> {
        Box::pin(async move {
            match self.tokens.revoke(&id).await {
                Ok(()) => Ok(true),
                Err(TokenError::Unknown { .. }) => Ok(false),
                Err(error) => Err(failed(error)),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use kubeedge_actors::{
        identity::{CertificateAuthority, JoinToken},
        store::Store,
    };

    use super::*;

    #[tokio::test]
    async fn a_token_pins_the_authority_and_is_gone_from_the_list_once_revoked() {
        let folder = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::load_or_create(folder.path(), SystemTime::now()).unwrap();
        let desk = Desk::new(Tokens::new(&Store::in_memory()), authority.ca_hash());
        let asked = NewToken { node: Some("edge-1".into()), ttl_seconds: 60, reusable: true };
        let token: JoinToken = desk.create(asked.clone()).await.unwrap().token.parse().unwrap();
        assert_eq!(token.ca_hash, authority.ca_hash());
        let id = token.credential.id().to_owned();
        let listed = desk.list().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].id.as_str(), listed[0].node.as_deref()), (id.as_str(), Some("edge-1")));
        assert!(listed[0].expires.ends_with('Z'), "{}", listed[0].expires);
        assert_eq!(desk.revoke(id).await, Ok(true));
        assert_eq!(desk.list().await, Ok(vec![]));
        assert_eq!(desk.revoke("0000000000000000".into()).await, Ok(false));
        let bad = desk.create(NewToken { node: Some("Edge_1".into()), ..asked }).await;
        assert!(matches!(bad, Err(DeskError::Invalid(_))));
    }
}
