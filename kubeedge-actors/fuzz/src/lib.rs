//! What is done with bytes of others, as functions: a fuzz target calls one, and so do the tests that replay the corpus
//! (`it::corpus` of `kubeedge-actors`, and for the two documents `config::tests` of the programs).
//!
//! Each one panics when something does not hold that has to hold whatever the bytes are.

mod session;
mod text;

// The documents as they are, without the programs around them and all that these depend on.
#[allow(dead_code, missing_docs)]
#[path = "../../../kubeedge-cloud/src/config.rs"]
mod cloud;
#[allow(dead_code, missing_docs)]
#[path = "../../../kubeedge-edge/src/config.rs"]
mod edge;

pub use session::{frame, inventory};
pub use text::{csr, token};

/// A configuration file of either program.
pub fn config(bytes: &[u8]) {
    text::document::<cloud::CloudCore>(bytes);
    text::document::<edge::EdgeCore>(bytes);
}
