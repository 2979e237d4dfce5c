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
use std::time::Duration;

use crate::sync::RwLock;

pub(crate) mod belief;
pub(crate) mod buckets;
pub(crate) mod known;
pub(crate) mod lease;
pub(crate) mod poll;
pub(crate) mod rules;
pub(crate) mod snapshot;
pub(crate) mod spelling;
pub(crate) mod token;
pub(crate) mod tokens;
pub(crate) mod verdict;

use belief::Belief;
use buckets::{Buckets, Slot, Subject, WholeCache};
use lease::{Lease, LeaseView};
use snapshot::{Rank, Snapshot};
use token::{Mark, Token};
use tokens::{Asks, Tokens};
use verdict::LeaseVerdict;

/// What one instance knows, and until when that is good for.
pub(crate) struct Coherence {
    pub(crate) bound: Duration,
    pub(crate) lease: Lease,
    pub(crate) buckets: Buckets,
    followed: RwLock<Followed>,
    pub(crate) belief: Belief,
    pub(crate) tokens: Tokens,
}

/// The server that was polled last, since its last start or recovery, and its epoch. 0 before the first poll.
#[derive(Debug, Clone, Copy)]
struct Followed {
    server: u64,
    epoch: u64,
}

/// The state of things before any I/O of a read. What began in another era is dropped at its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadStart {
    pub(crate) epoch: u64,
    pub(crate) era: u64,
    pub(crate) cache_epoch: u64,
    /// The rank of the last poll that has completed, or completes now. What the primary says from now on has at least this one.
    pub(crate) poll: Option<Rank>,
}

impl Coherence {
    pub(crate) fn new(bound: Duration, seed: u64) -> Self {
        Self {
            bound,
            lease: Lease::default(),
            buckets: Buckets::new(seed),
            followed: RwLock::new(Followed { server: 0, epoch: 0 }),
            belief: Belief::default(),
            tokens: Tokens::default(),
        }
    }

    pub(crate) fn read_start(&self, whole: &WholeCache) -> ReadStart {
        let (epoch, era) = self.lease.start();
        ReadStart { epoch, era, cache_epoch: whole.epoch(), poll: self.buckets.rank_of_poll() }
    }

    /// What a value misses nothing of that depends on no row and is computed from now on: the last poll of this era.
    ///
    /// A poll of the era before is still there for a moment while a recovery is under way, and its numbers mean nothing in a
    /// new epoch: it counts once a lease of this era rests on it. Hints don't count: one may come before its commit.
    pub(crate) fn ended_by_now(&self, era: u64) -> Option<Arc<Snapshot>> {
        let held = self.lease.held();
        (held.era() == era && held.ever_valid()).then(|| self.buckets.poll()).flatten()
    }

    /// The log is on this server from now on, in this epoch.
    pub(crate) fn follow(&self, server: u64, epoch: u64) {
        *self.followed.write() = Followed { server, epoch };
    }

    /// Whether the log is on another server than this, as far as is known here: what it says has numbers of another history.
    pub(crate) fn is_elsewhere(&self, server: Option<u64>) -> bool {
        let polled = self.followed.read().server;
        polled != 0 && server.is_some_and(|server| server != polled)
    }

    /// Whether what the server says that is not elsewhere has numbers of this epoch. Not so for a load that a recovery overtakes: it began in
    /// the epoch before, and the server is followed already.
    pub(crate) fn follows_in(&self, epoch: u64) -> bool {
        let Followed { server, epoch: followed } = *self.followed.read();
        server != 0 && followed == epoch
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.lease.epoch()
    }

