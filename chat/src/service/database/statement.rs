//! Statements, each a span of the request that it is part of.

use sqlx::postgres::{PgArguments, PgQueryResult, PgRow};
use sqlx::query::{Query, QueryAs};
use sqlx::{Encode, FromRow, PgConnection, Postgres, Type};
use tracing::Instrument as _;

use crate::service::telemetry::spans;

/// One that brings nothing.
#[must_use = "it does nothing until it is executed"]
pub(crate) struct Statement<'q> {
    query: Query<'q, Postgres, PgArguments>,
    sql: &'static str,
}

impl<'q> Statement<'q> {
    pub(super) fn new(sql: &'static str, prepared: bool) -> Self {
        Self { query: sqlx::query(sql).persistent(prepared), sql }
    }

    pub(crate) fn bind<T: 'q + Encode<'q, Postgres> + Type<Postgres>>(self, value: T) -> Self {
        Self { query: self.query.bind(value), sql: self.sql }
    }

    pub(crate) async fn execute(self, connection: &mut PgConnection) -> Result<PgQueryResult, sqlx::Error> {
        self.query.execute(connection).instrument(spans::statement(self.sql)).await
    }
}

/// One that brings rows.
#[must_use = "it does nothing until it is fetched"]
pub(crate) struct Rows<'q, R> {
    query: QueryAs<'q, Postgres, R, PgArguments>,
    sql: &'static str,
}

impl<'q, R: for<'r> FromRow<'r, PgRow> + Send + Unpin> Rows<'q, R> {
    pub(super) fn new(sql: &'static str, prepared: bool) -> Self {
        Self { query: sqlx::query_as(sql).persistent(prepared), sql }
    }

    pub(crate) fn bind<T: 'q + Encode<'q, Postgres> + Type<Postgres>>(self, value: T) -> Self {
        Self { query: self.query.bind(value), sql: self.sql }
    }

    pub(crate) async fn fetch_one(self, connection: &mut PgConnection) -> Result<R, sqlx::Error> {
        self.query.fetch_one(connection).instrument(spans::statement(self.sql)).await
    }

    pub(crate) async fn fetch_optional(
        self,
        connection: &mut PgConnection,
    ) -> Result<Option<R>, sqlx::Error> {
        self.query.fetch_optional(connection).instrument(spans::statement(self.sql)).await
    }

    pub(crate) async fn fetch_all(self, connection: &mut PgConnection) -> Result<Vec<R>, sqlx::Error> {
        self.query.fetch_all(connection).instrument(spans::statement(self.sql)).await
    }
}
