//! L1: the values that this process holds, bounded in bytes.
//!
//! Hits are served from an index without locks. moka bounds memory and chooses what to keep. It knows hashes of keys, and is told of each
//! insert, removal and miss; of a hit only where it is the entry's first one in a [lap](Laps). A hit that moka is told of writes to lines
//! that all cores share.
//!
//! What is in the index is in moka too, or on its way there, so memory stays bounded: an entry is put into the index first, and
//! what moka lets go leaves the index by its listener:
//! `in_no_interleaving_does_the_index_keep_what_moka_has_let_go`. moka may hold what the index does not: a hash, and nothing else.
//!
//! Whether an entry may be served, and for how long, is in the entry and is judged at each hit: moka's own `get_with`,
//! `invalidate_all` and time to live can't be used, for they let a value in that was invalidated while it was loaded.

use std::borrow::Borrow;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use foldhash::fast::RandomState;
use moka::notification::RemovalCause;
use papaya::{Equivalent, Guard, HashMapRef, LocalGuard};

use entry::ENTRY_BYTES;
pub(crate) use entry::{Entry, Made, MadeOf};
pub(crate) use shares::GroupOf;
use shares::Shares;

mod entry;
mod shares;

/// A group may take this part of L1.
const SHARE: u64 = 4;
/// Entries above this weight are freed soon when they go: beside the capacity a thread keeps no more than some 32 smaller ones.
const LARGE: u32 = 16 << 10;
/// Where an entry's weight ends: below are the bits that say when moka was last told of it.
const LAP_BITS: u32 = 0xF;

pub(crate) struct Local<K, V> {
    index: Arc<Index<K, V>>,
    /// What bounds the index, by the hashes of its keys.
    policy: moka::sync::Cache<u64, (), Hashed>,
    laps: Laps,
    /// moka drops at once what it has no room for at all, and tells nobody.
    holds_nothing: bool,
}

struct Index<K, V> {
    held: papaya::HashMap<Held<K>, Cached<V>, Hashed>,
    shares: Option<Grouped<K, V>>,
}

/// What is held for a key.
#[derive(Debug)]
pub(crate) struct Cached<V> {
    pub(crate) entry: Arc<Entry<V>>,
    /// The cache's epoch in which the load *began*. A hit compares it.
    cache_epoch: u32,
    /// The weight, and in [`LAP_BITS`] the lap in which moka was last told of a use.
    weight: AtomicU32,
}

/// What lacks a write.
pub(crate) struct Outdated<V> {
    pub(crate) entry: Arc<Entry<V>>,
    pub(crate) cache_epoch: u64,
    pub(crate) weight: u32,
}

/// L1 while one looks at what it holds: what is looked at is freed only after. Made without a write that another core sees.
pub(crate) struct Pinned<'a, K, V>(HashMapRef<'a, Held<K>, Cached<V>, Hashed, LocalGuard<'a>>);

/// Which group an entry is of, and what the groups hold.
struct Grouped<K, V> {
    group: GroupOf<K, V>,
    held: Shares,
}

/// In each lap, entries of a quarter of the capacity have come in. moka is told of an entry's first hit in a lap other than the one in
/// which it came. So it hears of few hits for each entry that comes, and of none where nothing comes, for then nothing has to go.
#[derive(Debug)]
struct Laps {
    bytes: u64,
    now: AtomicU32,
    came: Alone,
}

/// Written by each insert: not on a line that hits read.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Alone(AtomicU64);

/// Part of the capacity.
const LAP: u64 = 4;

/// A key in the index. Two of one hash are one to moka, so they are one here: the newer takes the other's place.
struct Held<K>(K);

/// What is asked for, by its hash and itself.
struct Wanted<'a, Q: ?Sized>(u64, &'a Q);

/// What moka lets go: whatever has this hash.
struct Gone(u64);

/// Hashes are made once, by [`hash_of`], and are hashes of themselves.
type Hashed = BuildHasherDefault<Itself>;

