//! Watches: the present as `ADDED` where it is asked for, then every change, as lines of JSON.
//!
//! A watch holds only its position in the kind's event log and at most one batch of encoded events. It ends at its
//! timeout, when the server stops, or with a `410 Expired` event when the log no longer has what comes next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, interval_at};

use super::collection::Collection;
use super::event_log::{Event, Seen};
use super::object::{Object, metadata};
use super::request::ListOptions;
use super::selector::Selector;
use super::status::Status;
use super::table::View;

/// Events read from the log at once: what one watch may hold encoded.
const BATCH: usize = 128;
/// How often a watch that asked for bookmarks gets one.
const BOOKMARK: Duration = Duration::from_secs(60);
/// How long a watch lives that did not say: a client asks again with its last resourceVersion.
const DEFAULT_TIMEOUT_SECONDS: u64 = 1800;

/// The present objects still to be sent, and what follows them.
struct Initial {
    objects: VecDeque<Arc<Object>>,
    end_bookmark: bool,
}

/// One running watch.
pub(crate) struct Stream {
    collection: Arc<dyn Collection>,
    namespace: Option<String>,
    selector: Selector,
    view: View,
    now: fn() -> i64,
    initial: Option<Initial>,
    /// Everything up to here has been sent.
    position: u64,
    changed: watch::Receiver<u64>,
    bookmarks: Option<tokio::time::Interval>,
    deadline: Instant,
    first: bool,
    ended: bool,
    _permit: OwnedSemaphorePermit,
}

/// Starts a watch, one of as many as `permits` has; `clock` gives seconds since 1970.
pub(crate) fn watch(
    collection: Arc<dyn Collection>,
    permits: &Arc<Semaphore>,
    namespace: Option<String>,
    view: View,
    options: ListOptions,
    clock: fn() -> i64,
) -> Result<Box<Stream>, Status> {
    let permit = permits
        .clone()
        .try_acquire_owned()
        .map_err(|_| Status::too_many("as many watches are open as this server allows, please try again later", 1))?;
    let changed = collection.subscribe();
    // No resourceVersion, or 0: begin with the present. `sendInitialEvents` decides for itself.
    let from_present = match options.resource_version {
        _ if options.initial_events => true,
        None | Some(0) => true,
        Some(_) => false,
    };
    let (position, initial) = if from_present {
        let (version, objects) = collection.list(namespace.as_deref());
        if let Some(asked) = options.resource_version.filter(|asked| *asked > version) {
            return Err(Status::resource_version_too_large(asked, version));
        }
        let objects = objects.into_iter().filter(|object| options.selector.matches(object)).collect();
        let end_bookmark = options.initial_events && options.bookmarks;
        (version, Some(Initial { objects, end_bookmark }))
    } else {
        (options.resource_version.unwrap_or_default(), None)
    };
    let timeout =
        Duration::from_secs(options.timeout_seconds.filter(|s| *s > 0).unwrap_or(DEFAULT_TIMEOUT_SECONDS).min(86_400));
    let bookmarks = options.bookmarks.then(|| interval_at(Instant::now() + BOOKMARK, BOOKMARK));
    Ok(Box::new(Stream {
        collection,
        namespace,
        selector: options.selector,
        view,
        now: clock,
        initial,
        position,
        changed,
        bookmarks,
        deadline: Instant::now() + timeout,
        first: true,
        ended: false,
        _permit: permit,
    }))
}

impl Stream {
    /// The next lines; `None` ends the watch.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let closing = self.collection.closing().clone();
        loop {
            self.view.now = (self.now)();
            if let Some(lines) = self.initial_lines() {
                return Some(lines);
            }
            // Marked seen before reading: a change after the read wakes us.
            self.changed.borrow_and_update();
            match self.collection.events(self.position, BATCH) {
                Err(too_old) => {
                    self.ended = true;
                    let why = format!("too old resource version: {} ({})", self.position, too_old.oldest);
                    return Some(error_line(&Status::expired(why)));
                }
                Ok((events, reached)) => {
                    let more = events.len() == BATCH;
                    let lines = self.event_lines(&events);
                    self.position = reached;
                    if !lines.is_empty() {
                        return Some(lines);
                    }
                    if more {
                        continue;
                    }
                }
            }
            let bookmark = async {
                match &mut self.bookmarks {
                    Some(interval) => interval.tick().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.changed.changed() => if changed.is_err() { return None },
                _ = bookmark => return Some(self.view.bookmark(self.position, false)),
                () = tokio::time::sleep_until(self.deadline) => return None,
                () = closing.cancelled() => return None,
            }
        }
    }

    /// A batch of the present, then the bookmark that ends it.
    fn initial_lines(&mut self) -> Option<Bytes> {
        let initial = self.initial.as_mut()?;
        let mut out = BytesMut::new();
        for object in initial.objects.drain(..initial.objects.len().min(BATCH)) {
            self.view.write_event(Seen::Added.name(), &object, self.first, &mut out);
            self.first = false;
        }
        if initial.objects.is_empty() {
            if initial.end_bookmark {
                out.extend_from_slice(&self.view.bookmark(self.position, true));
            }
            self.initial = None;
        }
        (!out.is_empty()).then(|| out.freeze())
    }

    fn event_lines(&mut self, events: &[Event]) -> Bytes {
        let mut out = BytesMut::new();
        for event in events {
            if self.namespace.as_deref().is_some_and(|namespace| event.object.key.namespace != namespace) {
                continue;
            }
            let Some(seen) = event.seen_by(|object| self.selector.matches(object)) else { continue };
            let departed;
            let object = match (&event.previous, seen) {
                // It left the selection: the state it had inside, with the version of its leaving.
                (Some(before), Seen::Deleted) if !event.deleted => {
                    departed = at_version(before, &self.view, event.resource_version);
                    &departed
                }
                _ => &*event.object,
            };
            self.view.write_event(seen.name(), object, self.first, &mut out);
            self.first = false;
        }
        out.freeze()
    }
}

fn at_version(object: &Object, view: &View, version: u64) -> Object {
    let mut value = object.value(view.kind);
    metadata(&mut value).insert("resourceVersion".into(), version.to_string().into());
    Object::new(view.kind, &value)
}

fn error_line(status: &Status) -> Bytes {
    format!("{}\n", json!({"type": "ERROR", "object": status.body()})).into()
}
