//! What every server of the Kubernetes API has in common, whoever keeps the objects: the API server of standalone mode, and
//! MetaServer at the edge.
//!
//! - **Requests**: paths, queries and the options of lists and watches (`request`), selectors, the form of an answer.
//! - **Answers**: objects, lists, tables and watch events (`table`), [`status`], discovery.
//! - **What goes on** from an edge's API to the cluster's, and is taken there (`pass`).
//! - **Lists and watches** read a `collection`: the objects and a bounded log of their changes.
//!
//! Nothing here decodes, checks or stores an object.

pub mod discovery;
pub mod names;
pub mod resource;
pub mod status;

pub(crate) mod collection;
pub(crate) mod event_log;
pub(crate) mod fields;
pub(crate) mod http;
pub(crate) mod kinds;
pub(crate) mod list;
pub(crate) mod negotiate;
pub(crate) mod object;
pub(crate) mod pass;
pub(crate) mod request;
pub(crate) mod selector;
pub(crate) mod table;
pub(crate) mod time;
pub(crate) mod watch;
