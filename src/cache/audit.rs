//! The auditor: loads again what was served, and compares.
//!
//! The one thing that stamps can't show is a write that nothing logged: a trigger that was dropped, a table that nobody
//! watches, a loader that reads what the key doesn't say. A served value that differs from what the primary says, while
//! no invalidation came in between, is one. Rare and bounded: a few keys a second, in one load that no reader waits for.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::loader::Load;
use super::{Core, Key, Value};
use crate::coherence::Began;
use crate::coherence::health::Event;
use crate::coherence::snapshot::Origin;
use crate::local::Entry;
use crate::wire::{self, Change};

/// Hits that are looked at for each key that is wanted: the same key may come many times in a row.
const TRIES: i64 = 4;
/// Time between two looks for a new poll.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Keeps some of the hits of the last interval.
pub(super) struct Sampler<K, V> {
    /// Hits that are still looked at. A hit that finds none left costs one load of this.
    tries: AtomicI64,
    kept: Mutex<Kept<K, V>>,
}

struct Kept<K, V> {
    most: usize,
    samples: Vec<(K, Arc<Entry<V>>)>,
}

impl<K: Key, V> Sampler<K, V> {
    pub(super) const fn new() -> Self {
        Self { tries: AtomicI64::new(0), kept: Mutex::new(Kept { most: 0, samples: Vec::new() }) }
    }

    fn arm(&self, most: usize) {
        *self.kept.lock() = Kept { most, samples: Vec::new() };
        self.tries.store(i64::try_from(most).unwrap_or(i64::MAX / TRIES) * TRIES, Ordering::Relaxed);
    }

    fn take(&self) -> Vec<(K, Arc<Entry<V>>)> {
        self.tries.store(0, Ordering::Relaxed);
        std::mem::take(&mut self.kept.lock().samples)
    }

    #[inline]
    pub(super) fn hit(&self, key: &K, entry: &Arc<Entry<V>>) {
        if self.tries.load(Ordering::Relaxed) > 0 {
            self.keep(key, entry);
        }
    }

    #[cold]
    fn keep(&self, key: &K, entry: &Arc<Entry<V>>) {
        if self.tries.fetch_sub(1, Ordering::Relaxed) <= 0 {
            return;
        }
        // A hit waits for nobody.
        let Some(mut kept) = self.kept.try_lock() else { return };
        if kept.samples.len() < kept.most && kept.samples.iter().all(|(sampled, _)| sampled != key) {
            kept.samples.push((key.clone(), Arc::clone(entry)));
        }
    }
}

/// A cache, as the auditor sees it.
pub(crate) trait Audited: Send + Sync {
    /// Keeps up to `most` of the keys that are served from L1 from now on.
    fn sample(&self, most: usize);
    /// Audits what was kept. Ends within the load timeout and the poll timeout, twice each.
    fn audit(&self) -> BoxFuture<'_, ()>;
}

impl<K: Key, V: Value> Audited for Core<K, V> {
    fn sample(&self, most: usize) {
        self.sampler.arm(most);
    }

    fn audit(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let samples = self.sampler.take();
            if !samples.is_empty() {
                self.audit_all(samples).await;
            }
        })
    }
}

impl<K: Key, V: Value> Core<K, V> {
    async fn audit_all(&self, samples: Vec<(K, Arc<Entry<V>>)>) {
        let count = samples.len() as u64;
        let began = self.shared.coherence.began(&self.whole);
        let keys: Vec<K> = samples.iter().map(|(key, _)| key.clone()).collect();
        let Some(now) = self.ask(&keys, began).await else {
            return self.counters.audits_skipped.add(count);
        };
        let differ: Vec<_> = samples
            .into_iter()
            .zip(now)
            .filter(|((_, entry), now)| encoded(entry.value.as_deref()) != *now)
            .collect();
        let checked = count - differ.len() as u64;
        self.passed(checked);
        if differ.is_empty() {
            return;
        }
        // What the primary said is in the log, or belongs to an epoch that is not known here yet: the next poll tells.
        if !self.polled(began).await {
            return self.counters.audits_skipped.add(differ.len() as u64);
        }
        for ((key, entry), now) in differ {
            if self.is_outdated(&key, &entry, began) {
                self.passed(1);
            } else {
                self.confirm(key, &entry, &now, began).await;
            }
        }
    }

