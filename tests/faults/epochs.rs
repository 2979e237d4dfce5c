//! New epochs: Postgres crashes or is restored elsewhere, and transaction numbers may be used again. Nothing from an
//! old epoch is served in the new one.
//!
//! In these tests rows change with the triggers off while an epoch ends: nothing but the epoch can tell.

use std::time::Duration;

use perto::proxy::{Fault, FaultProxy};
use perto::{Event, Freshness, Recovery, StaleCause, State, Tier};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::engines::{keys, moved_to, place_of, redis_at, redis_url};
use crate::support::postgres::PrivatePostgres;
use crate::support::wait::{ends, eventually};
use crate::world::{World, coherent};

impl World {
    /// Changes every row behind everybody's back.
    async fn change_untold(&self) {
        let watch =
            |event: &str| format!("alter table items enable always trigger \"{}:item:{event}\"", self.name);
        let again = ["insert", "update", "delete", "truncate"].map(watch).join("; ");
        self.sql(&format!("alter table items disable trigger all; update items set v = v + 100; {again}"))
            .await;
    }
}

/// Killed as by a power cut, and back: `boot` is empty, the epoch another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_postgres_crashes_nothing_from_the_old_epoch_is_served() {
    let mut postgres = PrivatePostgres::start().await;
    let world = World::on(&postgres.url("postgres"), &redis_url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    world.sql("insert into items select n, 1 from generate_series(1, 10) n").await;
    a.polled().await;
    for id in 1..=10 {
        assert_eq!(a.fresh(id).await, Some(1));
    }
    let mut redis = redis_at(&world.redis).await;
    let pattern = format!("perto:{}:*", world.name);
    eventually("all are in L2", async || keys(&mut redis, &pattern).await.unwrap().len() == 10).await;
    let old = a.perto.health().epoch;

    postgres.kill();
    a.becomes(State::Unverified).await;
    assert!(matches!(a.read(1).await.freshness, Freshness::Unverified { .. }));
    // Nobody who follows the log may see the database before the rows have changed: it listens elsewhere till then.
    postgres
        .restart_then(async |url| {
            let mut connection = PgConnection::connect(&url).await.unwrap();
            let boot: i64 =
                sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {}.boot", world.name)))
                    .fetch_one(&mut connection)
                    .await
                    .unwrap();
            assert_eq!(boot, 0, "an unlogged table is empty after a crash");
            let sql = format!(
                "set search_path = {}; alter table items disable trigger all; update items set v = 2",
                world.name
            );
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        })
        .await;

    for instance in [&a, &b] {
        instance.tells(Event::Recovered { why: Recovery::NewEpoch }).await;
        instance.becomes(State::Coherent).await;
        for id in 1..=10 {
            assert_eq!(instance.fresh(id).await, Some(2), "{id}");
        }
        assert_ne!(instance.perto.health().epoch, old);
    }
    assert_eq!(a.perto.health().epoch, b.perto.health().epoch, "one token for all");
    let current = format!("perto:{}:{:016x}:*", world.name, a.perto.health().epoch);
    eventually("L2 is filled anew", async || keys(&mut redis, &current).await.unwrap().len() == 10).await;
}

/// Stopped in order, the token survives: nothing is dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_postgres_is_restarted_nothing_cached_is_trusted_for_its_files_may_be_older() {
    let mut postgres = PrivatePostgres::start().await;
    let world = World::on(&postgres.url("postgres"), &redis_url()).await;
    let a = world.start().await;
    coherent([&a]).await;
    world.put(1, 1).await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(1));
    postgres.stop_in_order();
    a.becomes(State::Unverified).await;
    postgres.restart().await;
    a.tells(Event::Recovered { why: Recovery::NewEpoch }).await;
    a.becomes(State::Coherent).await;
    assert_eq!(a.fresh_from(1).await, (Some(1), Tier::Load));
    world.put(1, 2).await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(2));
}

