//! Looks whether the tables that caches declare are watched: at the start, and then every minute.
//!
//! A trigger that was dropped by hand, a partition that came later, a table that was made again, one that a subscription writes
//! into: the log says nothing of writes to them, so somebody has to be told.
//!
//! When such a table is watched again, what was cached meanwhile may miss a write, and the alert has just ended. `perto watch` clears the
//! cache in the transaction that makes the triggers. Whoever enables a trigger by hand, or drops a subscription, clears nothing: so
//! each instance that knew of it does. It does so also where somebody has cleared the cache, for that may have been before the last
//! write that nobody saw.
//!
//! One that has ended by then clears nothing. So whoever finds such a table puts nothing into L2 from then on, and clears the cache at once:
//! what lies there has a stamp from before, and is refused for good.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{LogError, StartError, Unwatched, chain};
use crate::health::troubles::{Subject, TroubleKind};
use crate::shared::Shared;
use crate::wire::Change;

const INTERVAL: Duration = Duration::from_secs(60);

/// By the trouble that it is.
type Found = BTreeMap<Subject, Unwatched>;

pub(super) struct Watching {
    shared: Arc<Shared>,
    /// What was found last, and what could not be cleared since.
    found: Found,
    /// Caches of which a table was found not watched, and that could not be cleared since.
    lost: BTreeSet<String>,
}

impl Watching {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, found: Found::new(), lost: BTreeSet::new() }
    }

    /// Fails where a table is not watched and that was not allowed.
    pub(super) async fn begin(&mut self) -> Result<(), StartError> {
        let found = self.look().await.map_err(StartError::Log)?;
        if !found.is_empty() && !self.shared.settings.allow_unwatched {
            let each = found.into_iter().map(|(subject, found)| (subject.cache.unwrap_or_default(), found));
            return Err(StartError::Unwatched(each.collect()));
        }
        self.tell(found);
        self.clear_lost().await;
        Ok(())
    }

    /// Never returns. What can't be looked at now is left for the next time: the tail tells of a log that can't be read.
    pub(super) async fn run(mut self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            if let Ok(mut found) = self.look().await {
                self.clear(&mut found).await;
                self.tell(found);
                self.clear_lost().await;
            }
        }
    }

    /// Clears the caches whose tables were not watched and are again, or have been in between, on every instance. What can't be cleared
    /// stays a trouble, and is tried again with the next look.
    async fn clear(&self, found: &mut Found) {
        let caches: BTreeSet<&String> =
            self.found.keys().filter_map(|subject| subject.cache.as_ref()).collect();
        for name in caches {
            let known = || self.found.iter().filter(|(subject, _)| subject.cache.as_ref() == Some(name));
            if known().all(|(subject, before)| found.get(subject).is_some_and(|now| now.mark == before.mark))
            {
                continue;
            }
            let Err(error) = self.shared.invalidate(Change { cache: name.clone(), keys: None }).await else {
                continue;
            };
            let problem =
                format!("what was cached while it was not watched can't be cleared: {}", chain(&error));
            for (subject, before) in known() {
                let uncleared = || Unwatched { problem: problem.clone(), ..before.clone() };
                found.entry(subject.clone()).or_insert_with(uncleared);
            }
        }
    }

    /// Clears the caches whose tables are found not watched. What can't be cleared is a trouble as it is, and is tried again with the next look.
    async fn clear_lost(&mut self) {
        for name in std::mem::take(&mut self.lost) {
            if self.shared.invalidate(Change { cache: name.clone(), keys: None }).await.is_err() {
                self.lost.insert(name);
            }
        }
    }

    async fn look(&self) -> Result<Found, LogError> {
        let limit = self.shared.settings.log_timeout;
        let mut found = Found::new();
        for cache in self.shared.caches().values() {
            let sources = cache.sources();
            let looking = self.shared.log.unwatched(cache.name(), cache.tables(), &sources);
            let looking = tokio::time::timeout(limit, looking);
            let unwatched = looking.await.unwrap_or(Err(LogError::Timeout(limit)))?;
            let subject = |table: &str| TroubleKind::Unwatched.on(cache.name(), table);
            found.extend(unwatched.into_iter().map(|unwatched| (subject(&unwatched.table), unwatched)));
        }
        Ok(found)
    }

    /// A table that was watched in between is told of again, though it was not watched either when somebody looked last.
    fn tell(&mut self, found: Found) {
        *self.shared.unwatched.write() =
            Some(found.keys().filter_map(|subject| subject.cache.clone()).collect());
        let signals = &self.shared.signals;
        let mark = |subject: &Subject| self.found.get(subject).map(|before: &Unwatched| &before.mark);
        signals.end_others(TroubleKind::Unwatched, |subject| {
            found.get(subject).is_some_and(|now| mark(subject) == Some(&now.mark))
        });
        for (subject, unwatched) in &found {
            if !self.found.contains_key(subject) {
                self.lost.extend(subject.cache.clone());
            }
            signals.begin(subject.clone(), &unwatched.problem);
        }
        self.found = found;
    }
}
