//! KubeEdge as typed actors: embed the components you need in your own gateway, beside your own.
//!
//! Every component is an actix actor; they exchange the protobuf messages of [`kubeedge_proto`] through typed, bounded
//! ports. Each has a cargo feature of its own, `cloud`, `edge` and `standalone` are the usual sets.
//!
//! | module | what it is |
//! |---|---|
//! | [`system`] | the actor kit: component, port, wiring, supervision, ordered stop |
//! | [`audit`] | one line for every refusal |
//! | `config` | KubeEdge's own YAML files, read into types |
//! | `program` | the log and the stop signals of a program |
//! | `store` | typed tables on disk with group commit |
//! | `identity` | certificate authority, certificates, join tokens |
//! | `link` | the cloud-edge link: a pure state machine and its gRPC shell |
//! | `upgrade` | which headers of an HTTP upgrade go along with a stream |
//! | `autonomy` | which pods stay on a node that nobody hears from |
//! | `device` | Device, DeviceModel and DeviceStatus as types, and their definitions |
//! | `rule` | Rule and RuleEndpoint: what they say, what they must be, their definitions |
//! | `web` | what the ends of a rule do with HTTP headers and bodies |
//! | `dmi` | what both ends of the Device Mapper Interface share |
//! | `mapper` | a mapper's end of it, for mappers in Rust |
//! | `controllers` | what the cloud's controllers share |
//! | `kubeapi` | what every server of the Kubernetes API has in common |
//! | `admission` `cloudhub` `cloudstream` `devicecontroller` `edgecontroller` `router` `apiserver` | the cloud's components |
//! | `devicetwin` `edged` `edgehub` `edgestream` `eventbus` `kubeletapi` `metamanager` `metaserver` `servicebus` | the edge's components |

pub mod audit;
pub mod system;

/// The blocks of the page for embedders, compiled and run.
#[cfg(all(doctest, feature = "test-kit", feature = "metrics"))]
#[doc = include_str!("../../docs/embedding.md")]
mod embedding {}

#[cfg(feature = "config")]
pub mod config;

#[cfg(feature = "program")]
pub mod program;

#[cfg(any(feature = "program", feature = "edged"))]
pub mod route;

#[cfg(feature = "store")]
pub mod store;

#[cfg(feature = "identity")]
pub mod identity;

#[cfg(feature = "link")]
pub mod link;

#[cfg(any(feature = "cloudstream", feature = "edgestream", feature = "apiserver"))]
pub mod upgrade;

#[cfg(any(feature = "admission", feature = "apiserver"))]
pub mod autonomy;

#[cfg(any(feature = "devicecontroller", feature = "devicetwin", feature = "admission", feature = "apiserver"))]
pub mod device;

#[cfg(any(
    feature = "router",
    feature = "eventbus",
    feature = "servicebus",
    feature = "admission",
    feature = "apiserver"
))]
pub mod rule;

#[cfg(any(feature = "config", feature = "dynamiccontroller"))]
pub mod grants;

#[cfg(any(
    feature = "router",
    feature = "servicebus",
    feature = "views",
    feature = "kubeletapi",
    feature = "metaserver"
))]
mod serving;

#[cfg(any(feature = "router", feature = "servicebus", feature = "views"))]
pub mod web;

#[cfg(feature = "kubeapi")]
// What only one of its servers reads is in the other's build all the same, and alone nobody reads it.
#[cfg_attr(not(feature = "apiserver"), allow(dead_code, unused_imports))]
pub mod kubeapi;

#[cfg(feature = "views")]
pub mod views;

#[cfg(any(feature = "devicetwin", feature = "mapper"))]
pub mod dmi;

#[cfg(feature = "mapper")]
pub mod mapper;

#[cfg(any(feature = "edgecontroller", feature = "devicecontroller", feature = "router", feature = "cloudviews"))]
pub mod controllers;

#[cfg(feature = "admission")]
pub mod admission;

#[cfg(feature = "apiserver")]
pub mod apiserver;
#[cfg(feature = "cloudhub")]
pub mod cloudhub;
#[cfg(feature = "cloudstream")]
pub mod cloudstream;
#[cfg(feature = "devicecontroller")]
pub mod devicecontroller;
#[cfg(feature = "dynamiccontroller")]
pub mod dynamiccontroller;
#[cfg(feature = "edgecontroller")]
pub mod edgecontroller;
#[cfg(feature = "router")]
pub mod router;

#[cfg(feature = "devicetwin")]
pub mod devicetwin;
#[cfg(feature = "edged")]
pub mod edged;
#[cfg(feature = "edgehub")]
pub mod edgehub;
#[cfg(feature = "edgestream")]
pub mod edgestream;
#[cfg(feature = "eventbus")]
pub mod eventbus;
#[cfg(feature = "kubeletapi")]
pub mod kubeletapi;
#[cfg(feature = "metamanager")]
pub mod metamanager;
#[cfg(feature = "metaserver")]
pub mod metaserver;
#[cfg(feature = "servicebus")]
pub mod servicebus;
