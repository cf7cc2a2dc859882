//! Integration tests, one binary: a module per behaviour.

// A test fails by panicking; its helpers stand outside the functions that clippy takes for tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(feature = "link")]
mod link;
