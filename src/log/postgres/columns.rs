//! The columns that a table is watched for.

use sqlx::PgConnection;

use super::sql::{literal, refused};
use super::trigger::{Table, Watch};
use crate::error::LogError;

/// As SQL: null where every update counts.
pub(super) fn array(columns: &[String]) -> String {
    let quoted: Vec<String> = columns.iter().map(|column| literal(column)).collect();
    if quoted.is_empty() { "null".to_owned() } else { format!("array[{}]", quoted.join(", ")) }
}

/// # Errors
/// [`LogError::Schema`] where one of them is no column of the table, or is there twice, or is not stored.
pub(super) async fn judge(
    connection: &mut PgConnection,
    watch: &Watch,
    table: &Table,
) -> Result<(), LogError> {
    if watch.columns.is_empty() {
        return Ok(());
    }
    // A virtual column, since 18, is not in what a trigger sees.
    let known: Vec<(String, bool)> = sqlx::query_as(
        "select attname::text, attgenerated::text = 'v' from pg_catalog.pg_attribute \
         where attrelid = $1::bigint::oid and attnum > 0 and not attisdropped order by attnum",
    )
    .persistent(false)
    .bind(table.oid)
    .fetch_all(connection)
    .await
    .map_err(refused)?;
    for (at, column) in watch.columns.iter().enumerate() {
        let problem = match known.iter().find(|(name, _)| name == column) {
            _ if watch.columns[..at].contains(column) => "is named twice".to_owned(),
            Some((_, false)) => continue,
            Some((_, true)) => "is computed when it is read: name those that it is computed from".to_owned(),
            None => {
                let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
                format!("is no column of {}: it has {}", table.name, names.join(", "))
            }
        };
        return Err(LogError::Schema(format!("columns: {column:?} {problem}")));
    }
    Ok(())
}