#[derive(Default)]
struct Itself(u64);

static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::default);

#[inline]
pub(crate) fn hash_of<Q: Hash + ?Sized>(key: &Q) -> u64 {
    HASHER.hash_one(key)
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static, V: Send + Sync + 'static> Local<K, V> {
    pub(crate) fn new(name: &str, capacity_bytes: u64, group: Option<GroupOf<K, V>>) -> Self {
        let shares = group.map(|group| Grouped { group, held: Shares::new(capacity_bytes / SHARE) });
        let index = Arc::new(Index { held: papaya::HashMap::with_hasher(Hashed::default()), shares });
        let let_go = {
            let index = Arc::clone(&index);
            move |hash: Arc<u64>, (), cause| {
                // What was put again is in the index already.
                if cause != RemovalCause::Replaced {
                    // The application's hash function may panic. moka would never call again.
                    let _panicked = catch_unwind(AssertUnwindSafe(|| index.take(*hash, |_, _| true)));
                }
            }
        };
        let weigh = {
            let index = Arc::clone(&index);
            // It was put there before. What has gone since is a hash, and costs moka what any does.
            move |hash: &u64, (): &()| index.held.pin().get(&Gone(*hash)).map_or(ENTRY_BYTES, Cached::weight)
        };
        let policy = moka::sync::Cache::builder()
            .name(name)
            .max_capacity(capacity_bytes)
            .weigher(weigh)
            .eviction_listener(let_go)
            .build_with_hasher(Hashed::default());
        let laps =
            Laps { bytes: (capacity_bytes / LAP).max(1), now: AtomicU32::new(0), came: Alone::default() };
        Self { index, policy, laps, holds_nothing: capacity_bytes == 0 }
    }

    /// To look at what is held.
    #[inline]
    pub(crate) fn pin(&self) -> Pinned<'_, K, V> {
        Pinned(self.index.held.pin())
    }

    /// A hit: moka is told where it is news.
    #[inline]
    pub(crate) fn used<Q>(&self, key: &Q, cached: &Cached<V>)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        if cached.is_news(self.laps.now.load(Ordering::Relaxed)) {
            self.touch(key);
        }
    }

    /// Tells moka of a use, also of a read that finds nothing. Where misses were told by chance only, the hit ratio would fall by up to
    /// fifteen points.
    #[cold]
    pub(crate) fn touch<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        if !self.holds_nothing {
            let _told = self.policy.get(&hash_of(key));
        }
    }

    /// Only under the key's stripe, and only if the stamp is accepted there. The epoch is the cache's, from when the load *began*.
    pub(crate) fn insert(&self, key: K, entry: Arc<Entry<V>>, cache_epoch: u64, weight: u32) {
        if self.holds_nothing {
            return;
        }
        let hash = hash_of(&key);
        let cached = Cached::new(entry, cache_epoch, weight, self.laps.add(weight));
        let group = self.index.group(&key, &cached);
        if let Some((held, group)) = group {
            held.came(group, hash, cached.weight());
        }
        // In this order: what moka lets go at once would stay in the index for good.
        self.index.put(key, cached);
        self.policy.insert(hash, ());
        if let Some((held, group)) = group {
            // What goes may go without its key's stripe: nothing is wrong without it.
            while let Some(oldest) = held.over(group) {
                self.take(oldest, |_, _| true);
            }
            held.tidy(group, |hash| self.policy.contains_key(hash));
        }
    }

    /// Evicts the key unless what is held contains `xid`. Always, also for duplicates: that is what keeps an entry
    /// that came in between from being older than an invalidation known here. Returns whether something went.
    pub(crate) fn evict(&self, key: &K, xid: u64) -> bool {
        let hash = hash_of(key);
        self.take(hash, |held, cached| held == key && !cached.entry.stamp().contains(xid))
    }

    /// What an eviction of the key for `xid` would take.
    pub(crate) fn outdated(&self, key: &K, xid: u64) -> Option<Outdated<V>> {
        let pinned = self.pin();
        let cached = pinned.get(key)?;
        let entry = Arc::clone(&cached.entry);
        if entry.stamp().contains(xid) {
            return None;
        }
        Some(Outdated { entry, cache_epoch: cached.cache_epoch(), weight: cached.weight() })
    }

    pub(crate) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        let hash = hash_of(key);
        self.take(hash, |held, _| held.borrow() == key);
    }

    /// Removes an entry that was just looked at; what has come in its place stays.
    pub(crate) fn remove_exactly<Q>(&self, key: &Q, entry: &Arc<Entry<V>>)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        let hash = hash_of(key);
        self.take(hash, |held, cached| held.borrow() == key && Arc::ptr_eq(&cached.entry, entry));
    }

    fn take(&self, hash: u64, which: impl Fn(&K, &Cached<V>) -> bool) -> bool {
        let taken = self.index.take(hash, which);
        if taken {
            self.policy.invalidate(&hash);
        }
        taken
    }

    /// Lets go so many entries of the cache's epochs before this one. Whether there may be more.
    pub(crate) fn free_before(&self, cache_epoch: u64, most: usize) -> bool {
        let is_old = |cached: &Cached<V>| cached.cache_epoch() < cache_epoch;
        let old: Vec<u64> = {
            let held = self.index.held.pin();
            let old = held.iter().filter(|(_, cached)| is_old(cached));
            old.map(|(Held(key), _)| hash_of(key)).take(most).collect()
        };
        for hash in &old {
            self.take(*hash, |_, cached| is_old(cached));
        }
        old.len() == most
    }

    /// Entries and bytes held, after moka's pending work.
    pub(crate) fn size(&self) -> (u64, u64) {
        self.policy.run_pending_tasks();
        (self.policy.entry_count(), self.policy.weighted_size())
    }
}

