//! The model: every state of a small world, with Perto's own rules in it.
//!
//! One key; two instances with their tails, leases, buckets and L1; readers that are paused anywhere; writers whose transactions
//! begin, commit and abort in any order; hints that are lost, late, doubled or false; a Redis that brings any value it ever had; a
//! replica and old transactions; a log that is trimmed; a server that crashes and uses numbers again. `Bucket` and
//! `Snapshot` are the real ones. What surrounds them is modelled after `src/cache.rs`, `src/cache/fetch.rs` and
//! `src/following/tail.rs`, one step for each moment at which others may come between.
//!
//! [Stateright](https://www.stateright.rs) goes through all states of a [`Scope`], breadth first. Time is what has become older than the bound, which
//! may happen at any moment; so a proof holds for every bound and every speed.
//!
//! Not modelled: more than one key to a bucket (which only makes it refuse more), invalidations of a whole cache, and what threads do
//! between two steps: see [`crate::buckets`] and [`crate::lease`].

use stateright::{Model, Property};

use crate::postgres::{Fate, Postgres, Seen, Writer, has};
use crate::search::{Explained, Verdict};

mod explain;
mod scopes;
mod state;
mod step;
mod variants;

pub use scopes::{LARGER, PROOFS, Scope};
use state::{Entry, Instance, Reader, Step, Stored, Tail, Wish, World};
use step::Action;
pub use variants::Variant;
use variants::{Kind, Known};

/// What is promised.
mod promise {
    pub(super) const SERVED: &str = "nothing wrong is served as fresh";
    pub(super) const HELD: &str = "an L1 entry misses no invalidation applied by its instance";
    pub(super) const LIVELY: &str =
        "whatever runs, a completed poll lets new values in, but for hints since it was sent";
    pub(super) const ANSWERED: &str = "every reader that is polled is answered";

    /// What may be wrong with what is served.
    pub(super) const OLDER_THAN_THE_BOUND: &str = "a fresh value misses a write that is older than the bound";
    pub(super) const UNSEEN_BY_ITS_POLL: &str =
        "a value misses a write that was visible at the poll its lease rests on";
    pub(super) const LOST: &str = "a fresh value has a write that was lost longer than the bound ago";
    pub(super) const UNCOMMITTED: &str = "a fresh value has a write that was never committed";
    pub(super) const OLDER_THAN_ASKED: &str = "a read within a time misses a write that was visible before";
    pub(super) const WITHOUT_ITS_WRITE: &str = "a read by a token misses the token's write";
}

/// A scope, as it is or with one thing broken.
#[derive(Debug, Clone, Copy)]
struct Perto {
    scope: Scope,
    variant: Option<Variant>,
}

/// Goes through all states of a scope, or until something is wrong. `progress` is told of the states so far, now and then.
pub fn search(scope: Scope, variant: Option<Variant>, threads: usize, progress: impl Fn(usize)) -> Verdict {
    crate::search::search(Perto { scope, variant }, threads, progress)
}

impl Explained for Perto {
    fn explain(&self, before: &World, action: Action, after: &World) -> String {
        self.step(before, action, after)
    }

    fn wrong(world: &World) -> Option<&'static str> {
        world.wrong
    }
}

impl Perto {
    fn writers(&self) -> u8 {
        self.scope.writers.len() as u8
    }

    /// Whether this writer changes the row; else it is just a transaction.
    fn touches(&self, k: u8) -> bool {
        self.scope.writers.get(usize::from(k)).copied().unwrap_or_default()
    }

    fn instance(&self, r: u8) -> u8 {
        self.scope.readers.get(usize::from(r)).map_or(u8::MAX, |(instance, _)| *instance)
    }

    fn is_read(&self, i: u8) -> bool {
        self.scope.readers.iter().any(|(instance, _)| *instance == i)
    }

    fn kind(&self) -> Kind {
        match self.variant {
            Some(
                Variant::XmaxAboveHighest
                | Variant::CoarseForgotten
                | Variant::FloorForgotten
                | Variant::UnconfirmedHintDroppedAgainstTheLastPoll
                | Variant::RowTakenForItsHint
                | Variant::SecondHintTakenForTheFirst
                | Variant::ReplayConfirmsNothing
                | Variant::LogGivenUpToAHint,
            ) => Kind::Copied(self.variant),
            _ => self.scope.bucket,
        }
    }

