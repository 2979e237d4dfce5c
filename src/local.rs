//! L1: the values that this process holds, in moka, bounded in bytes.
//!
//! moka bounds memory and chooses what to keep. Everything else about an entry (whether it may be served, and for
//! how long) is in the entry and is judged at each hit: moka's own `get_with`, `invalidate_all` and time to live
//! can't be used, for they let a value in that was invalidated while it was loaded.

use std::hash::Hash;
use std::sync::Arc;

#[cfg(doc)]
use crate::coherence::buckets::Buckets;
use crate::coherence::buckets::Slot;
use crate::coherence::snapshot::Snapshot;

/// One value, or the knowledge that there is none.
#[derive(Debug)]
pub(crate) struct Entry<V> {
    /// The era and the cache's epoch in which the load *began*. A hit compares both.
    pub(crate) era: u64,
    pub(crate) cache_epoch: u64,
    pub(crate) stamp: Snapshot,
    /// Asked by each hit; see [`Buckets::slot_of_spelling`].
    pub(crate) slot: Option<Slot>,
    pub(crate) expires_ms: u64,
    pub(crate) weight: u32,
    pub(crate) value: Option<Arc<V>>,
}

/// What an entry costs beside its key and value: moka's own bookkeeping and ours, measured at about 300 bytes.
const ENTRY_BYTES: usize = 300;

pub(crate) struct Local<K, V> {
    entries: moka::sync::Cache<K, Arc<Entry<V>>, foldhash::fast::RandomState>,
}

impl<K: Hash + Eq + Send + Sync + 'static, V: Send + Sync + 'static> Local<K, V> {
    pub(crate) fn new(name: &str, capacity_bytes: u64) -> Self {
        let entries = moka::sync::Cache::builder()
            .name(name)
            .max_capacity(capacity_bytes)
            .weigher(|_, entry: &Arc<Entry<V>>| entry.weight)
            .build_with_hasher(foldhash::fast::RandomState::default());
        Self { entries }
    }

    pub(crate) fn get(&self, key: &K) -> Option<Arc<Entry<V>>> {
        self.entries.get(key)
    }

    /// The entry, for who only looks. moka counts it as a use, for it has no other way to one that is held.
    pub(crate) fn peek(&self, key: &K) -> Option<Arc<Entry<V>>> {
        if self.entries.contains_key(key) { self.get(key) } else { None }
    }

    /// Only under the key's stripe, and only if the stamp is accepted there.
    pub(crate) fn insert(&self, key: K, entry: Arc<Entry<V>>) {
        self.entries.insert(key, entry);
    }

    /// Evicts the key unless what is held contains `xid`. Always, also for duplicates: that is what keeps an entry
    /// that came in between from being older than an invalidation known here. Returns whether something went.
    pub(crate) fn evict(&self, key: &K, xid: u64) -> bool {
        // `contains_key` first: most invalidations are of keys not held, and it leaves no trace in moka's policy.
        let stale =
            self.entries.contains_key(key) && self.get(key).is_some_and(|entry| !entry.stamp.contains(xid));
        if stale {
            self.entries.invalidate(key);
        }
        stale
    }

    pub(crate) fn remove(&self, key: &K) {
        self.entries.invalidate(key);
    }

    /// Entries and bytes held, after moka's pending work.
    pub(crate) fn size(&self) -> (u64, u64) {
        self.entries.run_pending_tasks();
        (self.entries.entry_count(), self.entries.weighted_size())
    }
}

impl<V> Entry<V> {
    /// The weight of an entry whose key's text and value take about so many bytes.
    pub(crate) fn weigh(key_bytes: usize, value_bytes: usize, stamp: &Snapshot) -> u32 {
        u32::try_from(ENTRY_BYTES + key_bytes + value_bytes + stamp.heap_bytes()).unwrap_or(u32::MAX)
    }
}
