//! Runs a session over a transport and talks to the actor that owns it.
//!
//! ```text
//!                    commands: Input                    Send(frame)
//!   CloudHub  ---------------------------->  run()  ------------------>  FrameSink
//!   or EdgeHub <---------------------------          <-----------------   FrameStream
//!                    events: Output                     Input::Frame
//! ```
//! The owner makes the session, the transport and two bounded [`queues`](super::queues), spawns [`run`], and handles the events until that
//! queue ends; the last thing on it is [`Output::Closed`] and the failures of open Calls. What was not settled comes as
//! the value of the task.
//!
//! ```no_run
//! # use kubeedge_actors::link::{driver, queues, session::{Input, Output, Session}, Config, FrameSink, FrameStream};
//! # async fn connect() -> (FrameSink, FrameStream) { unimplemented!() }
//! # async fn example(hello: kubeedge_proto::v1::Hello) -> Result<(), Box<dyn std::error::Error>> {
//! let (sink, stream) = connect().await;
//! let session = Session::edge(hello, Config::default()).stamped();
//! let (commands, inputs) = queues::inputs();
//! let (outputs, mut events) = queues::outputs();
//! let task = tokio::spawn(driver::run(session, sink, stream, inputs, outputs));
//! while let Some(event) = events.recv().await {
//!     if let Output::Deliver { class, seq, envelope } = event {
//!         let settled = kubeedge_proto::v1::Settled::applied(); // once the component has committed it
//!         # let _ = envelope;
//!         commands.send(Input::Settle { class, seq, settled }).await?;
//!     }
//! }
//! let ended = task.await?;
//! println!("{}, {} State messages to send again", ended.closed, ended.remains.state.len());
//! # Ok(()) }
//! ```
//! Bounds: an owner that does not take its events is waited for; frames are read no further while
//! [`PENDING_EVENTS`] wait. Windows keep deliveries far below that, so that heartbeats go on while a component is slow.
//! An owner that stands still for longer than the session's `dead_after` loses it.

use std::{collections::VecDeque, pin::Pin, time::Duration};

use futures_util::FutureExt;
use kubeedge_proto::v1::{Goodbye, GoodbyeReason};
use tokio::time::{Instant, Sleep};

use super::{
    queue::Sender,
    queues::{InputReceiver, OutputSender},
    session::{Closed, Input, Output, Remains, Session, Stats},
    transport::{FrameSink, FrameStream, SinkError},
};

/// Events that may wait for the owner before no more frames are read.
pub const PENDING_EVENTS: usize = 2048;
/// Inputs handled in one round, before what follows from them is sent.
const ROUND: usize = 128;
/// A round of no more than this is none of a burst.
const QUIET: usize = 2;
/// What a burst has needed is given back at the first round after so long without one.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// After a Goodbye of this end: how long the peer may take to close.
const LINGER: Duration = Duration::from_secs(2);

/// A session that is over.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub closed: Closed,
    /// What was submitted and not settled, oldest first. The owner sends it again or derives it anew.
    pub remains: Remains,
    /// Counts.
    pub stats: Stats,
}

