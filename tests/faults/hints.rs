//! Hints that are lost, doubled, reordered or never sent: the tail repairs it with its next poll.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use perto::proxy::{Fault, FaultProxy};
use perto::{Bus, Event, Freshness, ReadOptions, RemoteError, State, Subscription, Tier};
use sqlx::Connection;
use tokio::sync::mpsc;

use crate::support::engines::{moved_to, place_of};
use crate::support::redis::PrivateRedis;
use crate::support::wait::eventually;
use crate::world::{BOUND, World, coherent};

/// No hint comes, and nothing shows it: the connection stands and answers. The next poll has the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_hint_is_repaired_within_one_poll() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.redis)).await.unwrap();
    let lossy = moved_to(&world.redis, &proxy.address().to_string());
    let a = world.start().await;
    let b = world.start_with(|perto| perto.subscribe_at(&lossy), |cache| cache).await;
    coherent([&a, &b]).await;
    world.put(1, 1).await;
    b.polled().await;
    assert_eq!(b.fresh(1).await, Some(1));

    proxy.set(Fault::DropMessages);
    let repairs = b.perto.stats().repairs;
    for v in 2..=4 {
        a.put(&world, 1, v).await;
        b.polled().await;
        assert_eq!(b.fresh(1).await, Some(v));
    }
    let stats = b.perto.stats();
    assert_eq!(stats.hints, 0, "the proxy let a hint pass");
    assert_eq!(stats.repairs, repairs + 3);
    b.becomes(State::Coherent).await;
}

/// The bound is 60 s here, the poll interval 20 s, and the last poll is made when the subscription stands, at the start:
/// what is seen within 10 s is seen because of the gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_in_a_publishers_sequence_is_a_poll_at_once_and_a_repair() {
    const INTERVAL: Duration = Duration::from_secs(20);
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.redis)).await.unwrap();
    let lossy = moved_to(&world.redis, &proxy.address().to_string());
    let a = world.start().await;
    let b = world
        .start_with(
            |perto| perto.subscribe_at(&lossy).bound(3 * INTERVAL).poll_interval(INTERVAL),
            |cache| cache,
        )
        .await;
    coherent([&a, &b]).await;
    a.put(&world, 1, 1).await;
    eventually("the first hint has come", async || b.perto.stats().hints == 1).await;
    assert_eq!(b.fresh(1).await, Some(1));
    assert_eq!(b.fresh_from(1).await, (Some(1), Tier::Local));

    let began = Instant::now();
    proxy.set(Fault::DropMessages);
    a.put(&world, 1, 2).await;
    a.put(&world, 2, 2).await;
    // A message of another app's would do as well; a while is what there is to make sure that they came and went.
    tokio::time::sleep(Duration::from_millis(300)).await;
    proxy.set(Fault::None);
    assert_eq!(b.fresh_from(1).await, (Some(1), Tier::Local), "within the bound, and nobody told");
    a.put(&world, 3, 2).await;

    b.tells(Event::Gap { lost: 2 }).await;
    eventually("the write is seen", async || b.fresh(1).await == Some(2)).await;
    assert!(began.elapsed() < INTERVAL / 2, "by the gap, not by the next poll: {:?}", began.elapsed());
    assert_eq!(b.perto.stats().gaps, 1);
    assert!(b.perto.stats().repairs >= 2, "the gap and the entry");
}

/// A bus that delivers when the test says so, in the order that the test says.
#[derive(Debug, Default)]
struct Held {
    subscribers: Mutex<Vec<mpsc::UnboundedSender<Bytes>>>,
    messages: Mutex<Vec<Bytes>>,
}

impl Held {
    fn take(&self) -> Vec<Bytes> {
        std::mem::take(&mut *self.messages.lock())
    }

    fn deliver(&self, message: &Bytes) {
        self.subscribers.lock().retain(|subscriber| subscriber.send(message.clone()).is_ok());
    }
}

impl Bus for Held {
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<Option<u64>, RemoteError>> {
        self.messages.lock().push(message);
        Box::pin(async { Ok(None) })
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, RemoteError>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.subscribers.lock().push(sender);
        Box::pin(async move { Ok(Box::new(Receiving(receiver)) as _) })
    }
}

#[derive(Debug)]
struct Receiving(mpsc::UnboundedReceiver<Bytes>);