    fn passed(&self, count: u64) {
        self.counters.audits.add(count);
        self.shared.nines.add(self.shared.coherence.clock.now_ms(), count, 0);
    }

    /// What the primary says, as bytes. None where it did not, in time.
    async fn ask(&self, keys: &[K], began: Began) -> Option<Vec<Answer>> {
        // Readers come first.
        let _place = self.shared.try_load_place()?;
        let loading = (self.loader)(Load::new(keys.to_vec(), true));
        let loading = std::panic::AssertUnwindSafe(loading);
        let loading = futures_util::FutureExt::catch_unwind(loading);
        let loaded = tokio::time::timeout(self.policy.load_timeout, loading).await.ok()?.ok()?.ok()?;
        let stamp = loaded.stamp;
        let new = began.poll.is_some_and(|poll| stamp.snapshot.rank() >= poll);
        if stamp.wrote || stamp.origin != Origin::Primary || !new {
            return None;
        }
        let mut found: std::collections::HashMap<K, Answer> =
            loaded.found.into_iter().map(|found| (found.key, encoded(Some(&found.value)))).collect();
        let answer = |key| found.remove(key).unwrap_or_else(|| encoded::<V>(None));
        Some(keys.iter().map(answer).collect())
    }

    /// Waits for a poll that began after this call, within two polls' time.
    async fn polled(&self, began: Began) -> bool {
        let shared = &self.shared;
        // One may be under way.
        let enough = shared.counters.polls.get() + 2;
        let polled = async {
            while shared.counters.polls.get() < enough {
                shared.coherence.doubt.notify_one();
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        let limit = 2 * (shared.settings.poll_timeout + shared.settings.poll_interval);
        tokio::time::timeout(limit, polled).await.is_ok() && shared.coherence.lease.held().era() == began.era
    }

    /// Whether an invalidation since its load explains that the entry is not what the primary says.
    fn is_outdated(&self, key: &K, entry: &Entry<V>, began: Began) -> bool {
        let buckets = &self.shared.coherence.buckets;
        let slot = buckets.slot(&self.name, &key.to_string());
        entry.era != began.era
            || self.shared.coherence.lease.held().era() != began.era
            || entry.cache_epoch != self.whole.epoch()
            || !buckets.accepts(slot, &self.whole, &entry.stamp)
    }

    /// Asks again: a loader that never says the same twice can't be audited.
    async fn confirm(&self, key: K, entry: &Entry<V>, now: &Answer, began: Began) {
        let again = self.ask(std::slice::from_ref(&key), self.shared.coherence.began(&self.whole)).await;
        let same = again.is_some_and(|answers| answers.first() == Some(now));
        if !same || self.is_outdated(&key, entry, began) {
            return self.counters.audits_skipped.add(1);
        }
        self.counters.audits.add(1);
        self.counters.audit_violations.add(1);
        self.shared.nines.add(self.shared.coherence.clock.now_ms(), 1, 1);
        let text = key.to_string();
        let key_hash = foldhash::fast::FixedState::default().hash_one(&text);
        self.shared.signals.send(Event::AuditViolation { cache: self.name.to_string(), key_hash });
        // It is wrong in L2 and elsewhere too. Where the log can't be written it goes from here at least.
        let change = Change { cache: self.name.to_string(), keys: Some(vec![text]) };
        if self.shared.invalidate(change).await.is_err() {
            self.local.remove(&key);
        }
    }
}

/// The encoding of a value, or that there is none, or that it is too large to be encoded.
type Answer = Option<Result<Bytes, ()>>;

fn encoded<V: Value>(value: Option<&V>) -> Answer {
    value.map(|value| wire::encode_payload(value).ok_or(()))
}
