//! One component, several times: each shard on an arbiter of its own, each key always at the same shard.

use super::{
    AskError, Component, TellError,
    port::{Door, Gate, Refused, Reply, Taker, Waiting},
};
use actix::{Handler, Message};
use std::{
    collections::HashSet,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

/// Which of the shards of a component this one is; handed to the factory of
/// [`SystemBuilder::sharded`](super::SystemBuilder::sharded).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// How many there are, for the whole life of the system.
    pub of: usize,
}

impl Shard {
    /// Whether messages of this key come here.
    pub fn has<K: Hash + ?Sized>(self, key: &K) -> bool {
        shard_of(key, self.of) == self.index
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.index, self.of)
    }
}

/// Where a key belongs; the same in every run of one build.
fn shard_of<K: Hash + ?Sized>(key: &K, shards: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    let shards = u64::try_from(shards).unwrap_or(u64::MAX).max(1);
    // Less than the number of shards, which is a usize.
    usize::try_from(hasher.finish() % shards).unwrap_or(0)
}

/// The name of one shard. Names live as long as the program, so each is made once.
pub(crate) fn shard_name(component: &'static str, index: usize) -> &'static str {
    static NAMES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    let name = format!("{component}/{index}");
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names.get_or_insert_default();
    match names.get(name.as_str()) {
        Some(name) => name,
        None => {
            let name: &'static str = name.leak();
            names.insert(name);
            name
        }
    }
}

/// The way to the shard of a message's key.
pub(crate) struct Router<A: Component, M, K> {
    pub(crate) shards: Arc<[Arc<Gate<A>>]>,
    pub(crate) key: fn(&M) -> K,
}

impl<A: Component, M, K: Hash> Router<A, M, K> {
    fn shard_of(&self, message: &M) -> usize {
        shard_of(&(self.key)(message), self.shards.len())
    }
}

impl<A, M, K> Door<M> for Router<A, M, K>
where
    A: Component + Handler<M>,
    M: Message + Send + 'static,
    M::Result: Send,
    K: Hash + 'static,
{
    fn put(&self, message: M, reply: Option<Reply<M>>) -> Result<Taker, Refused<M>> {
        let shard = self.shard_of(&message);
        self.shards[shard].put(message, reply)?;
        Ok(Taker(shard))
    }

    fn put_waiting<'a>(&'a self, message: M, reply: Option<Reply<M>>) -> Waiting<'a>
    where
        M: 'a,
    {
        Box::pin(async move {
            let shard = self.shard_of(&message);
            self.shards[shard].put_waiting(message, reply).await.map_err(|TellError::Stopped| TellError::Stopped)?;
            Ok(Taker(shard))
        })
    }

    fn why_unanswered(&self, Taker(shard): Taker) -> AskError {
        <Gate<A> as Door<M>>::why_unanswered(&self.shards[shard], Taker(shard))
    }
}
