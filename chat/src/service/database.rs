//! Postgres, as handlers and loaders use it: prepared statements or none, for all alike.

use std::ops::{Deref, DerefMut};

use perto::postgres::{self, Lent, Pool, Query, sqlx};
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, PgPool, Postgres, Transaction};
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;

use super::fair;
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
    pub(crate) async fn limit(&self, tx: &mut PgConnection) -> Result<(), sqlx::Error> {
        if self.prepared {
            return Ok(());
        }
        let limits = "set local statement_timeout = '10s'; set local lock_timeout = '5s'; \
                      set local idle_in_transaction_session_timeout = '5s'";
        sqlx::raw_sql(limits).execute(tx).await.map(drop)
    }

    /// Runs one in a transaction of its own. Returns how many rows it changed.
    pub(crate) async fn run(&self, statement: Statement<'_>) -> Result<u64, sqlx::Error> {
        self.transact(async |tx| Ok(statement.execute(tx).await?.rows_affected())).await
    }

    /// Runs one of [`Database::write`] in a transaction of its own.
    pub(crate) async fn fetch<R>(&self, query: Rows<'_, R>) -> Result<Vec<R>, sqlx::Error>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        self.transact(async |tx| query.fetch_all(tx).await).await
    }

    /// A transaction on a connection of its own, which is looked at where it failed.
    pub(crate) async fn transact<T, E: From<sqlx::Error>>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut connection = self.pool.lend().await?;
        self.transact_on(&mut connection, work).await.inspect_err(|_| connection.doubt())
    }

    async fn transact_on<T, E: From<sqlx::Error>>(
        &self,
        connection: &mut PgConnection,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tx = self.begin(connection).await?;
        let done = work(&mut tx).await?;
        commit(tx).await?;
        Ok(done)
    }

    /// A statement of a transaction, or for [`Database::fetch`].
    pub(crate) fn write<'q, R>(&self, sql: &'static str) -> Rows<'q, R>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        Rows::new(sql, self.prepared)
    }
}

/// For a write of whoever asks, in a turn of the company's.
impl postgres::Lend for &Database {
    type Connection = InTurn;

    async fn lend(self) -> Result<InTurn, sqlx::Error> {
        let turn = fair::turn().await;
        Ok(InTurn { connection: self.pool.lend().await?, _turn: turn })
    }

    fn doubt(connection: &mut InTurn) {
        connection.connection.doubt();
    }
}

/// A connection, and the turn that it was lent in.
pub(crate) struct InTurn {
    connection: Lent,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Deref for InTurn {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for InTurn {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

/// Ends a transaction, in a span of its own: it is where a write happens.
pub(crate) async fn commit(tx: Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
    tx.commit().instrument(spans::statement("COMMIT")).await
}