impl Subscription for Receiving {
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, RemoteError>> {
        Box::pin(async { self.0.recv().await.ok_or(RemoteError::Disconnected) })
    }

    fn ping(&mut self) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Twenty writes; their hints come last to first, each three times, after reads have loaded newer values.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doubled_reordered_and_late_hints_bring_no_old_value_back() {
    let world = World::new().await;
    let bus = Arc::new(Held::default());
    let with_bus = || world.start_with(|perto| perto.bus(Arc::clone(&bus) as _), |cache| cache);
    let (a, b) = (with_bus().await, with_bus().await);
    coherent([&a, &b]).await;
    for v in 1..=20 {
        a.put(&world, v % 3, v).await;
        // Not more than four of a key between two polls: with more, what is loaded beside a transaction that is still
        // open somewhere on the server is not cached, which is not the matter here.
        if v % 10 == 0 {
            b.polled().await;
        }
    }
    let hints = bus.take();
    assert_eq!(hints.len(), 20);
    b.polled().await;
    let newest = [18, 19, 20].map(Some);
    for id in 0..3_i64 {
        assert_eq!(b.fresh(id).await, newest[usize::try_from(id).unwrap()]);
    }
    let loads = b.loads();
    for hint in hints.iter().rev().flat_map(|hint| [hint; 3]) {
        bus.deliver(hint);
    }
    eventually("all hints have come", async || b.perto.stats().hints == 60).await;
    for id in 0..3_i64 {
        // Every entry contains what the late hints tell: none goes.
        assert_eq!(b.fresh_from(id).await, (newest[usize::try_from(id).unwrap()], Tier::Local));
    }
    assert_eq!(b.loads(), loads);
}

/// Read-your-writes does not rest on hints.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_that_never_comes_does_not_delay_a_read_by_token() {
    let world = World::new().await;
    let bus = Arc::new(Held::default());
    let with_bus = || world.start_with(|perto| perto.bus(Arc::clone(&bus) as _), |cache| cache);
    let (a, b) = (with_bus().await, with_bus().await);
    for v in 1..=20 {
        b.fresh(1).await;
        let token = a.put(&world, 1, v).await;
        let read = b.items.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
        assert_eq!((read.value(), read.freshness), (Some(&v), Freshness::Fresh));
    }
}

/// The server ends the subscription while everything else stands: nothing is missed, and it is made again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_subscriber_misses_nothing_for_longer_than_the_bound_and_comes_back() {
    let redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    let mut connection = redis.connect().await;
    for v in 1..=5 {
        let hints = b.perto.stats().hints;
        b.fresh(1).await;
        redis::cmd("CLIENT")
            .arg(&["KILL", "TYPE", "pubsub"])
            .query_async::<i64>(&mut connection)
            .await
            .unwrap();
        a.put(&world, 1, v).await;
        let acknowledged = Instant::now();
        eventually("the write is seen", async || {
            let began = Instant::now();
            let value = b.fresh(1).await;
            assert!(value == Some(v) || began - acknowledged <= BOUND, "stale beyond the bound: {value:?}");
            value == Some(v)
        })
        .await;
        coherent([&a, &b]).await;
        a.put(&world, 2, v).await;
        eventually("hints come again", async || b.perto.stats().hints > hints).await;
    }
}

/// The writer dies between its commit and its publish: no hint, no tombstone. Only the log knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_dies_between_commit_and_publish_is_seen_within_the_bound() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    world.put(1, 1).await;
    b.polled().await;
    assert_eq!(b.fresh(1).await, Some(1));

    let mut connection = world.pool.acquire().await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    sqlx::raw_sql("update items set v = 2 where id = 1").execute(&mut *tx).await.unwrap();
    let pending = a.perto.pending(&mut tx).await.unwrap();
    assert!(pending.is_some());
    tx.commit().await.unwrap();
    drop(pending);
    let acknowledged = Instant::now();

    eventually("both see the write", async || {
        let mut seen = true;
        for instance in [&a, &b] {
            let began = Instant::now();
            let value = instance.fresh(1).await;
            assert!(value == Some(2) || began - acknowledged <= BOUND, "stale beyond the bound");
            seen &= value == Some(2);
        }
        seen
    })
    .await;
    assert_eq!(b.perto.stats().hints, 0);
}