impl<K: Hash + Eq, V> Pinned<'_, K, V> {
    #[inline]
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&Cached<V>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        self.0.get(&Wanted(hash_of(key), key))
    }
}

impl<K: Hash + Eq + Clone, V> Index<K, V> {
    fn group(&self, key: &K, cached: &Cached<V>) -> Option<(&Shares, u64)> {
        let Grouped { group, held } = self.shares.as_ref()?;
        Some((held, group(key, cached.entry.value().as_ref())))
    }

    fn put(&self, key: K, cached: Cached<V>) {
        let guard = self.held.guard();
        let grouped = self.shares.as_ref().map(|_| key.clone());
        if let Some(replaced) = self.held.insert(Held(key), cached, &guard) {
            grouped.iter().for_each(|key| self.went(key, replaced));
            hurry(replaced, &guard);
        }
    }

    /// Takes out what is held, if it is what is meant. It is found by its hash, as the map compares what it holds: while the map grows, it
    /// is not found by a key that has just taken another's place.
    /// Whether it was.
    fn take(&self, hash: u64, which: impl Fn(&K, &Cached<V>) -> bool) -> bool {
        let guard = self.held.guard();
        let taken = self.held.remove_if(&Gone(hash), |Held(key), cached| which(key, cached), &guard);
        let Some((Held(key), cached)) = taken.ok().flatten() else { return false };
        self.went(key, cached);
        hurry(cached, &guard);
        true
    }

    /// Said by who has taken an entry out, and by nobody else.
    fn went(&self, key: &K, cached: &Cached<V>) {
        // The application's grouping may panic.
        let group = catch_unwind(AssertUnwindSafe(|| self.group(key, cached)));
        if let Ok(Some((held, group))) = group {
            held.went(group, cached.weight());
        }
    }
}

/// What is let go is freed by the dozen, thread by thread, and nobody knows when. Not what is large.
fn hurry<V>(gone: &Cached<V>, guard: &LocalGuard<'_>) {
    if gone.weight() > LARGE {
        guard.flush();
    }
}

