//! A mapper in Rust: what stands between edgecore and devices of some protocol.
//!
//! [`Mapper::start`] registers at edgecore and serves what edgecore calls. [`Mapper::next`] tells of devices as they come,
//! change and go; [`Mapper::report`] and [`Mapper::report_state`] tell edgecore what was read. When edgecore begins anew
//! the mapper registers again, and only what is different is told.
//!
//! ```no_run
//! # use kubeedge_actors::mapper::{Event, Mapper, MapperConfig, Reading};
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut mapper = Mapper::start(MapperConfig::new("thermostats", "thermostat", "/etc/kubeedge/thermostat.sock")).await?;
//! while let Some(event) = mapper.next().await {
//!     if let Event::Device(device) = event {
//!         let wanted = device.desired("setpoint").unwrap_or("20").to_owned();
//!         mapper.report(&device.id, [Reading::new("setpoint", &wanted).observing(&wanted)]).await?;
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! What Devices want pushed elsewhere (`pushMethod`), `push` pushes (feature `mapper-push`).
//!
//! Must run within a `LocalSet`, as actix has it.

#[cfg(feature = "mapper-push")]
pub mod push;
mod service;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use kubeedge_proto::dmi::{
    self, device_manager_service_client::DeviceManagerServiceClient, device_mapper_service_server as server,
};
use serde_json::Value;
use thiserror::Error;
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use self::service::{Known, Told};
use crate::dmi::{
    socket::{self, Identity},
    values::plain,
};

/// For one call of edgecore.
const WITHIN: Duration = Duration::from_secs(10);
/// Registration is tried again after this, doubled up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// So often a registration is made anew because edgecore called in the middle of it.
const CROSSED: u32 = 10;
/// How often it is looked whether edgecore has begun anew.
const LOOK: Duration = Duration::from_secs(1);

/// Where a mapper is, and what for.
#[derive(Clone, Debug)]
pub struct MapperConfig {
    /// Its name, of its own on this node.
    pub name: String,
    /// Its version, for people.
    pub version: String,
    /// The `protocolName` of its devices.
    pub protocol: String,
    /// The socket that edgecore calls it on.
    pub socket: PathBuf,
    /// Edgecore's socket.
    pub edgecore: PathBuf,
}

impl MapperConfig {
    /// With edgecore's socket where it usually is.
    pub fn new(name: impl Into<String>, protocol: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: protocol.into(),
            socket: socket.into(),
            edgecore: "/etc/kubeedge/dmi.sock".into(),
        }
    }
}

/// Namespace and name of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A device that the mapper is to look after, with its model.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its name.
    pub id: DeviceId,
    /// What is said of it.
    pub spec: dmi::DeviceSpec,
    /// What is said of its kind.
    pub model: dmi::DeviceModelSpec,
    /// Whether its state is wanted, and how often.
    pub state_report: StateReport,
}

/// What a Device says of its state (`stateReport`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateReport {
    /// It asks for it. What it says nothing of, and what it forbids, is told apart by edgecore alone.
    pub wanted: bool,
    /// How often it is to be told; `None`: when it changes.
    pub cycle: Option<Duration>,
}

impl StateReport {
    fn of(status: Option<dmi::DeviceStatus>) -> Self {
        let status = status.unwrap_or_default();
        let cycle = (status.report_cycle > 0).then(|| cycle(status.report_cycle));
        Self { wanted: status.report_to_cloud, cycle }
    }
}

impl Device {
    /// The settings of the device's protocol.
    pub fn settings(&self) -> BTreeMap<String, Value> {
        read(self.spec.protocol.as_ref().and_then(|protocol| protocol.config_data.as_ref()))
    }

    /// A property.
    pub fn property(&self, name: &str) -> Option<&dmi::DeviceProperty> {
        self.spec.properties.iter().find(|property| property.name == name)
    }

    /// A property in the model.
    pub fn kind_of(&self, name: &str) -> Option<&dmi::ModelProperty> {
        self.model.properties.iter().find(|property| property.name == name)
    }

    /// What a property is to be; `None` when nobody said.
    pub fn desired(&self, name: &str) -> Option<&str> {
        self.property(name)?.desired.as_ref().map(|desired| desired.value.as_str()).filter(|value| !value.is_empty())
    }
}

