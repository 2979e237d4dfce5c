//! What an instance has been told: one [`Bucket`] for each hash of keys, and one for each cache as a whole.
//!
//! Invalidations of keys that are *not* held are recorded too: a load of them may be running. Memory is fixed.
//!
//! Lock order: a stripe, then a whole cache, then the poll, never the other way. A hit takes none of them, but for what it depends on where
//! a transaction runs that was begun before its last change.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use super::known::Known;
use super::lease::{Lease, LeaseView};
use super::rules::{Bucket, Learned};
use super::snapshot::{Rank, Snapshot};
use super::spelling::folded;
use super::token::{Mark, Token};
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, RwLock};

/// The knowledge of one instance. See the module's documentation.
pub(crate) struct Buckets<const STRIPES: usize = { 1 << 10 }, const PER_STRIPE: usize = { 1 << 6 }> {
    stripes: Box<[Mutex<Stripe>]>,
    /// The highest transaction that each bucket knows, readable without the stripe.
    highest: Box<[AtomicU64]>,
    poll: RwLock<Option<Arc<Snapshot>>>,
    /// Its `xmin`, readable without the lock; 0 where there is none.
    polled_below: AtomicU64,
    /// The number of its rank, likewise.
    polled_rank: AtomicU64,
    hasher: foldhash::fast::FixedState,
}

struct Stripe {
    buckets: Box<[Bucket]>,
    /// Whether any of them may know something by hints alone.
    hinted: bool,
}

/// Where a key's invalidations are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Default))]
pub(crate) struct Slot(usize);

/// Something that a value was made of: a key of this cache or of another, or what a topic says of a key.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) slot: Slot,
    /// Of its cache or topic.
    pub(crate) whole: Arc<WholeCache>,
}

/// What somebody says that a transaction has invalidated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told<'a> {
    pub(crate) xid: u64,
    /// The epoch that the number is of.
    pub(crate) epoch: u64,
    /// The snapshot of the poll that brings it. A hint has none, nor has a write of this instance.
    pub(crate) poll: Option<&'a Snapshot>,
}

/// A cache as a whole is a bucket too: rows that invalidate all its keys go here.
pub(crate) struct WholeCache {
    bucket: Mutex<Bucket>,
    highest: AtomicU64,
    /// Bumped by each new invalidation of the whole cache. An entry carries the value from before its load.
    epoch: AtomicU64,
    /// Not 0 while nothing new may come into L1.
    closed: AtomicU64,
}

impl<const STRIPES: usize, const PER_STRIPE: usize> Buckets<STRIPES, PER_STRIPE> {
    /// By the seed nobody outside can tell which keys share a bucket, and keep another's closed.
    pub(crate) fn new(seed: u64) -> Self {
        let buckets = || vec![Bucket::default(); PER_STRIPE].into_boxed_slice();
        let stripe = || Mutex::new(Stripe { buckets: buckets(), hinted: false });
        Self {
            stripes: (0..STRIPES).map(|_| stripe()).collect(),
            highest: (0..STRIPES * PER_STRIPE).map(|_| AtomicU64::new(0)).collect(),
            poll: RwLock::new(None),
            polled_below: AtomicU64::new(0),
            polled_rank: AtomicU64::new(0),
            hasher: foldhash::fast::FixedState::with_seed(seed),
        }
    }

    /// The bucket of a key, by its text: that is the form in which the log names it, but perhaps in another spelling.
    pub(crate) fn slot(&self, cache: &str, key: &str) -> Slot {
        let mut hasher = self.hasher.build_hasher();
        cache.hash(&mut hasher);
        folded(key).hash(&mut hasher);
        #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
        Slot(hasher.finish() as usize % self.highest.len())
    }

    /// Whether a value with this stamp contains every invalidation that this instance knows for the key.
    pub(crate) fn accepts(&self, slot: Slot, whole: &WholeCache, stamp: &Snapshot) -> bool {
        let known = self.highest[slot.0].load(Ordering::Acquire);
        (stamp.xmin() > known || self.stripe(slot).buckets[slot.0 % PER_STRIPE].accepts(stamp))
            && whole.accepts(stamp)
    }

    /// Whether a value with this stamp contains every invalidation that this instance knows for any of these.
    pub(crate) fn accepts_all(&self, subjects: &[Subject], stamp: &Snapshot) -> bool {
        subjects.iter().all(|subject| self.accepts(subject.slot, &subject.whole, stamp))
    }

