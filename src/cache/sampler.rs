//! Which hits the auditor looks at: some, spread over time by chance, at the cost of one load for a hit that is not kept.

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::local::{Cached, Entry};

/// Samples are held though moka may have let them go: they end by their bytes too.
const MAX_BYTES: u64 = 1 << 20;
/// Intervals that tell how many hits to expect.
const REMEMBERED: usize = 4;

/// A sampled key, and what was served for it.
pub(super) type Sample<K, V> = (K, Arc<Entry<V>>);

/// A number by chance, for each hit another one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chance(u64);

impl Chance {
    /// Of the so-manieth hit of a thread. Numbers in a row have nothing in common: reads in a circle would otherwise sample the
    /// same keys each time.
    #[inline]
    pub(super) const fn of(number: u64) -> Self {
        let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self((spread ^ (spread >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }
}

/// Keeps some of the hits of an interval, spread over all of it: the first ones would be the same keys again and again
/// wherever reads come in bursts.
pub(super) struct Sampler<K, V> {
    /// A hit is kept if its chance is below this; 0 where none is.
    below: AtomicU64,
    kept: Mutex<Kept<K, V>>,
}

struct Kept<K, V> {
    most: usize,
    bytes: u64,
    /// Hits by the beginning of the interval.
    begun: u64,
    /// Of the last intervals.
    hits: [u64; REMEMBERED],
    samples: Vec<Sample<K, V>>,
}

impl<K: Clone + Eq, V> Sampler<K, V> {
    pub(super) const fn new() -> Self {
        let kept = Kept { most: 0, bytes: 0, begun: 0, hits: [0; REMEMBERED], samples: Vec::new() };
        Self { below: AtomicU64::new(0), kept: Mutex::new(kept) }
    }

    /// Keeps up to `most` keys from now on. `hits` have been counted so far.
    pub(super) fn arm(&self, most: usize, hits: u64) {
        let mut kept = self.kept.lock();
        let mut remembered = kept.hits;
        remembered.rotate_right(1);
        remembered[0] = hits.saturating_sub(kept.begun);
        // The busiest of the last ones: a quiet one tells nothing of the next burst.
        let expected = remembered.iter().copied().max().unwrap_or_default();
        let one_in = 1 + expected / (most as u64).max(1);
        *kept = Kept { most, bytes: 0, begun: hits, hits: remembered, samples: Vec::new() };
        self.below.store(u64::MAX / one_in, Ordering::Relaxed);
    }

    /// What was kept. Nothing is until the next [`Sampler::arm`].
    pub(super) fn take(&self) -> Vec<Sample<K, V>> {
        self.below.store(0, Ordering::Relaxed);
        std::mem::take(&mut self.kept.lock().samples)
    }

    /// For each hit.
    #[inline]
    pub(super) fn hit<Q>(&self, chance: Chance, key: &Q, cached: &Cached<V>)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + ToOwned<Owned = K>,
    {
        if chance.0 < self.below.load(Ordering::Relaxed) {
            self.keep(key, cached);
        }
    }

    #[cold]
    fn keep<Q>(&self, key: &Q, cached: &Cached<V>)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + ToOwned<Owned = K>,
    {
        // A hit waits for nobody.
        let Some(mut kept) = self.kept.try_lock() else { return };
        if self.below.load(Ordering::Relaxed) == 0 {
            return;
        }
        if kept.samples.iter().all(|(sampled, _)| sampled.borrow() != key) {
            kept.samples.push((key.to_owned(), Arc::clone(&cached.entry)));
            kept.bytes += u64::from(cached.weight());
        }
        if kept.samples.len() >= kept.most || kept.bytes >= MAX_BYTES {
            self.below.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::coherence::snapshot::Snapshot;
    use crate::local::Made;

    fn entry(weight: u32) -> Cached<()> {
        let stamp = Snapshot::all_below(1);
        let made =
            Made { era: 0, expires_ms: 0, stamp, token: None, made_of: None, judged: true, is_brief: false };
        Cached::new(Arc::new(Entry::new(Some(()), made)), 0, weight, 0)
    }

    /// Bursts of one order of a thousand keys, one every so many intervals: the keys that were ever sampled.
    fn sampled_of_bursts(every: usize, intervals: usize) -> usize {
        let (sampler, entry) = (Sampler::<u64, ()>::new(), entry(300));
        let (mut hits, mut seen) = (0, HashSet::new());
        for interval in 0..intervals {
            sampler.arm(64, hits);
            if interval % every == 0 {
                for key in (0..1_000).cycle().take(5_000) {
                    sampler.hit(Chance::of(hits), &key, &entry);
                    hits += 1;
                }
            }
            let samples = sampler.take();
            assert!(samples.len() <= 64);
            seen.extend(samples.into_iter().map(|(key, _)| key));
        }
        seen.len()
    }

    #[test]
    fn reads_that_come_in_bursts_of_one_order_are_all_sampled_in_time() {
        assert!(sampled_of_bursts(1, 60) > 900);
        assert!(sampled_of_bursts(2, 120) > 900);
    }

    #[test]
    fn samples_end_by_their_bytes() {
        let (sampler, entry) = (Sampler::<u64, ()>::new(), entry(400_000));
        sampler.arm(64, 0);
        (0..1_000).for_each(|number| sampler.hit(Chance::of(number), &number, &entry));
        assert_eq!(sampler.take().len(), 3);
        sampler.hit(Chance::of(2_000), &7, &entry);
        assert!(sampler.take().is_empty(), "it is not armed");
    }
}
