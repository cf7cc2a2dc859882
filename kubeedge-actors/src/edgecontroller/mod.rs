//! The edgecontroller module.
