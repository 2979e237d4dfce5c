//! Loads that are cancelled, fail, panic, hang or find no place; and the end of an instance under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use perto::proxy::{Fault, FaultProxy};
use perto::{Cache, Error, Freshness, Load, Loaded, Perto, Previous, ReadOptions, State, Tier, postgres};
use tokio::sync::Semaphore;

use crate::support::engines::{moved_to, place_of};
use crate::support::liar::Liar;
use crate::support::wait::{ends, eventually};
use crate::world::{Instance, World, coherent, read_items};

/// The load is the instance's, not the reader's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_leader_wastes_no_load() {
    let world = World::new().await;
    world.put(1, 1).await;
    let a = world.start().await;
    a.gate.close();
    let leader = a.reading(1);
    a.gate.holds(1).await;
    let others = [a.reading(1), a.reading(1), a.reading(1)];
    leader.abort();
    assert!(ends("the leader", leader).await.is_err());
    a.gate.open();
    for other in others {
        assert_eq!(ends("a waiter", other).await.unwrap().unwrap().value(), Some(&1));
    }
    assert_eq!(a.loads(), 1);
    // All readers gone: the load ends all the same, and is cached.
    a.gate.close();
    let only = a.reading(2);
    a.gate.holds(1).await;
    only.abort();
    a.gate.open();
    eventually("it is cached", async || a.items.get_if_cached(&2).is_some()).await;
    assert_eq!(a.items.flights(), 0);
}

/// Cancelled while it looks into L2: one of the others leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cancelled_during_its_look_into_l2_hands_over() {
    let world = World::new().await;
    world.put(1, 1).await;
    let proxy = FaultProxy::start(place_of(&world.redis)).await.unwrap();
    let proxied = moved_to(&world.redis, &proxy.address().to_string());
    // L2 may take long here: 2 s.
    let a = world
        .start_with(|perto| perto.redis(&proxied).remote_timeout(Duration::from_secs(2)), |cache| cache)
        .await;
    coherent([&a]).await;
    proxy.set(Fault::BlackHole);
    let leader = a.reading(1);
    eventually("it leads", async || a.items.flights() == 1).await;
    let others = [a.reading(1), a.reading(1), a.reading(1)];
    leader.abort();
    assert!(ends("the leader", leader).await.is_err());
    proxy.set(Fault::None);
    for other in others {
        assert_eq!(ends("a waiter", other).await.unwrap().unwrap().value(), Some(&1));
    }
    assert_eq!(a.loads(), 1);
    assert_eq!(a.items.flights(), 0);
}

/// Who goes away says nothing of the server: others look up several values by one command as before. One that did not answer in
/// time may have sent something huge, and is asked for the first bytes of each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_values_are_looked_up_one_by_one_after_an_answer_that_was_late_and_not_after_a_reader_left() {
    let (world, liar) = (World::new().await, Liar::start().await);
    let proxy = FaultProxy::start(place_of(&liar.url())).await.unwrap();
    let proxied = moved_to(&liar.url(), &proxy.address().to_string());
    let limit = Duration::from_millis(500);
    let a = world
        .start_with(|perto| perto.redis(&proxied).remote_timeout(limit), |cache| cache.capacity_bytes(0))
        .await;
    coherent([&a]).await;
    proxy.set(Fault::BlackHole);
    let items = a.items.clone();
    let leaves = tokio::runtime::Handle::current().spawn(async move { items.get_many(&[1, 2]).await });
    eventually("it looks", async || a.items.flights() == 2).await;
    leaves.abort();
    assert!(ends("who leaves", leaves).await.is_err());
    proxy.set(Fault::None);
    a.items.get_many(&[3, 4]).await.unwrap();
    assert_eq!((liar.asked("MGET"), liar.asked("GETRANGE")), (2, 0));
    // This one stays until the limit.
    proxy.set(Fault::BlackHole);
    a.items.get_many(&[5, 6]).await.unwrap();
    proxy.set(Fault::None);
    coherent([&a]).await;
    let asked = liar.asked("MGET");
    a.items.get_many(&[7, 8]).await.unwrap();
    assert_eq!((liar.asked("MGET"), liar.asked("GETRANGE")), (asked, 2));
}

const WORKS: u8 = 0;
const FAILS: u8 = 1;
const PANICS: u8 = 2;
const HANGS: u8 = 3;

