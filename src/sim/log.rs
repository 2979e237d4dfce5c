//! The simulated database's log, as one instance reaches it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::faults::{Down, Faults};
use super::postgres::SimPostgres;
use crate::coherence::snapshot::Snapshot;
use crate::error::{LogError, Unwatched};
use crate::log::switch::{Switch, Switching};
use crate::log::{Appended, Log, Poll, Source};
use crate::wire::Change;

/// What a poll costs by its rows: about as much as on real engines, on a busy machine.
const ROWS_PER_MS: u64 = 100;

/// One instance's way to the log.
#[derive(Debug)]
pub struct SimLog {
    database: SimPostgres,
    /// With how many times each has been lost.
    unwatched: Mutex<HashMap<String, (bool, u64)>>,
    /// As the last poll has told.
    switches: Mutex<Arc<[Switch]>>,
    /// The faults of this connection.
    pub faults: Faults,
}

impl SimPostgres {
    /// One instance's way to the log.
    #[must_use]
    pub fn log(&self, seed: u64) -> SimLog {
        SimLog::new(self.clone(), seed)
    }
}

impl SimLog {
    pub(super) fn new(database: SimPostgres, seed: u64) -> Self {
        Self { database, unwatched: Mutex::default(), switches: Mutex::default(), faults: Faults::new(seed) }
    }

    /// Whether triggers watch a table of this name, as far as this instance is told. Default: they do.
    pub fn watch(&self, table: &str, watched: bool) {
        let mut unwatched = self.unwatched.lock();
        let (lost, times) = unwatched.entry(table.to_owned()).or_default();
        *times += u64::from(!watched && !*lost);
        *lost = !watched;
    }
}

impl Log for SimLog {
    fn poll<'a>(
        &'a self,
        cursor: Option<&'a Snapshot>,
        caches: &'a [&'a str],
        _: Duration,
    ) -> BoxFuture<'a, Result<Poll, LogError>> {
        Box::pin(async move {
            self.faults.pass().await?;
            let (poll, switches) = self.database.poll(cursor, caches);
            let rows = poll.rows.as_ref().map_or(0, Vec::len) as u64;
            // Those of any poll but a replay come at once.
            if rows >= ROWS_PER_MS {
                tokio::time::sleep(Duration::from_millis(rows / ROWS_PER_MS)).await;
            }
            self.faults.pass().await?;
            *self.switches.lock() = switches;
            Ok(poll)
        })
    }

    fn append<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, Result<Appended, LogError>> {
        Box::pin(async move {
            self.faults.pass().await?;
            let mut transaction = self.database.begin();
            match &change.keys {
                None => transaction.clear(&change.cache),
                Some(keys) => keys.iter().for_each(|key| transaction.touch(&change.cache, key)),
            }
            let super::postgres::Written { xid, token, .. } =
                transaction.commit().map_err(|_crashed| Down)?;
            self.faults.pass().await?;
            Ok(Appended { xid, epoch: token.epoch })
        })
    }

    fn switches(&self) -> Arc<[Switch]> {
        Arc::clone(&self.switches.lock())
    }

    fn switch<'a>(&'a self, switching: &'a Switching) -> BoxFuture<'a, Result<(), LogError>> {
        Box::pin(async move {
            self.faults.pass().await?;
            self.database.switch(switching).map_err(|problem| LogError::Schema(problem.to_string()))?;
            self.faults.pass().await?;
            Ok(())
        })
    }

    fn trim(&self, retention: Duration) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move {
            self.faults.pass().await?;
            self.database.tick(retention);
            Ok(())
        })
    }

    fn unwatched<'a>(
        &'a self,
        _: &'a str,
        tables: &'a [String],
        _: &'a [Source],
    ) -> BoxFuture<'a, Result<Vec<Unwatched>, LogError>> {
        Box::pin(async {
            self.faults.pass().await?;
            let unwatched = self.unwatched.lock();
            let lost = |table: &String| match unwatched.get(table) {
                Some((true, times)) => Some(Unwatched {
                    table: table.clone(),
                    problem: "no trigger, the simulation says".to_owned(),
                    mark: times.to_string(),
                }),
                _ => None,
            };
            Ok(tables.iter().filter_map(lost).collect())
        })
    }
}
