//! What edgecore calls: `DeviceMapperService`. Only what is different becomes an event.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kubeedge_proto::dmi::{self, device_mapper_service_server::DeviceMapperService};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use super::{Device, DeviceId, Event, StateReport};

/// What a mapper knows. Edgecore's calls change it and never wait; the mapper's author asks for what is different.
#[derive(Clone, Default)]
pub(super) struct Known {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    models: BTreeMap<(String, String), dmi::DeviceModelSpec>,
    devices: BTreeMap<DeviceId, (dmi::DeviceSpec, Option<dmi::DeviceStatus>)>,
    /// As they were told to the mapper's author.
    told: BTreeMap<DeviceId, Device>,
    /// Perhaps different from what was told, each once, in the order of their turn.
    queue: VecDeque<DeviceId>,
    queued: BTreeSet<DeviceId>,
    /// Calls that edgecore made.
    calls: u64,
}

impl State {
    fn look_at(&mut self, id: DeviceId) {
        if self.queued.insert(id.clone()) {
            self.queue.push_back(id);
        }
    }

    /// The next that is different from what was told.
    fn next(&mut self) -> Option<Event> {
        while let Some(id) = self.queue.pop_front() {
            self.queued.remove(&id);
            let Some((spec, status)) = self.devices.get(&id) else {
                match self.told.remove(&id) {
                    Some(_) => return Some(Event::Gone(id)),
                    None => continue,
                }
            };
            let model = (id.namespace.clone(), spec.device_model_reference.clone());
            // It is looked at again when its model comes.
            let Some(model) = self.models.get(&model) else { continue };
            let state_report = StateReport::of(status.clone());
            let device = Device { id: id.clone(), spec: spec.clone(), model: model.clone(), state_report };
            if self.told.get(&id) != Some(&device) {
                self.told.insert(id, device.clone());
                return Some(Event::Device(Box::new(device)));
            }
        }
        None
    }

    fn set_model(&mut self, model: dmi::DeviceModel) {
        let is_of_model = |id: &DeviceId, spec: &dmi::DeviceSpec| {
            id.namespace == model.namespace && spec.device_model_reference == model.name
        };
        let devices = self.devices.iter().filter(|(id, (spec, _))| is_of_model(id, spec));
        let ids: Vec<DeviceId> = devices.map(|(id, _)| id.clone()).collect();
        self.models.insert((model.namespace, model.name), model.spec.unwrap_or_default());
        ids.into_iter().for_each(|id| self.look_at(id));
    }

    fn set_device(&mut self, device: dmi::Device) {
        let id = id_of(&device);
        self.devices.insert(id.clone(), (device.spec.unwrap_or_default(), device.status));
        self.look_at(id);
    }

    fn remove_device(&mut self, id: DeviceId) {
        self.devices.remove(&id);
        self.look_at(id);
    }
}

