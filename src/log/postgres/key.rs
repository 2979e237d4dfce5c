//! What may be a key: an expression over the columns of one row, by Postgres' own judgement.
//!
//! A key that looks at anything else is another one when that changes, and no write to the watched table says so. So the
//! expression is made a view's, and what Postgres stored of it is looked at: which functions, subqueries, aggregates.
//! Then the very triggers are tried on an empty copy of the table. All of it is taken back.

use sqlx::{AssertSqlSafe, PgConnection};

use super::function::{self, Texts};
use super::locks::run_one;
use super::sql::{identifier, refused};
use super::trigger::{EVENTS, Table, Watch, trigger_sql};
use crate::error::LogError;

/// Functions of Postgres that are `stable` only because of settings that the trigger's function pins, or of the text forms
/// of their arguments. (`to_char` and `to_date` read `lc_time`, `now` the clock.)
const PINNED: [&str; 50] = [
    "anytextcat",
    "array_to_json",
    "array_to_string",
    "concat",
    "concat_ws",
    "convert_from",
    "convert_to",
    "date",
    "date_cmp_timestamptz",
    "date_eq_timestamptz",
    "date_ge_timestamptz",
    "date_gt_timestamptz",
    "date_le_timestamptz",
    "date_lt_timestamptz",
    "date_ne_timestamptz",
    "date_part",
    "date_trunc",
    "extract",
    "format",
    "json_build_array",
    "json_build_object",
    "jsonb_build_array",
    "jsonb_build_object",
    "interval_pl_timestamptz",
    "quote_literal",
    "quote_nullable",
    "row_to_json",
    "textanycat",
    "time",
    "timestamp",
    "timestamp_cmp_timestamptz",
    "timestamp_eq_timestamptz",
    "timestamp_ge_timestamptz",
    "timestamp_gt_timestamptz",
    "timestamp_le_timestamptz",
    "timestamp_lt_timestamptz",
    "timestamp_ne_timestamptz",
    "timestamptz",
    "timestamptz_eq_date",
    "timestamptz_ge_date",
    "timestamptz_gt_date",
    "timestamptz_le_date",
    "timestamptz_lt_date",
    "timestamptz_mi_interval",
    "timestamptz_ne_date",
    "timestamptz_pl_interval",
    "timetz",
    "timezone",
    "to_json",
    "to_jsonb",
];

/// Types whose text depends on what is not pinned: `lc_monetary`, and names in the catalogue.
const UNPINNED: [&str; 12] = [
    "money",
    "regclass",
    "regcollation",
    "regconfig",
    "regdictionary",
    "regnamespace",
    "regoper",
    "regoperator",
    "regproc",
    "regprocedure",
    "regrole",
    "regtype",
];

/// Said of whatever is refused.
const ALTERNATIVES: &str = "A key must be a function of one row of that table: its columns, and immutable functions of them. \
    Where it needs another table, watch that one for the same cache too, each by a key of its own; several keys of one row \
    come from a set-returning key, like unnest(member_ids); what no expression can say, invalidate in the transaction that \
    writes (`Cache::invalidate_in`)";

/// Fails where the key is not one expression over the columns of one row, or the function could not run it.
pub(super) async fn judge(
    connection: &mut PgConnection,
    watch: &Watch,
    table: &Table,
    name: &str,
    texts: Texts,
) -> Result<(), LogError> {
    // As in the function: what the expression names outside of pg_catalog must be written with its schema.
    let begin = "savepoint perto_key; set local search_path = pg_catalog, pg_temp";
    sqlx::raw_sql(begin).execute(&mut *connection).await.map_err(refused)?;
    let judged = match one_row(connection, watch, table).await {
        Ok(None) => dry_run(connection, watch, table, name, texts).await,
        other => other,
    };
    // First of all: a refusal leaves the transaction broken.
    let undo = "rollback to savepoint perto_key; release savepoint perto_key";
    sqlx::raw_sql(undo).execute(connection).await.map_err(refused)?;
    match judged.map_err(refused)? {
        None => Ok(()),
        Some(why) => Err(LogError::Schema(format!(
            "key: {:?} is no key of {}: {why}{}. {ALTERNATIVES}",
            watch.key,
            table.name,
            if has_no_schema(&why) { NAME_ITS_SCHEMA } else { "" }
        ))),
    }
}

type Refusal = Option<String>;

const NAME_ITS_SCHEMA: &str = ". In the trigger's function only pg_catalog is looked into: write the schema of what is elsewhere, like public.norm(slug)";

/// A function, type or operator that is not there, and was named without a schema.
fn has_no_schema(why: &str) -> bool {
    let named = match why.strip_suffix(" does not exist") {
        Some(what) => what.strip_prefix("function ").or_else(|| what.strip_prefix("type ")),
        None => why.strip_prefix("operator does not exist: "),
    };
    named.is_some_and(|named| !named.split('(').next().unwrap_or_default().contains('.'))
}

