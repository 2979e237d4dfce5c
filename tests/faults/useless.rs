//! Connections to Postgres that say that they are of no use: they are left, or made of use again.

use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use perto::TroubleKind;
use perto::postgres::{self, Pool};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio_util::task::TaskTracker;

use crate::support::engines::{moved_to, place_of, redis_url};
use crate::support::postgres::PrivatePostgres;
use crate::support::silencer::Silencer;
use crate::support::wait::{ends, eventually, eventually_within};
use crate::world::{World, coherent};

const ALTERED: [&str; 10] = [
    "alter column name type varchar(300)",
    "alter column name type text",
    "add column a int",
    "add column b text not null default ''",
    "drop column a",
    "alter column name type varchar(50)",
    "alter column b type varchar(9)",
    "drop column b",
    "alter column name type text",
    "add column c int",
];

/// Keys that nobody has asked for yet.
fn new_keys(count: i64) -> Vec<i64> {
    static LAST: AtomicI64 = AtomicI64::new(1_000);
    let first = LAST.fetch_add(count, Ordering::Relaxed);
    (first..first + count).collect()
}

/// Each change fits no plan that was made before. The loader has `select *`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_altered_under_load_fails_no_read() {
    let world = World::new().await;
    world.sql("alter table items add column name text not null default ''").await;
    let pool = crate::world::pool(&world.database, &world.name);
    let a = world.build_loading(
        |perto| perto,
        |cache| cache,
        move |load| {
            let pool = pool.clone();
            async move {
                let query = postgres::query_as::<(i64, i64)>("select * from items where id = any($1)");
                query.bind(load.keys).fetch(&pool).await.map(|rows| rows.by_key(|row| row))
            }
        },
    );
    a.perto.start().await.unwrap();
    let read = async || {
        let keys = new_keys(40);
        let reads = join_all(keys.iter().map(|key| a.items.get(key))).await;
        reads.into_iter().filter_map(Result::err).map(|error| format!("{error:?}")).collect::<Vec<_>>()
    };
    assert_eq!(read().await, [""; 0]);
    for change in ALTERED {
        world.sql(&format!("alter table items {change}")).await;
        for _ in 0..3 {
            assert_eq!(read().await, [""; 0], "{change}");
        }
    }
}

/// Something in between has forgotten what was prepared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_the_server_has_forgotten_is_prepared_anew() {
    let world = World::new().await;
    let mut connection = world.pool.acquire().await.unwrap();
    let read = async |connection: &mut PgConnection| {
        let query = postgres::query_as::<(i64,)>("select id from items where id = $1");
        query.bind(1_i64).fetch(connection).await.map(|read| read.rows.len())
    };
    assert_eq!(read(&mut connection).await.unwrap(), 0);
    sqlx::raw_sql("deallocate all").execute(&mut *connection).await.unwrap();
    assert_eq!(read(&mut connection).await.unwrap(), 0);
}

/// Whenever the read waits for the table, the next change queues up behind it. So several of its tries in a row fit no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_is_altered_again_and_again_beside_a_read_fails_it_not() {
    let world = World::new().await;
    world.sql("alter table items add column name text").await;
    let mut connection = world.pool.acquire().await.unwrap();
    let application = format!("set application_name = '{}'", world.name);
    sqlx::raw_sql(AssertSqlSafe(application.clone())).execute(&mut *connection).await.unwrap();
    let read = async |connection: &mut PgConnection| {
        let query = postgres::query_as::<(i64, i64)>("select * from items where id = $1");
        query.bind(1_i64).fetch(connection).await.map(|read| read.rows.len())
    };
    assert_eq!(read(&mut connection).await.unwrap(), 0);

    let tasks = TaskTracker::new();
    let begin = |length: u32| {
        let others = one_connection(PgPoolOptions::new(), &world);
        let change = format!("alter table items alter column name type varchar({length})");
        let sql = format!("{application}; begin; {change}");
        tasks.spawn(async move {
            let mut other = others.acquire().await.unwrap().detach();
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut other).await.unwrap();
            other
        })
    };
    let waits = async |count: i64| {
        let sql = "select count(*) from pg_stat_activity \
                   where application_name = $1 and wait_event_type = 'Lock'";
        eventually("so many wait for the table", async || {
            let waiting = sqlx::query_scalar(sql).bind(&world.name).fetch_one(&world.pool).await;
            waiting.is_ok_and(|waiting: i64| waiting == count)
        })
        .await;
    };
    let mut change = begin(1);
    eventually("the first change is made", async || change.is_finished()).await;
    let met = Cell::new(0);
    let changes = async {
        for length in 2..8 {
            waits(1).await;
            let next = begin(length);
            waits(2).await;
            sqlx::raw_sql("commit").execute(&mut change.await.unwrap()).await.unwrap();
            change = next;
            met.set(length);
        }
        sqlx::raw_sql("commit").execute(&mut change.await.unwrap()).await.unwrap();
        std::future::pending::<()>().await;
    };
    let beside = async {
        tokio::select! {
            rows = read(&mut connection) => rows,
            () = changes => unreachable!(),
        }
    };
    assert_eq!(ends("a read beside seven changes", Box::pin(beside)).await.unwrap(), 0);
    assert_eq!(met.get(), 7, "the read has waited for each change");
}

