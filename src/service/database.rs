//! Postgres, as handlers and loaders use it: prepared statements or none, for all alike.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures_util::future::BoxFuture;
use perto::postgres::{self, Query, sqlx};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgRow;
use sqlx::{Acquire, Connection as _, FromRow, PgConnection, PgPool, Postgres, Transaction};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::telemetry::spans;
use statement::{Rows, Statement};

mod statement;

/// A pool, and how to ask it.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    pub(crate) pool: Pool,
    /// Off behind a transaction pooler.
    pub(crate) prepared: bool,
}

impl Database {
    pub(crate) fn new(pool: &PgPool, prepared: bool) -> Self {
        Self { pool: Pool::new(pool), prepared }
    }

    /// A read that says as of when. It may run on the pool: where nothing is prepared, in a transaction of its own.
    pub(crate) fn read<R>(&self, sql: &str) -> Query<R> {
        postgres::query_as(sql).persistent(self.prepared)
    }

    /// Whether there is an API key, or was one.
    pub(crate) async fn has_keys(&self) -> Result<bool, sqlx::Error> {
        let any = self.fetch(self.write::<(bool,)>("select exists (select from api_keys)")).await?;
        Ok(any.first().is_some_and(|(any,)| *any))
    }

    /// A statement that brings nothing: of a transaction, or for [`Database::run`].
    pub(crate) fn statement<'q>(&self, sql: &'static str) -> Statement<'q> {
        Statement::new(sql, self.prepared)
    }

    /// Begins a transaction, with its limits.
    pub(crate) async fn begin<'c>(
        &self,
        connection: &'c mut PgConnection,
    ) -> Result<Transaction<'c, Postgres>, sqlx::Error> {
        let mut tx = sqlx::Connection::begin(connection).await?;
        self.limit(&mut tx).await?;
        Ok(tx)
    }

    /// The limits of the statements of a transaction: a pooler takes none at the start of a connection.
    async fn limit(&self, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        if self.prepared {
            return Ok(());
        }
        let limits = "set local statement_timeout = '10s'; set local lock_timeout = '5s'; \
                      set local idle_in_transaction_session_timeout = '5s'";
        sqlx::raw_sql(limits).execute(tx).await.map(drop)
    }

    /// Runs one in a transaction of its own. Returns how many rows it changed.
    pub(crate) async fn run(&self, statement: Statement<'_>) -> Result<u64, sqlx::Error> {
        let mut connection = self.pool.lend().await?;
        let mut tx = self.begin(&mut connection).await?;
        let done = statement.execute(&mut tx).await?;
        commit(tx).await?;
        Ok(done.rows_affected())
    }

    /// Runs one of [`Database::write`] in a transaction of its own.
    pub(crate) async fn fetch<R>(&self, query: Rows<'_, R>) -> Result<Vec<R>, sqlx::Error>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let mut connection = self.pool.lend().await?;
        let mut tx = self.begin(&mut connection).await?;
        let rows = query.fetch_all(&mut tx).await?;
        commit(tx).await?;
        Ok(rows)
    }

    /// A statement of a transaction, or for [`Database::fetch`].
    pub(crate) fn write<'q, R>(&self, sql: &'static str) -> Rows<'q, R>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        Rows::new(sql, self.prepared)
    }
}

/// Ends a transaction, in a span of its own: it is where a write happens.
pub(crate) async fn commit(tx: Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
    tx.commit().instrument(spans::statement("COMMIT")).await
}

/// How long a connection may take to say that it is ready, what was given up on it included: else it is thrown away.
const READY: Duration = Duration::from_secs(1);

/// Connections that keep their places no longer than they answer.
///
/// Where a route is lost nothing comes, and no error: a pool of sqlx waits for each connection that is given back, without
/// a limit.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    pool: PgPool,
    returns: TaskTracker,
}

impl Pool {
    pub(crate) fn new(pool: &PgPool) -> Self {
        Self { pool: pool.clone(), returns: TaskTracker::new() }
    }

    pub(crate) async fn lend(&self) -> Result<Lent, sqlx::Error> {
        let connection = self.pool.acquire().await?;
        Ok(Lent { connection, returns: self.returns.clone() })
    }
}

impl<'c> Acquire<'c> for &'c Pool {
    type Database = Postgres;
    type Connection = Lent;

    fn acquire(self) -> BoxFuture<'c, Result<Lent, sqlx::Error>> {
        Box::pin(self.lend())
    }

    /// Without the limit: nothing here begins one so.
    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, Postgres>, sqlx::Error>> {
        Box::pin(async move { self.pool.begin().await })
    }
}

/// A connection of a [`Pool`], given back within a limit or not at all.
#[derive(Debug)]
pub(crate) struct Lent {
    connection: PoolConnection<Postgres>,
    returns: TaskTracker,
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Dropped before its end, it closes the connection and frees the place.
        self.returns.spawn(tokio::time::timeout(READY, self.connection.return_to_pool()));
    }
}

/// Whether an idle connection still does: an error closes it without a word to the server.
pub(crate) async fn answers(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let late = |_elapsed| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    tokio::time::timeout(READY, connection.ping()).await.map_err(late)?.map(|()| true)
}