/// The settings by which a property is found.
pub fn visitors(property: &dmi::DeviceProperty) -> BTreeMap<String, Value> {
    read(property.visitors.as_ref().and_then(|visitors| visitors.config_data.as_ref()))
}

/// Where a Device says no cycle, and bounds of one it says.
const CYCLE: Duration = Duration::from_secs(1);
const CYCLES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(365 * 24 * 60 * 60));

/// How often a property is to be read: its `collectCycle`, in milliseconds, or a second.
pub fn collect_cycle(property: &dmi::DeviceProperty) -> Duration {
    cycle(property.collect_cycle)
}

/// How often what was read is to be pushed: its `reportCycle`, in milliseconds, or a second.
pub fn report_cycle(property: &dmi::DeviceProperty) -> Duration {
    cycle(property.report_cycle)
}

fn cycle(said: i64) -> Duration {
    match u64::try_from(said) {
        Ok(said @ 1..) => Duration::from_millis(said).clamp(CYCLES.0, CYCLES.1),
        _ => CYCLE,
    }
}

fn read(settings: Option<&dmi::CustomizedValue>) -> BTreeMap<String, Value> {
    let settings = settings.into_iter().flat_map(|settings| &settings.data);
    settings.filter_map(|(name, value)| Some((name.clone(), plain(value)?))).collect()
}

/// What happens to a mapper's devices.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It has come, or has changed.
    Device(Box<Device>),
    /// It is not this mapper's any more.
    Gone(DeviceId),
}

/// What was read of a property.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    property: String,
    value: String,
    observed: Option<String>,
}

impl Reading {
    /// A value.
    pub fn new(property: impl Into<String>, value: impl fmt::Display) -> Self {
        Self { property: property.into(), value: value.to_string(), observed: None }
    }

    /// The desired value that the device has taken over.
    #[must_use]
    pub fn observing(self, desired: impl fmt::Display) -> Self {
        Self { observed: Some(desired.to_string()), ..self }
    }
}

/// Why something was not told, or the mapper did not start.
#[derive(Debug, Error)]
pub enum MapperError {
    /// A path that is none.
    #[error("{path}: {why}; expected the absolute path of a unix socket")]
    Path {
        /// As it was given.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// Edgecore refuses it.
    #[error("edgecore refused: {message} ({code:?})")]
    Refused {
        /// As gRPC counts; [`Code::ResourceExhausted`]: too often, later it may be taken.
        code: Code,
        /// Its words.
        message: String,
    },
    /// Edgecore does not answer.
    #[error("edgecore does not answer: {0}")]
    Away(String),
}

impl From<Status> for MapperError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::Away(status.message().to_owned()),
            code => Self::Refused { code, message: status.message().to_owned() },
        }
    }
}

/// A registered mapper.
pub struct Mapper {
    reporter: Reporter,
    known: Known,
    serving: AbortOnDropHandle<()>,
    _registering: AbortOnDropHandle<()>,
}

impl Mapper {
    /// Serves its socket and registers; waits for edgecore as long as it takes. A registration that is refused is an error.
    pub async fn start(config: MapperConfig) -> Result<Self, MapperError> {
        let client = DeviceManagerServiceClient::new(channel(&config.edgecore)?);
        let known = Known::default();
        let service = Told { known: known.clone() };
        let serve = socket::serve(config.socket.clone(), "edgecores", move |_| {
            server::DeviceMapperServiceServer::new(service.clone())
        });
        let serving = AbortOnDropHandle::new(tokio::task::spawn_local(serve));
        let mut registration = Registration { config, client: client.clone(), known: known.clone() };
        let seen = registration.register().await?;
        let registering = AbortOnDropHandle::new(tokio::task::spawn_local(registration.keep(seen)));
        Ok(Self { reporter: Reporter { client }, known, serving, _registering: registering })
    }

    /// The next news of a device; waits for it. Of a device that changes faster than this is asked, the newest is told.
    /// `None` when the mapper is not served any more.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            event = self.known.next() => Some(event),
            _ = &mut self.serving => None,
        }
    }

    /// For those who report while this waits for news.
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }

    /// As [`Reporter::report`].
    pub async fn report(
        &self,
        device: &DeviceId,
        readings: impl IntoIterator<Item = Reading>,
    ) -> Result<(), MapperError> {
        self.reporter.report(device, readings).await
    }

    /// As [`Reporter::report_state`].
    pub async fn report_state(&self, device: &DeviceId, state: &str) -> Result<(), MapperError> {
        self.reporter.report_state(device, state).await
    }
}

