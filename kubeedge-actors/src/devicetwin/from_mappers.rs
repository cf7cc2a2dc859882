//! What mappers call: registration, readings, states.

use actix::{Handler, ResponseFuture};
use kubeedge_proto::{
    dmi::{
        MapperRegisterRequest, MapperRegisterResponse, ReportDeviceStatesRequest, ReportDeviceStatusRequest,
        TwinProperty,
    },
    v1::{TwinRecord, TwinSideRecord},
};
use tokio::sync::oneshot;
use tonic::Code;

use super::{
    DeviceTwin,
    dmi::{
        caller,
        checks::{self, Mistake},
        server::{FromMapper, Refused},
    },
    mappers::MAX_MAPPERS,
    requests, rfc3339, stamp,
    topics::of_device,
    twin::{self, DELETED, MAX_TWINS},
};
use crate::system::Context;

fn refused(code: Code, message: impl Into<String>) -> Refused {
    Refused { code, message: message.into() }
}

impl Handler<FromMapper<MapperRegisterRequest>> for DeviceTwin {
    type Result = ResponseFuture<Result<MapperRegisterResponse, Refused>>;

    /// A mapper is kept on disk before it is answered. With `withData` it gets everything at once and is then called when
    /// something changes; without, it is called with everything.
    fn handle(&mut self, message: FromMapper<MapperRegisterRequest>, _: &mut Context<Self>) -> Self::Result {
        let MapperRegisterRequest { with_data, mapper } = message.0;
        let registered = mapper.ok_or_else(|| "the request names no mapper".to_owned());
        let record = match registered.and_then(|info| self.mappers.register(info)) {
            Ok(record) => record,
            Err(wrong) => return Box::pin(std::future::ready(Err(refused(Code::InvalidArgument, wrong)))),
        };
        let (models, devices, knows) = match with_data {
            true => {
                let (models, devices, told) = self.shared.catalogue.borrow().everything(&record.protocol);
                (models, devices, caller::Knows::This(told))
            }
            false => (Vec::new(), Vec::new(), caller::Knows::Nothing),
        };
        tracing::info!(
            mapper = record.name,
            protocol = record.protocol,
            address = record.address,
            "a mapper registers"
        );
        let leaves = self.mappers.load(record.clone());
        // One that has changed its protocol is called for the new one only; another mapper of the old one is called again.
        self.callers.retain(|protocol, _| self.mappers.of_protocol(protocol).is_some());
        let mut batch = self.config.store.batch();
        batch.put(&self.mapper_records, record.name.as_bytes(), &record);
        if let Some(leaves) = leaves {
            tracing::warn!(
                mapper = leaves.name,
                protocol = leaves.protocol,
                "{MAX_MAPPERS} mappers are known, and this one is known no more: it may register again"
            );
            batch.delete(&self.mapper_records, leaves.name.as_bytes());
        }
        let calling = caller::start(record.clone(), knows, std::rc::Rc::clone(&self.shared));
        self.callers.insert(record.protocol, (record.registration, calling));
        self.call_mappers();
        Box::pin(async move {
            match batch.commit().await {
                Ok(()) => Ok(MapperRegisterResponse { model_list: models, device_list: devices }),
                Err(error) => Err(refused(Code::Internal, format!("the edge's store refused it: {error}"))),
            }
        })
    }
}

impl Handler<FromMapper<ReportDeviceStatusRequest>> for DeviceTwin {
    type Result = ResponseFuture<Result<(), Refused>>;

    fn handle(&mut self, message: FromMapper<ReportDeviceStatusRequest>, ctx: &mut Context<Self>) -> Self::Result {
        let id = format!("{}/{}", message.0.device_namespace, message.0.device_name);
        if let Err(refused) = self.take_report(&id, message.0) {
            return Box::pin(std::future::ready(Err(refused)));
        }
        self.answer_when_on_disk(&id, ctx)
    }
}

impl Handler<FromMapper<ReportDeviceStatesRequest>> for DeviceTwin {
    type Result = ResponseFuture<Result<(), Refused>>;

    fn handle(&mut self, message: FromMapper<ReportDeviceStatesRequest>, ctx: &mut Context<Self>) -> Self::Result {
        let ReportDeviceStatesRequest { device_name, device_namespace, state } = message.0;
        let id = format!("{device_namespace}/{device_name}");
        // As an application says it, so that applications hear of it in the same way.
        let payload = serde_json::json!({"event_id": "", "timestamp": stamp().now_ms, "state": state}).to_string();
        let Some(device) = self.devices.get_mut(&id) else {
            let text = format!("device {id} does not hang on this node");
            return Box::pin(std::future::ready(Err(refused(Code::NotFound, text))));
        };
        if let Err(wrong) = requests::set_state(&mut device.clone(), "", &state) {
            let text = format!("device {id}: {wrong}");
            return Box::pin(std::future::ready(Err(refused(Code::InvalidArgument, text))));
        }
        let reaction = requests::update_state(stamp(), &rfc3339(), &id, Some(device), payload.as_bytes());
        if reaction.changed {
            self.commits.put(&id);
        }
        self.commits.publish(reaction.publish, reaction.instead);
        self.answer_when_on_disk(&id, ctx)
    }
}

