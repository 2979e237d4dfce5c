//! A ring of instances over one simulated database and one simulated Redis, on virtual time.

use std::time::Duration;

use perto::sim::{Node, Sim, SimLoader, Written};
use perto::{Cache, CacheBuilder, Error, Freshness, Perto, PertoBuilder, Read, Tier};

pub(crate) const BOUND: Duration = Duration::from_secs(1);
/// Twice the default: polls while hints come are 250 ms apart.
pub(crate) const POLL: Duration = Duration::from_millis(260);
pub(crate) const CACHE: &str = "user";

pub(crate) struct Ring {
    pub(crate) sim: Sim,
    pub(crate) members: Vec<Member>,
}

pub(crate) struct Member {
    pub(crate) node: Node,
    pub(crate) perto: Perto,
    pub(crate) users: Cache<u64, String>,
    pub(crate) loader: SimLoader,
}

impl Ring {
    /// So many started instances.
    pub(crate) async fn of(count: usize) -> Self {
        let mut ring = Self { sim: Sim::new(1), members: Vec::new() };
        for _ in 0..count {
            ring.join().await;
        }
        // Subscriptions stand.
        ms(300).await;
        ring
    }

    /// One more instance with default settings.
    pub(crate) async fn join(&mut self) -> usize {
        self.join_with(|builder| builder, |cache| cache).await
    }

    pub(crate) async fn join_with(
        &mut self,
        instance: impl FnOnce(PertoBuilder) -> PertoBuilder,
        cache: impl FnOnce(CacheBuilder<u64, String>) -> CacheBuilder<u64, String>,
    ) -> usize {
        let member = Member::new(&self.sim, instance, cache);
        member.perto.start().await.unwrap();
        self.members.push(member);
        self.members.len() - 1
    }

    /// A write that the application announces from one instance.
    pub(crate) async fn write(&self, from: usize, key: u64, value: &str) -> Written {
        let written = self.write_silently(key, value);
        self.announce(from, &written).await;
        written
    }

    /// A write by somebody who knows nothing of Perto: only the log has it.
    pub(crate) fn write_silently(&self, key: u64, value: &str) -> Written {
        self.sim.postgres.write(CACHE, &key, &value).unwrap()
    }

    pub(crate) async fn announce(&self, from: usize, written: &Written) {
        self.members[from].perto.announce(written.token, &written.changes).await;
    }

    /// Every instance at rest: nothing runs that nobody waits for, and what was counted adds up.
    pub(crate) async fn end(self) {
        for member in &self.members {
            assert_eq!(member.users.flights(), 0, "a flight was leaked");
            member.perto.shutdown().await;
            assert_eq!(member.perto.tasks(), 0, "a task outlived the shutdown");
        }
    }
}

impl Member {
    pub(crate) fn new(
        sim: &Sim,
        instance: impl FnOnce(PertoBuilder) -> PertoBuilder,
        cache: impl FnOnce(CacheBuilder<u64, String>) -> CacheBuilder<u64, String>,
    ) -> Self {
        let node = sim.node();
        let perto = instance(node.builder("ring")).build().unwrap();
        let loader = sim.postgres.loader(CACHE);
        let users = cache(perto.cache(CACHE)).loader(loader.function()).unwrap();
        Self { node, perto, users, loader }
    }

    /// Reads a key; the answer must be fresh.
    pub(crate) async fn fresh(&self, key: u64) -> Option<String> {
        let read = self.users.get(&key).await.unwrap();
        assert_eq!(read.freshness, Freshness::Fresh);
        read.value().cloned()
    }

    /// Where a read of the key is answered.
    pub(crate) async fn tier(&self, key: u64) -> Tier {
        self.users.get(&key).await.unwrap().tier
    }

    /// What L1 would serve as fresh.
    pub(crate) fn cached(&self, key: u64) -> Option<Option<String>> {
        self.users.get_if_cached(&key).map(|read| read.value().cloned())
    }

    pub(crate) fn loads(&self) -> u64 {
        self.users.stats().loads
    }

    /// A read in the background.
    pub(crate) fn reading(&self, key: u64) -> tokio::task::JoinHandle<Result<Read<String>, Error>> {
        let users = self.users.clone();
        spawn(async move { users.get(&key).await })
    }
}

#[expect(clippy::disallowed_methods, reason = "the test owns its readers")]
pub(crate) fn spawn<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> tokio::task::JoinHandle<T> {
    tokio::spawn(task)
}

/// Virtual time passes.
pub(crate) async fn ms(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

pub(crate) fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

pub(crate) fn text(read: &Read<String>) -> Option<String> {
    read.value().cloned()
}

/// Waits until a condition holds, for a limited virtual time.
pub(crate) async fn eventually(what: &str, limit: Duration, condition: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + limit;
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "not within {limit:?}: {what}");
        ms(1).await;
    }
}
