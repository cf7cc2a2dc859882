//! What a stopped edge has on disk, read by the component that wrote it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use kubeedge_actors::{
    metamanager::{MetaManager, Tables},
    store::{Options, Store},
    system::{Ports, System},
};
use kubeedge_proto::v1::{KubeObject, ObjectList, ReadObjects, ResourceType};
use tokio::sync::oneshot;

/// For MetaManager to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// Every object of a kind. A store that cannot be used, or has a record that cannot, is an error.
pub(super) async fn read(path: PathBuf, kind: fn() -> ResourceType) -> Result<Vec<KubeObject>> {
    let (answer, answered) = oneshot::channel();
    // Components need actix's own runtime.
    std::thread::spawn(move || answer.send(actix_rt::System::new().block_on(read_here(path, kind))));
    answered.await.context("the reader panicked")?
}

async fn read_here(path: PathBuf, kind: fn() -> ResourceType) -> Result<Vec<KubeObject>> {
    let opened = Store::open(&path, Options::default())?;
    ensure!(opened.set_aside.is_none() && opened.damaged.is_empty(), "a damaged store: {:?}", opened.damaged);
    let tables = Tables::open(opened.store.clone()).await?;
    let system = System::builder("reader")
        .component(move |ports: &Ports| MetaManager::new(tables.clone(), ports))
        .asks::<ReadObjects>()
        .start()?;
    let read = system.port::<ReadObjects>().ask(ReadObjects { r#type: Some(kind()), key: None }, LIMIT).await;
    system.stop(LIMIT).await;
    opened.store.close().await?;
    let ObjectList { objects, complete } = read.map_err(|error| anyhow::anyhow!("MetaManager: {error}"))?;
    ensure!(complete, "the edge does not know all of the kind");
    Ok(objects)
}