/// An instance whose loader does what it is told.
async fn unruly(world: &World, limit: Duration) -> (Instance, Arc<AtomicU8>) {
    let mood = Arc::new(AtomicU8::new(WORKS));
    let (pool, asked) = (world.pool.clone(), Arc::clone(&mood));
    let instance = world.build_loading(
        |perto| perto,
        move |cache| cache.load_timeout(limit),
        move |load| {
            let (pool, mood) = (pool.clone(), asked.load(Ordering::Acquire));
            async move {
                // So that all who wait have joined.
                tokio::time::sleep(Duration::from_millis(100)).await;
                match mood {
                    FAILS => Err(sqlx::Error::PoolClosed),
                    PANICS => std::panic::panic_any("the loader panics, as this test wants it"),
                    HANGS => std::future::pending().await,
                    _ => read_items(&pool, &load.keys).await,
                }
            }
        },
    );
    instance.perto.start().await.unwrap();
    (instance, mood)
}

/// 100 ms of work, 1 s for the load. An error goes to all who wait, comes within the limit, and is not cached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loader_that_fails_panics_or_hangs_is_an_error_for_all_who_wait_and_is_not_cached() {
    const LIMIT: Duration = Duration::from_secs(1);
    let world = World::new().await;
    world.put(1, 1).await;
    let (a, mood) = unruly(&world, LIMIT).await;
    for bad in [FAILS, PANICS, HANGS] {
        mood.store(bad, Ordering::Release);
        let loads = a.loads();
        let began = Instant::now();
        let readers: Vec<_> = (0..8).map(|_| a.reading(1)).collect();
        for reader in readers {
            let outcome = ends("a reader", reader).await.unwrap();
            match bad {
                FAILS => assert!(matches!(outcome, Err(Error::Load { .. })), "{outcome:?}"),
                PANICS => assert!(matches!(outcome, Err(Error::LoadPanicked { .. })), "{outcome:?}"),
                _ => assert!(matches!(outcome, Err(Error::LoadTimeout { .. })), "{outcome:?}"),
            }
        }
        assert!(began.elapsed() < 4 * LIMIT, "{:?}", began.elapsed());
        assert_eq!(a.loads(), loads + 1, "eight readers, one load");
        mood.store(WORKS, Ordering::Release);
        assert_eq!(a.fresh_from(1).await, (Some(1), Tier::Load), "an error is not cached");
        world.sql("update items set v = 1").await;
        a.polled().await;
    }
    assert_eq!(a.items.stats().load_errors, 3);
    assert_eq!(a.items.flights(), 0);
}

/// One place, taken by a load of another cache that is never let go: who waits for it is told within its own 500 ms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_waits_for_a_place_times_out_without_calling_the_loader() {
    const LIMIT: Duration = Duration::from_millis(500);
    /// No load begins with less than this left.
    const HALF: Duration = Duration::from_millis(250);
    let world = World::new().await;
    world.put(1, 1).await;
    let a = world.build(|perto| perto.max_loads(1), |cache| cache.load_timeout(LIMIT));
    let (reached, pool) = (Arc::new(Semaphore::new(0)), world.pool.clone());
    let (reaching, go) = (Arc::clone(&reached), Arc::new(Semaphore::new(0)));
    let going = Arc::clone(&go);
    let slow: Cache<i64, i64> = a
        .perto
        .cache("slow")
        .load_timeout(Duration::from_secs(60))
        .loader(move |load: Load<i64>| {
            let (reaching, going, pool) = (Arc::clone(&reaching), Arc::clone(&going), pool.clone());
            async move {
                reaching.add_permits(1);
                going.acquire().await.unwrap().forget();
                read_items(&pool, &load.keys).await
            }
        })
        .unwrap();
    a.perto.start().await.unwrap();
    let holding = tokio::runtime::Handle::current().spawn(async move { slow.get(&1).await });
    reached.acquire().await.unwrap().forget();

    let began = Instant::now();
    let readers = [a.reading(1), a.reading(2), a.reading(3)];
    for reader in readers {
        let outcome = ends("a reader", reader).await.unwrap();
        assert!(matches!(outcome, Err(Error::LoadTimeout { limit, .. }) if limit == HALF), "{outcome:?}");
    }
    assert!(began.elapsed() >= HALF && began.elapsed() < 10 * HALF, "{:?}", began.elapsed());
    assert_eq!(a.loads(), 0);
    go.add_permits(1);
    assert_eq!(ends("the slow load", holding).await.unwrap().unwrap().value(), Some(&1));
    assert_eq!(a.fresh(1).await, Some(1), "the place is given back");
}

