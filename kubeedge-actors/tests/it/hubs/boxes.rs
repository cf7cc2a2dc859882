//! Two boxes under one name.

use kubeedge_actors::link::{
    client, driver, queues,
    session::{Output, Session},
};

use super::*;

/// What the cloud says to another box of this identity, before it closes.
async fn told(identity: &NodeIdentity, address: &str) -> Goodbye {
    let identity = NodeIdentity::load(identity.dir()).unwrap().unwrap();
    let clock = FlooredClock::load(identity.dir());
    let tls = Arc::new(NodeCredentials::new(identity, clock).unwrap().client_config(&[]).unwrap());
    let (sink, stream) = client::connect(address, None, &tls).await.unwrap();
    let hello = Hello { instance_id: vec![7; 16].into(), connection: 99, ..Hello::default() };
    let session = Box::new(Session::edge(hello, link::Config::default()));
    let (_inputs, commands) = queues::inputs();
    let (events, mut outputs) = queues::outputs();
    let closed = async {
        loop {
            match outputs.recv().await.expect("the session ends with a word") {
                Output::Closed(closed) => return closed.goodbye().cloned().expect("it was said why"),
                Output::Established(_) => panic!("the other box was let in"),
                _ => {}
            }
        }
    };
    let both = async { tokio::join!(driver::run(session, sink, stream, commands, events), closed).1 };
    tokio::time::timeout(SOON, both).await.unwrap()
}

/// P-ONE-BOX
#[actix_rt::test]
async fn another_box_is_refused_until_the_first_is_gone_and_then_gets_everything() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    let mut listener = cloud.script.listen();
    cloud.want("e1", vec![pod("a", "u1", 5)], 10);
    let first = cloud.join("e1", &folder.path().join("first")).await;
    let mut edge = Edge::start(&first, &cloud.link, &folder.path().join("first-store")).await;
    heard(&mut listener, connected).await;
    assert_eq!(edge.change().await, ("ns/a:u1".into(), true));

    // A box that was re-imaged has joined under the name, or somebody has copied the certificate.
    let second = cloud.join("e1", &folder.path().join("second")).await;
    for identity in [&first, &second] {
        let goodbye = told(identity, &cloud.link).await;
        assert_eq!(goodbye.reason(), GoodbyeReason::NameTaken, "{goodbye:?}");
        assert!(goodbye.message.contains("e1") && goodbye.retry_after_ms > 0, "{goodbye:?}");
    }
    // The first one's session stands: the next that is heard of one is its end.
    cloud_port(&cloud).tell(upsert(pod("a", "u1", 11))).await.unwrap();
    assert_eq!(edge.change().await, ("ns/a:u1".into(), true));
    edge.stop().await;
    heard(&mut listener, |heard| {
        assert!(!connected(heard), "another box had a session");
        disconnected(heard)
    })
    .await;

    let mut edge = Edge::start(&second, &cloud.link, &folder.path().join("second-store")).await;
    heard(&mut listener, connected).await;
    assert_eq!(edge.change().await, ("ns/a:u1".into(), true));
    while !edge.pods().await.complete {
        tokio::task::yield_now().await;
    }
    edge.stop().await;
    cloud.system.stop(SOON).await;
}
