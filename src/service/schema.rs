//! The service's tables, and the triggers that watch them.

use anyhow::Context;
use perto::postgres::{self, Watch};
use sqlx::PgConnection;

/// The schema of the log.
pub(crate) const LOG: &str = "perto";

/// Which cache is invalidated by which table, and how its keys are written in SQL.
pub(crate) const WATCHED: [(&str, &str, &str); 1] = [("companies", super::companies::CACHE, "id")];

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

/// Makes companies up to a number. Returns how many were made.
pub(crate) async fn seed(connection: &mut PgConnection, companies: u32) -> anyhow::Result<u64> {
    let made = sqlx::query(
        "insert into companies (name, region) select 'Company ' || n, (array['DE', 'PT', 'US', 'BR'])[1 + n % 4] \
         from generate_series((select count(*) from companies) + 1, $1) n",
    )
    .bind(i64::from(companies))
    .execute(connection)
    .await
    .context("the service's tables are missing: run `perto migrate --service`")?;
    Ok(made.rows_affected())
}
