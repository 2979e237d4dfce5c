//! Keys that a trigger makes of rows, and keys that readers ask for: whether they are the same is found out at the first
//! fill, and what can't be known is no alarm.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use perto::postgres::{self, Watch};
use perto::{
    Appended, Borne, Cache, Change, Freshness, Load, Log, LogError, Poll, Snapshot, Source, Tier,
    TroubleKind, Unwatched,
};
use sqlx::{Connection, PgConnection};

use crate::support::wait::eventually;
use crate::world::{Instance, World};

/// The log of a world, and what it has said of keys.
#[derive(Debug)]
struct Listened {
    log: Arc<dyn Log>,
    said: Mutex<Vec<Borne>>,
}

impl Log for Listened {
    fn ready(&self) -> BoxFuture<'_, Result<(), LogError>> {
        self.log.ready()
    }

    fn poll<'a>(
        &'a self,
        cursor: Option<&'a Snapshot>,
        caches: &'a [&'a str],
        limit: Duration,
    ) -> BoxFuture<'a, Result<Poll, LogError>> {
        self.log.poll(cursor, caches, limit)
    }

    fn append<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, Result<Appended, LogError>> {
        self.log.append(change)
    }

    fn trim(&self, retention: Duration) -> BoxFuture<'_, Result<(), LogError>> {
        self.log.trim(retention)
    }

    fn unwatched<'a>(
        &'a self,
        cache: &'a str,
        tables: &'a [String],
        sources: &'a [Source],
    ) -> BoxFuture<'a, Result<Vec<Unwatched>, LogError>> {
        self.log.unwatched(cache, tables, sources)
    }

    fn borne<'a>(&'a self, cache: &'a str, key: &'a str) -> BoxFuture<'a, Result<Borne, LogError>> {
        Box::pin(async move {
            let said = self.log.borne(cache, key).await?;
            self.said.lock().push(said.clone());
            Ok(said)
        })
    }
}

/// An instance with a cache of texts over some tables.
struct Reader {
    instance: Instance,
    texts: Cache<String, String>,
    log: Arc<Listened>,
}

impl Reader {
    /// The loader's statement brings a key and a text for those of `$1`.
    async fn start(world: &World, tables: &[&str], sql: &'static str) -> Self {
        let log = postgres::log(&world.database, &world.name).unwrap();
        let log = Arc::new(Listened { log, said: Mutex::default() });
        let listened = Arc::clone(&log);
        let instance = world.build(|perto| perto.log(listened), |cache| cache);
        let pool = world.pool.clone();
        let load = move |load: Load<String>| {
            let pool = pool.clone();
            async move {
                let rows = postgres::query_as::<(String, String)>(sql).bind(load.keys).fetch(&pool).await?;
                Ok::<_, sqlx::Error>(rows.by_key(|row| row))
            }
        };
        let tables = tables.iter().map(|table| format!("{}.{table}", world.name));
        let texts = instance.perto.cache("text").tables(tables).loader(load).unwrap();
        instance.perto.start().await.unwrap();
        Self { instance, texts, log }
    }

    async fn get(&self, key: &str) -> String {
        let read = self.texts.get(key).await.unwrap();
        assert_eq!(read.freshness, Freshness::Fresh);
        read.value().cloned().unwrap()
    }

    fn told(&self) -> Option<String> {
        self.instance.troubles(TroubleKind::KeysDiffer).pop().map(|trouble| trouble.detail)
    }

    /// What the log has said of the first key.
    async fn said(&self) -> Borne {
        eventually("it was asked for the key", async || !self.log.said.lock().is_empty()).await;
        self.log.said.lock()[0].clone()
    }

    /// A fill, and what came of it: no word, though the log was asked.
    async fn is_silent_of(&self, key: &str) -> Borne {
        self.get(key).await;
        let said = self.said().await;
        // Twice in a row it would have to be found.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(self.told(), None, "{key}");
        said
    }
}

async fn watch(world: &World, table: &str, key: &str) {
    let watch = Watch { key: key.to_owned(), ..world.watch(table, "text") };
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    postgres::rewatch(&mut connection, &watch).await.unwrap();
}

const SLUGS: &str = "select slug, v from slugs where slug = any($1)";

async fn slugs(rows: &str) -> World {
    let world = World::new().await;
    let table = "create table slugs (id bigserial, slug text primary key, v text not null default 'one')";
    world.sql(&format!("{table}; insert into slugs (slug) values {rows}")).await;
    world
}

