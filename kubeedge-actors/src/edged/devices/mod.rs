//! Device plugins: programs on the node that have devices for containers, by the kubelet's API v1beta1.
//!
//! A plugin registers at `<root directory>/device-plugins/kubelet.sock` and serves a socket beside it. [`pool`] knows its
//! devices and who has which; what a container was given is on disk before the container is made. `manager` talks to
//! the plugins. A plugin that is gone keeps what its containers have; its other devices are not given away.
//!
//! A plugin that says it has a preference (`GetPreferredAllocation`) is asked for it; otherwise devices are taken by the
//! order of their ids. Not there: NUMA topology.

mod manager;
pub mod pool;

pub use manager::{DeviceManager, Given};
pub use pool::{Offer, Pools, Shortage};
