//! What is watched, and what has happened to it since: for whoever looks after a database.
//!
//! Reads the catalogue only: no right on the tables themselves is needed, but one to read the log's record.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, FromRow, PgConnection, Row as _};

use super::function::{LOOKING, Texts, body, fixed_columns, settings};
use super::locks::run_one;
use super::schema;
use super::sql::{identifier, refused};
use super::trigger::{EVENTS, Watch};
use crate::error::LogError;

/// A table that is watched, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Watched {
    /// As it was watched. The same again mends every [`Fault`] but [`Fault::Gone`] and [`Fault::Key`].
    pub watch: Watch,
    /// Whether it is recorded. What was watched by the first version of the log isn't, and has no key here.
    pub recorded: bool,
    /// The table, its partitions and the tables that inherit from it, as they are now.
    pub tables: Vec<String>,
    /// What keeps writes from being seen, or is not as it should be. Nothing: all is well.
    pub faults: Vec<Fault>,
}

/// What is wrong with a watched table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// There is no table of that name or number any more.
    Gone,
    /// It has no triggers at all and is not the table that was watched: that one was dropped, or renamed.
    Replaced {
        /// The table that has its name now.
        table: String,
    },
    /// A partition or an inheriting table has no triggers at all: it came after the table was watched.
    Uncovered {
        /// The partition, or the inheriting table.
        table: String,
    },
    /// There is no trigger for a kind of statement.
    Missing {
        /// The table.
        table: String,
        /// `insert`, `update`, `delete` or `truncate`.
        event: &'static str,
    },
    /// A trigger is there and does not fire.
    Disabled {
        /// The table.
        table: String,
        /// `insert`, `update`, `delete` or `truncate`.
        event: &'static str,
    },
    /// A trigger does not fire in sessions that play a replica, or only there.
    NotAlways {
        /// The table.
        table: String,
        /// `insert`, `update`, `delete` or `truncate`.
        event: &'static str,
    },
    /// Its key can't be told any more: a column or a function of it is gone, or has another name. Writes go on, and each clears
    /// the whole cache. Another key mends it: [`rewatch`](crate::postgres::rewatch).
    Key {
        /// The table.
        table: String,
        /// What Postgres says of the key.
        error: String,
    },
    /// The function that the triggers run is not what was installed.
    Function {
        /// The table.
        table: String,
        /// The function, as SQL names it.
        function: String,
        /// What has changed.
        change: FunctionChange,
    },
}

/// How a trigger's function differs from what was installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FunctionChange {
    /// Its text is another: somebody altered it, or another version of Perto wrote it.
    Body,
    /// It doesn't run as its owner, or not under its own settings: what it does depends on who writes.
    Session,
    /// Anybody may attach it to a table of theirs, and with it run code as its owner.
    Public,
    /// Its owner may not write the log: every write to the table fails.
    Owner,
}

struct Found {
    cache: String,
    name: String,
    key: Option<String>,
    columns: Option<Vec<String>>,
    relid: Option<i64>,
    root: Option<i64>,
    /// The table that this row is of: the root, or one of those below it.
    table_oid: Option<i64>,
    table_name: Option<String>,
    event: String,
    enabled: Option<String>,
    function: Option<String>,
    source: Option<String>,
    definer: Option<bool>,
    settings: Option<Vec<String>>,
    public: Option<bool>,
    owner_writes: Option<bool>,
    /// The columns whose text no setting changes.
    fixed_columns: Vec<String>,
}

/// By hand: library users compile no macros of sqlx.
impl FromRow<'_, PgRow> for Found {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            cache: row.try_get("cache")?,
            name: row.try_get("name")?,
            key: row.try_get("key")?,
            columns: row.try_get("columns")?,
            relid: row.try_get("relid")?,
            root: row.try_get("root")?,
            table_oid: row.try_get("table_oid")?,
            table_name: row.try_get("table_name")?,
            event: row.try_get("event")?,
            enabled: row.try_get("enabled")?,
            function: row.try_get("function")?,
            source: row.try_get("source")?,
            definer: row.try_get("definer")?,
            settings: row.try_get("settings")?,
            public: row.try_get("public")?,
            owner_writes: row.try_get("owner_writes")?,
            fixed_columns: row.try_get("fixed_columns")?,
        })
    }
}

/// What is watched in `schema`'s log, and what is wrong with it.
///
/// Dropping the future gives it up.
///
/// # Errors
/// If Postgres refuses or can't be read, or has no such log, or one of another version.
pub async fn watched(connection: &mut PgConnection, schema: &str) -> Result<Vec<Watched>, LogError> {
    schema::check_version(connection, schema).await?;
    recorded(connection, schema).await
}

