//! Runs one end of a stream connection over a transport and gives out its streams.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream as Incoming, StreamExt};
use kubeedge_proto::v1::{StreamFrame, StreamHead, StreamOpen};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    OPEN_STREAMS, OpenError, StreamError,
    mux::{Event, Mux, Read, Side},
};

/// Frames handed to the transport and not taken by it yet.
pub const TRANSPORT_FRAMES: usize = 2;
/// The cloud closes a connection that carried no stream for so long.
pub const IDLE: Duration = Duration::from_secs(180);

/// A handle of a connection; the connection lives as long as [`Self::run`] does.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    /// There may be a frame to send.
    work: Notify,
}

#[derive(Debug)]
struct Inner {
    mux: Mux,
    wakes: HashMap<u64, Arc<Wakes>>,
    /// Why it has ended.
    ended: Option<String>,
    /// The owner wants it to end.
    closing: Option<String>,
    /// Since when there is no stream.
    idle_since: Option<Instant>,
}

/// Who waits on a stream: one reader and one writer.
#[derive(Debug, Default)]
struct Wakes {
    read: Notify,
    write: Notify,
}

impl Wakes {
    fn both(&self) {
        self.read.notify_one();
        self.write.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stream(self: &Arc<Self>, inner: &mut Inner, id: u64) -> Stream {
        let wakes = Arc::new(Wakes::default());
        inner.wakes.insert(id, Arc::clone(&wakes));
        inner.idle_since = None;
        Stream { id, shared: Arc::clone(self), wakes }
    }
}

impl Inner {
    fn wake(&self, event: &Event) {
        let (Event::Readable(id) | Event::Writable(id)) = event else { return };
        let Some(wakes) = self.wakes.get(id) else { return };
        match event {
            Event::Writable(_) => wakes.write.notify_one(),
            // Who waits for room must hear of the end, too.
            _ if self.mux.aborted(*id).is_some() => wakes.both(),
            _ => wakes.read.notify_one(),
        }
    }

    fn end(&mut self, why: &str) {
        self.ended.get_or_insert_with(|| why.to_owned());
        self.mux.disconnect(why);
        for wakes in self.wakes.values() {
            wakes.both();
        }
    }
}

impl Connection {
    /// A connection that nobody runs yet.
    pub fn new(side: Side) -> Self {
        Self(Arc::new(Shared {
            inner: Mutex::new(Inner {
                mux: Mux::new(side),
                wakes: HashMap::new(),
                ended: None,
                closing: None,
                idle_since: Some(Instant::now()),
            }),
            work: Notify::new(),
        }))
    }

    /// Opener: a new stream that begins with this request. Nothing is waited for.
    pub fn open(&self, open: StreamOpen) -> Result<Stream, OpenError> {
        let mut inner = self.0.lock();
        if let Some(why) = inner.ended.as_ref().or(inner.closing.as_ref()) {
            return Err(OpenError::Disconnected(why.clone()));
        }
        let id = inner.mux.open(open).ok_or(OpenError::Full)?;
        let stream = self.0.stream(&mut inner, id);
        drop(inner);
        self.0.work.notify_one();
        Ok(stream)
    }

    /// Whether it has ended or is about to.
    pub fn is_closed(&self) -> bool {
        let inner = self.0.lock();
        inner.ended.is_some() || inner.closing.is_some()
    }

    /// Ends it and all its streams.
    pub fn close(&self, why: &str) {
        self.0.lock().closing.get_or_insert_with(|| why.to_owned());
        self.0.work.notify_one();
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        self.0.lock().mux.len()
    }