    /// The same for what is held, under a lease that was taken before it was read.
    ///
    /// The era is read once more, last. A recovery that has begun since resets the buckets, which know nothing then until its rows
    /// are replayed, and the lease from before is still good by the clock:
    /// `in_no_interleaving_does_a_recovery_hide_what_an_entry_misses`.
    pub(crate) fn accepts_held(
        &self,
        lease: &Lease,
        held: LeaseView,
        subjects: &[Subject],
        stamp: &Snapshot,
    ) -> bool {
        self.accepts_all(subjects, stamp) && lease.held().era() == held.era()
    }

    /// Whether a value with this stamp is what there was at `moment`: see [`Bucket::accepts_at`].
    pub(crate) fn accepts_all_at(&self, subjects: &[Subject], stamp: &Snapshot, moment: &Snapshot) -> bool {
        let accepts = |Subject { slot, whole }: &Subject| {
            // What contains all that is known contains what the moment does, and mostly without a lock.
            self.accepts(*slot, whole, stamp)
                || (self.stripe(*slot).buckets[slot.0 % PER_STRIPE].accepts_at(stamp, moment)
                    && whole.bucket.lock().accepts_at(stamp, moment))
        };
        subjects.iter().all(accepts)
    }

    /// Runs `insert` if the value is accepted, under the stripe, so that no invalidation of the key can come
    /// between the check and the insert. (Were it not so, an invalidation applied in between would find nothing
    /// to evict, and the older value would stay: `a_load_begun_before_an_invalidation_is_never_cached`.)
    pub(crate) fn insert_if_accepted(
        &self,
        slot: Slot,
        whole: &WholeCache,
        stamp: &Snapshot,
        insert: impl FnOnce(),
    ) -> bool {
        let stripe = self.stripe(slot);
        // Written under the stripe, so it is what the bucket knows: most need not look at that, which is memory that nobody else has read.
        let known = self.highest[slot.0].load(Ordering::Acquire);
        let accepted = (stamp.xmin() > known || stripe.buckets[slot.0 % PER_STRIPE].accepts(stamp))
            && whole.accepts(stamp);
        if accepted {
            insert();
        }
        accepted
    }

    /// Records an invalidation of a key and evicts it, under the stripe.
    ///
    /// What is told of another epoch than the lease's evicts only. Its numbers mean nothing: recorded, they would close the
    /// bucket until the new epoch's numbers get there. The epoch is compared under the stripe, which a recovery resets after it has entered the new one:
    /// `in_no_interleaving_does_a_hint_of_an_old_epoch_outlive_a_reset`.
    pub(crate) fn apply<T>(
        &self,
        slot: Slot,
        told: Told<'_>,
        lease: &Lease,
        evict: impl FnOnce() -> T,
    ) -> (Learned, T) {
        let mut stripe = self.stripe(slot);
        if !lease.is_in(told.epoch) {
            return (Learned::Exactly, evict());
        }
        // Read under the stripe: a recovery forgets the poll first and then resets each stripe, so an older
        // poll can't make a replayed transaction look known.
        let last = self.poll();
        let bucket = &mut stripe.buckets[slot.0 % PER_STRIPE];
        let learned = bucket.apply(told.xid, last.as_deref(), told.poll);
        self.highest[slot.0].store(bucket.highest(), Ordering::Release);
        stripe.hinted |= told.poll.is_none();
        (learned, evict())
    }

    /// Records an invalidation of a whole cache. As [`Buckets::apply`].
    pub(crate) fn apply_whole(&self, whole: &WholeCache, told: Told<'_>, lease: &Lease) -> Learned {
        let mut bucket = whole.bucket.lock();
        if !lease.is_in(told.epoch) {
            return Learned::Exactly;
        }
        let last = self.poll();
        let known = bucket.knows(told.xid, last.as_deref());
        let learned = bucket.apply(told.xid, last.as_deref(), told.poll);
        whole.highest.store(bucket.highest(), Ordering::Release);
        if !known {
            whole.epoch.fetch_add(1, Ordering::AcqRel);
        }
        learned
    }

    /// The snapshot of the last completed poll.
    pub(crate) fn poll(&self) -> Option<Arc<Snapshot>> {
        self.poll.read().clone()
    }

    /// Its rank, or of the one that completes now: without the lock that all reads would share.
    pub(crate) fn rank_of_poll(&self) -> Option<Rank> {
        let rank = self.polled_rank.load(Ordering::Acquire);
        (rank > 0).then(|| Rank::from_number(rank))
    }

    /// Whether a poll has completed since the last recovery began.
    pub(crate) fn polled(&self) -> bool {
        self.poll.read().is_some()
    }