fn id_of(device: &dmi::Device) -> DeviceId {
    DeviceId { namespace: device.namespace.clone(), name: device.name.clone() }
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    /// What a call of edgecore's changes.
    fn called(&self, change: impl FnOnce(&mut State)) {
        self.change(|state| {
            state.calls += 1;
            change(state);
        });
    }

    /// How many calls edgecore has made.
    pub(super) fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// The next that is different from what was told; waits for it. One at a time may ask.
    pub(super) async fn next(&self) -> Event {
        loop {
            let next = self.lock().next();
            match next {
                Some(event) => return event,
                None => self.changed.notified().await,
            }
        }
    }

    /// These are all there are.
    pub(super) fn all(&self, models: Vec<dmi::DeviceModel>, devices: Vec<dmi::Device>) {
        self.change(|state| {
            let ids: BTreeSet<DeviceId> = devices.iter().map(id_of).collect();
            let gone: Vec<DeviceId> = state.devices.keys().filter(|id| !ids.contains(*id)).cloned().collect();
            gone.into_iter().for_each(|id| state.remove_device(id));
            models.into_iter().for_each(|model| state.set_model(model));
            devices.into_iter().for_each(|device| state.set_device(device));
        });
    }
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
        self.known.called(|state| state.set_device(device));
        Ok(Response::new(answer))
    }

    async fn remove_device(
        &self,
        request: Request<dmi::RemoveDeviceRequest>,
    ) -> Result<Response<dmi::RemoveDeviceResponse>, Status> {
        let dmi::RemoveDeviceRequest { device_name: name, device_namespace: namespace } = request.into_inner();
        self.known.called(|state| state.remove_device(DeviceId { namespace, name }));
        Ok(Response::new(dmi::RemoveDeviceResponse {}))
    }

    async fn update_device(
        &self,
        request: Request<dmi::UpdateDeviceRequest>,
    ) -> Result<Response<dmi::UpdateDeviceResponse>, Status> {
        let device = required(request.into_inner().device, "device")?;
        self.known.called(|state| state.set_device(device));
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
        self.known.called(|state| state.set_model(model));
        Ok(Response::new(answer))
    }

    async fn remove_device_model(
        &self,
        request: Request<dmi::RemoveDeviceModelRequest>,
    ) -> Result<Response<dmi::RemoveDeviceModelResponse>, Status> {
        let dmi::RemoveDeviceModelRequest { model_name, model_namespace } = request.into_inner();
        self.known.called(|state| drop(state.models.remove(&(model_namespace, model_name))));
        Ok(Response::new(dmi::RemoveDeviceModelResponse {}))
    }

    async fn update_device_model(
        &self,
        request: Request<dmi::UpdateDeviceModelRequest>,
    ) -> Result<Response<dmi::UpdateDeviceModelResponse>, Status> {
        let model = required(request.into_inner().model, "model")?;
        self.known.called(|state| state.set_model(model));
        Ok(Response::new(dmi::UpdateDeviceModelResponse {}))
    }

    async fn get_device(
        &self,
        request: Request<dmi::GetDeviceRequest>,
    ) -> Result<Response<dmi::GetDeviceResponse>, Status> {
        let dmi::GetDeviceRequest { device_name: name, device_namespace: namespace } = request.into_inner();
        let id = DeviceId { namespace, name };
        let known = self.known.lock().devices.get(&id).cloned();
        let (spec, status) = known.ok_or_else(|| Status::not_found(format!("device {id} is not this mapper's")))?;
        let device = dmi::Device { name: id.name, namespace: id.namespace, spec: Some(spec), status };
        Ok(Response::new(dmi::GetDeviceResponse { device: Some(device) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> dmi::DeviceModel {
        dmi::DeviceModel { name: "m".into(), namespace: "default".into(), spec: Some(Default::default()) }
    }

    /// A device that has so many properties.
    fn device(name: &str, properties: usize) -> dmi::Device {
        let spec = dmi::DeviceSpec {
            device_model_reference: "m".into(),
            properties: vec![Default::default(); properties],
            ..Default::default()
        };
        dmi::Device { name: name.into(), namespace: "default".into(), spec: Some(spec), status: None }
    }

    fn told(state: &Known) -> Option<String> {
        state.lock().next().map(|event| match event {
            Event::Device(device) => format!("{} {}", device.id.name, device.spec.properties.len()),
            Event::Gone(id) => format!("{} gone", id.name),
        })
    }

    #[tokio::test]
    async fn a_thousand_devices_are_taken_without_anybody_to_hear_of_them_and_told_each_once() {
        let known = Known::default();
        let all: Vec<dmi::Device> = (0..1000).map(|index| device(&format!("d{index:03}"), 1)).collect();
        known.all(vec![model()], all.clone());
        known.all(vec![model()], all);
        for index in 0..1000 {
            let Event::Device(device) = known.next().await else { panic!("it went") };
            assert_eq!(device.id.name, format!("d{index:03}"));
        }
        assert_eq!(told(&known), None);
    }

    #[test]
    fn of_a_device_that_changes_meanwhile_the_newest_is_told_and_others_have_their_turn() {
        let known = Known::default();
        known.change(|state| state.set_device(device("a", 1)));
        assert_eq!(told(&known), None, "its model has not come");
        known.change(|state| state.set_model(model()));
        known.change(|state| state.set_device(device("b", 1)));
        known.change(|state| state.set_device(device("a", 2)));
        assert_eq!((told(&known), told(&known)), (Some("a 2".into()), Some("b 1".into())));
        // Changed and changed back, or come and gone between two questions: nobody hears of it.
        known.change(|state| state.set_device(device("a", 3)));
        known.change(|state| state.set_device(device("a", 2)));
        known.change(|state| state.set_device(device("c", 1)));
        known.change(|state| state.remove_device(DeviceId { namespace: "default".into(), name: "c".into() }));
        assert_eq!(told(&known), None);
        known.all(vec![model()], vec![device("a", 2)]);
        assert_eq!((told(&known), told(&known)), (Some("b gone".into()), None));
    }
}
