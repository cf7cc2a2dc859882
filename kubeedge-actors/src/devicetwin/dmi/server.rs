//! The socket that mappers call: `DeviceManagerService`. The shell around DeviceTwin's own messages.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use actix::Addr;
use kubeedge_proto::dmi::{
    self,
    device_manager_service_server::{DeviceManagerService, DeviceManagerServiceServer},
};
use tonic::{Code, Request, Response, Status};

use super::{
    bucket::{Buckets, Rate},
    reflection::Described,
};
use crate::{devicetwin::DeviceTwin, dmi::socket};

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// As gRPC counts.
    pub code: Code,
    /// For the mapper's author.
    pub message: String,
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code, refused.message)
    }
}

/// A mapper's call, for DeviceTwin.
pub struct FromMapper<R>(pub R);

impl actix::Message for FromMapper<dmi::MapperRegisterRequest> {
    type Result = Result<dmi::MapperRegisterResponse, Refused>;
}

impl actix::Message for FromMapper<dmi::ReportDeviceStatusRequest> {
    type Result = Result<(), Refused>;
}

impl actix::Message for FromMapper<dmi::ReportDeviceStatesRequest> {
    type Result = Result<(), Refused>;
}

/// Serves the socket until dropped; one that is taken away is made again.
pub async fn serve(path: PathBuf, rate: Rate, twin: Addr<DeviceTwin>) {
    let manager =
        Manager { twin, buckets: Arc::new(Mutex::new(Buckets::new(rate))), started: Instant::now(), caller: 0 };
    socket::serve(path, "mappers", move |caller| {
        Described(DeviceManagerServiceServer::new(Manager { caller, ..manager.clone() }))
    })
    .await;
}

/// One connection's end of the service.
#[derive(Clone)]
struct Manager {
    twin: Addr<DeviceTwin>,
    buckets: Arc<Mutex<Buckets>>,
    started: Instant,
    /// The process at the other end.
    caller: i32,
}

impl Manager {
    /// Asks DeviceTwin, when the caller has a token left.
    async fn ask<R, T>(&self, request: Request<R>) -> Result<T, Status>
    where
        R: Send + 'static,
        T: Send + 'static,
        FromMapper<R>: actix::Message<Result = Result<T, Refused>> + Send,
        DeviceTwin: actix::Handler<FromMapper<R>>,
    {
        let now = self.started.elapsed();
        if !self.buckets.lock().unwrap_or_else(PoisonError::into_inner).take(now, self.caller) {
            let text = "more calls than this mapper may make: see modules.deviceTwin.mapperRate";
            return Err(Status::resource_exhausted(text));
        }
        match self.twin.send(FromMapper(request.into_inner())).await {
            Ok(answer) => answer.map_err(Status::from),
            Err(_) => Err(Status::unavailable("DeviceTwin begins anew: try again")),
        }
    }
}

#[tonic::async_trait]
impl DeviceManagerService for Manager {
    async fn mapper_register(
        &self,
        request: Request<dmi::MapperRegisterRequest>,
    ) -> Result<Response<dmi::MapperRegisterResponse>, Status> {
        self.ask(request).await.map(Response::new)
    }

    async fn report_device_status(
        &self,
        request: Request<dmi::ReportDeviceStatusRequest>,
    ) -> Result<Response<dmi::ReportDeviceStatusResponse>, Status> {
        self.ask(request).await.map(|()| Response::new(dmi::ReportDeviceStatusResponse {}))
    }

    async fn report_device_states(
        &self,
        request: Request<dmi::ReportDeviceStatesRequest>,
    ) -> Result<Response<dmi::ReportDeviceStatesResponse>, Status> {
        self.ask(request).await.map(|()| Response::new(dmi::ReportDeviceStatesResponse {}))
    }
}