/// Tells edgecore what devices say. Cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    client: DeviceManagerServiceClient<Channel>,
}

impl Reporter {
    /// Tells edgecore what was read. It is on edgecore's disk when this returns. A value that is not of its property's type is
    /// left out, and edgecore's log says so; where nothing is left, it is refused.
    pub async fn report(
        &self,
        device: &DeviceId,
        readings: impl IntoIterator<Item = Reading>,
    ) -> Result<(), MapperError> {
        let value = |value: String| dmi::TwinProperty { value, metadata: Default::default() };
        let twins = readings.into_iter().map(|reading| dmi::Twin {
            property_name: reading.property,
            reported: Some(value(reading.value)),
            observed_desired: reading.observed.map(value),
        });
        let request = dmi::ReportDeviceStatusRequest {
            device_name: device.name.clone(),
            device_namespace: device.namespace.clone(),
            reported_device: Some(dmi::DeviceStatus { twins: twins.collect(), ..dmi::DeviceStatus::default() }),
        };
        within(self.client.clone().report_device_status(request)).await.map(drop)
    }

    /// Tells edgecore how a device is: `online`, `offline`, `ok`, `unknown` or `unhealthy`.
    pub async fn report_state(&self, device: &DeviceId, state: &str) -> Result<(), MapperError> {
        let request = dmi::ReportDeviceStatesRequest {
            device_name: device.name.clone(),
            device_namespace: device.namespace.clone(),
            state: state.to_owned(),
        };
        within(self.client.clone().report_device_states(request)).await.map(drop)
    }
}

/// Calls edgecore again and again, as long as somebody reports.
async fn within<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, MapperError> {
    match tokio::time::timeout(WITHIN, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(MapperError::Away(format!("no answer within {WITHIN:?}"))),
    }
}

fn channel(path: &Path) -> Result<Channel, MapperError> {
    let wrong = |why: &str| MapperError::Path { path: path.display().to_string(), why: why.to_owned() };
    let text = path.to_str().filter(|text| text.starts_with('/')).ok_or_else(|| wrong("not absolute"))?;
    let endpoint = Endpoint::from_shared(format!("unix://{text}")).map_err(|error| wrong(&error.to_string()))?;
    Ok(endpoint.connect_timeout(WITHIN).connect_lazy())
}

/// Keeps a mapper registered.
struct Registration {
    config: MapperConfig,
    client: DeviceManagerServiceClient<Channel>,
    known: Known,
}

