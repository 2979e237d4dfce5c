//! Buckets under concurrency: what is accepted while it is being invalidated.

use loom::sync::Arc;
use loom::thread;

use crate::coherence::buckets::{Buckets, Subject, Told, WholeCache};
use crate::coherence::lease::Lease;
use crate::coherence::snapshot::Snapshot;
use crate::threads::{
    BOUND, Entry, Local, NOW_MS, SENT_BEFORE_MS, SENT_MS, every_interleaving, is_fresh, stamp,
};

const CLEARED: Told<'static> = Told { xid: 7, epoch: 0, poll: None };

/// An instance with one bucket, in one stripe.
struct World {
    buckets: Buckets<1, 1>,
    whole: WholeCache,
    lease: Lease,
    local: Local,
}

impl World {
    fn new() -> Arc<Self> {
        let world = Self {
            buckets: Buckets::new(0),
            whole: WholeCache::new(),
            lease: Lease::default(),
            local: Local::default(),
        };
        world.lease.extend(SENT_BEFORE_MS, BOUND);
        Arc::new(world)
    }

    fn apply(&self, xid: u64) {
        self.tell(Told { xid, epoch: self.lease.epoch(), poll: None });
    }

    /// As a poll brings it.
    fn bring(&self, xid: u64, poll: &Snapshot) {
        self.tell(Told { xid, epoch: self.lease.epoch(), poll: Some(poll) });
    }

    fn complete(&self, poll: &Snapshot) {
        self.buckets.complete(poll.clone(), [&self.whole].into_iter());
    }

    fn tell(&self, told: Told<'_>) {
        let slot = self.buckets.slot("item", "1");
        self.buckets.apply(slot, told, &self.lease, || self.local.evict(told.xid));
    }

    fn accepts(&self, text: &str) -> bool {
        self.buckets.accepts(self.buckets.slot("item", "1"), &self.whole, &stamp(text))
    }
}

fn beside(world: &Arc<World>, does: impl FnOnce(&World) + Send + 'static) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || does(&world))
}

/// An insert into L1 beside an invalidation of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insert {
    AsBuilt,
    CheckedOutsideOfTheStripe,
}

/// What is inserted contains what was applied, whichever comes first.
pub fn insert_beside_an_invalidation(how: Insert) -> usize {
    every_interleaving(move || {
        let world = World::new();
        let tail = beside(&world, |world| world.apply(7));
        let insert = || world.local.insert(Entry { stamp: stamp("7:7:"), era: 0, cache_epoch: 0 });
        match how {
            Insert::AsBuilt => {
                let slot = world.buckets.slot("item", "1");
                world.buckets.insert_if_accepted(slot, &world.whole, &stamp("7:7:"), insert);
            }
            Insert::CheckedOutsideOfTheStripe if world.accepts("7:7:") => insert(),
            Insert::CheckedOutsideOfTheStripe => {}
        }
        tail.join().expect("the tail ends");
        assert!(world.local.get().is_none(), "L1 holds what misses an applied invalidation");
    })
}

/// A value from L2 or from a flight, judged beside a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serve {
    AsBuilt,
    AcceptedBeforeTheLeaseIsTaken,
    LeasePublishedBeforeTheInvalidation,
    /// And with it what kept the bucket closed until then.
    HintForgottenBeforeTheInvalidation,
}

/// Whoever holds the new lease refuses what misses the poll's rows, also where it looks at `highest` alone, and though the poll
/// makes the bucket forget a hint of a higher number.
pub fn serve_beside_a_poll(how: Serve) -> usize {
    every_interleaving(move || {
        let world = World::new();
        if how != Serve::AcceptedBeforeTheLeaseIsTaken {
            world.apply(70);
        }
        world.buckets.sending([&world.whole].into_iter());
        let tail = beside(&world, move |world| {
            let poll = stamp("8:8:");
            let mut steps: [&dyn Fn(); 3] = [&|| world.bring(7, &poll), &|| world.complete(&poll), &|| {
                world.lease.extend(SENT_MS, BOUND)
            }];
            match how {
                Serve::AsBuilt | Serve::AcceptedBeforeTheLeaseIsTaken => {}
                Serve::LeasePublishedBeforeTheInvalidation => steps.reverse(),
                Serve::HintForgottenBeforeTheInvalidation => steps.rotate_left(1),
            }
            steps.iter().for_each(|step| step());
        });
        let (held, accepted) = if how == Serve::AcceptedBeforeTheLeaseIsTaken {
            let accepted = world.accepts("7:7:");
            (world.lease.held(), accepted)
        } else {
            let held = world.lease.held();
            (held, world.accepts("7:7:"))
        };
        assert!(!(accepted && held.valid_at(NOW_MS)), "an old value is served under a new lease");
        tail.join().expect("the tail ends");
    })
}

