//! The function that triggers run: what it says, what it runs under, and what it is called.
//!
//! With static SQL: a generic one would plan its statement anew at each call. One for each cache and key, shared by all
//! tables that are watched alike (`plpgsql` compiles it for each). Its name says what is in it and no table's number, so
//! that it fits after a dump and a restore too.
//!
//! Settings cost as much as the row that is written. So a function has none where all its texts are of types that no setting
//! changes. It looks at the types each time, for a column's type can be altered. Without a pinned search path everything in it
//! is named with its schema, down to types, operators and collations: it runs as its owner, and the path is the caller's. Only
//! what no path can change bears a bare name: the rows of the statement, variables, and what the grammar knows.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use super::super::MAX_KEYS_PER_ROW;
use super::sql::{identifier, literal, refused};
use super::trigger::Watch;
use crate::error::LogError;
use crate::wire::MAX_KEY_BYTES;

/// What the texts of a watched table's key and columns depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Texts {
    /// On no setting: the key is a column, and it and the columns that count have [`FIXED_TYPES`].
    Fixed,
    /// On settings, which the function has to pin.
    Pinned,
}

/// Types whose text no setting changes, those that most keys have first: each write looks for its own. (Not arrays and not domains of
/// them. More than eight would be hashed at each call.)
pub(super) const FIXED_TYPES: [&str; 8] =
    ["int8", "uuid", "text", "int4", "varchar", "int2", "numeric", "bool"];

impl Texts {
    /// Of what is watched so, where these columns of the table have fixed types: as [`fixed_columns`] names them.
    pub(super) fn of(watch: &Watch, fixed_columns: &[String]) -> Self {
        let fixed = |name: &str| fixed_columns.iter().any(|column| column == name);
        if fixed(watch.key.trim()) && watch.columns.iter().all(|column| fixed(&identifier(column))) {
            Self::Fixed
        } else {
            Self::Pinned
        }
    }
}

/// What [`fixed_columns`] runs under: words are quoted where they need it, and a plan that takes milliseconds is not compiled.
pub(super) const LOOKING: &str =
    "set local search_path = pg_catalog, pg_temp; set local quote_all_identifiers = off; set local jit = off";

/// SQL for the columns of a table that have fixed types, as a key can spell each: in quotes, and without where it needs none.
/// What is a word of the grammar (`user`, `null`) needs some.
pub(super) fn fixed_columns(table: &str) -> String {
    format!(
        "array(select unnest(array[quote_ident(a.attname), '\"' || replace(a.attname::text, '\"', '\"\"') || '\"']) \
           from pg_attribute a where a.attrelid = {table} and a.attnum > 0 and not a.attisdropped \
             and a.attgenerated::text <> 'v' and a.atttypid = any ({}))",
        fixed_types()
    )
}

fn fixed_types() -> String {
    let types: Vec<String> = FIXED_TYPES.iter().map(|name| format!("pg_catalog.{name}")).collect();
    format!("'{{{}}}'::pg_catalog.regtype[]", types.join(","))
}

/// What the function runs under where its texts are [`Texts::Pinned`]. Dates, times, bytes, floats and the key's own literals
/// have one text, whatever the session of the writer has set: else a key's text would depend on who writes.
pub(super) const SETTINGS: [(&str, &str); 11] = [
    ("search_path", "pg_catalog, pg_temp"),
    ("timezone", "'UTC'"),
    ("datestyle", "'ISO, YMD'"),
    ("intervalstyle", "'postgres'"),
    ("bytea_output", "'hex'"),
    ("extra_float_digits", "1"),
    // A backslash in the key's own text is one.
    ("standard_conforming_strings", "on"),
    // What Postgres calls immutable reads these: `quote_ident`, a text that is read as an array, `a = null`, and XML.
    ("quote_all_identifiers", "off"),
    ("array_nulls", "on"),
    ("transform_null_equals", "off"),
    ("xmlbinary", "base64"),
];

/// Messages without a row's data: of names and rights, of what is not supported, of bugs; and `division_by_zero`.
const HARMLESS: &str = "^(42|0A|XX|22012)";

/// Bytes that the columns of a row take where they are stored, if they are compared before all else.
const COMPARED_AT_ONCE: usize = 32 << 10;

