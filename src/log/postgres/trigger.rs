//! What is watched, and the SQL of the triggers that do it.

use super::sql::identifier;

/// What to watch.
///
/// Of a cache over several tables watch each, by the key that *its* rows stand for: for the orders of a user,
/// `orders` by `user_id`; for lines of an order, `order_items` by `order_id`. Where a row moves from one key
/// to another, both are invalidated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// The schema that holds the log.
    pub schema: String,
    /// The table, with its schema where that is not on the search path.
    pub table: String,
    /// The cache whose keys the statements invalidate.
    pub cache: String,
    /// A key's text as an SQL expression over the columns of one row: `id`, or `company_id || ':' || phone`.
    /// A set-returning one gives several keys, or none: `unnest(member_ids)`,
    /// `jsonb_array_elements_text(tags)`. Functions must be immutable, or depend on nothing but the formats
    /// of dates, times, bytes and floats, which are pinned; those outside of `pg_catalog` are written with
    /// their schema. Null is no key.
    ///
    /// From then on it runs as whoever watches: take it from nobody else.
    pub key: String,
    /// Updates that change none of these columns, nor the key, nor the primary key, invalidate nothing. Empty: every update of a
    /// row does. The columns of the primary key are added by themselves.
    ///
    /// Name each column that a value is made of: of one that is missing here, changes are not seen before the time to live.
    /// Inserts and deletes always invalidate.
    pub columns: Vec<String>,
}

pub(super) const EVENTS: [&str; 4] = ["insert", "update", "delete", "truncate"];

pub(super) struct Table {
    pub(super) name: String,
    pub(super) oid: i64,
    pub(super) watchable: bool,
}

impl Table {
    /// One that was just made.
    pub(super) const fn made(name: String) -> Self {
        Self { name, oid: 0, watchable: true }
    }
}

pub(super) fn drop_trigger(watch: &Watch, table: &Table, event: &str) -> String {
    let trigger = identifier(&trigger_name(&watch.schema, &watch.cache, event));
    format!("drop trigger if exists {trigger} on {}", table.name)
}

/// Two statements: a trigger made, or made to run this function; and fired always, also where a session plays
/// a replica.
pub(super) fn trigger_sql(
    watch: &Watch,
    table: &Table,
    event: &str,
    function: &str,
    drop_first: bool,
) -> String {
    let trigger = identifier(&trigger_name(&watch.schema, &watch.cache, event));
    let transition = match event {
        "insert" => "referencing new table as new_rows ",
        "update" => "referencing old table as old_rows new table as new_rows ",
        "delete" => "referencing old table as old_rows ",
        _ => "",
    };
    let create = if drop_first {
        format!("{}; create trigger", drop_trigger(watch, table, event))
    } else {
        "create or replace trigger".to_owned()
    };
    format!(
        "{create} {trigger} after {event} on {name} {transition}for each statement execute function {function}(); \
         alter table {name} enable always trigger {trigger}",
        name = table.name,
    )
}

pub(super) fn trigger_name(schema: &str, cache: &str, event: &str) -> String {
    format!("{schema}:{cache}:{event}")
}
