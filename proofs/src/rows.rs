//! The second model: values of two rows, tokens of reads, and views.
//!
//! Two keys of two caches: the value of `A` depends on the row of `B` too. What else there is is as in [`crate::model`]: the same Postgres, the
//! same rules, polls in two steps or row by row, hints, an L2 that brings any value it ever had, recoveries, readers that are paused
//! anywhere. Readers are of three kinds. Some read; some are sessions, which send the last token that they got; some are views.
//!
//! Not modelled, because the first model has it: buckets with more room, hints that are false, cancelled readers, old transactions.

use stateright::{Model, Property};

use crate::coherence::rules::Bucket;
use crate::postgres::{Postgres, Seen, Set, bit, has};
use crate::search::{Explained, Verdict};

mod explain;
mod scopes;
mod state;
mod step;
mod variants;

pub use scopes::{LARGER, PROOFS, Scope};
use state::{A, ALL_OF_B, B, Entry, Instance, ROWS, Reader, Stored, Tail, Value, World};
use step::Action;
pub use variants::Variant;

/// What is promised.
mod promise {
    pub(super) const SERVED: &str = "nothing wrong is served";
    pub(super) const LIVELY: &str = "after a poll that brings nothing, new values are let in";

    /// What may be wrong with what is served.
    pub(super) const OLDER_THAN_THE_BOUND: &str = "a fresh value misses a write that is older than the bound";
    pub(super) const UNSEEN_BY_ITS_POLL: &str =
        "a value misses a write that was visible at the poll its lease rests on";
    pub(super) const LOST: &str = "a fresh value has a write that was lost longer than the bound ago";
    pub(super) const BACK_IN_TIME: &str = "a read by a token misses what its session has seen or written";
    pub(super) const OF_NO_MOMENT: &str = "a view is of no moment";
    pub(super) const VIEW_OLDER_THAN_THE_BOUND: &str = "a view is of no moment within the bound";
}

/// A scope, as it is or with one thing broken.
#[derive(Debug, Clone, Copy)]
struct Rowwise {
    scope: Scope,
    variant: Option<Variant>,
}

/// Goes through all states of a scope, or until something is wrong. `progress` is told of the states so far, now and then.
pub fn search(scope: Scope, variant: Option<Variant>, threads: usize, progress: impl Fn(usize)) -> Verdict {
    crate::search::search(Rowwise { scope, variant }, threads, progress)
}

/// The rows that the value of a key depends on.
const fn subjects(key: u8) -> Set {
    if key == A { bit(A) | bit(B) } else { bit(B) }
}

impl Rowwise {
    fn writers(&self) -> u8 {
        self.scope.writers.len() as u8
    }

    /// The rows that this writer changes.
    fn touches(&self, k: u8) -> Set {
        self.scope.writers.get(usize::from(k)).copied().unwrap_or_default()
    }

    /// Whether this writer changes what a key's value is made of.
    fn concerns(&self, k: u8, key: u8) -> bool {
        let rows = if has(subjects(key), B) { subjects(key) | bit(ALL_OF_B) } else { subjects(key) };
        self.touches(k) & rows != 0
    }

    fn declares_b(&self, i: u8) -> bool {
        i == 0 || !self.scope.undeclared
    }

    /// The instance and the key of what a reader reads now, or read last.
    fn asked(&self, world: &World, r: u8) -> (u8, u8) {
        let at = usize::from(world.reader(r).begun).saturating_sub(1);
        self.scope.readers.get(usize::from(r)).map_or((u8::MAX, A), |asks| asks.of()[at])
    }

    fn instance(&self, world: &World, r: u8) -> u8 {
        self.asked(world, r).0
    }

    fn asks(&self) -> impl Iterator<Item = (u8, u8)> {
        self.scope.readers.iter().flat_map(|asks| asks.of().iter().copied())
    }

    fn is_read(&self, i: u8) -> bool {
        self.asks().any(|(instance, _)| instance == i)
    }

    /// All up to date, with or without the values in L1.
    fn initial(&self, held: [bool; 2]) -> World {
        let value = |key| Value {
            key,
            holds: 0,
            stamp: Seen::NOTHING,
            ceiling: Some(step::rank(Seen::NOTHING)),
            subjects: subjects(key),
        };
        let entry = |i: u8, key: u8| {
            let asked = held[usize::from(i)] && self.asks().any(|asked| asked == (i, key));
            asked.then(|| Entry { value: value(key), era: 0 })
        };
        let instance = |i| Instance {
            epoch: 0,
            era: 0,
            lease: Some(0),
            known: [Bucket::at(&Seen::NOTHING.snapshot()); ROWS],
            poll: Some(Seen::NOTHING),
            entries: [entry(i, A), entry(i, B)],
            tail: Tail::Idle,
        };
        let mut l2 = [None; state::FILLS];
        if self.scope.l2 {
            let asked = |key: &u8| self.asks().any(|(_, of)| of == *key);
            for (place, key) in l2.iter_mut().zip([A, B].into_iter().filter(asked)) {
                *place = Some(Stored { epoch: 0, value: value(key) });
            }
        }
        l2.sort_unstable();
        let places = l2.iter().flatten().count();
        l2.rotate_left(state::FILLS - places);
        World {
            db: Postgres::NEW,
            moments: [0; state::EVENTS],
            aged: 0,
            l2,
            instances: [instance(0), instance(1)],
            readers: [Reader::new(); state::READERS],
            wrong: None,
        }
    }

    fn accepts_at_rest(&self, world: &World) -> bool {
        let seen = world.db.seen_at(world.db.now);
        world.instances.iter().all(|instance| {
            let polled = instance.tail == Tail::Idle
                && instance.epoch == world.db.epoch
                && instance.poll == Some(seen);
            // Since that poll was sent, hints may have told of what it contains.
            let hinted = instance.known.iter().any(Bucket::is_hinted);
            !polled || hinted || instance.known.iter().all(|known| known.accepts(&seen.snapshot()))
        })
    }
}

impl Explained for Rowwise {
    fn explain(&self, before: &World, action: Action, after: &World) -> String {
        self.step(before, action, after)
    }

    fn wrong(world: &World) -> Option<&'static str> {
        world.wrong
    }
}

impl Model for Rowwise {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut worlds = Vec::new();
        for held in [[true, true], [true, false], [false, true], [false, false]] {
            let possible = |i: usize| !held[i] || (!self.scope.empty && self.is_read(i as u8));
            if possible(0) && possible(1) {
                worlds.push(self.initial(held));
            }
        }
        worlds
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        self.possible(world, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        self.take(&mut next, action);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let served = Property::always(promise::SERVED, |_, world: &World| world.wrong.is_none());
        match self.variant {
            Some(_) => vec![served],
            None => vec![served, Property::always(promise::LIVELY, Self::accepts_at_rest)],
        }
    }
}
