//! L1: the values that this process holds, bounded in bytes.
//!
//! Hits are served from an index without locks. moka bounds memory and chooses what to keep: it is told of each insert, removal
//! and miss, and of one hit in [`TOUCHES`]. A hit that moka is told of writes to lines that all cores share.
//!
//! What is in the index is in moka too, or on its way there, so memory stays bounded: an entry is put into the index first, and
//! what moka lets go leaves the index by its listener, if it is still that very entry:
//! `in_no_interleaving_does_the_index_keep_what_moka_has_let_go`. moka may hold what the index does not: that is read by nobody.
//!
//! Whether an entry may be served, and for how long, is in the entry and is judged at each hit: moka's own `get_with`,
//! `invalidate_all` and time to live can't be used, for they let a value in that was invalidated while it was loaded.

use std::borrow::Borrow;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use foldhash::fast::RandomState;
use papaya::{Guard, HashMapRef, LocalGuard};

use crate::coherence::buckets::Subject;
use crate::coherence::snapshot::Snapshot;
use crate::coherence::token::Token;
use crate::wire::Dependency;
pub(crate) use shares::GroupOf;
use shares::Shares;

mod shares;

/// A group may take this part of L1.
const SHARE: u64 = 4;
/// moka is told of one hit in so many: see `benches/README.md` for what it keeps then.
pub(crate) const TOUCHES: u64 = 16;
/// Entries above this weight are freed soon when they go: beside the capacity a thread keeps no more than some 32 smaller ones.
const LARGE: u32 = 16 << 10;

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
    pub(crate) value: Option<V>,
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
    index: Arc<Index<K, V>>,
    /// What bounds the index. Nothing is served from here.
    policy: moka::sync::Cache<K, Arc<Entry<V>>, RandomState>,
    shares: Option<Grouped<K, V>>,
    /// moka drops at once what it has no room for at all, and tells nobody.
    holds_nothing: bool,
}

type Index<K, V> = papaya::HashMap<K, Arc<Entry<V>>, RandomState>;

/// L1 while one looks at what it holds: what is looked at is freed only after. Made without a write that another core sees.
pub(crate) struct Pinned<'a, K, V>(HashMapRef<'a, K, Arc<Entry<V>>, RandomState, LocalGuard<'a>>);

/// Which group an entry is of, and what the groups hold.
struct Grouped<K, V> {
    group: GroupOf<K, V>,
    held: Arc<Shares<K>>,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static, V: Send + Sync + 'static> Local<K, V> {
    pub(crate) fn new(name: &str, capacity_bytes: u64, group: Option<GroupOf<K, V>>) -> Self {
        let index = Arc::new(Index::with_hasher(RandomState::default()));
        let held = Arc::new(Shares::new(capacity_bytes / SHARE));
        let shares = group.map(|group| Grouped { group, held });
        let let_go = {
            let index = Arc::clone(&index);
            let shares = shares.as_ref().map(|Grouped { group, held }| (Arc::clone(group), Arc::clone(held)));
            move |key: Arc<K>, entry: Arc<Entry<V>>, _cause| {
                // What is the application's may panic: its grouping, or the end of a value. moka would never call again.
                let _panicked = catch_unwind(AssertUnwindSafe(|| {
                    let _gone_already = remove_exactly(&index, &*key, &entry);
                    if let Some((group, held)) = &shares {
                        held.went(group(&key, entry.value.as_ref()), entry.weight);
                    }
                    drop(entry);
                }));
            }
        };
        let policy = moka::sync::Cache::builder()
            .name(name)
            .max_capacity(capacity_bytes)
            .weigher(|_, entry: &Arc<Entry<V>>| entry.weight)
            .eviction_listener(let_go)
            .build_with_hasher(RandomState::default());
        Self { index, policy, shares, holds_nothing: capacity_bytes == 0 }
    }

