//! The auditor: loads again what was served, and compares.
//!
//! The one thing that stamps can't show is a write that nothing logged: a trigger that was dropped, a table that nobody
//! watches, a loader that reads what the key doesn't say. A served value that differs from what the primary says, while
//! no invalidation came in between, is one. Rare and bounded: a few keys a second, in one load that no reader waits for.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::loader::Load;
use super::{Core, Key, Value};
use crate::coherence::Began;
use crate::coherence::health::Event;
use crate::coherence::snapshot::Origin;
use crate::local::Entry;
use crate::wire::{self, Change};

/// Time between two looks for a new poll.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Keeps some of the hits of an interval, spread over all of it by chance: the first ones would be the same keys again and
/// again wherever reads come in bursts.
pub(super) struct Sampler<K, V> {
    /// The number of the hit that is kept next; `MAX` where none is.
    next: AtomicU64,
    kept: Mutex<Kept<K, V>>,
}

struct Kept<K, V> {
    most: usize,
    /// Hits until the next that is kept, on average.
    stride: u64,
    /// Hits by the beginning of the interval.
    begun: u64,
    samples: Vec<(K, Arc<Entry<V>>)>,
}

impl<K: Key, V> Sampler<K, V> {
    pub(super) const fn new() -> Self {
        let kept = Kept { most: 0, stride: 0, begun: 0, samples: Vec::new() };
        Self { next: AtomicU64::new(u64::MAX), kept: Mutex::new(kept) }
    }

    /// `hits` have been counted so far. The last interval tells how many to expect in this one.
    fn arm(&self, most: usize, hits: u64) {
        let mut kept = self.kept.lock();
        let stride = hits.saturating_sub(kept.begun) / (most as u64).max(1);
        *kept = Kept { most, stride, begun: hits, samples: Vec::new() };
        self.next.store(hits + step(hits, stride), Ordering::Relaxed);
    }

    fn take(&self) -> Vec<(K, Arc<Entry<V>>)> {
        self.next.store(u64::MAX, Ordering::Relaxed);
        std::mem::take(&mut self.kept.lock().samples)
    }

    /// For each hit, with its number. Costs a load where the hit is not kept.
    #[inline]
    pub(super) fn hit(&self, number: u64, key: &K, entry: &Arc<Entry<V>>) {
        if number >= self.next.load(Ordering::Relaxed) {
            self.keep(number, key, entry);
        }
    }

    #[cold]
    fn keep(&self, number: u64, key: &K, entry: &Arc<Entry<V>>) {
        // A hit waits for nobody.
        let Some(mut kept) = self.kept.try_lock() else { return };
        if number < self.next.load(Ordering::Relaxed) {
            return;
        }
        if kept.samples.iter().all(|(sampled, _)| sampled != key) {
            kept.samples.push((key.clone(), Arc::clone(entry)));
        }
        let full = kept.samples.len() >= kept.most;
        let next = if full { u64::MAX } else { number + 1 + step(number, kept.stride) };
        self.next.store(next, Ordering::Relaxed);
    }
}

/// A number from 0 to twice the stride, by chance.
fn step(number: u64, stride: u64) -> u64 {
    foldhash::fast::FixedState::default().hash_one(number) % (2 * stride + 1)
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
        self.sampler.arm(most, self.counters.l1_hits.get());
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
        let load = Load::new(keys.to_vec(), true);
        let loading = AssertUnwindSafe(async { (self.loader)(load).await }).catch_unwind();
        let loaded = tokio::time::timeout(self.policy.load_timeout, loading).await.ok()?.ok()?.ok()?;
        let stamp = loaded.stamp;
        let new = began.poll.is_some_and(|poll| stamp.snapshot.rank() >= poll);
        if stamp.wrote || stamp.origin != Origin::Primary || !new {
            return None;
        }
        let mut found: HashMap<K, Answer> =
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coherence::snapshot::Snapshot;

    #[test]
    fn reads_that_come_in_bursts_of_one_order_are_all_sampled_in_time() {
        let entry = Arc::new(Entry {
            era: 0,
            cache_epoch: 0,
            stamp: Snapshot::all_below(1),
            expires_ms: 0,
            weight: 0,
            value: Some(Arc::new(())),
        });
        let sampler = Sampler::<u64, ()>::new();
        let (mut hits, mut seen) = (0, std::collections::HashSet::new());
        for _interval in 0..60 {
            sampler.arm(64, hits);
            for key in (0..1_000).cycle().take(5_000) {
                sampler.hit(hits, &key, &entry);
                hits += 1;
            }
            let samples = sampler.take();
            assert!(samples.len() <= 64);
            seen.extend(samples.into_iter().map(|(key, _)| key));
        }
        assert!(seen.len() > 900, "{}", seen.len());
    }
}