/// Runs the session until it is over. Closing `commands` or dropping the receiver of `events` ends it in order.
///
/// The session's time begins now: it should be made right before. In a box it takes its room once.
pub async fn run(
    session: impl Into<Box<Session>>,
    sink: FrameSink,
    mut stream: FrameStream,
    InputReceiver(mut commands): InputReceiver,
    OutputSender(events): OutputSender,
) -> Ended {
    let start = Instant::now();
    let mut session: Box<Session> = session.into();
    let mut driver = Driver { outputs: Vec::new(), pending: VecDeque::new(), closed: None };
    session.poll(start.elapsed(), &mut driver.outputs);
    driver.take_outputs(&mut session, start.elapsed(), &sink, &events);

    let mut timer = Timer::new();
    let mut taken = Vec::new();
    let mut busy_at = Duration::ZERO;
    while driver.closed.is_none() {
        let read = driver.pending.len() < PENDING_EVENTS;
        timer.set(session.next_deadline().map(|at| start + at));
        let mut first = None;
        tokio::select! {
            frame = stream.next(), if read => first = Some(received(frame)),
            count = commands.recv_many(&mut taken, ROUND) => if count == 0 { first = Some(owner_gone()) },
            drained = sink.drained() => {
                first = Some(Input::Drained { frames: drained.frames, bytes: drained.bytes });
            }
            room = events.room(), if !driver.pending.is_empty() => {
                if room.is_ok() {
                    driver.offer(&events);
                    continue;
                }
                first = Some(owner_gone());
            }
            () = events.closed() => first = Some(owner_gone()),
            () = timer.passed() => {}
        }
        let now = start.elapsed();
        // Whatever else is there already belongs to the same round.
        let room = ROUND - taken.len().min(ROUND);
        if room > 0 {
            commands.recv_many(&mut taken, room).now_or_never();
        }
        let mut handled = taken.len();
        for input in first.into_iter().chain(taken.drain(..).map(|input| *input)) {
            session.handle(now, input, &mut driver.outputs);
            if session.is_closed() {
                break;
            }
        }
        for _ in 0..ROUND {
            let frame = if read && !session.is_closed() { stream.next().now_or_never() } else { None };
            let Some(frame) = frame else { break };
            session.handle(now, received(frame), &mut driver.outputs);
            handled += 1;
        }
        session.poll(now, &mut driver.outputs);
        driver.take_outputs(&mut session, now, &sink, &events);
        driver.offer(&events);
        // What a burst has needed is not kept through the quiet that follows: most sessions are idle most of the time.
        // Not at once: a burst has small rounds, too.
        if handled > QUIET {
            busy_at = now;
        } else if now.saturating_sub(busy_at) >= SETTLED_AFTER {
            taken = Vec::new();
            driver.outputs = Vec::new();
            driver.pending.shrink_to_fit();
            session.shrink();
        }
    }

    let closed = driver.closed.unwrap_or_else(|| Closed::Transport("ended".into()));
    for event in driver.pending {
        if events.send(Box::new(event)).await.is_err() {
            break;
        }
    }
    drop(events);
    // Who was silent for so long that this end gave up does not answer now: its link has to be found dead in time.
    let in_vain = matches!(&closed, Closed::ByUs(bye) if bye.reason() == GoodbyeReason::TimedOut);
    if in_vain {
        stream.reset();
    }
    drop(sink);
    if matches!(&closed, Closed::ByUs(_)) && !in_vain {
        // Lets the Goodbye arrive: a connection that is torn down may take what is under way with it.
        let rest = async { while let Ok(Some(_)) = stream.next().await {} };
        if tokio::time::timeout(LINGER, rest).await.is_err() {
            tracing::debug!("the peer did not close within {LINGER:?} after Goodbye");
        }
    }
    Ended { closed, stats: session.stats(), remains: session.finish() }
}

struct Driver {
    outputs: Vec<Output>,
    pending: VecDeque<Output>,
    closed: Option<Closed>,
}

impl Driver {
    /// Frames to the sink, events to the owner or into the line.
    fn take_outputs(&mut self, session: &mut Session, now: Duration, sink: &FrameSink, events: &Sender<Box<Output>>) {
        let mut full = false;
        for output in self.outputs.drain(..) {
            match output {
                Output::Send(frame, bytes) => match sink.send_sized(frame, bytes) {
                    Ok(()) => {}
                    Err(SinkError::Full) => full = true,
                    // Nobody reads any more. What the peer said last is still to be read from the stream, which ends
                    // then; if it does not, the session's liveness ends it.
                    Err(SinkError::Closed) => tracing::debug!("a frame has nowhere to go: the connection is closing"),
                },
                Output::Closed(closed) => {
                    self.pending.push_back(Output::Closed(closed.clone()));
                    self.closed = Some(closed);
                }
                event if self.pending.is_empty() => {
                    if let Err(error) = events.try_send(Box::new(event)) {
                        self.pending.push_back(*error.into_inner());
                    }
                }
                event => self.pending.push_back(event),
            }
        }
        // A session hands out fewer frames than fit: see Config::socket_frames.
        if full && self.closed.is_none() {
            session.handle(now, Input::TransportEnded(SinkError::Full.to_string()), &mut self.outputs);
            self.take_outputs(session, now, sink, events);
        }
    }

    /// As many events as the owner has room for.
    fn offer(&mut self, events: &Sender<Box<Output>>) {
        while let Some(event) = self.pending.pop_front() {
            if let Err(error) = events.try_send(Box::new(event)) {
                self.pending.push_front(*error.into_inner());
                return;
            }
        }
    }
}

fn received(frame: Result<Option<kubeedge_proto::v1::Frame>, super::transport::TransportError>) -> Input {
    match frame {
        Ok(Some(frame)) => Input::Frame(frame),
        Ok(None) => Input::TransportEnded("the peer has ended the stream".into()),
        Err(error) => Input::TransportEnded(error.to_string()),
    }
}

fn owner_gone() -> Input {
    Input::Close(Goodbye {
        reason: GoodbyeReason::ShuttingDown.into(),
        message: "this end stops".into(),
        retry_after_ms: 0,
    })
}

/// Wakes a session for its next deadline. A session's deadlines move away with every frame: a timer that is set already
/// is left to go off too early, which costs one poll, and not set anew each time.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    set: bool,
}

impl Timer {
    fn new() -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(Duration::ZERO)), set: false }
    }

    fn set(&mut self, deadline: Option<Instant>) {
        match deadline {
            Some(deadline) if self.set && self.sleep.deadline() <= deadline => {}
            Some(deadline) => {
                self.sleep.as_mut().reset(deadline);
                self.set = true;
            }
            None => self.set = false,
        }
    }

    async fn passed(&mut self) {
        if !self.set {
            return std::future::pending().await;
        }
        self.sleep.as_mut().await;
        self.set = false;
    }
}