/// The same, of a log that is there and of this version.
pub(super) async fn recorded(connection: &mut PgConnection, schema: &str) -> Result<Vec<Watched>, LogError> {
    // On one server, whatever is in between: see the log.
    let mut tx = connection.begin().await.map_err(refused)?;
    sqlx::raw_sql(LOOKING).execute(&mut *tx).await.map_err(refused)?;
    let rows: Vec<Found> = sqlx::query_as(AssertSqlSafe(sql(schema)))
        .persistent(false)
        .bind(schema)
        .bind(EVENTS.as_slice())
        .fetch_all(&mut *tx)
        .await
        .map_err(|error| schema::explain(error, schema))?;
    let mut all: Vec<Watched> = Vec::new();
    for group in rows.chunk_by(|a, b| (&a.cache, &a.name) == (&b.cache, &b.name)) {
        let first = &group[0];
        let watch = Watch {
            schema: schema.to_owned(),
            table: first.name.clone(),
            cache: first.cache.clone(),
            key: first.key.clone().unwrap_or_default(),
            columns: first.columns.clone().unwrap_or_default(),
        };
        let tables = group.chunk_by(|a, b| a.table_oid == b.table_oid);
        let key = match (&first.table_name, &first.key) {
            (Some(table), Some(_)) => {
                let error = probe(&mut tx, &watch, table).await.map_err(refused)?;
                error.map(|error| Fault::Key { table: table.clone(), error })
            }
            _ => None,
        };
        let mut faults: Vec<Fault> = match first.root {
            None => vec![Fault::Gone],
            Some(_) => tables.clone().flat_map(|rows| faults(&watch, rows, key.is_some())).collect(),
        };
        faults.extend(key);
        let names = tables.filter_map(|rows| rows[0].table_name.clone()).collect();
        all.push(Watched { watch, recorded: first.key.is_some(), tables: names, faults });
    }
    // It has changed nothing, and the search path of a transaction around it is as it was.
    tx.rollback().await.map_err(refused)?;
    Ok(all)
}

/// What Postgres says against a key, where its text is read and nothing of it run: what is recorded may be anybody's SQL.
/// Nothing, where somebody has the table to himself for longer than a moment.
async fn probe(
    connection: &mut PgConnection,
    watch: &Watch,
    table: &str,
) -> Result<Option<String>, sqlx::Error> {
    let begin = "savepoint perto_probe; set local search_path = pg_catalog, pg_temp; set local lock_timeout = '100ms'";
    sqlx::raw_sql(begin).execute(&mut *connection).await?;
    let columns: Vec<String> = watch.columns.iter().map(|column| identifier(column)).collect();
    let prepare = format!(
        "prepare perto_probe as select (({})::text) collate \"C\", row({})::text from {table} as \"a row\"",
        watch.key,
        columns.join(", ")
    );
    let error = match run_one(connection, &prepare).await {
        Ok(()) => {
            run_one(connection, "deallocate perto_probe").await?;
            None
        }
        Err(sqlx::Error::Database(error)) => {
            // lock_not_available
            (error.code().as_deref() != Some("55P03")).then(|| error.message().to_owned())
        }
        Err(error) => return Err(error),
    };
    let undo = "rollback to savepoint perto_probe; release savepoint perto_probe";
    sqlx::raw_sql(undo).execute(connection).await?;
    Ok(error)
}

/// Whether writes to what was recorded fire any of its triggers.
pub(super) fn has_triggers(watched: &Watched) -> bool {
    !watched.faults.iter().any(|fault| matches!(fault, Fault::Gone | Fault::Replaced { .. }))
}

/// What is wrong with one table: a row for each kind of statement.
fn faults(watch: &Watch, rows: &[Found], key_fails: bool) -> Vec<Fault> {
    let first = &rows[0];
    let table = first.table_name.clone().unwrap_or_default();
    if first.key.is_some() && rows.iter().all(|row| row.enabled.is_none()) {
        if first.table_oid != first.root {
            return vec![Fault::Uncovered { table }];
        } else if first.table_oid != first.relid {
            return vec![Fault::Replaced { table }];
        }
    }
    let mut faults = Vec::new();
    for row in rows {
        let event = EVENTS.into_iter().find(|event| **event == *row.event).unwrap_or_default();
        let table = table.clone();
        match row.enabled.as_deref() {
            Some("A") => {}
            None => faults.push(Fault::Missing { table, event }),
            Some("D") => faults.push(Fault::Disabled { table, event }),
            Some(_) => faults.push(Fault::NotAlways { table, event }),
        }
    }
    // One function for all four, unless somebody gave a trigger another one.
    for row in rows {
        for change in changes(watch, row, key_fails) {
            let function = row.function.clone().unwrap_or_default();
            let fault = Fault::Function { table: table.clone(), function, change };
            if !faults.contains(&fault) {
                faults.push(fault);
            }
        }
    }
    faults
}

