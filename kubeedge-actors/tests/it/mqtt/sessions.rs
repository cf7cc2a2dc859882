//! A broker keeps EventBus' session: what that means while one of the two is away.

use super::*;

/// Subscribes, and waits until what is published arrives.
async fn listens(site: &Site, app: &App, filter: &str, topic: &str) {
    assert_eq!(site.test.ask(SubscribeMqtt { filter: filter.into() }).await.code, 0);
    within(async {
        loop {
            app.publish(topic, b"is it there").await;
            if tokio::time::timeout(Duration::from_millis(200), site.received.next()).await.is_ok() {
                return;
            }
        }
    })
    .await;
}

async fn outlives_this_client(kind: Kind) {
    let running = Running::start(kind).await;
    let site = Site::start(running.broker());
    let app = App::connect(running.address).await;
    site.subscribed(&app, b"first").await;
    site.test.assert_quiet().await;
    // EventBus is away: its node restarts, say.
    for count in 0..20 {
        app.publish(UPDATE, format!("meanwhile {count}").as_bytes()).await;
    }
    let site = Site::start(running.broker());
    for count in 0..20 {
        let next = loop {
            let next = within(site.twin.next()).await;
            if next.payload != b"first"[..] {
                break next;
            }
        };
        assert_eq!(next.payload, format!("meanwhile {count}").into_bytes());
    }
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn what_is_published_while_eventbus_is_away_arrives_when_it_is_back() {
    let Some(program) = mosquitto("what_is_published_while_eventbus_is_away_arrives_when_it_is_back") else { return };
    outlives_this_client(Kind::Mosquitto(program)).await;
}

#[actix_rt::test]
async fn what_is_published_while_eventbus_is_away_arrives_by_the_embedded_broker_too() {
    outlives_this_client(Kind::Embedded).await;
}

#[actix_rt::test]
async fn a_broker_that_restarts_with_its_sessions_delivers_what_it_had_taken() {
    let Some(program) = mosquitto("a_broker_that_restarts_with_its_sessions_delivers_what_it_had_taken") else {
        return;
    };
    let mut running = Running::start(Kind::MosquittoKeeping(program)).await;
    let site = Site::start(running.broker());
    let app = App::connect(running.address).await;
    site.subscribed(&app, b"first").await;
    site.test.assert_quiet().await;
    app.publish(UPDATE, b"kept").await;
    drop(app);
    running.stop().await;
    running.begin().await;
    let site = Site::start(running.broker());
    while within(site.twin.next()).await.payload != b"kept"[..] {}
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_filter_that_ends_while_the_broker_is_away_does_not_come_back() {
    let Some(program) = mosquitto("a_filter_that_ends_while_the_broker_is_away_does_not_come_back") else { return };
    ends_while_away(Kind::MosquittoKeeping(program)).await;
}

#[actix_rt::test]
async fn a_filter_that_ends_while_the_embedded_broker_is_away_does_not_come_back_either() {
    ends_while_away(Kind::Embedded).await;
}

async fn ends_while_away(kind: Kind) {
    let mut running = Running::start(kind).await;
    let site = Site::start(running.broker());
    site.connected(true).await;
    let app = App::connect(running.address).await;
    site.subscribed(&app, b"first").await;
    listens(&site, &app, "sensors/+", "sensors/a").await;
    drop(app);
    running.stop().await;
    site.connected(false).await;
    assert_eq!(site.test.ask(UnsubscribeMqtt { filter: "sensors/+".into() }).await.code, 0);
    running.begin().await;
    site.connected(true).await;
    let app = App::connect(running.address).await;
    site.subscribed(&app, b"again").await;
    let before = site.received.count();
    app.publish("sensors/a", b"nobody wants it").await;
    site.subscribed(&app, b"after it").await;
    assert_eq!(site.received.count(), before);
    site.test.assert_quiet().await;

    // Neither does the broker keep it for this client.
    app.publish("sensors/a", b"nobody wants it").await;
    app.publish(UPDATE, b"the first that is kept").await;
    let options = CreateOptionsBuilder::new_v3()
        .server_uri(format!("tcp://{}", running.address))
        .client_id("kubeedge-n")
        .finalize();
    let client = AsyncClient::new(options).unwrap();
    let (sender, kept) = mpsc::sync_channel(10_000);
    client.set_message_callback(move |_, message| {
        let _ = sender.try_send(message.map(|message| (message.topic().to_owned(), message.payload().to_vec())));
    });
    within(client.connect(ConnectOptionsBuilder::new_v3().clean_session(false).finalize())).await.unwrap();
    let first = within(async {
        loop {
            match kept.try_recv() {
                Ok(Some(message)) => return message,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await;
    assert_eq!(first, (UPDATE.to_owned(), b"the first that is kept".to_vec()));
}
