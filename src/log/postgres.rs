//! The invalidation log in Postgres: triggers write it, polls read it.
//!
//! A poll is one statement of the simple protocol, so it has one snapshot and works through any pooler. Two
//! statements would skip what commits between them. The tail's connection is its own, never one of the app's pool: an
//! exhausted pool must not end the lease. Nothing here rests on the state of a session, and but for invalidations by hand no
//! statement is kept prepared. The client prepares one with parameters and runs it in two steps all the same; a transaction pooler may give
//! these to two servers unless they are in one transaction
//! (`through_a_transaction_pooler_every_read_is_right_and_writes_are_seen_within_the_bound`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::Mutex;

use self::poll::Answer;
use self::sql::refused;
use super::switch::{Switch, Switching};
use super::{Appended, Borne, CONNECT_LIMIT, Log, Poll, Source};
use crate::coherence::snapshot::Snapshot;
use crate::error::{LogError, Unwatched};
use crate::pool::{Lent, Pool, may_pass_elsewhere, passes_when_prepared_anew, within};
use crate::trace::{Kind, Trace};
use crate::wire::Change;

mod borne;
mod columns;
mod declared;
mod function;
mod key;
mod locks;
mod poll;
pub(crate) mod rights;
pub(crate) mod schema;
mod sql;
pub(crate) mod switches;
pub(crate) mod trigger;
pub(crate) mod url;
pub(crate) mod watch;
pub(crate) mod watched;

const ANOTHERS_STATEMENT: &str =
    "a pooler ran another program's statement in place of this one: say `prepared_statements(false)`";
/// Connections for what is not a poll.
const CONNECTIONS: u32 = 2;
/// One that was used less than this ago is not tested before it is used again: that would be another round trip.
const UNTESTED: Duration = Duration::from_secs(1);

/// Where the log is, and as whom it is read.
#[derive(Clone)]
pub(crate) enum Server {
    As(Box<PgConnectOptions>),
    /// Where the application's pool connects to, as it does at that moment.
    AsPool(PgPool),
}

impl Server {
    fn options(&self, schema: &str) -> PgConnectOptions {
        let options = match self {
            Self::As(options) => (**options).clone(),
            Self::AsPool(pool) => (*pool.connect_options()).clone(),
        };
        // The log has no floats, and poolers refuse to start a session with settings that they don't follow.
        options.application_name(&schema::application(schema)).extra_float_digits(None)
    }
}

/// The log of one schema in one database.
pub(crate) struct PostgresLog {
    server: Server,
    schema: String,
    /// Whether a statement may be prepared outside of a transaction.
    prepared: bool,
    tail: Mutex<Option<PgConnection>>,
    /// Whether the role has had all rights that it needs.
    rights_checked: AtomicBool,
    /// As the last poll told.
    switches: parking_lot::Mutex<Arc<[Switch]>>,
    /// For what is not a poll: invalidations by hand, trimming. Opened when first used.
    pool: Pool,
}

