//! Behind a transaction pooler that keeps no prepared statements: a real `PgBouncer` with three servers, and somebody else
//! on it who prepares statements outside of transactions.
//!
//! Such a pooler may give what a client prepares and what it then runs to two servers. So a query fails, or runs what
//! somebody else has prepared there: with parameters of the same types nobody is told. That this happens here is asserted.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use perto::postgres::{self, Watch};
use perto::{Freshness, Load};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::engines::redis_url;
use crate::support::pgbouncer::PrivateBouncer;
use crate::support::postgres::PrivatePostgres;
use crate::support::wait::{ends, eventually};
use crate::world::{BOUND, Instance, World, coherent};

const KEYS: i64 = 20;
/// A version names its key: a row of another is noticed.
const PER_KEY: i64 = 1_000_000;

/// Servers are ended after those who use them.
struct Pooled {
    world: World,
    url: String,
    /// The app's: through the pooler.
    pool: PgPool,
    hammer: Hammer,
    _bouncer: PrivateBouncer,
    _server: PrivatePostgres,
}

impl Pooled {
    async fn start() -> Self {
        let server = PrivatePostgres::start().await;
        let bouncer = PrivateBouncer::start(server.port, 3).await;
        let world = World::on(&server.url("postgres"), &redis_url()).await;
        world.sql("create table others (id bigint primary key, v bigint not null)").await;
        world.sql("insert into others select n, -n from generate_series(1, 100) n").await;
        world.sql("create table theirs (id bigint primary key, v bigint not null)").await;
        world.sql("insert into theirs select n, -1000 * n from generate_series(1, 100) n").await;
        let url = bouncer.url("postgres");
        let pool = pool(&url, 12);
        let hammer = Hammer::start(&url, &world.name);
        Self { world, url, pool, hammer, _bouncer: bouncer, _server: server }
    }

    /// An instance whose loads go through the pooler; its log at a URL of its own.
    async fn instance(&self, log: &str, prepared: bool) -> Instance {
        let (pool, sql) =
            (self.pool.clone(), format!("select id, v from {}.items where id = any($1)", self.world.name));
        let instance = self.world.build_loading(
            |perto| perto.postgres(log).prepared_statements(prepared),
            |cache| cache,
            move |load: Load<i64>| {
                let (pool, sql) = (pool.clone(), sql.clone());
                async move {
                    let query = postgres::query_as::<(i64, i64)>(&sql).bind(load.keys).persistent(false);
                    query.fetch(&pool).await.map(|rows| rows.by_key(|row| row))
                }
            },
        );
        // The pooler is hammered: a connection through it may take longer than a start waits for one. Then it may be tried again.
        eventually("it starts", async || instance.perto.start().await.is_ok()).await;
        instance
    }
}

fn pool(url: &str, connections: u32) -> PgPool {
    let options: PgConnectOptions = url.parse().unwrap();
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(30))
        .connect_lazy_with(options.extra_float_digits(None))
}

/// Prepares and runs statements of the same shape as everybody's, as a client does that knows of no pooler.
struct Hammer {
    wrong: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    tasks: TaskTracker,
    ending: CancellationToken,
}

