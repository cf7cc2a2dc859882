//! Embedding: the cloud link and the edge's copy of its objects in a program of your own, beside an actor of your own.
//!
//! `custom_gateway <folder of ca/ and certs/> <host:port of the link> <folder for the store>`; `edgecore join --data-dir` makes
//! the first. It prints what the cloud wants of this node, for as long as it runs, with the cable cut as well.

#![allow(clippy::print_stdout, reason = "its output is for a person")]

use std::{path::Path, sync::Arc, time::Duration};

use actix::Handler;
use anyhow::{Context as _, Result};
use kubeedge_actors::{
    edgehub::{EdgeHub, EdgeHubConfig, outbox::Bounds, renewal::Renewal},
    identity::{FlooredClock, NodeCredentials, NodeIdentity},
    link,
    metamanager::{MetaManager, Tables},
    program::StopSignals,
    store::{Options, Store},
    system::{Component, Context, Contract, Overflow, Ports, Stage, System},
};
use kubeedge_proto::v1::{LinkStateChanged, ObjectsChanged};

/// An actor of our own: it listens to two events, and that is all its contract.
struct Printer;

impl actix::Actor for Printer {
    type Context = Context<Self>;
}

impl Component for Printer {
    const NAME: &'static str = "printer";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.listens::<ObjectsChanged>(Overflow::wait());
        contract.listens::<LinkStateChanged>(Overflow::newest_per_key(1, |_| ()));
    }
}

impl Handler<ObjectsChanged> for Printer {
    type Result = ();

    fn handle(&mut self, change: ObjectsChanged, _: &mut Context<Self>) {
        let (kind, key) = (change.r#type.unwrap_or_default().kind, change.key.unwrap_or_default());
        let what = if change.object.is_some() { "is" } else { "is gone" };
        println!("{kind} {}/{} {what}", key.namespace, key.name);
    }
}

impl Handler<LinkStateChanged> for Printer {
    type Result = ();

    fn handle(&mut self, link: LinkStateChanged, _: &mut Context<Self>) {
        println!("the cloud is {}", if link.connected { "there" } else { "away" });
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument =
        || arguments.next().context("usage: custom_gateway <identity folder> <host:port> <store folder>");
    let (identity, address, folder) = (argument()?, argument()?, argument()?);
    actix_rt::System::new().block_on(async {
        let identity =
            NodeIdentity::load(Path::new(&identity))?.context("no certificate: run `edgecore join` first")?;
        let store = Store::open(Path::new(&folder), Options::default())?.store;
        let tables = Tables::open(store.clone()).await?;
        // New connections use the certificate of then: EdgeHub renews it in time.
        let clock = FlooredClock::load(identity.dir());
        let credentials = NodeCredentials::new(identity, clock)?;
        let hub = EdgeHubConfig {
            address,
            tls: Arc::new(credentials.client_config(&[])?),
            link: link::Config::default(),
            store: store.clone(),
            outbox: Bounds::default(),
            renewal: Some(Renewal { credentials, enrolment: None }),
        };
        let system = System::builder("gateway")
            .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
            .component(move |ports: &Ports| EdgeHub::new(hub.clone(), ports))
            .component(|_: &Ports| Printer)
            .start()?;
        StopSignals::listen()?.next().await;
        system.stop(Duration::from_secs(5)).await;
        Ok(store.close().await?)
    })
}
