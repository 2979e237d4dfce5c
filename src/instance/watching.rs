//! Looks whether the tables that caches declare are watched: at the start, and then every minute.
//!
//! A trigger that was dropped by hand, a partition that came later, a table that was made again: the log says nothing of
//! writes to them, so somebody has to be told.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::coherence::health::Event;
use crate::error::LogError;

const INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Watching {
    shared: Arc<Shared>,
    /// Caches and their tables that were not watched when somebody looked last: they have been told of.
    unwatched: HashSet<(String, String)>,
}

impl Watching {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, unwatched: HashSet::new() }
    }

    /// Never returns. What can't be looked at now is left for the next time: the tail tells of a log that can't be read.
    pub(super) async fn run(mut self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            drop(self.look().await);
        }
    }

    /// Tells of each table that is not watched, once, until it was watched in between.
    pub(super) async fn look(&mut self) -> Result<(), LogError> {
        let limit = self.shared.settings.poll_timeout;
        let mut now = HashSet::new();
        for cache in self.shared.caches().values() {
            let looking =
                tokio::time::timeout(limit, self.shared.log.unwatched(cache.name(), cache.tables()));
            let tables = looking.await.unwrap_or(Err(LogError::Timeout(limit)))?;
            now.extend(tables.into_iter().map(|table| (cache.name().to_owned(), table)));
        }
        for (cache, table) in now.difference(&self.unwatched).cloned() {
            self.shared.signals.send(Event::Unwatched { cache, table });
        }
        self.unwatched = now;
        Ok(())
    }
}
