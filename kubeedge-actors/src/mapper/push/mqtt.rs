//! Readings to an MQTT broker, over one connection that is made again when it is lost.

use std::{collections::BTreeSet, rc::Rc};

use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::{
    Read,
    target::{Mqtt, WITHIN},
};
use crate::eventbus::client::{self, Client, State};

pub(super) struct Broker {
    client: Rc<Client>,
    connected: watch::Receiver<bool>,
    _running: AbortOnDropHandle<()>,
}

impl Broker {
    /// Connects, for as long as it takes.
    pub(super) fn connect(address: &str) -> Result<Self, String> {
        let broker = client::Broker {
            // Nothing is subscribed to: there is nothing to keep.
            keep_session: false,
            ..client::Broker::new(address, format!("kubeedge-mapper-{}", Uuid::new_v4().simple()))
        };
        let (incoming, _) = mpsc::channel(1);
        let client = Rc::new(Client::new(broker, incoming, Default::default())?);
        let (state, connected) = watch::channel(false);
        let run = Rc::clone(&client);
        let running = tokio::task::spawn_local(async move {
            let (_filters, none) = watch::channel(BTreeSet::new());
            let tell = async |now| {
                state.send_replace(now == State::Connected);
            };
            run.run(none, tell).await;
        });
        Ok(Self { client, connected, _running: AbortOnDropHandle::new(running) })
    }

    /// Publishes a reading; the broker has it when this returns, if its QoS says so.
    pub(super) async fn push(&self, target: &Mqtt, read: &Read) -> Result<(), String> {
        let push = async {
            let mut connected = self.connected.clone();
            if connected.wait_for(|connected| *connected).await.is_err() {
                return Err("its client has ended".to_owned());
            }
            let payload = target.payload(read);
            match self.client.publish(&target.topic, payload.as_bytes(), Some(target.qos), Some(target.retained)) {
                Some(Ok(delivery)) => delivery.confirmed().await,
                Some(Err(bound)) => Err(bound),
                None => Err("the connection was lost".to_owned()),
            }
        };
        match tokio::time::timeout(WITHIN, push).await {
            Ok(done) => done.map_err(|why| format!("{}: {why}", target.address)),
            Err(_) => Err(format!("{}: not published within {WITHIN:?}", target.address)),
        }
    }
}
