//! `/ws/events` with a client that speaks WebSocket by hand, so that it can be as slow or as wrong as it likes.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use kubeedge_actors::{
    audit::testing::Heard,
    system::{
        Ports,
        testing::{Recorder, TestSystem},
    },
    views::{ViewsConfig, board::BEHIND, edge::EdgeViews, server::TOKEN_PROTOCOL},
    web::tokens::Tokens,
};
use kubeedge_proto::v1::{LinkStateChanged, ListPods, MqttReceived, PodListing};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SOON: Duration = Duration::from_secs(30);
const TOKEN: &str = "0123456789abcdef";

fn start(tokens: Option<&str>) -> (TestSystem, SocketAddr, Recorder<ListPods>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let config = ViewsConfig {
        listener: Arc::new(listener),
        tls: None,
        tokens: tokens.map(|tokens| Tokens::parse(tokens).unwrap()),
        observed: Default::default(),
    };
    let pods = Recorder::<ListPods>::answering(|_| {
        let pod = json!({"metadata": {"namespace": "default", "name": "web"}, "status": {"phase": "Running"}});
        PodListing { json: json!({"items": [pod]}).to_string().into() }
    });
    let test = TestSystem::builder()
        .component(move |ports: &Ports| EdgeViews::new("edge-1".parse().unwrap(), config.clone(), ports))
        .records(&pods)
        .announces::<LinkStateChanged>()
        .announces::<MqttReceived>()
        .start();
    (test, address, pods)
}

struct Client(TcpStream);

/// A frame: what it is, and its payload.
#[derive(Debug, PartialEq)]
enum Frame {
    Text(Value),
    Ping(Vec<u8>),
    Close(u16, String),
}

impl Client {
    /// Status and head of the answer to an upgrade.
    async fn ask(address: SocketAddr, query: &str, headers: &str) -> (Self, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /ws/events{query} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (Self(stream), String::from_utf8(head).unwrap())
    }

    async fn connect(address: SocketAddr, query: &str) -> Self {
        let (client, head) = Self::ask(address, query, "").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client
    }

    async fn frame(&mut self) -> Frame {
        let read = async {
            let kind = self.0.read_u8().await.unwrap();
            let length = match self.0.read_u8().await.unwrap() {
                126 => u64::from(self.0.read_u16().await.unwrap()),
                127 => self.0.read_u64().await.unwrap(),
                length => length.into(),
            };
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).await.unwrap();
            match kind {
                0x81 => Frame::Text(serde_json::from_slice(&payload).unwrap()),
                0x89 => Frame::Ping(payload),
                0x88 => {
                    let code = u16::from_be_bytes([payload[0], payload[1]]);
                    Frame::Close(code, String::from_utf8(payload[2..].to_vec()).unwrap())
                }
                other => panic!("frame {other:#x}"),
            }
        };
        tokio::time::timeout(SOON, read).await.unwrap()
    }

    /// Answers a ping: masked, as a client must, with a mask of zeros.
    async fn pong(&mut self, payload: &[u8]) {
        let head = [0x8a, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
        self.0.write_all(&[&head[..], payload].concat()).await.unwrap();
    }

    /// The next event; pings on the way are answered.
    async fn event(&mut self) -> Value {
        loop {
            match self.frame().await {
                Frame::Text(event) => return event,
                Frame::Ping(payload) => self.pong(&payload).await,
                Frame::Close(code, why) => panic!("closed: {code} {why}"),
            }
        }
    }
}

fn link(connected: bool, reason: &str) -> LinkStateChanged {
    LinkStateChanged { connected, reason: reason.into() }
}

