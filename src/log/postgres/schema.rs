//! The log's tables: made, upgraded, trimmed, and begun anew in a new epoch.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row as _};

use super::locks::{self, Sql};
use super::sql::{option, refused};
use crate::error::LogError;
use crate::log::READY_LIMIT;

/// The version that this code reads and writes.
pub const VERSION: i32 = 7;

/// What makes each version from the one before: the first from nothing. They never change once released.
const STEPS: [&str; 7] = [
    include_str!("schema.sql"),
    include_str!("schema-2.sql"),
    include_str!("schema-3.sql"),
    include_str!("schema-4.sql"),
    include_str!("schema-5.sql"),
    include_str!("schema-6.sql"),
    include_str!("schema-7.sql"),
];

/// What a log whose token was made durable by hand is told.
pub(super) const LOGGED_TOKEN: &str =
    "the log's table boot is not unlogged any more, so a crash would go unnoticed: run `perto migrate`";

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

/// Makes the log's tables in `schema`, or upgrades them. Where they are up to date it does nothing, and takes no lock that
/// anybody waits for.
///
/// An upgrade waits for those who use the tables, a tenth of a second at a time and ten seconds in all: nobody queues
/// behind it for longer. Two at once do it one after the other.
///
/// Dropping the future leaves all or nothing.
///
/// # Errors
/// If Postgres refuses, a lock was not to be had, or the tables were made by a newer version.
pub async fn migrate(connection: &mut PgConnection, schema: &str) -> Result<(), LogError> {
    check_name(schema).map_err(LogError::Schema)?;
    let mut tx = connection.begin().await.map_err(refused)?;
    sqlx::raw_sql(locks::PINNED_PATH).execute(&mut *tx).await.map_err(refused)?;
    locks::declaring(&mut tx, schema).await?;
    let plan = plan(&mut tx, schema).await?;
    locks::run(&mut tx, &plan).await?;
    tx.commit().await.map_err(refused)
}

/// The SQL that [`migrate`] would run now, in one transaction; nothing where the tables are up to date. Runs none of it.
///
/// # Errors
/// As [`migrate`].
pub async fn migrate_sql(connection: &mut PgConnection, schema: &str) -> Result<Option<String>, LogError> {
    check_name(schema).map_err(LogError::Schema)?;
    // On one server, whatever is in between: see the log.
    let mut tx = connection.begin().await.map_err(refused)?;
    sqlx::raw_sql(locks::PINNED_PATH).execute(&mut *tx).await.map_err(refused)?;
    let plan = plan(&mut tx, schema).await?;
    tx.rollback().await.map_err(refused)?;
    Ok(locks::script(schema, &plan))
}

/// The version of the log's tables in `schema`; `None` where there are none.
///
/// # Errors
/// If Postgres can't be read.
pub async fn schema_version(connection: &mut PgConnection, schema: &str) -> Result<Option<i32>, LogError> {
    check_name(schema).map_err(LogError::Schema)?;
    let mut tx = connection.begin().await.map_err(refused)?;
    let (function, table): (bool, bool) =
        sqlx::query_as("select to_regprocedure($1) is not null, to_regclass($2) is not null")
            .persistent(false)
            .bind(format!("{schema}.version()"))
            .bind(format!("{schema}.meta"))
            .fetch_one(&mut *tx)
            .await
            .map_err(refused)?;
    // A row said it before there was a function.
    let sql = match (function, table) {
        (true, _) => format!("select {schema}.version()"),
        (false, true) => format!("select version from {schema}.meta"),
        (false, false) => return Ok(None),
    };
    let asking = sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false).fetch_one(&mut *tx);
    let version = asking.await.map_err(refused)?;
    tx.commit().await.map_err(refused)?;
    Ok(Some(version))
}

/// The steps that are missing, and what was undone by hand.
async fn plan(connection: &mut PgConnection, schema: &str) -> Result<Vec<Sql>, LogError> {
    let version = schema_version(connection, schema).await?.unwrap_or(0);
    let done = usize::try_from(version).ok().filter(|done| *done <= STEPS.len());
    let Some(done) = done else { return Err(other_version(schema, version)) };
    let mut plan: Vec<Sql> = STEPS[done..].iter().map(|step| Sql::Script(named(step, schema))).collect();
    if done == STEPS.len() {
        let logged: Vec<String> = sqlx::query_scalar(
            "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = $1 and c.relname in ('boot', 'tick', 'invalidation') and c.relpersistence <> 'u'",
        )
        .persistent(false)
        .bind(schema)
        .fetch_all(connection)
        .await
        .map_err(refused)?;
        plan.extend(
            logged.iter().map(|table| Sql::One(format!("alter table {schema}.{table} set unlogged"))),
        );
    }
    if !plan.is_empty() {
        // Nobody begins an epoch or trims meanwhile.
        let lock = format!("select pg_advisory_xact_lock(hashtextextended('{}', 0))", lock_name(schema));
        plan.insert(0, Sql::One(locks::PINNED_PATH.to_owned()));
        plan.insert(1, Sql::One(lock));
    }
    Ok(plan)
}

