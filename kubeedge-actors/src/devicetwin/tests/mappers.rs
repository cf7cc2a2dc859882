//! Edgecore and mappers over the wire, each way, with every call of the interface.

use std::{collections::BTreeSet, sync::Mutex};

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
    /// It takes changes of these models and their devices only, as mappers of KubeEdge's framework do; `None`: of all.
    models: Arc<Mutex<Option<BTreeSet<String>>>>,
    /// It remembers none of the models that are created.
    forgetful: Arc<Mutex<bool>>,
}

impl Scribe {
    fn start(path: std::path::PathBuf) -> (Self, mpsc::Receiver<String>, AbortOnDropHandle<()>) {
        let (calls, called) = mpsc::channel(64);
        let (refuses, models, forgetful) = Default::default();
        let scribe = Self { calls, refuses, models, forgetful };
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
        let spec = device.spec.as_ref().unwrap();
        let mut values = spec.properties.iter().map(|property| property.desired.as_ref().unwrap().value.as_str());
        let desired = values.find(|value| !value.is_empty()).unwrap_or_default();
        self.note(call, &device.namespace, &device.name, desired).await?;
        self.has(&format!("{}/{}", device.namespace, spec.device_model_reference))?;
        Ok(device)
    }

    /// In the words of KubeEdge's framework.
    fn has(&self, model: &str) -> Result<(), Status> {
        match &*self.models.lock().unwrap() {
            Some(models) if !models.contains(model) => Err(Status::unknown(format!("deviceModel {model} not found"))),
            _ => Ok(()),
        }
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
        if let (Some(models), false) = (&mut *self.models.lock().unwrap(), *self.forgetful.lock().unwrap()) {
            models.insert(format!("{}/{}", model.namespace, model.name));
        }
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
        let model = self.model("UpdateDeviceModel", request.into_inner().model).await?;
        self.has(&format!("{}/{}", model.namespace, model.name))?;
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

/// The registration of a scribe at this address.
fn scribe_at(address: &Path, with_data: bool) -> MapperRegisterRequest {
    let mapper = MapperInfo {
        name: "scribe".into(),
        protocol: "p".into(),
        address: address.to_str().unwrap().as_bytes().to_vec().into(),
        ..MapperInfo::default()
    };
    MapperRegisterRequest { with_data, mapper: Some(mapper) }
}

async fn are(called: &mut mpsc::Receiver<String>, expected: &[&str]) {
    for expected in expected {
        assert_eq!(within(called.recv()).await.unwrap(), *expected);
    }
}

#[actix_rt::test]
async fn a_mapper_that_does_not_know_what_changes_is_told_of_it_anew_and_once_a_change() {
    let site = Site::start(Rate::default());
    let address = site.folder.path().join("scribe.sock");
    let (scribe, mut called, _serving) = Scribe::start(address.clone());
    *scribe.models.lock().unwrap() = Some(BTreeSet::new());
    let mut client = site.client().await;
    let answer = client.mapper_register(scribe_at(&address, true)).await.unwrap().into_inner();
    assert_eq!((answer.model_list.len(), answer.device_list.len()), (1, 1));
    // It was given both, and files them under names that it does not look for.
    let [_, changed] = objects("22");
    site.change(&changed, false).await;
    let anew = ["UpdateDevice ns/d 22", "CreateDeviceModel ns/m", "RegisterDevice ns/d 22", "UpdateDevice ns/d 22"];
    are(&mut called, &anew).await;
    let [model, _] = with_unit("Celsius");
    site.change(&model, false).await;
    are(&mut called, &["UpdateDeviceModel ns/m Celsius", "UpdateDevice ns/d 22"]).await;
    *scribe.models.lock().unwrap() = Some(BTreeSet::new());
    let [model, _] = with_unit("Kelvin");
    site.change(&model, false).await;
    let update = "UpdateDeviceModel ns/m Kelvin";
    are(&mut called, &[update, "CreateDeviceModel ns/m Kelvin", update, "UpdateDevice ns/d 22"]).await;
    // One that learns nothing hears of each change twice, and then of the next.
    *scribe.models.lock().unwrap() = Some(BTreeSet::new());
    *scribe.forgetful.lock().unwrap() = true;
    for desired in ["23", "24"] {
        let [_, changed] = objects(desired);
        site.change(&changed, false).await;
        let (update, register) = (format!("UpdateDevice ns/d {desired}"), format!("RegisterDevice ns/d {desired}"));
        are(&mut called, &[&update, "CreateDeviceModel ns/m Kelvin", &register, &update]).await;
    }
    drop(client);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_mapper_is_called_at_the_address_it_named_last_also_after_a_restart_of_edgecore() {
    let site = Site::start(Rate::default());
    let [before, now] = ["before.sock", "now.sock"].map(|name| site.folder.path().join(name));
    let (_before, mut called_before, _serving_before) = Scribe::start(before.clone());
    let (_now, mut called, _serving) = Scribe::start(now.clone());
    let mut client = site.client().await;
    client.mapper_register(scribe_at(&before, false)).await.unwrap();
    are(&mut called_before, &["CreateDeviceModel ns/m", "RegisterDevice ns/d 21"]).await;
    client.mapper_register(scribe_at(&now, true)).await.unwrap();
    let [_, changed] = objects("22");
    site.change(&changed, false).await;
    are(&mut called, &["UpdateDevice ns/d 22"]).await;
    drop(client);
    let (folder, store) = (site.folder.clone(), site.store.clone());
    site.test.assert_quiet().await;
    store.close().await.unwrap();

    // It may know the device as it was, and KubeEdge's framework leaves what it knows as it is when it is registered.
    let site = Site::again(folder, Rate::default());
    are(&mut called, &["CreateDeviceModel ns/m", "RegisterDevice ns/d 21", "UpdateDevice ns/d 21"]).await;
    assert!(called_before.try_recv().is_err(), "it is called where it was before");
    site.test.assert_quiet().await;
}

/// Another process on the socket of a test: what it is told is what it ends with.
#[actix_rt::test]
#[ignore = "the child of a_mapper_that_calls_too_often_takes_nothing_from_another"]
async fn the_child_that_calls_once() {
    let socket = std::env::var("DMI_SOCKET").expect("run by its parent");
    let url = format!("unix://{socket}");
    let mut client = DeviceManagerServiceClient::new(Endpoint::from_shared(url).unwrap().connect().await.unwrap());
    within(client.report_device_status(status(vec![("t", Some("7"), None)]))).await.unwrap();
}

#[actix_rt::test]
async fn a_mapper_that_calls_too_often_takes_nothing_from_another() {
    let site = Site::start(Rate { per_second: 1, burst: 2 });
    let mut client = site.client().await;
    let mut refused = None;
    // A slow machine may have earned another call by then.
    for _ in 0..100 {
        let answer = within(client.report_device_status(status(vec![("t", Some("1"), None)]))).await;
        refused = answer.err().map(|status| status.code());
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused, Some(Code::ResourceExhausted));
    // Callers are told apart by their processes.
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["devicetwin::tests::mappers::the_child_that_calls_once", "--exact", "--ignored", "--nocapture"])
        .env("DMI_SOCKET", site.socket())
        .kill_on_drop(true)
        .output();
    let child = within(child).await.unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&child.stderr));
    site.until_report(|report| reported(report, "t").as_deref() == Some("7")).await;
    drop(client);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn edgecore_calls_a_mapper_with_the_call_that_fits_and_with_nothing_else() {
    let site = Site::start(Rate::default());
    let address = site.folder.path().join("scribe.sock");
    let (scribe, mut called, _serving) = Scribe::start(address.clone());
    let mut client = site.client().await;
    client.mapper_register(scribe_at(&address, false)).await.unwrap();
    let mut next = async |expected: &[&str]| are(&mut called, expected).await;
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

    // A device of a model that has not come waits for it, and for one that was removed for the next.
    let create = |unit: &str| {
        let model = model(unit).map(|model| dmi::DeviceModel { name: "own".into(), ..model });
        dmi::CreateDeviceModelRequest { model }
    };
    let mut of_own = dmi::Device { name: "f".into(), ..got };
    of_own.spec.as_mut().unwrap().device_model_reference = "own".into();
    edgecore.register_device(dmi::RegisterDeviceRequest { device: Some(of_own.clone()) }).await.unwrap();
    let made = edgecore.create_device_model(create("Celsius")).await.unwrap().into_inner();
    assert_eq!((made.device_model_namespace.as_str(), made.device_model_name.as_str()), ("ns", "own"));
    let Some(Event::Device(third)) = within(mapper.next()).await else { panic!("no third device") };
    assert_eq!((third.id.name.as_str(), third.kind_of("t").unwrap().unit.as_str()), ("f", "Celsius"));
    let remove = dmi::RemoveDeviceModelRequest { model_name: "own".into(), model_namespace: "ns".into() };
    edgecore.remove_device_model(remove).await.unwrap();
    of_own.spec.as_mut().unwrap().properties[1].desired.as_mut().unwrap().value = "78".into();
    edgecore.update_device(dmi::UpdateDeviceRequest { device: Some(of_own) }).await.unwrap();
    edgecore.create_device_model(create("Kelvin")).await.unwrap();
    let Some(Event::Device(third)) = within(mapper.next()).await else { panic!("it went") };
    assert_eq!((third.desired("set"), third.kind_of("t").unwrap().unit.as_str()), (Some("78"), "Kelvin"));

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
async fn what_cannot_be_is_left_out_of_a_report_and_one_of_which_nothing_is_left_is_refused_with_its_reason() {
    let site = Site::start(Rate::default());
    let mut client = site.client().await;
    // Nothing of the other property is lost, nor the reading beside a desired value that cannot be.
    within(client.report_device_status(status(vec![("set", Some("5"), None), ("t", Some("warm"), None)])))
        .await
        .unwrap();
    let report = site.until_report(|report| reported(report, "set").as_deref() == Some("5")).await;
    assert_eq!(reported(&report, "t"), None);
    let as_mappers_in_go = vec![("t", Some("1"), Some("2")), ("set", Some("6"), Some("2.5")), ("own", None, Some(""))];
    within(client.report_device_status(status(as_mappers_in_go))).await.unwrap();
    let report = site.until_report(|report| reported(report, "set").as_deref() == Some("6")).await;
    assert_eq!(reported(&report, "t").as_deref(), Some("1"));
    assert!(report.properties.iter().all(|property| property.observed_desired.is_none()), "{report:?}");
    within(client.report_device_status(status(vec![("t", None, Some("2"))]))).await.unwrap();
    for (wrong, property, why) in [
        (vec![("t", Some("warm"), None)], "t", "is not a number (FLOAT)"),
        (vec![("set", Some("5.5"), Some("5")), ("", Some("1"), None)], "set", "is not a whole number"),
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
    assert_eq!((reported(&report, "t").as_deref(), reported(&report, "set").as_deref()), (Some("3"), Some("6")));
    let figures = site.test.system().figures();
    let mut left_out = figures.iter().flat_map(|(_, figures)| figures).filter(|(figure, _)| *figure == MISTAKES);
    assert_eq!(left_out.next().map(|(_, count)| *count), Some(7));
    drop(client);
    site.test.assert_quiet().await;
}
