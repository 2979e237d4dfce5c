//! The model: every state of a small world, with Perto's own rules in it.
//!
//! One key; two instances with their tails, leases, buckets and L1; readers that are paused anywhere; writers whose transactions
//! begin, commit and abort in any order; hints that are lost, late, doubled or false; a Redis that brings any value it ever had; a
//! replica and old transactions; a log that is trimmed; a server that crashes and uses numbers again. [`Bucket`](crate::coherence::rules::Bucket) and
//! [`Snapshot`](crate::coherence::snapshot::Snapshot) are the real ones. What surrounds them is modelled after `src/cache.rs`, `src/cache/fetch.rs` and
//! `src/coherence/tail.rs`, one step for each moment at which others may come between.
//!
//! [Stateright](https://www.stateright.rs) goes through all states of a [`Scope`], breadth first. Time is what has become older than the bound, which
//! may happen at any moment; so a proof holds for every bound and every speed.
//!
//! Not modelled: more than one key to a bucket (which only makes it refuse more), invalidations of a whole cache, and what threads do
//! between two steps: see [`crate::buckets`] and [`crate::lease`].

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Property};

mod explain;
mod scopes;
mod state;
mod step;
mod variants;

pub use scopes::{PROOFS, Scope};
use state::{Entry, Instance, READERS, Reader, Seen, Step, Stored, Tail, World, Writer};
use step::Action;
pub use variants::Variant;
use variants::{Kind, Known};

/// A scope, as it is or with one thing broken.
#[derive(Debug, Clone, Copy)]
struct Perto {
    scope: Scope,
    variant: Option<Variant>,
}

/// What a search found.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub states: usize,
    pub depth: usize,
    pub took: Duration,
    /// The property that does not hold, and the steps that lead there.
    pub found: Option<(String, Vec<String>)>,
}

/// Goes through all states of a scope, or until something is wrong.
pub fn search(scope: Scope, variant: Option<Variant>, threads: usize) -> Verdict {
    let began = Instant::now();
    let model = Perto { scope, variant };
    let checker =
        model.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checker.discoveries().into_iter().next().map(|(property, path)| {
        let mut steps = Vec::new();
        let mut what = property.to_owned();
        for (before, action) in path.into_vec() {
            if let Some(action) = action {
                let after = model.next_state(&before, action).unwrap_or_else(|| before.clone());
                steps.push(model.explain(&before, action, &after));
                what = after.wrong.map_or(what, str::to_owned);
            }
        }
        (what, steps)
    });
    Verdict { states: checker.unique_state_count(), depth: checker.max_depth(), took: began.elapsed(), found }
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

    fn kind(&self) -> Kind {
        match self.variant {
            Some(
                Variant::XmaxAboveHighest
                | Variant::LoForgotten
                | Variant::RkForgotten
                | Variant::UnconfirmedHintDroppedAgainstTheLastPoll,
            ) => Kind::Copied(self.variant),
            _ => self.scope.bucket,
        }
    }

    /// All up to date, with or without the value in L1; or an instance that is about to start.
    fn initial(&self, held: [bool; 2]) -> World {
        let instance = |i: usize| {
            let cold = self.scope.cold && i == 1;
            Instance {
                epoch: 0,
                era: 0,
                lease: (!cold).then_some(0),
                known: Known::at(self.kind(), &Seen::NOTHING.snapshot()),
                poll: (!cold).then_some(Seen::NOTHING),
                entry: (held[i] && !cold).then_some(Entry { holds: 0, stamp: Seen::NOTHING, era: 0 }),
                tail: if cold { Tail::Lost } else { Tail::Idle },
                heard: 0,
                last: 0,
            }
        };
        let reader = |r: usize| {
            let left = self.scope.readers.get(r).map_or(0, |(_, reads)| *reads);
            Reader { left, floor: 0, step: Step::Idle }
        };
        let mut l2 = [None; state::FILLS];
        l2[0] = self.scope.l2.then_some(Stored { epoch: 0, holds: 0, stamp: Seen::NOTHING });
        World {
            next: 1,
            epoch: 0,
            now: 0,
            crashed_at: None,
            aged: 0,
            writers: [Writer::Waiting; state::WRITERS],
            trimmed: Seen::NOTHING,
            gone: 0,
            l2,
            instances: [instance(0), instance(1)],
            readers: std::array::from_fn(reader),
            wrong: None,
        }
    }
}

impl Model for Perto {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let reads = |i| self.scope.readers.iter().any(|(instance, _)| *instance == i);
        let mut worlds = Vec::new();
        for held in [[true, true], [true, false], [false, true], [false, false]] {
            if (held[0] || reads(0)) && (held[1] || reads(1)) {
                worlds.push(self.initial([held[0] && reads(0), held[1] && reads(1)]));
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
        vec![
            Property::always("nothing wrong is served as fresh", |_, world: &World| world.wrong.is_none()),
            Property::always(
                "an L1 entry misses no invalidation applied by its instance",
                Self::entries_are_good,
            ),
            Property::always(
                "with nothing running, a completed poll lets new values in",
                Self::accepts_at_rest,
            ),
            Property::always("nobody waits for a flight that has no leader", Self::flights_are_led),
            Property::eventually("every reader is answered", |_, world: &World| {
                world.readers.iter().all(|reader| reader.left == 0 && reader.step == Step::Idle)
            }),
        ]
    }
}

impl Perto {
    fn entries_are_good(&self, world: &World) -> bool {
        world.instances.iter().all(|instance| match instance.entry {
            Some(entry) if entry.era == instance.era => (0..self.writers()).all(|k| {
                let applied = state::has(instance.heard, k);
                !(applied && world.writers[usize::from(k)].committed_by(world.now))
                    || state::has(entry.holds, k)
            }),
            _ => true,
        })
    }

    fn accepts_at_rest(&self, world: &World) -> bool {
        let seen = world.seen_at(world.now);
        world.writers.iter().any(|writer| writer.runs())
            || world.instances.iter().all(|instance| {
                let polled = instance.tail == Tail::Idle
                    && instance.epoch == world.epoch
                    && instance.poll == Some(seen);
                !polled || instance.known.accepts(seen)
            })
    }

    fn flights_are_led(&self, world: &World) -> bool {
        (0..READERS as u8).all(|r| match world.reader(r).step {
            Step::Aboard { leader, .. } => world.reader(leader).step.leads(),
            _ => true,
        })
    }
}
