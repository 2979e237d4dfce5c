//! The service's tables, and the triggers that watch them.

use std::time::{Duration, Instant};

use anyhow::Context;
use perto::postgres;
use perto_cli::Source;
use perto_cli::migrate::log;
use sqlx::PgConnection;

use super::{companies, contacts, inbox, keys, messages, overview, tool_results, users};

/// The schema of the log.
pub(crate) const LOG: &str = "perto";

/// Which cache or topic is invalidated by which table, and how its keys are written in SQL.
pub(crate) const WATCHED: [Source; 13] = [
    // What an inbox shows of a chat changes with each message, which is told of by itself.
    of("chats", messages::CACHE, "id", &["company_id"]),
    of("messages", messages::CACHE, "chat_id", &[]),
    of("companies", companies::CACHE, "id", &[]),
    of("users", users::CACHE, "id", &[]),
    of("contacts", contacts::CACHE, "id", &[]),
    of("contacts", contacts::CACHE_BY_PHONE, "company_id || ':' || phone", &[]),
    of("contacts", contacts::OF_COMPANY, "company_id", &[]),
    of("tool_results", tool_results::CACHE, "chat_id || ':' || tool", &[]),
    of("api_keys", keys::CACHE, "encode(hash, 'hex')", &[]),
    of("chats", inbox::CACHE, "company_id", &[]),
    // What stays where it is, counts as before.
    of("users", overview::CACHE, "company_id", &["company_id"]),
    of("contacts", overview::CACHE, "company_id", &["company_id"]),
    of("chats", overview::CACHE, "company_id", &["company_id"]),
];

const fn of(
    table: &'static str,
    cache: &'static str,
    key: &'static str,
    columns: &'static [&'static str],
) -> Source {
    Source { table, cache, key, columns }
}

/// The version of the service's tables that this program needs.
pub(crate) fn last_migration() -> i64 {
    sqlx::migrate!().iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// How long others may hold what is to be changed, in all and behind one attempt: nobody queues for longer.
const LIMIT: Duration = Duration::from_secs(20);
const ATTEMPT: &str = "set lock_timeout = '300ms'";
const PAUSE: Duration = Duration::from_millis(250);

/// Makes or upgrades everything. What is as it should be is left alone. What was done, for a person, a line each.
pub(crate) async fn migrate(connection: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    let before = version(connection).await?;
    tables(connection).await.context("DATABASE_URL: migrate the service's tables")?;
    match (before, version(connection).await?) {
        (before, now) if before == now => {}
        (0, now) => done.push(format!("made the service's tables, version {now}")),
        (before, now) => done.push(format!("upgraded the service's tables from version {before} to {now}")),
    }
    let log = log(connection, LOG).await;
    done.extend(log.context("DATABASE_URL: migrate the invalidation log")?);
    let mut watched = Vec::new();
    for source in WATCHED {
        let Source { table, cache, .. } = source;
        let watch = source.watch(LOG);
        let watching = async {
            let is_done = postgres::watch_sql(connection, &watch, true).await?.is_none();
            // The service knows its keys best: those of an older one are replaced.
            postgres::rewatch(connection, &watch).await.map(|_tables| is_done)
        };
        if !watching.await.with_context(|| format!("DATABASE_URL: watch {table}"))? {
            watched.push(format!("{table} for {cache}"));
        }
    }
    if !watched.is_empty() {
        done.push(format!("now watched: {}", watched.join(", ")));
    }
    Ok(done)
}

/// Of the service's tables, as they are; 0 where there are none.
async fn version(connection: &mut PgConnection) -> anyhow::Result<i64> {
    let there = "select to_regclass('_sqlx_migrations') is not null";
    let there: bool = sqlx::query_scalar(there).fetch_one(&mut *connection).await?;
    let version = "select coalesce(max(version), 0) from _sqlx_migrations where success";
    Ok(if there { sqlx::query_scalar(version).fetch_one(connection).await? } else { 0 })
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
