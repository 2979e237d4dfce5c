//! Triggers that write the log: with them every SQL statement that changes a table invalidates, by whomever.
//!
//! One function for each table and cache, with static SQL: a generic one would plan its statement anew at each call.
//! Statement-level with transition tables: a row-level trigger costs several times as much on bulk writes.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::super::MAX_KEYS_PER_ROW;
use super::refused;
use super::schema::{check_name, explain};
use crate::error::LogError;

/// What to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// The schema that holds the log.
    pub schema: String,
    /// The table, with its schema where that is not on the search path.
    pub table: String,
    /// The cache whose keys the statements invalidate.
    pub cache: String,
    /// A key's text as an SQL expression over the table's columns: `id`, or `company_id || ':' || phone`. From then on it
    /// runs as whoever watches: take it from nobody else.
    pub key: String,
}

pub(super) const EVENTS: [&str; 4] = ["insert", "update", "delete", "truncate"];

/// Installs the triggers on a table, its partitions and the tables that inherit from it, or replaces them, and records
/// that it is watched.
///
/// Running writers are waited for, up to five seconds; the whole cache is invalidated in the same transaction, so that nothing loaded before is trusted.
///
/// Writes by logical replication don't fire statement triggers: a subscriber's table is not covered.
///
/// Dropping the future leaves all or nothing.
///
/// # Errors
/// [`LogError::Schema`] where the table or the key expression doesn't exist; [`LogError::Refused`] where rights are missing
/// or the lock was not to be had.
pub async fn watch(connection: &mut PgConnection, watch: &Watch) -> Result<Vec<String>, LogError> {
    check_name(&watch.schema).map_err(LogError::Schema)?;
    crate::cache::builder::check_name(&watch.cache)
        .map_err(|problem| LogError::Schema(format!("cache: {problem}")))?;
    let mut tx = connection.begin().await.map_err(refused)?;
    let tables = tables(&mut tx, &watch.table).await?;
    run(&mut tx, "set local lock_timeout = '5s'").await?;
    // As in the function: what the expression names outside of pg_catalog must be written with its schema.
    run(&mut tx, "set local search_path = pg_catalog, pg_temp").await?;
    probe(&mut tx, watch, &tables[0]).await?;
    for table in &tables {
        drop_triggers(&mut tx, watch, table).await?;
        run_one(&mut tx, function_sql(watch, table)).await.map_err(refused)?;
        // Attached to a table of one's own, with types of one's own, it would run one's casts as its owner.
        run(&mut tx, &format!("revoke all on function {} from public", function_name(watch, table))).await?;
        for event in EVENTS {
            run(&mut tx, &trigger_sql(watch, table, event)).await?;
        }
    }
    let everything = format!(
        "insert into {}.invalidation (cache, keys) values ({}, null)",
        watch.schema,
        literal(&watch.cache)
    );
    run(&mut tx, &everything).await?;
    forget(&mut tx, watch, &tables).await?;
    record(&mut tx, watch, &tables[0]).await?;
    tx.commit().await.map_err(refused)?;
    Ok(tables.into_iter().map(|table| table.name).collect())
}

/// Removes what [`watch`] installed, also of a table that has been dropped. From then on writes to the table are not seen before the time to live.
///
/// # Errors
/// As [`watch`].
pub async fn unwatch(connection: &mut PgConnection, watch: &Watch) -> Result<Vec<String>, LogError> {
    check_name(&watch.schema).map_err(LogError::Schema)?;
    let mut tx = connection.begin().await.map_err(refused)?;
    let tables = match tables(&mut tx, &watch.table).await {
        Ok(tables) => tables,
        // A table that was dropped took its triggers along. What is left of it is what is recorded.
        Err(missing @ LogError::Schema(_)) => {
            if forget_dropped(&mut tx, watch).await? == 0 {
                return Err(missing);
            }
            tx.commit().await.map_err(refused)?;
            return Ok(vec![watch.table.clone()]);
        }
        Err(error) => return Err(error),
    };
    run(&mut tx, "set local lock_timeout = '5s'").await?;
    for table in &tables {
        drop_triggers(&mut tx, watch, table).await?;
    }
    forget(&mut tx, watch, &tables).await?;
    tx.commit().await.map_err(refused)?;
    Ok(tables.into_iter().map(|table| table.name).collect())
}

