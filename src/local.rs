//! L1: the values that this process holds, in moka, bounded in bytes.
//!
//! moka bounds memory and chooses what to keep. Everything else about an entry (whether it may be served, and for
//! how long) is in the entry and is judged at each hit: moka's own `get_with`, `invalidate_all` and time to live
//! can't be used, for they let a value in that was invalidated while it was loaded.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;

use crate::coherence::buckets::Subject;
use crate::coherence::snapshot::Snapshot;
use crate::coherence::token::Token;
use crate::wire::Dependency;
pub(crate) use shares::GroupOf;
use shares::Shares;

mod shares;

/// A group may take this part of L1.
const SHARE: u64 = 4;

/// One value, or the knowledge that there is none.
#[derive(Debug)]
pub(crate) struct Entry<V> {
    /// The era and the cache's epoch in which the load *began*. A hit compares both.
    pub(crate) era: u64,
    pub(crate) cache_epoch: u64,
    pub(crate) stamp: Snapshot,
    /// What a later answer must contain to be no older than this one. `None` where nobody knows what it holds beyond its stamp: it is
    /// a replica's, or computed.
    pub(crate) token: Option<Token>,
    /// Judged by each hit, since no eviction tells of it.
    pub(crate) made_of: Option<Box<MadeOf>>,
    /// Else it depends on more than can be judged: it is cached nowhere, and nobody joins it.
    pub(crate) judged: bool,
    pub(crate) expires_ms: u64,
    pub(crate) weight: u32,
    pub(crate) value: Option<Arc<V>>,
}

/// What an entry was made of that may change without its key being evicted.
pub(crate) struct MadeOf {
    /// The entry's own key, where the log may spell it otherwise; and what it depends on.
    pub(crate) subjects: Box<[Subject]>,
    /// What it depends on, by name.
    pub(crate) depends: Box<[Dependency]>,
}

/// What an entry costs beside its key and value: moka's own bookkeeping and ours, measured at about 300 bytes.
const ENTRY_BYTES: usize = 300;

pub(crate) struct Local<K, V> {
    entries: moka::sync::Cache<K, Arc<Entry<V>>, foldhash::fast::RandomState>,
    shares: Option<Grouped<K, V>>,
}

/// Which group an entry is of, and what the groups hold.
struct Grouped<K, V> {
    group: GroupOf<K, V>,
    held: Arc<Shares<K>>,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static, V: Send + Sync + 'static> Local<K, V> {
    pub(crate) fn new(name: &str, capacity_bytes: u64, group: Option<GroupOf<K, V>>) -> Self {
        let held = Arc::new(Shares::new(capacity_bytes / SHARE));
        let shares = group.map(|group| Grouped { group, held });
        let mut builder = moka::sync::Cache::builder()
            .name(name)
            .max_capacity(capacity_bytes)
            .weigher(|_, entry: &Arc<Entry<V>>| entry.weight);
        if let Some(Grouped { group, held }) = &shares {
            let (group, held) = (Arc::clone(group), Arc::clone(held));
            builder = builder.eviction_listener(move |key: Arc<K>, entry: Arc<Entry<V>>, _| {
                held.went(group(&key, entry.value.as_deref()), entry.weight);
            });
        }
        Self { entries: builder.build_with_hasher(foldhash::fast::RandomState::default()), shares }
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<Arc<Entry<V>>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        self.entries.get(key)
    }

    /// The entry, for who only looks. moka counts it as a use, for it has no other way to one that is held.
    pub(crate) fn peek(&self, key: &K) -> Option<Arc<Entry<V>>> {
        if self.entries.contains_key(key) { self.get(key) } else { None }
    }

