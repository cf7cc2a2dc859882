//! Publications on their way to paho, by a thread of their own.
//!
//! paho has one lock for all its clients. It holds it while it hands in what a broker sent, and takes it whenever it is
//! asked anything. So whoever asks it waits as long as that message waits to be taken ([`super::client::PATIENCE`]): here a
//! thread does, and not the arbiter, on which those run who take the messages.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use paho_mqtt::{AsyncClient, DeliveryToken, Error, Message};
use tokio::sync::{mpsc, oneshot};

use super::client::Paho;

/// Publications that wait for paho.
pub const UNSENT: usize = 4096;
/// Bytes of publications that are not confirmed, those that wait for paho included.
pub const UNCONFIRMED: usize = 64 * 1024 * 1024;
/// What paho says when it has as many messages as it takes, or no number for one more. When it has room again it does not
/// say: it is asked again after this.
const FULL: [i32; 2] = [-12, -10];
const AGAIN: Duration = Duration::from_millis(1);

/// Takes publications, in order.
pub(super) struct Sender {
    jobs: mpsc::Sender<Job>,
    unconfirmed: Arc<AtomicUsize>,
}

struct Job {
    message: Message,
    held: Held,
    sent: oneshot::Sender<Sent>,
}

type Sent = Result<(DeliveryToken, Held), String>;

/// A payload's bytes among those that are not confirmed.
struct Held {
    bytes: usize,
    of: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Sender {
    /// A thread that ends with this value.
    pub(super) fn start(client: Arc<Paho>) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(UNSENT);
        thread::Builder::new().name("mqtt-publish".into()).spawn(move || {
            while let Some(Job { message, held, sent }) = queue.blocking_recv() {
                let handed = hand_over(&client, message);
                // Who does not wait for the broker's word has dropped the other end.
                drop(sent.send(handed.map(|token| (token, held))));
            }
        })?;
        Ok(Self { jobs, unconfirmed: Arc::default() })
    }

    /// Takes a publication; the error is a bound.
    pub(super) fn publish(&self, message: Message) -> Result<Delivery, String> {
        let bytes = message.payload().len();
        let held = Held { bytes, of: Arc::clone(&self.unconfirmed) };
        if held.of.fetch_add(bytes, Ordering::Relaxed) + bytes > UNCONFIRMED {
            return Err(format!("{UNCONFIRMED} bytes wait for the broker already"));
        }
        let (sent, answer) = oneshot::channel();
        match self.jobs.try_send(Job { message, held, sent }) {
            Ok(()) => Ok(Delivery(answer)),
            Err(_) => Err(format!("{UNSENT} publications wait for the broker already")),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "it is no thread of an arbiter, and paho tells nobody that it has room")]
fn hand_over(client: &AsyncClient, mut message: Message) -> Result<DeliveryToken, String> {
    loop {
        message = match client.try_publish(message) {
            Ok(token) => return Ok(token),
            Err(Error::Publish(code, message)) if FULL.contains(&code) => message,
            Err(error) => return Err(error.to_string()),
        };
        thread::sleep(AGAIN);
    }
}

/// A publication that was taken.
pub struct Delivery(oneshot::Receiver<Sent>);

impl Delivery {
    /// Waits until the broker has it; of QoS 0: until it is sent. The error says why it has not, as far as is known.
    pub async fn confirmed(self) -> Result<(), String> {
        let (token, _held) = self.0.await.map_err(|_| "the client has ended".to_owned())??;
        token.await.map_err(|error| error.to_string())
    }
}
