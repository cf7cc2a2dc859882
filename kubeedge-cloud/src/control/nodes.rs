//! Revoked nodes behind the control socket.

use std::time::SystemTime;

use actix_web::{HttpResponse, web};
use kubeedge_actors::identity::{RevocationError, Revocations};
use kubeedge_proto::NodeName;
use serde::{Deserialize, Serialize};

/// A node that was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedNode {
    /// Its name.
    pub node: String,
    /// When, RFC 3339: certificates that begin before are refused for good.
    pub revoked: String,
    /// Whether it may join again.
    pub readmitted: bool,
}

pub(super) fn routes(config: &mut web::ServiceConfig) {
    let one = web::resource("/revoked-nodes/{node}").route(web::put().to(revoke)).route(web::delete().to(readmit));
    config.service(web::resource("/revoked-nodes").route(web::get().to(list))).service(one);
}

async fn list(revocations: web::Data<Revocations>) -> HttpResponse {
    let shown = revocations.list().into_iter().map(|node| {
        let revoked = jiff::Timestamp::try_from(node.at)?.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        Ok(RevokedNode { node: node.node.to_string(), revoked, readmitted: node.readmitted })
    });
    match shown.collect::<Result<Vec<_>, jiff::Error>>() {
        Ok(shown) => HttpResponse::Ok().json(shown),
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}

async fn revoke(revocations: web::Data<Revocations>, node: web::Path<String>) -> HttpResponse {
    answer(&node, |node| revocations.revoke(node, SystemTime::now()).map(|()| true))
}

async fn readmit(revocations: web::Data<Revocations>, node: web::Path<String>) -> HttpResponse {
    answer(&node, |node| revocations.readmit(node))
}

fn answer(node: &str, change: impl FnOnce(&NodeName) -> Result<bool, RevocationError>) -> HttpResponse {
    match node.parse().map(|node| change(&node)) {
        Ok(Ok(true)) => HttpResponse::NoContent().finish(),
        Ok(Ok(false)) => HttpResponse::NotFound().finish(),
        Ok(Err(error @ RevocationError::TooMany)) => HttpResponse::BadRequest().body(error.to_string()),
        Ok(Err(error)) => HttpResponse::InternalServerError().body(error.to_string()),
        Err(error) => HttpResponse::BadRequest().body(error.to_string()),
    }
}