impl PostgresLog {
    /// # Errors
    /// What is wrong with the schema's name.
    pub(crate) fn new(server: Server, schema: &str, prepared: bool) -> Result<Self, String> {
        schema::check_name(schema)?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECT_LIMIT)
            .idle_timeout(Duration::from_secs(30));
        let pool = Pool::tested_where_idle(pool, true, UNTESTED).connect_lazy_with(server.options(schema));
        Ok(Self {
            server,
            schema: schema.to_owned(),
            prepared,
            tail: Mutex::default(),
            rights_checked: AtomicBool::new(false),
            switches: parking_lot::Mutex::default(),
            pool: Pool::new(&pool),
        })
    }

    async fn poll_once(
        &self,
        cursor: Option<&Snapshot>,
        caches: &[&str],
        limit: Duration,
    ) -> Result<Poll, LogError> {
        let sql = poll::sql(&self.schema, cursor, caches, limit);
        let mut tail = self.tail.lock().await;
        // Taken out while in use: a poll that is dropped half-way closes the connection, for its answer may still come.
        let mut connection = match tail.take() {
            Some(connection) => connection,
            None => self.begin().await?,
        };
        let mut answer = self.query(&mut connection, &sql).await?;
        if answer.epoch.is_none() {
            // The token was taken away while the connection stood: by hand, or by a crash behind a pooler.
            schema::begin_epoch(&mut connection, &self.schema).await.map_err(refused)?;
            answer = self.query(&mut connection, &sql).await?;
        }
        *tail = Some(connection);
        drop(tail);
        let told = std::mem::take(&mut answer.switches);
        let polled = answer.poll()?;
        let mut switches = self.switches.lock();
        if **switches != *told {
            *switches = told.into();
        }
        Ok(polled)
    }

    async fn query(&self, connection: &mut PgConnection, sql: &str) -> Result<Answer, LogError> {
        let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await;
        Answer::read(&rows.map_err(|error| self.explain(error))?, &self.schema)
    }

    /// A connection for polls, in an epoch.
    async fn begin(&self) -> Result<PgConnection, LogError> {
        let mut connection = self.connect().await?;
        // Once: an instance that runs goes on without a right that it lacks by now, and says what fails.
        if !self.rights_checked.load(Ordering::Relaxed) {
            rights::check(&mut connection, &self.schema).await?;
            self.rights_checked.store(true, Ordering::Relaxed);
        }
        schema::ensure_epoch(&mut connection, &self.schema).await.map_err(|error| self.explain(error))?;
        Ok(connection)
    }

    async fn connect(&self) -> Result<PgConnection, LogError> {
        match tokio::time::timeout(
            CONNECT_LIMIT,
            PgConnection::connect_with(&self.server.options(&self.schema)),
        )
        .await
        {
            Ok(connected) => connected.map_err(refused),
            Err(_elapsed) => Err(LogError::Timeout(CONNECT_LIMIT)),
        }
    }

    /// A connection for what is not a poll.
    async fn lend(&self) -> Result<Lent, LogError> {
        self.connects_anew();
        self.pool.lend_tested(CONNECTIONS).await.map_err(refused)
    }

    /// As the application's pool does at this moment.
    fn connects_anew(&self) {
        if let Server::AsPool(_) = self.server {
            self.pool.connects_with(self.server.options(&self.schema));
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
             returning xid::text, {schema}.epoch(), '{schema}' || $1",
            schema = self.schema
        );
        let insert = sqlx::query_as(AssertSqlSafe(sql)).persistent(self.prepared);
        let insert = insert.bind(&change.cache).bind(change.keys.as_deref()).bind(span.traceparent());
        let (xid, epoch, of): (String, Option<i64>, String) = insert.fetch_one(connection).await?;
        // Behind a transaction pooler that nobody has told of, it may be another program's statement of this name.
        match of.strip_prefix(&*self.schema) == Some(&*change.cache) {
            true => Ok((xid, epoch)),
            false => Err(sqlx::Error::Protocol(ANOTHERS_STATEMENT.to_owned())),
        }
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
        let mut left = CONNECTIONS;
        let (xid, epoch) = loop {
            self.connects_anew();
            // Perhaps untested. Where its route is lost nothing comes, and no error.
            let mut connection = self.pool.lend().await.map_err(refused)?;
            let inserting = self.insert_in_epoch(&mut connection, change);
            let inserted = if left > 0 { within(inserting).await } else { inserting.await };
            match inserted {
                Ok(inserted) => break inserted,
                Err(error) => {
                    connection.doubt();
                    // A row that is there twice invalidates no more than one.
                    if left == 0 || !(may_pass_elsewhere(&error) || passes_when_prepared_anew(&error)) {
                        return Err(self.explain(error));
                    }
                    left -= 1;
                }
            }
        };
        let xid = xid
            .parse()
            .map_err(|_not_a_number| LogError::Schema("the log's xid can't be read".to_owned()))?;
        let epoch = epoch.ok_or_else(|| LogError::Schema(schema::LOGGED_TOKEN.to_owned()))?;
        Ok(Appended { xid, epoch: epoch.cast_unsigned() })
    }

    async fn insert_in_epoch(
        &self,
        connection: &mut PgConnection,
        change: &Change,
    ) -> Result<(String, Option<i64>), sqlx::Error> {
        let inserted = self.insert_once(connection, change).await?;
        if inserted.1.is_some() {
            return Ok(inserted);
        }
        // Nobody has polled since a crash. The row has taken place, but its number is of no epoch: once more, in one.
        schema::begin_epoch(connection, &self.schema).await?;
        self.insert_once(connection, change).await
    }

    fn explain(&self, error: sqlx::Error) -> LogError {
        schema::explain(error, &self.schema)
    }
}

