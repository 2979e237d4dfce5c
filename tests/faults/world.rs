//! One test's world: a schema with a log and a watched table, and instances on it.
//!
//! The table is `items (id, v)`, the cache `item`: the version `v` of each row. All SQL of a test runs with its schema as
//! the search path.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use perto::postgres::{self, Watch};
use perto::{
    Cache, CacheBuilder, Error, Event, Freshness, Load, Loaded, Perto, PertoBuilder, Read, State, Tier,
    Token, Trouble, TroubleKind,
};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::{Semaphore, SemaphorePermit, broadcast, watch};

use crate::support::engines::{self, CleanUp};
use crate::support::wait::eventually;

/// The bound of all instances here, unless a test says otherwise: the default.
pub(crate) const BOUND: Duration = Duration::from_secs(1);
/// Shorter than the default of 250 ms: most waits here are for two polls.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Longer than the default of 50 ms: a busy machine is not a fault of L2. Where the wait for L2 matters, tests say so.
pub(crate) const REMOTE_TIMEOUT: Duration = Duration::from_secs(1);

/// So many tests run at a time, however many cores there are: each has several instances.
static PLACES: Semaphore = Semaphore::const_new(4);

pub(crate) struct World {
    /// Of the schema, and of the app.
    pub(crate) name: String,
    pub(crate) database: String,
    pub(crate) redis: String,
    /// Straight to the database, whatever proxies the instances go through.
    pub(crate) pool: PgPool,
    _clean_up: CleanUp,
    _place: SemaphorePermit<'static>,
}

impl World {
    /// On the shared servers.
    pub(crate) async fn new() -> Self {
        Self::on(&engines::postgres_url(), &engines::redis_url()).await
    }

    /// On the shared Postgres and another Redis.
    pub(crate) async fn with_redis(redis: &str) -> Self {
        Self::on(&engines::postgres_url(), redis).await
    }

    pub(crate) async fn on(database: &str, redis: &str) -> Self {
        let place = PLACES.acquire().await.unwrap();
        let name = engines::unique_name();
        let mut connection = PgConnection::connect(database)
            .await
            .unwrap_or_else(|error| panic!("no Postgres at {database}: {error}"));
        let clean_up = CleanUp { database: database.to_owned(), redis: redis.to_owned(), name: name.clone() };
        postgres::migrate(&mut connection, &name).await.unwrap();
        let sql = format!("create table {name}.items (id bigint primary key, v bigint not null)");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        let pool = pool(database, &name);
        let world = Self {
            name,
            database: database.to_owned(),
            redis: redis.to_owned(),
            pool,
            _clean_up: clean_up,
            _place: place,
        };
        postgres::watch(&mut connection, &world.watch("items", "item")).await.unwrap();
        world
    }

    pub(crate) fn watch(&self, table: &str, cache: &str) -> Watch {
        Watch {
            schema: self.name.clone(),
            table: format!("{}.{table}", self.name),
            cache: cache.to_owned(),
            key: "id".to_owned(),
            columns: Vec::new(),
        }
    }

