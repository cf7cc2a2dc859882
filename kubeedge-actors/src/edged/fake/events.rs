//! What a runtime in memory tells of itself, if it does.

use tokio::sync::mpsc;

use super::FakeRuntime;
use crate::edged::runtime::RuntimeError;

/// A listener that has so many to take is told nothing more: none may be relied upon.
const QUEUE: usize = 100;

#[derive(Default)]
pub(super) struct Events {
    offered: bool,
    asked: usize,
    listeners: Vec<mpsc::Sender<String>>,
}

impl Events {
    pub(super) fn tell(&mut self, id: &str) {
        self.listeners.retain(|listener| listener.try_send(id.to_owned()).is_ok());
    }

    pub(super) fn listen(&mut self) -> Result<mpsc::Receiver<String>, RuntimeError> {
        self.asked += 1;
        if !self.offered {
            let message = "a runtime in memory tells none unless it is asked to".to_owned();
            return Err(RuntimeError::Unimplemented { call: "events", message });
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.listeners.push(sender);
        Ok(receiver)
    }
}

impl FakeRuntime {
    /// It tells events from now on, as containerd 1.7 does.
    pub fn offer_events(&self) {
        self.state().events.offered = true;
    }

    /// The streams of events end; new ones may be opened.
    pub fn end_events(&self) {
        self.state().events.listeners.clear();
    }

    /// An event about a container or a sandbox.
    pub fn tell(&self, id: &str) {
        self.state().events.tell(id);
    }

    /// How often events were asked for.
    pub fn asked_for_events(&self) -> usize {
        self.state().events.asked
    }
}