/// A row's key, told apart by its bytes.
fn text(key: &str) -> String {
    format!("(({key})::pg_catalog.text) collate pg_catalog.\"C\"")
}

/// Whether the types in these rows are those that the function was made for. `of` is how a column is named.
fn as_watched(watch: &Watch, texts: Texts, of: impl Fn(&str) -> String) -> String {
    if texts == Texts::Pinned {
        return "true".to_owned();
    }
    let columns = watch.columns.iter().map(|column| of(&identifier(column)));
    let types = fixed_types();
    let is_fixed = |column| format!("pg_catalog.pg_typeof({column}) operator(pg_catalog.=) any ({types})");
    let all: Vec<String> = std::iter::once(of(watch.key.trim())).chain(columns).map(is_fixed).collect();
    all.join(" and ")
}

/// Whether a function has a variable of that name.
fn is_variable(column: &str) -> bool {
    let name = column.trim_matches('"');
    matches!(name, "found" | "new" | "old") || name.starts_with("perto_") || name.starts_with("tg_")
}

/// The function's text.
///
/// Whatever the key fails with, the write goes on: the whole cache is invalidated, and the row says why. What is caught
/// has written nothing, so it costs no transaction number. A key that is longer than any that is ever cached is treated
/// alike. Columns win over variables of their names, and old and new spelling are told apart by their bytes.
pub(super) fn body(watch: &Watch, texts: Texts) -> String {
    let Watch { schema, cache, key, table: _, columns } = watch;
    let collect = |rows: &str| {
        format!(
            "select pg_catalog.array_agg(k), pg_catalog.max(pg_catalog.octet_length(k)), pg_catalog.bool_and(as_watched)
               into perto_keys, perto_bytes, perto_as_watched
             from (select distinct k, as_watched from ({rows}) r where k is not null or not as_watched limit {}) d;",
            MAX_KEYS_PER_ROW + 1
        )
    };
    // With its rows where a column that is gone would be taken for a variable: elsewhere what Postgres says of it is for people.
    let of = |rows: &str, column: &str| match texts == Texts::Fixed && is_variable(column) {
        true => format!("{rows}.{column}"),
        false => column.to_owned(),
    };
    let as_watched = |rows: &str| as_watched(watch, texts, |column| of(rows, column));
    // Where settings are pinned any type will do, and a key may be several, which no `case` takes.
    let key = |rows: &str| match texts {
        Texts::Fixed => format!("case when {} then {} end", as_watched(rows), text(&of(rows, key.trim()))),
        Texts::Pinned => text(key),
    };
    let side =
        |rows: &str| format!("select {} as k, {} as as_watched from {rows}", key(rows), as_watched(rows));
    let changed = if columns.is_empty() {
        format!("{} union all {}", side("old_rows"), side("new_rows"))
    } else {
        // Their order in the row's text is that of `columns`.
        let row = |rows: &str| {
            let columns: Vec<String> = columns.iter().map(|column| of(rows, &identifier(column))).collect();
            text(&format!("row({})", columns.join(", ")))
        };
        let side = |rows: &str, sign: i32| {
            format!("select {}, {}, {}, {sign} from {rows}", key(rows), as_watched(rows), row(rows))
        };
        changed(&side("old_rows", -1), &side("new_rows", 1))
    };
    let one_row = if texts == Texts::Fixed { one_row(watch) } else { String::new() };
    format!(
        "\n#variable_conflict use_column
         declare perto_keys pg_catalog.text[]; perto_bytes pg_catalog.int4; perto_as_watched pg_catalog.bool;
           perto_fault pg_catalog.text; perto_row pg_catalog.text; perto_rows pg_catalog.text[];
         begin {one_row}
           if tg_op operator(pg_catalog.=) 'TRUNCATE' then
             insert into {schema}.invalidation (cache, keys) values ({cache}, null); return null;
           end if;
           begin
             if tg_op operator(pg_catalog.=) 'INSERT' then {}
             elsif tg_op operator(pg_catalog.=) 'DELETE' then {} else {} end if;
             if not perto_as_watched then
               raise datatype_mismatch using message = 'a column has another type than when this was watched: watch it again';
             end if;
             if perto_bytes operator(pg_catalog.>) {MAX_KEY_BYTES} then
               perto_fault := pg_catalog.format('%I.%I: a key of %s bytes, and at most {MAX_KEY_BYTES} are possible',
                 tg_table_schema, tg_table_name, perto_bytes);
             end if;
           exception when others or assert_failure then
             perto_fault := pg_catalog.format('%I.%I: %s (%s)', tg_table_schema, tg_table_name,
               case when sqlstate operator(pg_catalog.~) '{HARMLESS}' then pg_catalog.left(sqlerrm, 300)
                 else 'its key failed' end, sqlstate);
           end;
           if perto_fault is not null then
             insert into {schema}.invalidation (cache, keys, fault) values ({cache}, null, perto_fault);
           elsif pg_catalog.cardinality(perto_keys) operator(pg_catalog.>) {MAX_KEYS_PER_ROW} then
             insert into {schema}.invalidation (cache, keys) values ({cache}, null);
           elsif pg_catalog.cardinality(perto_keys) operator(pg_catalog.>) 0 then
             insert into {schema}.invalidation (cache, keys) values ({cache}, perto_keys);
           end if;
           return null;
         end ",
        collect(&side("new_rows")),
        collect(&side("old_rows")),
        collect(&changed),
        cache = literal(cache),
    )
}