/// A step's SQL, for this schema.
fn named(sql: &str, schema: &str) -> String {
    sql.replace("perto.", &format!("{schema}."))
        .replace("create schema if not exists perto;", &format!("create schema if not exists {schema};"))
        .replace("on schema perto to", &format!("on schema {schema} to"))
}

/// # Errors
/// Where there is no log in the schema, or that of another version: what mends it.
pub(super) async fn check_version(connection: &mut PgConnection, schema: &str) -> Result<(), LogError> {
    match schema_version(connection, schema).await? {
        Some(VERSION) => Ok(()),
        Some(version) => Err(other_version(schema, version)),
        None => Err(LogError::Schema(format!(
            "Perto's tables are not in this database, in the schema {schema:?}: run `perto migrate{}`, or call \
             `perto::postgres::migrate`",
            option(schema)
        ))),
    }
}

pub(crate) fn other_version(schema: &str, version: i32) -> LogError {
    let mend = match version > VERSION {
        true => "use a newer Perto".to_owned(),
        false => format!("run `perto migrate{}`", option(schema)),
    };
    LogError::Schema(format!(
        "Perto's tables in the schema {schema:?} are of version {version}, and this Perto needs {VERSION}: {mend}"
    ))
}

/// Says it where the log's tables are missing, or are those of an older version.
pub(crate) fn explain(error: sqlx::Error, schema: &str) -> LogError {
    match error.as_database_error().and_then(|error| error.code()).as_deref() {
        // undefined_table, invalid_schema_name, undefined_function, undefined_column
        Some("42P01" | "3F000" | "42883" | "42703") => LogError::Schema(format!(
            "Perto's tables are not in this database, in the schema {schema:?}, or they are older ones: run \
             `perto migrate{}`, or call `perto::postgres::migrate`",
            option(schema)
        )),
        _ => refused(error),
    }
}

/// Begins an epoch if there is none. Waits for nobody where there is one.
pub(crate) async fn ensure_epoch(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    let sql = format!("select exists (select from {schema}.boot where origin = {schema}.origin())");
    let begun: bool = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&mut *connection).await?.try_get(0)?;
    if begun { Ok(()) } else { begin_epoch(connection, schema).await }
}

/// Writes a token where there is none, or one from elsewhere, and with it the horizon: all that came before counts as
/// trimmed. From then on it is another epoch.
///
/// The snapshot is taken before the transaction has a number, so every poll after its commit ranks above it.
///
/// Rows from before stay: those of a dump that was restored elsewhere may have numbers that are ahead of this cluster's,
/// which no poll believes and the next trim deletes. Ticks from before mean nothing any more.
pub(crate) async fn begin_epoch(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin().await?;
    // Those who have given up must not stand in line there.
    let limit = format!("set local statement_timeout = {}", READY_LIMIT.as_millis());
    sqlx::raw_sql(AssertSqlSafe(limit)).execute(&mut *tx).await?;
    lock(&mut tx, schema).await?;
    let begun = sqlx::raw_sql(AssertSqlSafe(format!(
        "insert into {schema}.boot (origin, trimmed) \
           select o, pg_current_snapshot() from {schema}.origin() o where o is not null \
         on conflict (one) do update set token = excluded.token, origin = excluded.origin, trimmed = excluded.trimmed \
           where boot.origin <> excluded.origin"
    )))
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if begun > 0 {
        sqlx::raw_sql(AssertSqlSafe(format!("delete from {schema}.tick"))).execute(&mut *tx).await?;
    }
    tx.commit().await
}

/// Rows that one statement of a trim deletes.
const TRIM_BATCH: u64 = 10_000;

/// Ticks once a minute, and trims rows that are contained in a tick older than `retention`.
///
/// The horizon is committed first, then rows go in batches: a trim that is cut short has still trimmed. Nobody
/// trims while no instance runs, or before it has begun an epoch.
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
         with old as (select at, snapshot from {schema}.tick \
             where at <= clock_timestamp() - make_interval(secs => {seconds}) order by at desc limit 1), \
           passed as (delete from {schema}.tick t using old where t.at < old.at) \
         update {schema}.boot set trimmed = old.snapshot from old where trimmed::text <> old.snapshot::text \
           and origin = {schema}.origin();"
    )))
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    // Numbers that are ahead of every snapshot come from elsewhere: a dump that was restored.
    let delete = format!(
        "delete from {schema}.invalidation where ctid = any(array( \
           select i.ctid from {schema}.invalidation i, {schema}.boot b \
           where b.origin = {schema}.origin() \
             and ((i.xid < pg_snapshot_xmax(b.trimmed) and pg_visible_in_snapshot(i.xid, b.trimmed)) \
               or i.xid >= pg_snapshot_xmax(pg_current_snapshot())) limit {TRIM_BATCH}))"
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
