//! A plugin over real sockets.

use std::{pin::Pin, time::Instant};

use kubeedge_proto::deviceplugin::{
    AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationResponse, Device, DeviceSpec,
    ListAndWatchResponse, Mount, PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse,
    device_plugin_server::{DevicePlugin, DevicePluginServer},
    registration_client::RegistrationClient,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;

const GPU: &str = "example.com/gpu";

/// Has the devices that the test says, and notes what it is asked.
#[derive(Clone)]
struct Gpus {
    devices: watch::Receiver<Vec<Device>>,
    asked: Arc<Mutex<Vec<String>>>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl DevicePlugin for Gpus {
    type ListAndWatchStream =
        Pin<Box<dyn futures_util::Stream<Item = Result<ListAndWatchResponse, Status>> + Send + 'static>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Answer<DevicePluginOptions> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Answer<Self::ListAndWatchStream> {
        let mut devices = self.devices.clone();
        devices.mark_changed();
        let lists = futures_util::stream::unfold(devices, |mut devices| async move {
            devices.changed().await.ok()?;
            let list = ListAndWatchResponse { devices: devices.borrow_and_update().clone() };
            Some((Ok(list), devices))
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Answer<PreferredAllocationResponse> {
        let request = request.into_inner().container_requests.remove(0);
        let (all, size) = (request.available_device_ids, usize::try_from(request.allocation_size).unwrap());
        let certain = request.must_include_device_ids.join(" ");
        self.asked.lock().unwrap().push(format!("prefer {size} of {}, {certain} for sure", all.join(" ")));
        if all.iter().any(|id| id == "undecided") {
            return Err(Status::internal("cannot say"));
        }
        let device_ids = all.into_iter().rev().take(size).collect();
        let answer = ContainerPreferredAllocationResponse { device_ids };
        Ok(Response::new(PreferredAllocationResponse { container_responses: vec![answer] }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Answer<AllocateResponse> {
        let ids = request.into_inner().container_requests.remove(0).devices_ids;
        self.asked.lock().unwrap().push(format!("allocate {}", ids.join(" ")));
        let answer = ContainerAllocateResponse {
            envs: [("GPUS".to_owned(), ids.join(","))].into(),
            mounts: vec![Mount { container_path: "/lib/gpu".into(), host_path: "/opt/gpu".into(), read_only: true }],
            devices: ids
                .iter()
                .map(|id| DeviceSpec {
                    container_path: format!("/dev/gpu-{id}"),
                    host_path: "/dev/null".into(),
                    permissions: "rw".into(),
                })
                .collect(),
            annotations: [("gpu".to_owned(), "yes".to_owned())].into(),
            cdi_devices: Vec::new(),
        };
        Ok(Response::new(AllocateResponse { container_responses: vec![answer] }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Answer<PreStartContainerResponse> {
        self.asked.lock().unwrap().push(format!("start {}", request.into_inner().devices_ids.join(" ")));
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

fn devices(all: &[(&str, bool)]) -> Vec<Device> {
    let health = |healthy: bool| if healthy { "Healthy" } else { "Unhealthy" }.to_owned();
    all.iter().map(|(id, healthy)| Device { id: (*id).to_owned(), health: health(*healthy) }).collect()
}

fn pod(uid: &str, count: Value) -> Pod {
    let container = json!({"name": "c", "resources": {"limits": {GPU: count, "cpu": "1", "other.example/x": "1"}}});
    serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"containers": [container]}})).unwrap()
}

async fn allocate(manager: &DeviceManager, pod: &Pod) -> Result<Given, String> {
    manager.allocate(pod, &pod.spec.as_ref().unwrap().containers[0]).await
}

async fn until(manager: &DeviceManager, expected: (usize, usize)) {
    let began = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    let wanted = [(GPU.to_owned(), expected.0, expected.1)];
    while manager.amounts() != wanted {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", manager.amounts());
        tick.tick().await;
    }
}

struct Node {
    manager: DeviceManager,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<Result<(), String>>,
}

impl Node {
    async fn start(root: &Path) -> (Self, RegistrationClient<Channel>) {
        let (manager, stop) = (DeviceManager::load(root), CancellationToken::new());
        let serving = tokio::spawn(manager.clone().serve(stop.clone()));
        let socket = root.join("device-plugins/kubelet.sock");
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        let channel = loop {
            tick.tick().await;
            if let Ok(channel) = endpoint.connect().await {
                break channel;
            }
            assert!(!serving.is_finished(), "{:?}", serving.await);
        };
        (Self { manager, stop, serving }, RegistrationClient::new(channel))
    }

    async fn stop(self, registration: RegistrationClient<Channel>) {
        drop(registration);
        self.stop.cancel();
        self.serving.await.unwrap().unwrap();
    }
}

fn registration(endpoint: &str, resource: &str) -> RegisterRequest {
    let options = Some(DevicePluginOptions { pre_start_required: true, ..Default::default() });
    RegisterRequest { version: VERSION.into(), endpoint: endpoint.into(), resource_name: resource.into(), options }
}

#[tokio::test]
async fn a_plugin_registers_gives_devices_goes_and_comes_back() {
    let root = tempfile::tempdir().unwrap();
    let (node, mut client) = Node::start(root.path()).await;
    let (tell, told) = watch::channel(devices(&[("a", true), ("b", true), ("c", false)]));
    let gpus = Gpus { devices: told, asked: Arc::default() };
    let serve = |gpus: Gpus| {
        let path = root.path().join("device-plugins/gpu.sock");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        tokio::spawn(accept(listener, DevicePluginServer::new(gpus)))
    };
    let refused = client.register(registration("gpu.sock", GPU)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "it serves nothing yet");
    let plugin = serve(gpus.clone());
    client.register(registration("gpu.sock", GPU)).await.unwrap();
    until(&node.manager, (3, 2)).await;

    let given = allocate(&node.manager, &pod("p", "1".into())).await.unwrap();
    assert_eq!((given.envs["GPUS"].as_str(), given.annotations["gpu"].as_str()), ("a", "yes"));
    assert_eq!(given.devices[0].container_path, "/dev/gpu-a");
    assert!(given.mounts[0].readonly && given.mounts[0].host_path == "/opt/gpu");
    assert_eq!(*gpus.asked.lock().unwrap(), ["allocate a", "start a"]);
    let short = allocate(&node.manager, &pod("q", "2".into())).await.unwrap_err();
    let why = "Allocate failed due to requested number of devices unavailable for example.com/gpu. Requested: 2, \
               Available: 1, which is unexpected";
    assert_eq!(short, why);
    tell.send_replace(devices(&[("a", true), ("b", true), ("c", true)]));
    until(&node.manager, (3, 3)).await;
    assert_eq!(allocate(&node.manager, &pod("q", "2".into())).await.unwrap().envs["GPUS"], "b,c");

    // The plugin dies: nothing is given, and what was given is known.
    plugin.abort();
    let _ = plugin.await;
    until(&node.manager, (3, 0)).await;
    node.manager.retain(|uid| uid != "q");
    let path = root.path().join("device-plugins").join(CHECKPOINT);
    let began = Instant::now();
    while fs::read_to_string(&path).unwrap().contains("\"q\"") {
        assert!(began.elapsed() < Duration::from_secs(20), "what was freed is not on disk");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(allocate(&node.manager, &pod("r", "1".into())).await.is_err());
    node.stop(client).await;

    // The node begins anew: it knows who has what, and waits for the plugin.
    let (node, mut client) = Node::start(root.path()).await;
    let error = allocate(&node.manager, &pod("p", "1".into())).await.unwrap_err();
    assert_eq!(error, "the device plugin of example.com/gpu has not registered yet");
    let plugin = serve(gpus.clone());
    client.register(registration("gpu.sock", GPU)).await.unwrap();
    until(&node.manager, (3, 3)).await;
    assert_eq!(allocate(&node.manager, &pod("p", "1".into())).await.unwrap().envs["GPUS"], "a");
    assert_eq!(allocate(&node.manager, &pod("r", "2".into())).await.unwrap().envs["GPUS"], "b,c");
    plugin.abort();
    node.stop(client).await;
}

#[tokio::test]
async fn a_plugin_that_has_a_preference_is_asked_for_it_while_there_is_a_choice() {
    let root = tempfile::tempdir().unwrap();
    let (node, mut client) = Node::start(root.path()).await;
    let (tell, told) = watch::channel(devices(&[("a", true), ("b", true), ("c", true), ("d", false)]));
    let gpus = Gpus { devices: told, asked: Arc::default() };
    let listener = UnixListener::bind(root.path().join("device-plugins/gpu.sock")).unwrap();
    let plugin = tokio::spawn(accept(listener, DevicePluginServer::new(gpus.clone())));
    let options = Some(DevicePluginOptions { get_preferred_allocation_available: true, pre_start_required: false });
    client.register(RegisterRequest { options, ..registration("gpu.sock", GPU) }).await.unwrap();
    until(&node.manager, (4, 3)).await;
    assert_eq!(allocate(&node.manager, &pod("p", "1".into())).await.unwrap().envs["GPUS"], "c");
    assert_eq!(allocate(&node.manager, &pod("p", "1".into())).await.unwrap().envs["GPUS"], "c", "it keeps it");
    assert_eq!(allocate(&node.manager, &pod("q", "2".into())).await.unwrap().envs["GPUS"], "a,b");
    let asked = ["prefer 1 of a b c,  for sure", "allocate c", "allocate c", "allocate a b"];
    assert_eq!(*gpus.asked.lock().unwrap(), asked, "where there is no choice it is not asked");
    // One that cannot say keeps the container waiting; nothing is given away meanwhile.
    tell.send_replace(devices(&[("a", true), ("b", true), ("c", true), ("d", true), ("undecided", true)]));
    until(&node.manager, (5, 5)).await;
    let error = allocate(&node.manager, &pod("r", "1".into())).await.unwrap_err();
    assert_eq!(error, "GetPreferredAllocation of the device plugin of example.com/gpu: cannot say");
    assert_eq!(node.manager.lock().pools.held("r", "c", GPU), None);
    plugin.abort();
    node.stop(client).await;
}

#[test]
fn a_registration_that_cannot_be_meant_is_refused() {
    let refused = |version: &str, endpoint: &str, resource: &str| check(version, endpoint, resource).unwrap_err();
    assert_eq!(check(VERSION, "gpu_1.sock", GPU), Ok(()));
    assert!(refused("v1alpha", "a.sock", GPU).contains("is not supported"));
    for endpoint in ["", "../x.sock", "/x.sock", "a/b", ".hidden", SOCKET, &"a".repeat(65), "a\0b"] {
        assert!(refused(VERSION, endpoint, GPU).contains("endpoint"), "{endpoint}");
    }
    for resource in
        ["", "gpu", "example.com/", "/gpu", "kubernetes.io/x", "a.kubernetes.io/x", "example.com/a b", "Ex/g"]
    {
        assert!(refused(VERSION, "a.sock", resource).contains("ResourceName"), "{resource}");
    }
}