/// Nothing is written: it is told before a stale answer can be given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_names_rows_otherwise_than_readers_do_is_told_of_at_the_first_fill() {
    // As a key is spelled that was typed on a Mac: in parts.
    let parts = "Gro\u{308}\u{df}e";
    for (key, asked) in [
        ("md5(slug)", "Prod-61"),
        ("'slug:' || slug", "Prod-61"),
        ("replace(slug, '-', '')", "Prod-61"),
        ("id", "Prod-61"),
        ("ltrim(slug, '0')", "0042"),
        ("normalize(slug)", parts),
    ] {
        let world = slugs(&format!("('{asked}')")).await;
        watch(&world, "slugs", key).await;
        let reader = Reader::start(&world, &["slugs"], SLUGS).await;
        assert_eq!(reader.get(asked).await, "one");
        eventually(&format!("{key} is told"), async || reader.told().is_some()).await;
        let told = reader.told().unwrap();
        assert!(told.contains(&format!("{}.slugs", world.name)) && told.contains(key), "{told}");
        assert!(!told.contains(asked), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_keys_differ_is_over_once_the_table_is_watched_by_the_key_that_readers_ask_for() {
    let world = slugs("('Prod-61'), ('Prod-62')").await;
    watch(&world, "slugs", "md5(slug)").await;
    let reader = Reader::start(&world, &["slugs"], SLUGS).await;
    reader.get("Prod-61").await;
    eventually("it is told", async || reader.told().is_some()).await;
    watch(&world, "slugs", "slug").await;
    // For a while after: reads go on.
    eventually("it is over", async || {
        reader.get("Prod-62").await;
        reader.texts.invalidate(&"Prod-62".to_owned()).await.unwrap();
        reader.told().is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_a_row_bears_is_no_trouble_whatever_its_expression_is() {
    let world = World::new().await;
    world
        .sql(
            "create table plain (id bigint primary key, v text); insert into plain values (7, 'x'); \
             create table lowered (id text, v text); insert into lowered values ('Größe', 'x'); \
             create table padded (id char(8), v text); insert into padded values ('PT', 'x'); \
             create table pair (a bigint, b text, v text); insert into pair values (1, 'y', 'x'), (2, 'y', 'x'); \
             create table party (id bigint, members bigint[], v text); insert into party values (1, '{7,8}', 'x'); \
             create table days (id timestamptz, v text); insert into days values ('2026-01-02 03:04:05+06', 'x'); \
             create table codes (id numeric(10, 2), v text); insert into codes values (1.5, 'x')",
        )
        .await;
    for (table, key, asked, sql) in [
        ("plain", "id", "7", "select id::text, v from plain where id::text = any($1)"),
        ("lowered", "lower(id)", "Größe", "select id, v from lowered where id = any($1)"),
        ("padded", "id", "PT", "select id::text, v from padded where id::text = any($1)"),
        ("padded", "id", "PT      ", "select id, v from padded where id = any($1::char(8)[])"),
        ("pair", "a || ':' || b", "2:y", "select a || ':' || b, v from pair where a || ':' || b = any($1)"),
        (
            "party",
            "unnest(members)",
            "8",
            "select m::text, v from party, unnest(members) m where m::text = any($1)",
        ),
        (
            "days",
            "id",
            "2026-01-01 21:04:05+00",
            "select k, v from days, to_char(id at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS+00') k where k = any($1)",
        ),
        ("codes", "id", "1.50", "select id::text, v from codes where id::text = any($1)"),
    ] {
        watch(&world, table, key).await;
        let reader = Reader::start(&world, &[table], sql).await;
        reader.get(asked).await;
        assert_eq!(reader.said().await, Borne::Yes, "{table} by {key}");
        drop(reader);
        let mut connection = PgConnection::connect(&world.database).await.unwrap();
        postgres::unwatch(&mut connection, &world.watch(table, "text")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_is_computed_over_no_rows_is_no_trouble() {
    let world = World::new().await;
    world
        .sql(
            "create table orders (id bigint primary key, buyer bigint not null, gone bool not null default false); \
             create table friends (id bigint primary key, of bigint not null)",
        )
        .await;
    watch(&world, "orders", "buyer").await;
    watch(&world, "friends", "of").await;
    const COUNTS: &str = "select k, count(o.id)::text from unnest($1) k left join orders o on o.buyer::text = k and not gone \
        group by k";
    let counts = async || Reader::start(&world, &["orders", "friends"], COUNTS).await;
    assert_eq!(counts().await.is_silent_of("7").await, Borne::Unknown, "there are no rows at all");
    world.sql("insert into orders values (1, 1), (2, 1); insert into friends values (1, 2)").await;
    // Another one: values of the first instance are in L2.
    let said = counts().await.is_silent_of("8").await;
    assert!(matches!(&said, Borne::No { others, .. } if others.len() == 3), "{said:?}");
    // Of several tables one is enough.
    assert_eq!(counts().await.is_silent_of("2").await, Borne::Yes);
    // What is left of rows that loaders pass over: of those that they don't pass over one is borne.
    world.sql("update orders set gone = true; insert into orders values (3, 3)").await;
    assert_eq!(counts().await.is_silent_of("3").await, Borne::Yes);
}

/// A table that is too large to be searched, and one that somebody has to himself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_takes_too_long_is_asked_once_and_keeps_nobody_waiting() {
    let world = slugs("('Prod-61')").await;
    watch(&world, "slugs", "md5(slug)").await;
    let reader = Reader::start(&world, &["slugs"], SLUGS).await;
    let mut alone = world.pool.begin().await.unwrap();
    reader.get("Prod-61").await;
    sqlx::raw_sql("lock table slugs in access exclusive mode").execute(&mut *alone).await.unwrap();
    assert_eq!(reader.said().await, Borne::Unknown);
    alone.rollback().await.unwrap();
    for _ in 0..30 {
        assert_eq!(reader.texts.get("Prod-61").await.unwrap().tier, Tier::Local);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((reader.log.said.lock().len(), reader.told()), (1, None));
}

/// What is recorded may be written by somebody who may do nothing else: it is not run as the instance's role.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expression_that_no_trigger_runs_is_not_run_to_compare_keys() {
    let world = slugs("('Prod-61')").await;
    watch(&world, "slugs", "slug").await;
    world.sql("update watched set key = $$pg_advisory_lock(4711)::text$$ where cache = 'text'").await;
    let reader = Reader::start(&world, &["slugs"], SLUGS).await;
    assert_eq!(reader.is_silent_of("Prod-61").await, Borne::Unknown);
}
