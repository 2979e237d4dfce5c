//! Bytes in L2 that Perto did not write there, or not like this: each is a miss, counted, and replaced.

use std::time::Duration;

use perto::Tier;
use redis::AsyncCommands;

use crate::support::engines::{keys, redis_at};
use crate::support::wait::eventually;
use crate::world::{World, coherent};

/// What a test puts in the place of a good value.
fn spoiled(good: &[u8], other: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut all = vec![
        ("nothing".to_owned(), Vec::new()),
        ("text".to_owned(), b"not from here".to_vec()),
        ("zeros".to_owned(), vec![0; good.len()]),
        ("ones".to_owned(), vec![0xFF; good.len()]),
        ("another key's value".to_owned(), other.to_vec()),
        ("another version".to_owned(), [&[b'P', 5], &good[2..]].concat()),
        ("bytes too many".to_owned(), [good, b"x"].concat()),
        ("a megabyte".to_owned(), vec![b'P'; 1 << 20]),
    ];
    for length in [1, 2, 39, 40, good.len() - 1] {
        all.push((format!("the first {length} bytes"), good[..length].to_vec()));
    }
    for at in 0..good.len() {
        let mut flipped = good.to_vec();
        flipped[at] ^= 0x80 >> (at % 8);
        all.push((format!("byte {at} flipped"), flipped));
    }
    all
}

/// A row and a key for each kind of garbage, all values of one length; one instance fills L2, another finds the garbage, others what replaced it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_l2_is_a_miss_is_counted_and_is_replaced() {
    let world = World::new().await;
    world.sql("insert into items select n, 1000 + n from generate_series(1, 100) n").await;
    let (a, b) = (world.start().await, world.start().await);
    let (c, d) = (world.start().await, world.start().await);
    coherent([&a, &b, &c, &d]).await;
    // By one statement: else a stamp may name more transactions than another one, and be longer.
    a.items.get_many(&(1..=100).collect::<Vec<_>>()).await.unwrap();
    let mut redis = redis_at(&world.redis).await;
    let pattern = format!("perto:{}:*", world.name);
    let filled = async |redis: &mut _| keys(redis, &pattern).await.unwrap();
    eventually("all are in L2", async || filled(&mut redis).await.len() == 100).await;
    let prefix = {
        let key = filled(&mut redis).await.remove(0);
        key[..=key.rfind(':').unwrap()].to_owned()
    };
    let good: Vec<u8> = redis.get(format!("{prefix}50")).await.unwrap();
    let other: Vec<u8> = redis.get(format!("{prefix}100")).await.unwrap();
    let kinds = spoiled(&good, &other);
    assert!(kinds.len() < 90, "more rows are needed");

    for (id, (kind, _)) in (1_i64..).zip(&kinds) {
        let key = format!("{prefix}{id}");
        let own: Vec<u8> = redis.get(&key).await.unwrap();
        let (_, garbage) = spoiled(&own, &other).into_iter().find(|(name, _)| name == kind).unwrap();
        let () = redis.set(&key, &garbage).await.unwrap();
        let unreadable = b.items.stats().l2_unreadable;
        assert_eq!(b.fresh_from(id).await, (Some(1000 + id), Tier::Load), "{kind}");
        // A flip may make a tombstone of it, which is no garbage. What has no length is not there.
        let counts = garbage.get(..3) != Some(b"P\x04T") && !garbage.is_empty();
        assert_eq!(b.items.stats().l2_unreadable, unreadable + u64::from(counts), "{kind}");
        let mut under_key = async || redis.get::<_, Option<Vec<u8>>>(&key).await.unwrap();
        eventually(&format!("{kind} is gone"), async || under_key().await.as_ref() != Some(&garbage)).await;
        // Whether the good value came before or after the garbage went is chance; the next load's finds the place free.
        assert_eq!(c.fresh(id).await, Some(1000 + id), "{kind}");
        eventually(&format!("{kind} is replaced"), async || under_key().await.is_some()).await;
        assert_eq!(d.fresh_from(id).await, (Some(1000 + id), Tier::Remote), "{kind}");
    }
    assert_eq!(b.perto.stats().l2_errors, 0);
}