impl Hammer {
    fn start(url: &str, schema: &str) -> Self {
        let hammer = Self {
            wrong: Arc::default(),
            failed: Arc::default(),
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
        };
        let pool = pool(url, 6);
        for n in 0..6_i64 {
            let (table, factor) = if n % 2 == 0 { ("others", -1) } else { ("theirs", -1_000) };
            let sql = format!("select id, v from {schema}.{table} where id = any($1)");
            let (pool, wrong, failed) = (pool.clone(), Arc::clone(&hammer.wrong), Arc::clone(&hammer.failed));
            let hammering = hammer.ending.clone().run_until_cancelled_owned(async move {
                for id in (1..=KEYS).cycle() {
                    let query = sqlx::query_as::<_, (i64, i64)>(AssertSqlSafe(sql.clone())).persistent(false);
                    match query.bind(vec![id]).fetch_all(&pool).await {
                        Ok(rows) if rows == [(id, factor * id)] => {}
                        Ok(_) => drop(wrong.fetch_add(1, Ordering::Relaxed)),
                        Err(_) => drop(failed.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            });
            hammer.tasks.spawn(async move {
                let _ended: Option<()> = hammering.await;
            });
        }
        hammer.tasks.close();
        hammer
    }

    /// Ends it, having seen that the pooler does mix.
    async fn end(&self) {
        eventually("the pooler gives somebody another's statement", async || {
            self.wrong.load(Ordering::Relaxed) > 0 && self.failed.load(Ordering::Relaxed) > 0
        })
        .await;
        self.ending.cancel();
        ends("the hammer", self.tasks.wait()).await;
    }
}

/// What was committed when, and what was begun: one writer a key, so versions only grow.
#[derive(Default)]
struct Written {
    begun: AtomicI64,
    committed: Mutex<Vec<(Instant, i64)>>,
}

impl Written {
    /// What a fresh read that began then may not be older than.
    fn due(&self, began: Instant) -> Option<i64> {
        let committed = self.committed.lock();
        committed.iter().rev().find(|(at, _)| *at + BOUND <= began).map(|(_, v)| *v)
    }
}

async fn write(instance: &Instance, pooled: &Pooled, id: i64, written: &Written) {
    let v = written.begun.fetch_add(1, Ordering::AcqRel) + 1;
    let sql = format!(
        "insert into {}.items (id, v) values ($1, $2) on conflict (id) do update set v = excluded.v",
        pooled.world.name
    );
    let writing = instance.perto.write(&pooled.pool, async move |tx| {
        sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(id).bind(id * PER_KEY + v).execute(tx).await
    });
    let done: Result<_, sqlx::Error> = ends("a write", writing).await;
    assert!(done.unwrap().token.is_some());
    written.committed.lock().push((Instant::now(), v));
}

fn judge(id: i64, read: &perto::Read<i64>, began: Instant, written: &Written) -> bool {
    let v = read.value().map(|v| v - id * PER_KEY);
    assert!(v.is_none_or(|v| (1..=written.begun.load(Ordering::Acquire)).contains(&v)), "{id}: {read:?}");
    let fresh = read.freshness == Freshness::Fresh;
    assert!(!fresh || v >= written.due(began), "{id}: {v:?}, and {:?} is due", written.due(began));
    fresh
}

/// Two instances: the log of one goes through the pooler too, that of the other straight to the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_a_transaction_pooler_every_read_is_right_and_writes_are_seen_within_the_bound() {
    let pooled = Pooled::start().await;
    let a = pooled.instance(&pooled.url, false).await;
    let b = pooled.instance(&pooled.world.database, true).await;
    coherent([&a, &b]).await;
    let written: Vec<Written> = (0..=KEYS).map(|_| Written::default()).collect();
    let until = Instant::now() + 4 * BOUND;
    let fresh = AtomicU64::new(0);

    let writers = futures_util::future::join_all([(&a, 1), (&b, 2)].map(async |(instance, first)| {
        let mut round = 0;
        while Instant::now() < until {
            for id in (first..=KEYS).step_by(2) {
                write(instance, &pooled, id, &written[usize::try_from(id).unwrap()]).await;
            }
            let keys = [first, first + round % KEYS];
            ends("an invalidation by hand", instance.items.invalidate_many(&keys)).await.unwrap();
            round += 1;
        }
    }));
    let readers = futures_util::future::join_all((0..12).map(async |n| {
        let (instance, all) = (if n % 2 == 0 { &a } else { &b }, (1..=KEYS).collect::<Vec<i64>>());
        while Instant::now() < until {
            let began = Instant::now();
            let read = ends("a read", instance.items.get_many(&all)).await.unwrap();
            for (id, read) in all.iter().zip(&read) {
                let judged = judge(*id, read, began, &written[usize::try_from(*id).unwrap()]);
                fresh.fetch_add(u64::from(judged), Ordering::Relaxed);
            }
            tokio::task::yield_now().await;
        }
    }));
    tokio::join!(writers, readers);

    assert!(fresh.load(Ordering::Relaxed) > 1_000, "{fresh:?} fresh reads");
    pooled.hammer.end().await;
    coherent([&a, &b]).await;
    for instance in [&a, &b] {
        instance.polled().await;
        for id in 1..=KEYS {
            let last = written[usize::try_from(id).unwrap()].begun.load(Ordering::Acquire);
            assert_eq!(instance.fresh(id).await, Some(id * PER_KEY + last));
        }
        let stats = instance.items.stats();
        assert!(stats.loads > 50 && stats.load_errors == 0, "{stats:?}");
        ends("shutdown", instance.perto.shutdown()).await;
    }
}

/// All that is done to a log before and beside instances, many times beside the hammer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_made_and_looked_after_through_a_transaction_pooler() {
    let pooled = Pooled::start().await;
    let name = &pooled.world.name;
    let mut connection = pooled.pool.acquire().await.unwrap();
    let watch = Watch { cache: "other".to_owned(), ..pooled.world.watch("others", "other") };
    for _ in 0..20 {
        postgres::migrate(&mut connection, name).await.unwrap();
        postgres::watch(&mut connection, &watch).await.unwrap();
        let watched = postgres::watched(&mut connection, name).await.unwrap();
        assert!(watched.len() == 2 && watched.iter().all(|watched| watched.faults.is_empty()), "{watched:?}");
        postgres::unwatch(&mut connection, &watch).await.unwrap();
    }
    let log = {
        let perto = perto::Perto::builder(name)
            .schema(name)
            .postgres(&pooled.url)
            .prepared_statements(false)
            .allow_unwatched();
        perto.build().unwrap()
    };
    let unwatched: perto::Cache<i64, i64> = log
        .cache("other")
        .tables([format!("{name}.others")])
        .loader(|_load: Load<i64>| async { Err::<perto::Loaded<i64, i64>, _>("nobody reads") })
        .unwrap();
    log.start().await.unwrap();
    for key in 0..200 {
        unwatched.invalidate(&key).await.unwrap();
    }
    let troubles = log.health().troubles;
    assert!(troubles.iter().any(|trouble| trouble.kind == perto::TroubleKind::Unwatched), "{troubles:?}");
    assert_eq!(pooled.world.count("invalidation where cache = 'other' and keys is not null").await, 200);
    pooled.hammer.end().await;
    ends("shutdown", log.shutdown()).await;
}
