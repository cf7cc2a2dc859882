//! Many hellos at once, as after a restart of the cloud.

use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use kubeedge_actors::link::{
    client, driver, queues,
    session::{Output, Session},
};

use super::*;

/// Nodes that come back at once.
const NODES: usize = 8;

#[actix_rt::test]
async fn hellos_that_wait_share_one_question_for_the_cluster_and_all_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = Cloud::start(&folder.path().join("pki"));
    cloud.script.cluster_held.send_replace(true);
    let mut sessions = Vec::new();
    for n in 0..NODES {
        let identity = cloud.join(&format!("e{n}"), &folder.path().join(n.to_string())).await;
        let clock = FlooredClock::load(identity.dir());
        let tls = Arc::new(NodeCredentials::new(identity, clock).unwrap().client_config(&[]).unwrap());
        let (sink, stream) = client::connect(&cloud.link, None, &tls).await.unwrap();
        let hello = Hello { instance_id: vec![n as u8; 16].into(), connection: 1, ..Hello::default() };
        let session = Box::new(Session::edge(hello, link::Config::default()));
        let (inputs, commands) = queues::inputs();
        let (events, mut outputs) = queues::outputs();
        sessions.push(tokio::task::spawn_local(async move {
            let established = async {
                loop {
                    match outputs.recv().await.expect("it is answered") {
                        Output::Established(session) => break session.epoch,
                        Output::Closed(closed) => panic!("e{n} was refused: {closed}"),
                        _ => {}
                    }
                }
            };
            tokio::select! {
                _ = driver::run(session, sink, stream, commands, events) => panic!("e{n}: the session ended"),
                epoch = established => {
                    drop(inputs);
                    epoch
                }
            }
        }));
    }
    // It is asked by the first; by the time another box has enrolled, the other hellos are there, too.
    cloud.join("one-more", &folder.path().join("one-more")).await;
    assert!(sessions.iter().all(|session| !session.is_finished()), "nobody is let in before the cluster is known");
    cloud.script.cluster_held.send_replace(false);
    let epochs = tokio::time::timeout(SOON, join_all(sessions)).await.expect("all are answered");
    assert!(epochs.into_iter().all(|epoch| epoch.unwrap() > 0));
    let asked = cloud.script.cluster_asked.load(Ordering::Relaxed);
    assert!((1..=2).contains(&asked), "{NODES} hellos asked {asked} times");
    cloud.system.stop(SOON).await;
}
