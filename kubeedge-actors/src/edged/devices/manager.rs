//! Talks to plugins: takes their registrations, follows their devices, asks them what a container gets.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use kubeedge_proto::{
    cri,
    deviceplugin::{
        AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest, DevicePluginOptions, Empty,
        PreStartContainerRequest, PreferredAllocationRequest, RegisterRequest,
        device_plugin_client::DevicePluginClient,
        registration_server::{Registration, RegistrationServer},
    },
};
use tokio::net::UnixListener;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use super::pool::{Checkpoint, MAX_RESOURCES, Offer, Pools};
use crate::edged::quantity::Quantity;

/// The version of the API.
const VERSION: &str = "v1beta1";
/// The node's socket.
const SOCKET: &str = "kubelet.sock";
/// Who has which devices.
const CHECKPOINT: &str = "edged-devices.json";
/// A larger one is not ours: 4096 devices of 64 resources take less.
const MAX_CHECKPOINT: u64 = 32 * 1024 * 1024;
/// How long a plugin may take to be connected, and for one answer (kubelet's 10 s for the first).
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(30);
/// Connections at a time, and requests on one.
const MAX_CONNECTIONS: usize = 32;
const STREAMS: u32 = 8;
/// Pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Pause before a socket that could not be served is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// Longest file name of a plugin's socket: with its folder it has to fit into a socket's address.
const MAX_ENDPOINT: usize = 64;

/// What a container gets with its devices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// Environment.
    pub envs: BTreeMap<String, String>,
    /// Mounts.
    pub mounts: Vec<cri::Mount>,
    /// Devices.
    pub devices: Vec<cri::Device>,
    /// Annotations of the container.
    pub annotations: BTreeMap<String, String>,
}

/// A plugin that has registered.
struct Plugin {
    client: DevicePluginClient<Channel>,
    options: DevicePluginOptions,
    /// Dropped, its devices are followed no more.
    _following: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    pools: Pools,
    plugins: HashMap<String, Plugin>,
    /// Rises with every registration: an older one's end must not take the newer one's devices away.
    registrations: u64,
    current: HashMap<String, u64>,
    version: u64,
}

/// The node's side of the device plugin API. Clones share it.
#[derive(Clone)]
pub struct DeviceManager {
    folder: PathBuf,
    state: Arc<Mutex<State>>,
    /// The newest version of the checkpoint that is on disk.
    written: Arc<Mutex<u64>>,
}