/// The load has read the old database. Its reader gets what the new one says, and neither tier gets the old value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_begun_in_an_old_epoch_is_dropped() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    world.put(1, 1).await;
    a.polled().await;
    a.gate.close();
    let reading = a.reading(1);
    a.gate.holds(1).await;
    world.change_untold().await;
    world.forget_the_epoch().await;
    a.tells(Event::Recovered { why: Recovery::NewEpoch }).await;
    b.tells(Event::Recovered { why: Recovery::NewEpoch }).await;
    coherent([&a, &b]).await;
    a.gate.open();

    let read = ends("the held read", reading).await.unwrap().unwrap();
    assert_eq!((read.value(), read.freshness), (Some(&101), Freshness::Fresh));
    assert_eq!((a.fresh(1).await, b.fresh(1).await), (Some(101), Some(101)));
}

/// Entries of both tiers, by the token alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_cached_outlives_its_epoch() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    world.put(1, 1).await;
    a.polled().await;
    let mut redis = redis_at(&world.redis).await;
    let pattern = format!("perto:{}:*:1", world.name);
    for round in 0..5 {
        let v = 1 + 100 * round;
        assert_eq!((a.fresh(1).await, b.fresh(1).await), (Some(v), Some(v)));
        let filled = usize::try_from(round + 1).unwrap();
        eventually("it is in L2", async || keys(&mut redis, &pattern).await.unwrap().len() == filled).await;
        let recoveries = (a.perto.stats().recoveries, b.perto.stats().recoveries);
        world.change_untold().await;
        world.forget_the_epoch().await;
        eventually("both have recovered", async || {
            a.perto.stats().recoveries > recoveries.0 && b.perto.stats().recoveries > recoveries.1
        })
        .await;
        a.polled().await;
        b.polled().await;
    }
    assert_eq!((a.fresh(1).await, b.fresh(1).await), (Some(501), Some(501)));
}

/// 250 ms each way: the poll that finds the epoch changed takes half a second, the one that reads the log anew as long.
/// In between reads are loads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_in_a_new_epoch_is_recovering_until_it_has_read_the_log() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
    let proxied = moved_to(&world.database, &proxy.address().to_string());
    let a =
        world.start_with(|perto| perto.postgres(&proxied).bound(Duration::from_secs(3)), |cache| cache).await;
    coherent([&a]).await;
    world.put(1, 1).await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(1));
    // This one will write the next token: over the slow line that would take longer than a poll may.
    let b = world.start().await;
    world.change_untold().await;
    proxy.set(Fault::Delay(Duration::from_millis(250)));
    world.forget_the_epoch().await;
    a.becomes(State::Recovering).await;
    let read = a.read(1).await;
    assert_eq!((read.value(), read.tier), (Some(&101), Tier::Load));
    a.tells_of(State::Recovering).await;
    proxy.set(Fault::None);
    coherent([&a]).await;
    a.tells(Event::Recovered { why: Recovery::NewEpoch }).await;
    assert_eq!((a.fresh(1).await, b.fresh(1).await), (Some(101), Some(101)));
}

