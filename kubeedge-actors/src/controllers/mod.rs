//! What controllers of the cloud share: they follow the API server, and write for a node only while its session is the
//! node's.

pub mod list_watch;
pub(crate) mod objects;
pub mod sessions;