    /// To look at what is held.
    #[inline]
    pub(crate) fn pin(&self) -> Pinned<'_, K, V> {
        Pinned(self.index.pin())
    }

    /// The entry, for who only looks: it leaves no trace.
    pub(crate) fn peek(&self, key: &K) -> Option<Arc<Entry<V>>> {
        self.pin().get(key).cloned()
    }

    /// Tells moka of a use: of one hit in [`TOUCHES`], and of each read that finds nothing.
    pub(crate) fn touch<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        // Only told: what it returns may be what the index has let go.
        let _told = self.policy.get(key);
    }

    /// Only under the key's stripe, and only if the stamp is accepted there.
    pub(crate) fn insert(&self, key: K, entry: Arc<Entry<V>>) {
        if self.holds_nothing {
            return;
        }
        let group = self.shares.as_ref().map(|shares| (shares, (shares.group)(&key, entry.value.as_ref())));
        if let Some((Grouped { held, .. }, group)) = &group {
            held.came(*group, key.clone(), entry.weight);
        }
        // In this order: what moka lets go at once would stay in the index for good.
        put(&self.index, key.clone(), Arc::clone(&entry));
        self.policy.insert(key, entry);
        if let Some((Grouped { held, .. }, group)) = group {
            // What goes may go without its key's stripe: nothing is wrong without it.
            while let Some(oldest) = held.over(group) {
                self.remove(&oldest);
            }
            held.tidy(group, |key| self.policy.contains_key(key));
        }
    }

    /// Evicts the key unless what is held contains `xid`. Always, also for duplicates: that is what keeps an entry
    /// that came in between from being older than an invalidation known here. Returns whether something went.
    pub(crate) fn evict(&self, key: &K, xid: u64) -> bool {
        let stale = self.pin().get(key).is_some_and(|entry| !entry.stamp.contains(xid));
        if stale {
            self.remove(key);
        }
        stale
    }

    pub(crate) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        remove(&self.index, key);
        self.policy.invalidate(key);
    }

    /// Removes an entry that was just looked at; what has come in its place stays.
    pub(crate) fn remove_exactly<Q>(&self, key: &Q, entry: &Arc<Entry<V>>)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        if remove_exactly(&self.index, key, entry) {
            self.policy.invalidate(key);
        }
    }

    /// Entries and bytes held, after moka's pending work.
    pub(crate) fn size(&self) -> (u64, u64) {
        self.policy.run_pending_tasks();
        (self.policy.entry_count(), self.policy.weighted_size())
    }
}

impl<K: Hash + Eq, V> Pinned<'_, K, V> {
    #[inline]
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&Arc<Entry<V>>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        self.0.get(key)
    }
}

fn put<K: Hash + Eq, V>(index: &Index<K, V>, key: K, entry: Arc<Entry<V>>) {
    let guard = index.guard();
    hurry(index.insert(key, entry, &guard), &guard);
}

fn remove<K, Q, V>(index: &Index<K, V>, key: &Q)
where
    K: Borrow<Q> + Hash + Eq,
    Q: ?Sized + Eq + Hash,
{
    let guard = index.guard();
    hurry(index.remove(key, &guard), &guard);
}

/// Removes an entry, and none that has come in its place.
fn remove_exactly<K, Q, V>(index: &Index<K, V>, key: &Q, entry: &Arc<Entry<V>>) -> bool
where
    K: Borrow<Q> + Hash + Eq,
    Q: ?Sized + Eq + Hash,
{
    let guard = index.guard();
    let removed = index.remove_if(key, |_, held| Arc::ptr_eq(held, entry), &guard).ok().flatten();
    hurry(removed.map(|(_, entry)| entry), &guard);
    removed.is_some()
}