/// Of 64 MB under a key no more is read than a value may have, and nobody sends it back to have it removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_far_too_large_is_read_in_part_and_is_replaced() {
    let world = World::new().await;
    world.put(1, 1).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    assert_eq!(a.fresh(1).await, Some(1));
    let mut redis = redis_at(&world.redis).await;
    let pattern = format!("perto:{}:*:1", world.name);
    eventually("it is in L2", async || keys(&mut redis, &pattern).await.unwrap().len() == 1).await;
    let key = keys(&mut redis, &pattern).await.unwrap().remove(0);
    // As if its stamp were newer than any: no fill would go over it.
    let mut large: Vec<u8> = redis.get(&key).await.unwrap();
    large[8..24].fill(0x7F);
    large.resize(64 << 20, b'x');
    let () = redis.set(&key, &large).await.unwrap();
    assert_eq!(b.fresh_from(1).await, (Some(1), Tier::Load));
    let mut length = async || redis.strlen::<_, usize>(&key).await.unwrap();
    eventually("it is gone", async || length().await < large.len()).await;
    assert_eq!((b.items.stats().l2_unreadable, b.perto.stats().l2_errors), (1, 0));
    let c = world.start().await;
    coherent([&c]).await;
    c.fresh(1).await;
    eventually("it is replaced", async || length().await > 0).await;
}

/// At the timeout that is the default: reading it in part takes a part of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_far_too_large_does_not_keep_an_instance_from_l2() {
    let world = World::new().await;
    world.put(1, 1).await;
    let a = world.start().await;
    let b = world.start_with(|perto| perto.remote_timeout(Duration::from_millis(50)), |cache| cache).await;
    coherent([&a, &b]).await;
    assert_eq!(a.fresh(1).await, Some(1));
    let mut redis = redis_at(&world.redis).await;
    let pattern = format!("perto:{}:*:1", world.name);
    eventually("it is in L2", async || keys(&mut redis, &pattern).await.unwrap().len() == 1).await;
    let key = keys(&mut redis, &pattern).await.unwrap().remove(0);
    let mut large: Vec<u8> = redis.get(&key).await.unwrap();
    large[8..24].fill(0x7F);
    large.resize(64 << 20, b'x');
    let mut looked = 0;
    let () = redis.set(&key, &large).await.unwrap();
    eventually("it is gone", async || {
        looked += 1;
        b.items.invalidate(&1).await.unwrap();
        assert_eq!(b.fresh(1).await, Some(1));
        redis.strlen::<_, usize>(&key).await.unwrap() < large.len()
    })
    .await;
    // A busy machine may be slow once.
    assert!(b.perto.stats().l2_errors <= 1 && looked < 20, "{looked} looks, {:?}", b.perto.stats());
    coherent([&b]).await;
}

/// Several keys are asked for in one command, which has no limit for a value: the server sends all of it. Who has given that up
/// finds it by its first bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_far_too_large_among_others_does_not_keep_an_instance_from_l2() {
    let world = World::new().await;
    world.put(1, 1).await;
    world.put(2, 2).await;
    let a = world.start().await;
    // It keeps nothing, so each read looks into L2.
    let short = Duration::from_millis(50);
    let b = world.start_with(|perto| perto.remote_timeout(short), |cache| cache.capacity_bytes(0)).await;
    coherent([&a, &b]).await;
    assert_eq!(a.fresh(1).await, Some(1));
    let mut redis = redis_at(&world.redis).await;
    let pattern = format!("perto:{}:*:1", world.name);
    eventually("it is in L2", async || keys(&mut redis, &pattern).await.unwrap().len() == 1).await;
    let key = keys(&mut redis, &pattern).await.unwrap().remove(0);
    let mut large: Vec<u8> = redis.get(&key).await.unwrap();
    large[8..24].fill(0x7F);
    large.resize(64 << 20, b'x');
    let () = redis.set(&key, &large).await.unwrap();
    eventually("it is gone", async || {
        let reads = b.items.get_many(&[1, 2]).await.unwrap();
        assert_eq!(reads.iter().map(|read| read.value().copied()).collect::<Vec<_>>(), [Some(1), Some(2)]);
        redis.strlen::<_, usize>(&key).await.unwrap() < large.len()
    })
    .await;
    assert!(b.perto.stats().l2_errors <= 4, "{:?}", b.perto.stats());
    coherent([&b]).await;
}

/// A value of another kind altogether under the key: a list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_kind_of_thing_under_a_key_fails_no_read() {
    let world = World::new().await;
    world.put(1, 1).await;
    world.put(2, 2).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    assert_eq!(a.fresh(2).await, Some(2));
    let mut redis = redis_at(&world.redis).await;
    let pattern = format!("perto:{}:*:2", world.name);
    eventually("it is in L2", async || keys(&mut redis, &pattern).await.unwrap().len() == 1).await;
    let key = keys(&mut redis, &pattern).await.unwrap().remove(0);
    let list = format!("{}1", &key[..=key.rfind(':').unwrap()]);
    let _: u64 = redis.rpush(&list, "x").await.unwrap();
    assert_eq!(b.fresh(1).await, Some(1));
    assert_eq!(b.fresh_from(2).await, (Some(2), Tier::Remote), "it is the key's trouble, not the server's");
    a.put(&world, 1, 3).await;
    b.polled().await;
    assert_eq!(b.fresh(1).await, Some(3));
}
