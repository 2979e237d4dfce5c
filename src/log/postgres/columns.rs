//! The columns that a table is watched for.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::function::{LOOKING, Texts, fixed_columns};
use super::sql::{literal, refused};
use super::trigger::{Table, Watch};
use crate::error::LogError;

/// As SQL: null where every update counts.
pub(super) fn array(columns: &[String]) -> String {
    let quoted: Vec<String> = columns.iter().map(|column| literal(column)).collect();
    if quoted.is_empty() { "null".to_owned() } else { format!("array[{}]", quoted.join(", ")) }
}

/// What is watched for these columns: them and those of the primary key, in the table's order.
///
/// The primary key tells rows apart. Without it two rows that change places between keys, or within the list that a key
/// stands for, would look as before: `rows_that_change_places_between_keys_or_within_one_invalidate_without_being_named`.
///
/// # Errors
/// [`LogError::Schema`] where one of them is no column of the table, or is there twice, or is not stored.
pub(super) async fn completed(
    connection: &mut PgConnection,
    watch: &Watch,
    table: &Table,
) -> Result<Watch, LogError> {
    if watch.columns.is_empty() {
        return Ok(watch.clone());
    }
    // A virtual column, since 18, is not in what a trigger sees.
    let known: Vec<(String, bool, bool)> = sqlx::query_as(
        "select a.attname::text, a.attgenerated::text = 'v', \
           exists (select from pg_catalog.pg_index i where i.indrelid = a.attrelid and i.indisprimary and a.attnum = any(i.indkey)) \
         from pg_catalog.pg_attribute a where a.attrelid = $1::bigint::oid and a.attnum > 0 and not a.attisdropped \
         order by a.attnum",
    )
    .persistent(false)
    .bind(table.oid)
    .fetch_all(connection)
    .await
    .map_err(refused)?;
    for (at, column) in watch.columns.iter().enumerate() {
        let problem = match known.iter().find(|(name, ..)| name == column) {
            _ if watch.columns[..at].contains(column) => "is named twice".to_owned(),
            Some((_, false, _)) => continue,
            Some((_, true, _)) => {
                "is computed when it is read: name those that it is computed from".to_owned()
            }
            None => {
                let names: Vec<&str> = known.iter().map(|(name, ..)| name.as_str()).collect();
                format!("is no column of {}: it has {}", table.name, names.join(", "))
            }
        };
        return Err(LogError::Schema(format!("columns: {column:?} {problem}")));
    }
    let counts =
        |(name, _, primary): (String, bool, bool)| (primary || watch.columns.contains(&name)).then_some(name);
    Ok(Watch { columns: known.into_iter().filter_map(counts).collect(), ..watch.clone() })
}

/// What the texts of what is watched depend on, as the table is now.
pub(super) async fn texts(
    connection: &mut PgConnection,
    watch: &Watch,
    table: &Table,
) -> Result<Texts, LogError> {
    let mut tx = connection.begin().await.map_err(refused)?;
    sqlx::raw_sql(LOOKING).execute(&mut *tx).await.map_err(refused)?;
    let columns: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(format!("select {}", fixed_columns("$1::bigint::oid"))))
            .persistent(false)
            .bind(table.oid)
            .fetch_one(&mut *tx)
            .await
            .map_err(refused)?;
    // The path of a transaction around it is as it was.
    tx.rollback().await.map_err(refused)?;
    Ok(Texts::of(watch, &columns))
}