/// What is let go is freed by the dozen, thread by thread, and nobody knows when. Not what is large.
fn hurry<V>(gone: Option<&Arc<Entry<V>>>, guard: &LocalGuard<'_>) {
    if gone.is_some_and(|entry| entry.weight > LARGE) {
        guard.flush();
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
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;

    fn entry(value: Option<u64>, weight: u32) -> Arc<Entry<u64>> {
        entry_of(Snapshot::all_below(1), value, weight)
    }

    fn entry_of(stamp: Snapshot, value: Option<u64>, weight: u32) -> Arc<Entry<u64>> {
        Arc::new(Entry {
            era: 0,
            cache_epoch: 0,
            stamp,
            token: None,
            made_of: None,
            judged: true,
            expires_ms: 0,
            weight,
            value,
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
        local.policy.run_pending_tasks();
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
        local.policy.run_pending_tasks();
        let (bytes, order) = local.shares.as_ref().unwrap().held.held(1);
        assert_eq!(bytes, 300);
        assert!(order <= 70, "{order}");
        local.remove(&1_999);
        local.policy.run_pending_tasks();
        assert_eq!(local.shares.as_ref().unwrap().held.held(1), (0, 0));
        // One that is larger than a share stays, alone.
        local.insert(1_001, entry(Some(1), 15_000));
        assert!(local.peek(&1_001).is_some());
    }

    /// Keys that are put and evicted under a lock of theirs, as under a stripe; the number is what was evicted last.
    struct Racing {
        local: Local<u64, u64>,
        evicted: Vec<(parking_lot::Mutex<()>, AtomicU64)>,
        clock: AtomicU64,
    }

    impl Racing {
        fn step(&self, number: u64) {
            let key = number % KEYS;
            let (stripe, evicted) = &self.evicted[usize::try_from(key).unwrap()];
            match number / KEYS % 8 {
                0..4 => {
                    let _stripe = stripe.lock();
                    let stamp = Snapshot::all_below(self.clock.load(Ordering::Relaxed));
                    self.local.insert(key, entry_of(stamp, Some(key), 100));
                }
                4 => {
                    let _stripe = stripe.lock();
                    let xid = self.clock.fetch_add(1, Ordering::Relaxed);
                    self.local.evict(&key, xid);
                    evicted.store(xid, Ordering::Release);
                }
                5 => self.local.remove(&key),
                6 => drop(self.local.peek(&key).map(|entry| self.local.remove_exactly(&key, &entry))),
                _ => self.local.touch(&key),
            }
            let evicted = evicted.load(Ordering::Acquire);
            let contains = |entry: &Arc<Entry<u64>>| entry.stamp.contains(evicted);
            assert!(self.local.pin().get(&key).is_none_or(contains), "what was evicted is there again");
        }
    }

    const KEYS: u64 = 2_000;

    #[test]
    fn whatever_races_the_index_holds_nothing_that_was_evicted_and_nothing_that_moka_does_not_hold() {
        let racing = Racing {
            // A tenth of the keys fit.
            local: Local::new("racing", 20_000, None),
            evicted: (0..KEYS).map(|_| (parking_lot::Mutex::new(()), AtomicU64::new(0))).collect(),
            clock: AtomicU64::new(1),
        };
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let racing = &racing;
                scope.spawn(move || {
                    let mut number = thread + 1;
                    for _ in 0..100_000 {
                        number = number
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        racing.step(number >> 33);
                    }
                });
            }
        });
        let Racing { local, .. } = racing;
        let (entries, bytes) = local.size();
        assert!(bytes <= 20_000 && entries > 0);
        let index = local.index.pin();
        for (key, entry) in &index {
            let held = local.policy.get(key).expect("moka holds it too");
            assert!(Arc::ptr_eq(&held, entry), "moka holds that very entry");
        }
        assert!(index.len() as u64 <= entries && index.len() > 50, "{} of {entries}", index.len());
    }

    /// Also what moka has let go before the insert that has brought it is over.
    #[test]
    fn what_is_too_large_to_be_held_or_held_nowhere_leaves_the_index() {
        for capacity in [0, 1_000] {
            let local = Local::<u64, u64>::new("small", capacity, None);
            let ended = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        local.policy.run_pending_tasks();
                    }
                });
                (0..100_000).for_each(|key| local.insert(key, entry(Some(key), 1_001)));
                ended.store(true, Ordering::Relaxed);
            });
            assert_eq!((local.size(), local.index.len()), ((0, 0), 0));
        }
    }

    #[test]
    fn a_newer_entry_survives_the_removal_of_the_one_before_it() {
        let local = local();
        let (old, new) = (entry(Some(1), 100), entry(Some(2), 100));
        local.insert(1, Arc::clone(&old));
        local.insert(1, new);
        local.remove_exactly(&1, &old);
        assert_eq!(local.peek(&1).and_then(|entry| entry.value), Some(2));
    }

    /// Of a group that is another one at each look, and at last none.
    #[test]
    fn a_panic_of_the_applications_leaves_nothing_in_the_index() {
        let asked = Arc::new(AtomicU64::new(0));
        let group = {
            let asked = Arc::clone(&asked);
            move |_: &u64, _: Option<&u64>| match asked.fetch_add(1, Ordering::Relaxed) {
                0..200 => 7,
                _ => panic!("no group"),
            }
        };
        let local = Local::<u64, u64>::new("panics", 1 << 20, Some(Arc::new(group)));
        (0..200).for_each(|key| local.insert(key, entry(Some(key), 100)));
        (0..200).for_each(|key| local.policy.invalidate(&key));
        assert_eq!((local.size().0, local.index.len()), (0, 0));
    }

    /// A value that tells when it ends.
    struct Counted(Arc<AtomicU64>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// By each thread that goes on: moka frees what it lets go by other means.
    #[test]
    fn of_large_values_that_went_few_are_kept_for_long() {
        let living = Arc::new(AtomicU64::new(0));
        let counted = |weight| {
            living.fetch_add(1, Ordering::Relaxed);
            let Entry { stamp, .. } = Arc::into_inner(entry(None, 0)).unwrap();
            let value = Some(Counted(Arc::clone(&living)));
            let (era, cache_epoch, expires_ms) = (0, 0, 0);
            Arc::new(Entry {
                era,
                cache_epoch,
                stamp,
                token: None,
                made_of: None,
                judged: true,
                expires_ms,
                weight,
                value,
            })
        };
        let kept = |weight: u32| {
            let index = Index::<u64, Counted>::with_hasher(RandomState::default());
            let done = std::sync::Barrier::new(9);
            std::thread::scope(|scope| {
                for key in 0..8 {
                    let (index, counted, done) = (&index, &counted, &done);
                    scope.spawn(move || {
                        for _ in 0..12 {
                            // Two go: one is replaced, one removed.
                            put(index, key, counted(weight));
                            put(index, key, counted(weight));
                            remove(index, &key);
                        }
                        done.wait();
                        done.wait();
                    });
                }
                done.wait();
                let kept = living.load(Ordering::Relaxed);
                done.wait();
                kept
            })
        };
        let (large, small) = (kept(LARGE + 1), kept(LARGE));
        assert!(large <= 8 * 8 && small > 2 * large, "{large} large ones are kept, {small} small ones");
    }
}