    /// All up to date, with or without the value in L1.
    fn initial(&self, held: [bool; 2]) -> World {
        let [mut first, mut second] = held.map(|held| Instance {
            epoch: 0,
            era: 0,
            lease: Some(0),
            known: Known::at(self.kind(), &Seen::NOTHING.snapshot()),
            poll: Some(Seen::NOTHING),
            entry: held.then_some(Entry { holds: 0, stamp: Seen::NOTHING, era: 0 }),
            tail: Tail::Idle,
            heard: 0,
            since: 0,
            last: 0,
            completed: 0,
            told: 0,
        });
        if self.scope.cold {
            second = Instance { lease: None, poll: None, entry: None, tail: Tail::Lost, ..second };
        }
        let reader = |r: usize| {
            let left = self.scope.readers.get(r).map_or(0, |(_, reads)| *reads);
            Reader { left, floor: 0, asked: 0, token: None, wish: Wish::Nothing, step: Step::Idle }
        };
        let mut db = Postgres::NEW;
        let mut stored = Stored { epoch: 0, holds: 0, stamp: Seen::NOTHING };
        if self.scope.crashed {
            db.writers[0] = Writer::Ended { xid: 1, at: 1, fate: Fate::Vanished };
            (db.epoch, db.now, db.crashed_at) = (1, 2, Some(2));
            stored = Stored { epoch: 0, holds: 1, stamp: Seen::ended(0b10) };
            for instance in [&mut first, &mut second] {
                instance.known.apply(1, instance.poll, Some(stored.stamp));
                instance.poll = Some(stored.stamp);
                instance.lease = Some(1);
                instance.heard = 1;
                instance.entry = instance.entry.map(|entry| Entry { holds: 1, stamp: stored.stamp, ..entry });
            }
        }
        let mut l2 = [None; state::FILLS];
        l2[0] = self.scope.l2.then_some(stored);
        World {
            db,
            aged: 0,
            l2,
            instances: [first, second],
            readers: std::array::from_fn(reader),
            checked: None,
            wrong: None,
        }
    }
}

impl Model for Perto {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let mut worlds = Vec::new();
        for held in [[true, true], [true, false], [false, true], [false, false]] {
            if held == [false, false]
                || !self.scope.empty && (!held[0] || self.is_read(0)) && (!held[1] || self.is_read(1))
            {
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

    /// Where something is broken, only what must fail then: else whichever is found first would do.
    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(promise::SERVED, |_, world: &World| world.wrong.is_none()),
            Property::always(promise::HELD, Self::entries_are_good),
            Property::always(promise::LIVELY, Self::accepts_at_rest),
            Property::eventually(promise::ANSWERED, |_, world: &World| {
                let ended = |step| matches!(step, Step::Idle | Step::Parked);
                world.readers.iter().all(|reader| reader.left == 0 && ended(reader.step))
            }),
        ];
        if let Some(variant) = self.variant {
            let of_what_is_served = all.iter().all(|property| property.name != variant.breaks());
            let looked_for = if of_what_is_served { promise::SERVED } else { variant.breaks() };
            all.retain(|property| property.name == looked_for);
        }
        all
    }
}

impl Perto {
    fn entries_are_good(&self, world: &World) -> bool {
        world.instances.iter().all(|instance| match instance.entry {
            Some(entry) if entry.era == instance.era => (0..self.writers()).all(|k| {
                let applied = has(instance.heard, k);
                !(applied && world.db.writers[usize::from(k)].committed_by(world.db.now))
                    || has(entry.holds, k)
            }),
            _ => true,
        })
    }

    fn accepts_at_rest(&self, world: &World) -> bool {
        let seen = world.db.seen_at(world.db.now);
        world.checked.is_some()
            || world.instances.iter().all(|instance| {
                let polled = instance.tail == Tail::Idle
                    && instance.epoch == world.db.epoch
                    && instance.poll == Some(seen)
                    && instance.since == 0;
                !polled || instance.known.accepts(seen)
            })
    }
}
