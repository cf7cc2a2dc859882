//! A component's queue: bounded, many senders, one receiver.
//!
//! Of tokio's channel it differs in what a message costs: the receiver takes all that is there under one lock and then
//! counts what it has handed out in a number that only it writes. What it has not handed out yet still holds its place,
//! so that the bound is exact. A sender pays one lock. A receiver that finds little asks to be woken at once, so that it
//! need not come back to find nothing.
//!
//! Room is given first come first served: while somebody waits for it, nobody else takes any.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

/// A queue that holds at most so many messages, at least one.
pub(crate) fn queue<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        capacity: capacity.max(1),
        handed_out: AtomicUsize::new(0),
        waited_for: AtomicBool::new(false),
        inside: Mutex::new(Inside {
            queued: VecDeque::new(),
            taken: 0,
            reserved: 0,
            waiters: VecDeque::new(),
            next_waiter: 0,
            receiver: None,
            closed: false,
            gone: false,
        }),
    });
    let sender = Sender(Arc::clone(&shared));
    let receiver =
        Receiver { shared, taken: VecDeque::new(), handed_out: 0, unsettled: false, waker: None, asked: false };
    (sender, receiver)
}

/// Up to so many messages the receiver expects no more soon.
const FEW: usize = 8;

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no room now.
    Full,
    /// The receiver takes nothing new.
    Closed,
}

struct Shared<T> {
    capacity: usize,
    /// Messages handed out by the receiver since the beginning, wrapping. Written by the receiver only.
    handed_out: AtomicUsize,
    /// Somebody waits for room. A hint between two locks of the receiver.
    waited_for: AtomicBool,
    inside: Mutex<Inside<T>>,
}

struct Inside<T> {
    queued: VecDeque<T>,
    /// Messages taken by the receiver since the beginning, wrapping.
    taken: usize,
    /// Places given out and not filled yet.
    reserved: usize,
    /// Who waits for room, by number; rising.
    waiters: VecDeque<(u64, Waker)>,
    next_waiter: u64,
    /// The receiver, while it waits for a message.
    receiver: Option<Waker>,
    closed: bool,
    /// The receiver was dropped: what still comes is dropped.
    gone: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Inside<T>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Places that are held: by messages that are queued, by such that were taken and not handed out, by reservations.
    fn held(&self, inside: &Inside<T>) -> usize {
        let unhandled = inside.taken.wrapping_sub(self.handed_out.load(Ordering::Acquire));
        inside.queued.len() + unhandled + inside.reserved
    }

    fn refusal(&self, inside: &Inside<T>) -> Option<Refusal> {
        if inside.closed {
            Some(Refusal::Closed)
        } else if !inside.waiters.is_empty() || self.held(inside) >= self.capacity {
            Some(Refusal::Full)
        } else {
            None
        }
    }

    /// Gives room to those that wait, in their order.
    fn serve<'a>(&'a self, mut inside: MutexGuard<'a, Inside<T>>) {
        while !inside.closed && self.held(&inside) < self.capacity {
            let Some((_, waiter)) = inside.waiters.pop_front() else { break };
            inside.reserved += 1;
            drop(inside);
            waiter.wake();
            inside = self.lock();
        }
        self.waited_for.store(!inside.waiters.is_empty(), Ordering::Relaxed);
    }

    /// A place that was given out is not filled after all.
    fn give_back(&self) {
        let mut inside = self.lock();
        inside.reserved -= 1;
        let receiver = if inside.closed { inside.receiver.take() } else { None };
        self.serve(inside);
        wake(receiver);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The sending half.
pub(crate) struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// Queues a message if there is room now, or gives it back. It is made ready for the queue under the lock.
    #[inline]
    pub(crate) fn try_send<M>(&self, message: M, seal: impl FnOnce(M) -> T) -> Result<(), (M, Refusal)> {
        let mut inside = self.0.lock();
        if let Some(refusal) = self.0.refusal(&inside) {
            return Err((message, refusal));
        }
        inside.queued.push_back(seal(message));
        let receiver = inside.receiver.take();
        drop(inside);
        wake(receiver);
        Ok(())
    }

    /// A place, if there is room now.
    pub(crate) fn try_reserve(&self) -> Result<Place<'_, T>, Refusal> {
        let mut inside = self.0.lock();
        if let Some(refusal) = self.0.refusal(&inside) {
            return Err(refusal);
        }
        inside.reserved += 1;
        Ok(Place { shared: &self.0 })
    }

    /// Waits for a place, first come first served; [`Refusal::Closed`] is the only refusal.
    pub(crate) fn reserve(&self) -> Reserve<'_, T> {
        Reserve { shared: &self.0, number: None }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// Places that are held now.
    pub(crate) fn held(&self) -> usize {
        self.0.held(&self.0.lock())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().closed
    }
}

/// A place in the queue, held until it is filled or dropped.
pub(crate) struct Place<'a, T> {
    shared: &'a Shared<T>,
}

impl<T> Place<'_, T> {
    /// Fills it, also after the queue was closed. If the receiver was dropped, so is the message.
    pub(crate) fn send(self, message: T) {
        let shared = self.shared;
        std::mem::forget(self);
        let mut inside = shared.lock();
        inside.reserved -= 1;
        if inside.gone {
            drop(inside);
            return drop(message);
        }
        inside.queued.push_back(message);
        let receiver = inside.receiver.take();
        drop(inside);
        wake(receiver);
    }
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        self.shared.give_back();
    }
}