/// A recovery that replays a row, beside a hint of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    AsBuilt,
    /// As if the poll of the old epoch were forgotten only after the stripes.
    PollForgottenAfterTheStripes,
    LeaseExtendedBeforeTheReplay,
}

/// The poll of an old epoch contains a number that is used again. What is replayed under it counts all the same.
pub fn hint_beside_a_reset(how: Reset) -> usize {
    every_interleaving(move || {
        let world = World::new();
        let poll = stamp("8:8:");
        world.complete(&poll);
        let hint = beside(&world, |world| world.apply(7));
        let tail = beside(&world, move |world| {
            world.lease.begin_era();
            world.buckets.reset(&stamp("5:5:"), [&world.whole].into_iter());
            world.lease.begin_era();
            match how {
                Reset::AsBuilt => world.bring(7, &poll),
                Reset::PollForgottenAfterTheStripes => {
                    world.complete(&poll);
                    world.bring(7, &poll);
                }
                Reset::LeaseExtendedBeforeTheReplay => {}
            }
            world.lease.extend(SENT_MS, BOUND);
            if how == Reset::LeaseExtendedBeforeTheReplay {
                world.bring(7, &poll);
            }
            world.complete(&poll);
        });
        // Under the new lease only: what is known of the old epoch says nothing about the new.
        let held = world.lease.held();
        let served = world.accepts("7:7:") && held.valid_at(NOW_MS) && held.era() == 2;
        assert!(!served, "a value of the new epoch misses a replayed row");
        tail.join().expect("the tail ends");
        hint.join().expect("the hint ends");
        assert!(!world.accepts("7:7:"), "a replayed row is forgotten");
        assert!(world.accepts("8:8:"), "a new value is refused");
    })
}

/// A hint of an old epoch, beside a recovery into a new one whose numbers are far behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldHint {
    AsBuilt,
    /// As if the epoch were compared when the hint comes, and not where it is recorded.
    EpochComparedOutsideOfTheStripe,
}

/// What a hint is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    AKey,
    TheWholeCache,
}

/// What is left of a hint of an old epoch closes no bucket of the new one: nobody would ever confirm its number.
pub fn old_hint_beside_a_reset(how: OldHint, of: Of) -> usize {
    every_interleaving(move || {
        let world = World::new();
        let hint = beside(&world, move |world| {
            let old = Told { xid: 70, epoch: 0, poll: None };
            let tell = |told| match of {
                Of::AKey => world.tell(told),
                Of::TheWholeCache => drop(world.buckets.apply_whole(&world.whole, told, &world.lease)),
            };
            match how {
                OldHint::AsBuilt => tell(old),
                OldHint::EpochComparedOutsideOfTheStripe if world.lease.is_in(old.epoch) => {
                    tell(Told { epoch: world.lease.epoch(), ..old });
                }
                OldHint::EpochComparedOutsideOfTheStripe => {}
            }
        });
        world.lease.begin_era();
        world.lease.enter(1);
        world.buckets.reset(&stamp("5:5:"), [&world.whole].into_iter());
        world.lease.begin_era();
        world.complete(&stamp("8:8:"));
        world.lease.extend(SENT_MS, BOUND);
        hint.join().expect("the hint ends");
        assert!(world.accepts("8:8:"), "a new value is refused");
    })
}

/// An invalidation of the whole cache, beside a load and a hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clear {
    AsBuilt,
    EpochTakenAtTheInsert,
    LeasePublishedBeforeTheInvalidation,
}

