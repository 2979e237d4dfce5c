//! The invalidation log in Postgres: triggers write it, polls read it.
//!
//! A poll is one statement of the simple protocol, so it has one snapshot and works through any pooler. Two
//! statements would skip what commits between them. The tail's connection is its own, never one of the app's pool: an
//! exhausted pool must not end the lease. Nothing here rests on the state of a session, and no statement is kept
//! prepared. The client prepares one with parameters and runs it in two steps all the same; a transaction pooler may give
//! these to two servers unless they are in one transaction
//! (`through_a_transaction_pooler_every_read_is_right_and_writes_are_seen_within_the_bound`).

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row as _};
use tokio::sync::Mutex;

use super::{Appended, Log, MAX_POLL_ROWS, Poll, Row, Unwatched};
use crate::coherence::snapshot::Snapshot;
use crate::error::LogError;
use crate::postgres::Pool;
use crate::trace::{Kind, Trace};
use crate::wire::Change;

mod declared;
mod function;
mod key;
mod locks;
pub(crate) mod schema;
pub(crate) mod url;
pub(crate) mod watch;
pub(crate) mod watched;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(2_000);

/// The log of one schema in one database.
pub(crate) struct PostgresLog {
    options: PgConnectOptions,
    schema: String,
    /// Whether a statement may be prepared outside of a transaction.
    prepared: bool,
    tail: Mutex<Option<PgConnection>>,
    /// For what is not a poll: invalidations by hand, trimming. Opened when first used.
    pool: Pool,
}

impl PostgresLog {
    /// # Errors
    /// What is wrong with the URL or the schema's name.
    pub(crate) fn new(url: &str, schema: &str, prepared: bool) -> Result<Self, String> {
        schema::check_name(schema)?;
        // The log has no floats, and poolers refuse to start a session with settings that they don't follow.
        let options = url::options(url)?.application_name("perto").extra_float_digits(None);
        let pool = PgPoolOptions::new()
            .max_connections(2)
            .acquire_timeout(CONNECT_TIMEOUT)
            .idle_timeout(Duration::from_secs(30));
        let pool = Pool::new(&Pool::tested(pool, true).connect_lazy_with(options.clone()));
        Ok(Self { options, schema: schema.to_owned(), prepared, tail: Mutex::default(), pool })
    }

    async fn poll_once(&self, cursor: Option<&Snapshot>) -> Result<Poll, LogError> {
        let mut tail = self.tail.lock().await;
        // Taken out while in use: a poll that is dropped half-way closes the connection, for its answer may still come.
        let mut connection = match tail.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let mut rows = self.query(&mut connection, cursor).await?;
        if rows
            .first()
            .is_some_and(|row| row.try_get::<Option<i64>, _>("epoch").is_ok_and(|epoch| epoch.is_none()))
        {
            schema::begin_epoch(&mut connection, &self.schema).await.map_err(refused)?;
            rows = self.query(&mut connection, cursor).await?;
        }
        *tail = Some(connection);
        drop(tail);
        read(&rows)
    }

    async fn query(
        &self,
        connection: &mut PgConnection,
        cursor: Option<&Snapshot>,
    ) -> Result<Vec<PgRow>, LogError> {
        let sql = poll_sql(&self.schema, cursor);
        sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await.map_err(|error| self.explain(error))
    }

    async fn connect(&self) -> Result<PgConnection, LogError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&self.options)).await {
            Ok(connected) => connected.map_err(refused),
            Err(_elapsed) => Err(LogError::Timeout(CONNECT_TIMEOUT)),
        }
    }

    /// Returns the text of the transaction's number, and the epoch; none where nobody has begun one since a crash.
    async fn insert(
        &self,
        connection: &mut PgConnection,
        change: &Change,
    ) -> Result<(String, Option<i64>), sqlx::Error> {
        let span = Trace::current().begin(Kind::Client, format_args!("INSERT invalidation"));
        span.text("db.system.name", "postgresql");
        span.text("db.operation.name", "INSERT");
        let sql = format!(
            "insert into {schema}.invalidation (cache, keys, traceparent) values ($1, $2, $3) \
             returning xid::text, {schema}.epoch()",
            schema = self.schema
        );
        sqlx::query_as(AssertSqlSafe(sql))
            .persistent(false)
            .bind(&change.cache)
            .bind(change.keys.as_deref())
            .bind(span.traceparent())
            .fetch_one(connection)
            .await
    }

    async fn insert_once(
        &self,
        connection: &mut PgConnection,
        change: &Change,
    ) -> Result<(String, Option<i64>), sqlx::Error> {
        if self.prepared {
            return self.insert(connection, change).await;
        }
        let mut tx = connection.begin().await?;
        let inserted = self.insert(&mut tx, change).await?;
        tx.commit().await?;
        Ok(inserted)
    }

    async fn append_once(&self, change: &Change) -> Result<Appended, LogError> {
        let mut connection = self.pool.lend().await.map_err(refused)?;
        let mut inserted =
            self.insert_once(&mut connection, change).await.map_err(|error| self.explain(error))?;
        if inserted.1.is_none() {
            // Nobody has polled since a crash. The row has taken place, but its number is of no epoch: once more, in one.
            schema::begin_epoch(&mut connection, &self.schema).await.map_err(refused)?;
            inserted =
                self.insert_once(&mut connection, change).await.map_err(|error| self.explain(error))?;
        }
        let (xid, epoch) = inserted;
        let xid = xid
            .parse()
            .map_err(|_not_a_number| LogError::Schema("the log's xid can't be read".to_owned()))?;
        let epoch = epoch.ok_or_else(|| LogError::Schema(schema::LOGGED_TOKEN.to_owned()))?;
        Ok(Appended { xid, epoch: epoch.cast_unsigned() })
    }

    fn explain(&self, error: sqlx::Error) -> LogError {
        schema::explain(error, &self.schema)
    }
}

