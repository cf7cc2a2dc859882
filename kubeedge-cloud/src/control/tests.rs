use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Tokens in memory, with the rules that matter to the socket.
#[derive(Default)]
struct Desk(Mutex<Vec<TokenInfo>>);

impl TokenDesk for Desk {
    fn create(&self, token: NewToken) -> BoxFuture<'_, Result<CreatedToken, DeskError>> {
        Box::pin(async move {
            if token.ttl_seconds == 0 {
                return Err(DeskError::Invalid("a token must be valid for at least a second".into()));
            }
            let mut tokens = self.0.lock().unwrap();
            let id = format!("id{}", tokens.len());
            let created = CreatedToken { token: format!("hash.{id}.secret") };
            tokens.push(TokenInfo { id, node: token.node, expires: "later".into(), reusable: token.reusable });
            Ok(created)
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<TokenInfo>, DeskError>> {
        Box::pin(async { Ok(self.0.lock().unwrap().clone()) })
    }

    fn revoke(&self, id: String) -> BoxFuture<'_, Result<bool, DeskError>> {
        Box::pin(async move {
            let mut tokens = self.0.lock().unwrap();
            let before = tokens.len();
            tokens.retain(|token| token.id != id);
            Ok(tokens.len() < before)
        })
    }
}

fn new(node: Option<&str>) -> NewToken {
    NewToken { node: node.map(str::to_owned), ttl_seconds: 60, reusable: false }
}

#[tokio::test]
async fn tokens_are_made_listed_and_revoked_over_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::start(folder.path(), Arc::new(Desk::default()), Revocations::in_memory()).unwrap();
    let client = Client::new(folder.path());
    assert_eq!(client.create(&new(Some("edge-1"))).await.unwrap().token, "hash.id0.secret");
    let listed = client.list().await.unwrap();
    assert_eq!(listed.iter().map(|token| token.node.as_deref()).collect::<Vec<_>>(), [Some("edge-1")]);
    assert!(!client.revoke("id9").await.unwrap());
    assert!(!client.revoke("../tokens").await.unwrap(), "not an id");
    assert!(client.revoke("id0").await.unwrap());
    assert_eq!(client.list().await.unwrap(), []);
    let refused = client.create(&NewToken { ttl_seconds: 0, ..new(None) }).await.err().unwrap().to_string();
    assert!(refused.contains("at least a second"), "{refused}");
    control.stop().await.unwrap();
    assert!(!socket_of(folder.path()).exists());
}

#[tokio::test]
async fn nodes_are_revoked_and_readmitted_over_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let revocations = Revocations::in_memory();
    let control = Control::start(folder.path(), Arc::new(Desk::default()), revocations.clone()).unwrap();
    let client = Client::new(folder.path());
    let node = "edge-1.site".parse().unwrap();
    assert!(!client.readmit_node(&node).await.unwrap(), "it is not revoked");
    client.revoke_node(&node).await.unwrap();
    assert!(revocations.may_have_one(&node).is_err());
    let shown = client.revoked_nodes().await.unwrap();
    assert_eq!((shown.len(), shown[0].node.as_str(), shown[0].readmitted), (1, "edge-1.site", false));
    assert!(shown[0].revoked.ends_with('Z'), "{}", shown[0].revoked);
    assert!(client.readmit_node(&node).await.unwrap());
    assert!(revocations.may_have_one(&node).is_ok() && client.revoked_nodes().await.unwrap()[0].readmitted);
    control.stop().await.unwrap();
}

#[tokio::test]
async fn only_the_owner_reaches_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    // A folder left open by someone is closed again; a dead socket is replaced.
    fs::create_dir(folder_of(folder.path())).unwrap();
    fs::set_permissions(folder_of(folder.path()), Permissions::from_mode(0o777)).unwrap();
    drop(UnixListener::bind(socket_of(folder.path())).unwrap());
    let control = Control::start(folder.path(), Arc::new(Desk::default()), Revocations::in_memory()).unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(folder_of(folder.path())), mode(socket_of(folder.path()))), (0o700, 0o600));
    control.stop().await.unwrap();
}

#[tokio::test]
async fn a_large_request_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::start(folder.path(), Arc::new(Desk::default()), Revocations::in_memory()).unwrap();
    let client = Client::new(folder.path());
    let refused = client.create(&new(Some(&"x".repeat(MAX_REQUEST)))).await.err().unwrap().to_string();
    assert!(refused.contains("413"), "{refused}");
    // Unknown fields and bytes that are not HTTP are answered, not fatal.
    let mut raw = tokio::net::UnixStream::connect(socket_of(folder.path())).await.unwrap();
    raw.write_all(b"\x16\x03\x01 not http\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    raw.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(client.list().await.unwrap(), []);
    control.stop().await.unwrap();
}

#[tokio::test]
async fn without_a_cloudcore_the_message_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let error = Client::new(folder.path()).list().await.unwrap_err().to_string();
    assert!(error.contains("is it running with this data folder"), "{error}");
}
