//! Rule and RuleEndpoint of `rules.kubeedge.io/v1`: what they say, what they must be, and their definitions. Pure.
//!
//! A Rule joins a source with a target, each a RuleEndpoint of its namespace. What the rule says of either end depends on
//! the endpoint's type:
//!
//! | type | as source, `sourceResource` | as target, `targetResource` | the RuleEndpoint's `properties` |
//! |---|---|---|---|
//! | `rest` | `path`, such as `/a/{x}` | `resource`: an `http://` or `https://` URL | |
//! | `eventbus` | `topic`, `node_name` | `topic`; `node_name` where the source has none or another | |
//! | `servicebus` | `target_url`, `node_name` | `path`; `node_name` as before | `service_port`; `service_host`, the loopback address unless said |
//!
//! `node_name` of a target and `service_host` are not KubeEdge's.

#[cfg(any(feature = "router", feature = "admission", feature = "apiserver"))]
pub mod check;
#[cfg(feature = "router")]
pub mod crds;
pub mod template;
pub mod types;

/// The group of both.
pub const GROUP: &str = "rules.kubeedge.io";
/// Their version.
pub const VERSION: &str = "v1";
