//! What there is to see, live: `/ws/events` of cloud and edge, a WebSocket with an event of JSON for each change.
//!
//! ```json
//! {"kind": "pods", "event": "changed", "namespace": "default", "name": "web", "node": "edge-1", "object": {...}}
//! ```
//!
//! A client gets what there is (`now`), then `added`, `changed` and `gone`. Its query chooses ([`filter`]); nothing is read
//! from the API server or the edge's components that no client wants. [`board`] holds what there is and is pure, `socket`
//! is a client as an actor of `actix-web-actors`, `server` lets clients in, `cloud` and `edge` are the components that
//! look.
//!
//! | | bound | beyond it |
//! |---|---|---|
//! | clients | [`server::MAX_CLIENTS`] | 503 |
//! | events that a client may be behind | [`board::BEHIND`], held once for all | dropped: close code 1008, with the reason |
//! | a batch, and the time to read it | [`socket::BATCH`], [`socket::BATCH_BYTES`], [`socket::READ_WITHIN`] | likewise |
//! | things of a kind | [`board::MAX_ITEMS`] | left out, with a warning |
//!
//! Without tokens it may be served on the loopback interface only, and no page of elsewhere may look.

pub mod board;
#[cfg(feature = "cloudviews")]
pub mod cloud;
#[cfg(feature = "edgeviews")]
pub mod edge;
pub mod filter;
pub mod server;
pub mod socket;

use std::{net::TcpListener, sync::Arc};

use serde_json::json;

use self::{board::Board, filter::Kind};
use crate::{
    system::{Observed, System},
    web::tokens::Tokens,
};

/// Where the events are.
pub const PATH: &str = "/ws/events";

/// How views are served.
#[derive(Clone)]
pub struct ViewsConfig {
    /// Bound before the system starts, so that a port in use is a start-up error.
    pub listener: Arc<TcpListener>,
    /// TLS there, if wanted.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Who may look; `None`: whoever is on this machine.
    pub tokens: Option<Tokens>,
    /// Whose components are shown.
    pub observed: Observed,
}

/// Puts each component of a system on the board, as it is now.
fn show_components(observed: &Observed, board: &Board) {
    for seen in observed.get().map(System::observe).unwrap_or_default() {
        let object = json!({
            "phase": format!("{:?}", seen.phase),
            "queued": seen.queued,
            "capacity": seen.capacity,
            "handled": seen.handled,
            "restarts": seen.restarts,
            "panics": seen.panics,
            "parked": seen.parked,
            "stuck": seen.stuck,
        });
        board.set(item(Kind::Actors, "", seen.name, ""), object);
    }
}

fn item(kind: Kind, namespace: &str, name: &str, node: &str) -> board::Item {
    board::Item { kind, namespace: namespace.to_owned(), name: name.to_owned(), node: node.to_owned() }
}