/// Twenty readers, some of them at a loader that is held: all end, with `Closed` or a value, and no task is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_under_load_leaves_no_task_and_hangs_nobody() {
    let world = World::new().await;
    world.sql("insert into items select n, 1 from generate_series(1, 50) n").await;
    let a = world.start().await;
    coherent([&a]).await;
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..20_i64 {
        let items = a.items.clone();
        readers.spawn(async move {
            for round in 0.. {
                let id = (reader * 7 + round) % 50 + 1;
                if round % 10 == 0 {
                    drop(items.invalidate(&id).await);
                }
                match items.get(&id).await {
                    Ok(_) => tokio::task::yield_now().await,
                    Err(error) => return error,
                }
            }
            Error::Unsettled
        });
    }
    eventually("reads are under way", async || a.items.stats().l1_hits > 1_000 && a.loads() > 50).await;
    a.gate.close();
    a.items.clear().await.unwrap();
    eventually("loads are held", async || a.items.flights() > 0).await;
    ends("shutdown", a.perto.shutdown()).await;
    assert_eq!(a.perto.tasks(), 0);
    while let Some(ended) = ends("a reader", readers.join_next()).await {
        assert!(matches!(ended.unwrap(), Error::Closed));
    }
    assert_eq!(a.perto.health().state, State::Closed);
    // A second time is nothing; and nothing works any more, but says so.
    ends("shutdown", a.perto.shutdown()).await;
    assert!(matches!(a.items.invalidate(&1).await, Err(perto::InvalidateError::Closed)));
    assert!(matches!(a.try_read(1).await, Err(Error::Closed)));
    assert_eq!(a.perto.tasks(), 0);
}

/// What L1 holds is vouched for by nobody any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_shutdown_a_cached_value_is_not_served_either() {
    let world = World::new().await;
    world.put(1, 1).await;
    let a = world.start().await;
    assert_eq!(a.fresh(1).await, Some(1));
    assert_eq!(a.fresh_from(1).await, (Some(1), Tier::Local));
    ends("shutdown", a.perto.shutdown()).await;
    assert!(matches!(a.try_read(1).await, Err(Error::Closed)));
    assert!(a.items.get_if_cached(&1).is_none());
}

/// The last handle that goes ends the tasks too, though nobody waits for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_dropped_ends_its_tasks() {
    let world = World::new().await;
    let a = world.start().await;
    let items = a.items.clone();
    coherent([&a]).await;
    let connections =
        format!("pg_stat_activity where application_name like 'perto/%' and query like '%{}.%'", world.name);
    assert!(world.count(&connections).await > 0);
    drop(a);
    assert!(matches!(ends("a read", items.get(&1)).await, Err(Error::Closed)));
    drop(items);
    eventually("its connection is closed", async || world.count(&connections).await == 0).await;
}

/// It reads its own uncommitted write, and then rolls back: nothing would ever invalidate what it read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_loader_reads_in_a_transaction_that_wrote_is_not_cached() {
    let world = World::new().await;
    world.put(1, 1).await;
    let (pool, writes) = (world.pool.clone(), Arc::new(AtomicU8::new(1)));
    let writing = Arc::clone(&writes);
    let a = world.build_loading(
        |perto| perto,
        |cache| cache,
        move |load| {
            let (pool, writes) = (pool.clone(), writing.load(Ordering::Acquire) == 1);
            async move {
                let mut tx = pool.begin().await?;
                if writes {
                    sqlx::query("update items set v = 99").execute(&mut *tx).await?;
                }
                let rows = postgres::query_as::<(i64, i64)>("select id, v from items where id = any($1)")
                    .bind(&load.keys)
                    .fetch(&mut *tx)
                    .await?;
                tx.rollback().await?;
                Ok(rows.by_key(|row| row))
            }
        },
    );
    a.perto.start().await.unwrap();
    coherent([&a]).await;
    let outcome = a.try_read(1).await;
    assert!(matches!(outcome, Err(Error::Load { .. })), "{outcome:?}");
    assert!(a.items.get_if_cached(&1).is_none());
    writes.store(0, Ordering::Release);
    assert_eq!(a.fresh_from(1).await, (Some(1), Tier::Load), "a transaction that only reads is fine");
    assert_eq!(a.fresh_from(1).await, (Some(1), Tier::Local));
}