impl<V> Cached<V> {
    /// An epoch that needs more than 32 bits is none that an entry could have: of a cache that was cleared so often nothing is served.
    pub(crate) fn new(entry: Arc<Entry<V>>, cache_epoch: u64, weight: u32, lap: u32) -> Self {
        let cache_epoch = u32::try_from(cache_epoch).unwrap_or(u32::MAX);
        let weight = weight.saturating_add(LAP_BITS) & !LAP_BITS;
        Self { entry, cache_epoch, weight: AtomicU32::new(weight | (lap & LAP_BITS)) }
    }

    #[inline]
    pub(crate) fn cache_epoch(&self) -> u64 {
        u64::from(self.cache_epoch)
    }

    /// In whole units of 16 bytes.
    pub(crate) fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed) & !LAP_BITS
    }

    /// Whether moka was not told of it in this lap. It is now: of two who are told so at once, both tell.
    #[inline]
    fn is_news(&self, lap: u32) -> bool {
        let weight = self.weight.load(Ordering::Relaxed);
        let is_news = (weight ^ lap) & LAP_BITS != 0;
        if is_news {
            self.weight.store((weight & !LAP_BITS) | (lap & LAP_BITS), Ordering::Relaxed);
        }
        is_news
    }
}

impl Laps {
    /// Adds an entry that comes. Returns the lap.
    fn add(&self, weight: u32) -> u32 {
        let before = self.came.0.fetch_add(u64::from(weight), Ordering::Relaxed);
        let lap = |came: u64| u32::try_from((came / self.bytes) & u64::from(LAP_BITS)).unwrap_or_default();
        let now = lap(before + u64::from(weight));
        if now != lap(before) {
            self.now.store(now, Ordering::Relaxed);
        }
        now
    }
}

impl<K: Hash> Hash for Held<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(hash_of(&self.0));
    }
}

impl<K: Hash> PartialEq for Held<K> {
    fn eq(&self, other: &Self) -> bool {
        hash_of(&self.0) == hash_of(&other.0)
    }
}

impl<K: Hash> Eq for Held<K> {}

impl<Q: ?Sized> Hash for Wanted<'_, Q> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

impl<K: Borrow<Q>, Q: Eq + ?Sized> Equivalent<Held<K>> for Wanted<'_, Q> {
    #[inline]
    fn equivalent(&self, held: &Held<K>) -> bool {
        held.0.borrow() == self.1
    }
}

impl Hash for Gone {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

impl<K: Hash> Equivalent<Held<K>> for Gone {
    fn equivalent(&self, held: &Held<K>) -> bool {
        hash_of(&held.0) == self.0
    }
}

impl Hasher for Itself {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Nothing but hashes comes.
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::coherence::snapshot::Snapshot;

    fn entry_of<V>(stamp: Snapshot, value: Option<V>) -> Arc<Entry<V>> {
        let made =
            Made { era: 0, expires_ms: 0, stamp, token: None, made_of: None, judged: true, is_brief: false };
        Arc::new(Entry::new(value, made))
    }

    fn entry(value: Option<u64>) -> Arc<Entry<u64>> {
        entry_of(Snapshot::all_below(1), value)
    }

    impl<V> Local<u64, V>
    where
        V: Send + Sync + 'static,
    {
        fn put(&self, key: u64, entry: Arc<Entry<V>>, weight: u32) {
            self.insert(key, entry, 0, weight);
        }

        fn peek(&self, key: u64) -> Option<Arc<Entry<V>>> {
            self.pin().get(&key).map(|cached| Arc::clone(&cached.entry))
        }

        /// What the index holds, once moka has done what it has to.
        fn held(&self) -> usize {
            self.policy.run_pending_tasks();
            self.index.held.len()
        }
    }

    /// Of keys, the thousands are their groups; of what is not there, all are of group 0.
    fn local() -> Local<u64, u64> {
        let group = |key: &u64, value: Option<&u64>| value.map_or(0, |_| key / 1_000);
        Local::new("shares", 40_000, Some(Arc::new(group)))
    }

