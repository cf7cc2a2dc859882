//! DynamicController: makes the requests at the API server that nodes pass on from their local APIs.
//!
//! | | |
//! |---|---|
//! | answers | `ApiRequestFromNode` (CloudHub) |
//! | stores | nothing |
//! | a node offline | asks nothing |
//!
//! A request is taken apart by the code that put it together at the edge (`kubeapi::pass`); what could be read in a second
//! way is refused. `rights` decides what a node may: with a token of the client's own the API server decides, and
//! cloudcore's own credentials are not used; without one a node may what any kubelet may read, and what the configuration
//! grants ([`crate::grants`]). Each refusal has a line in the audit log.
//!
//! Bounds: [`bounds::OF_NODE`] requests of a node at a time and [`bounds::IN_ALL`] of all, bodies and answers as
//! `kubeapi::pass` has them, [`WITHIN`] for an answer.

pub mod bounds;
mod rights;
mod upstream;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use actix::{Actor, Handler, ResponseFuture};
use kubeedge_proto::{
    NodeName,
    v1::{ApiRequestFromNode, CallReply},
};

use self::{bounds::Bounds, rights::may, upstream::Upstream};
use crate::{
    audit,
    grants::Grants,
    kubeapi::{pass::Passed, status::Status},
    system::{Component, Context, Contract, Ports, Stage},
};

/// How long the API server may take. CloudHub and the edge wait longer.
pub const WITHIN: Duration = Duration::from_secs(25);

/// How DynamicController works.
#[derive(Clone)]
pub struct DynamicControllerConfig {
    /// What a node may without a token, beside what any node may.
    pub grants: Arc<Grants>,
    /// With cloudcore's credentials.
    pub client: kube::Client,
    /// The same API server without any: for requests that bring a token.
    pub without_credentials: kube::Client,
}

/// The component. See the module's page.
pub struct DynamicController {
    grants: Arc<Grants>,
    upstream: Upstream,
    bounds: Bounds,
}

impl DynamicController {
    /// Asks nothing of others: a node's request and its answer are all there is.
    pub fn new(config: DynamicControllerConfig, _: &Ports) -> Self {
        let upstream = Upstream { client: config.client, without_credentials: config.without_credentials };
        Self { grants: config.grants, upstream, bounds: Bounds::default() }
    }
}

impl Actor for DynamicController {
    type Context = Context<Self>;
}

impl Component for DynamicController {
    const NAME: &'static str = "dynamiccontroller";
    const STAGE: Stage = Stage::Processor;

    fn contract(contract: &mut Contract<Self>) {
        contract.answers::<ApiRequestFromNode>();
    }
}

impl Handler<ApiRequestFromNode> for DynamicController {
    type Result = ResponseFuture<CallReply>;

    fn handle(&mut self, asked: ApiRequestFromNode, _: &mut Context<Self>) -> Self::Result {
        let ready = |reply| -> Self::Result { Box::pin(std::future::ready(reply)) };
        let ApiRequestFromNode { node, request } = asked;
        let request = request.unwrap_or_default();
        let refuse = |what: &dyn std::fmt::Display, status: Status| {
            audit::refused("ApiRequest", &node, what, &status.message);
            ready(error(status))
        };
        let Ok(name) = node.parse::<NodeName>() else {
            return refuse(&"unnamed", Status::bad_request("no name of a node"));
        };
        let passed = match Passed::from_wire(&request) {
            Ok(passed) => passed,
            Err(status) => return refuse(&format!("{} {}", request.method, request.path_and_query), status),
        };
        if request.seen.is_some() && !passed.changes_one() {
            return refuse(&passed, Status::bad_request("only a change of one object goes by what was seen of it"));
        }
        if let Err(why) = may(&name, &passed, &self.grants) {
            return refuse(&passed, Status::new(403, "Forbidden", why));
        }
        let Some(place) = self.bounds.enter(&node) else {
            let status = Status::too_many("as many requests of nodes as there may be are under way", 1);
            return refuse(&passed, status);
        };
        let upstream = self.upstream.clone();
        Box::pin(async move {
            let answer = tokio::time::timeout(WITHIN, upstream.make(&passed, request.body, request.seen)).await;
            drop(place);
            match answer {
                Ok(reply) => reply.unwrap_or_else(error),
                Err(_) => {
                    let text = format!("the API server did not answer within {WITHIN:?}; a write may have been made");
                    CallReply::error(504, "Timeout", text)
                }
            }
        })
    }
}

fn error(status: Status) -> CallReply {
    CallReply::error(status.code.into(), status.reason, status.message)
}
