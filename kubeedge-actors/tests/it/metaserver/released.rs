//! Held pods are released as `keadm ctl unhold-upgrade` asks for it.

use actix::{Actor, Handler, MessageResult};
use kubeedge_actors::system::{Component, Context, Contract, Stage};

use super::*;

/// Edged, as far as this goes: it holds a pod `default/waits`.
struct Pods;

impl Actor for Pods {
    type Context = Context<Self>;
}

impl Component for Pods {
    const NAME: &'static str = "edged";
    const STAGE: Stage = Stage::Processor;
    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<ReleasePods>();
    }
}

impl Handler<ReleasePods> for Pods {
    type Result = MessageResult<ReleasePods>;
    fn handle(&mut self, message: ReleasePods, _: &mut Context<Self>) -> Self::Result {
        MessageResult(match (message.namespace.as_str(), message.name.as_str()) {
            ("", "") | ("default", "waits") => Settled::applied(),
            (namespace, name) => Settled::rejected(404, format!("no pod {namespace}/{name} is held")),
        })
    }
}

async fn asked(edge: &Edge, of: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let client = Client::new(edge.address, "");
    let path = format!("/api/v1/{of}/unhold-upgrade");
    let answer = client.send("POST", &path, headers, Some(body.to_owned())).await;
    (answer.status, answer.text)
}

#[actix_rt::test]
async fn a_held_pod_or_every_one_of_the_node_is_released() {
    let edge = Edge::with(Store::in_memory(), free_address(), |builder| builder.component(|_| Pods)).await;
    let text = [("Content-Type", "text/plain")];
    assert_eq!(asked(&edge, "pods", &text, "default/waits").await, (200, String::new()));
    assert_eq!(asked(&edge, "nodes", &text, "edge-1").await, (200, String::new()));
    let (status, why) = asked(&edge, "pods", &text, "default/other").await;
    assert!(status == 404 && why.contains("no pod default/other is held"), "{status} {why}");
    for (of, body, expected) in [
        ("pods", "waits", 400),
        ("pods", "", 400),
        ("pods", "default/../x", 400),
        ("pods", &"x".repeat(5000), 413),
        ("nodes", "edge-2", 404),
    ] {
        assert_eq!(asked(&edge, of, &text, body).await.0, expected, "{of} {body:.40}");
    }
    let page = asked(&edge, "nodes", &[("Origin", "http://evil.example")], "edge-1").await;
    assert_eq!(page.0, 403, "not for pages in a browser");
    edge.stop().await;

    let none = Edge::start(Store::in_memory(), free_address()).await;
    assert_eq!(asked(&none, "nodes", &text, "edge-1").await.0, 503, "a node without pods");
    none.stop().await;
}
