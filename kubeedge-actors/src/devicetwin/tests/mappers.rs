//! Edgecore and mappers over the wire, each way, with every call of the interface.

use std::sync::Mutex;

use kubeedge_proto::dmi::{
    device_mapper_service_client::DeviceMapperServiceClient,
    device_mapper_service_server::{DeviceMapperService, DeviceMapperServiceServer},
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, transport::Channel};

use super::*;
use crate::dmi::socket;

/// A mapper that writes down how it is called.
#[derive(Clone)]
struct Scribe {
    calls: mpsc::Sender<String>,
    /// It refuses the next call that begins so.
    refuses: Arc<Mutex<Option<&'static str>>>,
}

impl Scribe {
    fn start(path: std::path::PathBuf) -> (Self, mpsc::Receiver<String>, AbortOnDropHandle<()>) {
        let (calls, called) = mpsc::channel(64);
        let scribe = Self { calls, refuses: Arc::default() };
        let service = scribe.clone();
        let serve = socket::serve(path, "edgecores", move |_| DeviceMapperServiceServer::new(service.clone()));
        (scribe, called, AbortOnDropHandle::new(tokio::task::spawn_local(serve)))
    }

    async fn note(&self, call: &str, namespace: &str, name: &str, what: &str) -> Result<(), Status> {
        let call = format!("{call} {namespace}/{name} {what}").trim_end().to_owned();
        let is_refused = self.refuses.lock().unwrap().take_if(|begin| call.starts_with(*begin)).is_some();
        self.calls.send(call).await.unwrap();
        if is_refused { Err(Status::failed_precondition("not now")) } else { Ok(()) }
    }

    async fn device(&self, call: &str, device: Option<dmi::Device>) -> Result<dmi::Device, Status> {
        let device = device.unwrap();
        let desired = device.spec.as_ref().unwrap().properties.iter().find_map(|property| property.desired.as_ref());
        self.note(call, &device.namespace, &device.name, desired.map_or("", |desired| &desired.value)).await?;
        Ok(device)
    }

    async fn model(&self, call: &str, model: Option<dmi::DeviceModel>) -> Result<dmi::DeviceModel, Status> {
        let model = model.unwrap();
        let unit = model.spec.as_ref().unwrap().properties[0].unit.clone();
        self.note(call, &model.namespace, &model.name, &unit).await?;
        Ok(model)
    }
}

#[tonic::async_trait]
impl DeviceMapperService for Scribe {
    async fn register_device(
        &self,
        request: Request<dmi::RegisterDeviceRequest>,
    ) -> Result<Response<dmi::RegisterDeviceResponse>, Status> {
        let device = self.device("RegisterDevice", request.into_inner().device).await?;
        let answer = dmi::RegisterDeviceResponse { device_name: device.name, device_namespace: device.namespace };
        Ok(Response::new(answer))
    }

    async fn remove_device(
        &self,
        request: Request<dmi::RemoveDeviceRequest>,
    ) -> Result<Response<dmi::RemoveDeviceResponse>, Status> {
        let dmi::RemoveDeviceRequest { device_name, device_namespace } = request.into_inner();
        self.note("RemoveDevice", &device_namespace, &device_name, "").await?;
        Ok(Response::new(dmi::RemoveDeviceResponse {}))
    }

    async fn update_device(
        &self,
        request: Request<dmi::UpdateDeviceRequest>,
    ) -> Result<Response<dmi::UpdateDeviceResponse>, Status> {
        self.device("UpdateDevice", request.into_inner().device).await?;
        Ok(Response::new(dmi::UpdateDeviceResponse {}))
    }

    async fn create_device_model(
        &self,
        request: Request<dmi::CreateDeviceModelRequest>,
    ) -> Result<Response<dmi::CreateDeviceModelResponse>, Status> {
        let model = self.model("CreateDeviceModel", request.into_inner().model).await?;
        let answer =
            dmi::CreateDeviceModelResponse { device_model_name: model.name, device_model_namespace: model.namespace };
        Ok(Response::new(answer))
    }

    async fn remove_device_model(
        &self,
        request: Request<dmi::RemoveDeviceModelRequest>,
    ) -> Result<Response<dmi::RemoveDeviceModelResponse>, Status> {
        let dmi::RemoveDeviceModelRequest { model_name, model_namespace } = request.into_inner();
        self.note("RemoveDeviceModel", &model_namespace, &model_name, "").await?;
        Ok(Response::new(dmi::RemoveDeviceModelResponse {}))
    }

