//! What the examples and the integration tests share: a way to run real containers on one machine without touching
//! the machine's own container runtime, and without a network.
//!
//! | module | what it is |
//! |---|---|
//! | [`image`] | OCI images assembled in memory from the machine's static busybox |
//! | [`registry`] | a pull-only registry on loopback that serves them |
//! | [`containerd`] | a private containerd with its own root, sockets, bridge and subnet |
//! | [`process`] | child processes that end with us |
//! | [`leftovers`] | what a run left on the machine: mounts, processes, cgroups, links |
//! | [`mod@line`] | a line between two programs of this machine that can be cut |
//! | [`loop_disk`] | a disk that is filled, broken, and whose power is cut |
//! | [`netns`] | network namespaces, lines between them, and what can happen to a line |
//! | [`http`] | one HTTP request |
//! | [`ledger`] | what was acknowledged, and what may be seen after it |
//! | [`figures`] | what a program measured, beside its targets |
//! | [`lab`] | all of it together with cloudcore and edgecore, in one folder |
//! | [`scale`] | thousands of hollow nodes, and the cloud that they link to |
//!
//! The programs in `src/bin` are the user stories themselves: `quickstart`, a cloud, a node and a pod on one machine;
//! `custom_gateway`, the edge embedded in a program of one's own.

pub mod containerd;
pub mod figures;
pub mod http;
pub mod image;
pub mod lab;
pub mod ledger;
pub mod leftovers;
pub mod line;
pub mod loop_disk;
pub mod netns;
pub mod process;
pub mod registry;
pub mod scale;
