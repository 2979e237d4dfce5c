//! Triggers that write the log: with them every SQL statement that changes a table invalidates, by whomever.
//!
//! Statement-level with transition tables: a row-level trigger costs several times as much on bulk writes.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::locks::{self, Sql};
use super::schema::{check_name, check_version, explain};
use super::sql::{literal, refused};
use super::trigger::{EVENTS, Table, Watch, drop_trigger, trigger_sql};
use super::watched::{Watched, has_triggers, recorded};
use super::{columns, function, key};
use crate::error::LogError;

/// Installs the triggers on a table, its partitions and the tables that inherit from it.
///
/// It records that the table is watched. From then on no statement fails because of its key: one that the key fails for
/// clears the whole cache and says so.
///
/// Does nothing, and invalidates nothing, where it is watched exactly so. Mends what is not as it was installed. Any number of
/// instances may call it at once.
///
/// Writers are waited for, a tenth of a second at a time and ten seconds in all, so that nobody queues behind it for longer;
/// readers are neither waited for nor kept waiting. (On Postgres 13 they are, where triggers are replaced.) The whole cache is
/// invalidated in the same transaction, so that nothing loaded before is trusted.
///
/// Writes by logical replication don't fire statement triggers: a subscriber's table is not covered.
///
/// Dropping the future leaves all or nothing.
///
/// # Errors
/// [`LogError::Schema`] where the table doesn't exist, the key is not a function of one row, the table is watched for this cache by
/// another key (see [`rewatch`]), or its writers didn't end in time; [`LogError::Refused`] where rights are missing.
pub async fn watch(connection: &mut PgConnection, watch: &Watch) -> Result<Vec<String>, LogError> {
    install(connection, watch, false).await
}

/// As [`watch`], and also where the table is watched for this cache by another key, which it replaces.
///
/// # Errors
/// As [`watch`].
pub async fn rewatch(connection: &mut PgConnection, watch: &Watch) -> Result<Vec<String>, LogError> {
    install(connection, watch, true).await
}

/// The SQL that [`watch`] would run now, or [`rewatch`] where `replace` is true, in one transaction; `None` where there is nothing to
/// do. Judges the key, and changes nothing.
///
/// # Errors
/// As [`watch`].
pub async fn watch_sql(
    connection: &mut PgConnection,
    watch: &Watch,
    replace: bool,
) -> Result<Option<String>, LogError> {
    check(watch)?;
    let mut tx = connection.begin().await.map_err(refused)?;
    let (_, plan) = plan(&mut tx, watch, replace).await?;
    tx.rollback().await.map_err(refused)?;
    Ok(locks::script(&watch.schema, &plan))
}

fn check(watch: &Watch) -> Result<(), LogError> {
    check_name(&watch.schema).map_err(LogError::Schema)?;
    crate::log::check_name(&watch.cache).map_err(|problem| LogError::Schema(format!("cache: {problem}")))
}

async fn install(
    connection: &mut PgConnection,
    watch: &Watch,
    replace: bool,
) -> Result<Vec<String>, LogError> {
    check(watch)?;
    let mut tx = connection.begin().await.map_err(refused)?;
    // Before it is anybody's turn: usually there is nothing to do.
    let tables = match state(&mut tx, watch, replace).await? {
        State { tables, done: true, .. } => tables,
        State { done: false, .. } => {
            locks::declaring(&mut tx, &watch.schema).await?;
            let (tables, plan) = plan(&mut tx, watch, replace).await?;
            locks::run(&mut tx, &plan).await?;
            tables
        }
    };
    tx.commit().await.map_err(refused)?;
    Ok(tables.into_iter().map(|table| table.name).collect())
}

/// What is there already.
struct State {
    /// What is asked for, with all columns that count.
    watch: Watch,
    tables: Vec<Table>,
    /// Whether they are watched exactly so.
    done: bool,
}

