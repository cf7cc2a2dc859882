//! Lists in pages: one moment whatever is written between the pages, and `410` with a way on when that moment is gone.

use kubeedge_actors::apiserver::{Config, Handle, Server};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::golden::client::{Answer, Client};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const ALL: &str = "/api/v1/configmaps";

/// One write between two pages.
#[derive(Clone, Debug)]
enum Write {
    /// Creates, or replaces what is there.
    Put(u8, bool),
    Delete(u8),
}

fn writes(most: usize) -> impl Strategy<Value = Vec<Write>> {
    let write = prop_oneof![
        2 => (0..24_u8, any::<bool>()).prop_map(|(name, left)| Write::Put(name, left)),
        1 => (0..24_u8).prop_map(Write::Delete),
    ];
    proptest::collection::vec(write, 0..most)
}

async fn send(client: &Client, method: &str, path: &str, body: Option<Value>) -> Answer {
    client.send(method, path, &[("Content-Type", "application/json")], body.map(|body| body.to_string())).await
}

async fn perform(client: &Client, write: &Write) {
    match write {
        Write::Put(name, left) => {
            let side = if *left { "left" } else { "right" };
            let body = json!({"metadata": {"name": format!("m{name:02}"), "labels": {"side": side}}});
            let created = send(client, "POST", MAPS, Some(body.clone())).await;
            if created.status == 409 {
                let replaced = send(client, "PUT", &format!("{MAPS}/m{name:02}"), Some(body)).await;
                assert_eq!(replaced.status, 200, "{}", replaced.text);
            } else {
                assert_eq!(created.status, 201, "{}", created.text);
            }
        }
        Write::Delete(name) => {
            let deleted = send(client, "DELETE", &format!("{MAPS}/m{name:02}"), None).await;
            assert!(matches!(deleted.status, 200 | 404), "{}", deleted.text);
        }
    }
}

async fn list(client: &Client, path: &str, query: &str) -> Value {
    let answer = send(client, "GET", &format!("{path}?{query}"), None).await;
    assert_eq!(answer.status, 200, "{query}: {}", answer.text);
    serde_json::from_str(&answer.text).unwrap()
}

/// The whole of each item, in the order of the list.
fn items(list: &Value) -> Vec<Value> {
    list["items"].as_array().unwrap().clone()
}

fn token(list: &Value) -> Option<&str> {
    list["metadata"]["continue"].as_str()
}

/// Reads all pages of `path` with the selector, writing between them, and compares with what one list said before.
async fn compare(client: &Client, path: &str, selector: &str, limit: usize, between: &[Write]) {
    let whole = list(client, path, selector).await;
    let expected = items(&whole);
    let mut writes = between.iter();
    let mut seen = Vec::new();
    let mut query = format!("limit={limit}&{selector}");
    loop {
        let page = list(client, path, &query).await;
        assert_eq!(page["metadata"]["resourceVersion"], whole["metadata"]["resourceVersion"], "{query}");
        let found = items(&page);
        assert!(found.len() <= limit, "{} items in a page of {limit}", found.len());
        seen.extend(found);
        let remaining = page["metadata"]["remainingItemCount"].as_u64();
        let Some(token) = token(&page) else {
            assert_eq!(remaining, None, "nothing remains after the last page");
            break;
        };
        // With a selector the real server does not say either.
        let left = selector.is_empty().then_some((expected.len() - seen.len()) as u64);
        assert_eq!(remaining, left, "{query}");
        query = format!("limit={limit}&{selector}&continue={token}");
        for write in writes.by_ref().take(3) {
            perform(client, write).await;
        }
    }
    assert_eq!(seen, expected, "the pages of {path}?{selector} by {limit}");
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(Handle, Client) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = Server::start(Config::in_memory()).await.unwrap();
        let client = Client::new(server.address(), "admin");
        test(server, client).await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, ..ProptestConfig::default() })]
    #[test]
    fn the_pages_of_a_list_are_its_first_moment_whatever_is_written_between_them(
        before in writes(30), between in writes(40), limit in 1..6_usize, everywhere: bool, selected: bool,
    ) {
        run(async |server, client| {
            for write in &before {
                perform(&client, write).await;
            }
            let path = if everywhere { ALL } else { MAPS };
            let selector = if selected { "labelSelector=side%3Dleft" } else { "" };
            compare(&client, path, selector, limit, &between).await;
            server.stop().await;
        });
    }
}

#[test]
fn a_token_whose_moment_is_gone_is_answered_410_with_one_that_goes_on_in_the_present() {
    run(async |server, client| {
        for number in 0..6 {
            perform(&client, &Write::Put(number, true)).await;
        }
        let first = list(&client, MAPS, "limit=2").await;
        // The log of changes is bounded by 16 MiB: these push the first page's moment out of it.
        perform(&client, &Write::Delete(4)).await;
        let large = json!({"data": {"a": "x".repeat(1_000_000)}});
        for number in 0..20 {
            let mut body = large.clone();
            body["data"]["n"] = number.to_string().into();
            let patch = [("Content-Type", "application/merge-patch+json")];
            let answer = client.send("PATCH", &format!("{MAPS}/m05"), &patch, Some(body.to_string())).await;
            assert_eq!(answer.status, 200);
        }
        perform(&client, &Write::Put(20, true)).await;
        let old = token(&first).unwrap();
        let refused = send(&client, "GET", &format!("{MAPS}?limit=2&continue={old}"), None).await;
        assert_eq!(refused.status, 410, "{}", refused.text);
        let refused: Value = serde_json::from_str(&refused.text).unwrap();
        assert_eq!(refused["reason"], "Expired");
        let fresh = token(&refused).expect("a token to go on with");

        // It goes on behind the first page, in the present, and from there on in one moment again.
        let second = list(&client, MAPS, &format!("limit=1&continue={fresh}")).await;
        assert_eq!(items(&second)[0]["metadata"]["name"], "m01");
        assert_eq!(second["metadata"]["resourceVersion"], server.resource_version().to_string());
        perform(&client, &Write::Delete(20)).await;
        let rest = list(&client, MAPS, &format!("continue={}", token(&second).unwrap())).await;
        let names: Vec<&str> =
            rest["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["m02", "m03", "m05", "m20"]);
        server.stop().await;
    });
}
