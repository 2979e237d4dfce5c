//! What time takes away: uploads that nobody goes on with, chunks that nobody will read, imports that ended a week ago.
//!
//! In small statements: whatever its size, an import is gone without holding anybody up.

use std::sync::Arc;
use std::time::Duration;

use super::Imports;
use crate::service::database::Database;

const OFTEN: Duration = Duration::from_secs(10);

/// Sweeps until the instance ends.
pub(super) async fn run(imports: Arc<Imports>) {
    while !imports.ending.is_cancelled() {
        if let Err(error) = sweep(&imports).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what is left of imports can't be swept"
            );
        }
        tokio::select! {
            () = imports.ending.cancelled() => {}
            () = imports.untidy.notified() => {}
            () = tokio::time::sleep(OFTEN) => {}
        }
    }
}

async fn sweep(imports: &Imports) -> Result<(), sqlx::Error> {
    let database = &imports.database;
    run_one(
        database,
        "update imports set state = 'failed', problem = 'the upload broke off', instance = null, leased_until = null, \
         finished_at = clock_timestamp() where id in (select id from imports where state = 'uploading' \
         and leased_until < clock_timestamp() limit 100 for update skip locked)",
    )
    .await?;
    for statement in [
        // Of imports that ended before their chunks.
        "delete from import_chunks where (import_id, seq) in (select c.import_id, c.seq from imports i, \
         lateral (select import_id, seq from import_chunks where import_id = i.id limit 50) c \
         where i.finished_at is not null limit 50)",
        "delete from import_rejects where (import_id, line) in (select r.import_id, r.line from imports i, \
         lateral (select import_id, line from import_rejects where import_id = i.id limit 2000) r \
         where i.finished_at < clock_timestamp() - interval '7 days' limit 2000)",
        "delete from imports where id in (select id from imports i \
         where finished_at < clock_timestamp() - interval '7 days' \
         and not exists (select from import_rejects where import_id = i.id) limit 100)",
    ] {
        while !imports.ending.is_cancelled() && run_one(database, statement).await? > 0 {}
    }
    Ok(())
}

async fn run_one(database: &Database, sql: &'static str) -> Result<u64, sqlx::Error> {
    database.run(database.statement(sql)).await
}