async fn state(connection: &mut PgConnection, watch: &Watch, replace: bool) -> Result<State, LogError> {
    check_version(connection, &watch.schema).await?;
    let tables = tables(connection, &watch.table).await?;
    let watch = columns::completed(connection, watch, &tables[0]).await?;
    let of_these = |found: &Watched| {
        found.watch.cache == watch.cache && tables.iter().any(|table| table.name == found.watch.table)
    };
    let known: Vec<Watched> =
        recorded(connection, &watch.schema).await?.into_iter().filter(of_these).collect();
    let alike =
        |found: &Watched| found.watch.key.trim() == watch.key.trim() && found.watch.columns == watch.columns;
    let other = |found: &&Watched| found.recorded && !alike(found) && has_triggers(found);
    if let Some(other) = known.iter().find(other).filter(|_| !replace) {
        return Err(LogError::Schema(format!(
            "key: {} is watched for cache {} by {}, and would be by {}. If that is meant, say so: `perto watch \
             --replace`, or `perto::postgres::rewatch`",
            other.watch.table,
            watch.cache,
            said(&other.watch),
            said(&watch)
        )));
    }
    let same = |found: &Watched| {
        found.recorded
            && found.watch.key == watch.key
            && found.watch.columns == watch.columns
            && found.watch.table == tables[0].name
            && found.faults.is_empty()
    };
    let done = known.len() == 1 && known.iter().all(same);
    Ok(State { watch, tables, done })
}

fn said(watch: &Watch) -> String {
    match &watch.columns[..] {
        [] => format!("the key {:?}", watch.key),
        columns => format!("the key {:?} and the columns {}", watch.key, columns.join(", ")),
    }
}

/// What is to be done. The last look at what is there: it is this one's turn.
async fn plan(
    connection: &mut PgConnection,
    watch: &Watch,
    replace: bool,
) -> Result<(Vec<Table>, Vec<Sql>), LogError> {
    let State { watch, tables, done } = state(connection, watch, replace).await?;
    let watch = &watch;
    if done {
        return Ok((tables, Vec::new()));
    }
    if let Some(other) = tables.iter().find(|table| !table.watchable) {
        return Err(LogError::Schema(format!(
            "table: {} is neither a table nor a partitioned one, and can't be watched: watch the tables that it reads",
            other.name
        )));
    }
    let texts = columns::texts(connection, watch, &tables[0]).await?;
    let name = function::name(connection, watch, texts).await?;
    key::judge(connection, watch, &tables[0], &name, texts).await?;
    // Since 14 a trigger is replaced without keeping readers waiting.
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::integer")
        .persistent(false)
        .fetch_one(&mut *connection)
        .await
        .map_err(refused)?;
    let function = function::create(watch, &name, texts);
    let plan = statements(watch, &tables, (&name, function), version < 140_000);
    Ok((tables, plan))
}

fn statements(
    watch: &Watch,
    tables: &[Table],
    (function, create): (&str, String),
    drop_first: bool,
) -> Vec<Sql> {
    let Watch { schema, cache, key, columns, .. } = watch;
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let quoted: Vec<String> = names.iter().map(|name| literal(name)).collect();
    let (cache, quoted) = (literal(cache), quoted.join(", "));
    let mut plan = vec![
        Sql::One(format!("lock table {} in share row exclusive mode", names.join(", "))),
        Sql::One(locks::PINNED_PATH.to_owned()),
        Sql::One(create),
        // Attached to a table of one's own, with types of one's own, it would run one's casts as its owner.
        Sql::One(format!("revoke all on function {function}() from public")),
    ];
    for table in tables {
        plan.extend(
            EVENTS.map(|event| Sql::Script(trigger_sql(watch, table, event, function, drop_first) + ";")),
        );
    }
    plan.extend([
        Sql::One(format!("insert into {schema}.invalidation (cache, keys) values ({cache}, null)")),
        // Also what is recorded of them under names that are nobody's any more. After a restore a number alone may be that
        // of another table, which goes by its name.
        Sql::One(format!(
            "delete from {schema}.watched where cache = {cache} and (name in ({quoted}) or \
             relid in (select unnest(array[{quoted}]::regclass[])) and to_regclass(name) is null)"
        )),
        Sql::One(format!(
            "insert into {schema}.watched (relid, name, cache, key, columns) \
             values ({0}::regclass, {0}, {cache}, {1}, {2})",
            literal(names[0]),
            literal(key),
            columns::array(columns),
        )),
        Sql::Script(function::drop_unused(schema) + ";"),
    ]);
    plan
}

