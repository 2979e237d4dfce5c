//! A long log, and a long way to it: what is read at a start and in a recovery takes longer than a bound, and is read all the
//! same.

use std::time::{Duration, Instant};

use perto::proxy::{Fault, FaultProxy};
use perto::{PertoBuilder, State, Tier};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::engines::{moved_to, place_of, redis_url};
use crate::support::postgres::PrivatePostgres;
use crate::support::wait::eventually;
use crate::world::{Instance, World, coherent};

/// At most so long until all are coherent.
const SOON: Duration = Duration::from_secs(5);
/// Rows of the log: what 25 writes a second leave in an hour.
const ROWS: i64 = 90_000;

fn short(perto: PertoBuilder) -> PertoBuilder {
    perto.bound(Duration::from_millis(200))
}

impl World {
    /// Traced writes, of other rows than the tests read.
    async fn write_for_an_hour(&self) {
        self.sql(
            "do $$ begin for i in 1..900 loop \
               insert into invalidation (cache, keys, traceparent) \
                 select 'item', array[(i * 1000 + n)::text], '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' \
                 from generate_series(1, 100) n; \
               commit; \
             end loop; end $$",
        )
        .await;
    }

    /// Open write transactions.
    async fn writing(&self, count: i64) -> Vec<PgConnection> {
        let mut open = Vec::new();
        for n in 0..count {
            let mut connection = PgConnection::connect(&self.database).await.unwrap();
            let sql = format!("begin; insert into {}.items values ({}, 0)", self.name, 1_000_000 + n);
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
            open.push(connection);
        }
        open
    }
}
/// As before the first `analyze`, or where nothing is ever analysed: Postgres then takes a third of the log for new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_reads_what_is_new_and_not_the_whole_log_also_where_postgres_knows_nothing_of_it() {
    let world = World::new().await;
    let a = world.start().await;
    coherent([&a]).await;
    // Who trims reads the log as a whole: nobody does while somebody else seems to.
    let mut trimming = world.pool.begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(format!("perto.{}", world.name))
        .execute(&mut *trimming)
        .await
        .unwrap();
    world
        .sql(
            "alter table invalidation set (autovacuum_enabled = off); \
             insert into invalidation (xid, cache, keys) select n::text::xid8, 'other', array[n::text] \
             from generate_series(1, 700000) n order by random()",
        )
        .await;
    let scans = async || {
        let sql = "select coalesce(seq_scan, 0), coalesce(idx_scan, 0) from pg_stat_user_tables \
                   where schemaname = $1 and relname = 'invalidation'";
        let of_log: (i64, i64) = sqlx::query_as(sql).bind(&world.name).fetch_one(&world.pool).await.unwrap();
        of_log
    };
    // What came before is told of within a second.
    let first = scans().await.1;
    eventually("the first polls are counted", async || scans().await.1 > first).await;
    // A start reads an empty log as a whole, and on a busy machine that is told of late.
    eventually("polls go by the index alone", async || {
        let (before, by_index) = scans().await;
        eventually("more are", async || scans().await.1 > by_index + 8).await;
        scans().await.0 == before
    })
    .await;
    trimming.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_with_a_short_bound_starts_beside_a_long_log_and_many_writers() {
    let postgres = PrivatePostgres::start_with(&["max_connections=120"]).await;
    let world = World::on(&postgres.url("postgres"), &redis_url()).await;
    world.put(1, 1).await;
    // Some hold the epoch before rows come: they are after its horizon.
    let first = world.start().await;
    first.perto.shutdown().await;
    world.write_for_an_hour().await;
    let open = world.writing(64).await;
    let began = Instant::now();
    let a = world.start_with(short, |cache| cache).await;
    coherent([&a]).await;
    let took = began.elapsed();
    assert!(a.perto.stats().rows >= ROWS.unsigned_abs(), "the replay was of all of it");
    a.fresh(1).await;
    assert_eq!(a.fresh_from(1).await, (Some(1), Tier::Local));
    assert!(took < SOON, "{took:?}");
    drop(open);
}

