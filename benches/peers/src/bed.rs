//! What every peer stands on: rows in Postgres with a loader that counts, and a Redis of its own that may be killed.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};

/// About 250 bytes encoded: a chat message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Message {
    pub id: String,
    pub author: String,
    pub body: String,
}

/// The value of all caches: so many messages, and which write of its row it shows.
#[derive(Debug, Clone, Serialize, Deserialize, hitbox_fn::CacheableResponse)]
pub struct Page {
    pub version: i64,
    pub messages: Vec<Message>,
}

/// Messages of a page of about 260 bytes, and of one of about 20 KB.
pub const SMALL: usize = 1;
pub const LARGE: usize = 78;

/// One row, as a loader's query has it.
pub type Row = (String, i64, String, String);

/// Where the truth is. It knows nothing of caches.
pub struct Source {
    pub pool: PgPool,
    pub schema: String,
    messages: usize,
    loads: AtomicU64,
    queried: AtomicU64,
    pause_ms: AtomicU64,
}

impl Source {
    /// The query of every loader. Its parameter is a list of keys.
    pub fn sql(&self) -> String {
        format!("select id, version, author, body from {}.pages where id = any($1)", self.schema)
    }

    /// What a loader makes of a row.
    pub fn page(&self, (id, version, author, body): Row) -> Page {
        Page { version, messages: vec![Message { id, author, body }; self.messages] }
    }

    /// The loader of all peers but Perto, whose query brings a stamp along.
    pub async fn load(&self, key: &str) -> Result<Page> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let keys = vec![key.to_owned()];
        let row: Row = sqlx::query_as(AssertSqlSafe(self.sql())).bind(keys).fetch_one(&self.pool).await?;
        self.pause().await;
        Ok(self.page(row))
    }

    /// Counts a call of a loader that doesn't go by [`Source::load`].
    pub fn count(&self) {
        self.loads.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a loader has been called.
    pub fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    /// How often a loader's query has been answered.
    pub fn queried(&self) -> u64 {
        self.queried.load(Ordering::Relaxed)
    }

    /// What makes a loader slow after its query.
    pub async fn pause(&self) {
        self.queried.fetch_add(1, Ordering::Relaxed);
        match self.pause_ms.load(Ordering::Relaxed) {
            0 => {}
            ms => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
    }

    pub fn pause_loads(&self, time: Duration) {
        self.pause_ms.store(time.as_millis() as u64, Ordering::Relaxed);
    }

    /// The statement of each write. Its parameter is a key.
    pub fn update_sql(&self) -> String {
        format!("update {}.pages set version = version + 1 where id = $1", self.schema)
    }

    /// A write that no cache is told of: SQL typed by hand.
    pub async fn update(&self, key: &str) -> Result<()> {
        sqlx::query(AssertSqlSafe(self.update_sql())).bind(key).execute(&self.pool).await?;
        Ok(())
    }
}

/// The key of a row: 24 bytes, like many keys.
pub fn key(number: usize) -> String {
    format!("{number:024}")
}

pub struct Bed {
    pub source: Arc<Source>,
    pub redis: Server,
}

impl Bed {
    pub async fn make(messages: usize, rows: usize) -> Result<Self> {
        let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set: run `make bench-peers`")?;
        let schema = format!("peers_{}", std::process::id());
        let pool = PgPoolOptions::new().max_connections(16).connect(&url).await?;
        let sql = format!(
            "create schema {schema}; \
             create table {schema}.pages (id text primary key, version bigint not null, author text not null, body text not null); \
             insert into {schema}.pages select lpad(n::text, 24, '0'), 1, 'author ' || n, repeat('x', 200) \
             from generate_series(0, {rows} - 1) n; \
             analyze {schema}.pages"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await?;
        let source = Arc::new(Source {
            pool,
            schema,
            messages,
            loads: AtomicU64::new(0),
            queried: AtomicU64::new(0),
            pause_ms: AtomicU64::new(0),
        });
        let mut redis = Server { process: None, port: free_port()? };
        redis.start().await?;
        Ok(Self { source, redis })
    }

    pub async fn clean_up(mut self) -> Result<()> {
        self.redis.kill();
        let sql = format!("drop schema {} cascade", self.source.schema);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.source.pool).await?;
        Ok(())
    }
}

/// A Redis of our own. Killed on drop.
pub struct Server {
    process: Option<Child>,
    port: u16,
}

impl Server {
    pub fn place(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.place())
    }

    /// Starts it with nothing in it, and waits until it answers.
    pub async fn start(&mut self) -> Result<()> {
        let mut command = Command::new(program()?);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"]);
        command.arg(self.port.to_string()).stdin(Stdio::null()).stdout(Stdio::null());
        self.process = Some(command.spawn().context("redis-server")?);
        let client = redis::Client::open(self.url())?;
        let begun = Instant::now();
        while client.get_multiplexed_async_connection().await.is_err() {
            if begun.elapsed() > Duration::from_secs(5) {
                bail!("the private Redis does not answer");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Already dead is as good.
            drop(process.kill());
            drop(process.wait());
        }
    }

    pub async fn connection(&self) -> Result<redis::aio::MultiplexedConnection> {
        Ok(redis::Client::open(self.url())?.get_multiplexed_async_connection().await?)
    }

    /// Waits until no more keys come: fills need not be awaited by whoever reads.
    pub async fn settle(&self) -> Result<()> {
        let (mut redis, mut before) = (self.connection().await?, usize::MAX);
        loop {
            let keys = redis::cmd("DBSIZE").query_async(&mut redis).await?;
            if keys == before {
                return Ok(());
            }
            before = keys;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("PERTO_REDIS_SERVER") {
        return Ok(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let programs = std::env::split_paths(&path).map(|folder| folder.join("redis-server"));
    programs.into_iter().find(|program| program.is_file()).context("no redis-server on PATH")
}

/// Row numbers by Zipf's law, the same at each run.
pub fn zipf(rows: usize, count: usize) -> Vec<usize> {
    let mut sums = Vec::new();
    let mut sum = 0.0;
    for rank in 1..=rows {
        sum += 1.0 / rank as f64;
        sums.push(sum);
    }
    let mut state = 7_u64;
    let mut unit = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    // The frequent ones are spread: 7,919 is prime.
    (0..count)
        .map(|_| {
            let drawn = unit() * sum;
            sums.partition_point(|s| *s < drawn) * 7_919 % rows
        })
        .collect()
}
