//! Whether an instance is coherent, and if not, why: its states, and the stream of what happens to it.

use std::fmt;
use std::time::Duration;

#[cfg(feature = "tracing")]
mod lines;
pub(crate) mod signals;
pub(crate) mod troubles;

use troubles::Trouble;

pub use crate::coherence::poll::Recovery;

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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// What makes reads or writes worse than they should be, for as long as it lasts. Empty where all is well.
    pub troubles: Vec<Trouble>,
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
    /// Hints named so many transactions that don't exist, as the first poll that was sent after them tells. What they said is
    /// forgotten.
    HintsUntrue {
        /// How many.
        transactions: u64,
    },
    /// A poll of the log failed. Sent for the first of a series.
    PollFailed {
        /// The error and its causes.
        error: String,
    },
    /// A cache has read rows and declares no tables, so nobody looks whether writes to them are seen:
    /// [`CacheBuilder::tables`](crate::CacheBuilder::tables). Sent once, with its first load. None for what is computed, and where it
    /// was said that there are none.
    Undeclared {
        /// The cache.
        cache: String,
    },
    /// The type of a cache's values could not be traced as a whole: it has a part that asks what comes next (`untagged`, `tag`,
    /// `flatten`) or goes by a value, one that takes no made-up value, or it is too deep (32 levels) or too large (40,000 parts). Where that part changes,
    /// [`CacheBuilder::version`](crate::CacheBuilder::version) is to be raised by hand. Sent once, at the start, and only where there
    /// is an L2.
    Untraced {
        /// The cache.
        cache: String,
    },
    /// A trouble began. [`Health::troubles`] has it until it ends.
    TroubleBegan(Trouble),
    /// A trouble is over.
    TroubleEnded(Trouble),
    /// A value that was served differs from what the primary says, and no invalidation explains it: a write that no
    /// trigger covered, or a loader that reads more than its key says. It was invalidated on every instance. `perto doctor`
    /// looks for the reason.
    AuditViolation {
        /// The cache.
        cache: String,
        /// [`key_hash`](crate::key_hash) of the key's text.
        key_hash: u64,
        /// Caches and topics of which something has changed between what was served and what Postgres says. Where no trigger is
        /// missing, the value depends on one of them and its loader does not say so
        /// ([`Loaded::depends_on`](crate::Loaded::depends_on)). At most four.
        changed: Vec<String>,
    },
}
