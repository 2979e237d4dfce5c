//! Values that were invalidated, or whose time is over, for who would rather have one than wait.
//!
//! They lie apart from L1, so that none is ever taken for fresh: whoever gets one gets it flagged, with the cause and since when.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::{Semaphore, watch};

use super::policy::{Policy, StaleWhileLoading, millis};
use super::types::{Key, Value};
use crate::local::{Cached, Entry, Outdated, hash_of};
use crate::read::{Freshness, Read, StaleCause};

/// Loads of one cache that replace stale values at a time. Beyond that a stale value is served without one.
const REFRESHES: usize = 256;
/// Part of the cache's capacity that stale values may take beside it.
const SHARE: u64 = 8;
/// Longer than anybody asks for; moka has a limit.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// What a cache keeps of values that L1 has no more, and of those that are replaced.
pub(super) struct StaleEntries<K, V> {
    pub(super) policy: StaleWhileLoading,
    hot: Option<Hot>,
    pub(super) held: moka::sync::Cache<K, Arc<StaleEntry<V>>>,
    pub(super) places: Arc<Semaphore>,
}

/// A value that is being replaced, or should be.
pub(super) struct StaleEntry<V> {
    pub(super) entry: Arc<Entry<V>>,
    /// The cache's epoch in which the load of the value began.
    pub(super) cache_epoch: u64,
    weight: u32,
    cause: Cause,
    /// On the instance's clock: no write is missing that was visible more than the bound before.
    since_ms: AtomicU64,
    pub(super) refresh: Mutex<Refresh<V>>,
}

#[derive(Clone, Copy)]
pub(super) enum Cause {
    Invalidated,
    Expired,
}

/// The load that replaces a value.
pub(super) enum Refresh<V> {
    None,
    /// Over once its sender is gone.
    Running(Landing<V>),
    FailedUntil(u64),
}

/// What a refresh has brought, once it has; nothing where it has failed.
pub(super) type Landing<V> = watch::Receiver<Option<Read<V>>>;

/// Loads that a read may wait for, for the keys that have a stale answer so far.
pub(super) struct Refreshing<V> {
    pub(super) of: SmallVec<[Awaited<V>; 1]>,
    pub(super) after: Duration,
}

pub(super) struct Awaited<V> {
    /// The key's place among the keys.
    pub(super) at: usize,
    pub(super) landing: Landing<V>,
    /// Whether it was begun by this very read: then all that it brings is this read's.
    pub(super) is_own: bool,
}

impl<K: Key, V: Value> StaleEntries<K, V> {
    pub(super) fn new(policy: &Policy) -> Option<Self> {
        // A value that is refreshed ahead is looked after here too, and is never stale.
        let ahead = StaleWhileLoading::for_up_to(Duration::ZERO);
        let is_used = policy.stale.is_some() || policy.refreshes();
        let stale = policy.stale.unwrap_or(ahead);
        is_used.then(|| Self {
            policy: stale,
            hot: policy.refresh_hot.then(Hot::default),
            held: moka::sync::Cache::builder()
                .max_capacity(policy.capacity_bytes / SHARE)
                .weigher(|_key: &K, stale: &Arc<StaleEntry<V>>| stale.weight)
                // By the wall's clock, which is no promise: whoever is served one looks at the instance's.
                .time_to_live(
                    stale.grace.saturating_add(policy.refresh_ahead).clamp(Duration::from_secs(1), LONGEST),
                )
                .build(),
            places: Arc::new(Semaphore::new(REFRESHES)),
        })
    }

    /// What L1 is about to evict because of a write. Under the key's stripe, as inserts are.
    pub(super) fn keep(&self, key: &K, outdated: Outdated<V>, cause: Cause, since_ms: u64) {
        let Outdated { entry, cache_epoch, weight } = outdated;
        let refresh = Mutex::new(Refresh::None);
        self.held.insert(
            key.clone(),
            Arc::new(StaleEntry {
                entry,
                cache_epoch,
                weight,
                cause,
                since_ms: AtomicU64::new(since_ms),
                refresh,
            }),
        );
    }

    /// L1 holds the key's successor. Under the key's stripe.
    pub(super) fn replaced(&self, key: &K) {
        self.held.invalidate(key);
    }

    /// What L1 still holds though its time is over, or nearly.
    pub(super) fn of_held(&self, key: &K, cached: &Cached<V>, since_ms: u64) -> Arc<StaleEntry<V>> {
        if let Some(stale) = self.held.get(key)
            && Arc::ptr_eq(&stale.entry, &cached.entry)
        {
            return stale;
        }
        let stale = Arc::new(StaleEntry {
            entry: Arc::clone(&cached.entry),
            cache_epoch: cached.cache_epoch(),
            weight: cached.weight(),
            cause: Cause::Expired,
            since_ms: AtomicU64::new(since_ms),
            refresh: Mutex::new(Refresh::None),
        });
        self.held.insert(key.clone(), Arc::clone(&stale));
        stale
    }
}

impl<V> StaleEntry<V> {
    /// It was still good then.
    pub(super) fn was_good_at(&self, ms: u64) {
        self.since_ms.fetch_max(ms, Ordering::Relaxed);
    }

    pub(super) fn freshness(&self, now_ms: u64) -> Freshness {
        let since = Duration::from_millis(now_ms.saturating_sub(self.since_ms.load(Ordering::Relaxed)));
        Freshness::Stale(match self.cause {
            Cause::Invalidated => StaleCause::Invalidated { since },
            Cause::Expired => StaleCause::Expired { since },
        })
    }
}

impl<K: Key, V: Value> StaleEntries<K, V> {
    /// Whether the key was hit since this was asked last, of a thousand hits one.
    pub(super) fn was_hot(&self, key: &K) -> bool {
        self.hot.as_ref().is_some_and(|hot| hot.was(key))
    }

    /// One of a thousand hits of the cache.
    pub(super) fn hit<Q: Hash + ?Sized>(&self, key: &Q) {
        if let Some(hot) = &self.hot {
            hot.hit(key);
        }
    }

    pub(super) fn is_in_time(&self, stale: &StaleEntry<V>, now_ms: u64) -> bool {
        now_ms.saturating_sub(stale.since_ms.load(Ordering::Relaxed)) < millis(self.policy.grace)
    }
}

/// Keys that a sampled hit was of, lately: each place is the last one's whose hash falls there.
struct Hot([AtomicU64; HOT]);

const HOT: usize = 256;

impl Default for Hot {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Hot {
    fn place<Q: Hash + ?Sized>(&self, key: &Q) -> (&AtomicU64, u64) {
        let hash = hash_of(key) | 1;
        (&self.0[usize::try_from(hash >> 32).unwrap_or_default() % HOT], hash)
    }

    fn hit<Q: Hash + ?Sized>(&self, key: &Q) {
        let (place, hash) = self.place(key);
        place.store(hash, Ordering::Relaxed);
    }

    /// Whether it was hit since this was asked last: so a key that nobody reads any more is refreshed once.
    fn was<Q: Hash + ?Sized>(&self, key: &Q) -> bool {
        let (place, hash) = self.place(key);
        place.compare_exchange(hash, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
