//! What nodes send for a rule: messages of their MQTT, and what their applications post to ServiceBus.

use std::{sync::Arc, time::Duration};

use actix::{Handler, ResponseFuture};
use bytes::Bytes;
use kubeedge_proto::{
    NodeName,
    v1::{
        ApiResponse, CallReply, Envelope, ObjectKey, RouteCall, RouteEvent, ServiceCall, Settled, StreamOpen,
        UserMessage, call_reply, envelope::Body,
    },
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Refused, Router, Shared,
    outbound::Outbound,
    rest::DELIVERED,
    service,
    table::{Key, NoWay, Way},
};
use crate::{audit, rule::types::EndpointType, system::Context, web::headers};

/// How long the target of a node's message may take; CloudHub waits longer.
const DELIVER_WITHIN: Duration = Duration::from_secs(20);
/// Of a call that names no time.
const CALL_WITHIN: Duration = Duration::from_secs(25);
/// The longest that a node may ask for: CloudHub waits no longer.
const CALL_WITHIN_AT_MOST: Duration = Duration::from_secs(300);
/// Tells repeats of a message apart from another one (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: &str = "idempotency-key";

impl Handler<RouteEvent> for Router {
    type Result = ResponseFuture<Settled>;

    fn handle(&mut self, RouteEvent { node, envelope }: RouteEvent, _: &mut Context<Self>) -> Self::Result {
        let answer = |settled| -> Self::Result { Box::pin(std::future::ready(settled)) };
        let Ok(node) = node.parse::<NodeName>() else { return answer(Settled::rejected(400, "no name of a node")) };
        let Some(Envelope { id, body: Some(Body::UserMessage(message)), .. }) = envelope else {
            return answer(Settled::rejected(400, "a RouteEvent carries a UserMessage"));
        };
        let (shared, outbound) = (Arc::clone(&self.shared), self.config.outbound.clone());
        Box::pin(async move {
            match route(&shared, &outbound, &node, &id, message).await {
                Ok(()) => Settled::applied(),
                Err(settled) => settled,
            }
        })
    }
}

/// A message of MQTT at a node, to where its rule says.
async fn route(
    shared: &Shared,
    outbound: &Outbound,
    node: &NodeName,
    id: &Bytes,
    message: UserMessage,
) -> Result<(), Settled> {
    let key = rule_of(EVENT, node, message.rule).map_err(Refused::settled)?;
    let way = find(shared, EVENT, node, &key).map_err(Refused::settled)?;
    let id = uuid::Uuid::from_slice(id).map_err(|_| wrong(EVENT, node, "an event's id has 16 bytes").settled())?;
    let id = id.to_string();
    let done = match way {
        Way::Rest { url } => {
            let key = [(IDEMPOTENCY_KEY, id)];
            let posted = outbound.post(&url, &key, message.payload);
            match tokio::time::timeout(DELIVER_WITHIN, posted).await {
                Ok(Ok(answer)) if (200..300).contains(&answer.status) => Ok(()),
                Ok(Ok(answer)) => Err(Refused::new(answer.status, format!("{url} answered {}", answer.status))),
                Ok(Err(why)) => Err(Refused::new(502, why)),
                Err(_) => Err(Refused::new(504, format!("{url} did not answer within {DELIVER_WITHIN:?}"))),
            }
        }
        Way::ServiceBus { node, service, path } => {
            let media = match serde_json::from_slice::<serde::de::IgnoredAny>(&message.payload) {
                Ok(_) => "application/json; charset=utf-8",
                Err(_) => "application/octet-stream",
            };
            let all = [
                ("content-type".to_owned(), media.to_owned()),
                (IDEMPOTENCY_KEY.to_owned(), id),
                (headers::CONTENT_LENGTH.to_owned(), message.payload.len().to_string()),
            ];
            let open = StreamOpen {
                method: "POST".to_owned(),
                path_and_query: path,
                headers: all.into(),
                service,
                ..StreamOpen::default()
            };
            service::post(&shared.asks, &node, open, message.payload, DELIVER_WITHIN).await
        }
        Way::EventBus { .. } => Err(Refused::new(400, "a rule from eventbus to eventbus is none")),
    };
    match done {
        Ok(()) => {
            shared.succeeded(&key);
            Ok(())
        }
        Err(refused) => {
            shared.count_failure(&key, &refused.why);
            Err(refused.settled())
        }
    }
}

