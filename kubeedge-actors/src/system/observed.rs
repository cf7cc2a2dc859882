//! A system that one of its own components looks at: it is there only when all components have been built.

use std::sync::{Arc, OnceLock};

use super::System;

/// The system that is looked at. Set once it runs; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Observed(Arc<OnceLock<System>>);

impl Observed {
    /// `system` is looked at from now on. The first one counts.
    pub fn set(&self, system: &System) {
        self.0.get_or_init(|| system.clone());
    }

    /// The system; `None` while the program is starting.
    pub fn get(&self) -> Option<&System> {
        self.0.get()
    }
}
