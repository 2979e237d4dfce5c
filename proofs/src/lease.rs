//! The lease under concurrency: what a hit pairs, and what ends an era.

use loom::sync::Arc;
use loom::thread;

use crate::coherence::buckets::{Buckets, Whole};
use crate::coherence::lease::Lease;
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
}

/// Whoever holds the new lease sees what the poll evicted.
pub fn hit_beside_a_poll(how: Hit) -> usize {
    every_interleaving(move || {
        let world = Arc::new((Lease::default(), <Buckets<1, 1>>::new(), Local::default()));
        world.0.extend(SENT_BEFORE_MS, BOUND);
        world.2.insert(Entry { stamp: stamp("7:7:"), era: 0, cache_epoch: 0 });
        let tail = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let (lease, buckets, local) = &*world;
                let apply = || buckets.apply(buckets.slot("item", "1"), 7, || local.evict(7));
                if how == Hit::LeasePublishedBeforeTheEviction {
                    lease.extend(SENT_MS, BOUND);
                    apply();
                } else {
                    apply();
                    lease.extend(SENT_MS, BOUND);
                }
            })
        };
        let (lease, _, local) = &*world;
        let served = if how == Hit::LeaseLoadedAfterTheValue {
            local.get().filter(|entry| is_fresh(lease.held(), entry, NOW_MS))
        } else {
            local.hit(lease)
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
        let world = Arc::new((Lease::default(), <Buckets<1, 1>>::new(), Whole::new(), Local::default()));
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
        buckets.complete(floor);
        lease.extend(SENT_MS, BOUND);
        let now = local.hit(lease);
        loader.join().expect("the load ends");
        for served in [now, local.hit(lease)].into_iter().flatten() {
            assert_eq!(served.cache_epoch, 2, "a value from before the recovery is served after it");
            assert!(served.stamp.contains(7), "a value misses what the floor contains");
        }
    })
}
