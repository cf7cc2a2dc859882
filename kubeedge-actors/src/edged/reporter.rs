//! Reports about pods, on their way to the cloud by MetaManager's disk.

use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::PodStatus;
use kubeedge_proto::{
    resource,
    v1::{ObjectKey, PodTerminated, ReportStatus, StatusUpdate, report_status},
};

use super::{
    StatusBoard,
    events::{EventRecord, sender::EventSink},
    lifecycle::PodPlan,
    static_pods::Mirrors,
    worker::{Report, Reporter},
};
use crate::system::Port;

/// How long MetaManager may take to keep a report.
const KEEP_WITHIN: Duration = Duration::from_secs(30);

/// Reports through MetaManager's port, and events past it.
#[derive(Clone, Debug)]
pub struct PortReporter {
    port: Port<ReportStatus>,
    events: Option<EventSink>,
    board: StatusBoard,
    mirrors: Mirrors,
}

impl PortReporter {
    /// Reports through `port`; without `events` those are told to nobody.
    pub fn new(port: Port<ReportStatus>, events: Option<EventSink>) -> Self {
        Self { port, events, board: StatusBoard::default(), mirrors: Mirrors::default() }
    }

    /// Notes every status of a pod there, too.
    #[must_use]
    pub fn noting(self, board: StatusBoard) -> Self {
        Self { board, ..self }
    }

    /// Reports static pods as their mirrors.
    #[must_use]
    pub fn mirroring(self, mirrors: Mirrors) -> Self {
        Self { mirrors, ..self }
    }

    /// Reports about a pod; `Ok` when the report is on disk.
    pub async fn send(&self, key: ObjectKey, uid: String, report: Report) -> Result<(), String> {
        let (Report::Status(status) | Report::Terminated(status)) = &report;
        let status_json = json(status)?;
        let message = match report {
            Report::Status(_) => report_status::Report::Update(StatusUpdate {
                r#type: Some(resource::pods()),
                key: Some(key),
                uid,
                // MetaManager counts.
                generation: 0,
                status_json,
            }),
            Report::Terminated(_) => {
                report_status::Report::Terminated(PodTerminated { key: Some(key), uid, generation: 0, status_json })
            }
        };
        let settled = self.port.ask(ReportStatus { report: Some(message) }, KEEP_WITHIN).await;
        let settled = settled.map_err(|error| format!("MetaManager: {error}"))?;
        if settled.code == 0 { Ok(()) } else { Err(format!("MetaManager: {} ({})", settled.reason, settled.code)) }
    }
}

fn json(status: &PodStatus) -> Result<bytes::Bytes, String> {
    serde_json::to_vec(status).map(Into::into).map_err(|error| error.to_string())
}

impl Reporter for PortReporter {
    fn report<'a>(&'a self, plan: &'a PodPlan, report: Report) -> BoxFuture<'a, Result<(), String>> {
        let (Report::Status(status) | Report::Terminated(status)) = &report;
        self.board.note(&plan.uid, status);
        let Some(uid) = self.mirrors.reported_as(&plan.uid) else {
            // A static pod that the API does not know yet: its worker is asked again when it does.
            return Box::pin(std::future::ready(Ok(())));
        };
        Box::pin(self.send(ObjectKey::new(&plan.namespace, &plan.name), uid, report))
    }

    fn event(&self, event: EventRecord) {
        if let Some(events) = &self.events {
            events.record(event);
        }
    }
}
