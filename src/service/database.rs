//! Postgres, as handlers and loaders use it: prepared statements or none, for all alike.

use perto::postgres::{self, Query, sqlx};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryAs;
use sqlx::{FromRow, PgPool, Postgres};

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

    /// A statement of a transaction.
    pub(crate) fn write<'q, R>(&self, sql: &'static str) -> QueryAs<'q, Postgres, R, PgArguments>
    where
        R: for<'r> FromRow<'r, PgRow>,
    {
        sqlx::query_as(sql).persistent(self.prepared)
    }
}
