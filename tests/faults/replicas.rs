//! Loaders that read a standby, which lags behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use perto::{Freshness, StaleCause, Tier};

use crate::support::engines::redis_url;
use crate::support::postgres::PrivatePostgres;
use crate::support::wait::eventually;
use crate::world::{World, coherent, pool, read_items};

/// Replay is paused, so the standby stays behind for good: every read after the write shows whether it is believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_from_a_lagging_replica_is_never_served_as_fresh() {
    let primary = PrivatePostgres::start().await;
    let world = World::on(&primary.url("postgres"), &redis_url()).await;
    world.sql("insert into items select n, 1 from generate_series(1, 10) n").await;
    let standby = primary.standby().await;
    let behind = pool(&standby.url("postgres"), &world.name);
    let primaries = Arc::new(AtomicU64::new(0));
    let reading = |always_behind: bool| {
        let (behind, ahead, primaries) = (behind.clone(), world.pool.clone(), Arc::clone(&primaries));
        world.build_loading(
            |perto| perto,
            |cache| cache,
            move |load| {
                let pool = if load.primary && !always_behind { ahead.clone() } else { behind.clone() };
                primaries.fetch_add(u64::from(load.primary), Ordering::Relaxed);
                async move { read_items(&pool, &load.keys).await }
            },
        )
    };
    let a = reading(false);
    a.perto.start().await.unwrap();
    coherent([&a]).await;
    // Caught up: what it says is good, and the primary is spared.
    eventually("the standby's values are taken", async || {
        a.items.clear().await.unwrap();
        a.polled().await;
        let asked = primaries.load(Ordering::Relaxed);
        a.fresh(1).await == Some(1) && primaries.load(Ordering::Relaxed) == asked
    })
    .await;

    sqlx::raw_sql("select pg_wal_replay_pause()").execute(&behind).await.unwrap();
    eventually("replay is paused", async || {
        let state: String =
            sqlx::query_scalar("select pg_get_wal_replay_pause_state()").fetch_one(&behind).await.unwrap();
        state == "paused"
    })
    .await;
    for v in 2..=5 {
        world.sql(&format!("update items set v = {v}")).await;
        a.polled().await;
        let reloads = a.items.stats().replica_reloads;
        for id in 1..=10 {
            assert_eq!(a.fresh(id).await, Some(v), "{id}");
        }
        assert_eq!(a.items.stats().replica_reloads, reloads + 10, "asked again, for the primary");
        assert_eq!(a.fresh_from(1).await, (Some(v), Tier::Local), "and cached from there");
    }
    let stale: i64 = sqlx::query_scalar("select v from items where id = 1").fetch_one(&behind).await.unwrap();
    assert_eq!(stale, 1, "it was behind all the time");

    // A loader that goes to the standby even when asked for the primary gets its value through, but not as fresh.
    let b = reading(true);
    b.perto.start().await.unwrap();
    b.items.clear().await.unwrap();
    b.polled().await;
    for _ in 0..2 {
        let read = b.read(1).await;
        assert_eq!(
            (read.value(), read.freshness, read.tier),
            (Some(&1), Freshness::Stale(StaleCause::Replica), Tier::Load)
        );
    }

    sqlx::raw_sql("select pg_wal_replay_resume()").execute(&behind).await.unwrap();
    eventually("it has caught up", async || b.read(1).await.freshness == Freshness::Fresh).await;
    assert_eq!(b.fresh(1).await, Some(5));
}

/// A transaction that was begun before the write reads the primary, and reads old rows all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loader_in_an_old_transaction_of_the_primary_is_not_taken_at_its_word() {
    let world = World::new().await;
    world.put(1, 1).await;
    let mut old = world.pool.acquire().await.unwrap();
    sqlx::raw_sql("begin isolation level repeatable read; select 1").execute(&mut *old).await.unwrap();
    let (old, pool) = (Arc::new(tokio::sync::Mutex::new(old)), world.pool.clone());
    let loading = Arc::clone(&old);
    let a = world.build_loading(
        |perto| perto.postgres(&world.database),
        |cache| cache,
        move |load| {
            let (old, pool) = (Arc::clone(&loading), pool.clone());
            async move {
                if load.primary {
                    return read_items(&pool, &load.keys).await;
                }
                let query =
                    perto::postgres::query_as::<(i64, i64)>("select id, v from items where id = any($1)");
                query.bind(load.keys).fetch(&mut **old.lock().await).await.map(|rows| rows.by_key(|row| row))
            }
        },
    );
    a.perto.start().await.unwrap();
    world.put(1, 2).await;
    a.polled().await;
    let reloads = a.items.stats().replica_reloads;
    assert_eq!(a.fresh(1).await, Some(2));
    assert_eq!(a.items.stats().replica_reloads, reloads + 1, "asked again, for a new snapshot");
    sqlx::raw_sql("rollback").execute(&mut **old.lock().await).await.unwrap();
}

/// Without a lease no poll tells how old a snapshot is.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_from_an_old_transaction_of_the_primary_is_not_fresh_without_a_lease() {
    let world = World::new().await;
    world.put(1, 1).await;
    let mut old = world.pool.acquire().await.unwrap();
    sqlx::raw_sql("begin isolation level repeatable read; select 1").execute(&mut *old).await.unwrap();
    world.put(1, 2).await;
    let old = Arc::new(tokio::sync::Mutex::new(old));
    let loading = Arc::clone(&old);
    let a = world.build_loading(
        |perto| perto.postgres(&world.database),
        |cache| cache,
        move |load| {
            let old = Arc::clone(&loading);
            async move {
                let query =
                    perto::postgres::query_as::<(i64, i64)>("select id, v from items where id = any($1)");
                query.bind(load.keys).fetch(&mut **old.lock().await).await.map(|rows| rows.by_key(|row| row))
            }
        },
    );
    let read = a.items.get(&1).await.unwrap();
    assert_eq!(read.value(), Some(&1));
    assert_ne!(read.freshness, Freshness::Fresh);
    sqlx::raw_sql("rollback").execute(&mut **old.lock().await).await.unwrap();
}