/// A dump brings the log and its token along, but not the place: another epoch, whose instances share no values with
/// those of the original, though app and Redis are the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_restored_elsewhere_is_another_epoch() {
    let postgres = PrivatePostgres::start().await;
    let world = World::on(&postgres.url("postgres"), &redis_url()).await;
    let a = world.start().await;
    coherent([&a]).await;
    world.sql("insert into items select n, 1 from generate_series(1, 10) n").await;
    a.polled().await;
    for id in 1..=10 {
        a.fresh(id).await;
    }
    let mut redis = redis_at(&world.redis).await;
    let pattern = format!("perto:{}:*", world.name);
    eventually("all are in L2", async || keys(&mut redis, &pattern).await.unwrap().len() == 10).await;
    // A transaction number that this cluster may take for one of the future.
    world
        .sql("insert into invalidation (xid, cache, keys) values ('9000000000'::xid8, 'other', '{1}')")
        .await;

    world.sql("create database elsewhere").await;
    postgres.dump_into("postgres", "elsewhere");
    let there = postgres.url("elsewhere");
    let pool = crate::world::pool(&there, &world.name);
    sqlx::raw_sql(AssertSqlSafe(format!("alter table {}.items disable trigger all", world.name)))
        .execute(&pool)
        .await
        .unwrap();
    sqlx::raw_sql("update items set v = 2").execute(&pool).await.unwrap();
    let loading = pool.clone();
    let b = world.build_loading(
        // Its triggers are off, so that the two tell by the epoch alone.
        |perto| perto.postgres(&there).allow_unwatched(),
        |cache| cache,
        move |load| {
            let pool = loading.clone();
            async move { crate::world::read_items(&pool, &load.keys).await }
        },
    );
    b.perto.start().await.unwrap();
    coherent([&b]).await;
    assert_ne!(a.perto.health().epoch, b.perto.health().epoch);
    for id in 1..=10 {
        assert_eq!(b.fresh_from(id).await, (Some(2), Tier::Load));
        assert_eq!(a.fresh_from(id).await, (Some(1), Tier::Local));
    }
    // Hints of the one are nothing to the other.
    let refused = b.perto.stats().hints_refused;
    a.put(&world, 1, 3).await;
    eventually("the other's hint is refused", async || b.perto.stats().hints_refused > refused).await;
    assert_eq!(b.fresh_from(1).await, (Some(2), Tier::Local));
}

/// Its owner's role may be no superuser's, and the control file is read by many who harden a server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_read_the_control_file_follows_the_log_all_the_same() {
    let postgres = PrivatePostgres::start().await;
    let world = World::on(&postgres.url("postgres"), &redis_url()).await;
    world
        .sql(&format!(
            "revoke execute on function pg_control_system() from public; create role app login; \
             grant usage on schema {0} to app; grant select, insert, update, delete on all tables in schema {0} to app",
            world.name
        ))
        .await;
    let url = postgres.url("postgres").replace("postgres@", "app@");
    let a = world.start_with(|perto| perto.postgres(&url), |cache| cache).await;
    coherent([&a]).await;
    a.put(&world, 1, 1).await;
    assert_eq!(a.fresh(1).await, Some(1));
}

/// As the old primary after a failover, of which whoever loads still has connections: it is in no recovery, and may have numbers
/// that are higher than the new one's. Nothing but the start of the server tells it from the one that the log is on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_says_that_the_log_is_not_on_is_neither_cached_nor_called_fresh() {
    let postgres = PrivatePostgres::start().await;
    let world = World::on(&postgres.url("postgres"), &redis_url()).await;
    world.put(1, 1).await;
    let other = postgres.standby().await;
    let elsewhere = crate::world::pool(&other.url("postgres"), &world.name);
    let promoted: bool =
        sqlx::query_scalar("select pg_promote(true, 20)").fetch_one(&elsewhere).await.unwrap();
    assert!(promoted);
    // It runs ahead in numbers.
    for _ in 0..20 {
        sqlx::raw_sql("select pg_current_xact_id()").execute(&elsewhere).await.unwrap();
    }
    let right = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (pools, ask) = ([elsewhere, world.pool.clone()], std::sync::Arc::clone(&right));
    let a = world.build_loading(
        |perto| perto,
        |cache| cache,
        move |load| {
            let at = usize::from(ask.load(std::sync::atomic::Ordering::Acquire));
            let pool = pools[at].clone();
            async move { crate::world::read_items(&pool, &load.keys).await }
        },
    );
    a.perto.start().await.unwrap();
    let b = world.start().await;
    coherent([&a, &b]).await;
    world.put(1, 2).await;
    for instance in [&a, &b] {
        instance.polled().await;
    }
    for _ in 0..3 {
        let read = a.read(1).await;
        assert_eq!((read.value(), read.freshness), (Some(&1), Freshness::Stale(StaleCause::Replica)));
    }
    assert_eq!(b.fresh(1).await, Some(2), "nothing of it is in L2");
    right.store(true, std::sync::atomic::Ordering::Release);
    world.put(1, 3).await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(3));
    assert_eq!(a.fresh_from(1).await.1, Tier::Local);
}

