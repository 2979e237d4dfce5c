//! The promise, and what keeps it.
//!
//! > No read served as *fresh* misses a write that was visible in Postgres more than the bound before it began.
//!
//! 1. The *log* has a row for every write, committed with it. The *tail* reads it with a snapshot as cursor, applies
//!    the rows to the *buckets*, and only then extends the *lease* to the time the poll was sent plus the bound.
//! 2. A value is served as fresh under a lease that was valid when the clock was read last, and only if its *stamp*
//!    contains every invalidation applied to its bucket. L1 entries are evicted instead, by the same rule.
//! 3. So every write visible at the lease's poll has been applied, hence is contained in what is served; and that
//!    poll was sent less than the bound before the read ended. Nothing is assumed of Redis, of hints or of the age
//!    of anything. `docs/PROOFS.md` has the proof, `docs/PROMISES.md` the tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Clock;
use crate::watched::Watched;

pub(crate) mod belief;
pub(crate) mod buckets;
pub(crate) mod health;
pub(crate) mod hints;
pub(crate) mod known;
pub(crate) mod lease;
#[cfg(feature = "tracing")]
pub(crate) mod lines;
pub(crate) mod repaired;
pub(crate) mod rules;
pub(crate) mod snapshot;
pub(crate) mod spelling;
pub(crate) mod tail;
pub(crate) mod tokens;
pub(crate) mod troubles;

use belief::Belief;
use buckets::{Buckets, Slot, Whole};
use lease::{Held, Lease};
use snapshot::{Rank, Snapshot};
use tokens::Tokens;

/// What one instance knows, and until when that is good for.
pub(crate) struct Coherence {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) bound: Duration,
    pub(crate) lease: Lease,
    pub(crate) buckets: Buckets,
    /// When the server was started that was polled last; 0 before.
    server: AtomicU64,
    pub(crate) belief: Belief,
    pub(crate) tokens: Tokens,
    polls: Watched<Polls>,
    /// Asks the tail for a poll at once.
    pub(crate) doubt: Notify,
}

/// By their numbers.
#[derive(Debug, Default)]
struct Polls {
    sent: u64,
    completed: u64,
}

/// The state of things before any I/O of a read. What began in another era is dropped at its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Began {
    pub(crate) epoch: u64,
    pub(crate) era: u64,
    pub(crate) cache_epoch: u64,
    /// The rank of the last completed poll. What the primary says from now on has at least this one.
    pub(crate) poll: Option<Rank>,
}

impl Coherence {
    pub(crate) fn new(clock: Arc<dyn Clock>, bound: Duration, seed: u64) -> Self {
        Self {
            clock,
            bound,
            lease: Lease::default(),
            buckets: Buckets::new(seed),
            server: AtomicU64::new(0),
            belief: Belief::default(),
            tokens: Tokens::default(),
            polls: Watched::default(),
            doubt: Notify::new(),
        }
    }

    pub(crate) fn began(&self, whole: &Whole) -> Began {
        let (epoch, era) = self.lease.began();
        Began { epoch, era, cache_epoch: whole.epoch(), poll: self.buckets.poll().map(|poll| poll.rank()) }
    }

    /// What a value misses nothing of that depends on no row and is computed from now on: the last poll of this era.
    ///
    /// A poll of the era before is still there for a moment while a recovery is under way, and its numbers mean nothing in a
    /// new epoch: it counts once a lease of this era rests on it. Hints don't count: one may come before its commit.
    pub(crate) fn ended_by_now(&self, era: u64) -> Option<Arc<Snapshot>> {
        let held = self.lease.held();
        (held.era() == era && held.ever_valid()).then(|| self.buckets.poll()).flatten()
    }

    /// The log is on this server from now on.
    pub(crate) fn follow(&self, server: u64) {
        self.server.store(server, Ordering::Release);
    }

    /// Whether the log is on another server than this, as far as is known here: what it says has numbers of another history.
    /// Asks for a poll, for the log may have moved there.
    pub(crate) fn is_elsewhere(&self, server: Option<u64>) -> bool {
        let polled = self.server.load(Ordering::Acquire);
        let elsewhere = polled != 0 && server.is_some_and(|server| server != polled);
        if elsewhere {
            self.doubt.notify_one();
        }
        elsewhere
    }