struct Table {
    oid: i64,
    name: String,
}

/// The table, its partitions and the tables that inherit from it: a statement that names one of these fires only its
/// triggers.
async fn tables(connection: &mut PgConnection, table: &str) -> Result<Vec<Table>, LogError> {
    let rows: Vec<(i64, String)> = sqlx::query_as(
        "with recursive tree(relid, level) as ( \
           select to_regclass($1)::oid, 0 union \
           select i.inhrelid, t.level + 1 from tree t join pg_inherits i on i.inhparent = t.relid) \
         select c.oid::bigint, format('%I.%I', n.nspname, c.relname) from tree t \
         join pg_class c on c.oid = t.relid join pg_namespace n on n.oid = c.relnamespace \
         group by c.oid, n.nspname, c.relname order by min(t.level), 1",
    )
    .persistent(false)
    .bind(table)
    .fetch_all(connection)
    .await
    .map_err(refused)?;
    if rows.is_empty() {
        return Err(LogError::Schema(format!("table: there is no table {table:?} in this database")));
    }
    Ok(rows.into_iter().map(|(oid, name)| Table { oid, name }).collect())
}

/// Fails where the key is not one expression over the table's columns: nothing else of the table is there under that
/// name in the trigger's function.
///
/// Both ways it must be SQL: what closes a bracket or begins a comment is at most one of the two.
async fn probe(connection: &mut PgConnection, watch: &Watch, table: &Table) -> Result<(), LogError> {
    let Watch { key, .. } = watch;
    for sql in [
        format!("select {key} from {} as \"a row\" limit 0", table.name),
        format!("select (({key})::text) from {} as \"a row\" limit 0", table.name),
    ] {
        if let Err(error) = run_one(connection, sql).await {
            return Err(match error.as_database_error() {
                Some(refusal) => LogError::Schema(format!(
                    "key: {key:?} is not an expression over the columns of {}: {}",
                    table.name,
                    refusal.message()
                )),
                None => refused(error),
            });
        }
    }
    Ok(())
}

/// Runs one statement. Two are refused, unlike by `run`: so for all that a key is part of.
async fn run_one(connection: &mut PgConnection, sql: String) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(connection).await.map(drop)
}

async fn record(connection: &mut PgConnection, watch: &Watch, table: &Table) -> Result<(), LogError> {
    let sql = format!(
        "insert into {}.watched (relid, name, cache, key) values ($1::bigint::oid, $2, $3, $4)",
        watch.schema
    );
    sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .bind(table.oid)
        .bind(&table.name)
        .bind(&watch.cache)
        .bind(&watch.key)
        .execute(connection)
        .await
        .map(drop)
        .map_err(refused)
}

/// What is recorded of these tables, or of others that had their names.
async fn forget(connection: &mut PgConnection, watch: &Watch, tables: &[Table]) -> Result<(), LogError> {
    let sql = format!(
        "delete from {}.watched where cache = $1 and (relid = any($2::bigint[]::oid[]) or name = any($3))",
        watch.schema
    );
    let (oids, names): (Vec<i64>, Vec<&str>) =
        tables.iter().map(|table| (table.oid, table.name.as_str())).unzip();
    sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .bind(&watch.cache)
        .bind(oids)
        .bind(names)
        .execute(connection)
        .await
        .map(drop)
        .map_err(|error| explain(error, &watch.schema))
}

/// Returns how many were recorded.
async fn forget_dropped(connection: &mut PgConnection, watch: &Watch) -> Result<u64, LogError> {
    let sql = format!("delete from {}.watched where cache = $1 and name = $2", watch.schema);
    sqlx::query(AssertSqlSafe(sql))
        .persistent(false)
        .bind(&watch.cache)
        .bind(&watch.table)
        .execute(connection)
        .await
        .map(|done| done.rows_affected())
        .map_err(|error| explain(error, &watch.schema))
}