    /// Runs the connection until it ends, and says why. `outgoing` should hold [`TRANSPORT_FRAMES`]. At the edge the
    /// requests of the cloud come out of `requests`, which should hold [`REQUESTS`]; the cloud gives none and ends the
    /// connection when it was [`IDLE`].
    pub async fn run<E: std::fmt::Display>(
        &self,
        outgoing: mpsc::Sender<StreamFrame>,
        mut incoming: impl Incoming<Item = Result<StreamFrame, E>> + Unpin,
        requests: Option<mpsc::Sender<Request>>,
    ) -> String {
        let _end = EndOnDrop(&self.0);
        let why = loop {
            let (has_idled, closing) = {
                let inner = self.0.lock();
                (inner.idle_since.filter(|_| requests.is_none()), inner.closing.clone())
            };
            if let Some(why) = closing {
                break why;
            }
            tokio::select! {
                frame = incoming.next() => match frame {
                    Some(Ok(frame)) => {
                        if let Err(violation) = self.received(frame, requests.as_ref()) {
                            break violation;
                        }
                    }
                    Some(Err(error)) => break error.to_string(),
                    None => break "the other end closed it".to_owned(),
                },
                sent = self.send(&outgoing) => if !sent {
                    break "the transport closed it".to_owned();
                },
                () = idle_until(has_idled) => {
                    let mut inner = self.0.lock();
                    if inner.mux.is_empty() {
                        inner.end("it was idle");
                        break "it was idle".to_owned();
                    }
                }
            }
        };
        self.0.lock().end(&why);
        why
    }

    /// Hands the next frame to the transport, or waits for there to be one. May be dropped and called again.
    async fn send(&self, outgoing: &mpsc::Sender<StreamFrame>) -> bool {
        // Room first: a frame that was taken from the mux is never lost.
        let Ok(room) = outgoing.reserve().await else { return false };
        let next = {
            let mut inner = self.0.lock();
            let next = inner.mux.next_frame();
            if let Some((_, Some(event))) = &next {
                inner.wake(event);
            }
            if inner.mux.is_empty() && inner.idle_since.is_none() {
                inner.idle_since = Some(Instant::now());
            }
            next
        };
        match next {
            Some((frame, _)) => room.send(frame),
            None => {
                drop(room);
                self.0.work.notified().await;
            }
        }
        true
    }

    fn received(&self, frame: StreamFrame, requests: Option<&mpsc::Sender<Request>>) -> Result<(), String> {
        let mut inner = self.0.lock();
        let event = inner.mux.receive(frame).map_err(|violation| violation.to_string())?;
        match event {
            Some(Event::Opened(id, open)) => {
                let stream = self.0.stream(&mut inner, id);
                drop(inner);
                // Dropped where there is no room, which tells the peer.
                if let Some(requests) = requests
                    && let Err(error) = requests.try_send(Request { open, stream })
                {
                    tracing::warn!("a stream of the cloud is refused: {error}");
                }
            }
            Some(event) => inner.wake(&event),
            None if inner.mux.is_empty() && inner.idle_since.is_none() => inner.idle_since = Some(Instant::now()),
            None => {}
        }
        // Credit lets a stream go on, a new stream has room to tell.
        self.0.work.notify_one();
        Ok(())
    }
}

/// A good capacity for the channel of requests.
pub const REQUESTS: usize = 2 * OPEN_STREAMS;

/// A task that is aborted leaves no stream waiting.
struct EndOnDrop<'a>(&'a Shared);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.lock().end("this end stops");
    }
}

async fn idle_until(since: Option<Instant>) {
    match since {
        Some(since) => tokio::time::sleep_until(since + IDLE).await,
        None => std::future::pending().await,
    }
}

/// A request of the cloud, at the edge.
#[derive(Debug)]
pub struct Request {
    /// What is asked for.
    pub open: StreamOpen,
    /// Where to answer.
    pub stream: Stream,
}

/// One stream. Dropping it before both ends have finished gives it up, at both ends.
#[derive(Debug)]
pub struct Stream {
    id: u64,
    shared: Arc<Shared>,
    wakes: Arc<Wakes>,
}

/// The bytes that come, while [`OutgoingBytes`] takes those that go.
#[derive(Debug)]
pub struct IncomingBytes<'a>(&'a Stream);

/// The bytes that go.
#[derive(Debug)]
pub struct OutgoingBytes<'a>(&'a Stream);

