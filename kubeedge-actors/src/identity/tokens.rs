//! The join tokens that the cloud gave out.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kubeedge_proto::NodeName;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Mutex;

use super::{CaHash, Credential, JoinToken, NodeRequest, hash::sha256, join_token::ID_LEN};
use crate::store::{DecodeError, Record, Store, StoreError, Table};

/// How long a token is good when nothing else is said, as in KubeEdge.
pub const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// How many tokens may be kept; expired ones are swept first.
const LIMIT: usize = 10_000;
/// How long a token that is over is still known, so that its use is refused with the right reason.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What a new token allows.
#[derive(Clone, Debug)]
pub struct TokenRules {
    /// How long it is good.
    pub life: Duration,
    /// The only node that may use it; any node when there is none.
    pub node: Option<NodeName>,
    /// Whether several nodes may use it, one after the other.
    pub reusable: bool,
}

impl Default for TokenRules {
    /// One node of any name, for 24 hours.
    fn default() -> Self {
        Self { life: DEFAULT_LIFE, node: None, reusable: false }
    }
}

/// A token as the operator may see it: without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its id.
    pub id: String,
    /// When it ends.
    pub expires: SystemTime,
    /// The only node that may use it.
    pub node: Option<NodeName>,
    /// Whether several nodes may use it.
    pub reusable: bool,
    /// Whether it was revoked.
    pub revoked: bool,
    /// The node that used it last.
    pub used_by: Option<NodeName>,
}

