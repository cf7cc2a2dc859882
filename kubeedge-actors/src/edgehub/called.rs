//! Calls of the cloud: handed to whoever answers them at this edge.

use kubeedge_proto::v1::{CallReply, Envelope, envelope::Body};

use super::{EdgeHub, STORE_WITHIN};
use crate::{
    link::session::Input,
    system::{Context, trace::Trace},
};

impl EdgeHub {
    /// The cloud calls. It waits for the answer, so nothing is put off here.
    pub(super) fn called(&self, seq: u64, envelope: Envelope, ctx: &mut Context<Self>) {
        let trace = Trace::of(&envelope);
        let port = self.report_device.clone();
        let answered = async move {
            match (envelope.body, port) {
                (Some(Body::ReportDevice(asked)), Some(port)) => match port.ask(asked, STORE_WITHIN).await {
                    Ok(reply) => reply,
                    Err(error) => CallReply::error(503, "ServiceUnavailable", format!("DeviceTwin: {error}")),
                },
                _ => CallReply::error(501, "Unsupported", "this edge answers no calls of this type"),
            }
        };
        self.answer(ctx, async move {
            let reply = Trace::scope(trace, answered).await;
            Some(Input::Reply { seq, reply })
        });
    }
}
