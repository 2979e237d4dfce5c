//! What is switched, in a table of the log: read with each poll, written by who may.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use super::schema;
use super::sql::refused;
use crate::error::LogError;
use crate::log::switch::{ALL, Switch, Switching, TierMode};

/// Rows that are looked at. Each cache has two at most; somebody may have written more.
const MOST: usize = 1_000;

/// Of a text: all of it, where the table has its checks. Else a poll would bring megabytes.
const MOST_LETTERS: usize = 400;
/// Seconds for which another one who switches is waited for.
const LOCK_LIMIT: u32 = 1;

/// The switches that stand now, with so much of each. None of it can fail, whatever the rows say: a poll rests on it. It is part of each
/// poll, so it has few words: to read them takes longer than to run them.
fn sql(schema: &str, columns: &str) -> String {
    format!(
        "select {columns} from {schema}.switch w \
         where w.home = {schema}.home() and (w.until is null or w.until > now()) order by w.since desc limit {MOST}"
    )
}

/// Since when and until when, in seconds; the second is missing where there is no end.
const TIMES: &str = "concat(extract(epoch from w.since), ' ', extract(epoch from w.until))";

/// The switches that stand now in the log in `schema`.
///
/// # Errors
/// If Postgres can't be read, or there is no log of this version.
pub async fn switches(connection: &mut PgConnection, schema: &str) -> Result<Vec<Switch>, LogError> {
    schema::check_name(schema).map_err(LogError::Schema)?;
    let sql = sql(
        schema,
        &format!(
            "w.cache, w.tier, w.mode, left(w.reason, {MOST_LETTERS}) as reason, left(w.who, {MOST_LETTERS}) as who, {TIMES} as times"
        ),
    );
    // In one step: a pooler may give two to two servers.
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await;
    let rows = rows.map_err(|error| schema::explain(error, schema))?;
    Ok(in_order(rows.iter().filter_map(|row| read(row, ["cache", "tier", "mode", "reason", "who", "times"]))))
}

/// Nothing where it makes no sense.
fn read(row: &PgRow, columns: [&str; 6]) -> Option<Switch> {
    let [cache, tier, mode, reason, who, times] =
        columns.map(|column| row.try_get::<Option<&str>, _>(column).ok().flatten().unwrap_or_default());
    let (since, until) = times.split_once(' ')?;
    Switch::recorded(cache, tier, mode, reason, who, since.parse().ok(), until.parse().ok())
}

fn in_order(switches: impl Iterator<Item = Switch>) -> Vec<Switch> {
    let mut switches: Vec<Switch> = switches.collect();
    switches.sort_by(|a, b| (&a.cache, a.tier.name()).cmp(&(&b.cache, b.tier.name())));
    switches
}

/// Switches a tier, or ends that. Every instance obeys with its next poll. Whether there is such a cache is not looked at.
///
/// Dropping the future leaves it done or not done.
///
/// # Errors
/// [`LogError::Schema`] where it makes no sense, where the role lacks the right (with the statement that grants it), or where there is no
/// log of this version. Else if Postgres can't be reached or refuses.
pub async fn switch(
    connection: &mut PgConnection,
    schema: &str,
    switching: &Switching,
) -> Result<(), LogError> {
    schema::check_name(schema).map_err(LogError::Schema)?;
    switching.check().map_err(|problem| LogError::Schema(problem.to_string()))?;
    schema::check_version(connection, schema).await?;
    let mut tx = connection.begin().await.map_err(refused)?;
    match write(&mut tx, schema, switching).await {
        Ok(()) => tx.commit().await.map_err(refused),
        Err(error) => {
            let code = error.as_database_error().and_then(|error| error.code());
            // lock_not_available
            if code.as_deref() == Some("55P03") {
                return Err(LogError::Schema(format!(
                    "another session has {schema}.switch locked for more than {LOCK_LIMIT} s: end its transaction (pg_stat_activity has it), and try again"
                )));
            }
            // insufficient_privilege
            if code.as_deref() != Some("42501") {
                return Err(schema::explain(error, schema));
            }
            tx.rollback().await.map_err(refused)?;
            let role = sqlx::raw_sql("select quote_ident(current_user)").fetch_one(connection).await;
            let role: String = role.and_then(|row| row.try_get(0)).map_err(refused)?;
            Err(LogError::Schema(format!(
                "this role may not switch. It needs: grant select, insert, update, delete on {schema}.switch to {role};"
            )))
        }
    }
}

async fn write(
    connection: &mut PgConnection,
    schema: &str,
    switching: &Switching,
) -> Result<(), sqlx::Error> {
    let Switching { cache, tier, mode, reason, by, lasts } = switching;
    let cache = cache.as_deref().unwrap_or(ALL);
    // One after the other: there is no key, for what a publisher sends must not clash.
    // Whoever waits is at an incident, and its server's process would wait on when it has gone.
    let lock = format!(
        "set local lock_timeout = '{LOCK_LIMIT}s'; lock table {schema}.switch in share row exclusive mode"
    );
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut *connection).await?;
    // With it goes what has ended by itself.
    let over = format!(
        "delete from {schema}.switch where home = {schema}.home() \
           and (until <= clock_timestamp() or (cache = $1 and tier = $2))"
    );
    sqlx::query(AssertSqlSafe(over))
        .persistent(false)
        .bind(cache)
        .bind(tier.name())
        .execute(&mut *connection)
        .await?;
    if *mode == TierMode::On {
        return Ok(());
    }
    let set = format!(
        "insert into {schema}.switch (cache, tier, mode, reason, who, until) \
           values ($1, $2, $3, $4, coalesce(nullif($5, ''), current_user), clock_timestamp() + make_interval(secs => $6))"
    );
    sqlx::query(AssertSqlSafe(set))
        .persistent(false)
        .bind(cache)
        .bind(tier.name())
        .bind(mode.name())
        .bind(reason)
        .bind(by)
        .bind(lasts.as_ref().map(Duration::as_secs_f64))
        .execute(connection)
        .await
        .map(drop)
}

/// Of the answer of a poll, in the columns that its rows have.
pub(super) fn polled_sql(schema: &str) -> String {
    sql(
        schema,
        &format!(
            "null, 0, w.tier, null, null, null, {TIMES}, w.cache, w.mode, left(w.who, {MOST_LETTERS}), left(w.reason, {MOST_LETTERS})"
        ),
    )
}

/// A row of [`polled_sql`], if it is one.
pub(super) fn is_polled(row: &PgRow) -> bool {
    row.try_get::<Option<i32>, _>("version").is_ok_and(|version| version == Some(0))
}

/// What such rows say, but for those that make no sense.
pub(super) fn polled<'a>(rows: impl IntoIterator<Item = &'a PgRow>) -> Vec<Switch> {
    let read = |row| read(row, ["cache", "trimmed", "key", "fault", "traceparent", "xid"]);
    in_order(rows.into_iter().filter_map(read))
}
