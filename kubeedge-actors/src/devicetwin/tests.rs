//! DeviceTwin on a real socket and a real store, its neighbours recorded.
#![cfg(feature = "mapper")]

use std::{path::Path, sync::Arc, time::Duration};

use kubeedge_proto::{
    dmi::{
        self, DeviceStatus, MapperInfo, MapperRegisterRequest, ReportDeviceStatesRequest, ReportDeviceStatusRequest,
        Twin, TwinProperty, device_manager_service_client::DeviceManagerServiceClient,
    },
    resource,
    v1::{DeviceReport, ObjectKey, ObjectList, ReportStatus, Settled, report_status::Report},
};
use loona_hpack::{Decoder, Encoder};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tonic::{Code, transport::Endpoint};

use super::*;
use crate::{
    mapper::{Event, Mapper, MapperConfig, Reading},
    store::Options,
    system::testing::{Recorder, TestSystem},
};

mod mappers;
mod reflection;
mod reports;

const SOON: Duration = Duration::from_secs(20);

/// The objects that MetaManager has.
fn objects(desired: &str) -> [KubeObject; 2] {
    let object = |type_: ResourceType, name: &str, spec: Value| KubeObject {
        r#type: Some(type_),
        key: Some(ObjectKey::new("ns", name)),
        uid: format!("u-{name}"),
        json: json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec}).to_string().into(),
        ..KubeObject::default()
    };
    let model = json!({"properties": [
        {"name": "t", "type": "FLOAT", "accessMode": "ReadOnly"}, {"name": "set", "type": "INT", "accessMode": "ReadWrite"}]});
    let device = json!({"deviceModelRef": {"name": "m"}, "nodeName": "n", "protocol": {"protocolName": "p"},
        "properties": [{"name": "t"}, {"name": "set", "desired": {"value": desired}}, {"name": "own", "reportToCloud": false}]});
    [object(resource::device_models(), "m", model), object(resource::devices(), "d", device)]
}

struct Site {
    test: TestSystem,
    reports: Recorder<ReportStatus>,
    published: Recorder<PublishMqtt>,
    store: Store,
    folder: Arc<tempfile::TempDir>,
}

impl Site {
    fn start(rate: Rate) -> Self {
        Self::again(Arc::new(tempfile::tempdir().unwrap()), rate)
    }

    fn again(folder: Arc<tempfile::TempDir>, rate: Rate) -> Self {
        Self::with(folder, rate, Recorder::answering(|_| Settled::applied()))
    }

