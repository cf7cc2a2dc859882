//! The two queues between a session's driver and its owner.
//!
//! What a session is told or tells has a quarter of a kilobyte: here it is behind a pointer, so that the room which a
//! queue keeps is small.

use tokio::sync::mpsc::error::TrySendError;

use super::{
    queue::{Receiver, Sender, WeakSender, queue},
    session::{Input, Output},
};

/// Inputs that fit: a controller's burst for one node while its driver is not scheduled. The queue takes memory for what
/// is in it, and State coalesces once it is in the session.
pub const INPUTS: usize = 4096;
/// Outputs that fit; the driver keeps some more for an owner that is slow.
pub const OUTPUTS: usize = 256;

/// The session is over, or its driver gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session is over")]
pub struct SessionOver;

/// Where an owner tells its session something. Cheap to clone; the session ends in order when the last one is dropped.
#[derive(Clone, Debug)]
pub struct InputSender(Sender<Box<Input>>);

/// The driver's end.
#[derive(Debug)]
pub struct InputReceiver(pub(super) Receiver<Box<Input>>);

/// Does not keep a session going.
#[derive(Clone, Debug)]
pub struct WeakInputSender(WeakSender<Box<Input>>);

/// A queue of [`INPUTS`].
pub fn inputs() -> (InputSender, InputReceiver) {
    let (sender, receiver) = queue(INPUTS);
    (InputSender(sender), InputReceiver(receiver))
}

impl InputSender {
    /// Waits for room.
    pub async fn send(&self, input: Input) -> Result<(), SessionOver> {
        self.0.send(Box::new(input)).await.map_err(|_| SessionOver)
    }

    /// Gives it back when there is no room, or the session is over.
    pub fn try_send(&self, input: Input) -> Result<(), TrySendError<Box<Input>>> {
        self.0.try_send(Box::new(input))
    }

    /// Waits until the session is over.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    /// The same without keeping the session going.
    pub fn downgrade(&self) -> WeakInputSender {
        WeakInputSender(self.0.downgrade())
    }
}

impl WeakInputSender {
    /// `None` when nobody keeps the session going.
    pub fn upgrade(&self) -> Option<InputSender> {
        self.0.upgrade().map(InputSender)
    }
}

/// The driver's end of the other queue.
#[derive(Debug)]
pub struct OutputSender(pub(super) Sender<Box<Output>>);

/// Where an owner hears of its session. Dropping it ends the session in order.
#[derive(Debug)]
pub struct OutputReceiver(Receiver<Box<Output>>);

/// A queue of [`OUTPUTS`].
pub fn outputs() -> (OutputSender, OutputReceiver) {
    let (sender, receiver) = queue(OUTPUTS);
    (OutputSender(sender), OutputReceiver(receiver))
}

impl OutputReceiver {
    /// The next one; `None` after the last, which is [`Output::Closed`] and the failures of open Calls.
    pub async fn recv(&mut self) -> Option<Output> {
        self.0.recv().await.map(|output| *output)
    }

    /// One that is there already.
    pub fn try_recv(&mut self) -> Option<Output> {
        self.0.try_recv().ok().map(|output| *output)
    }
}
