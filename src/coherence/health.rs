//! Whether an instance is coherent, and if not, why: its states, and the stream of what happens to it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};

use crate::coherence::Coherence;

/// The state of an instance. `docs/ARCHITECTURE.md` has the table of what a reader gets in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// No poll of the log has completed since the start or since a new epoch. Reads go to Postgres.
    Recovering,
    /// Everything works. Writes are seen in about a millisecond, and within the bound whatever happens.
    Coherent,
    /// Redis can't be used (or is not configured). L1 and Postgres answer; the log is polled faster; the bound holds.
    Isolated,
    /// The log has not been read for longer than the bound: Postgres is down or too slow. The policy of each cache
    /// decides, and what is served says that it is unverified.
    Unverified,
    /// Shut down.
    Closed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recovering => "recovering",
            Self::Coherent => "coherent",
            Self::Isolated => "isolated",
            Self::Unverified => "unverified",
            Self::Closed => "closed",
        })
    }
}

/// The health of an instance at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The state.
    pub state: State,
    /// How much longer what is cached may be served as fresh, without another poll.
    pub lease_left: Duration,
    /// Whether L2 is used.
    pub remote_up: bool,
    /// Whether hints are received: the subscription's own connection has answered.
    pub bus_up: bool,
    /// Changes when transaction numbers may have been used again: a crash, a promotion, a restore.
    pub epoch: u64,
}

/// Something that an operator may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The state changed.
    State {
        /// What it was.
        from: State,
        /// What it is.
        to: State,
    },
    /// L1 was dropped and the log is read anew.
    Recovered {
        /// Why.
        why: Recovery,
    },
    /// A publisher's hints were lost in between. A poll was made at once.
    Gap {
        /// How many.
        lost: u64,
    },
    /// A poll of the log failed. Sent for the first of a series.
    PollFailed {
        /// The error and its causes.
        error: String,
    },
    /// The log could not be trimmed: it grows until it can.
    TrimFailed {
        /// The error and its causes.
        error: String,
    },
    /// Redis does not answer a ping. Sent for the first of a series; reads go on without L2.
    RemoteFailed {
        /// The error and its causes.
        error: String,
    },
    /// A value that was served differs from what the primary says, and no invalidation explains it: a write that no
    /// trigger covered, or a loader that reads more than its key says. It was invalidated on every instance. `perto doctor`
    /// looks for the reason.
    AuditViolation {
        /// The cache.
        cache: String,
        /// [`key_hash`](crate::key_hash) of the key's text.
        key_hash: u64,
    },
    /// A table that a cache declares as its source has no triggers: writes to it are not seen before the time to live.
    /// Looked at every minute, and sent once for as long as it is so.
    Unwatched {
        /// The cache.
        cache: String,
        /// The table.
        table: String,
    },
}

/// Why an instance read the log anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recovery {
    /// It started.
    Start,
    /// The database crashed, was promoted or restored.
    NewEpoch,
    /// The log was trimmed past what this instance had read.
    Trimmed,
    /// More rows than one poll brings.
    TooManyRows,
}

/// Events kept for a receiver that is slow; older ones are lost to it, and it is told.
const EVENTS_KEPT: usize = 256;

pub(crate) struct Signals {
    pub(crate) bus_up: AtomicBool,
    pub(crate) closed: AtomicBool,
    changed: Notify,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

impl Signals {
    pub(crate) fn new() -> Self {
        Self {
            bus_up: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            changed: Notify::new(),
            state: Mutex::new(State::Recovering),
            events: broadcast::channel(EVENTS_KEPT).0,
        }
    }

    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    pub(crate) fn send(&self, event: Event) {
        // Nobody listening is fine.
        drop(self.events.send(event));
    }

    pub(crate) fn set_bus(&self, up: bool) {
        if self.bus_up.swap(up, Ordering::AcqRel) != up {
            self.changed();
        }
    }

    /// Something that the state depends on has changed.
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    pub(crate) fn health(&self, coherence: &Coherence, remote_up: bool) -> Health {
        let held = coherence.lease.held();
        let now = coherence.clock.now_ms();
        let bus_up = self.bus_up.load(Ordering::Acquire);
        let state = if self.closed.load(Ordering::Acquire) {
            State::Closed
        } else if !(coherence.buckets.polled() && held.ever_valid()) {
            State::Recovering
        } else if !held.valid_at(now) {
            State::Unverified
        } else if bus_up && remote_up {
            State::Coherent
        } else {
            State::Isolated
        };
        let lease_left = Duration::from_millis(held.deadline_ms().saturating_sub(now));
        Health { state, lease_left, remote_up, bus_up, epoch: coherence.epoch() }
    }

    /// Sends an event for each change of the state. A lease that lapses tells nobody, so this looks again ten times
    /// a bound. Never returns.
    pub(crate) async fn watch(&self, coherence: &Arc<Coherence>, remote_up: impl Fn() -> bool) {
        let pause = (coherence.bound / 10).max(Duration::from_millis(5));
        loop {
            self.observe(self.health(coherence, remote_up()).state);
            tokio::select! {
                biased;
                () = self.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    pub(crate) fn observe(&self, now: State) {
        let mut state = self.state.lock();
        let from = std::mem::replace(&mut *state, now);
        if from != now {
            self.send(Event::State { from, to: now });
        }
    }
}
