//! What SQL and commands are put together from, and what becomes of their errors.

use crate::error::LogError;

pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Whatever the session takes a backslash for. Not between dollars: the text might have them too.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', r"\\")) } else { format!("'{quoted}'") }
}

/// What the commands of the log in `schema` end with.
pub(super) fn option(schema: &str) -> String {
    if schema == "perto" { String::new() } else { format!(" --schema {schema}") }
}

pub(super) fn refused(error: sqlx::Error) -> LogError {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => {
            LogError::Unreachable(std::sync::Arc::new(error))
        }
        _ => LogError::Refused(std::sync::Arc::new(error)),
    }
}
