//! The log's tables: made, upgraded, trimmed, and begun anew in a new epoch.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::refused;
use crate::error::LogError;

/// The version that this code reads and writes.
pub const VERSION: i32 = 3;

/// What makes each version from the one before: the first from nothing. They never change once released.
const STEPS: [&str; 3] =
    [include_str!("schema.sql"), include_str!("schema-2.sql"), include_str!("schema-3.sql")];

/// Longest name of a schema: it is part of trigger names, which Postgres cuts at 63 bytes.
const MAX_NAME_BYTES: usize = 20;

/// # Errors
/// If it is not a plain lower-case identifier. (So it can stand in SQL as it is.)
pub(crate) fn check_name(schema: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let begins = schema.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    if begins && schema.len() <= MAX_NAME_BYTES && schema.bytes().all(plain) && !schema.starts_with("pg_") {
        Ok(())
    } else {
        Err(format!(
            "schema {schema:?} must be 1 to {MAX_NAME_BYTES} of a-z, 0-9 and _, not beginning with a digit"
        ))
    }
}

/// Makes the log's tables in `schema`, or upgrades them. Does nothing where they are up to date.
///
/// Dropping the future leaves all or nothing.
///
/// # Errors
/// If Postgres refuses, or the tables were made by a newer version.
pub async fn migrate(connection: &mut PgConnection, schema: &str) -> Result<(), LogError> {
    check_name(schema).map_err(LogError::Schema)?;
    let mut tx = connection.begin().await.map_err(refused)?;
    lock(&mut tx, schema).await.map_err(refused)?;
    let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .persistent(false)
        .bind(format!("{schema}.meta"))
        .fetch_one(&mut *tx)
        .await
        .map_err(refused)?;
    let version: i32 = match exists {
        false => 0,
        true => sqlx::query_scalar(AssertSqlSafe(format!("select version from {schema}.meta")))
            .persistent(false)
            .fetch_one(&mut *tx)
            .await
            .map_err(refused)?,
    };
    let done = usize::try_from(version).ok().filter(|done| *done <= STEPS.len());
    let Some(done) = done else { return Err(other_version(version)) };
    for step in &STEPS[done..] {
        run(&mut tx, &named(step, schema)).await?;
    }
    if done < STEPS.len() {
        run(&mut tx, &format!("update {schema}.meta set version = {VERSION}")).await?;
    }
    tx.commit().await.map_err(refused)
}

/// A step's SQL, for this schema.
fn named(sql: &str, schema: &str) -> String {
    sql.replace("perto.", &format!("{schema}."))
        .replace("create schema if not exists perto;", &format!("create schema if not exists {schema};"))
        .replace("on schema perto to", &format!("on schema {schema} to"))
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), LogError> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop).map_err(refused)
}

pub(crate) fn other_version(version: i32) -> LogError {
    LogError::Schema(format!(
        "the log's schema has version {version}, this is for version {VERSION}: {}",
        if version > VERSION { "use a newer Perto" } else { "run `perto migrate`" }
    ))
}

/// Says it where the log's tables are missing.
pub(crate) fn explain(error: sqlx::Error, schema: &str) -> LogError {
    match error.as_database_error().and_then(|error| error.code()).as_deref() {
        // undefined_table, invalid_schema_name, undefined_function
        Some("42P01" | "3F000" | "42883") => LogError::Schema(format!(
            "the schema {schema:?} has no invalidation log: run `perto migrate`, or `perto::postgres::migrate`"
        )),
        _ => refused(error),
    }
}

/// Writes a token where there is none, or one from elsewhere. From then on it is another epoch.
///
/// Rows from before stay: those of a dump that was restored elsewhere may have numbers that are ahead of this cluster's,
/// which no poll believes and the next trim deletes. Ticks from before mean nothing any more.
pub(crate) async fn begin_epoch(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin().await?;
    lock(&mut tx, schema).await?;
    let begun = sqlx::raw_sql(AssertSqlSafe(format!(
        "insert into {schema}.boot (origin) values ({schema}.origin()) on conflict (one) do update \
         set token = excluded.token, origin = excluded.origin where boot.origin <> excluded.origin"
    )))
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if begun > 0 {
        sqlx::raw_sql(AssertSqlSafe(format!(
            "delete from {schema}.tick; \
             update {schema}.meta set trimmed = pg_current_snapshot();"
        )))
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await
}

/// Rows that one statement of a trim deletes.
const TRIM_BATCH: u64 = 10_000;

/// Ticks once a minute, and trims rows that are contained in a tick older than `retention`.
///
/// The horizon is committed first, then rows go in batches: a trim that is cut short has still trimmed. Nobody
/// trims while no instance runs.
pub(crate) async fn trim(
    connection: &mut PgConnection,
    schema: &str,
    retention: Duration,
) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin().await?;
    if !try_lock(&mut tx, schema).await? {
        return tx.commit().await;
    }
    let seconds = retention.as_secs_f64();
    sqlx::raw_sql(AssertSqlSafe(format!(
        "insert into {schema}.tick (at) select clock_timestamp() where not exists \
           (select from {schema}.tick where at > clock_timestamp() - interval '50 seconds'); \
         with old as (select id, snapshot from {schema}.tick \
             where at <= clock_timestamp() - make_interval(secs => {seconds}) order by id desc limit 1), \
           passed as (delete from {schema}.tick t using old where t.id < old.id) \
         update {schema}.meta set trimmed = old.snapshot from old where trimmed::text <> old.snapshot::text;"
    )))
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    // Numbers that are ahead of every snapshot come from elsewhere: a dump that was restored.
    let delete = format!(
        "delete from {schema}.invalidation where ctid = any(array( \
           select i.ctid from {schema}.invalidation i, {schema}.meta m \
           where (i.xid < pg_snapshot_xmax(m.trimmed) and pg_visible_in_snapshot(i.xid, m.trimmed)) \
             or i.xid >= pg_snapshot_xmax(pg_current_snapshot()) limit {TRIM_BATCH}))"
    );
    loop {
        let mut tx = connection.begin().await?;
        if !try_lock(&mut tx, schema).await? {
            return tx.commit().await;
        }
        let deleted = sqlx::raw_sql(AssertSqlSafe(delete.as_str())).execute(&mut *tx).await?.rows_affected();
        tx.commit().await?;
        if deleted < TRIM_BATCH {
            return Ok(());
        }
    }
}

async fn try_lock(connection: &mut PgConnection, schema: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select pg_try_advisory_xact_lock(hashtextextended($1, 0))")
        .persistent(false)
        .bind(lock_name(schema))
        .fetch_one(connection)
        .await
}

fn lock_name(schema: &str) -> String {
    format!("perto.{schema}")
}

async fn lock(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 0))")
        .persistent(false)
        .bind(lock_name(schema))
        .execute(connection)
        .await
        .map(drop)
}