#[actix_rt::test]
async fn a_client_sees_what_there_is_and_what_changes_and_only_what_it_asked_for() {
    let (test, address, pods) = start(None);
    test.announce(link(true, "")).await;
    test.idle().await;
    let mut links = Client::connect(address, "?kinds=link").await;
    assert_eq!(pods.count(), 0, "nobody wants pods");
    let event = links.event().await;
    let expected = json!({"kind": "link", "event": "now", "name": "edge-1", "node": "edge-1",
        "object": {"connected": true, "reason": ""}});
    assert_eq!(event, expected);

    let mut pods = Client::connect(address, "?kinds=pods&namespace=default").await;
    let event = pods.event().await;
    // The first look is made when somebody wants it: before the client has its seat, or after.
    assert!((event["event"] == "now" || event["event"] == "added") && event["name"] == "web", "{event}");
    assert_eq!(event["object"]["phase"], "Running");

    test.announce(link(false, "cut")).await;
    let event = links.event().await;
    assert_eq!((&event["event"], &event["object"]["reason"]), (&json!("changed"), &json!("cut")));

    let mut twins = Client::connect(address, "?kinds=twins").await;
    let said = |value: &str| MqttReceived {
        topic: "$hw/events/device/default/meter/twin/update/document".into(),
        payload: json!({"twin": {"kwh": {"last": null, "current": {"actual": {"value": value}}}}}).to_string().into(),
        retained: false,
    };
    // Until it hears of the client the component does not listen.
    let event = loop {
        test.announce(said("7")).await;
        let next = tokio::time::timeout(Duration::from_millis(50), twins.event()).await;
        if let Ok(event) = next {
            break event;
        }
    };
    assert_eq!((&event["namespace"], &event["name"]), (&json!("default"), &json!("meter")));
    assert_eq!(event["object"]["twins"]["kwh"]["actual"]["value"], "7");
    test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_client_that_does_not_read_is_dropped_with_the_reason_and_holds_up_nobody() {
    let (test, address, _) = start(None);
    let mut slow = Client::connect(address, "?kinds=link").await;
    let mut good = Client::connect(address, "?kinds=link").await;
    for n in 0..=2 * BEHIND {
        let reason = n.to_string();
        test.announce(link(false, &reason)).await;
        test.idle().await;
        // The good one reads each before the next; the slow one never answers a ping.
        assert_eq!(good.event().await["object"]["reason"], reason);
    }
    let mut texts = 0;
    let (code, why) = loop {
        match slow.frame().await {
            Frame::Text(_) => texts += 1,
            // Now it reads: what it missed is lost.
            Frame::Ping(payload) => slow.pong(&payload).await,
            Frame::Close(code, why) => break (code, why),
        }
    };
    assert!(code == 1008 && why.starts_with("too slow: ") && texts < BEHIND, "{code} {why} after {texts}");
    test.assert_quiet().await;
}

#[actix_rt::test]
async fn who_may_not_look_and_what_is_no_query_is_refused_with_the_reason() {
    let (test, address, _) = start(None);
    // The server has a thread of its own: lines are found by the client's port.
    let log = Heard::everywhere();
    let audited = |before: usize, client: &Client, head: &str| {
        let lines = log.after(before, &format!("who={} ", client.0.local_addr().unwrap()));
        let refused = !head.starts_with("HTTP/1.1 101 ");
        assert!(lines.len() == usize::from(refused), "{head} {lines:?}");
        assert!(lines.iter().all(|line| line.contains("views refused: ") && !line.contains("fedcba")), "{lines:?}");
    };
    let status = async |query: &str, headers: &str| {
        let before = log.count();
        let (client, head) = Client::ask(address, query, headers).await;
        audited(before, &client, &head);
        head
    };
    let head = status("?kinds=secrets", "").await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    let head = status("", "Origin: http://evil.example\r\n").await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    let head = status("", &format!("Origin: http://{address}\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    test.assert_quiet().await;

    let (test, address, _) = start(Some(TOKEN));
    let status = async |headers: &str| {
        let before = log.count();
        let (client, head) = Client::ask(address, "", headers).await;
        audited(before, &client, &head);
        head
    };
    for headers in ["", "Authorization: Bearer fedcba9876543210\r\n", "Sec-WebSocket-Protocol: chat\r\n"] {
        let head = status(headers).await;
        assert!(head.starts_with("HTTP/1.1 401 ") && head.contains("www-authenticate: Bearer"), "{headers} {head}");
    }
    let head = status(&format!("Authorization: Bearer {TOKEN}\r\nOrigin: http://page.example\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    // As a page in a browser has to.
    let shown = "MDEyMzQ1Njc4OWFiY2RlZg";
    let head = status(&format!("Sec-WebSocket-Protocol: {TOKEN_PROTOCOL}{shown}, events.kubeedge.io\r\n")).await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("sec-websocket-protocol: events.kubeedge.io"), "{head}");
    test.assert_quiet().await;
}
