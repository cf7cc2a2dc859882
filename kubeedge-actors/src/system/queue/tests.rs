use super::{Place, Receiver, Refusal, Reserve, Sender, queue};
use futures_util::{FutureExt, task::noop_waker_ref};
use proptest::prelude::*;
use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Counts how often it was woken.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn send(sender: &Sender<u32>, message: u32) -> Result<(), Refusal> {
    sender.try_send(message, |message| message).map_err(|(_, refusal)| refusal)
}

/// A turn of the receiver with one message.
fn receive(receiver: &mut Receiver<u32>) -> Poll<Option<u32>> {
    let received = receive_more(receiver);
    receiver.settle();
    received
}

/// A message in a turn that goes on.
fn receive_more(receiver: &mut Receiver<u32>) -> Poll<Option<u32>> {
    receiver.poll_recv(&Context::from_waker(noop_waker_ref()))
}

fn look<'a>(reserve: &mut Pin<Box<Reserve<'a, u32>>>) -> Poll<Result<Place<'a, u32>, Refusal>> {
    reserve.as_mut().poll_unpin(&mut Context::from_waker(noop_waker_ref()))
}

#[test]
fn what_was_taken_and_not_handed_out_holds_its_place() {
    let (sender, mut receiver) = queue(2);
    assert_eq!((send(&sender, 1), send(&sender, 2), send(&sender, 3)), (Ok(()), Ok(()), Err(Refusal::Full)));
    assert_eq!((receive(&mut receiver), sender.held()), (Poll::Ready(Some(1)), 1));
    assert_eq!((send(&sender, 3), send(&sender, 4)), (Ok(()), Err(Refusal::Full)));
    assert_eq!((receive(&mut receiver), receive(&mut receiver)), (Poll::Ready(Some(2)), Poll::Ready(Some(3))));
    assert_eq!((receive(&mut receiver), sender.held()), (Poll::Pending, 0));
}

#[test]
fn a_receiver_that_waits_is_woken_once_for_what_comes() {
    let (sender, mut receiver) = queue(4);
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    assert_eq!(receiver.poll_recv(&Context::from_waker(&waker)), Poll::Pending);
    assert_eq!((send(&sender, 1), send(&sender, 2)), (Ok(()), Ok(())));
    assert_eq!(bell.0.load(Ordering::SeqCst), 1);
}

/// The receiver that took little does not come back to look: it has asked already.
#[test]
fn what_comes_while_few_messages_are_handled_wakes_the_receiver() {
    let (sender, mut receiver) = queue(4);
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    let cx = Context::from_waker(&waker);
    assert_eq!(send(&sender, 1), Ok(()));
    assert_eq!(receiver.poll_recv(&cx), Poll::Ready(Some(1)));
    assert_eq!((send(&sender, 2), bell.0.load(Ordering::SeqCst)), (Ok(()), 1));
    assert_eq!((receiver.poll_recv(&cx), receiver.poll_recv(&cx)), (Poll::Pending, Poll::Ready(Some(2))));
    receiver.close();
    assert_eq!(receiver.poll_recv(&cx), Poll::Ready(None));
    assert_eq!(receiver.poll_recv(&cx), Poll::Ready(None));
}

#[test]
fn what_came_in_a_turn_that_was_cut_short_is_seen_in_the_next() {
    let (sender, mut receiver) = queue(4);
    assert_eq!(send(&sender, 1), Ok(()));
    assert_eq!(receive(&mut receiver), Poll::Ready(Some(1)));
    assert_eq!(send(&sender, 2), Ok(()));
    receiver.settle();
    assert_eq!(receive(&mut receiver), Poll::Ready(Some(2)));
}

#[test]
fn who_gives_up_waiting_lets_the_next_one_have_the_room() {
    let (sender, mut receiver) = queue(1);
    assert_eq!(send(&sender, 1), Ok(()));
    let (mut first, mut second) = (Box::pin(sender.reserve()), Box::pin(sender.reserve()));
    assert!(look(&mut first).is_pending() && look(&mut second).is_pending());
    assert_eq!(receive(&mut receiver), Poll::Ready(Some(1)));
    // The room is the first one's, who does not take it.
    assert_eq!(send(&sender, 2), Err(Refusal::Full));
    drop(first);
    let Poll::Ready(Ok(place)) = look(&mut second) else { panic!("the room was given back") };
    place.send(3);
    assert_eq!(receive(&mut receiver), Poll::Ready(Some(3)));
}

#[test]
fn a_closed_queue_hands_out_what_it_has_and_what_places_were_held_for() {
    let (sender, mut receiver) = queue(2);
    assert_eq!(send(&sender, 1), Ok(()));
    let place = sender.try_reserve().unwrap_or_else(|refusal| panic!("{refusal:?}"));
    let mut waiting = Box::pin(sender.reserve());
    assert!(look(&mut waiting).is_pending());
    receiver.close();
    assert!(matches!(look(&mut waiting), Poll::Ready(Err(Refusal::Closed))));
    assert_eq!(send(&sender, 2), Err(Refusal::Closed));
    assert_eq!(receive(&mut receiver), Poll::Ready(Some(1)));
    assert_eq!(receive(&mut receiver), Poll::Pending);
    place.send(3);
    assert_eq!((receive(&mut receiver), receive(&mut receiver)), (Poll::Ready(Some(3)), Poll::Ready(None)));
}

