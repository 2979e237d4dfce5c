//! The function that triggers run: what it says, what it runs under, and what it is called.
//!
//! With static SQL: a generic one would plan its statement anew at each call. One for each cache and key, shared by all
//! tables that are watched alike (`plpgsql` compiles it for each). Its name says what is in it and no table's number, so
//! that it fits after a dump and a restore too.

use sqlx::PgConnection;

use super::super::MAX_KEYS_PER_ROW;
use super::sql::{identifier, literal, refused};
use super::trigger::Watch;
use crate::error::LogError;
use crate::wire::MAX_KEY_BYTES;

/// What the function runs under. Dates, times, bytes, floats and the key's own literals have one text, whatever the session
/// of the writer has set: else a key's text would depend on who writes.
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

/// The function's text.
///
/// Whatever the key fails with, the write goes on: the whole cache is invalidated, and the row says why. What is caught
/// has written nothing, so it costs no transaction number. A key that is longer than any that is ever cached is treated
/// alike. Columns win over variables of their names, and old and new spelling are told apart by their bytes.
pub(super) fn body(watch: &Watch) -> String {
    let Watch { schema, cache, key, table: _, columns } = watch;
    let collect = |rows: &str| {
        format!(
            "select array_agg(k), max(octet_length(k)) into perto_keys, perto_bytes \
             from (select distinct k from ({rows}) r where k is not null limit {}) d;",
            MAX_KEYS_PER_ROW + 1
        )
    };
    let of = |rows: &str| format!("select (({key})::text) collate \"C\" as k from {rows}");
    let changed = if columns.is_empty() {
        format!("{} union all {}", of("old_rows"), of("new_rows"))
    } else {
        changed(key, columns)
    };
    format!(
        "\n#variable_conflict use_column\n\
         declare perto_keys text[]; perto_bytes integer; perto_fault text; \
         begin \
           if tg_op = 'TRUNCATE' then \
             insert into {schema}.invalidation (cache, keys) values ({cache}, null); return null; \
           end if; \
           begin \
             if tg_op = 'INSERT' then {} elsif tg_op = 'DELETE' then {} else {} end if; \
             if perto_bytes > {MAX_KEY_BYTES} then \
               perto_fault := format('%I.%I: a key of %s bytes, and at most {MAX_KEY_BYTES} are possible', \
                 tg_table_schema, tg_table_name, perto_bytes); \
             end if; \
           exception when others or assert_failure then \
             perto_fault := format('%I.%I: %s (%s)', tg_table_schema, tg_table_name, \
               case when sqlstate ~ '{HARMLESS}' then left(sqlerrm, 300) else 'its key failed' end, sqlstate); \
           end; \
           if perto_fault is not null then \
             insert into {schema}.invalidation (cache, keys, fault) values ({cache}, null, perto_fault); \
           elsif cardinality(perto_keys) > {MAX_KEYS_PER_ROW} then \
             insert into {schema}.invalidation (cache, keys) values ({cache}, null); \
           elsif cardinality(perto_keys) > 0 then \
             insert into {schema}.invalidation (cache, keys) values ({cache}, perto_keys); \
           end if; \
           return null; \
         end ",
        collect(&of("new_rows")),
        collect(&of("old_rows")),
        collect(&changed),
        cache = literal(cache),
    )
}

/// The keys of rows that an update has changed in these columns. What a row was and what it is cancel each other out where
/// they are alike.
///
/// Compared by the text of a row of them, which is what the types' own output functions say. Some types have no equality
/// (`json`), some call alike what readers can tell apart (`1.0` and `1.00`, a collation that passes over case), and a cast to
/// text may lose something (blanks of `bpchar`, or whatever somebody has written a cast to).
fn changed(key: &str, columns: &[String]) -> String {
    let names: Vec<String> = columns.iter().map(|column| identifier(column)).collect();
    let row = format!("(row({})::text) collate \"C\"", names.join(", "));
    let side =
        |rows: &str, sign: i32| format!("select (({key})::text) collate \"C\", {row}, {sign} from {rows}");
    format!(
        "select k from ({} union all {}) as s(k, row_text, sign) group by k, row_text having sum(sign) <> 0",
        side("old_rows", -1),
        side("new_rows", 1),
    )
}

/// Its name, with its schema: by the cache, by what it does, and by who watches, for nobody else may attach it.
pub(super) async fn name(connection: &mut PgConnection, watch: &Watch) -> Result<String, LogError> {
    let sql = "select left(encode(sha256(convert_to(current_user::text || $1, 'UTF8')), 'hex'), 16)";
    let hash: String = sqlx::query_scalar(sql)
        .persistent(false)
        .bind(format!("{SETTINGS:?}{}", body(watch)))
        .fetch_one(connection)
        .await
        .map_err(refused)?;
    Ok(format!("{}.{}", watch.schema, identifier(&format!("{}:{hash}", watch.cache))))
}

/// `security definer` with a pinned search path: whoever may write the table needs no right on the log.
pub(super) fn create(watch: &Watch, name: &str) -> String {
    let settings: String = SETTINGS.iter().map(|(name, value)| format!("set {name} = {value} ")).collect();
    format!(
        "create or replace function {name}() returns trigger language plpgsql security definer {settings}as {}",
        literal(&body(watch))
    )
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
