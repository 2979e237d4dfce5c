//! What is known of an import, and its cancellation.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Format;
use crate::service::database::Database;

/// An import of contacts.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Import {
    id: Uuid,
    /// `uploading`, `queued`, `running`, `done`, `cancelled` or `failed`.
    state: String,
    format: Format,
    /// Records seen so far.
    rows: i64,
    accepted: i64,
    rejected: i64,
    /// How often records were rejected, by the reason.
    reasons: BTreeMap<String, i64>,
    bytes: i64,
    bytes_done: i64,
    rows_per_second: f64,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    /// Why it failed.
    problem: Option<String>,
    /// Who works on it.
    instance: Option<String>,
}

impl FromRow<'_, PgRow> for Import {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let reasons = serde_json::from_str(row.try_get("reasons")?);
        Ok(Self {
            id: row.try_get("id")?,
            state: row.try_get("state")?,
            format: Format::named(row.try_get("format")?),
            rows: row.try_get("rows")?,
            accepted: row.try_get("accepted")?,
            rejected: row.try_get("rejected")?,
            reasons: reasons.map_err(|error| sqlx::Error::Decode(error.into()))?,
            bytes: row.try_get("bytes")?,
            bytes_done: row.try_get("bytes_done")?,
            rows_per_second: row.try_get("rate")?,
            created_at: row.try_get("created_at")?,
            started_at: row.try_get("started_at")?,
            finished_at: row.try_get("finished_at")?,
            problem: row.try_get("problem")?,
            instance: row.try_get("instance")?,
        })
    }
}

macro_rules! columns {
    () => {
        "id, state, format, rows, accepted, rejected, reasons::text, bytes, bytes_done, created_at, started_at, \
         finished_at, problem, instance, coalesce(round((rows / greatest(0.001, \
         extract(epoch from coalesce(finished_at, clock_timestamp()) - started_at)))::numeric, 1), 0)::float8 as rate"
    };
}

/// An import, for those who see all companies.
#[derive(Debug, Serialize)]
pub(crate) struct UnderWay {
    company: i64,
    #[serde(flatten)]
    import: Import,
}

/// Those that are under way or ended in the last minute, of all companies: the oldest fifty.
pub(crate) async fn under_way(
    connection: &mut PgConnection,
    prepared: bool,
) -> Result<Vec<UnderWay>, sqlx::Error> {
    let sql = concat!(
        "select company_id, ",
        columns!(),
        " from imports where state in ('uploading', 'queued', 'running') \
          or finished_at > clock_timestamp() - interval '1 min' order by created_at limit 50"
    );
    let rows = sqlx::query(sql).persistent(prepared).fetch_all(connection).await?;
    let read =
        |row: &PgRow| Ok(UnderWay { company: row.try_get("company_id")?, import: Import::from_row(row)? });
    rows.iter().map(read).collect()
}

/// An import of this company.
pub(super) async fn find(database: &Database, company: i64, id: Uuid) -> Result<Option<Import>, sqlx::Error> {
    let sql = concat!("select ", columns!(), " from imports where company_id = $1 and id = $2");
    Ok(database.fetch(database.write(sql).bind(company).bind(id)).await?.pop())
}

/// The newest imports of a company.
pub(super) async fn list(database: &Database, company: i64) -> Result<Vec<Import>, sqlx::Error> {
    let sql = concat!(
        "select ",
        columns!(),
        " from imports where company_id = $1 order by created_at desc limit 100"
    );
    database.fetch(database.write(sql).bind(company)).await
}

/// Stops it where it is; what was applied stays. One that has ended stays as it is.
pub(super) async fn cancel(
    database: &Database,
    company: i64,
    id: Uuid,
) -> Result<Option<Import>, sqlx::Error> {
    let sql = concat!(
        "update imports set state = 'cancelled', owner = null, instance = null, leased_until = null, \
         finished_at = clock_timestamp() \
         where company_id = $1 and id = $2 and state in ('uploading', 'queued', 'running') returning ",
        columns!()
    );
    match database.fetch(database.write(sql).bind(company).bind(id)).await?.pop() {
        Some(import) => Ok(Some(import)),
        None => find(database, company, id).await,
    }
}
