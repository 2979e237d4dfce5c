//! The lease under concurrency: what a hit pairs, and what ends an era.

use loom::sync::Arc;
use loom::thread;

use crate::coherence::buckets::{Buckets, Told, WholeCache};
use crate::coherence::lease::Lease;
use crate::coherence::token;
use crate::sync::{AtomicU64, Ordering};
use crate::threads::{
    BOUND, Entry, Local, NOW_MS, SENT_BEFORE_MS, SENT_MS, every_interleaving, is_fresh, stamp,
};

/// A hit beside a poll that applies an invalidation and extends the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hit {
    AsBuilt,
    LeaseLoadedAfterTheValue,
    LeasePublishedBeforeTheEviction,
    /// As built, for an entry whose key the log names in another spelling: nothing is evicted, the hit asks the bucket.
    AskingTheBucket,
    BucketAskedBeforeTheLease,
}

/// Whoever holds the new lease sees what the poll evicted.
pub fn hit_beside_a_poll(how: Hit) -> usize {
    every_interleaving(move || {
        let world = Arc::new((Lease::default(), <Buckets<1, 1>>::new(0), Local::default()));
        world.0.extend(SENT_BEFORE_MS, BOUND);
        world.2.insert(Entry { stamp: stamp("7:7:"), era: 0, cache_epoch: 0 });
        let tail = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let (lease, buckets, local) = &*world;
                let told = Told { xid: 7, epoch: 0, poll: None };
                let spelled = matches!(how, Hit::AskingTheBucket | Hit::BucketAskedBeforeTheLease);
                let evict = || {
                    if !spelled {
                        local.evict(7)
                    }
                };
                let apply = || buckets.apply(buckets.slot("item", "1"), told, lease, evict);
                if how == Hit::LeasePublishedBeforeTheEviction {
                    lease.extend(SENT_MS, BOUND);
                    apply();
                } else {
                    apply();
                    lease.extend(SENT_MS, BOUND);
                }
            })
        };
        let (lease, buckets, local) = &*world;
        let (slot, whole) = (buckets.slot("item", "1"), WholeCache::new());
        let accepts = |entry: &Entry| buckets.accepts(slot, &whole, &entry.stamp);
        let served = match how {
            Hit::LeaseLoadedAfterTheValue => {
                local.get().filter(|entry| is_fresh(lease.held(), entry, NOW_MS))
            }
            Hit::AsBuilt | Hit::LeasePublishedBeforeTheEviction => local.hit(lease),
            Hit::AskingTheBucket => local.hit(lease).filter(accepts),
            Hit::BucketAskedBeforeTheLease => {
                let accepted = local.get().is_some_and(|entry| accepts(&entry));
                local.hit(lease).filter(|_| accepted)
            }
        };
        assert!(served.is_none_or(|entry| entry.stamp.contains(7)), "an old value under a new lease");
        tail.join().expect("the tail ends");
    })
}

/// The end of an era beside an extension of its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    AsBuilt,
    /// Not `Lease`, which has no way to do so, but a bare number in its place: it shows that the scenario finds what a
    /// lease of two steps would do, not that ours is one of one.
    ExtendedInTwoSteps,
}

/// An era that has ended stays so, whatever poll completes meanwhile.
pub fn era_ends_beside_an_extension(how: Era) -> usize {
    every_interleaving(move || {
        let lease = Arc::new((Lease::default(), AtomicU64::new(0)));
        let tail = {
            let lease = Arc::clone(&lease);
            thread::spawn(move || match how {
                Era::AsBuilt => lease.0.extend(SENT_MS, BOUND),
                Era::ExtendedInTwoSteps => {
                    let era = lease.1.load(Ordering::Acquire);
                    lease.1.store(era, Ordering::Release);
                }
            })
        };
        match how {
            Era::AsBuilt => lease.0.begin_era(),
            Era::ExtendedInTwoSteps => drop(lease.1.fetch_add(1, Ordering::AcqRel)),
        }
        tail.join().expect("the tail ends");
        let era = if how == Era::AsBuilt { lease.0.held().era() } else { lease.1.load(Ordering::Acquire) };
        assert_eq!(era, 1, "an era came back to life");
    })
}

/// A recovery beside a load that began in the middle of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    AsBuilt,
    /// Before the buckets are reset, and not after.
    EraEndedOnce,
    EraOfALoadTakenAtItsInsert,
    LeaseExtendedBeforeTheReset,
}

