//! Integration tests of the library, in one binary.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

#[cfg(all(feature = "cloudhub", feature = "edgehub", feature = "metamanager"))]
mod hubs;
