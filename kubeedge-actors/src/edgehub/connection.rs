//! Connects to the cloud, again and again, and hands what the sessions say to EdgeHub.

use actix::Addr;
use kubeedge_proto::v1::{DescribeStore, Goodbye, Hello};

use super::{EdgeHub, EdgeHubConfig, FromSession, LinkDown, LinkUp, STORE_WITHIN};
use crate::{
    link::{
        backoff, client, driver, queues,
        session::{Output, Session},
    },
    system::Port,
};

/// How one attempt ended.
struct Attempt {
    /// Hello and Welcome had passed.
    established: bool,
    goodbye: Option<Goodbye>,
    reason: String,
}

/// Runs until EdgeHub is gone.
pub(super) async fn run(config: EdgeHubConfig, describe: Port<DescribeStore>, hub: Addr<EdgeHub>) {
    let mut failures = 0;
    loop {
        let attempt = attempt(&config, &describe, &hub).await;
        if hub.send(LinkDown { reason: attempt.reason.clone() }).await.is_err() {
            return;
        }
        failures = if attempt.established { 0 } else { failures + 1 };
        let pause = backoff::delay(failures, attempt.goodbye.as_ref(), rand::random());
        tracing::info!(cloud = config.address, again_in = ?pause, "not connected: {}", attempt.reason);
        tokio::time::sleep(pause).await;
    }
}

async fn attempt(config: &EdgeHubConfig, describe: &Port<DescribeStore>, hub: &Addr<EdgeHub>) -> Attempt {
    let failed = |reason: String| Attempt { established: false, goodbye: None, reason };
    if let Some(renewal) = config.renewal.as_ref().filter(|renewal| renewal.credentials.has_expired())
        && let Err(error) = renewal.by_proof().await
    {
        return failed(format!("the certificate has ended: {error}"));
    }
    let transport = match client::connect(&config.address, None, &config.tls).await {
        Ok(transport) => transport,
        // By this node's clock it has not.
        Err(error) if error.says_expired() && config.renewal.is_some() => {
            let renewed = match &config.renewal {
                Some(renewal) => renewal.by_proof().await,
                None => Ok(()),
            };
            return failed(match renewed {
                Ok(()) => "the cloud says that the certificate has ended: it was renewed".into(),
                Err(why) => format!("{error}; {why}"),
            });
        }
        Err(error) => return failed(error.to_string()),
    };
    // Asked for after connecting: what it says is then as new as can be.
    let store = match describe.ask(DescribeStore {}, STORE_WITHIN).await {
        Ok(store) => store,
        Err(error) => return failed(format!("MetaManager does not say what is on disk: {error}")),
    };
    let hello = Hello {
        instance_id: store.instance_id,
        connection: store.connection,
        cluster_uid: store.cluster_uid,
        last_epoch: store.last_epoch,
        kinds: store.kinds,
        ..Hello::default()
    };
    let (sink, stream) = transport;
    let session = Session::edge(hello, config.link.clone()).stamped();
    let (inputs, commands) = queues::inputs();
    let (events, mut outputs) = queues::outputs();
    if hub.send(LinkUp { session: inputs }).await.is_err() {
        return failed("EdgeHub is gone".into());
    }
    let mut attempt = failed("the session's driver ended".into());
    let listen = async {
        while let Some(output) = outputs.recv().await {
            match &output {
                Output::Established(_) => attempt.established = true,
                Output::Closed(closed) => {
                    attempt.goodbye = closed.goodbye().cloned();
                    attempt.reason = closed.to_string();
                }
                _ => {}
            }
            // One after the other: the next is taken when this one is handled. An error means that EdgeHub was
            // rebuilt or stopped; dropping the outputs ends the session.
            if hub.send(FromSession(output)).await.is_err() {
                break;
            }
        }
        drop(outputs);
    };
    tokio::join!(driver::run(session, sink, stream, commands, events), listen);
    attempt
}
