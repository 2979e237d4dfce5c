//! Whether a row bears a key, by the expressions that its tables are watched by.
//!
//! What is recorded may be anybody's SQL. So an expression is run only where the table's own triggers run it at each write:
//! then whoever wrote it may make triggers there. It is run in a transaction that only reads, under a short limit, and
//! with the settings of the triggers' function.

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection as _, FromRow, PgConnection, Row as _};

use super::function::{SETTINGS, Texts, body};
use super::sql::literal;
use super::trigger::{Watch, trigger_name};
use crate::coherence::spelling::folded;
use crate::log::Borne;
use crate::wire::MAX_KEY_BYTES;

/// Of one statement. A table without an index that helps is read to its end only where it is small.
const LIMIT: &str = "200ms";
/// Rows whose keys are told where none bears the one that was asked for.
const OTHERS: usize = 4;
/// Rows that are alike to the database, or but for their case. More would be no key.
const ALIKE: usize = 8;

struct Found {
    name: Option<String>,
    key: String,
    columns: Vec<String>,
    source: Option<String>,
}

impl FromRow<'_, PgRow> for Found {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            name: row.try_get("name")?,
            key: row.try_get("key")?,
            columns: row.try_get("columns")?,
            source: row.try_get("source")?,
        })
    }
}

pub(super) async fn borne(
    connection: &mut PgConnection,
    schema: &str,
    cache: &str,
    key: &str,
) -> Result<Borne, sqlx::Error> {
    // On one server, whatever is in between: see the log.
    let mut tx = connection.begin().await?;
    let settings: String =
        SETTINGS.iter().map(|(name, value)| format!("; set local {name} = {value}")).collect();
    let begin = format!(
        "set transaction read only; set local statement_timeout = '{LIMIT}'; set local lock_timeout = '{LIMIT}'; \
         set local jit = off; set local max_parallel_workers_per_gather = 0{settings}"
    );
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *tx).await?;
    let sql = format!(
        "select format('%I.%I', n.nspname, c.relname) as name, w.key, coalesce(w.columns, '{{}}') as columns, p.prosrc as source \
         from {schema}.watched w left join pg_class c on c.oid = to_regclass(w.name) \
         left join pg_namespace n on n.oid = c.relnamespace \
         left join pg_trigger g on g.tgrelid = c.oid and g.tgname = $2 and g.tgenabled = 'A' \
         left join pg_proc p on p.oid = g.tgfoid where w.cache = $1 order by w.name"
    );
    let watched: Vec<Found> = sqlx::query_as(AssertSqlSafe(sql))
        .persistent(false)
        .bind(cache)
        .bind(trigger_name(schema, cache, "insert"))
        .fetch_all(&mut *tx)
        .await?;
    let (mut no, mut known) = (None, true);
    for found in watched {
        match of_table(&mut tx, schema, cache, found, key).await? {
            Rows::Bear => {
                tx.rollback().await?;
                return Ok(Borne::Yes);
            }
            // Another one may bear it all the same.
            Rows::Unknown => known = false,
            Rows::Others { others, table, by } => match &mut no {
                Some(Borne::No { others: all, .. }) => all.extend(others),
                _ if others.is_empty() => {}
                _ => no = Some(Borne::No { others, table, by }),
            },
        }
    }
    tx.rollback().await?;
    Ok(no.filter(|_| known).unwrap_or(Borne::Unknown))
}

enum Rows {
    Bear,
    /// The keys of some of them, if there are any.
    Others {
        others: Vec<String>,
        table: String,
        by: String,
    },
    /// It would take too long, or is refused, or what is recorded is not what the triggers do.
    Unknown,
}

async fn of_table(
    connection: &mut PgConnection,
    schema: &str,
    cache: &str,
    found: Found,
    key: &str,
) -> Result<Rows, sqlx::Error> {
    let Found { name: Some(table), key: by, columns, source: Some(source) } = found else {
        return Ok(Rows::Unknown);
    };
    let watch = Watch { schema: schema.to_owned(), table, cache: cache.to_owned(), key: by, columns };
    // Under the settings that pin texts, which texts that need none do not mind.
    if [Texts::Fixed, Texts::Pinned].into_iter().all(|texts| source != body(&watch, texts)) {
        return Ok(Rows::Unknown);
    }
    let Watch { table, key: by, .. } = watch;
    let asked = literal(key);
    let bears = |texts: &[String]| texts.iter().any(|text| folded(text) == folded(key));
    // As a value of the expression's own type: an index helps with that. It may be no such value, nor a type with equality.
    let indexed = format!(
        "select (k::text) collate \"C\" from (select ({by}) as k from {table} as \"a row\") r where k = {asked} limit {ALIKE}"
    );
    match texts(connection, &indexed).await? {
        Answer::Texts(texts) if bears(&texts) => return Ok(Rows::Bear),
        Answer::Late => return Ok(Rows::Unknown),
        _ => {}
    }
    let rows = format!("(select (({by})::text) collate \"C\" as k from {table} as \"a row\") r");
    let alike = format!(
        "select k from {rows} where lower(btrim(k) collate \"default\") = lower(btrim({asked}) collate \"default\") limit {ALIKE}"
    );
    match texts(connection, &alike).await? {
        Answer::Texts(texts) if bears(&texts) => return Ok(Rows::Bear),
        Answer::Texts(_) => {}
        Answer::Late | Answer::Refused => return Ok(Rows::Unknown),
    }
    let others =
        format!("select k from {rows} where octet_length(k) between 1 and {MAX_KEY_BYTES} limit {OTHERS}");
    Ok(match texts(connection, &others).await? {
        Answer::Texts(others) => Rows::Others { others, table, by },
        Answer::Late | Answer::Refused => Rows::Unknown,
    })
}

enum Answer {
    Texts(Vec<String>),
    Late,
    Refused,
}

async fn texts(connection: &mut PgConnection, sql: &str) -> Result<Answer, sqlx::Error> {
    let mut tx = connection.begin().await?;
    let asking = sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *tx).await;
    tx.rollback().await?;
    match asking {
        Ok(texts) => Ok(Answer::Texts(texts)),
        Err(sqlx::Error::Database(error)) => match error.code().as_deref() {
            // query_canceled, lock_not_available
            Some("57014" | "55P03") => Ok(Answer::Late),
            _ => Ok(Answer::Refused),
        },
        Err(error) => Err(error),
    }
}
