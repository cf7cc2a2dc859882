//! Integration tests of the library, one binary: a module per behaviour.

// A test fails by panicking; its helpers stand outside the functions that clippy takes for tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[cfg(feature = "apiserver")]
mod apiserver;
#[cfg(feature = "apiserver")]
mod apps;
#[cfg(all(feature = "apiserver", feature = "edgecontroller"))]
mod clients;
#[cfg(all(feature = "config", feature = "link"))]
mod corpus;
#[cfg(feature = "apiserver")]
mod custom;
#[cfg(all(feature = "apiserver", feature = "devicecontroller"))]
mod devices;
mod documented;
#[cfg(feature = "apiserver")]
mod events;
mod features;
#[cfg(feature = "apiserver")]
mod golden;
#[cfg(all(feature = "cloudhub", feature = "edgehub", feature = "metamanager", feature = "test-kit"))]
mod hubs;
#[cfg(feature = "apiserver")]
mod kubectl;
#[cfg(feature = "apiserver")]
mod lifecycle;
#[cfg(all(feature = "link", feature = "test-kit"))]
mod link;
#[cfg(all(feature = "apiserver", feature = "edgecontroller", feature = "metamanager", feature = "metaserver"))]
mod metaserver;
#[cfg(all(feature = "embedded-broker", feature = "eventbus-tls", feature = "test-kit"))]
mod mqtt;
#[cfg(feature = "apiserver")]
mod pages;
#[cfg(all(feature = "embedded-broker", feature = "eventbus-tls", feature = "mapper-push", feature = "test-kit"))]
mod push;
#[cfg(all(feature = "apiserver", feature = "cloudstream", feature = "edgestream", feature = "test-kit"))]
mod relay;
#[cfg(all(feature = "apiserver", feature = "router", feature = "servicebus", feature = "test-kit"))]
mod rules;
#[cfg(feature = "apiserver")]
mod services;
#[cfg(all(
    feature = "cloudhub",
    feature = "edgecontroller",
    feature = "edgehub",
    feature = "metamanager",
    feature = "edged"
))]
mod sim;
#[cfg(any(feature = "apiserver", all(feature = "eventbus-tls", feature = "test-kit")))]
mod skip;
#[cfg(feature = "link")]
mod streams;
#[cfg(all(feature = "edgeviews", feature = "test-kit"))]
mod views;