/// Postgres has given it up: it can't be tried again there. The next one can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_transaction_an_outdated_statement_fails_once() {
    let world = World::new().await;
    let mut connection = world.pool.acquire().await.unwrap();
    let read = async |connection: &mut PgConnection| {
        let query = postgres::query_as::<(i64, i64)>("select * from items where id = $1");
        query.bind(1_i64).fetch(connection).await.map(|read| read.rows.len())
    };
    assert_eq!(read(&mut connection).await.unwrap(), 0);
    world.sql("alter table items add column name text").await;
    let mut tx = connection.begin().await.unwrap();
    let error = read(&mut tx).await.unwrap_err().to_string();
    assert!(error.contains("cached plan"), "{error}");
    tx.rollback().await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    assert_eq!(read(&mut tx).await.unwrap(), 0);
}

/// Writes that prepare their statements, on a pool of one connection: the one after the failed one succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_an_outdated_statement_fails_fails_once_a_connection() {
    let world = World::new().await;
    let a = world.start().await;
    let pool = one_connection(PgPoolOptions::new(), &world);
    let write = async || {
        let work = async |tx: &mut PgConnection| {
            let sql =
                "insert into items values (1, 1) on conflict (id) do update set v = items.v + 1 returning *";
            sqlx::query(sql).fetch_one(tx).await.map(drop)
        };
        a.perto.write(&pool, work).await.map(drop)
    };
    write().await.unwrap();
    for change in &ALTERED[2..4] {
        world.sql(&format!("alter table items {change}")).await;
        let error = write().await.unwrap_err().to_string();
        assert!(error.contains("cached plan"), "{error}");
        for _ in 0..3 {
            write().await.unwrap();
        }
    }
    assert_eq!(a.fresh(1).await, Some(7));
}

fn one_connection(options: PgPoolOptions, world: &World) -> PgPool {
    let options = options.max_connections(1).acquire_timeout(Duration::from_secs(30));
    let connect: sqlx::postgres::PgConnectOptions = world.database.parse().unwrap();
    options.connect_lazy_with(connect.options([("search_path", &world.name)]))
}

async fn read_only(world: &World, on: bool) {
    let mut server = PgConnection::connect(&world.database).await.unwrap();
    let sql = format!(
        "set transaction read write; alter database postgres set default_transaction_read_only = {on}"
    );
    let mut tx = server.begin().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    if on {
        // As a failover does: whoever comes back begins anew.
        let end = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where pid <> pg_backend_pid() and backend_type = 'client backend'";
        sqlx::raw_sql(end).execute(&mut server).await.unwrap();
    }
}

/// A session stays as it was begun. Made in the meantime, it refuses writes for as long as its pool keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_database_was_read_only_writes_work_again_within_two_seconds() {
    let server = PrivatePostgres::start().await;
    let world = World::on(&server.url("postgres"), &redis_url()).await;
    let a = world.start().await;
    let tested = one_connection(Pool::tested(PgPoolOptions::new(), true), &world);
    let plain = one_connection(PgPoolOptions::new(), &world);
    let write = async |pool: &PgPool| {
        let work = async |tx: &mut PgConnection| {
            sqlx::query("insert into items values (1, 1) on conflict do nothing").execute(tx).await
        };
        a.perto.write(pool, work).await.map(drop).map_err(|error| error.to_string())
    };
    let hold = async || {
        // Until then the pools have no connection: these are made while it is read-only.
        read_only(&world, true).await;
        for pool in [&tested, &plain] {
            let error = write(pool).await.unwrap_err();
            assert!(error.contains("read-only transaction"), "{error}");
            // One that reads only keeps its connection.
            sqlx::query("select 1").execute(pool).await.unwrap();
        }
        assert!(a.items.invalidate(&1).await.is_err());
    };
    hold().await;
    read_only(&world, false).await;
    let over = Instant::now();
    // Its connection is from before, and is closed before it fails a write: it is a second old.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..10 {
        write(&tested).await.unwrap();
    }
    // Of one that is not tested each connection fails one write.
    let failed = [write(&plain).await, write(&plain).await, write(&plain).await];
    assert_eq!(failed.each_ref().map(Result::is_err), [true, false, false], "{failed:?}");
    eventually_within(Duration::from_secs(2), "invalidations by hand are taken", async || {
        a.items.invalidate(&1).await.is_ok()
    })
    .await;
    assert!(over.elapsed() < Duration::from_secs(6), "{:?}", over.elapsed());
}

