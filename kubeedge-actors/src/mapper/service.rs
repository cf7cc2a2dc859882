//! What edgecore calls: `DeviceMapperService`. Only what is different becomes an event.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kubeedge_proto::dmi::{self, device_mapper_service_server::DeviceMapperService};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::{Device, DeviceId, Event};

/// What a mapper knows.
#[derive(Clone)]
pub(super) struct Known {
    state: Arc<Mutex<State>>,
    events: mpsc::Sender<Event>,
}

#[derive(Default)]
struct State {
    models: BTreeMap<(String, String), dmi::DeviceModelSpec>,
    devices: BTreeMap<DeviceId, dmi::DeviceSpec>,
    /// As they were told to the mapper's author.
    told: BTreeMap<DeviceId, Device>,
}

impl State {
    /// What is different from what was told.
    fn news(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let gone: Vec<DeviceId> = self.told.keys().filter(|id| !self.devices.contains_key(*id)).cloned().collect();
        for id in gone {
            self.told.remove(&id);
            events.push(Event::Gone(id));
        }
        for (id, spec) in &self.devices {
            let model = (id.namespace.clone(), spec.device_model_reference.clone());
            let Some(model) = self.models.get(&model) else { continue };
            let device = Device { id: id.clone(), spec: spec.clone(), model: model.clone() };
            if self.told.get(id) != Some(&device) {
                self.told.insert(id.clone(), device.clone());
                events.push(Event::Device(Box::new(device)));
            }
        }
        events
    }
}

fn id_of(device: &dmi::Device) -> DeviceId {
    DeviceId { namespace: device.namespace.clone(), name: device.name.clone() }
}

impl Known {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Self { state: Arc::default(), events }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, and tells what is different. Waits until it is taken.
    async fn change(&self, change: impl FnOnce(&mut State)) {
        let events = {
            let mut state = self.lock();
            change(&mut state);
            state.news()
        };
        for event in events {
            // The mapper has ended: nobody needs it.
            let _ = self.events.send(event).await;
        }
    }

    /// These are all there are.
    pub(super) async fn all(&self, models: Vec<dmi::DeviceModel>, devices: Vec<dmi::Device>) {
        self.change(|state| {
            let ids: BTreeSet<DeviceId> = devices.iter().map(id_of).collect();
            state.devices.retain(|id, _| ids.contains(id));
            models.into_iter().for_each(|model| set_model(state, model));
            devices.into_iter().for_each(|device| set_device(state, device));
        })
        .await;
    }
}

fn set_model(state: &mut State, model: dmi::DeviceModel) {
    state.models.insert((model.namespace, model.name), model.spec.unwrap_or_default());
}

fn set_device(state: &mut State, device: dmi::Device) {
    state.devices.insert(id_of(&device), device.spec.unwrap_or_default());
}

/// The service.
#[derive(Clone)]
pub(super) struct Told {
    pub(super) known: Known,
}

fn required<T>(what: Option<T>, name: &str) -> Result<T, Status> {
    what.ok_or_else(|| Status::invalid_argument(format!("the request has no {name}")))
}

#[tonic::async_trait]
impl DeviceMapperService for Told {
    async fn register_device(
        &self,
        request: Request<dmi::RegisterDeviceRequest>,
    ) -> Result<Response<dmi::RegisterDeviceResponse>, Status> {
        let device = required(request.into_inner().device, "device")?;
        let answer = dmi::RegisterDeviceResponse {
            device_name: device.name.clone(),
            device_namespace: device.namespace.clone(),
        };
        self.known.change(|state| set_device(state, device)).await;
        Ok(Response::new(answer))
    }

    async fn remove_device(
        &self,
        request: Request<dmi::RemoveDeviceRequest>,
    ) -> Result<Response<dmi::RemoveDeviceResponse>, Status> {
        let dmi::RemoveDeviceRequest { device_name: name, device_namespace: namespace } = request.into_inner();
        self.known.change(|state| drop(state.devices.remove(&DeviceId { namespace, name }))).await;
        Ok(Response::new(dmi::RemoveDeviceResponse {}))
    }

    async fn update_device(
        &self,
        request: Request<dmi::UpdateDeviceRequest>,
    ) -> Result<Response<dmi::UpdateDeviceResponse>, Status> {
        let device = required(request.into_inner().device, "device")?;
        self.known.change(|state| set_device(state, device)).await;
        Ok(Response::new(dmi::UpdateDeviceResponse {}))
    }

    async fn create_device_model(
        &self,
        request: Request<dmi::CreateDeviceModelRequest>,
    ) -> Result<Response<dmi::CreateDeviceModelResponse>, Status> {
        let model = required(request.into_inner().model, "model")?;
        let answer = dmi::CreateDeviceModelResponse {
            device_model_name: model.name.clone(),
            device_model_namespace: model.namespace.clone(),
        };
        self.known.change(|state| set_model(state, model)).await;
        Ok(Response::new(answer))
    }

    async fn remove_device_model(
        &self,
        request: Request<dmi::RemoveDeviceModelRequest>,
    ) -> Result<Response<dmi::RemoveDeviceModelResponse>, Status> {
        let dmi::RemoveDeviceModelRequest { model_name, model_namespace } = request.into_inner();
        self.known.change(|state| drop(state.models.remove(&(model_namespace, model_name)))).await;
        Ok(Response::new(dmi::RemoveDeviceModelResponse {}))
    }

    async fn update_device_model(
        &self,
        request: Request<dmi::UpdateDeviceModelRequest>,
    ) -> Result<Response<dmi::UpdateDeviceModelResponse>, Status> {
        let model = required(request.into_inner().model, "model")?;
        self.known.change(|state| set_model(state, model)).await;
        Ok(Response::new(dmi::UpdateDeviceModelResponse {}))
    }

    async fn get_device(
        &self,
        request: Request<dmi::GetDeviceRequest>,
    ) -> Result<Response<dmi::GetDeviceResponse>, Status> {
        let dmi::GetDeviceRequest { device_name: name, device_namespace: namespace } = request.into_inner();
        let id = DeviceId { namespace, name };
        let spec = self.known.lock().devices.get(&id).cloned();
        let spec = spec.ok_or_else(|| Status::not_found(format!("device {id} is not this mapper's")))?;
        let device = dmi::Device { name: id.name, namespace: id.namespace, spec: Some(spec), status: None };
        Ok(Response::new(dmi::GetDeviceResponse { device: Some(device) }))
    }
}
