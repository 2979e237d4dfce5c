//! The servers that all tests share, by `DATABASE_URL` and `REDIS_URL`; `scripts/engines` sets them. Without an engine a
//! test fails: one that is skipped proves nothing.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// The URL of the shared Postgres, with a database in which tests may make schemas.
pub(crate) fn postgres_url() -> String {
    std::env::var("DATABASE_URL").unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned())
}

/// The URL of the shared Redis.
pub(crate) fn redis_url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned())
}

/// The `host:port` of a URL.
pub(crate) fn place_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority).to_owned()
}

/// The same URL at another `host:port`.
pub(crate) fn moved_to(url: &str, place: &str) -> String {
    url.replacen(&place_of(url), place, 1)
}

/// A name that no other test has, in this run or another: of a schema, and of an app. What a crashed run leaves
/// behind can be told by it.
pub(crate) fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let run = (now ^ u128::from(std::process::id()) << 20) & 0xFFFF_FFFF;
    format!("perto_t_{run:08x}{:02x}", COUNT.fetch_add(1, Ordering::Relaxed) & 0xFF)
}

/// A connection to a Redis or Valkey.
pub(crate) async fn redis_at(url: &str) -> MultiplexedConnection {
    let client = redis::Client::open(url).unwrap();
    // A test puts 64 MB into one value, on a busy machine.
    let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(super::wait::PATIENCE));
    client
        .get_multiplexed_async_connection_with_config(&patient)
        .await
        .unwrap_or_else(|error| panic!("no Redis at {url}: {error}"))
}

/// Removes what a test made, when it ends, however it ends: its schema, its keys in Redis.
pub(crate) struct CleanUp {
    pub(crate) database: String,
    pub(crate) redis: String,
    pub(crate) name: String,
}

impl Drop for CleanUp {
    fn drop(&mut self) {
        let (database, redis, name) = (self.database.clone(), self.redis.clone(), self.name.clone());
        // A thread of its own: this may run inside a runtime that unwinds. Where a server is gone already, so is
        // what it held.
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let both = async { tokio::join!(drop_schema(&database, &name), drop_keys(&redis, &name)) };
            let limited = async { tokio::time::timeout(std::time::Duration::from_secs(10), both).await };
            drop(runtime.block_on(limited));
        });
        drop(cleaning.join());
    }
}

async fn drop_schema(database: &str, name: &str) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(database).await?;
    let sql = format!(
        "set client_min_messages = error; set lock_timeout = '5s'; drop schema if exists {name} cascade"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await
}

async fn drop_keys(url: &str, name: &str) -> redis::RedisResult<()> {
    let mut redis = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    for key in keys(&mut redis, &format!("perto:{name}:*")).await? {
        redis::cmd("UNLINK").arg(key).query_async::<()>(&mut redis).await?;
    }
    Ok(())
}

/// The keys that match a pattern.
pub(crate) async fn keys(
    redis: &mut MultiplexedConnection,
    pattern: &str,
) -> redis::RedisResult<Vec<String>> {
    let (mut all, mut cursor) = (Vec::new(), 0_u64);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1_000);
        let (next, found): (u64, Vec<String>) = scan.query_async(redis).await?;
        all.extend(found);
        cursor = next;
        if cursor == 0 {
            return Ok(all);
        }
    }
}
