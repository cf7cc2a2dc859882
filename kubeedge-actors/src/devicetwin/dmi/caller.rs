//! Calls a mapper until it knows what it should. The shell around [`crate::devicetwin::mappers`].

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};

use kubeedge_proto::{
    dmi::{self, device_mapper_service_client::DeviceMapperServiceClient},
    v1::MapperRecord,
};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::devicetwin::mappers::{Call, Catalogue, Told};

/// For one call, the connection included.
const WITHIN: Duration = Duration::from_secs(10);
/// A mapper that does not answer is called again after this, doubled up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// What a mapper refused it is told again after this, or when it has changed.
const REFUSED: Duration = Duration::from_secs(30);

/// What callers look at, and how they learn that it changed.
pub struct Shared {
    /// What is wanted.
    pub catalogue: RefCell<Catalogue>,
    changed: watch::Sender<()>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { catalogue: RefCell::default(), changed: watch::Sender::new(()) }
    }
}

impl Shared {
    /// Something changed.
    pub fn notify(&self) {
        self.changed.send_replace(());
    }
}

/// Calls this mapper, which knows this, until the handle is dropped.
pub fn start(mapper: MapperRecord, told: Told, shared: Rc<Shared>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::task::spawn_local(run(mapper, told, shared)))
}

async fn run(mapper: MapperRecord, mut told: Told, shared: Rc<Shared>) {
    let endpoint = match Endpoint::from_shared(format!("unix://{}", mapper.address)) {
        Ok(endpoint) => endpoint.connect_timeout(WITHIN),
        Err(error) => {
            tracing::error!(mapper = mapper.name, address = mapper.address, "it cannot be called: {error}");
            return;
        }
    };
    let mut client = DeviceMapperServiceClient::new(endpoint.connect_lazy());
    let mut changed = shared.changed.subscribe();
    let mut refused: HashMap<String, (Call, Instant)> = HashMap::new();
    let mut pause = AGAIN.0;
    loop {
        changed.mark_unchanged();
        let mut calls = shared.catalogue.borrow().missing(&mapper.protocol, &told);
        let now = Instant::now();
        calls.retain(|call| refused.get(call.id()).is_none_or(|(told, until)| told != call || *until <= now));
        if calls.is_empty() {
            let until = refused.values().map(|(_, until)| *until).filter(|until| *until > now).min();
            let wait = until.map_or(Duration::from_secs(3600), |until| until - now);
            // The sender lives as long as this.
            let _ = tokio::time::timeout(wait, changed.changed()).await;
            continue;
        }
        for call in calls {
            if changed.has_changed().unwrap_or(false) {
                // The newest first: what is left is looked for anew.
                break;
            }
            let done = match tokio::time::timeout(WITHIN, perform(&mut client, &call, &shared)).await {
                Ok(done) => done,
                Err(_) => Err(Status::deadline_exceeded(format!("no answer within {WITHIN:?}"))),
            };
            match done {
                Ok(()) => {
                    refused.remove(call.id());
                    told.done(call);
                    pause = AGAIN.0;
                }
                Err(status)
                    if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled) =>
                {
                    tracing::warn!(mapper = mapper.name, again_in = ?pause, "it does not answer: {}", status.message());
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                    pause = (pause * 2).min(AGAIN.1);
                    break;
                }
                Err(status) => {
                    tracing::warn!(
                        mapper = mapper.name, id = call.id(), code = ?status.code(),
                        "it refused what it was told: {}", status.message()
                    );
                    refused.insert(call.id().to_owned(), (call, Instant::now() + REFUSED));
                }
            }
        }
    }
}

async fn perform(client: &mut DeviceMapperServiceClient<Channel>, call: &Call, shared: &Shared) -> Result<(), Status> {
    let name =
        |id: &str| id.split_once('/').map(|(space, name)| (space.to_owned(), name.to_owned())).unwrap_or_default();
    let device = |id: &str| {
        let catalogue = shared.catalogue.borrow();
        let device = catalogue.device(id)?;
        Some(device.told(catalogue.model_of(device)?))
    };
    let model = |id: &str| shared.catalogue.borrow().model(id).map(|model| model.told());
    match call {
        Call::RemoveDevice(id) => {
            let (device_namespace, device_name) = name(id);
            let gone = client.remove_device(dmi::RemoveDeviceRequest { device_name, device_namespace }).await;
            forgotten(gone.map(drop))
        }
        Call::RemoveModel(id) => {
            let (model_namespace, model_name) = name(id);
            let gone = client.remove_device_model(dmi::RemoveDeviceModelRequest { model_name, model_namespace }).await;
            forgotten(gone.map(drop))
        }
        // What went away meanwhile is found by the next look.
        Call::Model { id, new: true, .. } => match model(id) {
            model @ Some(_) => client.create_device_model(dmi::CreateDeviceModelRequest { model }).await.map(drop),
            None => Ok(()),
        },
        Call::Model { id, .. } => match model(id) {
            model @ Some(_) => client.update_device_model(dmi::UpdateDeviceModelRequest { model }).await.map(drop),
            None => Ok(()),
        },
        Call::Device { id, new: true, .. } => match device(id) {
            device @ Some(_) => client.register_device(dmi::RegisterDeviceRequest { device }).await.map(drop),
            None => Ok(()),
        },
        Call::Device { id, .. } => match device(id) {
            device @ Some(_) => client.update_device(dmi::UpdateDeviceRequest { device }).await.map(drop),
            None => Ok(()),
        },
    }
}

/// What a mapper does not know it has forgotten already.
fn forgotten(gone: Result<(), Status>) -> Result<(), Status> {
    match gone {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        gone => gone,
    }
}