impl std::fmt::Debug for DeviceManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceManager").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl DeviceManager {
    /// With what was given away before, below a root directory. A checkpoint that cannot be read is reported and begun
    /// anew: then a running container's devices may be given to another one.
    pub fn load(root_dir: &Path) -> Self {
        let folder = root_dir.join("device-plugins");
        let path = folder.join(CHECKPOINT);
        let checkpoint = read(&path).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), "who has which devices is not known: {error}");
            Checkpoint::default()
        });
        let state = State { pools: Pools::of(checkpoint), ..State::default() };
        Self { folder, state: Arc::new(Mutex::new(state)), written: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Changes of one resource are whole, so a poisoned lock guards whole resources.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each resource with how many devices there are, and how many of them are healthy.
    pub fn amounts(&self) -> Vec<(String, usize, usize)> {
        self.lock().pools.amounts().map(|(name, all, healthy)| (name.to_owned(), all, healthy)).collect()
    }

    /// Serves registrations, whatever happens to its socket.
    pub async fn run(self) {
        loop {
            if let Err(error) = self.clone().serve(CancellationToken::new()).await {
                tracing::error!(again_in = ?AGAIN, "device plugins cannot register: {error}");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Serves registrations until `stop`. An error is of the folder or the socket.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), String> {
        let path = self.folder.join(SOCKET);
        let shown = path.display().to_string();
        let folder = self.folder.clone();
        let bind = move || {
            fs::create_dir_all(&folder)?;
            let path = folder.join(SOCKET);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = std::os::unix::net::UnixListener::bind(&path)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = tokio::task::spawn_blocking(bind).await.map_err(|error| error.to_string())?;
        let listener = listener.and_then(UnixListener::from_std).map_err(|error| format!("{shown}: {error}"))?;
        tracing::debug!(socket = shown, "device plugins may register");
        tokio::select! {
            () = accept(listener, RegistrationServer::new(self)) => Ok(()),
            () = stop.cancelled() => Ok(()),
        }
    }

    async fn take(&self, request: RegisterRequest) -> Result<(), Status> {
        let RegisterRequest { version, endpoint, resource_name, options } = request;
        check(&version, &endpoint, &resource_name).map_err(Status::invalid_argument)?;
        {
            let state = self.lock();
            if !state.plugins.contains_key(&resource_name) && state.plugins.len() >= MAX_RESOURCES {
                return Err(Status::resource_exhausted(format!("more than {MAX_RESOURCES} resources on one node")));
            }
        }
        let path = self.folder.join(&endpoint);
        let client =
            connect(&path).await.map_err(|error| Status::unavailable(format!("{}: {error}", path.display())))?;
        let mut state = self.lock();
        state.registrations += 1;
        let registration = state.registrations;
        state.current.insert(resource_name.clone(), registration);
        let following = self.clone().follow(resource_name.clone(), client.clone(), registration);
        let _following = AbortOnDropHandle::new(tokio::spawn(following));
        let plugin = Plugin { client, options: options.unwrap_or_default(), _following };
        state.plugins.insert(resource_name.clone(), plugin);
        tracing::info!(resource = resource_name, endpoint, "a device plugin has registered");
        Ok(())
    }

    /// Follows the devices of a plugin until it goes; it registers again when it is back.
    async fn follow(self, resource: String, mut client: DevicePluginClient<Channel>, registration: u64) {
        let why = match client.list_and_watch(Empty {}).await {
            Ok(answer) => {
                let mut stream = answer.into_inner();
                loop {
                    match stream.next().await {
                        Some(Ok(list)) => {
                            let devices = list.devices.into_iter().map(|one| (one.id, one.health == "Healthy"));
                            let mut state = self.lock();
                            if state.current.get(&resource) != Some(&registration) {
                                return;
                            }
                            state.pools.set(&resource, devices);
                        }
                        Some(Err(status)) => break status.message().to_owned(),
                        None => break "it has ended the list".to_owned(),
                    }
                }
            }
            Err(status) => status.message().to_owned(),
        };
        let mut state = self.lock();
        if state.current.get(&resource) == Some(&registration) {
            tracing::warn!(resource, "a device plugin is away, its devices are not given until it is back: {why}");
            state.pools.away(&resource);
        }
    }

    /// What a container gets. It is on disk who has which devices before the plugin is asked.
    pub async fn allocate(&self, pod: &Pod, container: &Container) -> Result<Given, String> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut given = Given::default();
        for (resource, count) in wanted(container)? {
            let reusable = init_containers(pod);
            let asked = {
                let state = self.lock();
                let plugin = state.plugins.get(&resource);
                let has_a_say = plugin.filter(|plugin| plugin.options.get_preferred_allocation_available);
                let offer = || state.pools.offer(uid, &container.name, &resource, count, &reusable);
                has_a_say.and_then(|plugin| Some((plugin.client.clone(), offer()?)))
            };
            let preferred = match asked {
                Some((client, offer)) => preferred(client, offer, count)
                    .await
                    .map_err(|why| format!("GetPreferredAllocation of the device plugin of {resource}: {why}"))?,
                None => Vec::new(),
            };
            let (plugin, ids, save) = {
                let mut state = self.lock();
                if !state.pools.knows(&resource) && state.pools.held(uid, &container.name, &resource).is_none() {
                    // Nobody on this node has it: a resource of the cluster.
                    continue;
                }
                let new = state.pools.held(uid, &container.name, &resource).is_none();
                let ids = state.pools.give(uid, &container.name, &resource, count, &reusable, &preferred);
                let ids = ids.map_err(|short| format!("Allocate failed due to {short}, which is unexpected"))?;
                let plugin = state.plugins.get(&resource).map(|plugin| (plugin.client.clone(), plugin.options));
                (plugin, ids, new.then(|| self.save(&mut state)))
            };
            if let Some(save) = save {
                let saved = tokio::task::spawn_blocking(save).await.map_err(|error| error.to_string())?;
                saved.map_err(|error| format!("who has the devices of {resource} is not on disk: {error}"))?;
            }
            let Some((mut client, options)) = plugin else {
                return Err(format!("the device plugin of {resource} has not registered yet"));
            };
            let devices_ids: Vec<String> = ids.into_iter().collect();
            let failed = |call: &str, why: &str| format!("{call} of the device plugin of {resource}: {why}");
            let request = ContainerAllocateRequest { devices_ids: devices_ids.clone() };
            let answer = client.allocate(AllocateRequest { container_requests: vec![request] });
            let answer = tokio::time::timeout(ANSWER, answer).await.map_err(|_| failed("Allocate", "no answer"))?;
            let answer = answer.map_err(|status| failed("Allocate", status.message()))?.into_inner();
            let [answer] = <[_; 1]>::try_from(answer.container_responses)
                .map_err(|all| failed("Allocate", &format!("{} answers for one container", all.len())))?;
            if options.pre_start_required {
                let start = client.pre_start_container(PreStartContainerRequest { devices_ids });
                let start = tokio::time::timeout(ANSWER, start).await;
                let start = start.map_err(|_| failed("PreStartContainer", "no answer"))?;
                start.map_err(|status| failed("PreStartContainer", status.message()))?;
            }
            given.envs.extend(answer.envs);
            given.annotations.extend(answer.annotations);
            given.mounts.extend(answer.mounts.into_iter().map(|mount| cri::Mount {
                container_path: mount.container_path,
                host_path: mount.host_path,
                readonly: mount.read_only,
                ..cri::Mount::default()
            }));
            given.devices.extend(answer.devices.into_iter().map(|device| cri::Device {
                container_path: device.container_path,
                host_path: device.host_path,
                permissions: device.permissions,
            }));
            if !answer.cdi_devices.is_empty() {
                // By annotation, as runtimes before CRI's own field have it.
                let names: Vec<String> = answer.cdi_devices.into_iter().map(|device| device.name).collect();
                let key = format!("cdi.k8s.io/{}", resource.replace(['/', '.'], "_"));
                given.annotations.insert(key, names.join(","));
            }
        }
        Ok(given)
    }

    /// These pods are all that there are: what others had is free.
    pub fn retain(&self, known: impl Fn(&str) -> bool) {
        let gone: Vec<String> = {
            let state = self.lock();
            state.pools.checkpoint().given.into_keys().filter(|uid| !known(uid)).collect()
        };
        gone.iter().for_each(|uid| self.release(uid));
    }

    /// A pod has ended.
    pub fn release(&self, pod_uid: &str) {
        let save = {
            let mut state = self.lock();
            if !state.pools.release(pod_uid) {
                return;
            }
            self.save(&mut state)
        };
        tokio::task::spawn_blocking(move || {
            if let Err(error) = save() {
                // At worst its devices are free only after the next write.
                tracing::warn!("that devices are free is not on disk: {error}");
            }
        });
    }

    /// Writes what is known now; an older write that comes later does nothing.
    fn save(&self, state: &mut State) -> impl FnOnce() -> io::Result<()> + Send + use<> {
        state.version += 1;
        let (version, written, folder) = (state.version, Arc::clone(&self.written), self.folder.clone());
        let checkpoint = state.pools.checkpoint();
        move || {
            // The guard is held over the write: of two, the older one must not come last.
            let mut written = written.lock().unwrap_or_else(PoisonError::into_inner);
            if *written < version {
                write(&folder, &checkpoint)?;
                *written = version;
            }
            Ok(())
        }
    }
}

#[tonic::async_trait]
impl Registration for DeviceManager {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let (endpoint, resource) = (request.endpoint.clone(), request.resource_name.clone());
        match self.take(request).await {
            Ok(()) => Ok(Response::new(Empty {})),
            Err(status) => {
                tracing::warn!(endpoint, resource, "a device plugin is refused: {}", status.message());
                Err(status)
            }
        }
    }
}

/// Serves gRPC on a unix socket until it is dropped.
async fn accept<S>(listener: UnixListener, service: S)
where
    S: tonic::codegen::Service<
            http::Request<hyper::body::Incoming>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
            Future: Send,
        > + Clone
        + Send
        + 'static,
{
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("a connection of a device plugin was not accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        if connections.len() >= MAX_CONNECTIONS {
            tracing::warn!(limit = MAX_CONNECTIONS, "a connection of a device plugin is closed: there are too many");
            continue;
        }
        let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http.max_concurrent_streams(STREAMS).timer(TokioTimer::new());
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service.clone()));
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection of a device plugin ended: {error}");
            }
        });
    }
}