/// What Postgres says against SQL that the key is part of.
async fn said(connection: &mut PgConnection, sql: &str) -> Result<Refusal, sqlx::Error> {
    match run_one(connection, sql).await {
        Ok(()) => Ok(None),
        Err(error) => error
            .as_database_error()
            .map(|error| error.message().to_owned())
            .map_or(Err(error), |said| Ok(Some(said))),
    }
}

/// Nothing else of the table is there under that name in the trigger's function. Both ways it must be SQL: what closes a
/// bracket or begins a comment is at most one of the two.
///
/// What names a column is not run. (A client that selected a key would look up its type, in between.)
async fn one_row(
    connection: &mut PgConnection,
    watch: &Watch,
    table: &Table,
) -> Result<Refusal, sqlx::Error> {
    let Watch { schema, key, .. } = watch;
    let (bare, cast) = (format!("{schema}.perto_bare"), format!("{schema}.perto_cast"));
    run_one(connection, &format!("create unlogged table {bare} (k text)")).await?;
    // It takes one column, and needs no collation.
    let one =
        format!("prepare perto_bare as insert into {bare} select {key} from {} as \"a row\"", table.name);
    if let Some(said) = said(connection, &one).await? {
        return Ok(Some(said));
    }
    run_one(connection, "deallocate perto_bare").await?;
    let view = format!(
        "create view {cast} as select (({key})::text) collate \"C\" as k from {} as \"a row\"",
        table.name
    );
    if let Some(said) = said(connection, &view).await? {
        return Ok(Some(said));
    }
    let tree: String =
        sqlx::query_scalar("select ev_action::text from pg_rewrite where ev_class = to_regclass($1)")
            .persistent(false)
            .bind(&cast)
            .fetch_one(&mut *connection)
            .await?;
    for (mark, what) in [
        (":hasAggs true", "an aggregate is a function of all rows of a statement"),
        (":hasWindowFuncs true", "a window function looks at other rows of the statement"),
        (":hasSubLinks true", "a subquery reads what may change without a write to this table"),
        ("{SQLVALUEFUNCTION", "it depends on who writes, or when"),
        (":varattno -", "a system column is not what a reader knows a row by"),
    ] {
        if tree.contains(mark) {
            return Ok(Some(what.to_owned()));
        }
    }
    if reads_times(&tree) || names_a_moment(&watch.key) && numbers(&tree, &["consttype"]).iter().any(is_time)
    {
        return Ok(Some(
            "a text that is read as a date or time may be 'now' or 'today', which is another one later"
                .to_owned(),
        ));
    }
    let (functions, types) = (numbers(&tree, &["funcid", "opfuncid"]), numbers(&tree, &TYPES));
    let unsound: Refusal = sqlx::query_scalar(
        "select case when p.provolatile = 'v' then p.oid::regprocedure || ' is volatile: it may say another thing each time' \
           when n.nspname = 'pg_catalog' then p.oid::regprocedure || ' depends on who writes, when, or on settings' \
           else p.oid::regprocedure || ' is stable: it may read other rows, or settings. If it does not, declare it immutable' end \
         from pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.oid = any($1::bigint[]::oid[]) and \
           (p.provolatile = 'v' or p.provolatile = 's' and (n.nspname <> 'pg_catalog' or p.proname <> all($3))) \
         union all \
         select format('the text of %s depends on settings, or on names', t.oid::regtype) from pg_type t \
         where t.oid = any($2::bigint[]::oid[]) and coalesce(nullif(t.typbasetype, 0), nullif(t.typelem, 0), t.oid) in \
           (select oid from pg_type where typname = any($4) and typnamespace = 'pg_catalog'::regnamespace) limit 1",
    )
    .persistent(false)
    .bind(functions)
    .bind(types)
    .bind(PINNED.as_slice())
    .bind(UNPINNED.as_slice())
    .fetch_optional(&mut *connection)
    .await?;
    if unsound.is_some() || tree.contains("{VAR ") {
        return Ok(unsound);
    }
    // It says the same of each row.
    let never = format!("select not exists (select from (select ({key})::text as k) k where k is not null)");
    match sqlx::query_scalar(AssertSqlSafe(never)).persistent(false).fetch_one(connection).await {
        Ok(true) => {
            Ok(Some("it is null whatever the row is, so no write would invalidate anything".to_owned()))
        }
        Ok(false) => Ok(None),
        Err(error) => match error.as_database_error().map(|error| error.message().to_owned()) {
            Some(said) => Ok(Some(said)),
            None => Err(error),
        },
    }
}

/// Dates and times that a text can be read as, and arrays of them, by their numbers, which never change.
const TIMES: [i64; 10] = [1082, 1083, 1114, 1184, 1266, 1182, 1183, 1115, 1185, 1270];

fn is_time(of: &i64) -> bool {
    TIMES.contains(of)
}