/// It was used a moment ago, so nobody asks whether it still answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_by_hand_right_after_its_connections_were_killed_is_recorded_on_another() {
    let server = PrivatePostgres::start().await;
    let world = World::on(&server.url("postgres"), &redis_url()).await;
    let a = world.start().await;
    for round in 0..5 {
        // Both are there, and idle for less than a second.
        let both = tokio::join!(a.items.invalidate(&1), a.items.invalidate(&2));
        both.0.and(both.1).unwrap();
        world
            .sql(
                "select pg_terminate_backend(pid) from pg_stat_activity \
                 where application_name like 'perto/%' and pid <> pg_backend_pid()",
            )
            .await;
        let rows = world.count("invalidation where keys = '{3}'").await;
        a.items.invalidate(&3).await.unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        assert_eq!(world.count("invalidation where keys = '{3}'").await, rows + 1);
    }
}

/// Settings of the role that an instance's connections begin with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_roles_transactions_are_by_default_reads_are_right_and_the_log_is_followed() {
    let world = World::new().await;
    for setting in ["serializable", "repeatable read"] {
        let option =
            format!("options=-c%20default_transaction_isolation%3D{}", setting.replace(' ', "%5C%20"));
        let mark = if world.database.contains('?') { '&' } else { '?' };
        let url = format!("{}{mark}{option}", world.database);
        let a = world.start_with(|perto| perto.postgres(&url), |cache| cache).await;
        let b = world.start().await;
        coherent([&a, &b]).await;
        for v in 1..=20 {
            let token = b.put(&world, 1, v).await;
            let read = a.items.get_with(&1, perto::ReadOptions::at_least(token)).await.unwrap();
            assert_eq!(read.value(), Some(&v), "{setting}");
        }
        a.items.invalidate(&1).await.unwrap();
        // A writer of the same kind. What reads the log is not, or it could make the writer fail.
        let mut writer = world.pool.acquire().await.unwrap();
        let mut tx = writer.begin().await.unwrap();
        let sql = "set transaction isolation level serializable; insert into items values (2, 1)";
        sqlx::raw_sql(sql).execute(&mut *tx).await.unwrap();
        a.polled().await;
        let others = "pg_locks where mode = 'SIReadLock' and relation = 'invalidation'::regclass";
        assert_eq!(world.count(others).await, 0, "{setting}");
        tx.rollback().await.unwrap();
        assert_eq!(a.fresh(1).await, Some(20));
        assert_eq!(a.perto.stats().poll_errors, 0);
    }
}

/// What the log does beside polls has two places: they must not be lost with the route.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_its_connections_have_fallen_silent_invalidations_by_hand_are_taken_again() {
    let world = World::new().await;
    let silencer = Silencer::start(place_of(&world.database)).await;
    let url = moved_to(&world.database, &silencer.address);
    let a = world.start_with(|perto| perto.postgres(&url), |cache| cache).await;
    coherent([&a]).await;
    let keys: Vec<i64> = (0..8).collect();
    let all =
        async || join_all(keys.iter().map(|key| a.items.invalidate(key))).await.iter().all(Result::is_ok);
    for _ in 0..3 {
        eventually_within(Duration::from_secs(15), "invalidations are taken", all).await;
        // While they are under way.
        let begun = a.perto.stats().hints_published;
        let silencing = eventually("some are under way", async || {
            let under_way = a.perto.stats().hints_published > begun;
            if under_way {
                silencer.silence();
            }
            under_way
        });
        tokio::join!(ends("invalidations", all()), silencing);
    }
    eventually_within(Duration::from_secs(15), "invalidations are taken", all).await;
    for _ in 0..5 {
        assert!(all().await, "places are taken by connections that say nothing");
    }
}

/// Loads that fail by the dozen, whatever the reason, are a trouble of their cache, with what they said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_that_fail_are_a_trouble_of_their_cache_until_they_succeed() {
    let world = World::new().await;
    let a = world.start().await;
    coherent([&a]).await;
    world.sql("alter table items rename to gone").await;
    let fail = async || {
        for key in new_keys(12) {
            a.items.get(&key).await.unwrap_err();
        }
    };
    fail().await;
    eventually("loads are said to fail", async || {
        fail().await;
        let troubles = a.troubles(TroubleKind::LoadsFailing);
        troubles
            .iter()
            .any(|trouble| trouble.cache.as_deref() == Some("item") && trouble.detail.contains("items"))
    })
    .await;
    world.sql("alter table gone rename to items").await;
    eventually("loads are not said to fail any more", async || {
        for key in new_keys(400) {
            a.fresh(key).await;
        }
        a.troubles(TroubleKind::LoadsFailing).is_empty()
    })
    .await;
}