/// Postgres compares a `char(n)` without its padding, and brings it with it: another key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_postgres_brings_padded_or_in_another_case_is_an_error_and_never_absent() {
    let world = World::new().await;
    world.sql("create table codes (code char(8) primary key, name text not null)").await;
    world.sql("insert into codes values ('PT', 'Portugal')").await;
    let perto = Perto::builder(&world.name).schema(&world.name).postgres(&world.database).redis(&world.redis);
    let perto = perto.build().unwrap();
    let cache = |name: &str, sql: &'static str| {
        let pool = world.pool.clone();
        let load = move |load: Load<String>| {
            let pool = pool.clone();
            async move {
                let query = postgres::query_as::<(String, String)>(sql).bind(load.keys);
                query.fetch(&pool).await.map(|rows| rows.by_key(|row| row))
            }
        };
        perto.cache::<String, String>(name).loader(load).unwrap()
    };
    let padded = cache("padded", "select code, name from codes where code = any($1::char(8)[])");
    let cased = cache("cased", "select code::text, name from codes where lower(code) = any($1)");
    let right = cache("right", "select rtrim(code), name from codes where code = any($1::char(8)[])");
    perto.start().await.unwrap();
    for (cache, key) in [(&padded, "PT"), (&cased, "pt")] {
        let error = ends("a read", cache.get(&key.to_owned())).await.unwrap_err();
        assert!(matches!(error, Error::UnaskedKeys { unasked: 1, missing: 1, .. }), "{error}");
        assert!(cache.get_if_cached(&key.to_owned()).is_none());
    }
    let read = ends("a read", right.get(&"PT".to_owned())).await.unwrap();
    assert_eq!(read.value().map(String::as_str), Some("Portugal"));
    assert_eq!(ends("a read", padded.get(&"XX".to_owned())).await.unwrap().value(), None, "it is absent");
    perto.shutdown().await;
}

/// As the documentation of `CacheBuilder::conditional_loader` has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_loader_that_compares_versions_brings_what_is_new_and_nothing_else() {
    let world = World::new().await;
    world.sql("alter table items add body text").await;
    let builder = Perto::builder(&world.name).schema(&world.name).postgres(&world.database);
    let perto = builder.audit_rate(0).build().unwrap();
    let (pool, brought) = (world.pool.clone(), Arc::new(AtomicU64::new(0)));
    let counting = Arc::clone(&brought);
    let load = move |load: Load<i64>, previous: Previous<i64, (i64, Option<String>)>| {
        let versions: Vec<Option<i64>> =
            load.keys.iter().map(|id| previous.get(id).map(|(v, _)| *v)).collect();
        let sql = "select id, i.v, same, case when not same then i.body end \
                   from unnest($1::bigint[], $2::bigint[]) shown(id, v) join items i using (id), \
                        lateral (select i.v is not distinct from shown.v as same) compared";
        let query =
            postgres::query_as::<(i64, i64, bool, Option<String>)>(sql).bind(load.keys).bind(versions);
        let (pool, brought) = (pool.clone(), Arc::clone(&counting));
        async move {
            let found = query.fetch(&pool).await?;
            let changed = found.rows.iter().filter(|(_, _, same, _)| !same).count();
            brought.fetch_add(changed as u64, Ordering::Relaxed);
            Ok::<_, sqlx::Error>(found.rows.into_iter().fold(
                Loaded::new(found.stamp),
                |loaded, row| match row {
                    (id, _, true, _) => loaded.with_unmodified(id),
                    (id, v, false, body) => loaded.with(id, (v, body)),
                },
            ))
        }
    };
    let (soon, items) = (Duration::from_millis(300), perto.cache("item"));
    let items = items.tables([format!("{}.items", world.name)]).ttl(soon).absent_ttl(soon);
    let items: Cache<i64, (i64, Option<String>)> = items.conditional_loader(load).unwrap();
    perto.start().await.unwrap();
    world.sql("insert into items select n, 1, 'one' from generate_series(1, 3) n").await;
    let read = async || {
        let reads = items.get_many(&[1, 2, 3, 4]).await.unwrap();
        assert!(reads.iter().all(|read| read.freshness == Freshness::Fresh));
        reads.iter().map(|read| read.value().cloned()).collect::<Vec<_>>()
    };
    let value = |v, body: Option<&str>| Some((v, body.map(str::to_owned)));
    let one = value(1, Some("one"));
    assert_eq!(read().await, [one.clone(), one.clone(), one.clone(), None]);
    let mut expected = 3;
    for (v, body) in [(2, Some("two")), (3, None), (4, Some("four"))] {
        eventually("all are over", async || (1..=4).all(|id| items.get_if_cached(&id).is_none())).await;
        let body_in_sql = body.map_or("null".to_owned(), |body| format!("'{body}'"));
        world.sql(&format!("update items set v = {v}, body = {body_in_sql} where id = 2")).await;
        let after = items.get_with(&2, ReadOptions::latest()).await.unwrap();
        assert_eq!(after.value().cloned(), value(v, body), "of a row that was shown");
        eventually("all are over", async || (1..=4).all(|id| items.get_if_cached(&id).is_none())).await;
        assert_eq!(read().await, [one.clone(), value(v, body), one.clone(), None]);
        expected += 1;
        assert_eq!(brought.load(Ordering::Relaxed), expected, "the row that was written");
    }
    assert!(items.stats().keys_unmodified >= 9, "{:?}", items.stats());
    perto.shutdown().await;
}