/// After a recovery nothing is served that began before its end, be it accepted or not. The order is that of `Coherence::recover`.
///
/// Of the two loads, one misses transaction 7, which nobody here has heard of, though the floor contains it; the other one's
/// stamp looks newer than all that is known, and may be from a server that is no more.
pub fn load_beside_a_recovery(how: Recovery, stamp_of_the_load: &'static str) -> usize {
    every_interleaving(move || {
        let world =
            Arc::new((Lease::default(), <Buckets<1, 1>>::new(0), WholeCache::new(), Local::default()));
        world.0.extend(SENT_BEFORE_MS, BOUND);
        let loader = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let (lease, buckets, whole, local) = &*world;
                let era = lease.held().era();
                let read = stamp(stamp_of_the_load);
                buckets.insert_if_accepted(buckets.slot("item", "1"), whole, &read.clone(), || {
                    let now = lease.held().era();
                    let claimed = if how == Recovery::EraOfALoadTakenAtItsInsert { now } else { era };
                    if claimed == now {
                        // In place of the cache's epoch, for the judgement below: when it really began.
                        local.insert(Entry { stamp: read, era: claimed, cache_epoch: era });
                    }
                });
            })
        };
        let (lease, buckets, whole, local) = &*world;
        let floor = stamp("8:8:");
        lease.begin_era();
        if how == Recovery::LeaseExtendedBeforeTheReset {
            lease.begin_era();
            lease.extend(SENT_MS, BOUND);
        }
        buckets.reset(&floor, [whole].into_iter());
        if matches!(how, Recovery::AsBuilt | Recovery::EraOfALoadTakenAtItsInsert) {
            lease.begin_era();
        }
        buckets.complete(floor, std::iter::empty());
        lease.extend(SENT_MS, BOUND);
        let now = local.hit(lease);
        loader.join().expect("the load ends");
        for served in [now, local.hit(lease)].into_iter().flatten() {
            assert_eq!(served.cache_epoch, 2, "a value from before the recovery is served after it");
            assert!(served.stamp.contains(7), "a value misses what the floor contains");
        }
    })
}

/// Something that begins, beside a recovery into another epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    AsBuilt,
    EpochThenEra,
    EraThenEpoch,
}

/// What begins has the epoch and the era of one moment, or an era that ends with the recovery.
pub fn beginning_beside_a_recovery(how: Beginning) -> usize {
    every_interleaving(move || {
        let lease = Arc::new(Lease::default());
        let tail = {
            let lease = Arc::clone(&lease);
            thread::spawn(move || recover(&lease))
        };
        let (epoch, era) = match how {
            Beginning::AsBuilt => lease.start(),
            Beginning::EpochThenEra => {
                let epoch = lease.epoch();
                (epoch, lease.held().era())
            }
            Beginning::EraThenEpoch => {
                let era = lease.held().era();
                (lease.epoch(), era)
            }
        };
        assert!(!(epoch == 0 && era == 2), "an old epoch is paired with a new era");
        assert!(!(epoch == 1 && era == 0), "a new epoch is paired with an old era");
        tail.join().expect("the tail ends");
    })
}

/// A token of a new epoch, compared with a value of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    AsBuilt,
    EpochReadAfterTheLease,
}

/// A token finds no value of an epoch before its own, though the numbers seem to fit.
pub fn token_beside_a_recovery(how: Token) -> usize {
    every_interleaving(move || {
        let world = Arc::new((Lease::default(), Local::default()));
        world.0.extend(SENT_MS, BOUND);
        // It has a transaction 7 of the old epoch; the token is of transaction 7 of the new one.
        world.1.insert(Entry { stamp: stamp("8:8:"), era: 0, cache_epoch: 0 });
        let tail = {
            let world = Arc::clone(&world);
            thread::spawn(move || recover(&world.0))
        };
        let (lease, local) = &*world;
        let before = lease.epoch();
        let hit = local.hit(lease);
        let epoch = if how == Token::AsBuilt { before } else { lease.epoch() };
        let served = hit.filter(|entry| epoch == 1 && entry.stamp.contains(7));
        assert!(served.is_none(), "a token finds a value from before its write");
        tail.join().expect("the tail ends");
    })
}

/// A token of a new epoch, beside the poll of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polled {
    AsBuilt,
    LeaseNotAsked,
    LeaseAskedBeforeTheEpoch,
}