/// Whether it has a literal that stands for a moment. The tree has it as the date that it was when it was read.
fn names_a_moment(key: &str) -> bool {
    let mut literals = key.split('\'').skip(1).step_by(2).map(|literal| literal.trim().to_lowercase());
    literals.any(|literal| {
        literal.split_whitespace().any(|word| ["now", "today", "tomorrow", "yesterday"].contains(&word))
    })
}

/// Whether the tree reads a text as a date or a time. Such a cast has no function to look at.
fn reads_times(tree: &str) -> bool {
    let (mut nodes, mut words) = (Vec::new(), tree.split_ascii_whitespace().peekable());
    while let Some(word) = words.next() {
        if let Some((_, name)) = word.split_once('{').filter(|(before, _)| !before.ends_with('\\')) {
            nodes.push(name);
        }
        let cast = matches!(nodes.last(), Some(&("COERCEVIAIO" | "ARRAYCOERCEEXPR")));
        let number = words.peek().and_then(|next| next.trim_end_matches(['}', ')']).parse().ok());
        if cast && word == ":resulttype" && number.as_ref().is_some_and(is_time) {
            return true;
        }
        let closed = word.matches('}').count().saturating_sub(word.matches("\\}").count());
        nodes.truncate(nodes.len().saturating_sub(closed));
    }
    false
}

/// Where the tree says of which type something is.
const TYPES: [&str; 5] = ["vartype", "consttype", "funcresulttype", "opresulttype", "resulttype"];

/// The numbers that follow these words in the text of a query tree. A name or a literal in it can't look like one of them:
/// blanks in names are escaped, and literals are numbers.
fn numbers(tree: &str, after: &[&str]) -> Vec<i64> {
    let mut words = tree.split_ascii_whitespace().peekable();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        if word.strip_prefix(':').is_some_and(|word| after.contains(&word))
            && let Some(number) = words.peek().and_then(|next| next.trim_end_matches(['}', ')']).parse().ok())
        {
            found.push(number);
        }
    }
    found
}

/// The triggers themselves, on a copy of the table without rows, and then with one that is all null.
///
/// What a key makes of an empty row is its own business; that the function can't be run at all is not.
async fn dry_run(
    connection: &mut PgConnection,
    watch: &Watch,
    table: &Table,
    name: &str,
    texts: Texts,
) -> Result<Refusal, sqlx::Error> {
    let copy = Table::made(format!("{}.perto_copy", watch.schema));
    run_one(
        connection,
        &format!("create unlogged table {} (like {} including generated)", copy.name, table.name),
    )
    .await?;
    if let Some(said) = said(connection, &function::create(watch, name, texts)).await? {
        return Ok(Some(said));
    }
    for event in EVENTS {
        sqlx::raw_sql(AssertSqlSafe(trigger_sql(watch, &copy, event, name, true)))
            .execute(&mut *connection)
            .await?;
    }
    let columns: Vec<(String, bool, bool)> = sqlx::query_as(
        "select attname::text, attgenerated <> '', attnotnull from pg_attribute \
         where attrelid = to_regclass($1) and attnum > 0 and not attisdropped",
    )
    .persistent(false)
    .bind(&copy.name)
    .fetch_all(&mut *connection)
    .await?;
    let mut empty = vec![
        format!("insert into {0} select from {0} where false", copy.name),
        format!("delete from {} where false", copy.name),
    ];
    if let Some((column, ..)) = columns.iter().find(|(_, generated, _)| !generated) {
        let column = identifier(column);
        empty.push(format!("update {} set {column} = {column} where false", copy.name));
    }
    for sql in empty {
        run_one(connection, &sql).await?;
        if let Some(fault) = fault(connection, watch).await? {
            return Ok(Some(fault));
        }
    }
    for (column, ..) in columns.iter().filter(|(_, _, not_null)| *not_null) {
        run_one(connection, &format!("alter table {} alter {} drop not null", copy.name, identifier(column)))
            .await?;
    }
    sqlx::raw_sql("savepoint perto_row").execute(&mut *connection).await?;
    // A domain may refuse a row of nulls.
    if said(connection, &format!("insert into {} default values", copy.name)).await?.is_some() {
        return Ok(None);
    }
    Ok(fault(connection, watch)
        .await?
        .filter(|fault| ["(42", "(0A", "(XX"].iter().any(|class| fault.contains(class))))
}

/// What this transaction has logged as a key that failed.
async fn fault(connection: &mut PgConnection, watch: &Watch) -> Result<Refusal, sqlx::Error> {
    let sql = format!(
        "select fault from {}.invalidation where xid = pg_current_xact_id() and cache = $1 and fault is not null limit 1",
        watch.schema
    );
    let fault: Option<String> = sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .bind(&watch.cache)
        .fetch_optional(connection)
        .await?;
    // After the name of the copy.
    Ok(fault.map(|fault| fault.split_once(": ").map_or(fault.as_str(), |(_, why)| why).to_owned()))
}