async fn drop_triggers(connection: &mut PgConnection, watch: &Watch, table: &Table) -> Result<(), LogError> {
    for event in EVENTS {
        let trigger = identifier(&trigger_name(&watch.schema, &watch.cache, event));
        run(connection, &format!("drop trigger if exists {trigger} on {}", table.name)).await?;
    }
    run(connection, &format!("drop function if exists {}", function_name(watch, table))).await
}

/// `security definer` with a pinned search path: whoever may write the table needs no right on the log. Dates, times,
/// bytes, floats and the key's own literals have one text, whatever the session of the writer has set: else a key's text would depend on who
/// writes.
fn function_sql(watch: &Watch, table: &Table) -> String {
    let settings: String = SETTINGS.iter().map(|(name, value)| format!("set {name} = {value} ")).collect();
    format!(
        "create function {}() returns trigger language plpgsql security definer {settings}as E'{}'",
        function_name(watch, table),
        // Not between dollars: a key might have them too.
        body(watch).replace('\\', r"\\").replace('\'', "''")
    )
}

/// What the function runs under.
pub(super) const SETTINGS: [(&str, &str); 7] = [
    ("search_path", "pg_catalog, pg_temp"),
    ("timezone", "'UTC'"),
    ("datestyle", "'ISO, YMD'"),
    ("intervalstyle", "'postgres'"),
    ("bytea_output", "'hex'"),
    ("extra_float_digits", "1"),
    // A backslash in the key's own text is one.
    ("standard_conforming_strings", "on"),
];

/// The function's text: the same for every table that is watched alike.
pub(super) fn body(watch: &Watch) -> String {
    let Watch { schema, cache, key, table: _ } = watch;
    let collect = |rows: &str| {
        format!(
            "select array_agg(k) into ks from (select distinct k from ({rows}) r where k is not null limit {}) d;",
            MAX_KEYS_PER_ROW + 1
        )
    };
    let (new, old) = (
        format!("select ({key})::text as k from new_rows"),
        format!("select ({key})::text as k from old_rows"),
    );
    format!(
        " declare ks text[]; \
         begin \
           if tg_op = 'TRUNCATE' then \
             insert into {schema}.invalidation (cache, keys) values ({cache}, null); return null; \
           end if; \
           if tg_op = 'INSERT' then {} elsif tg_op = 'DELETE' then {} else {} end if; \
           if cardinality(ks) > {MAX_KEYS_PER_ROW} then \
             insert into {schema}.invalidation (cache, keys) values ({cache}, null); \
           elsif cardinality(ks) > 0 then \
             insert into {schema}.invalidation (cache, keys) values ({cache}, ks); \
           end if; \
           return null; \
         end ",
        collect(&new),
        collect(&old),
        collect(&format!("{old} union all {new}")),
        cache = literal(cache),
    )
}

fn trigger_sql(watch: &Watch, table: &Table, event: &str) -> String {
    let trigger = identifier(&trigger_name(&watch.schema, &watch.cache, event));
    let transition = match event {
        "insert" => "referencing new table as new_rows",
        "update" => "referencing old table as old_rows new table as new_rows",
        "delete" => "referencing old table as old_rows",
        _ => "",
    };
    // Always: also where a session plays a replica.
    format!(
        "create trigger {trigger} after {event} on {name} {transition} for each statement execute function {function}(); \
         alter table {name} enable always trigger {trigger}",
        name = table.name,
        function = function_name(watch, table),
    )
}

pub(super) fn trigger_name(schema: &str, cache: &str, event: &str) -> String {
    format!("{schema}:{cache}:{event}")
}

/// By the table's number: names may be longer than Postgres keeps apart.
fn function_name(watch: &Watch, table: &Table) -> String {
    format!("{}.{}", watch.schema, identifier(&format!("{}:{}", watch.cache, table.oid)))
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), LogError> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop).map_err(refused)
}