    async fn update_device_model(
        &self,
        request: Request<dmi::UpdateDeviceModelRequest>,
    ) -> Result<Response<dmi::UpdateDeviceModelResponse>, Status> {
        self.model("UpdateDeviceModel", request.into_inner().model).await?;
        Ok(Response::new(dmi::UpdateDeviceModelResponse {}))
    }

    async fn get_device(&self, _: Request<dmi::GetDeviceRequest>) -> Result<Response<dmi::GetDeviceResponse>, Status> {
        Err(Status::unimplemented("edgecore knows the devices better"))
    }
}

/// The objects, the model's first property in this unit.
fn with_unit(unit: &str) -> [KubeObject; 2] {
    let [mut model, device] = objects("22");
    let mut json: Value = serde_json::from_slice(&model.json).unwrap();
    json["spec"]["properties"][0]["unit"] = unit.into();
    model.json = json.to_string().into();
    [model, device]
}

#[actix_rt::test]
async fn edgecore_calls_a_mapper_with_the_call_that_fits_and_with_nothing_else() {
    let site = Site::start(Rate::default());
    let address = site.folder.path().join("scribe.sock");
    let (scribe, mut called, _serving) = Scribe::start(address.clone());
    let mapper = MapperInfo {
        name: "scribe".into(),
        protocol: "p".into(),
        address: address.to_str().unwrap().as_bytes().to_vec().into(),
        ..MapperInfo::default()
    };
    let mut client = site.client().await;
    client.mapper_register(MapperRegisterRequest { with_data: false, mapper: Some(mapper) }).await.unwrap();
    let mut next = async |expected: &[&str]| {
        for expected in expected {
            assert_eq!(within(called.recv()).await.unwrap(), *expected);
        }
    };
    next(&["CreateDeviceModel ns/m", "RegisterDevice ns/d 21"]).await;
    let [_, changed] = objects("22");
    site.change(&changed, false).await;
    next(&["UpdateDevice ns/d 22"]).await;
    // The same again is no news: the next call is about the model.
    site.change(&changed, false).await;
    let [model, device] = with_unit("Celsius");
    site.change(&model, false).await;
    next(&["UpdateDeviceModel ns/m Celsius", "UpdateDevice ns/d 22"]).await;
    // What it refuses is told again when it is another thing.
    *scribe.refuses.lock().unwrap() = Some("UpdateDevice ");
    let [_, changed] = objects("23");
    site.change(&changed, false).await;
    next(&["UpdateDevice ns/d 23"]).await;
    let [_, changed] = objects("24");
    site.change(&changed, false).await;
    next(&["UpdateDevice ns/d 24"]).await;
    site.change(&device, true).await;
    next(&["RemoveDevice ns/d", "RemoveDeviceModel ns/m"]).await;
    site.change(&device, false).await;
    next(&["CreateDeviceModel ns/m Celsius", "RegisterDevice ns/d 22"]).await;
    drop(client);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_mapper_in_rust_answers_every_call() {
    let site = Site::start(Rate::default());
    let mut mapper = site.mapper().await;
    let Some(Event::Device(device)) = within(mapper.next()).await else { panic!("no device") };
    let path = site.folder.path().join("mapper.sock");
    let url = format!("unix://{}", path.display());
    let mut edgecore: DeviceMapperServiceClient<Channel> =
        DeviceMapperServiceClient::new(Endpoint::from_shared(url).unwrap().connect().await.unwrap());
    let get = |name: &str| dmi::GetDeviceRequest { device_name: name.into(), device_namespace: "ns".into() };
    let got = edgecore.get_device(get("d")).await.unwrap().into_inner().device.unwrap();
    assert_eq!((got.namespace.as_str(), got.name.as_str(), got.spec.as_ref()), ("ns", "d", Some(&device.spec)));
    let missing = edgecore.get_device(get("e")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(missing.message().contains("ns/e"), "{missing}");

    let model = |unit: &str| {
        let property = dmi::ModelProperty { name: "t".into(), unit: unit.into(), ..Default::default() };
        let spec = dmi::DeviceModelSpec { properties: vec![property], ..Default::default() };
        Some(dmi::DeviceModel { name: "m".into(), namespace: "ns".into(), spec: Some(spec) })
    };
    let update = dmi::UpdateDeviceModelRequest { model: model("Kelvin") };
    edgecore.update_device_model(update).await.unwrap();
    let Some(Event::Device(changed)) = within(mapper.next()).await else { panic!("the model is no news") };
    assert_eq!((changed.kind_of("t").unwrap().unit.as_str(), &changed.spec), ("Kelvin", &device.spec));

    let other = dmi::Device { name: "e".into(), ..got.clone() };
    edgecore.register_device(dmi::RegisterDeviceRequest { device: Some(other.clone()) }).await.unwrap();
    let Some(Event::Device(second)) = within(mapper.next()).await else { panic!("no second device") };
    assert_eq!((second.id.name.as_str(), second.kind_of("t").unwrap().unit.as_str()), ("e", "Kelvin"));
    let mut desired = other;
    desired.spec.as_mut().unwrap().properties[1].desired.as_mut().unwrap().value = "77".into();
    edgecore.update_device(dmi::UpdateDeviceRequest { device: Some(desired) }).await.unwrap();
    let Some(Event::Device(second)) = within(mapper.next()).await else { panic!("it went") };
    assert_eq!(second.desired("set"), Some("77"));
    let remove = dmi::RemoveDeviceRequest { device_name: "e".into(), device_namespace: "ns".into() };
    edgecore.remove_device(remove).await.unwrap();
    assert_eq!(within(mapper.next()).await, Some(Event::Gone(second.id)));

    for answer in [
        edgecore.register_device(dmi::RegisterDeviceRequest::default()).await.map(drop),
        edgecore.update_device(dmi::UpdateDeviceRequest::default()).await.map(drop),
        edgecore.create_device_model(dmi::CreateDeviceModelRequest::default()).await.map(drop),
        edgecore.update_device_model(dmi::UpdateDeviceModelRequest::default()).await.map(drop),
    ] {
        assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
    }
    drop((mapper, edgecore));
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_mapper_that_was_away_hears_of_what_was_desired_meanwhile() {
    let site = Site::start(Rate::default());
    let mut mapper = site.mapper().await;
    let Some(Event::Device(device)) = within(mapper.next()).await else { panic!("no device") };
    assert_eq!(device.desired("set"), Some("21"));
    drop(mapper);
    let [_, changed] = objects("25");
    site.change(&changed, false).await;
    let mut mapper = site.mapper().await;
    let Some(Event::Device(device)) = within(mapper.next()).await else { panic!("no device") };
    assert_eq!(device.desired("set"), Some("25"));
    drop(mapper);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_reading_that_cannot_be_is_refused_with_its_device_and_property_and_nothing_of_it_is_kept() {
    let site = Site::start(Rate::default());
    let mut client = site.client().await;
    within(client.report_device_status(status(vec![("t", Some("1"), None)]))).await.unwrap();
    site.until_report(|report| reported(report, "t").as_deref() == Some("1")).await;
    for (wrong, property, why) in [
        (vec![("set", Some("5"), None), ("t", Some("warm"), None)], "t", "is not a number (FLOAT)"),
        (vec![("t", Some("2"), None), ("set", Some("5.5"), None)], "set", "is not a whole number"),
        (vec![("t", Some("2"), Some("2"))], "t", "ReadOnly"),
    ] {
        let refused = within(client.report_device_status(status(wrong))).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let begins = format!("device ns/d, property {property:?}: ");
        assert!(refused.message().starts_with(&begins) && refused.message().contains(why), "{refused}");
    }
    let state =
        ReportDeviceStatesRequest { device_name: "d".into(), device_namespace: "ns".into(), state: "sleeping".into() };
    let refused = within(client.report_device_states(state)).await.unwrap_err();
    assert!(refused.message().starts_with("device ns/d: "), "{refused}");
    within(client.report_device_status(status(vec![("t", Some("3"), None)]))).await.unwrap();
    let report = site.report().await;
    assert_eq!((reported(&report, "t").as_deref(), reported(&report, "set")), (Some("3"), None));
    drop(client);
    site.test.assert_quiet().await;
}