impl Log for PostgresLog {
    fn ready(&self) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async {
            let mut tail = self.tail.lock().await;
            if tail.is_none() {
                *tail = Some(self.begin().await?);
            }
            Ok(())
        })
    }

    fn begin_epoch(&self) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async {
            let mut connection = self.lend().await?;
            schema::ensure_epoch(&mut connection, &self.schema).await.map_err(|error| self.explain(error))
        })
    }

    fn prepare<'a>(&'a self, sources: &'a [Source]) -> BoxFuture<'a, Result<(), LogError>> {
        Box::pin(async move {
            let mut connection = self.connect().await?;
            if let Err(error) = schema::migrate(&mut connection, &self.schema).await {
                return Err(rights::explain(&mut connection, &self.schema, sources, error).await);
            }
            for Source { cache, table, key, columns } in sources {
                let (schema, table, cache, key) =
                    (self.schema.clone(), table.clone(), cache.clone(), key.clone());
                let watch = trigger::Watch { schema, table, cache, key, columns: columns.clone() };
                if let Err(error) = watch::watch(&mut connection, &watch).await {
                    return Err(rights::explain(&mut connection, &self.schema, sources, error).await);
                }
            }
            Ok(())
        })
    }

    fn poll<'a>(
        &'a self,
        cursor: Option<&'a Snapshot>,
        caches: &'a [&'a str],
        limit: Duration,
    ) -> BoxFuture<'a, Result<Poll, LogError>> {
        Box::pin(self.poll_once(cursor, caches, limit))
    }

    fn append<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, Result<Appended, LogError>> {
        Box::pin(self.append_once(change))
    }

    fn switches(&self) -> Arc<[Switch]> {
        Arc::clone(&self.switches.lock())
    }

    fn switch<'a>(&'a self, switching: &'a Switching) -> BoxFuture<'a, Result<(), LogError>> {
        Box::pin(async move {
            let mut connection = self.lend().await?;
            switches::switch(&mut connection, &self.schema, switching).await
        })
    }

    fn trim(&self, retention: Duration) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move {
            let mut connection = self.lend().await?;
            schema::trim(&mut connection, &self.schema, retention).await.map_err(|error| self.explain(error))
        })
    }

    fn unwatched<'a>(
        &'a self,
        cache: &'a str,
        tables: &'a [String],
        sources: &'a [Source],
    ) -> BoxFuture<'a, Result<Vec<Unwatched>, LogError>> {
        Box::pin(async move {
            if tables.is_empty() {
                return Ok(Vec::new());
            }
            let mut connection = self.lend().await?;
            declared::unwatched(&mut connection, &self.schema, cache, tables, sources)
                .await
                .map_err(|error| self.explain(error))
        })
    }

    fn borne<'a>(&'a self, cache: &'a str, key: &'a str) -> BoxFuture<'a, Result<Borne, LogError>> {
        Box::pin(async move {
            let mut connection = self.lend().await?;
            borne::borne(&mut connection, &self.schema, cache, key).await.map_err(|error| self.explain(error))
        })
    }
}

impl fmt::Debug for PostgresLog {
    /// Without the options: they may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresLog").field("schema", &self.schema).finish_non_exhaustive()
    }
}
