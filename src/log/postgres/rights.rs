//! The rights that an instance needs on the log's tables, and what a role is told that lacks some.

use std::fmt;

use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row as _};

use super::sql::{literal, option, refused};
use super::trigger::{EVENTS, trigger_name};
use crate::error::LogError;
use crate::log::Source;

/// To follow the log, to invalidate by hand, to begin an epoch and to trim.
const NEEDED: &str = "('boot', 'select', 1), ('boot', 'insert', 2), ('boot', 'update', 3), \
    ('invalidation', 'select', 4), ('invalidation', 'insert', 5), ('invalidation', 'delete', 6), \
    ('tick', 'select', 7), ('tick', 'insert', 8), ('tick', 'delete', 9), ('watched', 'select', 10), \
    ('switch', 'select', 11)";

/// Rights that an instance needs and its role lacks. Written as the statement that grants them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingRights {
    /// What they are for: a table of the log, or its schema.
    pub on: String,
    /// With a comma between.
    pub rights: String,
    /// The role, quoted where that is needed.
    pub role: String,
}

impl fmt::Display for MissingRights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grant {} on {} to {}", self.rights, self.on, self.role)
    }
}

/// The rights on the log in `schema` that an instance needs and the connection's role lacks.
///
/// None for a table that is not there: that is another problem, which [`schema_version`](super::schema::schema_version) tells.
///
/// # Errors
/// If Postgres can't be read, or the schema's name makes no sense.
pub async fn missing_rights(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Vec<MissingRights>, LogError> {
    super::schema::check_name(schema).map_err(LogError::Schema)?;
    missing(connection, schema, false).await.map_err(refused)
}

/// By the catalogue, which may be read also where the schema may not be used. With `all`, also on tables that are not there yet.
async fn missing(
    connection: &mut PgConnection,
    schema: &str,
    all: bool,
) -> Result<Vec<MissingRights>, sqlx::Error> {
    let sql = format!(
        "with n as (select oid from pg_namespace where nspname = '{schema}') \
         select on_, string_agg(r, ', ' order by at), quote_ident(current_user) from ( \
           select 'schema {schema}', 'usage', 0 from n where not has_schema_privilege(n.oid, 'usage') \
           union all select '{schema}.' || w.t, w.r, w.at from (values {NEEDED}) w(t, r, at) \
             left join pg_class c on c.relname = w.t and c.relnamespace = (select oid from n) \
             where (c.oid is null and {all}) or not has_table_privilege(c.oid, w.r) \
         ) m(on_, r, at) group by on_ order by min(at)"
    );
    // In one step: a pooler may give two to two servers.
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await?;
    let row = |row| FromRow::from_row(row).map(|(on, rights, role)| MissingRights { on, rights, role });
    rows.iter().map(row).collect()
}

/// Before the first poll: without a right that is needed later, an instance would start and never trim, or fail in its first epoch.
pub(super) async fn check(connection: &mut PgConnection, schema: &str) -> Result<(), LogError> {
    let missing = missing_rights(connection, schema).await?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(LogError::Schema(format!("this role may not use the log. It needs: {}", statements(&missing))))
}

/// The error; or, where the role was refused something, what their owner has to run for it. The role is not to own anything: whoever
/// owns a table can drop its triggers.
pub(super) async fn explain(
    connection: &mut PgConnection,
    schema: &str,
    sources: &[Source],
    error: LogError,
) -> LogError {
    let LogError::Refused(cause) = &error else { return error };
    let code = cause.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    // insufficient_privilege
    if code.and_then(|error| error.code()).as_deref() != Some("42501") {
        return error;
    }
    let Ok(missing) = missing(connection, schema, true).await else { return error };
    // The owner has run the commands, and not the grants: the same commands again would mend nothing.
    if !missing.is_empty() && is_installed(connection, schema, sources).await.unwrap_or(false) {
        return LogError::Schema(format!(
            "the log and its triggers are there. This role still needs: {}",
            statements(&missing)
        ));
    }
    let mut commands = format!("`perto migrate{}`", option(schema));
    for source in sources {
        commands += &format!(", `{}`", watch_command(schema, &source.table, source));
    }
    let mut said =
        format!("this role may not create the log and its triggers. As the tables' owner, run: {commands}");
    if !missing.is_empty() {
        said += &format!(". Then this role needs: {}", statements(&missing));
    }
    LogError::Schema(said)
}

/// Whether the log's tables and the triggers of all sources are there. By the catalogue: the role may not look into the log.
async fn is_installed(
    connection: &mut PgConnection,
    schema: &str,
    sources: &[Source],
) -> Result<bool, sqlx::Error> {
    let triggers = sources.iter().flat_map(|Source { cache, table, .. }| {
        EVENTS.map(|event| (literal(table), literal(&trigger_name(schema, cache, event))))
    });
    let (tables, names): (Vec<String>, Vec<String>) = triggers.unzip();
    let sql = format!(
        "select not exists (select from (values {NEEDED}) w(t, r, at) where not exists ( \
             select from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where n.nspname = '{schema}' and c.relname = w.t)) \
           and not exists (select from unnest(array[{}]::text[], array[{}]::text[]) s(t, name) where not exists ( \
             select from pg_trigger g where g.tgrelid = to_regclass(s.t) and g.tgname = s.name and g.tgenabled = 'A'))",
        tables.join(", "),
        names.join(", ")
    );
    // In one step, as above.
    sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(connection).await?.try_get(0)
}

/// The command that has `table` watched as `source` says. The table's name may have got its schema since.
pub(super) fn watch_command(schema: &str, table: &str, source: &Source) -> String {
    let Source { cache, key, columns, .. } = source;
    let columns = match columns[..] {
        [] => String::new(),
        _ => format!(" --columns {}", shell(&columns.join(","))),
    };
    let (table, key) = (shell(table), shell(key));
    format!("perto watch {table} --cache {cache} --key {key}{columns}{}", option(schema))
}

fn statements(missing: &[MissingRights]) -> String {
    missing.iter().map(|missing| format!("{missing};")).collect::<Vec<_>>().join(" ")
}

/// One word of a command.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.,:-".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}
