//! One client: a WebSocket as an actor, by `actix-web-actors`.
//!
//! What the client has not read waits in the kernel's buffers and in this actor's context, which has no bound of its own.
//! So events go in batches, each followed by a ping: the next batch goes when the pong is back, which a client sends when
//! it has read what is before it. A client that is slow falls behind on the board, whose bound is everyone's, and is
//! dropped with the reason.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, StreamHandler, WrapFuture};
use actix_web_actors::ws::{CloseCode, CloseReason, Message, ProtocolError, WebsocketContext};
use tokio::sync::broadcast::{
    Receiver,
    error::{RecvError, TryRecvError},
};

use super::{
    board::{Event, Seat, Wish},
    filter::Filter,
    server::Place,
};

/// Events of one batch.
pub const BATCH: usize = 64;
/// Bytes of one batch, beyond which no more are added.
pub const BATCH_BYTES: usize = 256 * 1024;
/// How long a client may take to read a batch, or to answer when there is nothing to read.
pub const READ_WITHIN: Duration = Duration::from_secs(20);
/// A client that has nothing to read is asked for a sign of life so often.
const PING: Duration = Duration::from_secs(15);
/// How often time is looked at.
const TICK: Duration = Duration::from_secs(5);

/// The actor. One a client.
pub(super) struct Socket {
    /// To be sent before what comes by `changes`.
    now: VecDeque<Event>,
    /// Not here while a change is being waited for.
    changes: Option<Receiver<Event>>,
    filter: Filter,
    /// The number of the ping that is not answered, and since when.
    unanswered: Option<(u64, Instant)>,
    pings: u64,
    last: Instant,
    _wish: Wish,
    _place: Place,
}

impl Socket {
    pub(super) fn new(Seat { now, changes, wish }: Seat, filter: Filter, place: Place) -> Self {
        Self {
            now: now.into(),
            changes: Some(changes),
            filter,
            unanswered: None,
            pings: 0,
            last: Instant::now(),
            _wish: wish,
            _place: place,
        }
    }

    /// Sends the next batch, unless the client has not read the one before.
    fn send(&mut self, ctx: &mut WebsocketContext<Self>) {
        if self.unanswered.is_some() {
            return;
        }
        let (mut events, mut bytes) = (0, 0);
        while events < BATCH && bytes < BATCH_BYTES {
            let event = match (self.now.pop_front(), &mut self.changes) {
                (Some(event), _) => event,
                // It comes with the next change.
                (None, None) => break,
                (None, Some(changes)) => match changes.try_recv() {
                    Ok(event) if self.filter.shows(&event.item) => event,
                    Ok(_) => continue,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Lagged(missed)) => return too_slow(missed, ctx),
                    Err(TryRecvError::Closed) => return close(ctx, CloseCode::Away, "the program is stopping"),
                },
            };
            events += 1;
            bytes += event.text.len();
            ctx.text(&*event.text);
        }
        if events > 0 { self.ping(ctx) } else { self.wait(ctx) }
    }

    fn ping(&mut self, ctx: &mut WebsocketContext<Self>) {
        self.pings += 1;
        self.last = Instant::now();
        self.unanswered = Some((self.pings, self.last));
        ctx.ping(&self.pings.to_be_bytes());
    }

    /// Comes back with the next change that is shown.
    fn wait(&mut self, ctx: &mut WebsocketContext<Self>) {
        let Some(mut changes) = self.changes.take() else { return };
        let filter = self.filter.clone();
        let next = async move {
            let next = loop {
                match changes.recv().await {
                    Ok(event) if !filter.shows(&event.item) => {}
                    next => break next,
                }
            };
            (next, changes)
        };
        ctx.spawn(next.into_actor(self).map(|(next, changes), this, ctx| {
            this.changes = Some(changes);
            match next {
                Ok(event) => {
                    this.now.push_back(event);
                    this.send(ctx);
                }
                Err(RecvError::Lagged(missed)) => too_slow(missed, ctx),
                Err(RecvError::Closed) => close(ctx, CloseCode::Away, "the program is stopping"),
            }
        }));
    }

    fn tick(&mut self, ctx: &mut WebsocketContext<Self>) {
        match self.unanswered {
            Some((_, since)) if since.elapsed() > READ_WITHIN => {
                tracing::info!("a client of the views is dropped: it reads nothing");
                close(ctx, CloseCode::Policy, &format!("too slow: nothing was read for {READ_WITHIN:?}"));
                // It may never read that either.
                ctx.run_later(TICK, |_, ctx| ctx.stop());
            }
            Some(_) => {}
            None if self.last.elapsed() > PING => self.ping(ctx),
            None => self.send(ctx),
        }
    }
}

fn too_slow(missed: u64, ctx: &mut WebsocketContext<Socket>) {
    tracing::info!(missed, "a client of the views is dropped: it is too slow");
    close(ctx, CloseCode::Policy, &format!("too slow: {missed} events are lost; connect again, or ask for less"));
}

fn close(ctx: &mut WebsocketContext<Socket>, code: CloseCode, why: &str) {
    // A close frame has room for 123 bytes.
    let why: String = why.chars().filter(char::is_ascii).take(120).collect();
    ctx.close(Some(CloseReason { code, description: Some(why) }));
    ctx.stop();
}

impl Actor for Socket {
    type Context = WebsocketContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.send(ctx);
        ctx.run_interval(TICK, Self::tick);
    }
}

impl StreamHandler<Result<Message, ProtocolError>> for Socket {
    fn handle(&mut self, message: Result<Message, ProtocolError>, ctx: &mut Self::Context) {
        match message {
            Ok(Message::Pong(number)) => {
                if self.unanswered.is_some_and(|(ping, _)| number == ping.to_be_bytes()[..]) {
                    self.unanswered = None;
                    self.send(ctx);
                }
            }
            Ok(Message::Ping(payload)) => ctx.pong(&payload),
            Ok(Message::Close(reason)) => {
                ctx.close(reason);
                ctx.stop();
            }
            // Nothing is asked here: what a client says is not looked at.
            Ok(Message::Text(_) | Message::Binary(_) | Message::Continuation(_) | Message::Nop) => {}
            Err(error) => close(ctx, CloseCode::Protocol, &error.to_string()),
        }
    }

    fn finished(&mut self, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
