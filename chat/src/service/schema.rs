//! The service's tables, and the triggers that watch them.

use std::time::{Duration, Instant};

use anyhow::Context;
use perto::postgres::{self, Watch};
use sqlx::PgConnection;

use super::{companies, contacts, inbox, keys, messages, overview, tool_results, users};

/// The schema of the log.
pub(crate) const LOG: &str = "perto";

/// Which cache or topic is invalidated by which table, and how its keys are written in SQL.
pub(crate) const WATCHED: [(&str, &str, &str); 13] = [
    ("chats", messages::CACHE, "id"),
    ("messages", messages::CACHE, "chat_id"),
    ("companies", companies::CACHE, "id"),
    ("users", users::CACHE, "id"),
    ("contacts", contacts::CACHE, "id"),
    ("contacts", contacts::CACHE_BY_PHONE, "company_id || ':' || phone"),
    ("contacts", contacts::OF_COMPANY, "company_id"),
    ("tool_results", tool_results::CACHE, "chat_id || ':' || tool"),
    ("api_keys", keys::CACHE, "encode(hash, 'hex')"),
    ("chats", inbox::CACHE, "company_id"),
    ("users", overview::CACHE, "company_id"),
    ("contacts", overview::CACHE, "company_id"),
    ("chats", overview::CACHE, "company_id"),
];

/// Of which columns, where not of all: updates of others invalidate nothing.
const COLUMNS: [(&str, &str, &[&str]); 4] = [
    // What an inbox shows of a chat changes with each message, which is told of by itself.
    ("chats", messages::CACHE, &["company_id"]),
    // What stays where it is, counts as before.
    ("users", overview::CACHE, &["company_id"]),
    ("contacts", overview::CACHE, &["company_id"]),
    ("chats", overview::CACHE, &["company_id"]),
];

fn columns(table: &str, cache: &str) -> Vec<String> {
    let own = COLUMNS.iter().filter(|(of, by, _)| (*of, *by) == (table, cache));
    own.flat_map(|(.., columns)| *columns).map(|&column| column.to_owned()).collect()
}

/// The version of the service's tables that this program needs.
pub(crate) fn last_migration() -> i64 {
    sqlx::migrate!().iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// How long others may hold what is to be changed, in all and behind one attempt: nobody queues for longer.
const LIMIT: Duration = Duration::from_secs(20);
const ATTEMPT: &str = "set lock_timeout = '300ms'";
const PAUSE: Duration = Duration::from_millis(250);

/// Makes or upgrades everything. What is as it should be is left alone.
pub(crate) async fn migrate(connection: &mut PgConnection) -> anyhow::Result<()> {
    tables(connection).await.context("DATABASE_URL: migrate the service's tables")?;
    postgres::migrate(connection, LOG).await.context("DATABASE_URL: migrate the invalidation log")?;
    for (table, cache, key) in WATCHED {
        let watch = Watch {
            schema: LOG.to_owned(),
            table: table.to_owned(),
            cache: cache.to_owned(),
            key: key.to_owned(),
            columns: columns(table, cache),
        };
        // The service knows its keys best: those of an older one are replaced.
        postgres::rewatch(connection, &watch)
            .await
            .with_context(|| format!("DATABASE_URL: watch {table}"))?;
    }
    Ok(())
}

async fn tables(connection: &mut PgConnection) -> anyhow::Result<()> {
    sqlx::raw_sql(ATTEMPT).execute(&mut *connection).await?;
    let began = Instant::now();
    while let Err(error) = sqlx::migrate!().run(&mut *connection).await {
        if !wants_a_lock(&error) || began.elapsed() >= LIMIT {
            return Err(error.into());
        }
        tokio::time::sleep(PAUSE).await;
    }
    sqlx::raw_sql("reset lock_timeout").execute(connection).await?;
    Ok(())
}

/// `lock_not_available`, by whatever wraps it.
fn wants_a_lock(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut errors = causes.filter_map(|error| error.downcast_ref::<sqlx::Error>());
    errors.any(|error| error.as_database_error().and_then(|error| error.code()).as_deref() == Some("55P03"))
}