/// Why a token is refused. The reasons behind `WrongSecret` are only told to who knows the secret.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not a token's text.
    #[error("join token: {0}")]
    Malformed(#[from] super::InvalidJoinToken),
    /// There is no such token here.
    #[error("join token {id} is not known: make a new one")]
    Unknown {
        /// Its id.
        id: String,
    },
    /// The id is known, the secret is another.
    #[error("join token {id} has another secret: was it copied completely?")]
    WrongSecret {
        /// Its id.
        id: String,
    },
    /// Its time is over.
    #[error("join token {id} expired {} s ago: make a new one", ago.as_secs())]
    Expired {
        /// Its id.
        id: String,
        /// When it ended.
        at: SystemTime,
        /// How long ago that was.
        ago: Duration,
    },
    /// The operator revoked it.
    #[error("join token {id} was revoked: make a new one")]
    Revoked {
        /// Its id.
        id: String,
    },
    /// It was good for one node, and that one joined.
    #[error("join token {id} was already used by node {by}: make a new one, or a reusable one")]
    UsedUp {
        /// Its id.
        id: String,
        /// Who used it.
        by: NodeName,
    },
    /// It is for another node.
    #[error("join token {id} is for node {allowed}, not for {node}")]
    OtherNode {
        /// Its id.
        id: String,
        /// The node that asked.
        node: NodeName,
        /// The node that it is for.
        allowed: NodeName,
    },
    /// There are too many tokens.
    #[error("there are {LIMIT} join tokens already: revoke some")]
    TooMany,
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes")]
    Random,
    /// The token may be good, and could not be read or its use not be noted.
    #[error("join token: {0}")]
    Store(#[from] StoreError),
}

/// The proof that a token was good for a request and that its use is on disk: now the certificate may be signed.
#[derive(Debug)]
#[must_use]
pub struct Grant {
    id: String,
    node: NodeName,
}

impl Grant {
    /// Id of the token, for the log.
    pub fn token_id(&self) -> &str {
        &self.id
    }

    /// The node that joins.
    pub fn node(&self) -> &NodeName {
        &self.node
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    secret_sha256: [u8; 32],
    /// Unix seconds.
    expires: u64,
    node: Option<String>,
    reusable: bool,
    revoked: bool,
    used: Option<Use>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Use {
    node: String,
    /// Of the certificate request: the same box may ask again when the answer was lost.
    key_sha256: [u8; 32],
}

impl Record for Kept {
    const VERSION: u8 = 1;

    fn encode(&self) -> Vec<u8> {
        // Strings, numbers and arrays of them always have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn decode(_version: u8, bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

impl Kept {
    fn expires(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.expires)).unwrap_or(UNIX_EPOCH)
    }

    fn node(name: &str, id: &str) -> Result<NodeName, StoreError> {
        name.parse().map_err(|error| StoreError::Corrupt {
            table: TABLE.to_owned(),
            key: id.to_owned(),
            why: format!("{error}"),
        })
    }

    /// Whether a credential is good for a node, at a time.
    fn check(
        &self,
        credential: &Credential,
        node: &NodeName,
        key: &[u8; 32],
        now: SystemTime,
    ) -> Result<(), TokenError> {
        let id = || credential.id.clone();
        if !same(&self.secret_sha256, &sha256(credential.secret.as_bytes())) {
            return Err(TokenError::WrongSecret { id: id() });
        }
        if self.revoked {
            return Err(TokenError::Revoked { id: id() });
        }
        let at = self.expires();
        if let Ok(ago) = now.duration_since(at) {
            return Err(TokenError::Expired { id: id(), at, ago });
        }
        if let Some(allowed) = &self.node
            && allowed != node.as_str()
        {
            let allowed = Self::node(allowed, &credential.id)?;
            return Err(TokenError::OtherNode { id: id(), node: node.clone(), allowed });
        }
        match &self.used {
            Some(by) if !self.reusable && (by.node != node.as_str() || by.key_sha256 != *key) => {
                Err(TokenError::UsedUp { id: id(), by: Self::node(&by.node, &credential.id)? })
            }
            _ => Ok(()),
        }
    }
}

/// Compares all bytes whatever they are: the time taken says nothing about them.
fn same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let different = one.iter().zip(other).fold(0, |all, (a, b)| std::hint::black_box(all | (a ^ b)));
    std::hint::black_box(different) == 0
}

const TABLE: &str = "join-tokens";

/// The join tokens in a store; secrets only as hashes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokens {
    store: Store,
    table: Table<Kept>,
    /// One change at a time: of two boxes with one single-use token only one joins.
    changing: Arc<Mutex<()>>,
}

impl Tokens {
    /// The tokens in this store. Make one and clone it: two of them do not know of each other's changes.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone(), table: store.table(TABLE), changing: Arc::default() }
    }

    /// Makes a token; it is on disk when this returns. This is the only time that its secret can be seen.
    pub async fn create(&self, ca: CaHash, rules: TokenRules, now: SystemTime) -> Result<JoinToken, TokenError> {
        let _alone = self.changing.lock().await;
        let end = now.checked_add(rules.life).and_then(|end| end.duration_since(UNIX_EPOCH).ok());
        let mut batch = self.store.batch();
        let mut count = 0;
        for entry in self.table.scan_prefix(b"") {
            let (id, kept) = entry?;
            count += 1;
            if now.duration_since(kept.expires()).is_ok_and(|over| over > REMEMBERED) {
                batch.delete(&self.table, &id);
                count -= 1;
            }
        }
        if count >= LIMIT {
            return Err(TokenError::TooMany);
        }
        let credential = Credential {
            id: random_text(ID_LEN, b"abcdefghijklmnopqrstuvwxyz0123456789")?,
            secret: random_text(43, SECRET)?,
        };
        let kept = Kept {
            secret_sha256: sha256(credential.secret.as_bytes()),
            expires: end.map_or(u64::MAX, |end| end.as_secs()),
            node: rules.node.map(|node| node.to_string()),
            reusable: rules.reusable,
            revoked: false,
            used: None,
        };
        batch.put(&self.table, credential.id.as_bytes(), &kept);
        batch.commit().await?;
        Ok(JoinToken { ca_hash: ca, credential })
    }

    /// Checks a credential (`<id>.<secret>`) for a request and notes its use; the note is on disk when this returns.
    ///
    /// The same node with the same key may use a single-use token again until it expires: the answer to its first
    /// request may have been lost.
    pub async fn redeem(&self, credential: &str, request: &NodeRequest, now: SystemTime) -> Result<Grant, TokenError> {
        let credential: Credential = credential.parse()?;
        let _alone = self.changing.lock().await;
        let mut kept = self.kept(&credential.id)?;
        let (node, key_sha256) = (request.node().clone(), request.key_hash());
        kept.check(&credential, &node, &key_sha256, now)?;
        kept.used = Some(Use { node: node.to_string(), key_sha256 });
        let mut batch = self.store.batch();
        batch.put(&self.table, credential.id.as_bytes(), &kept);
        batch.commit().await?;
        Ok(Grant { id: credential.id, node })
    }

    /// Makes a token useless from now on.
    pub async fn revoke(&self, id: &str) -> Result<(), TokenError> {
        let _alone = self.changing.lock().await;
        let kept = Kept { revoked: true, ..self.kept(id)? };
        let mut batch = self.store.batch();
        batch.put(&self.table, id.as_bytes(), &kept);
        Ok(batch.commit().await?)
    }

    /// All tokens, without their secrets.
    pub fn list(&self) -> Result<Vec<TokenInfo>, TokenError> {
        let info = |entry: Result<(Vec<u8>, Kept), StoreError>| {
            let (id, kept) = entry?;
            let id = String::from_utf8_lossy(&id).into_owned();
            let node = |name: Option<&str>| name.map(|name| Kept::node(name, &id)).transpose();
            Ok(TokenInfo {
                expires: kept.expires(),
                node: node(kept.node.as_deref())?,
                reusable: kept.reusable,
                revoked: kept.revoked,
                used_by: node(kept.used.as_ref().map(|used| used.node.as_str()))?,
                id,
            })
        };
        self.table.scan_prefix(b"").map(info).collect()
    }

    fn kept(&self, id: &str) -> Result<Kept, TokenError> {
        let unknown = || TokenError::Unknown { id: id.chars().take(ID_LEN).collect() };
        self.table.get(id.as_bytes())?.ok_or_else(unknown)
    }
}

