//! Postgres, as handlers and loaders use it: prepared statements or none, for all alike.

use perto::postgres::{self, Query, sqlx};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::{Query as Statement, QueryAs};
use sqlx::{FromRow, PgConnection, PgPool, Postgres, Transaction};

/// A pool, and how to ask it.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    pub(crate) pool: PgPool,
    /// Off behind a transaction pooler.
    pub(crate) prepared: bool,
}

impl Database {
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
    pub(crate) fn statement<'q>(&self, sql: &'static str) -> Statement<'q, Postgres, PgArguments> {
        sqlx::query(sql).persistent(self.prepared)
    }

    /// Begins a transaction, with its limits.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let mut tx = self.pool.begin().await?;
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
    pub(crate) async fn run(
        &self,
        statement: Statement<'_, Postgres, PgArguments>,
    ) -> Result<u64, sqlx::Error> {
        let mut tx = self.begin().await?;
        let done = statement.execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    /// Runs one of [`Database::write`] in a transaction of its own.
    pub(crate) async fn fetch<R>(
        &self,
        query: QueryAs<'_, Postgres, R, PgArguments>,
    ) -> Result<Vec<R>, sqlx::Error>
    where
        R: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        let mut tx = self.begin().await?;
        let rows = query.fetch_all(&mut *tx).await?;
        tx.commit().await?;
        Ok(rows)
    }

    /// A statement of a transaction, or for [`Database::fetch`].
    pub(crate) fn write<'q, R>(&self, sql: &'static str) -> QueryAs<'q, Postgres, R, PgArguments>
    where
        R: for<'r> FromRow<'r, PgRow>,
    {
        sqlx::query_as(sql).persistent(self.prepared)
    }
}
