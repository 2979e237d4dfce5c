//! The tables that caches declare: whether each is there, is one, and has its triggers.
//!
//! A name without a schema is looked up by the search path of the log's connection, which need not be that of the loader.
//! So it counts only where no other table has that name.
//!
//! What a subscription writes fires no statement trigger: a table that one writes into is not watched, whatever its triggers.

use sqlx::postgres::PgRow;
use sqlx::{Connection as _, FromRow, PgConnection, Row as _};

use super::rights::watch_command;
use super::sql::option;
use super::trigger::{EVENTS, trigger_name};
use crate::error::Unwatched;
use crate::log::Source;

/// What is wrong with `tables`. Those that are watched are left out. `sources` have the keys, as far as they are declared.
pub(super) async fn unwatched(
    connection: &mut PgConnection,
    schema: &str,
    cache: &str,
    tables: &[String],
    sources: &[Source],
) -> Result<Vec<Unwatched>, sqlx::Error> {
    let found = match find(connection, schema, cache, tables).await {
        // One of the names is none, and Postgres does not say which.
        Err(error) if is_about_a_name(&error) => {
            let mut found = Vec::new();
            for table in tables {
                match find(connection, schema, cache, std::slice::from_ref(table)).await {
                    Err(error) if is_about_a_name(&error) => found.push(Declared::no_name(table)),
                    one => found.extend(one?),
                }
            }
            found
        }
        found => found?,
    };
    Ok(found.into_iter().filter_map(|declared| declared.judge(schema, cache, sources)).collect())
}

#[derive(Debug)]
struct Declared {
    name: String,
    /// What it stands for, with its schema.
    found: Option<String>,
    /// Whether it is something that statements change row by row.
    is_table: Option<bool>,
    search_path: String,
    /// All tables of that name, where it has no schema.
    namesakes: Vec<String>,
    /// Of it, its partitions and what inherits from it: those without all triggers.
    lacking: Vec<String>,
    /// Subscriptions that write into any of them.
    subscriptions: Vec<String>,
    /// Changes whenever triggers are made, altered or dropped.
    mark: String,
}

impl FromRow<'_, PgRow> for Declared {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            name: row.try_get("name")?,
            found: row.try_get("found")?,
            is_table: row.try_get("is_table")?,
            search_path: row.try_get("search_path")?,
            namesakes: row.try_get("namesakes")?,
            lacking: row.try_get("lacking")?,
            subscriptions: row.try_get("subscriptions")?,
            mark: row.try_get("mark")?,
        })
    }
}