/// See [`Sender::reserve`].
pub(crate) struct Reserve<'a, T> {
    shared: &'a Shared<T>,
    /// Its number among those that wait.
    number: Option<u64>,
}

impl<T> Inside<T> {
    fn waiter(&self, number: u64) -> Option<usize> {
        self.waiters.binary_search_by_key(&number, |(number, _)| *number).ok()
    }
}

impl<'a, T> Future for Reserve<'a, T> {
    type Output = Result<Place<'a, T>, Refusal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let shared = self.shared;
        let mut inside = shared.lock();
        let Some(number) = self.number else {
            match shared.refusal(&inside) {
                Some(Refusal::Full) => {}
                Some(Refusal::Closed) => return Poll::Ready(Err(Refusal::Closed)),
                None => {
                    inside.reserved += 1;
                    return Poll::Ready(Ok(Place { shared }));
                }
            }
            let number = inside.next_waiter;
            inside.next_waiter += 1;
            inside.waiters.push_back((number, cx.waker().clone()));
            shared.waited_for.store(true, Ordering::Relaxed);
            self.number = Some(number);
            // It may have handed something out just now, and looks again.
            let receiver = inside.receiver.take();
            drop(inside);
            wake(receiver);
            return Poll::Pending;
        };
        match inside.waiter(number) {
            // Room was given to it.
            None => {
                self.number = None;
                Poll::Ready(Ok(Place { shared }))
            }
            Some(at) if inside.closed => {
                inside.waiters.remove(at);
                self.number = None;
                Poll::Ready(Err(Refusal::Closed))
            }
            Some(at) => {
                if let Some((_, waker)) = inside.waiters.get_mut(at) {
                    waker.clone_from(cx.waker());
                }
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Reserve<'_, T> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut inside = self.shared.lock();
        match inside.waiter(number) {
            Some(at) => {
                inside.waiters.remove(at);
                // Whoever was behind it may have been kept from room by it.
                self.shared.serve(inside);
            }
            None => {
                drop(inside);
                self.shared.give_back();
            }
        }
    }
}

/// The receiving half.
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
    /// Taken out of the queue and not handed out.
    taken: VecDeque<T>,
    /// What `Shared::handed_out` says.
    handed_out: usize,
    /// Something was handed out since the last look at those that wait.
    unsettled: bool,
    /// Its own.
    waker: Option<Waker>,
    /// Whatever comes into the queue, or begins to wait for room, wakes it.
    asked: bool,
}

impl<T> Receiver<T> {
    /// The next message; `None` when the queue is closed, empty, and no place in it is held.
    ///
    /// At the end of a turn, however it ends, the receiver has to [`settle`](Self::settle).
    #[inline]
    pub(crate) fn poll_recv(&mut self, cx: &Context<'_>) -> Poll<Option<T>> {
        if self.taken.is_empty() {
            if std::mem::take(&mut self.asked) && self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                self.unsettled = false;
                return Poll::Pending;
            }
            ready!(self.take_all(cx));
        }
        let Some(message) = self.taken.pop_front() else { return Poll::Ready(None) };
        self.handed_out = self.handed_out.wrapping_add(1);
        self.shared.handed_out.store(self.handed_out, Ordering::Release);
        self.unsettled = true;
        if self.shared.waited_for.load(Ordering::Relaxed) {
            self.make_room_known();
        }
        Poll::Ready(Some(message))
    }

    /// Takes what is queued, or finds that nothing will be any more; asks to be woken if there is nothing now.
    fn take_all(&mut self, cx: &Context<'_>) -> Poll<()> {
        let mut inside = self.shared.lock();
        std::mem::swap(&mut inside.queued, &mut self.taken);
        inside.taken = inside.taken.wrapping_add(self.taken.len());
        let ready = !self.taken.is_empty() || inside.closed && inside.reserved == 0;
        self.asked = !inside.closed && (1..=FEW).contains(&self.taken.len());
        if !ready || self.asked {
            let own = match &mut self.waker {
                Some(waker) => {
                    waker.clone_from(cx.waker());
                    waker
                }
                none => none.insert(cx.waker().clone()),
            };
            match &mut inside.receiver {
                Some(receiver) => receiver.clone_from(own),
                none => *none = Some(own.clone()),
            }
        }
        if !inside.waiters.is_empty() {
            self.shared.serve(inside);
        }
        self.unsettled = false;
        if ready { Poll::Ready(()) } else { Poll::Pending }
    }

    /// At the end of each turn: gives the room of what was handed out to those that wait. What woke the receiver in this
    /// turn may be forgotten by the next one.
    pub(crate) fn settle(&mut self) {
        self.asked = false;
        if self.unsettled {
            self.make_room_known();
        }
    }

    fn make_room_known(&mut self) {
        self.unsettled = false;
        self.shared.serve(self.shared.lock());
    }

    /// Takes nothing new. What is queued, and what places are held for, is still handed out.
    pub(crate) fn close(&mut self) {
        let mut inside = self.shared.lock();
        inside.closed = true;
        self.asked = false;
        // They stay in the list, so that each sees that no room was given to it.
        let waiters: Vec<_> = inside.waiters.iter().map(|(_, waker)| waker.clone()).collect();
        drop(inside);
        waiters.into_iter().for_each(Waker::wake);
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.close();
        let mut inside = self.shared.lock();
        inside.gone = true;
        inside.receiver = None;
        let queued = std::mem::take(&mut inside.queued);
        drop(inside);
        // Without the lock: what is dropped may send.
        drop(queued);
    }
}

#[cfg(test)]
mod tests;