/// Removes what [`watch`] installed, also of a table that has been dropped. From then on writes to the table are not seen before the
/// time to live.
///
/// Readers and writers are waited for as in [`watch`].
///
/// # Errors
/// As [`watch`].
pub async fn unwatch(connection: &mut PgConnection, watch: &Watch) -> Result<Vec<String>, LogError> {
    check_name(&watch.schema).map_err(LogError::Schema)?;
    let mut tx = connection.begin().await.map_err(refused)?;
    check_version(&mut tx, &watch.schema).await?;
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
    locks::declaring(&mut tx, &watch.schema).await?;
    let mut plan = vec![Sql::One(locks::PINNED_PATH.to_owned())];
    plan.extend(
        tables.iter().flat_map(|table| EVENTS.map(|event| Sql::One(drop_trigger(watch, table, event)))),
    );
    plan.push(Sql::One(function::drop_unused(&watch.schema)));
    locks::run(&mut tx, &plan).await?;
    forget(&mut tx, watch, &tables).await?;
    tx.commit().await.map_err(refused)?;
    Ok(tables.into_iter().map(|table| table.name).collect())
}

/// The table, its partitions and the tables that inherit from it: a statement that names one of these fires only its
/// triggers.
async fn tables(connection: &mut PgConnection, table: &str) -> Result<Vec<Table>, LogError> {
    let mut tx = connection.begin().await.map_err(refused)?;
    // The name is whoever asks's, and so is the path that it is looked up by. Nothing else is.
    let root: Option<i64> = sqlx::query_scalar("select pg_catalog.to_regclass($1)::pg_catalog.oid::bigint")
        .persistent(false)
        .bind(table)
        .fetch_one(&mut *tx)
        .await
        .map_err(refused)?;
    sqlx::raw_sql(locks::PINNED_PATH).execute(&mut *tx).await.map_err(refused)?;
    let rows: Vec<(i64, String, bool)> = sqlx::query_as(
        "with recursive tree(relid, level) as ( \
           select $1::bigint::oid, 0 union \
           select i.inhrelid, t.level + 1 from tree t join pg_inherits i on i.inhparent = t.relid) \
         select c.oid::bigint, format('%I.%I', n.nspname, c.relname), c.relkind in ('r', 'p') from tree t \
         join pg_class c on c.oid = t.relid join pg_namespace n on n.oid = c.relnamespace \
         group by c.oid, n.nspname, c.relname, c.relkind order by min(t.level), 2",
    )
    .persistent(false)
    .bind(root)
    .fetch_all(&mut *tx)
    .await
    .map_err(refused)?;
    // The path of a transaction around it is as it was.
    tx.rollback().await.map_err(refused)?;
    if rows.is_empty() {
        return Err(LogError::Schema(format!("table: there is no table {table:?} in this database")));
    }
    Ok(rows.into_iter().map(|(oid, name, watchable)| Table { name, oid, watchable }).collect())
}

/// What is recorded of these tables, also under names that are nobody's any more.
async fn forget(connection: &mut PgConnection, watch: &Watch, tables: &[Table]) -> Result<(), LogError> {
    let sql = format!(
        "delete from {}.watched where cache = $1 and (name = any($3) or \
         relid = any($2::bigint[]::oid[]) and pg_catalog.to_regclass(name) is null)",
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
