//! Looks whether the tables that caches declare are watched: at the start, and then every minute.
//!
//! A trigger that was dropped by hand, a partition that came later, a table that was made again: the log says nothing of
//! writes to them, so somebody has to be told.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::coherence::troubles::{Subject, TroubleKind};
use crate::error::LogError;

const INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Watching {
    shared: Arc<Shared>,
}

impl Watching {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Never returns. What can't be looked at now is left for the next time: the tail tells of a log that can't be read.
    pub(super) async fn run(self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            drop(self.look().await);
        }
    }

    /// Begins a trouble for each table that is not watched, and ends those of the others.
    pub(super) async fn look(&self) -> Result<(), LogError> {
        let limit = self.shared.settings.poll_timeout;
        let mut now = HashSet::new();
        for cache in self.shared.caches().values() {
            let looking =
                tokio::time::timeout(limit, self.shared.log.unwatched(cache.name(), cache.tables()));
            let tables = looking.await.unwrap_or(Err(LogError::Timeout(limit)))?;
            now.extend(tables.into_iter().map(|table| (cache.name().to_owned(), table)));
        }
        for (cache, table) in &now {
            let mend =
                format!("writes to it are not seen: run `perto watch {table} --cache {cache} --key ...`");
            self.shared.signals.begin(TroubleKind::Unwatched.on(cache, table), &mend);
        }
        let still = |subject: &Subject| {
            let Subject { cache: Some(cache), table: Some(table), .. } = subject else { return false };
            now.contains(&(cache.clone(), table.clone()))
        };
        self.shared.signals.end_others(TroubleKind::Unwatched, still);
        Ok(())
    }
}