    pub(crate) fn leased(&self) -> bool {
        self.freshness(self.lease.held()) == Judged::Fresh
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.lease.epoch()
    }

    /// Ends the era: all that is cached is dead, all that is under way will be dropped. `floor` contains every
    /// invalidation so far.
    pub(crate) fn recover<'a>(&self, epoch: u64, floor: &Snapshot, wholes: impl Iterator<Item = &'a Whole>) {
        self.lease.begin_era();
        if self.epoch() != epoch {
            self.tokens.ended(self.epoch());
        }
        self.lease.enter(epoch);
        self.buckets.reset(floor, wholes);
        self.belief.recover();
        // Once more: a load that began in between was judged by what had not been reset yet, and may be in L1.
        self.lease.begin_era();
    }

    /// To be called before a poll is sent: what hints have told by then, it must bring.
    pub(crate) fn sending<'a>(&self, wholes: impl Iterator<Item = &'a Whole>) {
        self.polls.update(|polls| polls.sent += 1);
        self.belief.sending();
        self.buckets.sending(wholes);
    }

    /// All rows of a poll have been applied. Publishes it, forgets what hints had told before it was sent, and returns how many
    /// transactions they had named that it does not contain.
    pub(crate) fn completed<'a>(&self, poll: Snapshot, wholes: impl Iterator<Item = &'a Whole>) -> usize {
        let untrue = self.belief.completed(&poll, self.clock.now_ms());
        self.buckets.complete(poll, wholes);
        untrue
    }

    /// The lease rests on the poll that was sent last: whoever waits for it may go on.
    pub(crate) fn polled(&self) {
        self.polls.update(|polls| polls.completed = polls.sent);
    }

    /// Asks for a poll that is sent from now on, and waits for it: one for all who ask meanwhile. It may never come.
    pub(crate) async fn next_poll(&self) {
        let sent = self.polls.look(|polls| polls.sent);
        self.doubt.notify_one();
        self.polls.wait_for(|polls| (polls.completed > sent).then_some(())).await;
    }

    /// Whether a value with this stamp may be served: fresh if the lease held before it came is still valid.
    /// The clock is read last, after the value was judged.
    pub(crate) fn judge(&self, held: Held, slot: Slot, whole: &Whole, stamp: &Snapshot) -> Judged {
        if !self.buckets.accepts(slot, whole, stamp) {
            return Judged::Refused;
        }
        self.freshness(held)
    }

    /// How long ago the poll was sent that a lease rests on: what is served under it misses nothing that is older.
    pub(crate) fn lease_age(&self, held: Held, now_ms: u64) -> Duration {
        let bound_ms = u64::try_from(self.bound.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(now_ms.saturating_add(bound_ms).saturating_sub(held.deadline_ms()))
    }

    pub(crate) fn freshness(&self, held: Held) -> Judged {
        let now = self.clock.now_ms();
        if held.valid_at(now) {
            Judged::Fresh
        } else {
            Judged::Unverified(Duration::from_millis(now.saturating_sub(held.deadline_ms())))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    Fresh,
    /// It contains all that is known here, but the lease ended this long ago.
    Unverified(Duration),
    /// It misses a write that is known here.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn a_poll_of_the_era_before_vouches_for_nothing_that_is_computed() {
        let coherence = Coherence::new(Arc::new(SystemClock), Duration::from_secs(1), 0);
        let poll = Snapshot::all_below(1_000);
        let era = || coherence.lease.held().era();
        assert_eq!(coherence.ended_by_now(era()), None, "no poll yet");
        coherence.buckets.complete(poll.clone(), std::iter::empty());
        coherence.lease.extend(1, coherence.bound);
        assert_eq!(coherence.ended_by_now(era()).as_deref(), Some(&poll));
        let before = era();
        // As in the midst of a recovery: the poll has not been forgotten yet.
        coherence.lease.begin_era();
        assert_eq!(coherence.ended_by_now(era()), None);
        assert_eq!(coherence.ended_by_now(before), None);
    }
}