    /// The era in which a completed poll contains what a token stands for, if one does. Then all that this has invalidated has
    /// been applied, and whatever is fresh from here on contains it, of any key. What a recovery has begun anew does not know of
    /// it at first: there only what is fresh does.
    ///
    /// The order is the lease's epoch, then the lease, then the poll. In a recovery the new epoch is there before the old poll is
    /// forgotten, and the old poll may contain a number that is used again. But no lease of the new era is there yet:
    /// `in_no_interleaving_does_an_old_poll_satisfy_a_token_of_a_new_epoch`.
    pub(crate) fn has_polled(&self, lease: &Lease, token: Token) -> Option<u64> {
        if !lease.is_in(token.epoch) {
            return None;
        }
        let held = lease.held();
        let contained = || match token.mark {
            Mark::Write(xid) => {
                xid < self.polled_below.load(Ordering::Acquire)
                    || self.poll.read().as_ref().is_some_and(|poll| poll.contains(xid))
            }
            Mark::Read(rank) => rank.number() <= self.polled_rank.load(Ordering::Acquire),
        };
        (held.ever_valid() && contained()).then(|| held.era())
    }

    /// To be called before a poll is sent: what hints have told by now is forgotten unless it brings it.
    pub(crate) fn sending<'a>(&self, wholes: impl Iterator<Item = &'a WholeCache>) {
        self.each_hinted(wholes, Bucket::sent);
    }

    /// Publishes a poll. Only after all its rows have been applied. Forgets what hints told before it was sent.
    pub(crate) fn complete<'a>(&self, poll: Snapshot, wholes: impl Iterator<Item = &'a WholeCache>) {
        self.each_hinted(wholes, Bucket::forget);
        let below = poll.xmin();
        // First: whoever finds the poll begins no read as of an earlier one
        // (`in_no_interleaving_does_a_read_begin_as_of_a_poll_before_the_one_that_granted_its_token`).
        self.polled_rank.store(poll.rank().number(), Ordering::Release);
        *self.poll.write() = Some(Arc::new(poll));
        self.polled_below.store(below, Ordering::Release);
    }

    /// A thousand locks and what lies under those that hints have touched since: some ten microseconds.
    fn each_hinted<'a>(&self, wholes: impl Iterator<Item = &'a WholeCache>, change: impl Fn(&mut Bucket)) {
        for (at, stripe) in self.stripes.iter().enumerate() {
            let Stripe { buckets, hinted } = &mut *stripe.lock();
            if !std::mem::take(hinted) {
                continue;
            }
            for (bucket, highest) in buckets.iter_mut().zip(&self.highest[at * PER_STRIPE..]) {
                change(bucket);
                highest.store(bucket.highest(), Ordering::Release);
                *hinted |= bucket.is_hinted();
            }
        }
        for whole in wholes {
            let mut bucket = whole.bucket.lock();
            change(&mut bucket);
            whole.highest.store(bucket.highest(), Ordering::Release);
        }
    }

    /// Forgets everything but that `floor` contains all invalidations so far. See [`Buckets::apply`] for the order.
    pub(crate) fn reset<'a>(&self, floor: &Snapshot, wholes: impl Iterator<Item = &'a WholeCache>) {
        self.polled_below.store(0, Ordering::Release);
        self.polled_rank.store(0, Ordering::Release);
        *self.poll.write() = None;
        let fresh = Bucket::at(floor);
        for (at, stripe) in self.stripes.iter().enumerate() {
            let mut stripe = stripe.lock();
            stripe.buckets.fill(fresh);
            stripe.hinted = false;
            for highest in &self.highest[at * PER_STRIPE..][..PER_STRIPE] {
                highest.store(fresh.highest(), Ordering::Release);
            }
        }
        for whole in wholes {
            let mut bucket = whole.bucket.lock();
            *bucket = fresh;
            whole.highest.store(fresh.highest(), Ordering::Release);
            whole.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn stripe(&self, slot: Slot) -> MutexGuard<'_, Stripe> {
        self.stripes[slot.0 / PER_STRIPE].lock()
    }

    /// What is known of a key, and of its whole cache.
    pub(crate) fn known(&self, slot: Slot, whole: &WholeCache) -> (Known, Known) {
        (self.stripe(slot).buckets[slot.0 % PER_STRIPE].known(), whole.bucket.lock().known())
    }
}

impl WholeCache {
    pub(crate) fn new() -> Self {
        Self {
            bucket: Mutex::default(),
            highest: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            closed: AtomicU64::new(0),
        }
    }

    /// To be read before a load, and compared at each hit.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether L1 takes what comes. To be asked after the epoch was read that the entry carries.
    pub(crate) fn takes_fills(&self) -> bool {
        self.closed.load(Ordering::Acquire) == 0
    }

    /// Nothing new comes into L1, or it does again.
    pub(crate) fn set_open(&self, open: bool) {
        self.closed.store(u64::from(!open), Ordering::Release);
    }