/// What is tried first: to log a statement of one row by statements that can't fail, and so need no block around them. Where they do not
/// know, all else follows.
///
/// They know nothing of no row or of several, of an update that moves a row to another key, of a key that is null or too long, and of
/// a column whose type is another now. Nor where the column is gone: its name is then found in `missing`, which has null of an unwatched
/// type for it, where it would be an error else. (A variable of that name would not do: where a plan is made anew, Postgres finds no
/// value for one that the first plan had no use for.) No part of their plans can be switched off by a setting, as joins and sorts can, which
/// would make them worth compiling.
fn one_row(watch: &Watch) -> String {
    let Watch { schema, cache, key, columns, .. } = watch;
    let as_watched = &as_watched(watch, Texts::Fixed, str::to_owned);
    let (key, cache, text) = (key.trim(), literal(cache), text(key));
    let quoted = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
    let column = quoted.map_or_else(|| key.to_owned(), |column| column.replace("\"\"", "\""));
    let names: BTreeSet<String> =
        std::iter::once(&column).chain(columns).map(|name| identifier(name)).collect();
    let nulls: Vec<String> = names.iter().map(|name| format!("null::pg_catalog.oid as {name}")).collect();
    let missing = format!("(select {}) as missing", nulls.join(", "));
    // What is found is called as no column is: where one is gone, both would be meant.
    let mut found = "\"perto_found\"".to_owned();
    while names.contains(&found) {
        found.insert(1, '_');
    }
    let found = &*found;
    let log = format!("insert into {schema}.invalidation (cache, keys) select {cache}");
    let done = "if found then return null; end if;";
    // Of more than two it need not know.
    let keys = |rows: &str| format!("(select {text} as {found} from {rows} where {as_watched} limit 2) as n");
    let fits = format!("pg_catalog.octet_length(n.{found}) operator(pg_catalog.<=) {MAX_KEY_BYTES}");
    // Cut: a list of what is longer may be more than there can be. So cut it is no key.
    let cut = format!("pg_catalog.\"left\"({text}, {})", MAX_KEY_BYTES + 1);
    // There may be fewer new rows than old ones: of those that move to another partition a trigger there may keep some out. Never more.
    let update = format!(
        "
             {log}, array[n.{found}] from {missing}, lateral {}
             where {fits} and array[n.{found}] operator(pg_catalog.=) array(select {cut} from old_rows limit 2);
             {done}",
        keys("new_rows")
    );
    let update =
        if columns.is_empty() { update } else { if_changed(&names, as_watched, &missing, found, &update) };
    // Kept from being merged with what is around it, which would look into the rows once for each mention.
    let [insert, delete] = ["new_rows", "old_rows"].map(|rows| {
        format!(
            "
             {log}, one.{found} from (
               select array(select case when {fits} then n.{found} end from {}) as {found} from {missing} offset 0) as one
             where pg_catalog.cardinality(one.{found}) operator(pg_catalog.=) 1 and one.{found}[1] is not null;
             {done}",
            keys(rows)
        )
    });
    format!(
        "
           if tg_op operator(pg_catalog.=) 'UPDATE' then {update}
           elsif tg_op operator(pg_catalog.=) 'INSERT' then {insert}
           elsif tg_op operator(pg_catalog.=) 'DELETE' then {delete}
           end if;"
    )
}

