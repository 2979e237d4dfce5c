//! What is switched, as polls tell it: obeyed here, and told of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::polls::Asked;
use crate::error::SwitchError;
use crate::health::troubles::{Subject, TroubleKind};
use crate::log::switch::{Switch, Switching, TierMode, modes};

impl Shared {
    /// Obeys what a poll has told. Whether anything is or was switched.
    pub(crate) fn obey(&self, switches: &Arc<[Switch]>) -> bool {
        let before = std::mem::replace(&mut *self.switches.lock(), Arc::clone(switches));
        if switches.is_empty() && before.is_empty() {
            return false;
        }
        for (name, cache) in self.caches().iter() {
            let (local, remote) = modes(switches.iter().filter(|switch| switch.concerns(name)));
            cache.switch(local, remote);
        }
        true
    }

    /// What is switched of the caches that are declared here, one trouble for each.
    pub(crate) fn tell_of_switches(&self, switches: &[Switch]) {
        let mut told: BTreeMap<Subject, Vec<String>> = BTreeMap::new();
        for switch in switches {
            let subject = match switch.cache.as_deref() {
                None => TroubleKind::Switched.anywhere(),
                Some(cache) if self.has_cache(cache) => TroubleKind::Switched.of(cache),
                Some(_) => continue,
            };
            told.entry(subject).or_default().push(format!("{switch}. `{}` ends it", switch.ended_by()));
        }
        for (subject, details) in &told {
            self.signals.begin(subject.clone(), &details.join("; "));
        }
        self.signals.end_others(TroubleKind::Switched, |subject| told.contains_key(subject));
    }

    fn has_cache(&self, name: &str) -> bool {
        self.caches().get(name).is_some_and(|cache| cache.has_values())
    }

    /// Records a switch, and waits until it is obeyed here, for no longer than a poll takes.
    pub(crate) async fn switch(&self, switching: &Switching) -> Result<(), SwitchError> {
        switching.check().map_err(|problem| SwitchError::Senseless(problem.to_string()))?;
        if self.is_closed() {
            return Err(SwitchError::Closed);
        }
        // What somebody has switched that is not declared here may be put on again.
        let unknown = |cache: &&str| switching.mode() != TierMode::On && !self.has_cache(cache);
        if let Some(cache) = switching.cache().filter(unknown) {
            let caches = self.caches();
            let known = caches.values().filter(|cache| cache.has_values());
            let known = known.map(|cache| cache.name().to_owned()).collect();
            return Err(SwitchError::UnknownCache { cache: cache.to_owned(), known });
        }
        let limit: Duration = self.settings.log_timeout;
        let recorded = tokio::time::timeout(limit, self.log.switch(switching)).await;
        recorded.unwrap_or(Err(crate::error::LogError::Timeout(limit))).map_err(SwitchError::Log)?;
        if *self.started.read() {
            let polled = self.polls.next(Asked::Awaited);
            let _or_with_the_next_one = tokio::time::timeout(self.settings.poll_timeout, polled).await;
        }
        Ok(())
    }
}