/// Whether a registration can be meant.
fn check(version: &str, endpoint: &str, resource: &str) -> Result<(), String> {
    if version != VERSION {
        return Err(format!(
            "requested API version {version:?} is not supported by kubelet. Supported version is {VERSION}"
        ));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let valid = (1..=MAX_ENDPOINT).contains(&endpoint.len()) && endpoint.bytes().all(plain);
    if !valid || endpoint.starts_with('.') || endpoint == SOCKET {
        return Err(format!(
            "endpoint {:?} is not valid: expected the name of a socket in the folder of {SOCKET}, at most {MAX_ENDPOINT} \
             letters, digits, '-', '_' and '.'",
            endpoint.chars().take(80).collect::<String>()
        ));
    }
    let extended = resource.split_once('/').is_some_and(|(domain, name)| {
        kubeedge_proto::is_dns_subdomain(domain)
            && domain != "kubernetes.io"
            && !domain.ends_with(".kubernetes.io")
            && (1..=63).contains(&name.len())
            && name.bytes().all(plain)
    });
    if !extended {
        let shown: String = resource.chars().take(80).collect();
        return Err(format!("the ResourceName {shown:?} is invalid: expected such as \"example.com/gpu\""));
    }
    Ok(())
}

async fn connect(path: &Path) -> Result<DevicePluginClient<Channel>, String> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display())).map_err(|error| error.to_string())?;
    let endpoint = endpoint.connect_timeout(CONNECT);
    let channel = tokio::time::timeout(CONNECT, endpoint.connect()).await;
    let channel = channel.map_err(|_| "no connection".to_owned())?;
    Ok(DevicePluginClient::new(channel.map_err(|error| error.to_string())?))
}

