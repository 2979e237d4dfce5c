//! What all benches stand on: real engines, a schema of their own, an instance.
#![allow(unused_imports, reason = "no bench needs all of it")]

mod rows;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use perto::{Cache, Load, Perto, State, postgres};
pub use rows::{Id, Message, ROWS, bare_moka, zipf};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

/// A schema with rows, and how to reach it.
#[derive(Debug)]
pub struct Bed {
    pub schema: String,
    pub pool: PgPool,
    pub postgres_url: String,
    pub redis_url: String,
}

impl Bed {
    pub async fn make() -> Self {
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make bench`"))
        };
        Self::at(&variable("DATABASE_URL"), &variable("REDIS_URL")).await
    }

    /// On these servers.
    pub async fn at(postgres_url: &str, redis_url: &str) -> Self {
        let (postgres_url, redis_url) = (postgres_url.to_owned(), redis_url.to_owned());
        static MADE: AtomicU32 = AtomicU32::new(0);
        let schema = format!("bench_{}_{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&postgres_url).await.expect("DATABASE_URL");
        postgres::migrate(&mut connection, &schema).await.expect("migrate");
        let sql = format!(
            "create table {schema}.messages (id bigint primary key, author text not null, body text not null); \
             insert into {schema}.messages select n, 'author ' || n, repeat('x', 230) from generate_series(0, {}) n; \
             analyze {schema}.messages",
            ROWS - 1
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.expect("rows");
        let pool = PgPool::connect(&postgres_url).await.expect("DATABASE_URL");
        Self { schema, pool, postgres_url, redis_url }
    }

    /// More rows, so that there are so many.
    pub async fn grow(&self, rows: i64) {
        let sql = format!(
            "insert into {0}.messages select n, 'author ' || n, repeat('x', 230) from generate_series({ROWS}, {1}) n; \
             analyze {0}.messages",
            self.schema,
            rows - 1
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.expect("rows");
    }

    pub async fn watch(&self) {
        let mut connection = PgConnection::connect(&self.postgres_url).await.expect("DATABASE_URL");
        let watch = postgres::Watch {
            schema: self.schema.clone(),
            table: format!("{}.messages", self.schema),
            cache: "messages".to_owned(),
            key: "id".to_owned(),
            columns: Vec::new(),
        };
        postgres::watch(&mut connection, &watch).await.expect("watch");
    }

    /// A coherent instance, with a cache of so many bytes in L1. `id` makes the keys of two caches differ in type only.
    pub async fn instance<K: perto::Key + From<Id>>(
        &self,
        capacity_bytes: u64,
    ) -> (Perto, Cache<K, Message>) {
        let perto = Perto::builder(&self.schema)
            .schema(&self.schema)
            .bound(Duration::from_secs(30))
            .poll_interval(Duration::from_millis(250))
            .postgres(&self.postgres_url)
            .redis(&self.redis_url)
            .build()
            .expect("settings");
        let (pool, sql) = (self.pool.clone(), self.load_sql());
        let cache = perto
            .cache::<K, Message>("messages")
            .capacity_bytes(capacity_bytes)
            .loader(move |load: Load<K>| {
                let ids: Vec<i64> =
                    load.keys.iter().map(|key| key.to_string().parse().unwrap_or(-1)).collect();
                let query = postgres::query_as::<(i64, String, String)>(&sql).bind(ids);
                let pool = pool.clone();
                async move {
                    let rows = query.fetch(&pool).await?;
                    Ok::<_, sqlx::Error>(
                        rows.by_key(|(id, author, body)| (K::from(Id(id)), Message { id, author, body })),
                    )
                }
            })
            .expect("cache");
        perto.start().await.expect("start");
        while perto.health().state != State::Coherent {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (perto, cache)
    }

    pub fn load_sql(&self) -> String {
        format!("select id, author, body from {}.messages where id = any($1)", self.schema)
    }

    pub async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.redis_url.as_str()).expect("REDIS_URL");
        client.get_multiplexed_async_connection().await.expect("REDIS_URL")
    }

    /// Commands that the server has run, for whomever.
    pub async fn redis_calls(&self) -> u64 {
        let info: String =
            redis::cmd("INFO").arg("stats").query_async(&mut self.connection().await).await.expect("INFO");
        let calls = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        calls.and_then(|calls| calls.trim().parse().ok()).expect("a number")
    }

    pub async fn clean_up(&self) {
        let sql = format!("drop schema {} cascade", self.schema);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.pool).await.expect("drop the schema");
        self.forget().await;
    }

    /// Empties L2 of what is ours.
    pub async fn forget(&self) {
        let mut redis = self.connection().await;
        let pattern = format!("perto:{}:*", self.schema);
        let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut redis).await.expect("KEYS");
        for keys in keys.chunks(1_000) {
            redis::cmd("UNLINK").arg(keys).query_async::<()>(&mut redis).await.expect("UNLINK");
        }
    }
}

pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// A ratio with its samples, for who reads it by machine: a line of JSON in the file `BENCH_JSON`.
pub fn report(name: &str, samples: &[f64]) {
    use std::io::Write as _;
    let Some(path) = std::env::var("BENCH_JSON").ok().filter(|path| !path.is_empty()) else { return };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("BENCH_JSON");
    let line = serde_json::json!({ "name": name, "median": median(samples), "samples": samples });
    writeln!(file, "{line}").expect("BENCH_JSON");
}