impl Registration {
    /// Registers, as soon as edgecore is there. Which edgecore it was comes back.
    ///
    /// What edgecore calls in the middle of it may be older than its answer, or newer: then it is asked once more.
    async fn register(&mut self) -> Result<Option<Identity>, MapperError> {
        let (mut pause, mut crossed) = (AGAIN.0, 0);
        loop {
            let called = self.known.calls();
            let seen = socket::identity(&self.config.edgecore);
            let mapper = dmi::MapperInfo {
                name: self.config.name.clone(),
                version: self.config.version.clone(),
                api_version: "v1beta1".into(),
                protocol: self.config.protocol.clone(),
                address: self.config.socket.to_string_lossy().into_owned().into_bytes().into(),
                state: "ok".into(),
            };
            let request = dmi::MapperRegisterRequest { with_data: true, mapper: Some(mapper) };
            match within(self.client.mapper_register(request)).await {
                Ok(_) if self.known.calls() != called && crossed < CROSSED => crossed += 1,
                Ok(answer) => {
                    let answer = answer.into_inner();
                    self.known.all(answer.model_list, answer.device_list);
                    return Ok(seen);
                }
                Err(MapperError::Away(why)) => {
                    tracing::info!(again_in = ?pause, "edgecore is not there: {why}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN.1);
                }
                Err(refused) => return Err(refused),
            }
        }
    }

    /// Registers again with every new edgecore.
    async fn keep(mut self, mut seen: Option<Identity>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let now = socket::identity(&self.config.edgecore);
            if now.is_none() || now == seen {
                continue;
            }
            match self.register().await {
                Ok(registered) => seen = registered,
                Err(error) => tracing::error!("the new edgecore does not take this mapper: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_wanted_as_the_device_says() {
        let of = |report_to_cloud, report_cycle| {
            StateReport::of(Some(dmi::DeviceStatus { report_to_cloud, report_cycle, ..Default::default() }))
        };
        assert_eq!(of(true, 250), StateReport { wanted: true, cycle: Some(Duration::from_millis(250)) });
        assert_eq!((of(false, 0), of(false, -5)), Default::default());
        assert_eq!(StateReport::of(None), StateReport::default());
    }

    #[test]
    fn cycles_are_milliseconds_and_have_bounds() {
        for (said, millis) in [(0, 1000), (-5, 1000), (1, 10), (250, 250), (i64::MAX, 365 * 24 * 3_600_000)] {
            let property = dmi::DeviceProperty { collect_cycle: said, report_cycle: said, ..Default::default() };
            assert_eq!(collect_cycle(&property), Duration::from_millis(millis));
            assert_eq!(report_cycle(&property), Duration::from_millis(millis));
        }
    }

    /// An edgecore whose first answer to a registration is older than what it has called meanwhile.
    struct Crossing {
        mapper: std::path::PathBuf,
        registrations: std::sync::Arc<std::sync::atomic::AtomicU32>,
    }

    fn cellar(desired: &str) -> dmi::Device {
        let property = dmi::DeviceProperty {
            name: "t".into(),
            desired: Some(dmi::TwinProperty { value: desired.into(), ..Default::default() }),
            ..Default::default()
        };
        let spec =
            dmi::DeviceSpec { device_model_reference: "m".into(), properties: vec![property], ..Default::default() };
        dmi::Device { name: "cellar".into(), namespace: "default".into(), spec: Some(spec), status: None }
    }

    #[tonic::async_trait]
    impl dmi::device_manager_service_server::DeviceManagerService for Crossing {
        async fn mapper_register(
            &self,
            _: tonic::Request<dmi::MapperRegisterRequest>,
        ) -> Result<tonic::Response<dmi::MapperRegisterResponse>, Status> {
            let first = self.registrations.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
            if first {
                let channel = channel(&self.mapper).map_err(|error| Status::internal(error.to_string()))?;
                let mut mapper = dmi::device_mapper_service_client::DeviceMapperServiceClient::new(channel);
                mapper.update_device(dmi::UpdateDeviceRequest { device: Some(cellar("16")) }).await?;
            }
            let model =
                dmi::DeviceModel { name: "m".into(), namespace: "default".into(), spec: Some(Default::default()) };
            Ok(tonic::Response::new(dmi::MapperRegisterResponse {
                model_list: vec![model],
                device_list: vec![cellar(if first { "15" } else { "16" })],
            }))
        }

        async fn report_device_status(
            &self,
            _: tonic::Request<dmi::ReportDeviceStatusRequest>,
        ) -> Result<tonic::Response<dmi::ReportDeviceStatusResponse>, Status> {
            Err(Status::unimplemented("not here"))
        }

        async fn report_device_states(
            &self,
            _: tonic::Request<dmi::ReportDeviceStatesRequest>,
        ) -> Result<tonic::Response<dmi::ReportDeviceStatesResponse>, Status> {
            Err(Status::unimplemented("not here"))
        }
    }

    #[actix_rt::test]
    async fn an_answer_that_is_older_than_a_call_in_between_is_asked_for_again() {
        use dmi::device_manager_service_server::DeviceManagerServiceServer;
        let folder = tempfile::tempdir().unwrap();
        let (edgecore, socket) = (folder.path().join("dmi.sock"), folder.path().join("mapper.sock"));
        let registrations = std::sync::Arc::<std::sync::atomic::AtomicU32>::default();
        let (mapper, seen) = (socket.clone(), registrations.clone());
        let serve = socket::serve(edgecore.clone(), "mappers", move |_| {
            DeviceManagerServiceServer::new(Crossing { mapper: mapper.clone(), registrations: seen.clone() })
        });
        let _serving = AbortOnDropHandle::new(tokio::task::spawn_local(serve));
        let config = MapperConfig { edgecore, ..MapperConfig::new("m", "p", socket) };
        let started = tokio::time::timeout(Duration::from_secs(20), Mapper::start(config)).await;
        let mut mapper = started.expect("in time").unwrap();
        let Some(Event::Device(device)) = mapper.next().await else { panic!("a device") };
        assert_eq!(device.desired("t"), Some("16"));
        assert_eq!(registrations.load(std::sync::atomic::Ordering::Relaxed), 2);
    }
}