fn changes(watch: &Watch, row: &Found, key_fails: bool) -> Vec<FunctionChange> {
    let Some(source) = &row.source else { return Vec::new() };
    let plain = |text: &str| text.replace(['\'', ' '], "").to_lowercase();
    let set: Vec<String> = row.settings.iter().flatten().map(|setting| plain(setting)).collect();
    // Of a column that is gone nobody knows which type it had.
    let texts = match key_fails && *source == body(watch, Texts::Fixed) {
        true => Texts::Fixed,
        false => Texts::of(watch, &row.fixed_columns),
    };
    let pinned = settings(texts).iter().all(|(name, value)| set.contains(&plain(&format!("{name}={value}"))));
    let mut changes = Vec::new();
    if row.key.is_some() && *source != body(watch, texts) {
        changes.push(FunctionChange::Body);
    }
    if row.definer != Some(true) || !pinned {
        changes.push(FunctionChange::Session);
    }
    if row.public == Some(true) {
        changes.push(FunctionChange::Public);
    }
    if row.owner_writes == Some(false) {
        changes.push(FunctionChange::Owner);
    }
    changes
}

/// A row for each table and kind of statement. Of what is recorded twice, as on a subscriber, it is the row that is of a table
/// here. By name first: that is what loaders read. A dump that was restored
/// elsewhere has other numbers too. Triggers that are not recorded are those of the log's first version.
fn sql(schema: &str) -> String {
    format!(
        "with recursive named(oid, name) as ( \
           select c.oid, format('%I.%I', n.nspname, c.relname) from pg_class c \
           join pg_namespace n on n.oid = c.relnamespace where c.relkind in ('r', 'p', 'f')), \
         found as ( \
           select w.cache, w.name, w.key, w.columns, w.relid, w.since, \
             coalesce((select oid from named where name = w.name), (select oid from named where oid = w.relid)) as root \
           from {schema}.watched w), \
         recorded as ( \
           select distinct on (cache, name) cache, name, key, columns, relid, root from found \
           order by cache, name, relid = root desc nulls last, since desc), \
         tree as ( \
           select root, root as oid, 0 as level from recorded where root is not null union \
           select t.root, i.inhrelid, t.level + 1 from tree t join pg_inherits i on i.inhparent = t.oid), \
         covered as (select r.cache, t.oid from recorded r join tree t on t.root = r.root), \
         unrecorded as ( \
           select distinct split_part(g.tgname, ':', 2) as cache, g.tgrelid as oid from pg_trigger g \
           where split_part(g.tgname, ':', 1) = $1 and split_part(g.tgname, ':', 3) = any($2) \
             and (split_part(g.tgname, ':', 2), g.tgrelid) not in \
               (select cache, oid from covered union all select cache, relid from recorded) \
             and not exists (select from pg_inherits i join pg_trigger h on h.tgrelid = i.inhparent \
               where i.inhrelid = g.tgrelid and h.tgname = g.tgname)), \
         every as ( \
           select r.cache, r.name, r.key, r.columns, r.relid, r.root, t.oid, t.level from recorded r \
           left join tree t on t.root = r.root union all \
           select u.cache, n.name, null, null, u.oid, u.oid, u.oid, 0 from unrecorded u join named n on n.oid = u.oid) \
         select e.cache, e.name, e.key, e.columns, e.relid::bigint, e.root::bigint, e.oid::bigint as table_oid, \
           n.name as table_name, ev.event, g.tgenabled::text as enabled, p.oid::regprocedure::text as function, \
           p.prosrc as source, p.prosecdef as definer, p.proconfig as settings, \
           p.oid is not null and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a \
             where a.grantee = 0 and a.privilege_type = 'EXECUTE') as public, \
           has_table_privilege(p.proowner, '{schema}.invalidation', 'insert') as owner_writes, {fixed_columns} as fixed_columns \
         from every e cross join unnest($2::text[]) with ordinality ev(event, at) \
         left join named n on n.oid = e.oid \
         left join pg_trigger g on g.tgrelid = e.oid and g.tgname = format('%s:%s:%s', $1::text, e.cache, ev.event) \
         left join pg_proc p on p.oid = g.tgfoid \
         order by e.cache, e.name, e.level, n.name, ev.at",
        fixed_columns = fixed_columns("e.oid"),
    )
}