/// A message of a node: its type, and where it begins.
type Sent = (&'static str, EndpointType);
const EVENT: Sent = ("UserMessage", EndpointType::EventBus);
const CALL: Sent = ("ServiceCall", EndpointType::ServiceBus);

/// The node sends what this version of it cannot send.
fn wrong((action, _): Sent, node: &NodeName, why: &str) -> Refused {
    audit::refused(action, node, "message", why);
    Refused::new(400, why)
}

fn rule_of(sent: Sent, node: &NodeName, rule: Option<ObjectKey>) -> Result<Key, Refused> {
    match rule {
        Some(ObjectKey { namespace, name }) => Ok((namespace, name)),
        None => Err(wrong(sent, node, "the message names no rule")),
    }
}

/// The way of what a node sends for a rule.
fn find(shared: &Shared, (action, from): Sent, node: &NodeName, key: &Key) -> Result<Way, Refused> {
    if !shared.table().is_complete() {
        return Err(Refused::new(503, "the rules of the cluster are not known yet"));
    }
    let found = shared.table().of_message(node, from, key);
    found.map_err(|no| match no {
        NoWay::Unknown(why) => {
            audit::refused(action, node, format!("{}/{}", key.0, key.1), &why);
            Refused::new(404, why)
        }
        NoWay::Faulty(key, why) => {
            shared.count_failure(&key, &why);
            Refused::new(503, format!("rule {}/{} cannot be carried out: {why}", key.0, key.1))
        }
        NoWay::Wrong(key, why) => {
            shared.count_failure(&key, &why);
            Refused::new(400, why)
        }
    })
}

impl Handler<RouteCall> for Router {
    type Result = ResponseFuture<CallReply>;

    fn handle(&mut self, RouteCall { node, envelope }: RouteCall, _: &mut Context<Self>) -> Self::Result {
        let wrong =
            |why: &str| -> Self::Result { Box::pin(std::future::ready(CallReply::error(400, "BadRequest", why))) };
        let Ok(node) = node.parse::<NodeName>() else { return wrong("no name of a node") };
        let Some(Envelope { timeout_ms, body: Some(Body::ServiceCall(call)), .. }) = envelope else {
            return wrong("a RouteCall carries a ServiceCall");
        };
        let within = match timeout_ms {
            0 => CALL_WITHIN,
            ms => Duration::from_millis(ms.into()).min(CALL_WITHIN_AT_MOST),
        };
        let (shared, outbound) = (Arc::clone(&self.shared), self.config.outbound.clone());
        Box::pin(async move {
            match called(&shared, &outbound, &node, call, within).await {
                Ok(response) => CallReply { result: Some(call_reply::Result::ApiResponse(Box::new(response))) },
                Err(Refused { status, why }) => CallReply::error(status.into(), "NotDelivered", why),
            }
        })
    }
}

/// What an application posted to a node's ServiceBus, to where its rule says.
async fn called(
    shared: &Shared,
    outbound: &Outbound,
    node: &NodeName,
    call: ServiceCall,
    within: Duration,
) -> Result<ApiResponse, Refused> {
    let key = rule_of(CALL, node, call.rule)?;
    let done = match find(shared, CALL, node, &key)? {
        Way::Rest { url } => match tokio::time::timeout(within, outbound.post(&url, &[], call.body)).await {
            Ok(Ok(answer)) => {
                Ok(ApiResponse { status: answer.status.into(), headers: answer.headers, body: answer.body })
            }
            Ok(Err(why)) => Err(Refused::new(502, why)),
            Err(_) => Err(Refused::new(504, format!("{url} did not answer within {within:?}"))),
        },
        Way::EventBus { node, topic } => match payload(&call.body) {
            Ok(payload) => shared.asks.publish(&node, topic, payload, within).await.map(|()| ApiResponse {
                status: 200,
                body: Bytes::from_static(DELIVERED.as_bytes()),
                ..ApiResponse::default()
            }),
            Err(why) => Err(Refused::new(400, why)),
        },
        Way::ServiceBus { .. } => Err(Refused::new(400, "a rule from servicebus to servicebus is none")),
    };
    match &done {
        Ok(response) if response.status < 400 => shared.succeeded(&key),
        Ok(response) => shared.count_failure(&key, &format!("the target answered {}", response.status)),
        Err(refused) => shared.count_failure(&key, &refused.why),
    }
    done
}

/// What is published of what an application posted: its `payload`, a text as it is and anything else as JSON.
fn payload(posted: &Bytes) -> Result<Bytes, String> {
    #[derive(Deserialize)]
    struct Posted<'a> {
        #[serde(borrow)]
        payload: Option<&'a RawValue>,
    }
    let posted: Posted<'_> = serde_json::from_slice(posted).map_err(|error| format!("invalid params: {error}"))?;
    let raw = posted.payload.map_or("", RawValue::get);
    match serde_json::from_str::<String>(raw) {
        Ok(text) => Ok(Bytes::from(text)),
        Err(_) => Ok(Bytes::copy_from_slice(raw.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_published_as_it_is_and_anything_else_as_json() {
        let published = |posted: &'static str| payload(&Bytes::from_static(posted.as_bytes()));
        assert_eq!(published(r#"{"payload": "a \"b\""}"#).unwrap(), "a \"b\"");
        assert_eq!(published(r#"{"payload": {"a": [1, 2]}}"#).unwrap(), r#"{"a": [1, 2]}"#);
        assert_eq!(published(r#"{"targetURL": "x"}"#).unwrap(), "");
        assert!(published("[").is_err());
    }
}