#[test]
fn an_end_that_waits_for_a_place_is_told_when_that_is_given_back() {
    let (sender, mut receiver) = queue(1);
    let place = sender.try_reserve().unwrap_or_else(|refusal| panic!("{refusal:?}"));
    receiver.close();
    let bell = Arc::new(Bell::default());
    assert_eq!(receiver.poll_recv(&Context::from_waker(&Waker::from(Arc::clone(&bell)))), Poll::Pending);
    drop(place);
    assert_eq!((bell.0.load(Ordering::SeqCst), receive(&mut receiver)), (1, Poll::Ready(None)));
}

#[test]
fn what_comes_after_the_receiver_is_gone_is_dropped() {
    let (sender, receiver) = queue(2);
    let token = Arc::new(());
    let place = sender.try_reserve().unwrap_or_else(|refusal| panic!("{refusal:?}"));
    assert!(sender.try_send(Arc::clone(&token), |token| token).is_ok());
    drop(receiver);
    place.send(Arc::clone(&token));
    assert_eq!(Arc::strong_count(&token), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Send,
    Receive,
    ReceiveMore,
    Wait,
    /// The oldest one that waits looks, and sends if there is room.
    Look,
    /// One that waits leaves.
    Leave(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Send),
        2 => Just(Step::Receive),
        2 => Just(Step::ReceiveMore),
        2 => Just(Step::Wait),
        2 => Just(Step::Look),
        1 => (0_usize..4).prop_map(Step::Leave),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// Against the plainest queue there is: what comes out is what went in, in order, and never more than fits.
    #[test]
    fn it_is_a_bounded_queue(capacity in 1_usize..6, steps in steps()) {
        let (sender, mut receiver) = queue(capacity);
        let mut model = VecDeque::new();
        let mut waiting = VecDeque::new();
        let mut next = 0;
        for step in steps {
            match step {
                Step::Send => {
                    let sent = send(&sender, next).is_ok();
                    // Those that wait may have room that they have not filled yet.
                    if waiting.is_empty() {
                        prop_assert_eq!(sent, model.len() < capacity);
                    }
                    if sent {
                        model.push_back(next);
                        next += 1;
                    }
                }
                Step::Receive => {
                    // The turn before ended.
                    receiver.settle();
                    let expected = model.pop_front().map_or(Poll::Pending, |message| Poll::Ready(Some(message)));
                    prop_assert_eq!(receive(&mut receiver), expected);
                }
                Step::ReceiveMore => match receive_more(&mut receiver) {
                    Poll::Ready(message) => prop_assert_eq!(message, model.pop_front()),
                    // If there is something, it was woken for that.
                    Poll::Pending => {}
                },
                Step::Wait => {
                    let mut reserve = Box::pin(sender.reserve());
                    match look(&mut reserve) {
                        Poll::Ready(place) => {
                            place.unwrap_or_else(|refusal| panic!("{refusal:?}")).send(next);
                            model.push_back(next);
                            next += 1;
                        }
                        Poll::Pending => waiting.push_back(reserve),
                    }
                }
                Step::Look => {
                    let Some(mut first) = waiting.pop_front() else { continue };
                    match look(&mut first) {
                        Poll::Ready(place) => {
                            place.unwrap_or_else(|refusal| panic!("{refusal:?}")).send(next);
                            model.push_back(next);
                            next += 1;
                        }
                        Poll::Pending => {
                            prop_assert_eq!(model.len(), capacity, "room is given to the first one that waits");
                            waiting.push_front(first);
                        }
                    }
                }
                Step::Leave(which) => drop(waiting.remove(which)),
            }
            prop_assert!(model.len() <= capacity && sender.held() <= capacity);
            prop_assert!(sender.held() >= model.len());
        }
        drop(waiting);
        receiver.close();
        for message in model {
            prop_assert_eq!(receive(&mut receiver), Poll::Ready(Some(message)));
        }
        prop_assert_eq!(receive(&mut receiver), Poll::Ready(None));
    }
}

/// Eight threads that wait for room in a queue of three, and one that empties it: everything comes, in each one's order.
#[test]
fn threads_lose_nothing_and_nobody_waits_for_ever() {
    const SENDERS: u32 = 8;
    const EACH: u32 = 5_000;
    let (sender, mut receiver) = queue(3);
    let mut last = [None; SENDERS as usize];
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    std::thread::scope(|scope| {
        for thread in 0..SENDERS {
            let sender = &sender;
            scope.spawn(move || {
                runtime().block_on(async {
                    for n in 0..EACH {
                        let message = thread * EACH + n;
                        if send(sender, message).is_err() {
                            sender.reserve().await.unwrap_or_else(|refusal| panic!("{refusal:?}")).send(message);
                        }
                    }
                });
            });
        }
        runtime().block_on(async {
            for _ in 0..SENDERS * EACH {
                let next = poll_fn(|cx| receiver.poll_recv(cx));
                let next = tokio::time::timeout(std::time::Duration::from_secs(30), next).await.expect("a message");
                let message = next.expect("an open queue");
                let (thread, n) = ((message / EACH) as usize, message % EACH);
                assert_eq!(n, last[thread].map_or(0, |last: u32| last + 1), "the order of one sender");
                last[thread] = Some(n);
            }
        });
    });
    assert_eq!((receive(&mut receiver), sender.held()), (Poll::Pending, 0));
}
