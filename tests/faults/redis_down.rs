//! Redis killed, emptied, restored, full, silent or never there: values stay right, and reads don't wait for it.

use std::time::{Duration, Instant};

use perto::proxy::{Fault, FaultProxy};
use perto::{State, Tier};
use redis::AsyncCommands;

use crate::support::engines::{keys, moved_to, place_of};
use crate::support::redis::PrivateRedis;
use crate::support::wait::{ends, eventually};
use crate::world::{Instance, World, coherent};

/// The default.
const L2_TIMEOUT: Duration = Duration::from_millis(50);

/// Until `reader` finds in L2 what `loader` loads: a key after the other, for fills are not awaited.
async fn l2_is_used(world: &World, loader: &Instance, reader: &Instance, mut id: i64) {
    eventually("L2 is used", async || {
        id += 1;
        world.put(id, id).await;
        loader.polled().await;
        reader.polled().await;
        assert_eq!(loader.fresh(id).await, Some(id));
        eventually("the load has landed", async || loader.items.flights() == 0).await;
        tokio::task::yield_now().await;
        let (value, tier) = reader.fresh_from(id).await;
        assert_eq!(value, Some(id));
        tier == Tier::Remote
    })
    .await;
}

/// Every read while it is down is fresh and begins after a poll that began after the write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_dead_writes_are_seen_by_faster_polls_and_when_it_returns_empty_nothing_needs_repair()
{
    let mut redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let with_default =
        || world.start_with(|perto| perto.poll_interval(Duration::from_millis(250)), |cache| cache);
    let (a, b) = (with_default().await, with_default().await);
    coherent([&a, &b]).await;
    l2_is_used(&world, &a, &b, 100).await;
    world.put(1, 1).await;
    b.polled().await;
    assert_eq!(b.fresh(1).await, Some(1));

    redis.kill();
    a.becomes(State::Isolated).await;
    b.becomes(State::Isolated).await;
    for v in 2..=6 {
        a.put(&world, 1, v).await;
        assert_eq!(a.fresh(1).await, Some(v), "the writer's own instance sees it at once");
        b.polled().await;
        assert_eq!(b.fresh(1).await, Some(v));
        assert_eq!(b.fresh_from(1).await, (Some(v), Tier::Local), "L1 goes on");
    }
    // 75 ms instead of 250: 20 polls take 1.5 s, not 5.
    let (began, polls) = (Instant::now(), b.perto.stats().polls);
    eventually("20 polls", async || b.perto.stats().polls >= polls + 20).await;
    assert!(began.elapsed() < Duration::from_millis(4_500), "polls are faster: {:?}", began.elapsed());

    redis.restart_empty().await;
    coherent([&a, &b]).await;
    assert_eq!(b.fresh_from(1).await, (Some(6), Tier::Local), "nothing was dropped");
    l2_is_used(&world, &a, &b, 200).await;
    let hints = b.perto.stats().hints;
    a.put(&world, 1, 7).await;
    eventually("hints come again", async || b.perto.stats().hints > hints).await;
    assert_eq!(b.fresh(1).await, Some(7));
    b.tells_of(State::Isolated).await;
    b.tells_of(State::Coherent).await;
}

/// What the dump holds is older than the writes since. Everybody who knows of them refuses it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_a_redis_restored_from_an_old_dump_are_refused() {
    let mut redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let a = world.start().await;
    coherent([&a]).await;
    world.sql("insert into items select n, 1 from generate_series(1, 20) n").await;
    a.polled().await;
    for id in 1..=20 {
        a.fresh(id).await;
    }
    let mut connection = redis.connect().await;
    let pattern = format!("perto:{}:*", world.name);
    eventually("all are in L2", async || keys(&mut connection, &pattern).await.unwrap().len() == 20).await;
    let dump = redis.dump().await;

    // Half of them by an instance, with tombstones; half by hand.
    for id in 1..=10 {
        a.put(&world, id, 2).await;
    }
    world.sql("update items set v = 2 where id > 10").await;
    a.polled().await;
    let known = world.start().await;
    redis.restore(&dump).await;
    // Until both have found it again, on an older key's account.
    l2_is_used(&world, &a, &known, 100).await;
    let late = world.start().await;
    coherent([&late]).await;
    for (instance, others) in [(&known, 0), (&late, 1)] {
        for id in 1..=20 {
            // From L2 only where the other has filled it since.
            let (value, tier) = instance.fresh_from(id).await;
            assert_eq!(value, Some(2));
            assert!(others > 0 || tier == Tier::Load, "{id}");
        }
    }
    assert_eq!(known.items.stats().l2_refused, 20);
}

/// Values, tombstones and scripts go at once. L2 is empty, not wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_redis_is_an_empty_one() {
    let redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    l2_is_used(&world, &a, &b, 100).await;
    let mut connection = redis.connect().await;
    for v in 1..=10 {
        a.put(&world, 1, v).await;
        redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
        redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut connection).await.unwrap();
        b.polled().await;
        assert_eq!((a.fresh(1).await, b.fresh(1).await), (Some(v), Some(v)));
    }
    l2_is_used(&world, &a, &b, 200).await;
    b.becomes(State::Coherent).await;
    assert_eq!(a.perto.stats().l2_errors + b.perto.stats().l2_errors, 0, "scripts are loaded again");
}