/// On a server that has just been started: four at once, and none has anything to hope for from the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_orderly_restart_beside_a_long_log_all_instances_are_coherent_soon() {
    let mut postgres = PrivatePostgres::start_with(&["max_connections=120"]).await;
    let world = World::on(&postgres.url("postgres"), &redis_url()).await;
    world.put(1, 1).await;
    let mut instances: Vec<Instance> = Vec::new();
    for _ in 0..4 {
        instances.push(world.start_with(short, |cache| cache).await);
    }
    world.write_for_an_hour().await;
    for instance in &instances {
        coherent([instance]).await;
        instance.polled().await;
    }
    let rows: Vec<u64> = instances.iter().map(|instance| instance.perto.stats().rows).collect();
    postgres.stop_in_order();
    for instance in &instances {
        instance.becomes(State::Unverified).await;
    }
    postgres.restart().await;
    let began = Instant::now();
    for (instance, rows) in instances.iter().zip(rows) {
        coherent([instance]).await;
        assert!(
            instance.perto.stats().rows < rows + 100,
            "what a new epoch has declared trimmed is not sent"
        );
        assert_eq!(instance.fresh(1).await, Some(1));
    }
    let took = began.elapsed();
    assert!(world.count("invalidation").await >= ROWS, "it is there all the same");
    assert!(took < SOON, "{took:?}");
}

/// The log of an hour has fifteen rows for the whole cache, and all of them are younger than the oldest writer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_long_write_transaction_an_instance_that_starts_after_clears_and_imports_caches() {
    let world = World::new().await;
    let first = world.start().await;
    let open = world.writing(1).await;
    for n in 0..10_i64 {
        let import =
            format!("insert into items select n, 1 from generate_series({0}, {0} + 999) n", n * 1_000);
        world.sql(&import).await;
        if n % 2 == 0 {
            first.items.clear().await.unwrap();
        }
    }
    let started = world.start().await;
    coherent([&started]).await;
    for id in [1, 5_000] {
        assert_eq!(started.fresh(id).await, Some(1));
        assert_eq!(started.fresh_from(id).await, (Some(1), Tier::Local), "{id}");
    }
    drop(open);
}

/// A poll takes one round trip, a connection several: more than a short bound lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn far_from_postgres_an_instance_starts_and_is_coherent_again_soon_after_a_cut() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
    let proxied = moved_to(&world.database, &proxy.address().to_string());
    proxy.set(Fault::Delay(Duration::from_millis(60)));
    let a = world
        .start_with(|perto| perto.postgres(&proxied).bound(Duration::from_millis(250)), |cache| cache)
        .await;
    coherent([&a]).await;
    a.items.invalidate(&1).await.unwrap();
    proxy.set(Fault::Cut);
    a.becomes(State::Unverified).await;
    proxy.set(Fault::Delay(Duration::from_millis(60)));
    let began = Instant::now();
    coherent([&a]).await;
    let took = began.elapsed();
    assert!(took < SOON, "{took:?}");
    a.polled().await;
    a.items.clear().await.unwrap();
}

/// Those who have given up a poll leave nothing behind that goes on without them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polls_that_were_given_up_do_not_pile_up_on_the_server() {
    let world = World::new().await;
    let a = world.start_with(short, |cache| cache).await;
    coherent([&a]).await;
    // As a migration that waits for its own locks while it has this one.
    let mut lock = PgConnection::connect(&world.database).await.unwrap();
    let sql = format!("begin; lock table {}.invalidation in access exclusive mode", world.name);
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut lock).await.unwrap();
    // The log is trimmed at the start too, perhaps not before the lock is taken.
    let polls = format!(
        "select pid from pg_stat_activity where wait_event_type = 'Lock' and application_name like 'perto/%' \
         and query like '%{}.invalidation%' and query not like '%delete from%'",
        world.name
    );
    let waiting = async || -> Vec<i32> {
        sqlx::query_scalar(AssertSqlSafe(polls.as_str())).fetch_all(&world.pool).await.unwrap()
    };
    let mut first = Vec::new();
    eventually("a poll waits", async || {
        first = waiting().await;
        !first.is_empty()
    })
    .await;
    eventually("another one does", async || waiting().await.iter().any(|pid| !first.contains(pid))).await;
    eventually("the first has gone", async || !waiting().await.iter().any(|pid| first.contains(pid))).await;
    a.becomes(State::Unverified).await;
    drop(lock);
    coherent([&a]).await;
}