impl IncomingBytes<'_> {
    /// As [`Stream::head`].
    pub async fn head(&mut self) -> Result<StreamHead, StreamError> {
        self.0.answered().await
    }

    /// As [`Stream::read`].
    pub async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        self.0.next().await
    }

    /// As [`Stream::given_up`].
    pub async fn given_up(&mut self) -> StreamError {
        self.0.failed().await
    }
}

impl OutgoingBytes<'_> {
    /// As [`Stream::respond`].
    pub fn respond(&mut self, head: StreamHead) {
        self.0.answer(head);
    }

    /// As [`Stream::write`].
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.0.put(bytes).await
    }

    /// As [`Stream::finish`].
    pub fn finish(&mut self) {
        self.0.end();
    }
}

impl Stream {
    /// Opener: waits for the head of the answer.
    pub async fn head(&mut self) -> Result<StreamHead, StreamError> {
        self.answered().await
    }

    async fn answered(&self) -> Result<StreamHead, StreamError> {
        loop {
            {
                let inner = self.shared.lock();
                if let Some(head) = inner.mux.head(self.id) {
                    return Ok(head.clone());
                }
                if let Some(error) = failure(&inner, self.id) {
                    return Err(error);
                }
            }
            self.wakes.read.notified().await;
        }
    }

    /// Acceptor: the head of the answer; only the first counts.
    pub fn respond(&mut self, head: StreamHead) {
        self.answer(head);
    }

    fn answer(&self, head: StreamHead) {
        self.shared.lock().mux.respond(self.id, head);
        self.shared.work.notify_one();
    }

    /// Both directions at once.
    pub fn split(&mut self) -> (IncomingBytes<'_>, OutgoingBytes<'_>) {
        (IncomingBytes(self), OutgoingBytes(self))
    }

    /// What has arrived; `None` when the peer has sent everything. May be dropped and called again.
    pub async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        self.next().await
    }

    /// Writes all of it, waiting for room.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.put(bytes).await
    }

    async fn next(&self) -> Result<Option<Bytes>, StreamError> {
        loop {
            {
                let mut inner = self.shared.lock();
                match inner.mux.read(self.id) {
                    Read::Data(bytes) => {
                        drop(inner);
                        self.shared.work.notify_one();
                        return Ok(Some(bytes));
                    }
                    Read::End => return Ok(None),
                    Read::Aborted(why) => return Err(error(&inner, why)),
                    Read::Pending => {}
                }
            }
            self.wakes.read.notified().await;
        }
    }

    async fn put(&self, mut bytes: Bytes) -> Result<(), StreamError> {
        loop {
            {
                let mut inner = self.shared.lock();
                let taken = inner.mux.write(self.id, &mut bytes);
                taken.map_err(|why| error(&inner, why))?;
            }
            self.shared.work.notify_one();
            if bytes.is_empty() {
                return Ok(());
            }
            self.wakes.write.notified().await;
        }
    }

    /// Waits until the stream has been given up or its connection has ended.
    pub async fn given_up(&mut self) -> StreamError {
        self.failed().await
    }

    async fn failed(&self) -> StreamError {
        loop {
            let failed = failure(&self.shared.lock(), self.id);
            match failed {
                Some(error) => return error,
                None => self.wakes.read.notified().await,
            }
        }
    }

    /// Half close: nothing more will be written; what was is still sent, also after the drop of this value if the peer
    /// has finished too.
    pub fn finish(&mut self) {
        self.end();
    }

    fn end(&self) {
        self.shared.lock().mux.finish(self.id);
        self.shared.work.notify_one();
    }
}

fn failure(inner: &Inner, id: u64) -> Option<StreamError> {
    inner.mux.aborted(id).map(|why| error(inner, why.to_owned()))
}

fn error(inner: &Inner, why: String) -> StreamError {
    match &inner.ended {
        Some(ended) => StreamError::Disconnected(ended.clone()),
        None => StreamError::Aborted(why),
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.mux.release(self.id, "nobody wants it any more");
        inner.wakes.remove(&self.id);
        if inner.mux.is_empty() {
            inner.idle_since = Some(Instant::now());
        }
        drop(inner);
        self.shared.work.notify_one();
    }
}
