//! A bounded queue of many senders and one receiver that is small while nothing is in it.
//!
//! A cloud has three of them for every node, and nearly all are empty nearly always. A tokio channel has eight hundred
//! bytes then; this one has a fifth of it, because senders that find it full wake together and not in turn. What a burst
//! has needed is given back when the queue is empty again.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use tokio::{
    sync::{
        Notify,
        mpsc::error::{TryRecvError, TrySendError},
    },
    task::coop::poll_proceed,
};

/// Room that an empty queue keeps, in items.
const KEPT: usize = 8;

/// The receiver is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the receiver is gone")]
pub(super) struct Closed;

/// A queue that holds no more than `capacity` items.
pub(super) fn queue<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = State { items: VecDeque::new(), senders: 1, closed: false };
    let shared = Arc::new(Shared {
        capacity,
        state: Mutex::new(state),
        receiver: AtomicWaker::new(),
        senders: Notify::const_new(),
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

#[derive(Debug)]
struct Shared<T> {
    capacity: usize,
    state: Mutex<State<T>>,
    /// Waits for an item, or for the last sender to go.
    receiver: AtomicWaker,
    /// Wait for room, or for the receiver to go.
    senders: Notify,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    senders: usize,
    closed: bool,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sending end. The queue ends when the last one is dropped.
#[derive(Debug)]
pub(super) struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// Gives it back when there is no room, or nobody to take it.
    pub(super) fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        let mut state = self.0.state();
        if state.closed {
            return Err(TrySendError::Closed(item));
        }
        if state.items.len() >= self.0.capacity {
            return Err(TrySendError::Full(item));
        }
        state.items.push_back(item);
        drop(state);
        self.0.receiver.wake();
        Ok(())
    }

    /// Waits for room. Several that wait come in no particular order.
    pub(super) async fn send(&self, mut item: T) -> Result<(), Closed> {
        loop {
            let changed = self.0.senders.notified();
            match self.try_send(item) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => return Err(Closed),
                Err(TrySendError::Full(back)) => item = back,
            }
            changed.await;
        }
    }

    /// Waits until an item would find room, which it then does if nobody else sends.
    pub(super) async fn room(&self) -> Result<(), Closed> {
        self.until(|state| (state.items.len() < self.0.capacity).then_some(())).await
    }

    /// Waits until the receiver is gone.
    pub(super) async fn closed(&self) {
        // It is what this waits for.
        let Err(Closed) = self.until(|_| None::<std::convert::Infallible>).await;
    }

    async fn until<R>(&self, done: impl Fn(&State<T>) -> Option<R>) -> Result<R, Closed> {
        loop {
            let changed = self.0.senders.notified();
            {
                let state = self.0.state();
                if state.closed {
                    return Err(Closed);
                }
                if let Some(result) = done(&state) {
                    return Ok(result);
                }
            }
            changed.await;
        }
    }

    pub(super) fn downgrade(&self) -> WeakSender<T> {
        WeakSender(Arc::downgrade(&self.0))
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let last = {
            let mut state = self.0.state();
            state.senders -= 1;
            state.senders == 0
        };
        if last {
            self.0.receiver.wake();
        }
    }
}

/// Does not keep the queue from its end.
#[derive(Debug)]
pub(super) struct WeakSender<T>(Weak<Shared<T>>);

impl<T> WeakSender<T> {
    /// `None` after the last sender was dropped.
    pub(super) fn upgrade(&self) -> Option<Sender<T>> {
        let shared = self.0.upgrade()?;
        {
            let mut state = shared.state();
            if state.senders == 0 {
                return None;
            }
            state.senders += 1;
        }
        Some(Sender(shared))
    }
}

impl<T> Clone for WeakSender<T> {
    fn clone(&self) -> Self {
        Self(Weak::clone(&self.0))
    }
}

/// The receiving end. What is in the queue goes with it.
#[derive(Debug)]
pub(super) struct Receiver<T>(Arc<Shared<T>>);

impl<T> Receiver<T> {
    /// Takes of what is there.
    fn take<R>(&self, take: impl FnOnce(&mut VecDeque<T>) -> Option<R>) -> Result<R, TryRecvError> {
        let mut state = self.0.state();
        let was_full = state.items.len() >= self.0.capacity;
        let ended = state.senders == 0;
        let Some(taken) = take(&mut state.items) else {
            return Err(if ended { TryRecvError::Disconnected } else { TryRecvError::Empty });
        };
        if state.items.is_empty() && state.items.capacity() > KEPT {
            state.items = VecDeque::new();
        }
        drop(state);
        if was_full {
            self.0.senders.notify_waiters();
        }
        Ok(taken)
    }

    fn poll<R>(&self, cx: &mut Context<'_>, mut take: impl FnMut(&mut VecDeque<T>) -> Option<R>) -> Poll<Option<R>> {
        // A task whose queue never runs empty lets the others have their turn.
        let turn = ready!(poll_proceed(cx));
        for registered in [false, true] {
            match self.take(&mut take) {
                Ok(taken) => {
                    turn.made_progress();
                    return Poll::Ready(Some(taken));
                }
                Err(TryRecvError::Disconnected) => return Poll::Ready(None),
                // Looked at again: an item may have come before the waker was there.
                Err(TryRecvError::Empty) if !registered => self.0.receiver.register(cx.waker()),
                Err(TryRecvError::Empty) => {}
            }
        }
        Poll::Pending
    }