/// Beside a transaction that runs, a horizon that ranks above the polls after it would have each of them start over. So it must be
/// of before its transaction had a number, wherever that is held up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_horizon_of_a_new_epoch_is_older_than_the_transaction_that_begins_it() {
    let world = World::new().await;
    for table in ["boot", "tick"] {
        world.forget_the_epoch().await;
        world.sql("insert into tick default values").await;
        let mut holding = world.pool.begin().await.unwrap();
        // Whoever reads it goes on.
        let lock = format!("lock table {table} in exclusive mode");
        sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *holding).await.unwrap();
        let a = world.build(|perto| perto, |cache| cache);
        let starting = a.perto.start();
        let meanwhile = async {
            let held = format!(
                "pg_locks l join pg_class c on c.oid = l.relation where not l.granted \
                 and c.relname = '{table}' and c.relnamespace = '{}'::regnamespace",
                world.name
            );
            eventually("the epoch's beginning is held up", async || world.count(&held).await > 0).await;
            world.put(1, 1).await;
            holding.commit().await.unwrap();
        };
        let (started, ()) = tokio::join!(starting, meanwhile);
        started.unwrap();
        let (horizon, own): (i64, i64) = sqlx::query_as(
            "select (pg_snapshot_xmax(trimmed)::text::bigint % (1::bigint << 32)), xmin::text::bigint from boot",
        )
        .fetch_one(&world.pool)
        .await
        .unwrap();
        assert!(horizon <= own, "{table}: numbers below {horizon}, and {own} has begun the epoch");
        a.perto.shutdown().await;
    }
}

/// A session that spells floats in its own way, and a client of a server before 14 where a time is one, must call the epoch alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_origin_of_an_epoch_is_made_of_whole_numbers() {
    let world = World::new().await;
    let origin: String = sqlx::query_scalar("select origin()").fetch_one(&world.pool).await.unwrap();
    let parts: Vec<&str> = origin.split('/').collect();
    assert!(parts.len() == 4 && parts.iter().all(|part| part.parse::<u64>().is_ok()), "{origin}");
}

/// The server goes on, and its start is what it was: only what it has replayed last tells of the crash. Nobody has polled since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_backend_was_killed_what_is_loaded_before_the_next_poll_is_of_no_known_snapshot() {
    let postgres = PrivatePostgres::start().await;
    let world = World::on(&postgres.url("postgres"), &redis_url()).await;
    let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
    let through = moved_to(&world.database, &proxy.address().to_string());
    let a = world
        .start_with(|perto| perto.postgres(&through).bound(Duration::from_secs(60)), |cache| cache)
        .await;
    coherent([&a]).await;
    for id in 1..=3 {
        world.put(id, 1).await;
    }
    a.polled().await;
    assert!(a.read(1).await.token().is_some());
    proxy.set(Fault::BlackHole);
    let mut victim = PgConnection::connect(&world.database).await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut victim).await.unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    eventually("the server is back", async || {
        let back = PgConnection::connect(&world.database).await;
        let Ok(mut back) = back else { return false };
        let recovered = "select pg_last_wal_replay_lsn() is not null";
        sqlx::query_scalar::<_, bool>(recovered).fetch_one(&mut back).await.unwrap_or(false)
    })
    .await;
    let read = a.read(2).await;
    assert_eq!(
        (read.freshness, read.tier, read.token()),
        (Freshness::Stale(StaleCause::Replica), Tier::Load, None)
    );
    assert_eq!(a.read(2).await.tier, Tier::Load, "it is cached nowhere");
    proxy.set(Fault::None);
    eventually("the new epoch is known", async || a.read(2).await.token().is_some()).await;
    // One that was loaded while the recovery went on is of the era before.
    eventually("it is cached again", async || a.fresh_from(2).await == (Some(1), Tier::Local)).await;
}