async fn find(
    connection: &mut PgConnection,
    schema: &str,
    cache: &str,
    tables: &[String],
) -> Result<Vec<Declared>, sqlx::Error> {
    let names: Vec<String> = EVENTS.iter().map(|event| trigger_name(schema, cache, event)).collect();
    // On one server, whatever is in between: see the log.
    let mut tx = connection.begin().await?;
    let sql = format!(
        "with recursive declared as ( \
           select name, parse_ident(name) as parts, to_regclass(name)::oid as relid from unnest($1::text[]) name), \
         named as (select c.oid, c.relname, c.relkind, n.nspname, format('%I.%I', n.nspname, c.relname) as name \
           from pg_class c join pg_namespace n on n.oid = c.relnamespace), \
         tree as (select name as declared, relid from declared where relid is not null union \
           select t.declared, i.inhrelid from tree t join pg_inherits i on i.inhparent = t.relid), \
         fired as (select t.declared, t.relid, count(g.oid) filter (where g.tgenabled = 'A') as enabled, \
           coalesce(string_agg(concat_ws('.', g.oid, g.xmin, g.tgenabled), ',' order by g.oid), '') as mark \
           from tree t left join pg_trigger g on g.tgrelid = t.relid and g.tgname = any($2::text[]) group by 1, 2) \
         select d.name, c.name as found, c.relkind in ('r', 'p') as is_table, \
           current_setting('search_path') as search_path, \
           array(select s.name from named s where cardinality(d.parts) = 1 and s.relname = d.parts[1] \
             and s.relkind in ('r', 'p', 'v', 'm', 'f') and s.nspname !~ '^pg_' and s.nspname <> 'information_schema' \
             order by 1) as namesakes, \
           array(select l.name from fired f join named l on l.oid = f.relid \
             where f.declared = d.name and f.enabled < $3 order by 1) as lacking, \
           array(select distinct s.subname::text from fired f join pg_subscription_rel r on r.srrelid = f.relid \
             join pg_stat_subscription s on s.subid = r.srsubid where f.declared = d.name order by 1) as subscriptions, \
           concat_ws(' ', d.relid, \
             (select string_agg(f.relid || ':' || f.mark, ' ' order by f.relid) from fired f where f.declared = d.name), \
             (select w.xmin from {schema}.watched w where w.relid = d.relid and w.cache = $4)) as mark \
         from declared d left join named c on c.oid = d.relid order by 1"
    );
    let found = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .persistent(false)
        .bind(tables)
        .bind(&names)
        .bind(i64::try_from(EVENTS.len()).unwrap_or(i64::MAX))
        .bind(cache)
        .fetch_all(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(found)
}

/// `invalid_name`, `invalid_parameter_value`, `syntax_error`, and `feature_not_supported` for one of another database.
fn is_about_a_name(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("42602" | "22023" | "0A000" | "42601"))
}

impl Declared {
    fn no_name(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            found: None,
            is_table: None,
            search_path: String::new(),
            namesakes: Vec::new(),
            lacking: Vec::new(),
            subscriptions: Vec::new(),
            mark: String::new(),
        }
    }

    fn judge(self, schema: &str, cache: &str, sources: &[Source]) -> Option<Unwatched> {
        let problem = match (&self.found, &self.namesakes[..]) {
            (None, []) if self.search_path.is_empty() => {
                format!("{:?} is no name of a table in this database; like shop.users", self.name)
            }
            (None, []) => format!(
                "there is no table {} (the search path of the log's connection is {})",
                self.name, self.search_path
            ),
            (_, [_, _, ..]) => format!(
                "there are several tables of this name, and the loader may read another one than is looked at: \
                 declare one with its schema: {}",
                listed(&self.namesakes)
            ),
            (None, [other]) => format!(
                "there is no table {} on the search path of the log's connection ({}): declare it with its schema, {other}",
                self.name, self.search_path
            ),
            (Some(found), _) if self.is_table != Some(true) => {
                format!(
                    "{found} is no table, so it has no triggers: declare the tables that its rows come from"
                )
            }
            (Some(_), _) if self.lacking.is_empty() && self.subscriptions.is_empty() => return None,
            (Some(found), _) if self.lacking.is_empty() => format!(
                "what the subscription {} writes into {found} is not seen: it fires no statement trigger. Read the publisher, or drop \
                 the subscription once nobody writes there, and then `truncate {schema}.boot`",
                listed(&self.subscriptions)
            ),
            (Some(found), _) => {
                let lacking = listed(&self.lacking);
                match sources.iter().find(|source| source.table == self.name) {
                    Some(source) => format!(
                        "writes to {lacking} are not seen: run `{}`, or call `Perto::migrate`",
                        watch_command(schema, found, source)
                    ),
                    None => format!(
                        "writes to {lacking} are not seen: run `perto watch {found} --cache {cache} --key KEY{}`, where KEY is \
                         the key's text as an SQL expression over its columns",
                        option(schema)
                    ),
                }
            }
        };
        Some(Unwatched { table: self.name, problem, mark: self.mark })
    }
}

/// The first few of them.
fn listed(names: &[String]) -> String {
    const MOST: usize = 5;
    match names.len().checked_sub(MOST) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..MOST].join(", ")),
    }
}