    /// What began before is served no more. Nothing is known to be invalidated by it.
    pub(crate) fn end_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Empties L1 of the cache, and keeps it so. Closed first: an entry is of the epoch that ends, or finds it closed
    /// (`in_no_interleaving_does_a_key_stay_in_an_l1_that_is_off`).
    pub(crate) fn let_go(&self) {
        self.set_open(false);
        self.end_epoch();
    }

    fn accepts(&self, stamp: &Snapshot) -> bool {
        stamp.xmin() > self.highest.load(Ordering::Acquire) || self.bucket.lock().accepts(stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(text: &str) -> Snapshot {
        Snapshot::parse(text).unwrap()
    }

    const fn hint(xid: u64) -> Told<'static> {
        Told { xid, epoch: 0, poll: None }
    }

    #[test]
    fn an_invalidation_of_a_key_that_is_not_held_is_remembered() {
        let (buckets, whole) = (<Buckets>::new(0), WholeCache::new());
        let slot = buckets.slot("users", "7");
        buckets.apply(slot, hint(100), &Lease::default(), || ());
        assert!(!buckets.accepts(slot, &whole, &stamp("100:100:")));
        assert!(buckets.accepts(slot, &whole, &stamp("101:101:")));
    }

    #[test]
    fn a_whole_cache_invalidation_refuses_every_key_of_it_once() {
        let (buckets, whole, other) = (<Buckets>::new(0), WholeCache::new(), WholeCache::new());
        let slot = buckets.slot("users", "7");
        buckets.apply_whole(&whole, hint(100), &Lease::default());
        buckets.apply_whole(&whole, hint(100), &Lease::default());
        assert_eq!(whole.epoch(), 1);
        assert!(!buckets.accepts(slot, &whole, &stamp("100:100:")));
        assert!(buckets.accepts(slot, &other, &stamp("100:100:")));
    }

    #[test]
    fn after_a_reset_an_old_poll_confirms_nothing() {
        let (buckets, whole) = (<Buckets>::new(0), WholeCache::new());
        let slot = buckets.slot("users", "7");
        buckets.complete(stamp("1000:1000:"), std::iter::empty());
        buckets.reset(&stamp("50:50:"), [&whole].into_iter());
        // A replayed row of a new epoch, below the old poll: it must count.
        buckets.apply(slot, hint(60), &Lease::default(), || ());
        assert!(!buckets.accepts(slot, &whole, &stamp("60:60:")));
        assert!(buckets.accepts(slot, &whole, &stamp("61:61:")));
    }

    #[test]
    fn hints_of_keys_and_of_whole_caches_are_forgotten_once_a_later_poll_has_completed() {
        let (buckets, whole) = (<Buckets>::new(0), WholeCache::new());
        let slot = buckets.slot("users", "7");
        let accepts = || buckets.accepts(slot, &whole, &stamp("60:60:"));
        let wholes = || [&whole].into_iter();
        let of_a_key = || buckets.apply(slot, hint(900), &Lease::default(), || ()).0;
        let of_the_cache = || buckets.apply_whole(&whole, hint(900), &Lease::default());
        for apply in [&of_a_key as &dyn Fn() -> Learned, &of_the_cache] {
            buckets.sending(wholes());
            apply();
            buckets.complete(stamp("60:60:"), wholes());
            assert!(!accepts(), "that poll was sent before");
            buckets.sending(wholes());
            buckets.complete(stamp("60:60:"), wholes());
            assert!(accepts());
        }
    }

    #[test]
    fn which_keys_share_a_bucket_differs_by_the_seed() {
        let (one, other) = (<Buckets>::new(1), <Buckets>::new(2));
        let slots = |buckets: &Buckets| (0..1_000).map(|n| buckets.slot("users", &n.to_string())).collect();
        let (one, other): (Vec<Slot>, Vec<Slot>) = (slots(&one), slots(&other));
        let alike = one.iter().zip(&other).filter(|(one, other)| one == other).count();
        assert!(alike < 10, "{alike} of 1,000 keys are where they were");
    }

    #[test]
    fn an_insert_is_refused_after_the_invalidation_it_misses() {
        let (buckets, whole) = (<Buckets>::new(0), WholeCache::new());
        let slot = buckets.slot("users", "7");
        buckets.apply(slot, hint(100), &Lease::default(), || ());
        let mut inserted = false;
        assert!(!buckets.insert_if_accepted(slot, &whole, &stamp("100:100:"), || inserted = true));
        assert!(!inserted);
        assert!(buckets.insert_if_accepted(slot, &whole, &stamp("101:101:"), || inserted = true));
        assert!(inserted);
    }
}