    /// Ends the era: all that is cached is dead, all that is under way will be dropped. `floor` contains every
    /// invalidation so far.
    pub(crate) fn recover<'a>(
        &self,
        epoch: u64,
        floor: &Snapshot,
        wholes: impl Iterator<Item = &'a WholeCache>,
    ) {
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
    pub(crate) fn sending<'a>(&self, wholes: impl Iterator<Item = &'a WholeCache>) {
        self.belief.sending();
        self.buckets.sending(wholes);
    }

    /// All rows of a poll have been applied. Publishes it, forgets what hints had told before it was sent, and returns how many
    /// transactions they had named that it does not contain.
    pub(crate) fn completed<'a>(
        &self,
        poll: Snapshot,
        wholes: impl Iterator<Item = &'a WholeCache>,
        now_ms: u64,
    ) -> usize {
        let untrue = self.belief.completed(&poll, now_ms);
        self.buckets.complete(poll, wholes);
        untrue
    }

    /// Whether a value with this stamp may be served: fresh if the lease held before it came is still valid.
    /// The clock is read last, after the value was judged.
    pub(crate) fn judge(
        &self,
        held: LeaseView,
        slot: Slot,
        whole: &WholeCache,
        subjects: &[Subject],
        stamp: &Snapshot,
        now_ms: impl FnOnce() -> u64,
    ) -> LeaseVerdict {
        if !(self.buckets.accepts(slot, whole, stamp) && self.buckets.accepts_all(subjects, stamp)) {
            return LeaseVerdict::Refused;
        }
        verdict::freshness(held, now_ms())
    }

    /// What a token asks of a value. The time is read after the epoch.
    pub(crate) fn asks(&self, token: Token, now_ms: impl FnOnce() -> u64) -> Asks {
        // An epoch that has ended does not come back. Before the lease: what is fresh from here on is of a later one.
        let epoch = self.epoch();
        if let Some(era) = self.buckets.has_polled(&self.lease, token) {
            return Asks::Polled(era);
        }
        let ahead = || self.buckets.poll().is_some_and(|poll| !token.mark.is_in(&poll));
        self.tokens.asks(token, epoch, ahead, now_ms())
    }

    /// What any later answer must contain to contain what this token stands for, once a poll has.
    pub(crate) fn floor(&self, token: Token) -> Option<Token> {
        match token.mark {
            Mark::Read(_) => Some(token),
            // Whatever ranks as high contains the write.
            Mark::Write(_) => self.polled_rank().filter(|polled| polled.epoch == token.epoch),
        }
    }

    /// All that the last completed poll contains.
    pub(crate) fn polled_rank(&self) -> Option<Token> {
        // As for `ended_by_now`: in the midst of a recovery the poll may be of the epoch before.
        let held = self.lease.held();
        let (epoch, poll) = (self.epoch(), self.buckets.poll()?);
        let same_era = held.ever_valid() && self.lease.held().era() == held.era();
        same_era.then(|| Token::of_read(epoch, poll.rank()))
    }

    /// How long ago the poll was sent that a lease rests on: what is served under it misses nothing that is older.
    pub(crate) fn lease_age(&self, held: LeaseView, now_ms: u64) -> Duration {
        let bound_ms = u64::try_from(self.bound.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(now_ms.saturating_add(bound_ms).saturating_sub(held.deadline_ms()))
    }

    /// Whether the poll that a lease rests on was sent at most `limit` ago.
    ///
    /// The clock counts whole milliseconds, so it may have been sent almost one more ago than it seems.
    pub(crate) fn is_within(&self, held: LeaseView, now_ms: u64, limit: Duration) -> bool {
        self.lease_age(held, now_ms) + Duration::from_millis(1) <= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clock counts milliseconds: a poll of age 0 was sent up to one before.
    #[test]
    fn a_poll_is_never_taken_for_younger_than_it_may_be() {
        let coherence = Coherence::new(Duration::from_secs(1), 0);
        coherence.lease.extend(10, coherence.bound);
        let within = |now_ms, micros| {
            coherence.is_within(coherence.lease.held(), now_ms, Duration::from_micros(micros))
        };
        for (age_ms, limit_micros, is) in [
            (0, 0, false),
            (0, 500, false),
            (0, 999, false),
            (0, 1_000, true),
            (1, 1_500, false),
            (1, 2_000, true),
            (60, 60_999, false),
        ] {
            assert_eq!(within(10 + age_ms, limit_micros), is, "{limit_micros} µs at an age of {age_ms} ms");
        }
    }

    #[test]
    fn a_poll_of_the_era_before_vouches_for_nothing_that_is_computed() {
        let coherence = Coherence::new(Duration::from_secs(1), 0);
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