impl DeviceTwin {
    fn answer_when_on_disk(&mut self, id: &str, ctx: &mut Context<Self>) -> ResponseFuture<Result<(), Refused>> {
        let (reply, answer) = oneshot::channel();
        self.commits.reply(reply);
        self.touch(id);
        self.commit(ctx);
        let lost = |_| Err(refused(Code::Unavailable, "DeviceTwin begins anew: try again"));
        Box::pin(async move { answer.await.unwrap_or_else(lost) })
    }

    /// What a mapper has read. What cannot be so is left out, property by property, and told once; a report of which
    /// nothing is left is refused.
    fn take_report(&mut self, id: &str, request: ReportDeviceStatusRequest) -> Result<(), Refused> {
        let mut twins = request.reported_device.map(|status| status.twins).unwrap_or_default();
        let shared = std::rc::Rc::clone(&self.shared);
        let catalogue = shared.catalogue.borrow();
        let (Some(wanted), Some(device)) = (catalogue.device(id), self.devices.get_mut(id)) else {
            return Err(refused(Code::NotFound, format!("device {id} does not hang on this node")));
        };
        if device.twins.len() + twins.len() > MAX_TWINS {
            return Err(refused(Code::ResourceExhausted, format!("device {id}: at most {MAX_TWINS} twins")));
        }
        let model = catalogue.model_of(wanted);
        let mut wrong = None;
        twins.retain_mut(|told| {
            let of_model = model.and_then(|model| model.property(&told.property_name));
            let Err(mistake) = checks::check(id, told, of_model) else { return true };
            let is_news = self.mistakes.is_news(id, &told.property_name, &mistake);
            let (Mistake::Property(why) | Mistake::Observed(why)) = &mistake;
            if is_news {
                tracing::warn!("left out of a mapper's report, as will be what is like it: {why}");
            }
            match mistake {
                Mistake::Property(why) => {
                    wrong.get_or_insert(why);
                    false
                }
                Mistake::Observed(_) => {
                    told.observed_desired = None;
                    told.reported.is_some()
                }
            }
        });
        self.mistakes_meter.set(self.mistakes.count());
        if let (Some(wrong), true) = (wrong, twins.is_empty()) {
            return Err(refused(Code::InvalidArgument, wrong));
        }
        let stamp = stamp();
        let mut outcome = twin::Outcome::default();
        for told in twins {
            let name = told.property_name;
            let desired_by_cloud =
                wanted.spec.properties.iter().any(|property| property.name == name && property.desired.is_some());
            let before = device.twins.get(&name).filter(|twin| twin.r#type != DELETED).map(twin::shown);
            let type_ = || model.map_or("string", |model| model.twin_type(&name)).to_owned();
            let twin = device.twins.entry(name.clone()).or_insert_with(|| TwinRecord {
                name: name.clone(),
                r#type: type_(),
                ..TwinRecord::default()
            });
            // An application may have deleted it: the mapper has it all the same.
            if twin.r#type == DELETED {
                twin.r#type = type_();
            }
            if let Some(reported) = told.reported {
                twin.actual = Some(side(stamp.now_ms, reported, twin.actual.take()));
            }
            if let Some(observed) = told.observed_desired {
                let observed = side(stamp.now_ms, observed, None);
                twin.observed_desired = super::report::told(&observed, &twin.r#type);
                // What the cloud desires stands, whatever the mapper has taken over of it so far.
                if !desired_by_cloud && observed.value.as_ref().is_some_and(|value| !value.is_empty()) {
                    let before = twin.expected.take();
                    let (cloud, edge) = before.as_ref().map_or((0, 0), |side| (side.cloud_version, side.edge_version));
                    twin.expected = Some(TwinSideRecord { cloud_version: cloud, edge_version: edge + 1, ..observed });
                }
            }
            outcome.document.extend(requests::changed(&name, before, device).document);
        }
        if !outcome.is_change() {
            return Ok(());
        }
        let event_id = (stamp.fresh)();
        let told = serde_json::json!({
            "event_id": event_id, "timestamp": stamp.now_ms,
            "twin": outcome.document.iter().map(|(name, (_, now))| (name.clone(), now)).collect::<std::collections::BTreeMap<_, _>>(),
        });
        let result = requests::Publication {
            topic: of_device(id, "twin/update/result"),
            payload: told.to_string().into_bytes(),
        };
        let news = requests::news(stamp, id, &event_id, device, &outcome);
        self.commits.put(id);
        self.commits.publish(std::iter::once(result).chain(news), None);
        Ok(())
    }
}

fn side(now_ms: i64, told: TwinProperty, before: Option<TwinSideRecord>) -> TwinSideRecord {
    let before = before.unwrap_or_default();
    TwinSideRecord {
        value: Some(told.value),
        timestamp_ms: now_ms,
        cloud_version: before.cloud_version,
        edge_version: before.edge_version + 1,
        metadata: told.metadata,
    }
}
