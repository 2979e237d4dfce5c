//! A load that reads, is held, and returns after a write: the oldest hole of caches.

use perto::Tier;
use redis::AsyncCommands;

use crate::support::engines::{keys, redis_at};
use crate::support::wait::{ends, eventually};
use crate::world::{World, coherent};

/// The write is known here before the load returns: nothing to wait for, no time is measured.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_begun_before_an_invalidation_is_never_cached() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    world.put(1, 1).await;
    a.polled().await;

    a.gate.close();
    let reading = a.reading(1);
    a.gate.holds(1).await;
    let hints = a.perto.stats().hints;
    b.put(&world, 1, 2).await;
    eventually("the hint has come", async || a.perto.stats().hints > hints).await;
    a.gate.open();

    // That read began before the write. It may have either; the next one may not.
    assert!(matches!(ends("the held read", reading).await.unwrap().unwrap().value(), Some(1 | 2)));
    assert_eq!(a.fresh(1).await, Some(2));
    assert_eq!(a.items.stats().inserts_refused, 1);
}

/// Known by the tail alone: the next read begins after a poll that began after the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_fill_of_l2_is_refused_by_every_instance_that_knows_of_the_write() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    world.put(1, 1).await;
    a.polled().await;

    a.gate.close();
    let reading = a.reading(1);
    a.gate.holds(1).await;
    // By hand: there is no tombstone that would keep the fill out.
    world.put(1, 2).await;
    a.polled().await;
    b.polled().await;
    a.gate.open();
    ends("the held read", reading).await.unwrap().unwrap();
    let mut redis = redis_at(&world.redis).await;
    let pattern = format!("perto:{}:*:1", world.name);
    eventually("the stale value is in L2", async || keys(&mut redis, &pattern).await.unwrap().len() == 1)
        .await;

    let key = keys(&mut redis, &pattern).await.unwrap().remove(0);
    let stale: Vec<u8> = redis.get(&key).await.unwrap();
    assert_eq!(b.fresh_from(1).await, (Some(2), Tier::Load));
    assert_eq!(b.items.stats().l2_refused, 1);
    // The newer value replaces it, for everybody.
    eventually("L2 has another value", async || redis.get::<_, Vec<u8>>(&key).await.unwrap() != stale).await;
    let c = world.start().await;
    assert_eq!(c.fresh_from(1).await, (Some(2), Tier::Remote));
}

/// An instance that starts later learns of the write from the rows that the log retains.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_fill_of_l2_is_refused_by_an_instance_that_starts_later() {
    let world = World::new().await;
    let a = world.start().await;
    coherent([&a]).await;
    world.put(1, 1).await;
    a.gate.close();
    let reading = a.reading(1);
    a.gate.holds(1).await;
    world.put(1, 2).await;
    a.gate.open();
    ends("the held read", reading).await.unwrap().unwrap();
    let mut redis = redis_at(&world.redis).await;
    let pattern = format!("perto:{}:*:1", world.name);
    eventually("the stale value is in L2", async || keys(&mut redis, &pattern).await.unwrap().len() == 1)
        .await;

    let late = world.start().await;
    assert_eq!(late.fresh_from(1).await, (Some(2), Tier::Load));
    assert_eq!(late.items.stats().l2_refused, 1);
}

/// An absence is an answer like any other, and needs a stamp as much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_inserted_while_its_absence_is_being_cached_is_seen() {
    let world = World::new().await;
    let a = world.start().await;
    a.gate.close();
    let reading = a.reading(1);
    a.gate.holds(1).await;
    world.put(1, 1).await;
    a.polled().await;
    a.gate.open();
    ends("the held read", reading).await.unwrap().unwrap();
    assert_eq!(a.fresh(1).await, Some(1));

    // And an absence that is cached goes with the insert.
    assert_eq!(a.fresh(2).await, None);
    assert_eq!(a.fresh_from(2).await, (None, Tier::Local));
    world.put(2, 1).await;
    a.polled().await;
    assert_eq!(a.fresh(2).await, Some(1));
}

/// A whole-cache row touches no key's bucket: the cache's epoch from before the load is what gives the load away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_a_whole_cache_invalidation_overtakes_is_never_cached() {
    let world = World::new().await;
    let a = world.start().await;
    world.put(1, 1).await;
    a.polled().await;
    a.gate.close();
    let reading = a.reading(1);
    a.gate.holds(1).await;
    world
        .sql("insert into items select n, 1 from generate_series(1000, 1600) n; update items set v = 2")
        .await;
    a.polled().await;
    a.gate.open();
    ends("the held read", reading).await.unwrap().unwrap();
    let loads = a.loads();
    assert_eq!(a.fresh_from(1).await, (Some(2), Tier::Load));
    assert_eq!(a.loads(), loads + 1);
    assert_eq!(a.fresh_from(1).await, (Some(2), Tier::Local));
}
