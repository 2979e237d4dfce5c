//! What a role lacks that was refused: in the words that give it.

use sqlx::PgConnection;

use crate::error::LogError;

/// The grants that are missing, each with the role that lacks it. A role that creates the schema owns what is in it, and needs no
/// more there. Triggers that fire always are for a table's owner alone to make.
const MISSING: &str = "\
    with at(role, db, ns, log, record, owner) as (select current_user, current_database(), to_regnamespace($1), \
      to_regclass($1 || '.invalidation'), to_regclass($1 || '.watched'), (select relowner from pg_class where oid = to_regclass($2))) \
    select g from at, lateral (values \
      (ns is null and not has_database_privilege(db, 'create'), format('grant create on database %I to %I', db, role)), \
      (not (has_schema_privilege(ns, 'usage') and has_schema_privilege(ns, 'create')), \
        format('grant usage, create on schema %I to %I', $1, role)), \
      (not has_table_privilege(log, 'insert'), format('grant insert on %s to %I', log, role)), \
      (not (has_table_privilege(record, 'select') and has_table_privilege(record, 'insert') \
        and has_table_privilege(record, 'update') and has_table_privilege(record, 'delete')), \
        format('grant select, insert, update, delete on %s to %I', record, role)), \
      (not pg_has_role(owner, 'usage'), format('grant %I to %I', coalesce(pg_get_userbyid(owner), ''), role)) \
    ) v(missing, g) where missing";

/// The error; or, where the role was refused something, what an admin has to grant it.
pub(super) async fn explain(
    connection: &mut PgConnection,
    schema: &str,
    table: Option<&str>,
    error: LogError,
) -> LogError {
    let LogError::Refused(cause) = &error else { return error };
    let code = cause.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    // insufficient_privilege
    if code.and_then(|error| error.code()).as_deref() != Some("42501") {
        return error;
    }
    let asking = sqlx::query_scalar(MISSING).persistent(false).bind(schema).bind(table);
    match asking.fetch_all(connection).await {
        Ok(grants) if !grants.is_empty() => {
            let grants: Vec<String> = grants;
            LogError::Schema(format!("this role may not. An admin must run: {};", grants.join("; ")))
        }
        _ => error,
    }
}