/// Ends the function where the one row of an update has the same text in these columns as before: its key, and those that count. Where it
/// has another, `log` follows.
///
/// Only of columns that are stored in a few pages: all of them in one text may be more than there can be, and would fail the write. What
/// is compressed is at most some two hundred times as long, and a number of a few bytes has a hundred thousand digits: with as many columns as
/// there can be that is less.
fn if_changed(columns: &BTreeSet<String>, as_watched: &str, missing: &str, found: &str, log: &str) -> String {
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    // Each its part: a sum may be more than 32 bits can say.
    let most = COMPARED_AT_ONCE / columns.len().max(1);
    let is_short = |name: &&str| {
        format!("coalesce(pg_catalog.pg_column_size({name}), 0) operator(pg_catalog.<=) {most}")
    };
    let are_short: Vec<String> = columns.iter().map(is_short).collect();
    let row = text(&format!("row({})", columns.join(", ")));
    let row = format!("case when {} then {row} end", are_short.join(" and "));
    format!(
        "
             select n.{found}, array(select {row} from old_rows limit 2) into perto_row, perto_rows
             from {missing}, lateral (select {row} as {found} from new_rows where {as_watched} limit 1) as n;
             if perto_row is not null and perto_rows[1] is not null then
               if array[perto_row] operator(pg_catalog.=) perto_rows then return null; end if; {log}
             end if;"
    )
}

/// The keys of rows that an update has changed in these columns. What a row was and what it is cancel each other out where
/// they are alike.
///
/// Compared by the text of a row of them, which is what the types' own output functions say. Some types have no equality
/// (`json`), some call alike what readers can tell apart (`1.0` and `1.00`, a collation that passes over case), and a cast to
/// text may lose something (blanks of `bpchar`, or whatever somebody has written a cast to). Where a type is another than when
/// it was watched, a text may lose something too.
fn changed(old: &str, new: &str) -> String {
    format!(
        "select k, as_watched from ({old} union all {new}) as s(k, as_watched, row_text, sign) group by k, as_watched, row_text
         having pg_catalog.sum(sign) operator(pg_catalog.<>) 0 or not as_watched"
    )
}

/// Its name, with its schema: by the cache, by what it does, and by who watches, for nobody else may attach it.
pub(super) async fn name(
    connection: &mut PgConnection,
    watch: &Watch,
    texts: Texts,
) -> Result<String, LogError> {
    let sql = "select left(encode(sha256(convert_to(current_user::text || $1, 'UTF8')), 'hex'), 16)";
    let hash: String = sqlx::query_scalar(sql)
        .persistent(false)
        .bind(format!("{:?}{}", settings(texts), body(watch, texts)))
        .fetch_one(connection)
        .await
        .map_err(refused)?;
    Ok(format!("{}.{}", watch.schema, identifier(&format!("{}:{hash}", watch.cache))))
}

/// `security definer`: whoever may write the table needs no right on the log.
pub(super) fn create(watch: &Watch, name: &str, texts: Texts) -> String {
    let settings: String =
        settings(texts).iter().map(|(name, value)| format!("set {name} = {value} ")).collect();
    format!(
        "create or replace function {name}() returns trigger language plpgsql security definer {settings}as {}",
        literal(&body(watch, texts))
    )
}

/// What a function runs under.
pub(super) fn settings(texts: Texts) -> &'static [(&'static str, &'static str)] {
    match texts {
        Texts::Fixed => &[],
        Texts::Pinned => &SETTINGS,
    }
}

/// Drops the functions that no trigger runs, of ours and of whoever asks.
pub(super) fn drop_unused(schema: &str) -> String {
    format!(
        "do $$ declare unused regprocedure; begin \
           for unused in select p.oid from pg_proc p where p.pronamespace = '{schema}'::regnamespace \
             and p.prorettype = 'trigger'::regtype and p.proname ~ '^[^:]+:[0-9a-f]+$' \
             and not exists (select from pg_trigger t where t.tgfoid = p.oid) and pg_has_role(p.proowner, 'usage') \
           loop execute format('drop function %s', unused); end loop; end $$"
    )
}
