//! What controllers of the cloud share: they follow the API server, and write for a node only while its session is the
//! node's.

pub mod list_watch;
#[cfg_attr(not(feature = "devicecontroller"), allow(dead_code, reason = "others need a part of it"))]
pub(crate) mod objects;
pub mod sessions;
