//! Join tokens: what they allow, and that their use is on disk.

use std::time::{Duration, SystemTime};

use super::{DAY, authority, node, now};
use crate::{
    identity::{CaHash, JoinToken, NodeKey, NodeRequest, TokenError, TokenRules, Tokens},
    store::{Options, Store, StoreError},
};

struct Cloud {
    dir: tempfile::TempDir,
    ca: CaHash,
    tokens: Tokens,
}

impl Cloud {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = authority(dir.path()).ca_hash();
        Self { dir, ca, tokens: Tokens::new(&Store::in_memory()) }
    }

    async fn token(&self, rules: TokenRules) -> JoinToken {
        self.tokens.create(self.ca, rules, now()).await.unwrap()
    }

    /// A box of that name, with a key of its own.
    fn request(&self, box_name: &str, node_name: &str) -> NodeRequest {
        let key = NodeKey::load_or_create(&self.dir.path().join(box_name)).unwrap();
        NodeRequest::parse(&key.request(&node(node_name)).unwrap()).unwrap()
    }

    async fn redeem(&self, token: &JoinToken, request: &NodeRequest, now: SystemTime) -> Result<(), TokenError> {
        let grant = self.tokens.redeem(&token.credential.expose(), request, now).await?;
        assert_eq!((grant.token_id(), grant.node()), (token.credential.id(), request.node()));
        Ok(())
    }
}

#[tokio::test]
async fn a_token_is_good_for_one_node_and_says_so_after() {
    let cloud = Cloud::new();
    let token = cloud.token(TokenRules::default()).await;
    let token: JoinToken = token.expose().parse().unwrap();
    assert_eq!(token.ca_hash, cloud.ca);
    cloud.redeem(&token, &cloud.request("a", "edge-1"), now()).await.unwrap();
    let error = cloud.redeem(&token, &cloud.request("b", "edge-2"), now()).await.unwrap_err();
    assert!(matches!(&error, TokenError::UsedUp { by, .. } if by.as_str() == "edge-1"), "{error}");
    assert_eq!(cloud.tokens.list().unwrap()[0].used_by, Some(node("edge-1")));
}

#[tokio::test]
async fn a_box_whose_answer_was_lost_may_ask_again_and_no_other_may() {
    let cloud = Cloud::new();
    let token = cloud.token(TokenRules::default()).await;
    for _ in 0..3 {
        cloud.redeem(&token, &cloud.request("a", "edge-1"), now()).await.unwrap();
    }
    let other_key = cloud.redeem(&token, &cloud.request("b", "edge-1"), now()).await.unwrap_err();
    assert!(matches!(other_key, TokenError::UsedUp { .. }), "{other_key}");
    let other_name = cloud.redeem(&token, &cloud.request("a", "edge-2"), now()).await.unwrap_err();
    assert!(matches!(other_name, TokenError::UsedUp { .. }), "{other_name}");
    let late = cloud.redeem(&token, &cloud.request("a", "edge-1"), now() + DAY).await.unwrap_err();
    assert!(matches!(late, TokenError::Expired { .. }), "{late}");
}

#[tokio::test]
async fn a_reusable_token_is_good_for_many() {
    let cloud = Cloud::new();
    let token = cloud.token(TokenRules { reusable: true, ..TokenRules::default() }).await;
    for name in ["edge-1", "edge-2", "edge-3"] {
        cloud.redeem(&token, &cloud.request(name, name), now()).await.unwrap();
    }
}

#[tokio::test]
async fn a_token_ends_on_the_second() {
    let cloud = Cloud::new();
    let token = cloud.token(TokenRules::default()).await;
    let request = cloud.request("a", "edge-1");
    let error = cloud.redeem(&token, &request, now() + DAY).await.unwrap_err();
    assert!(matches!(error, TokenError::Expired { at, .. } if at == now() + DAY), "{error}");
    cloud.redeem(&token, &request, now() + DAY - Duration::from_secs(1)).await.unwrap();
}

#[tokio::test]
async fn a_token_for_one_node_is_refused_for_another() {
    let cloud = Cloud::new();
    let token = cloud.token(TokenRules { node: Some(node("edge-1")), ..TokenRules::default() }).await;
    let error = cloud.redeem(&token, &cloud.request("a", "edge-2"), now()).await.unwrap_err();
    assert!(matches!(&error, TokenError::OtherNode { allowed, .. } if allowed.as_str() == "edge-1"), "{error}");
    cloud.redeem(&token, &cloud.request("a", "edge-1"), now()).await.unwrap();
}