    /// With an EventBus of the test's.
    fn with(folder: Arc<tempfile::TempDir>, rate: Rate, published: Recorder<PublishMqtt>) -> Self {
        let store = Store::open(&folder.path().join("store"), Options::default()).unwrap().store;
        let config = DeviceTwinConfig {
            node: "n".parse().unwrap(),
            store: store.clone(),
            socket: Some(folder.path().join("dmi.sock")),
            rate,
        };
        let has = Recorder::<ReadObjects>::answering(|asked| {
            let objects = objects("21").into_iter().filter(|object| object.r#type == asked.r#type).collect();
            ObjectList { objects, complete: true }
        });
        let reports = Recorder::<ReportStatus>::answering(|_| Settled::applied());
        let test = TestSystem::builder()
            .component(move |ports: &Ports| DeviceTwin::new(config.clone(), ports))
            .records(&has)
            .records(&reports)
            .records(&published)
            .announces::<ObjectsChanged>()
            .announces::<ObjectsReloaded>()
            .asks::<TwinMessage>()
            .asks::<ReportDevice>()
            .start();
        Self { test, reports, published, store, folder }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("dmi.sock")
    }

    async fn change(&self, object: &KubeObject, gone: bool) {
        let change = ObjectsChanged {
            r#type: object.r#type.clone(),
            key: object.key.clone(),
            uid: object.uid.clone(),
            object: (!gone).then(|| object.clone()),
        };
        self.test.announce(change).await;
    }

    /// The next report, whatever it says.
    async fn report(&self) -> DeviceReport {
        match within(self.reports.next()).await.report {
            Some(Report::Device(report)) => report,
            other => panic!("{other:?}"),
        }
    }

    /// Reports until one is as wanted.
    async fn until_report(&self, is: impl Fn(&DeviceReport) -> bool) -> DeviceReport {
        loop {
            let report = self.report().await;
            if is(&report) {
                return report;
            }
        }
    }

    async fn until_published(&self, topic: &str) -> Value {
        loop {
            let next = within(self.published.next()).await;
            if next.topic == topic {
                return serde_json::from_slice(&next.payload).unwrap();
            }
        }
    }

    async fn client(&self) -> DeviceManagerServiceClient<tonic::transport::Channel> {
        until_there(&self.socket()).await;
        let url = format!("unix://{}", self.socket().display());
        DeviceManagerServiceClient::new(Endpoint::from_shared(url).unwrap().connect().await.unwrap())
    }

    async fn mapper(&self) -> Mapper {
        let config = MapperConfig {
            edgecore: self.socket(),
            ..MapperConfig::new("mapper", "p", self.folder.path().join("mapper.sock"))
        };
        within(Mapper::start(config)).await.unwrap()
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work).await.expect("in time")
}

async fn until_there(path: &Path) {
    within(async {
        while UnixStream::connect(path).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn reported(report: &DeviceReport, name: &str) -> Option<String> {
    let property = report.properties.iter().find(|property| property.name == name)?;
    Some(property.reported.as_ref()?.value.clone())
}

fn status(twins: Vec<(&str, Option<&str>, Option<&str>)>) -> ReportDeviceStatusRequest {
    let value =
        |value: Option<&str>| value.map(|value| TwinProperty { value: value.into(), ..TwinProperty::default() });
    let twins = twins.into_iter().map(|(name, reported, observed)| Twin {
        property_name: name.into(),
        reported: value(reported),
        observed_desired: value(observed),
    });
    ReportDeviceStatusRequest {
        device_name: "d".into(),
        device_namespace: "ns".into(),
        reported_device: Some(DeviceStatus { twins: twins.collect(), ..DeviceStatus::default() }),
    }
}

#[actix_rt::test]
async fn a_mapper_is_told_devices_and_changes_and_its_readings_are_reported() {
    let site = Site::start(Rate::default());
    let mut mapper = site.mapper().await;
    let Some(Event::Device(device)) = within(mapper.next()).await else { panic!("no device") };
    assert_eq!((device.desired("set"), device.kind_of("t").unwrap().r#type.as_str()), (Some("21"), "FLOAT"));
    mapper.report(&device.id, [Reading::new("t", 19.5), Reading::new("own", "x")]).await.unwrap();
    let report = site.until_report(|report| reported(report, "t").is_some()).await;
    assert_eq!((report.uid.as_str(), reported(&report, "t").as_deref()), ("u-d", Some("19.5")));
    assert_eq!(reported(&report, "own"), None, "it stays at the edge");

    let [_, changed] = objects("22");
    site.change(&changed, false).await;
    let Some(Event::Device(device)) = within(mapper.next()).await else { panic!("no change") };
    assert_eq!(device.desired("set"), Some("22"));
    let delta = site.until_published("$hw/events/device/ns/d/twin/update/delta").await;
    assert_eq!(delta["delta"]["set"], "21", "what the first start expected");
    let delta = site.until_published("$hw/events/device/ns/d/twin/update/delta").await;
    assert!(delta["delta"]["set"].is_string());
    mapper.report(&device.id, [Reading::new("set", 22).observing(22)]).await.unwrap();
    let report = site.until_report(|report| reported(report, "set").as_deref() == Some("22")).await;
    let set = report.properties.iter().find(|property| property.name == "set").unwrap();
    assert_eq!(set.observed_desired.as_ref().unwrap().value, "22");
    assert_eq!(set.reported.as_ref().unwrap().metadata["type"], "int");

    site.change(&changed, true).await;
    let Some(Event::Gone(id)) = within(mapper.next()).await else { panic!("it stays") };
    assert_eq!(id, device.id);
    let refused = mapper.report(&id, [Reading::new("t", 1)]).await.unwrap_err();
    assert!(refused.to_string().contains("NotFound"), "{refused}");
    drop(mapper);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn what_the_cloud_desires_stands_whatever_a_mapper_has_taken_over_so_far() {
    let site = Site::start(Rate::default());
    let mut client = site.client().await;
    within(client.report_device_status(status(vec![("set", Some("20"), Some("20")), ("t", None, None)])))
        .await
        .unwrap();
    let get = TwinMessage { topic: "$hw/events/device/ns/d/twin/get".into(), payload: "{}".into(), oversize: 0 };
    site.test.tell(get).await;
    let twin = site.until_published("$hw/events/device/ns/d/twin/get/result").await["twin"].clone();
    assert_eq!((&twin["set"]["expected"]["value"], &twin["set"]["actual"]["value"]), (&json!("21"), &json!("20")));
    drop(client);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn every_call_that_is_wrong_is_refused_with_its_reason() {
    let site = Site::start(Rate::default());
    let mut client = site.client().await;
    let state = |name: &str, state: &str| ReportDeviceStatesRequest {
        device_name: name.into(),
        device_namespace: "ns".into(),
        state: state.into(),
    };
    let unknown = ReportDeviceStatusRequest { device_name: "no".into(), ..status(vec![]) };
    let long = "x".repeat(40_000);
    for (code, answer) in [
        (Code::NotFound, client.report_device_status(unknown).await.map(drop)),
        (Code::InvalidArgument, client.report_device_status(status(vec![("", None, None)])).await.map(drop)),
        (Code::InvalidArgument, client.report_device_status(status(vec![("t", Some(&long), None)])).await.map(drop)),
        (Code::NotFound, client.report_device_states(state("no", "ok")).await.map(drop)),
        (Code::InvalidArgument, client.report_device_states(state("d", "sleeping")).await.map(drop)),
        (Code::InvalidArgument, client.mapper_register(MapperRegisterRequest::default()).await.map(drop)),
    ] {
        assert_eq!(answer.unwrap_err().code(), code);
    }
    within(client.report_device_states(state("d", "OK"))).await.unwrap();
    let report = site.until_report(|report| report.state.is_some()).await;
    assert_eq!(report.state.as_deref(), Some("OK"), "as it was sent");
    let told = site.until_published("$hw/events/device/ns/d/state/update/result").await;
    assert_eq!(told["device"]["state"], "OK");
    drop(client);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn more_calls_than_a_mapper_may_make_are_refused_and_not_dropped() {
    let site = Site::start(Rate { per_second: 1, burst: 3 });
    let mut client = site.client().await;
    let mut codes = Vec::new();
    for value in ["1", "2", "3", "4", "5"] {
        codes.push(
            client
                .report_device_status(status(vec![("t", Some(value), None)]))
                .await
                .map_or_else(|it| it.code(), |_| Code::Ok),
        );
    }
    assert_eq!(codes[..3], [Code::Ok; 3]);
    assert!(codes[3..].contains(&Code::ResourceExhausted), "{codes:?}");
    drop(client);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn twins_and_mappers_outlive_a_restart_and_everything_is_reported_again() {
    let site = Site::start(Rate::default());
    let mut mapper = site.mapper().await;
    let Some(Event::Device(device)) = within(mapper.next()).await else { panic!("no device") };
    mapper.report(&device.id, [Reading::new("t", 7)]).await.unwrap();
    let (folder, store) = (site.folder.clone(), site.store.clone());
    site.test.assert_quiet().await;
    store.close().await.unwrap();

    let site = Site::again(folder, Rate::default());
    let report = site.report().await;
    assert_eq!(reported(&report, "t").as_deref(), Some("7"));
    // The mapper has not registered again; it is called at the address that is on disk.
    let [_, changed] = objects("30");
    site.change(&changed, false).await;
    loop {
        let Some(Event::Device(device)) = within(mapper.next()).await else { panic!("it went") };
        if device.desired("set") == Some("30") {
            break;
        }
    }
    drop(mapper);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_socket_that_was_taken_away_is_made_again() {
    let site = Site::start(Rate::default());
    drop(site.client().await);
    std::fs::remove_file(site.socket()).unwrap();
    let mut client = site.client().await;
    within(client.report_device_status(status(vec![("t", Some("1"), None)]))).await.unwrap();
    drop(client);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_grpc_go_client_that_names_the_socket_as_authority_gets_an_answer() {
    let site = Site::start(Rate::default());
    until_there(&site.socket()).await;
    let mut stream = UnixStream::connect(site.socket()).await.unwrap();
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    };
    let headers = Encoder::new().encode([
        (&b":method"[..], &b"POST"[..]),
        (b":scheme", b"http"),
        (b":path", b"/v1beta1.DeviceManagerService/MapperRegister"),
        // What grpc-go sends when it is told to dial `/etc/kubeedge/dmi.sock`.
        (b":authority", b"%2Fetc%2Fkubeedge%2Fdmi.sock"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]);
    let mapper = MapperInfo {
        name: "go".into(),
        protocol: "p".into(),
        address: "/etc/kubeedge/go.sock".into(),
        ..MapperInfo::default()
    };
    let request = MapperRegisterRequest { with_data: true, mapper: Some(mapper) }.encode_to_vec();
    let mut message = vec![0];
    message.extend_from_slice(&(request.len() as u32).to_be_bytes());
    message.extend_from_slice(&request);
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(4, 0, 0, &[]));
    sent.extend(frame(1, 4, 1, &headers));
    sent.extend(frame(0, 1, 1, &message));
    stream.write_all(&sent).await.unwrap();

    let (mut decoder, mut told, mut data) = (Decoder::new(), Vec::new(), Vec::new());
    within(async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut payload).await.unwrap();
            let ours = head[5..] == [0, 0, 0, 1];
            match head[3] {
                0 if ours => data.extend_from_slice(&payload),
                1 if ours => told.extend(decoder.decode(&payload).unwrap()),
                3 | 7 => panic!("the stream was reset: {payload:?}"),
                _ => continue,
            }
            if ours && head[4] & 1 != 0 {
                return;
            }
        }
    })
    .await;
    let header = |name: &[u8]| told.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    assert_eq!((header(b":status"), header(b"grpc-status")), (Some(b"200".to_vec()), Some(b"0".to_vec())), "{told:?}");
    let answer = dmi::MapperRegisterResponse::decode(&data[5..]).unwrap();
    assert_eq!((answer.model_list.len(), answer.device_list[0].name.as_str()), (1, "d"));
    drop(stream);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn many_updates_share_commits_and_each_is_answered_in_order() {
    let site = Site::start(Rate::default());
    const MANY: usize = 2500;
    for count in 0..MANY {
        let payload = json!({"event_id": count.to_string(), "twin": {"t": {"actual": {"value": count.to_string()}}}});
        let topic = "$hw/events/device/ns/d/twin/update".into();
        site.test.tell(TwinMessage { topic, payload: payload.to_string().into(), oversize: 0 }).await;
    }
    let mut answered = 0;
    while answered < MANY {
        let answer = site.until_published("$hw/events/device/ns/d/twin/update/result").await;
        assert_eq!((answer["event_id"].as_str(), &answer["code"]), (Some(answered.to_string().as_str()), &Value::Null));
        answered += 1;
    }
    let newest = (MANY - 1).to_string();
    site.until_report(|report| reported(report, "t").as_deref() == Some(&newest)).await;
    assert!(site.reports.count() < 60, "the cloud hears the newest once a second: {}", site.reports.count());
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_broker_that_confirms_slowly_is_told_no_more_than_a_batch_at_a_time() {
    const MANY: usize = 2500;
    const CONFIRMS: Duration = Duration::from_millis(300);
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&times);
    let bus = Recorder::<PublishMqtt>::answering(move |_| {
        told.lock().unwrap().push(tokio::time::Instant::now());
        Settled::applied()
    });
    let site = Site::with(Arc::new(tempfile::tempdir().unwrap()), Rate::default(), bus.delays(CONFIRMS));
    for count in 0..MANY {
        let payload = json!({"event_id": count.to_string(), "twin": {"t": {"actual": {"value": count.to_string()}}}});
        let topic = "$hw/events/device/ns/d/twin/update".into();
        site.test.tell(TwinMessage { topic, payload: payload.to_string().into(), oversize: 0 }).await;
    }
    for answered in 0..MANY {
        let answer = site.until_published("$hw/events/device/ns/d/twin/update/result").await;
        assert_eq!(answer["event_id"], answered.to_string(), "none is left out");
    }
    let times = times.lock().unwrap().clone();
    // A batch is told in less time than a confirmation takes, and the next one after it.
    let within = |from: usize| times[from..].iter().take_while(|at| **at - times[from] < CONFIRMS * 3 / 4).count();
    let most = (0..times.len()).map(within).max().unwrap();
    assert!(most <= 3 * MAX_PENDING, "{most} within {:?}", CONFIRMS * 3 / 4);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn a_change_that_is_not_on_disk_is_answered_with_an_error() {
    let site = Site::start(Rate::default());
    let mut client = site.client().await;
    within(client.report_device_status(status(vec![("t", Some("1"), None)]))).await.unwrap();
    site.store.close().await.unwrap();
    let payload = json!({"event_id": "late", "twin": {"t": {"actual": {"value": "2"}}}});
    let topic = "$hw/events/device/ns/d/twin/update".into();
    site.test.tell(TwinMessage { topic, payload: payload.to_string().into(), oversize: 0 }).await;
    loop {
        let answer = site.until_published("$hw/events/device/ns/d/twin/update/result").await;
        if answer["event_id"] == "late" {
            assert_eq!(answer["code"], 500, "{answer}");
            break;
        }
    }
    let refused = within(client.report_device_status(status(vec![("t", Some("3"), None)]))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    // Neither is it told to the cloud.
    let reports = async {
        loop {
            let report = site.report().await;
            assert!(matches!(reported(&report, "t").as_deref(), None | Some("1")), "{report:?}");
        }
    };
    tokio::time::timeout(2 * reporter::EVERY, reports).await.unwrap_err();
    drop(client);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn what_a_mapper_reads_counts_again_after_an_application_has_deleted_it() {
    let site = Site::start(Rate::default());
    let mut client = site.client().await;
    let ask = async |what: &str, payload: Value| {
        let (topic, payload) = (format!("$hw/events/device/ns/d/twin/{what}"), payload.to_string().into());
        site.test.tell(TwinMessage { topic, payload, oversize: 0 }).await;
        let answer = site.until_published(&format!("$hw/events/device/ns/d/twin/{what}/result")).await;
        assert_eq!(answer.get("code"), None, "{answer}");
        answer["twin"]["extra"].clone()
    };
    // No property of the Device, so an application may delete it.
    let made = json!({"extra": {"optional": true, "actual": {"value": "1"}, "metadata": {"type": "int"}}});
    ask("update", json!({"event_id": "e", "twin": made})).await;
    ask("update", json!({"event_id": "e", "twin": {"extra": null}})).await;
    assert_eq!(ask("get", json!({"event_id": "e"})).await, Value::Null);
    within(client.report_device_status(status(vec![("extra", Some("2"), None)]))).await.unwrap();
    // What the report did is told as the answer of an update; the next is the one that was asked for.
    let now = ask("get", json!({"event_id": "e"})).await;
    assert_eq!((now["actual"]["value"].as_str(), now["metadata"]["type"].as_str()), (Some("2"), Some("string")));
    drop(client);
    site.test.assert_quiet().await;
}

#[actix_rt::test]
async fn what_stays_at_the_edge_makes_no_reports() {
    let site = Site::start(Rate::default());
    let mut client = site.client().await;
    within(client.report_device_status(status(vec![("t", Some("1"), None)]))).await.unwrap();
    site.until_report(|report| reported(report, "t").as_deref() == Some("1")).await;
    let none = async {
        for value in ["2", "3", "4"] {
            within(client.report_device_status(status(vec![("own", Some(value), None)]))).await.unwrap();
            let next = tokio::time::timeout(reporter::EVERY + reporter::EVERY / 2, site.report()).await;
            assert!(next.is_err(), "{next:?}");
        }
    };
    none.await;
    within(client.report_device_status(status(vec![("t", Some("5"), None)]))).await.unwrap();
    site.until_report(|report| reported(report, "t").as_deref() == Some("5")).await;
    drop(client);
    site.test.assert_quiet().await;
}