/// A poll of the old epoch satisfies no token of the new one, though it contains that number.
pub fn old_poll_beside_a_recovery(how: Polled) -> usize {
    every_interleaving(move || {
        let world = Arc::new((Lease::default(), <Buckets<1, 1>>::new(0)));
        world.0.extend(SENT_BEFORE_MS, BOUND);
        world.1.complete(stamp("8:8:"), std::iter::empty());
        let tail = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let (lease, buckets) = &*world;
                lease.begin_era();
                lease.enter(1);
                buckets.reset(&stamp("5:5:"), std::iter::empty());
                lease.begin_era();
                // Transaction 7 of the new epoch has not ended yet.
                buckets.complete(stamp("5:5:"), std::iter::empty());
                lease.extend(SENT_MS, BOUND);
            })
        };
        let (lease, buckets) = &*world;
        let contained = || buckets.poll().is_some_and(|poll| poll.contains(7));
        let satisfied = match how {
            Polled::AsBuilt => buckets.has_polled(lease, token::Token::of_write(1, 7)).is_some(),
            Polled::LeaseNotAsked => lease.is_in(1) && contained(),
            Polled::LeaseAskedBeforeTheEpoch => {
                let valid = lease.held().ever_valid();
                valid && lease.is_in(1) && contained()
            }
        };
        assert!(!satisfied, "an old poll satisfies a token of the new epoch");
        tail.join().expect("the tail ends");
    })
}

/// A token that a poll satisfies, and a hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    AsBuilt,
    AskedAfterTheHit,
    PollPublishedBeforeItsRows,
}

/// Where a poll contains a token's write, a hit finds nothing that the write has changed.
pub fn granted_token_beside_a_poll(how: Granted) -> usize {
    every_interleaving(move || {
        let world = Arc::new((Lease::default(), <Buckets<1, 1>>::new(0), Local::default()));
        world.0.extend(SENT_MS, BOUND);
        world.2.insert(Entry { stamp: stamp("7:7:"), era: 0, cache_epoch: 0 });
        let tail = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let (lease, buckets, local) = &*world;
                let poll = stamp("8:8:");
                let apply = || {
                    let told = Told { xid: 7, epoch: 0, poll: Some(&poll) };
                    buckets.apply(buckets.slot("item", "1"), told, lease, || local.evict(7));
                };
                if how == Granted::PollPublishedBeforeItsRows {
                    buckets.complete(poll.clone(), std::iter::empty());
                    apply();
                } else {
                    apply();
                    buckets.complete(poll.clone(), std::iter::empty());
                }
                lease.extend(SENT_MS, BOUND);
            })
        };
        let (lease, buckets, local) = &*world;
        let granted = || buckets.has_polled(lease, token::Token::of_write(0, 7)).is_some();
        let served = if how == Granted::AskedAfterTheHit {
            local.hit(lease).filter(|_| granted())
        } else {
            granted().then(|| local.hit(lease)).flatten()
        };
        assert!(served.is_none_or(|entry| entry.stamp.contains(7)), "a token is granted an old value");
        tail.join().expect("the tail ends");
    })
}

/// A read that a poll has granted a token, and as of which poll it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    AsBuilt,
    BegunBeforeTheTokenIsGranted,
}

/// Where a poll grants a read its token, what the loader brings is judged by that poll, and by none before it.
pub fn start_beside_a_poll(how: Start) -> usize {
    every_interleaving(move || {
        let world = Arc::new((Lease::default(), <Buckets<1, 1>>::new(0)));
        world.0.extend(SENT_MS, BOUND);
        world.1.complete(stamp("5:5:"), std::iter::empty());
        let tail = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.1.complete(stamp("8:8:"), std::iter::empty()))
        };
        let (lease, buckets) = &*world;
        let before = buckets.rank_of_poll();
        let granted = buckets.has_polled(lease, token::Token::of_write(0, 7)).is_some();
        let start = if how == Start::AsBuilt { buckets.rank_of_poll() } else { before };
        assert!(
            !granted || start == Some(stamp("8:8:").rank()),
            "a read begins as of a poll before its token"
        );
        tail.join().expect("the tail ends");
    })
}

/// The order of `Coherence::recover`, without the buckets.
fn recover(lease: &Lease) {
    lease.begin_era();
    lease.enter(1);
    lease.begin_era();
}