/// 64 characters: 43 of them are 256 bits and a little.
const SECRET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn random_text(len: usize, alphabet: &[u8]) -> Result<String, TokenError> {
    let random = SystemRandom::new();
    // Bytes past the last whole multiple of the alphabet would make its first letters likelier.
    let even = 256 / alphabet.len() * alphabet.len();
    let mut text = String::with_capacity(len);
    while text.len() < len {
        let mut bytes = [0; 64];
        random.fill(&mut bytes).map_err(|_| TokenError::Random)?;
        let letters = bytes.iter().map(|byte| usize::from(*byte)).filter(|byte| *byte < even);
        text.extend(letters.take(len - text.len()).map(|byte| char::from(alphabet[byte % alphabet.len()])));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_are_ten_thousand_tokens_at_most_and_room_again_when_old_ones_are_swept() {
        let store = Store::in_memory();
        let tokens = Tokens::new(&store);
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let expires = 1_700_000_000 + 60;
        let kept = Kept { secret_sha256: [0; 32], expires, node: None, reusable: false, revoked: false, used: None };
        let mut batch = store.batch();
        for n in 1..LIMIT {
            batch.put(&tokens.table, format!("{n:016}").as_bytes(), &kept);
        }
        batch.commit().await.unwrap();
        let create = async |now| tokens.create(CaHash::of(&vec![1].into()), TokenRules::default(), now).await;
        create(now).await.unwrap();
        // Used up or over, it is remembered for a while, and counts.
        for now in [now, now + Duration::from_secs(60) + REMEMBERED] {
            let error = create(now).await.unwrap_err();
            assert!(matches!(error, TokenError::TooMany), "{error}");
        }
        assert_eq!(tokens.list().unwrap().len(), LIMIT);
        create(now + Duration::from_secs(61) + REMEMBERED).await.unwrap();
        assert_eq!(tokens.list().unwrap().len(), 2, "that one, and the first that was made here");
    }
}
