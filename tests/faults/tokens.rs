//! Tokens: one's own writes are read back on any instance, without waiting; a token of nowhere hangs nobody.

use std::time::{Duration, Instant};

use perto::proxy::{Fault, FaultProxy};
use perto::{Error, Freshness, PertoBuilder, ReadOptions, Tier, Token};
use sqlx::AssertSqlSafe;

use crate::support::engines::{moved_to, place_of};
use crate::support::wait::ends;
use crate::world::{World, coherent};

/// 500 writes in turn by three instances, each read at once by all three, one of which gets no hint at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ones_own_writes_are_read_by_token_on_any_instance_without_waiting() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.redis)).await.unwrap();
    let lossy = moved_to(&world.redis, &proxy.address().to_string());
    let (a, b) = (world.start().await, world.start().await);
    let c = world.start_with(|perto| perto.subscribe_at(&lossy), |cache| cache).await;
    let all = [&a, &b, &c];
    coherent(all).await;
    proxy.set(Fault::DropMessages);
    for v in 1..=500_i64 {
        let (id, writer) = (v % 7, all[usize::try_from(v % 3).unwrap()]);
        let token = writer.put(&world, id, v).await;
        // Its text goes through HTTP headers.
        let token: Token = token.to_string().parse().unwrap();
        for instance in all {
            let read = instance.items.get_with(&id, ReadOptions::at_least(token)).await.unwrap();
            assert_eq!((read.value(), read.freshness), (Some(&v), Freshness::Fresh));
        }
    }
    let reads: u64 = 1_500;
    let loads: u64 = all.iter().map(|instance| instance.loads()).sum();
    assert!(loads < reads, "some were served from a cache: {loads}");
}

/// Deleted rows too: an absence has a stamp.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ones_own_delete_is_read_by_token() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    for v in 1..=20 {
        let token = a.put(&world, 1, v).await;
        assert!(b.items.get_with(&1, ReadOptions::at_least(token)).await.unwrap().value().is_some());
        let gone = a
            .perto
            .write(&world.pool, async |tx| sqlx::query("delete from items where id = 1").execute(tx).await)
            .await
            .unwrap();
        let read = b.items.get_with(&1, ReadOptions::at_least(gone.token.unwrap())).await.unwrap();
        assert_eq!((read.value(), read.freshness), (None, Freshness::Fresh));
    }
}

/// A write that changed no watched table has no token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_of_nothing_that_is_watched_has_no_token() {
    let world = World::new().await;
    world.sql("create table free (id bigint)").await;
    let a = world.start().await;
    let written = a
        .perto
        .write(&world.pool, async |tx| sqlx::query("insert into free values (1)").execute(tx).await)
        .await;
    assert_eq!(written.unwrap().token, None);
    let failed = a
        .perto
        .write(&world.pool, async |tx| sqlx::query("insert into nowhere values (1)").execute(tx).await);
    assert!(failed.await.is_err());
}

/// Numbers of another epoch can't be compared, and need not be: what they wrote is in the database, or lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_epoch_is_answered_by_what_is_fresh() {
    let world = World::new().await;
    let a = world.start().await;
    let old = a.put(&world, 1, 1).await;
    assert_eq!(a.fresh(1).await, Some(1));
    let recoveries = a.perto.stats().recoveries;
    world.forget_the_epoch().await;
    crate::support::wait::eventually("it has recovered", async || a.perto.stats().recoveries > recoveries)
        .await;
    a.polled().await;
    // One that has lived through it, and one that has never heard of that epoch.
    let b = world.start().await;
    coherent([&a, &b]).await;
    for instance in [&a, &b] {
        instance.fresh(1).await;
        let (loads, polls) = (instance.loads(), instance.perto.stats().polls);
        let began = Instant::now();
        for _ in 0..100 {
            let read = ends("a read", instance.items.get_with(&1, ReadOptions::at_least(old))).await.unwrap();
            assert_eq!((read.value(), read.tier), (Some(&1), Tier::Local));
        }
        let (polls, took) = (instance.perto.stats().polls - polls, began.elapsed());
        assert_eq!(instance.loads(), loads);
        assert!(u128::from(polls) <= 2 + took.as_millis() / 50, "{polls} polls in {took:?}");
    }
}

/// Postgres has crashed, and nobody has polled since: there is no epoch yet, and what is cached from before is still served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_before_anybody_has_polled_after_a_crash_is_read_by_token_on_any_instance() {
    let world = World::new().await;
    // A poll would begin the epoch.
    let rarely =
        |perto: PertoBuilder| perto.bound(Duration::from_mins(2)).poll_interval(Duration::from_mins(1));
    let (a, b) =
        (world.start_with(rarely, |cache| cache).await, world.start_with(rarely, |cache| cache).await);
    coherent([&a, &b]).await;
    let mut v = 1;
    a.put(&world, 1, v).await;
    for isolation in ["read committed", "repeatable read", "serializable"] {
        for _ in 0..2 {
            v += 1;
            for instance in [&a, &b] {
                instance.fresh(1).await;
                assert_eq!(instance.fresh_from(1).await.1, Tier::Local);
            }
            world.forget_the_epoch().await;
            let sql = format!("set transaction isolation level {isolation}; update items set v = {v}");
            let written: Result<_, sqlx::Error> = a
                .perto
                .write(&world.pool, async move |tx| sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx).await)
                .await;
            let token = written.unwrap().token.unwrap();
            for instance in [&b, &a] {
                let polls = instance.perto.stats().polls;
                for _ in 0..5 {
                    let read = ends("a read", instance.items.get_with(&1, ReadOptions::at_least(token)))
                        .await
                        .unwrap();
                    assert_eq!(
                        (read.value(), read.freshness),
                        (Some(&v), Freshness::Fresh),
                        "{isolation}: {token}"
                    );
                }
                let polls = instance.perto.stats().polls - polls;
                assert!(polls <= 10, "{polls}");
            }
            let nameless = token.to_string().starts_with("0000000000000000-");
            assert_eq!(
                nameless,
                isolation != "read committed",
                "{token}: others can't see an epoch that begins beside them"
            );
        }
    }
}

/// A transaction that the database has not seen yet, of the right epoch: an error, not a wait and not a loop of loads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_ahead_of_the_database_is_an_error_at_once() {
    let world = World::new().await;
    let a = world.start().await;
    let token = a.put(&world, 1, 1).await;
    let (epoch, xid) = token.to_string().split_once('-').map(|(e, x)| (e.to_owned(), x.to_owned())).unwrap();
    let ahead = u64::from_str_radix(&xid, 16).unwrap() + 1_000_000_000;
    let ahead: Token = format!("{epoch}-{ahead:x}").parse().unwrap();
    let (loads, began) = (a.loads(), Instant::now());
    for _ in 0..3 {
        let outcome = ends("a read", a.items.get_with(&1, ReadOptions::at_least(ahead))).await;
        assert!(matches!(outcome, Err(Error::TokenAhead)), "{outcome:?}");
    }
    assert!(a.loads() - loads <= 6, "{}", a.loads() - loads);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(a.fresh(1).await, Some(1));

    // The same for many readers at once: they share loads.
    let readers: Vec<_> = (0..16)
        .map(|_| {
            let items = a.items.clone();
            tokio::runtime::Handle::current()
                .spawn(async move { items.get_with(&2, ReadOptions::at_least(ahead)).await })
        })
        .collect();
    for reader in readers {
        assert!(matches!(ends("a reader", reader).await.unwrap(), Err(Error::TokenAhead)));
    }
}