    #[test]
    fn a_group_that_takes_more_than_its_share_loses_its_own_oldest_entries_and_no_other_any() {
        let local = local();
        (1_000..1_010).for_each(|key| local.put(key, entry(Some(key)), 96));
        for round in 0..20 {
            (2_000..2_900).for_each(|key| local.put(key, entry(Some(round)), 96));
            (3_000..3_900).for_each(|key| local.put(key, entry(None), 96));
        }
        local.policy.run_pending_tasks();
        assert!((1_000..1_010).all(|key| local.peek(key).is_some()), "the quiet one's");
        let held = (2_000..2_900).filter(|key| local.peek(*key).is_some()).count();
        assert!((94..=104).contains(&held), "{held}");
        assert!(local.peek(2_899).is_some() && local.peek(2_000).is_none());
        let (bytes, order) = local.index.shares.as_ref().unwrap().held.held(2);
        assert!(bytes <= 10_000 && order <= 400, "{bytes} {order}");
        assert!(
            local.index.shares.as_ref().unwrap().held.held(0).0 <= 10_000,
            "what is not there has one share"
        );
    }

    #[test]
    fn what_goes_is_taken_off_its_groups_share() {
        let local = local();
        for key in 1_000..1_050 {
            // The same key again and again, and removed.
            local.put(key, entry(Some(1)), 96);
            local.put(key, entry(Some(2)), 192);
            local.put(1_999, entry(Some(3)), 304);
            local.remove(&key);
        }
        local.policy.run_pending_tasks();
        let (bytes, order) = local.index.shares.as_ref().unwrap().held.held(1);
        assert_eq!(bytes, 304);
        assert!(order <= 70, "{order}");
        local.remove(&1_999);
        local.policy.run_pending_tasks();
        assert_eq!(local.index.shares.as_ref().unwrap().held.held(1), (0, 0));
        // One that is larger than a share stays, alone.
        local.put(1_001, entry(Some(1)), 15_000);
        assert!(local.peek(1_001).is_some());
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
                    self.local.put(key, entry_of(stamp, Some(key)), 96);
                }
                4 => {
                    let _stripe = stripe.lock();
                    let xid = self.clock.fetch_add(1, Ordering::Relaxed);
                    self.local.evict(&key, xid);
                    evicted.store(xid, Ordering::Release);
                }
                5 => self.local.remove(&key),
                6 => self.local.peek(key).iter().for_each(|entry| self.local.remove_exactly(&key, entry)),
                _ => self.local.touch(&key),
            }
            let evicted = evicted.load(Ordering::Acquire);
            let contains = |cached: &Cached<u64>| cached.entry.stamp().contains(evicted);
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
        let index = local.index.held.pin();
        for Held(key) in index.keys() {
            assert!(local.policy.contains_key(&hash_of(key)), "moka holds it too");
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
                (0..100_000).for_each(|key| local.put(key, entry(Some(key)), 1_001));
                ended.store(true, Ordering::Relaxed);
            });
            assert_eq!((local.size(), local.held()), ((0, 0), 0));
        }
    }

    #[test]
    fn a_newer_entry_survives_the_removal_of_the_one_before_it() {
        let local = local();
        let old = entry(Some(1));
        local.put(1, Arc::clone(&old), 96);
        local.put(1, entry(Some(2)), 96);
        local.remove_exactly(&1, &old);
        assert_eq!(local.peek(1).and_then(|entry| *entry.value()), Some(2));
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
        (0..200).for_each(|key| local.put(key, entry(Some(key)), 100));
        (0..100).for_each(|key: u64| local.policy.invalidate(&hash_of(&key)));
        (100..200).for_each(|key| local.remove(&key));
        assert_eq!((local.size().0, local.held()), (0, 0));
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
            let value = Counted(Arc::clone(&living));
            Cached::new(entry_of(Snapshot::all_below(1), Some(value)), 0, weight, 0)
        };
        let kept = |weight: u32| {
            let index = Index::<u64, Counted> { held: papaya::HashMap::default(), shares: None };
            let done = std::sync::Barrier::new(9);
            std::thread::scope(|scope| {
                for key in 0..8 {
                    let (index, counted, done) = (&index, &counted, &done);
                    scope.spawn(move || {
                        for _ in 0..12 {
                            // Two go: one is replaced, one removed.
                            index.put(key, counted(weight));
                            index.put(key, counted(weight));
                            assert!(index.take(hash_of(&key), |_, _| true));
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

    /// Whatever one does, all are one to moka.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Alike(u64);

    impl Hash for Alike {
        fn hash<H: Hasher>(&self, state: &mut H) {
            state.write_u64(7);
        }
    }

    #[test]
    fn of_keys_of_one_hash_the_newest_is_held_and_none_is_taken_for_another() {
        let local = Local::<Alike, u64>::new("alike", 1 << 20, None);
        for number in 0..1_000 {
            local.insert(Alike(number), entry(Some(number)), 0, 96);
        }
        let held = |number| local.pin().get(&Alike(number)).and_then(|cached| *cached.entry.value());
        assert_eq!((held(0), held(998), held(999)), (None, None, Some(999)));
        assert!(!local.evict(&Alike(998), 5) && held(999).is_some(), "another key");
        assert_eq!((local.size(), local.index.held.len()), ((1, 96), 1));
        assert!(local.evict(&Alike(999), 5) && held(999).is_none());
        assert_eq!((local.size(), local.index.held.len()), ((0, 0), 0));
    }

    /// Equal in one part is alike to moka, and to the map.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct HalfAlike(u64, bool);

    impl Hash for HalfAlike {
        fn hash<H: Hasher>(&self, state: &mut H) {
            state.write_u64(self.0);
        }
    }

    /// While the map grows, an entry is in two tables.
    #[test]
    fn a_key_that_took_anothers_place_is_evicted_also_while_the_index_grows() {
        let local = Local::<HalfAlike, u64>::new("growing", 1 << 30, None);
        let put = |key: &HalfAlike| local.insert(key.clone(), entry(Some(key.0)), 0, 96);
        let mut evicted = Vec::new();
        for number in 0..100_000_u64 {
            put(&HalfAlike(number, false));
            let key = HalfAlike(number / 2, true);
            put(&key);
            assert!(local.evict(&key, 5), "{key:?}");
            evicted.push(key);
        }
        let held = |key: &&HalfAlike| local.pin().get(*key).is_some();
        assert_eq!(evicted.iter().find(held), None);
    }

    #[test]
    fn moka_is_told_of_the_first_hit_of_a_lap_and_of_none_where_nothing_comes() {
        let local = Local::<u64, u64>::new("laps", 96 * 400, None);
        let is_news = |key| {
            let pinned = local.pin();
            let lap = local.laps.now.load(Ordering::Relaxed);
            pinned.get(&key).is_some_and(|cached| cached.is_news(lap))
        };
        local.put(0, entry(Some(0)), 96);
        assert!((0..1_000).all(|_| !is_news(0)), "it has just come");
        let mut told = 0;
        for key in 1..=1_000 {
            local.put(key, entry(Some(key)), 96);
            local.touch(&0);
            told += usize::from(is_news(0)) + usize::from(is_news(0));
        }
        assert_eq!(told, 10, "once in each hundred that come");
    }

    #[test]
    fn an_epoch_that_no_entry_can_have_is_never_that_of_one() {
        for (epoch, held) in [(0, 0), (7, 7), (u64::from(u32::MAX), u64::from(u32::MAX))] {
            assert_eq!(Cached::new(entry(None), epoch, 96, 0).cache_epoch(), held);
        }
        // A cache's epoch only grows: from here on nothing is served.
        let epoch = 1 << 32;
        assert!(Cached::new(entry(None), epoch, 96, 0).cache_epoch() < epoch);
    }
}