/// The one statement of a poll. Keys come one a row: a text array would need a parser of its own, and the client's
/// takes a key `NULL` for none.
fn poll_sql(schema: &str, cursor: Option<&Snapshot>) -> String {
    let rows = match cursor {
        None => format!("select xid, cache, keys, traceparent, fault from {schema}.invalidation"),
        Some(cursor) => {
            let xmax = cursor.xmax();
            let running: Vec<String> = cursor.running().iter().map(u64::to_string).collect();
            format!(
                "select xid, cache, keys, traceparent, fault from {schema}.invalidation where xid >= '{xmax}'::xid8 union all \
                 select xid, cache, keys, traceparent, fault from {schema}.invalidation where xid = any('{{{}}}'::xid8[])",
                running.join(",")
            )
        }
    };
    // A role whose transactions are serializable must not make writers fail because the log is read.
    format!(
        "set transaction isolation level read committed; \
         select pg_current_snapshot()::text as snapshot, {schema}.version() as version, \
           pg_snapshot_xmax(b.trimmed)::text as trimmed, \
           ('x' || left(md5(b.token || b.origin), 16))::bit(64)::bigint as epoch, \
           i.xid::text as xid, i.cache, k.key, i.traceparent, i.fault \
         from (select) one left join {schema}.boot b on b.origin = {schema}.origin() \
         left join ({rows}) i on true left join lateral unnest(i.keys) k(key) on true limit {}",
        MAX_POLL_ROWS + 1
    )
}

fn read(rows: &[PgRow]) -> Result<Poll, LogError> {
    let malformed = |what: &str| LogError::Schema(format!("the log's {what} can't be read"));
    let first = rows.first().ok_or_else(|| malformed("answer"))?;
    let snapshot_at =
        |column: &str| -> Option<Snapshot> { Snapshot::parse(first.try_get::<&str, _>(column).ok()?) };
    let version: i32 = first.try_get("version").map_err(refused)?;
    if version != schema::VERSION {
        return Err(schema::other_version(version));
    }
    let epoch: Option<i64> = first.try_get("epoch").map_err(refused)?;
    // It was begun a moment ago, if it could be.
    let epoch = epoch.ok_or_else(|| LogError::Schema(schema::LOGGED_TOKEN.to_owned()))?;
    let read_row = |row: &PgRow| -> Option<Row> {
        let xid = row.try_get::<Option<&str>, _>("xid").ok()??.parse().ok()?;
        Some(Row {
            xid,
            cache: row.try_get("cache").ok()?,
            key: row.try_get("key").ok()?,
            traceparent: row.try_get("traceparent").ok()?,
            fault: row.try_get("fault").ok()?,
        })
    };
    let nothing = rows.len() == 1 && first.try_get::<Option<&str>, _>("xid").is_ok_and(|xid| xid.is_none());
    let read_all =
        || rows.iter().map(read_row).collect::<Option<Vec<Row>>>().ok_or_else(|| malformed("rows"));
    Ok(Poll {
        snapshot: snapshot_at("snapshot").ok_or_else(|| malformed("snapshot"))?,
        epoch: epoch.cast_unsigned(),
        trimmed: first
            .try_get::<&str, _>("trimmed")
            .ok()
            .and_then(|xid| xid.parse().ok())
            .map(Snapshot::all_below)
            .ok_or_else(|| malformed("trim horizon"))?,
        rows: match rows.len() {
            _ if nothing => Some(Vec::new()),
            0..=MAX_POLL_ROWS => Some(read_all()?),
            _ => None,
        },
    })
}

impl Log for PostgresLog {
    fn poll<'a>(&'a self, cursor: Option<&'a Snapshot>) -> BoxFuture<'a, Result<Poll, LogError>> {
        Box::pin(self.poll_once(cursor))
    }

    fn append<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, Result<Appended, LogError>> {
        Box::pin(self.append_once(change))
    }

    fn trim(&self, retention: Duration) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move {
            let mut connection = self.pool.lend().await.map_err(refused)?;
            schema::trim(&mut connection, &self.schema, retention).await.map_err(|error| self.explain(error))
        })
    }

    fn unwatched<'a>(
        &'a self,
        cache: &'a str,
        tables: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Unwatched>, LogError>> {
        Box::pin(async move {
            if tables.is_empty() {
                return Ok(Vec::new());
            }
            let mut connection = self.pool.lend().await.map_err(refused)?;
            declared::unwatched(&mut connection, &self.schema, cache, tables)
                .await
                .map_err(|error| self.explain(error))
        })
    }
}

pub(crate) fn refused(error: sqlx::Error) -> LogError {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => {
            LogError::Unreachable(std::sync::Arc::new(error))
        }
        _ => LogError::Refused(std::sync::Arc::new(error)),
    }
}

impl fmt::Debug for PostgresLog {
    /// Without the options: they may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresLog").field("schema", &self.schema).finish_non_exhaustive()
    }
}
