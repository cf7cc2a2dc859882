//! Calls a mapper until it knows what it should. The shell around [`crate::devicetwin::mappers`].

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
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

use crate::devicetwin::mappers::{Call, Catalogue, Id, Told, id_of};

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

/// What a mapper knows when it is called first.
#[derive(Clone, Debug)]
pub enum Knows {
    /// It has just registered, and was told this.
    This(Told),
    /// It has just registered.
    Nothing,
    /// It registered some time ago, and may know these devices as they were then.
    Perhaps(BTreeSet<Id>),
}

/// Calls this mapper until the handle is dropped.
pub fn start(mapper: MapperRecord, knows: Knows, shared: Rc<Shared>) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::task::spawn_local(run(mapper, knows, shared)))
}

async fn run(mapper: MapperRecord, knows: Knows, shared: Rc<Shared>) {
    let (mut told, perhaps) = match knows {
        Knows::This(told) => (told, BTreeSet::new()),
        Knows::Nothing => (Told::default(), BTreeSet::new()),
        Knows::Perhaps(perhaps) => (Told::default(), perhaps),
    };
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
            match tell(&mut client, &call, &perhaps, &shared).await {
                Ok(()) => {
                    refused.remove(call.id());
                    told.done(call);
                    pause = AGAIN.0;
                }
                Err(status) if is_away(&status) => {
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

type Client = DeviceMapperServiceClient<Channel>;

/// Tells a mapper one thing. Devices in `perhaps` it may know as they were.
///
/// A mapper that says it does not know what is to be changed is told of it anew and then once more of the change: KubeEdge's
/// framework for mappers files what it was given at registration under other names than it looks for later (kubeedge issue
/// 6270).
async fn tell(client: &mut Client, call: &Call, perhaps: &BTreeSet<Id>, shared: &Shared) -> Result<(), Status> {
    let done = match (perform(client, call, shared).await, call) {
        (Err(status), Call::Device { id, .. } | Call::Model { id, new: false, .. }) if is_unknown(&status) => {
            tracing::info!(id, "the mapper does not know it, and is told of it anew: {}", status.message());
            for call in introduction(call, shared) {
                match perform(client, &call, shared).await {
                    Err(status) if is_away(&status) => return Err(status),
                    Err(status) => tracing::debug!(id, "it is known after all: {}", status.message()),
                    Ok(()) => {}
                }
            }
            perform(client, call, shared).await
        }
        (done, _) => done,
    };
    match call {
        // That framework leaves a device that it knows as it is when it is registered again.
        Call::Device { id, new: true, print } if done.is_ok() && perhaps.contains(id) => {
            perform(client, &Call::Device { id: id.clone(), new: false, print: *print }, shared).await
        }
        _ => done,
    }
}

/// What comes before a change of something that a mapper does not know: its model, and itself.
fn introduction(call: &Call, shared: &Shared) -> Vec<Call> {
    match call {
        Call::Model { id, print, .. } => vec![Call::Model { id: id.clone(), new: true, print: *print }],
        Call::Device { id, new, print } => {
            let model = shared.catalogue.borrow().device(id).and_then(|device| device.model());
            let model = model.map(|model| Call::Model { id: id_of(&model), new: true, print: print.1 });
            let device = (!new).then(|| Call::Device { id: id.clone(), new: true, print: *print });
            model.into_iter().chain(device).collect()
        }
        Call::RemoveDevice(_) | Call::RemoveModel(_) => Vec::new(),
    }
}

/// The mapper does not answer.
fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}

/// The mapper does not know what it is told of. Go's plain errors have no code, and are told by their words.
fn is_unknown(status: &Status) -> bool {
    let said = || status.message().to_ascii_lowercase();
    let words = ["not found", "not exist", "can not find"];
    let in_words = || words.iter().any(|word| said().contains(word));
    status.code() == Code::NotFound || (status.code() == Code::Unknown && in_words())
}

/// Makes one call.
async fn perform(client: &mut Client, call: &Call, shared: &Shared) -> Result<(), Status> {
    match tokio::time::timeout(WITHIN, asked(client, call, shared)).await {
        Ok(done) => done,
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {WITHIN:?}"))),
    }
}

async fn asked(client: &mut Client, call: &Call, shared: &Shared) -> Result<(), Status> {
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
        Err(status) if is_unknown(&status) => Ok(()),
        gone => gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_know_something_says_so_by_code_or_in_words_of_go() {
        for (code, message, expected) in [
            (Code::NotFound, "", true),
            (Code::Unknown, "deviceModel m in ns namespace not found, err: deviceModel ns/m not found", true),
            (Code::Unknown, "update deviceModel m failed, not existed", true),
            (Code::Unknown, "can not find device ns/d from device muxs", true),
            (Code::Unknown, "parse device d protocol failed, err: x", false),
            (Code::InvalidArgument, "the model is not found wanting", false),
            (Code::Unavailable, "not found", false),
        ] {
            assert_eq!(is_unknown(&Status::new(code, message)), expected, "{code:?} {message}");
        }
    }
}
