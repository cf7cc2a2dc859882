//! Devices are reported to the cloud. The shell around [`super::reporter`].

use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Handler, MessageResult, WrapFuture};
use kubeedge_proto::v1::{ApiResponse, CallReply, ReportDevice, ReportStatus, call_reply, report_status::Report};

use super::{DeviceTwin, STORE_WITHIN, mappers::id_of, report};
use crate::system::Context;

impl DeviceTwin {
    /// A device is to be reported, when what it is now is on disk.
    pub(super) fn touch(&mut self, id: &str) {
        let now = self.now();
        self.reporter.touch(now, id);
    }

    /// A device is to be reported, also when it is as it was reported last.
    pub(super) fn tell_again(&mut self, id: &str) {
        self.reporter.tell_again(id);
        self.touch(id);
    }

    /// Reports what is due, and comes back for what is not yet.
    pub(super) fn report_due(&mut self, ctx: &mut Context<Self>) {
        let now = self.now();
        while let Some(id) = self.reporter.next(now, |id| self.commits.is_on_disk(id)) {
            let report = {
                let catalogue = self.shared.catalogue.borrow();
                match (self.devices.get(&id), catalogue.device(&id)) {
                    (Some(device), Some(wanted)) => Some(report::report(device, wanted)),
                    _ => None,
                }
            };
            let Some(report) = report.filter(|report| self.reporter.is_news(now, &id, report)) else {
                self.reporter.done(now, &id, true);
                continue;
            };
            self.reporter.tell(now, &id, report.clone());
            let port = self.report.clone();
            let message = ReportStatus { report: Some(Report::Device(report)) };
            ctx.spawn(async move { port.ask(message, STORE_WITHIN).await }.into_actor(self).map(
                move |settled, this, ctx| {
                    let on_disk = match &settled {
                        Ok(settled) => settled.code == 0 || settled.code == 400,
                        Err(_) => false,
                    };
                    if !on_disk {
                        tracing::warn!(device = id, "its report is not on disk and is made again: {settled:?}");
                    }
                    let now = this.now();
                    this.reporter.done(now, &id, on_disk);
                    this.report_due(ctx);
                },
            ));
        }
        if let Some(timer) = self.reporting.take() {
            ctx.cancel_future(timer);
        }
        if let Some(due) = self.reporter.due(|id| self.commits.is_on_disk(id)) {
            let wait = due.saturating_sub(now).max(Duration::from_millis(1));
            self.reporting = Some(ctx.run_later(wait, |this, ctx| {
                this.reporting = None;
                this.report_due(ctx);
            }));
        }
    }
}

impl Handler<ReportDevice> for DeviceTwin {
    type Result = MessageResult<ReportDevice>;

    /// The cloud has lost what it knew of a device: it is told again, the same or not.
    fn handle(&mut self, ReportDevice { key, uid }: ReportDevice, ctx: &mut Context<Self>) -> Self::Result {
        let id = key.as_ref().map(id_of).unwrap_or_default();
        if self.devices.get(&id).is_none_or(|device| device.uid != uid) {
            let text = format!("device {id} ({uid}) does not hang on this node");
            return MessageResult(CallReply::error(404, "NotFound", text));
        }
        self.tell_again(&id);
        self.report_due(ctx);
        let accepted = ApiResponse { status: 202, ..ApiResponse::default() };
        MessageResult(CallReply { result: Some(call_reply::Result::ApiResponse(accepted.into())) })
    }
}