/// No key survives an invalidation of its whole cache, though its stripe is not taken.
pub fn insert_beside_a_clear(how: Clear) -> usize {
    every_interleaving(move || {
        let world = World::new();
        let tail = beside(&world, move |world| {
            if how == Clear::LeasePublishedBeforeTheInvalidation {
                world.lease.extend(SENT_MS, BOUND);
                world.buckets.apply_whole(&world.whole, CLEARED, &world.lease);
            } else {
                world.buckets.apply_whole(&world.whole, CLEARED, &world.lease);
                world.lease.extend(SENT_MS, BOUND);
            }
        });
        let slot = world.buckets.slot("item", "1");
        let began = world.whole.epoch();
        world.buckets.insert_if_accepted(slot, &world.whole, &stamp("7:7:"), || {
            let cache_epoch = if how == Clear::EpochTakenAtTheInsert { world.whole.epoch() } else { began };
            world.local.insert(Entry { stamp: stamp("7:7:"), era: 0, cache_epoch });
        });
        let hit = || world.local.hit(&world.lease).filter(|entry| entry.cache_epoch == world.whole.epoch());
        let now = hit();
        tail.join().expect("the tail ends");
        assert!(now.or_else(hit).is_none(), "a key has survived");
    })
}

/// L1 of a cache goes off, beside a load and a hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Off {
    AsBuilt,
    EpochEndedBeforeFills,
    ClosedAskedBeforeTheEpoch,
}

/// No key is served once L1 is off, and none stays.
pub fn insert_beside_l1_that_goes_off(how: Off) -> usize {
    every_interleaving(move || {
        let world = World::new();
        world.lease.extend(SENT_MS, BOUND);
        let tail = beside(&world, move |world| {
            if how == Off::EpochEndedBeforeFills {
                world.whole.end_epoch();
                world.whole.set_open(false);
            } else {
                world.whole.let_go();
            }
        });
        let slot = world.buckets.slot("item", "1");
        let was_open = world.whole.takes_fills();
        let began = world.whole.epoch();
        world.buckets.insert_if_accepted(slot, &world.whole, &stamp("7:7:"), || {
            let asked_before = how == Off::ClosedAskedBeforeTheEpoch;
            if if asked_before { was_open } else { world.whole.takes_fills() } {
                world.local.insert(Entry { stamp: stamp("7:7:"), era: 0, cache_epoch: began });
            }
        });
        tail.join().expect("the tail ends");
        let hit = world.local.hit(&world.lease).filter(|entry| entry.cache_epoch == world.whole.epoch());
        assert!(hit.is_none(), "a key is served though L1 is off");
    })
}

/// A hit of a value that depends on another key, whose bucket is asked: its invalidation evicts nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dependency {
    AsBuilt,
    EraNotReadAgain,
    JudgedBeforeTheLease,
}

/// What comes beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// A poll that brings the invalidation, and extends the lease.
    APoll,
    /// A recovery that has to replay it.
    ARecovery,
}

/// Whoever holds a lease serves nothing that misses what was applied before the lease was published, though a recovery
/// makes the bucket forget it for a while.
pub fn dependency_beside(how: Dependency, what: Beside) -> usize {
    every_interleaving(move || {
        let world = World::new();
        world.local.insert(Entry { stamp: stamp("7:7:"), era: 0, cache_epoch: 0 });
        let poll = stamp("8:8:");
        let bring = |world: &World, poll: &Snapshot| {
            let told = Told { xid: 7, epoch: 0, poll: Some(poll) };
            world.buckets.apply(world.buckets.slot("other", "1"), told, &world.lease, || ());
            world.complete(poll);
            world.lease.extend(SENT_MS, BOUND);
        };
        if what == Beside::ARecovery {
            bring(&world, &poll);
        }
        let tail = beside(&world, move |world| {
            if what == Beside::ARecovery {
                world.lease.begin_era();
                world.buckets.reset(&stamp("5:5:"), [&world.whole].into_iter());
                world.lease.begin_era();
            }
            bring(world, &poll);
        });
        let other =
            Subject { slot: world.buckets.slot("other", "1"), whole: std::sync::Arc::new(WholeCache::new()) };
        let accepts = |entry: &Entry| world.buckets.accepts_all(std::slice::from_ref(&other), &entry.stamp);
        let early =
            how == Dependency::JudgedBeforeTheLease && world.local.get().is_some_and(|entry| accepts(&entry));
        let held = world.lease.held();
        let entry = world.local.get().filter(|entry| is_fresh(held, entry, NOW_MS));
        let served = entry.filter(|entry| match how {
            Dependency::AsBuilt => {
                world.buckets.accepts_held(&world.lease, held, std::slice::from_ref(&other), &entry.stamp)
            }
            Dependency::EraNotReadAgain => accepts(entry),
            Dependency::JudgedBeforeTheLease => early && world.lease.held().era() == held.era(),
        });
        assert!(served.is_none(), "a value that misses what its lease has seen is served");
        tail.join().expect("the tail ends");
    })
}