/// The L2 timeout is 50 ms. One read pays it; then the breaker answers, which is shown by errors counted, not by time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_redis_costs_one_read_its_l2_timeout_and_the_next_ones_nothing() {
    for fault in [Fault::BlackHole, Fault::BlackHoleToServer, Fault::BlackHoleToClient] {
        let world = World::new().await;
        let proxy = FaultProxy::start(place_of(&world.redis)).await.unwrap();
        let proxied = moved_to(&world.redis, &proxy.address().to_string());
        let a =
            world.start_with(|perto| perto.redis(&proxied).remote_timeout(L2_TIMEOUT), |cache| cache).await;
        let b = world.start().await;
        coherent([&a, &b]).await;
        l2_is_used(&world, &b, &a, 100).await;
        world.sql("insert into items select n, 1 from generate_series(1, 50) n").await;
        a.polled().await;

        proxy.set(fault);
        let errors = a.perto.stats().l2_errors;
        let began = Instant::now();
        assert_eq!(a.fresh_from(1).await, (Some(1), Tier::Load));
        // The L2 timeout, and a load on a busy machine.
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        for id in 2..=50 {
            assert_eq!(a.fresh_from(id).await, (Some(1), Tier::Load));
        }
        assert_eq!(a.perto.stats().l2_errors, errors + 1, "the breaker is open after the first");
        a.becomes(State::Isolated).await;
        // Writes don't wait either, and their hint is missed by nobody for longer than a poll.
        let began = Instant::now();
        a.put(&world, 1, 2).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        b.polled().await;
        assert_eq!((a.fresh(1).await, b.fresh(1).await), (Some(2), Some(2)));

        proxy.set(Fault::None);
        coherent([&a]).await;
        l2_is_used(&world, &b, &a, 200).await;
    }
}

/// L2 slower than its timeout is an L2 that is not used, not a slow cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_redis_is_not_waited_for() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.redis)).await.unwrap();
    let proxied = moved_to(&world.redis, &proxy.address().to_string());
    let a = world.start_with(|perto| perto.redis(&proxied).remote_timeout(L2_TIMEOUT), |cache| cache).await;
    coherent([&a]).await;
    world.sql("insert into items select n, 1 from generate_series(1, 200) n").await;
    a.polled().await;
    // 400 ms each way; a PING over it takes 800 ms, which is more than any limit here allows.
    proxy.set(Fault::Delay(Duration::from_millis(400)));
    let began = Instant::now();
    for id in 1..=200 {
        assert_eq!(a.fresh_from(id).await, (Some(1), Tier::Load));
    }
    // Waiting for each would take 160 s, and the timeout for each 10 s.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    a.becomes(State::Isolated).await;
    proxy.set(Fault::None);
    coherent([&a]).await;
}

/// Redis is for speed: an instance starts without it, works, and uses it when it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_starts_and_works_without_redis_and_uses_it_when_it_comes() {
    let mut redis = PrivateRedis::stopped();
    let world = World::with_redis(&redis.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    a.becomes(State::Isolated).await;
    assert!(!a.perto.health().remote_up && !a.perto.health().bus_up);
    for v in 1..=5 {
        a.put(&world, 1, v).await;
        b.polled().await;
        assert_eq!((a.fresh(1).await, b.fresh(1).await), (Some(v), Some(v)));
    }
    assert_eq!(b.fresh_from(1).await, (Some(5), Tier::Local));

    redis.restart_empty().await;
    coherent([&a, &b]).await;
    l2_is_used(&world, &a, &b, 100).await;
}

/// A full Redis that evicts nothing refuses values and tombstones. Hints are no values: they still go through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_redis_out_of_memory_writes_still_invalidate_and_no_old_value_stays() {
    let redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    world.put(1, 1).await;
    a.polled().await;
    b.polled().await;
    assert_eq!(a.fresh(1).await, Some(1));
    let mut connection = redis.connect().await;
    let pattern = format!("perto:{}:*:1", world.name);
    eventually("it is in L2", async || keys(&mut connection, &pattern).await.unwrap().len() == 1).await;
    redis.config("maxmemory-policy", "noeviction").await;
    redis.config("maxmemory", "1").await;
    let refused: redis::RedisResult<()> = connection.set("x", 1).await;
    assert!(refused.is_err(), "there is room left");

    let hints = b.perto.stats().hints;
    for v in 2..=20 {
        // A load of each, for its fill to be refused while the next write is under way.
        assert_eq!(b.fresh(1000 + v).await, None);
        a.put(&world, 1, v).await;
        b.polled().await;
        assert_eq!((a.fresh(1).await, b.fresh(1).await), (Some(v), Some(v)));
    }
    eventually("every write's hint has come", async || b.perto.stats().hints == hints + 19).await;
    assert!(keys(&mut connection, &pattern).await.unwrap().is_empty(), "the old value is gone");
    for instance in [&a, &b] {
        assert_eq!(instance.perto.stats().l2_errors, 0, "a server that is full is not down");
        instance.becomes(State::Coherent).await;
    }

    redis.config("maxmemory", "0").await;
    l2_is_used(&world, &a, &b, 100).await;
    ends("shutdown", a.perto.shutdown()).await;
}
