//! The smallest device plugin there is: four lamps, one of them broken. Asked which it would give, it says the last.

use std::{fs, io, path::Path};

use anyhow::Result;
use futures_util::stream;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use kubeedge_proto::deviceplugin::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationResponse, Device,
    DevicePluginOptions, DeviceSpec, Empty, ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
    device_plugin_server::{DevicePlugin, DevicePluginServer},
    registration_client::RegistrationClient,
};
use tokio::{
    net::UnixListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tonic::{Request, Response, Status, transport::Endpoint};

#[derive(Clone)]
struct Lamps(watch::Receiver<Vec<Device>>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl DevicePlugin for Lamps {
    type ListAndWatchStream = stream::BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Answer<DevicePluginOptions> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Answer<Self::ListAndWatchStream> {
        let mut lamps = self.0.clone();
        lamps.mark_changed();
        let lists = stream::unfold(lamps, |mut lamps| async move {
            lamps.changed().await.ok()?;
            let devices = lamps.borrow_and_update().clone();
            Some((Ok(ListAndWatchResponse { devices }), lamps))
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Answer<PreferredAllocationResponse> {
        let mut ids = request.into_inner().container_requests.remove(0).available_device_ids;
        let device_ids = ids.pop().into_iter().collect();
        let answer = ContainerPreferredAllocationResponse { device_ids };
        Ok(Response::new(PreferredAllocationResponse { container_responses: vec![answer] }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Answer<AllocateResponse> {
        let ids = request.into_inner().container_requests.remove(0).devices_ids;
        let device =
            DeviceSpec { container_path: "/dev/lamp".into(), host_path: "/dev/null".into(), permissions: "rw".into() };
        let envs = [("LAMP".to_owned(), ids.join(","))].into();
        let answer = ContainerAllocateResponse { envs, devices: vec![device], ..Default::default() };
        Ok(Response::new(AllocateResponse { container_responses: vec![answer] }))
    }

    async fn pre_start_container(&self, _: Request<PreStartContainerRequest>) -> Answer<PreStartContainerResponse> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

/// Ends with this value, and its connections with it.
pub(super) struct Serving {
    lamps: watch::Sender<Vec<Device>>,
    task: JoinHandle<()>,
}

impl Serving {
    /// A lamp is `Healthy` or `Unhealthy` from now on.
    pub(super) fn turns(&self, id: &str, health: &str) {
        self.lamps.send_modify(|lamps| {
            for lamp in lamps.iter_mut().filter(|lamp| lamp.id == id) {
                health.clone_into(&mut lamp.health);
            }
        });
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) fn serve(folder: &Path, name: &str) -> Result<Serving> {
    let path = folder.join(name);
    // Of a plugin that is gone.
    if let Err(error) = fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error.into());
    }
    let listener = UnixListener::bind(path)?;
    let lamp = |id: &str, health: &str| Device { id: id.into(), health: health.into() };
    let healthy = ["a", "b", "c"].map(|id| lamp(id, "Healthy"));
    let (lamps, seen) = watch::channel([lamp("broken", "Unhealthy")].into_iter().chain(healthy).collect());
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let service = TowerToHyperService::new(DevicePluginServer::new(Lamps(seen.clone())));
            connections.spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(Serving { lamps, task })
}

pub(super) async fn register(folder: &Path, endpoint: &str, resource: &str, prefers: bool) -> Result<()> {
    let socket = format!("unix://{}", folder.join("kubelet.sock").display());
    let channel = Endpoint::from_shared(socket)?.connect().await?;
    let request = RegisterRequest {
        version: "v1beta1".into(),
        endpoint: endpoint.into(),
        resource_name: resource.into(),
        options: Some(DevicePluginOptions { get_preferred_allocation_available: prefers, ..Default::default() }),
    };
    RegistrationClient::new(channel).register(request).await?;
    Ok(())
}
