//! Integration tests of the library, one binary: a module per behaviour.

// A test fails by panicking; its helpers stand outside the functions that clippy takes for tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[cfg(feature = "apiserver")]
mod apiserver;
#[cfg(feature = "apiserver")]
mod golden;
#[cfg(all(feature = "cloudhub", feature = "edgehub", feature = "metamanager"))]
mod hubs;
#[cfg(feature = "link")]
mod link;
#[cfg(feature = "link")]
mod streams;
