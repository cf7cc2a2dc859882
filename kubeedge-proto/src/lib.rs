//! The messages of KubeEdge actors.
//!
//! - [`v1`]: the wire and actor types, generated from `proto/kubeedge/v1`.
//! - [`cri`] (feature `cri`): the client side of the Kubernetes Container Runtime Interface v1.
//! - [`deviceplugin`] (feature `device-plugin`): the kubelet device plugin API v1beta1.
//! - [`health`] (feature `health`): the gRPC Health Checking Protocol.
//! - [`dmi`] (feature `dmi`): KubeEdge's Device Mapper Interface v1beta1, client and server.
//! - [`NodeName`], [`digest`], [`body`]: the rules that belong to the types.
//!
//! Nothing here does I/O.

#[cfg(feature = "actix")]
mod answers;
pub mod body;
#[cfg(feature = "grpc")]
pub mod codec;
pub mod digest;
mod names;

pub use names::{InvalidNodeName, NodeName, is_dns_subdomain, resource};

/// Generated from `proto/kubeedge/v1`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/kubeedge.v1.rs"));
}

/// Generated from `proto/runtime/v1/api.proto`, the parts of CRI v1 that Edged uses.
#[cfg(feature = "cri")]
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]
pub mod cri {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
}

/// Generated from `proto/deviceplugin/v1beta1/api.proto`: the kubelet device plugin API.
#[cfg(feature = "device-plugin")]
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]
pub mod deviceplugin {
    include!(concat!(env!("OUT_DIR"), "/deviceplugin/v1beta1.rs"));
}

/// Generated from `proto/grpc/health/v1/health.proto`.
#[cfg(feature = "health")]
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]
pub mod health {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

/// Generated from `proto/dmi/v1beta1/api.proto`: the Device Mapper Interface, both sides.
#[cfg(feature = "dmi")]
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]
pub mod dmi {
    include!(concat!(env!("OUT_DIR"), "/v1beta1.rs"));

    /// The protocol as a `FileDescriptorSet`, with what it imports: what gRPC reflection answers from.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/dmi.descriptors"));
}