    /// The next item; `None` when no sender is left and nothing is in it.
    pub(super) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.poll(cx, VecDeque::pop_front)
    }

    /// The same to await. May be dropped and called again.
    pub(super) async fn recv(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Waits for an item and appends up to `limit` of those that are there to `into`. Returns how many; 0 is the end.
    /// May be dropped and called again.
    pub(super) async fn recv_many(&mut self, into: &mut Vec<T>, limit: usize) -> usize {
        poll_fn(|cx| {
            self.poll(cx, |items| {
                let count = items.len().min(limit);
                into.extend(items.drain(..count));
                (count > 0).then_some(count)
            })
        })
        .await
        .unwrap_or(0)
    }

    /// An item that is there already.
    pub(super) fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.take(VecDeque::pop_front)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let items = {
            let mut state = self.0.state();
            state.closed = true;
            std::mem::take(&mut state.items)
        };
        // Dropped without the lock: an item may hold a sender.
        drop(items);
        self.0.senders.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_idle_queue_takes_no_memory_for_what_it_may_hold() {
        assert!(size_of::<Shared<Box<u8>>>() <= 144, "{}", size_of::<Shared<Box<u8>>>());
        let (sender, mut receiver) = queue(4096);
        let room = |sender: &Sender<Box<u64>>| sender.0.state().items.capacity();
        assert_eq!(room(&sender), 0);
        for n in 0..4096 {
            sender.try_send(Box::new(n)).unwrap();
        }
        assert!(matches!(sender.try_send(Box::new(0)), Err(TrySendError::Full(_))));
        for n in 0..4096 {
            assert_eq!(receiver.try_recv().as_deref(), Ok(&n));
        }
        assert!(room(&sender) <= KEPT, "{}", room(&sender));
    }

    #[tokio::test]
    async fn it_ends_with_the_last_sender_after_what_is_in_it() {
        let (sender, mut receiver) = queue(4);
        let weak = sender.downgrade();
        let second = weak.upgrade().unwrap();
        sender.try_send(1).unwrap();
        drop(sender);
        second.send(2).await.unwrap();
        drop(second.clone());
        assert_eq!(receiver.recv().await, Some(1));
        let waits = tokio::spawn(async move {
            let mut rest = Vec::new();
            while receiver.recv_many(&mut rest, 8).await > 0 {}
            rest
        });
        tokio::task::yield_now().await;
        drop(second);
        assert_eq!(waits.await.unwrap(), [2]);
        assert!(weak.upgrade().is_none());
    }

    #[tokio::test]
    async fn who_waits_for_room_goes_on_when_there_is_some_and_hears_that_the_receiver_is_gone() {
        let (sender, mut receiver) = queue(1);
        sender.send(0).await.unwrap();
        let waiting: Vec<_> = (1..=3)
            .map(|n| {
                let sender = sender.clone();
                tokio::spawn(async move { sender.send(n).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(sender.room().now_or_never().is_none());
        let mut seen = vec![receiver.recv().await.unwrap(), receiver.recv().await.unwrap()];
        seen.push(receiver.recv().await.unwrap());
        seen.push(receiver.recv().await.unwrap());
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3]);
        for sent in waiting {
            assert_eq!(sent.await.unwrap(), Ok(()));
        }
        assert_eq!(sender.room().await, Ok(()));

        sender.send(4).await.unwrap();
        let (late, watch) = (sender.clone(), sender.clone());
        let late = tokio::spawn(async move { late.send(5).await });
        let watch = tokio::spawn(async move { watch.closed().await });
        tokio::task::yield_now().await;
        drop(receiver);
        assert_eq!(late.await.unwrap(), Err(Closed));
        watch.await.unwrap();
        assert_eq!(sender.room().await, Err(Closed));
        assert!(matches!(sender.try_send(6), Err(TrySendError::Closed(6))));
    }

    #[tokio::test]
    async fn a_queue_that_never_runs_empty_leaves_other_tasks_their_turn() {
        let (sender, mut receiver) = queue(1);
        let other = tokio::spawn(async {});
        while !other.is_finished() {
            sender.send(()).await.unwrap();
            receiver.recv().await.unwrap();
        }
    }

    #[test]
    fn an_item_that_holds_a_sender_goes_with_the_receiver() {
        let (sender, receiver) = queue::<Box<dyn Send>>(1);
        let (held, _other) = queue::<u8>(1);
        let weak = sender.downgrade();
        sender.try_send(Box::new((sender.clone(), held))).unwrap();
        drop(receiver);
        drop(sender);
        assert!(weak.upgrade().is_none());
    }

    fn on_this_thread<R>(work: impl Future<Output = R>) -> R {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    proptest! {
        /// From several threads at once nothing is lost, doubled, or out of its sender's order.
        #[test]
        fn every_item_arrives_once_and_in_its_senders_order(
            capacity in 1_usize..6, senders in 1_usize..4, each in 0_usize..200, limit in 1_usize..8,
        ) {
            let (sender, mut receiver) = queue(capacity);
            let sending: Vec<_> = (0..senders)
                .map(|who| {
                    let sender = sender.clone();
                    std::thread::spawn(move || on_this_thread(async move {
                        for n in 0..each {
                            sender.send((who, n)).await.unwrap();
                        }
                    }))
                })
                .collect();
            drop(sender);
            let arrived = on_this_thread(async move {
                let mut arrived = Vec::new();
                while receiver.recv_many(&mut arrived, limit).await > 0 {}
                arrived
            });
            sending.into_iter().for_each(|thread| thread.join().unwrap());
            for who in 0..senders {
                let of_one: Vec<usize> = arrived.iter().filter(|item| item.0 == who).map(|item| item.1).collect();
                prop_assert_eq!(of_one, (0..each).collect::<Vec<_>>());
            }
            prop_assert_eq!(arrived.len(), senders * each);
        }
    }
}