    /// Runs SQL as somebody would who knows nothing of Perto: no instance is told, only the log.
    pub(crate) async fn sql(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// A version by SQL.
    pub(crate) async fn put(&self, id: i64, v: i64) {
        self.sql(&format!(
            "insert into items (id, v) values ({id}, {v}) on conflict (id) do update set v = excluded.v"
        ))
        .await;
    }

    pub(crate) async fn count(&self, of: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {of}")))
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// A new epoch, as after a crash: the token is gone. What else a crash does is for private servers.
    pub(crate) async fn forget_the_epoch(&self) {
        self.sql("delete from boot").await;
    }

    /// An instance with the defaults.
    pub(crate) async fn start(&self) -> Instance {
        self.start_with(|perto| perto, |cache| cache).await
    }

    /// An instance with settings of its own. The loader reads the table through the world's pool.
    pub(crate) async fn start_with(
        &self,
        perto: impl FnOnce(PertoBuilder) -> PertoBuilder,
        cache: impl FnOnce(CacheBuilder<i64, i64>) -> CacheBuilder<i64, i64>,
    ) -> Instance {
        let instance = self.build(perto, cache);
        instance.perto.start().await.unwrap();
        instance
    }

    /// An instance that has not started.
    pub(crate) fn build(
        &self,
        perto: impl FnOnce(PertoBuilder) -> PertoBuilder,
        cache: impl FnOnce(CacheBuilder<i64, i64>) -> CacheBuilder<i64, i64>,
    ) -> Instance {
        let pool = self.pool.clone();
        self.build_loading(perto, cache, move |load| {
            let pool = pool.clone();
            async move { read_items(&pool, &load.keys).await }
        })
    }

    pub(crate) fn build_loading<Fut>(
        &self,
        perto: impl FnOnce(PertoBuilder) -> PertoBuilder,
        cache: impl FnOnce(CacheBuilder<i64, i64>) -> CacheBuilder<i64, i64>,
        loader: impl Fn(Load<i64>) -> Fut + Send + Sync + 'static,
    ) -> Instance
    where
        Fut: Future<Output = Result<Loaded<i64, i64>, sqlx::Error>> + Send + 'static,
    {
        let builder =
            Perto::builder(&self.name).schema(&self.name).postgres(&self.database).redis(&self.redis);
        let perto =
            perto(builder.poll_interval(POLL_INTERVAL).remote_timeout(REMOTE_TIMEOUT)).build().unwrap();
        let gate = Arc::new(Gate::default());
        let passing = Arc::clone(&gate);
        let items = cache(perto.cache("item").tables([format!("{}.items", self.name)]))
            .loader(move |load: Load<i64>| {
                let (gate, loading) = (Arc::clone(&passing), loader(load));
                async move {
                    let loaded = loading.await;
                    gate.pass().await;
                    loaded
                }
            })
            .unwrap();
        let events = Mutex::new((perto.events(), Vec::new()));
        Instance { perto, items, gate, events }
    }
}

/// A pool with the schema as its search path.
pub(crate) fn pool(database: &str, schema: &str) -> PgPool {
    let options: PgConnectOptions = database.parse().unwrap();
    PgPoolOptions::new()
        .max_connections(8)
        .acquire_timeout(Duration::from_secs(30))
        .connect_lazy_with(options.options([("search_path", schema)]))
}

pub(crate) async fn read_items(pool: &PgPool, keys: &[i64]) -> Result<Loaded<i64, i64>, sqlx::Error> {
    postgres::query_as::<(i64, i64)>("select id, v from items where id = any($1)")
        .bind(keys)
        .fetch(pool)
        .await
        .map(|rows| rows.by_key(|row| row))
}

/// Holds loads when they have read and before they return: the stale fill's moment.
#[derive(Default)]
pub(crate) struct Gate {
    closed: watch::Sender<bool>,
    held: AtomicUsize,
}

impl Gate {
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    pub(crate) fn open(&self) {
        self.closed.send_replace(false);
    }

    /// Until so many loads have read and are held.
    pub(crate) async fn holds(&self, loads: usize) {
        eventually("loads are held at the gate", async || self.held.load(Ordering::Acquire) == loads).await;
    }

    async fn pass(&self) {
        let mut closed = self.closed.subscribe();
        self.held.fetch_add(1, Ordering::AcqRel);
        closed.wait_for(|closed| !closed).await.unwrap();
        self.held.fetch_sub(1, Ordering::AcqRel);
    }
}

pub(crate) struct Instance {
    pub(crate) perto: Perto,
    pub(crate) items: Cache<i64, i64>,
    pub(crate) gate: Arc<Gate>,
    events: Mutex<(broadcast::Receiver<Event>, Vec<Event>)>,
}

impl Instance {
    pub(crate) async fn read(&self, id: i64) -> Read<i64> {
        self.try_read(id).await.unwrap()
    }

    pub(crate) async fn try_read(&self, id: i64) -> Result<Read<i64>, Error> {
        crate::support::wait::ends("a read", self.items.get(&id)).await
    }

    /// A read that must be served as fresh.
    pub(crate) async fn fresh(&self, id: i64) -> Option<i64> {
        let read = self.read(id).await;
        assert_eq!(read.freshness, Freshness::Fresh);
        read.value().copied()
    }

    /// A fresh read, and where it came from.
    pub(crate) async fn fresh_from(&self, id: i64) -> (Option<i64>, Tier) {
        let read = self.read(id).await;
        assert_eq!(read.freshness, Freshness::Fresh);
        (read.value().copied(), read.tier)
    }

    /// A read under way in a task.
    pub(crate) fn reading(&self, id: i64) -> tokio::task::JoinHandle<Result<Read<i64>, Error>> {
        let items = self.items.clone();
        tokio::runtime::Handle::current().spawn(async move { items.get(&id).await })
    }

    pub(crate) fn loads(&self) -> u64 {
        self.items.stats().loads
    }

    /// Writes through this instance: the others get a hint.
    pub(crate) async fn put(&self, world: &World, id: i64, v: i64) -> Token {
        let sql = format!(
            "insert into items (id, v) values ({id}, {v}) on conflict (id) do update set v = excluded.v"
        );
        let written: Result<_, sqlx::Error> = self
            .perto
            .write(&world.pool, async move |tx| sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx).await)
            .await;
        written.unwrap().token.unwrap()
    }

    /// Until a poll that began after this call has completed: what was visible before is known then. Two polls, for one
    /// may have been under way.
    pub(crate) async fn polled(&self) {
        let before = self.perto.stats().polls;
        eventually("two polls complete", async || self.perto.stats().polls >= before + 2).await;
    }

    pub(crate) async fn becomes(&self, state: State) {
        eventually(&format!("the state is {state}"), async || self.perto.health().state == state).await;
    }

    /// What has happened since the instance was built.
    pub(crate) fn events(&self) -> Vec<Event> {
        let mut events = self.events.lock();
        while let Ok(event) = events.0.try_recv() {
            events.1.push(event);
        }
        events.1.clone()
    }

    /// Until an event says that the state has become this one. States are looked at now and then: one that lasts for
    /// less than that is told of by nobody.
    pub(crate) async fn tells_of(&self, state: State) {
        eventually(&format!("an event tells of {state}"), async || {
            self.events().iter().any(|event| matches!(event, Event::State { to, .. } if *to == state))
        })
        .await;
    }

    /// The troubles of this kind that last.
    pub(crate) fn troubles(&self, kind: TroubleKind) -> Vec<Trouble> {
        self.perto.health().troubles.into_iter().filter(|trouble| trouble.kind == kind).collect()
    }

    /// What is not watched now.
    pub(crate) fn unwatched(&self) -> Vec<String> {
        self.troubles(TroubleKind::Unwatched).into_iter().filter_map(|trouble| trouble.table).collect()
    }

    pub(crate) async fn tells(&self, event: Event) {
        eventually(&format!("the event {event:?}"), async || self.events().contains(&event)).await;
    }
}

/// Until all are coherent, hints included.
pub(crate) async fn coherent<const N: usize>(instances: [&Instance; N]) {
    for instance in instances {
        instance.becomes(State::Coherent).await;
    }
}
