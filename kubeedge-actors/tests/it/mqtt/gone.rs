//! A broker that goes away while much is published.

use futures_util::{StreamExt, stream::FuturesUnordered};

use super::*;

/// How often it goes.
const ROUNDS: usize = 5;
/// Publications in each round, of which the broker has confirmed so many when it goes.
const MANY: usize = 2000;
const CONFIRMED: usize = 50;

/// paho's library ends the process when a write fails at once: it must not see that. Once is seldom enough. `P-BROKER-GONE`
#[actix_rt::test]
async fn a_broker_that_is_killed_while_much_is_published_ends_nothing_here() {
    let Some(program) = mosquitto("a_broker_that_is_killed_while_much_is_published_ends_nothing_here") else { return };
    goes_away(Kind::Mosquitto(program)).await;
}

#[actix_rt::test]
async fn an_embedded_broker_that_ends_while_much_is_published_ends_nothing_else() {
    goes_away(Kind::Embedded).await;
}

async fn goes_away(kind: Kind) {
    let mut broker = Running::start(kind).await;
    for _ in 0..ROUNDS {
        let site = Site::start(broker.broker());
        site.connected(true).await;
        let port = site.test.port::<PublishMqtt>();
        let mut sent: FuturesUnordered<_> = (0..MANY)
            .map(|count| {
                let payload = format!("{count:>8}").into_bytes().repeat(32);
                let message =
                    PublishMqtt { topic: "told/n".into(), payload: payload.into(), qos: Some(1), retain: None };
                let port = port.clone();
                async move { port.ask(message, SOON).await.unwrap().code }
            })
            .collect();
        for _ in 0..CONFIRMED {
            assert_eq!(within(sent.next()).await, Some(0));
        }
        broker.end().await;
        site.connected(false).await;
        broker.begin().await;
        // What waited is sent again, and what paho had not taken yet is refused.
        while let Some(code) = within(sent.next()).await {
            assert!([0, 503].contains(&code), "{code}");
        }
        site.test.assert_quiet().await;
    }
}