/// Asks a plugin which devices it would give.
async fn preferred(
    mut client: DevicePluginClient<Channel>,
    Offer { certain, available }: Offer,
    count: usize,
) -> Result<Vec<String>, String> {
    let request = ContainerPreferredAllocationRequest {
        available_device_ids: available.into_iter().collect(),
        must_include_device_ids: certain.into_iter().collect(),
        allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
    };
    let answer = client.get_preferred_allocation(PreferredAllocationRequest { container_requests: vec![request] });
    let answer = tokio::time::timeout(ANSWER, answer).await.map_err(|_| "no answer".to_owned())?;
    let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
    // One that says nothing leaves it to the node.
    Ok(answer.container_responses.into_iter().next().map(|answer| answer.device_ids).unwrap_or_default())
}

/// How many devices a container wants, by resource: whole numbers of what has a domain of its own.
fn wanted(container: &Container) -> Result<Vec<(String, usize)>, String> {
    let limits = container.resources.iter().flat_map(|resources| resources.limits.iter().flatten());
    let mut wanted = Vec::new();
    for (name, quantity) in limits.filter(|(name, _)| name.contains('/')) {
        let amount = Quantity::from_api(quantity).map_err(|error| format!("limits.{name}: {error}"))?;
        let count = usize::try_from(amount.value()).map_err(|_| format!("limits.{name} is negative"))?;
        if count > 0 {
            wanted.push((name.clone(), count));
        }
    }
    Ok(wanted)
}

/// The init containers that have ended when the others run.
fn init_containers(pod: &Pod) -> Vec<String> {
    let all = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let ended = all.filter(|container| container.restart_policy.as_deref() != Some("Always"));
    ended.map(|container| container.name.clone()).collect()
}

fn read(path: &Path) -> io::Result<Checkpoint> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Checkpoint::default()),
        file => file?,
    };
    if file.metadata()?.len() > MAX_CHECKPOINT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is larger than {MAX_CHECKPOINT} bytes")));
    }
    Ok(serde_json::from_reader(io::BufReader::new(file))?)
}

/// The whole file or nothing, through a name beside it.
fn write(folder: &Path, checkpoint: &Checkpoint) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let (path, beside) = (folder.join(CHECKPOINT), folder.join("edged-devices.json.new"));
    let mut file = fs::File::create(&beside)?;
    file.write_all(&serde_json::to_vec(checkpoint)?)?;
    file.sync_all()?;
    fs::rename(&beside, &path)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
