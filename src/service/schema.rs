//! The service's tables, and the triggers that watch them.

use anyhow::Context;
use perto::postgres::{self, Watch};
use sqlx::PgConnection;

use super::{companies, contacts, keys, messages, tool_results, users};

/// The schema of the log.
pub(crate) const LOG: &str = "perto";

/// Which cache is invalidated by which table, and how its keys are written in SQL.
pub(crate) const WATCHED: [(&str, &str, &str); 8] = [
    ("chats", messages::CACHE, "id"),
    ("messages", messages::CACHE, "chat_id"),
    ("companies", companies::CACHE, "id"),
    ("users", users::CACHE, "id"),
    ("contacts", contacts::CACHE, "id"),
    ("contacts", contacts::CACHE_BY_PHONE, "company_id || ':' || phone"),
    ("tool_results", tool_results::CACHE, "chat_id || ':' || tool"),
    ("api_keys", keys::CACHE, "encode(hash, 'hex')"),
];

/// The version of the service's tables that this program needs.
pub(crate) fn last_migration() -> i64 {
    sqlx::migrate!().iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Makes or upgrades everything. Watching again is harmless: it clears the caches once.
pub(crate) async fn migrate(connection: &mut PgConnection) -> anyhow::Result<()> {
    sqlx::migrate!().run(&mut *connection).await.context("DATABASE_URL: migrate the service's tables")?;
    postgres::migrate(connection, LOG).await.context("DATABASE_URL: migrate the invalidation log")?;
    for (table, cache, key) in WATCHED {
        let watch = Watch {
            schema: LOG.to_owned(),
            table: table.to_owned(),
            cache: cache.to_owned(),
            key: key.to_owned(),
        };
        postgres::watch(connection, &watch).await.with_context(|| format!("DATABASE_URL: watch {table}"))?;
    }
    Ok(())
}