#[tokio::test]
async fn a_wrong_secret_learns_nothing_about_the_token() {
    let cloud = Cloud::new();
    let token = cloud.token(TokenRules { node: Some(node("edge-9")), ..TokenRules::default() }).await;
    cloud.tokens.revoke(token.credential.id()).await.unwrap();
    let guess = format!("{}.{}", token.credential.id(), "x".repeat(43));
    let error = cloud.tokens.redeem(&guess, &cloud.request("a", "edge-1"), now() + 2 * DAY).await.unwrap_err();
    assert!(matches!(error, TokenError::WrongSecret { .. }), "{error}");
}

#[tokio::test]
async fn revoked_unknown_and_malformed_tokens_are_told_apart() {
    let cloud = Cloud::new();
    let token = cloud.token(TokenRules::default()).await;
    let request = cloud.request("a", "edge-1");
    cloud.tokens.revoke(token.credential.id()).await.unwrap();
    let error = cloud.redeem(&token, &request, now()).await.unwrap_err();
    assert!(matches!(error, TokenError::Revoked { .. }), "{error}");
    assert!(matches!(cloud.tokens.revoke("0000000000000000").await, Err(TokenError::Unknown { .. })));
    let unknown = format!("{}.{}", "0".repeat(16), "x".repeat(43));
    let error = cloud.tokens.redeem(&unknown, &request, now()).await.unwrap_err();
    assert!(matches!(error, TokenError::Unknown { .. }), "{error}");
    for text in ["", "x", &token.expose()] {
        let error = cloud.tokens.redeem(text, &request, now()).await.unwrap_err();
        assert!(matches!(error, TokenError::Malformed(_)), "{error}");
    }
}

#[tokio::test]
async fn of_two_boxes_at_once_one_joins() {
    let cloud = Cloud::new();
    for round in 0..20 {
        let token = cloud.token(TokenRules::default()).await;
        let (a, b) = (cloud.request("a", "edge-1"), cloud.request("b", &format!("edge-2-{round}")));
        let (a, b) = tokio::join!(cloud.redeem(&token, &a, now()), cloud.redeem(&token, &b, now()));
        assert!(a.is_ok() != b.is_ok());
    }
}

#[tokio::test]
async fn a_use_is_on_disk_before_it_is_granted() {
    let mut cloud = Cloud::new();
    let path = cloud.dir.path().join("store");
    let store = Store::open(&path, Options::default()).unwrap().store;
    cloud.tokens = Tokens::new(&store);
    let token = cloud.token(TokenRules::default()).await;
    let unused = cloud.token(TokenRules::default()).await;
    cloud.redeem(&token, &cloud.request("a", "edge-1"), now()).await.unwrap();
    store.close().await.unwrap();
    let error = cloud.redeem(&unused, &cloud.request("b", "edge-2"), now()).await.unwrap_err();
    assert!(matches!(error, TokenError::Store(StoreError::Closed)), "{error}");
    cloud.tokens = Tokens::new(&Store::open(&path, Options::default()).unwrap().store);
    let error = cloud.redeem(&token, &cloud.request("b", "edge-2"), now()).await.unwrap_err();
    assert!(matches!(error, TokenError::UsedUp { .. }), "{error}");
    cloud.redeem(&unused, &cloud.request("b", "edge-2"), now()).await.unwrap();
}

#[tokio::test]
async fn secrets_are_not_stored_and_old_tokens_go() {
    let mut cloud = Cloud::new();
    let path = cloud.dir.path().join("store");
    cloud.tokens = Tokens::new(&Store::open(&path, Options::default()).unwrap().store);
    let token = cloud.token(TokenRules::default()).await;
    let secret = token.expose().rsplit_once('.').unwrap().1.to_owned();
    let db = std::fs::read(path.join("db")).unwrap();
    let holds = |needle: &str| db.windows(needle.len()).any(|window| window == needle.as_bytes());
    assert!(holds("secret_sha256") && !holds(&secret));
    assert!(!format!("{:?}", cloud.tokens).contains(&secret) && !format!("{token:?}").contains(&secret));

    let later = now() + 9 * DAY;
    let fresh = cloud.tokens.create(cloud.ca, TokenRules::default(), later).await.unwrap();
    let left = cloud.tokens.list().unwrap();
    assert_eq!(left.iter().map(|info| info.id.as_str()).collect::<Vec<_>>(), [fresh.credential.id()]);
}