    /// Only under the key's stripe, and only if the stamp is accepted there.
    pub(crate) fn insert(&self, key: K, entry: Arc<Entry<V>>) {
        let Some(Grouped { group, held }) = &self.shares else { return self.entries.insert(key, entry) };
        let group = group(&key, entry.value.as_deref());
        held.came(group, key.clone(), entry.weight);
        self.entries.insert(key, entry);
        // What goes may go without its key's stripe: nothing is wrong without it.
        while let Some(oldest) = held.over(group) {
            self.entries.invalidate(&oldest);
        }
        held.tidy(group, |key| self.entries.contains_key(key));
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

    pub(crate) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
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
    pub(crate) fn weigh(
        key_bytes: usize,
        value_bytes: usize,
        stamp: &Snapshot,
        made_of: Option<&MadeOf>,
    ) -> u32 {
        let made_of = made_of.map_or(0, MadeOf::bytes);
        let bytes = ENTRY_BYTES + key_bytes + value_bytes + stamp.heap_bytes() + made_of;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// What each hit judges.
    #[inline]
    pub(crate) fn subjects(&self) -> &[Subject] {
        self.made_of.as_ref().map_or(&[], |made_of| &made_of.subjects)
    }

    pub(crate) fn depends(&self) -> &[Dependency] {
        self.made_of.as_ref().map_or(&[], |made_of| &made_of.depends)
    }
}

impl MadeOf {
    fn bytes(&self) -> usize {
        // With the heads that two texts have on the heap.
        let texts: usize = self.depends.iter().map(|on| on.cache.len() + on.key.len() + 32).sum();
        size_of::<Self>() + size_of_val(&*self.subjects) + size_of_val(&*self.depends) + texts
    }
}

impl std::fmt::Debug for MadeOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.depends.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: Option<u64>, weight: u32) -> Arc<Entry<u64>> {
        Arc::new(Entry {
            era: 0,
            cache_epoch: 0,
            stamp: Snapshot::all_below(1),
            token: None,
            made_of: None,
            judged: true,
            expires_ms: 0,
            weight,
            value: value.map(Arc::new),
        })
    }

    /// Of keys, the thousands are their groups; of what is not there, all are of group 0.
    fn local() -> Local<u64, u64> {
        let group = |key: &u64, value: Option<&u64>| value.map_or(0, |_| key / 1_000);
        Local::new("shares", 40_000, Some(Arc::new(group)))
    }

    #[test]
    fn a_group_that_takes_more_than_its_share_loses_its_own_oldest_entries_and_no_other_any() {
        let local = local();
        (1_000..1_010).for_each(|key| local.insert(key, entry(Some(key), 100)));
        for round in 0..20 {
            (2_000..2_900).for_each(|key| local.insert(key, entry(Some(round), 100)));
            (3_000..3_900).for_each(|key| local.insert(key, entry(None, 100)));
        }
        local.entries.run_pending_tasks();
        assert!((1_000..1_010).all(|key| local.peek(&key).is_some()), "the quiet one's");
        let held = (2_000..2_900).filter(|key| local.peek(key).is_some()).count();
        assert!((90..=100).contains(&held), "{held}");
        assert!(local.peek(&2_899).is_some() && local.peek(&2_000).is_none());
        let (bytes, order) = local.shares.as_ref().unwrap().held.held(2);
        assert!(bytes <= 10_000 && order <= 400, "{bytes} {order}");
        assert!(local.shares.as_ref().unwrap().held.held(0).0 <= 10_000, "what is not there has one share");
    }

    #[test]
    fn what_goes_is_taken_off_its_groups_share() {
        let local = local();
        for key in 1_000..1_050 {
            // The same key again and again, and removed.
            local.insert(key, entry(Some(1), 100));
            local.insert(key, entry(Some(2), 200));
            local.insert(1_999, entry(Some(3), 300));
            local.remove(&key);
        }
        local.entries.run_pending_tasks();
        let (bytes, order) = local.shares.as_ref().unwrap().held.held(1);
        assert_eq!(bytes, 300);
        assert!(order <= 70, "{order}");
        local.remove(&1_999);
        local.entries.run_pending_tasks();
        assert_eq!(local.shares.as_ref().unwrap().held.held(1), (0, 0));
        // One that is larger than a share stays, alone.
        local.insert(1_001, entry(Some(1), 15_000));
        assert!(local.peek(&1_001).is_some());
    }
}
