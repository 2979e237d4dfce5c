//! What a state of the world is.
//!
//! A value is the set of writers whose writes it reflects.

use std::fmt;

use super::variants::Known;
use crate::coherence::verdict::FlightSource;
use crate::postgres::{Postgres, Seen, Set};

pub(super) const INSTANCES: usize = 2;
pub(super) const READERS: usize = 3;
/// Values that were ever put into L2. One a load at most, and the one that was there.
pub(super) const FILLS: usize = 6;

/// What nobody has written.
pub(super) const FORGED: u8 = 7;

/// A value in L1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) holds: Set,
    pub(super) stamp: Seen,
    pub(super) era: u8,
}

/// A value in L2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Stored {
    pub(super) epoch: u8,
    pub(super) holds: Set,
    pub(super) stamp: Seen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Instance {
    pub(super) epoch: u8,
    pub(super) era: u8,
    /// The event after which the poll it rests on was sent.
    pub(super) lease: Option<u8>,
    pub(super) known: Known,
    pub(super) poll: Option<Seen>,
    pub(super) entry: Option<Entry>,
    pub(super) tail: Tail,
    /// Writers whose invalidations were applied in this era, but for hints that a poll has shown to be untrue. No part of Perto:
    /// properties are judged by it.
    pub(super) heard: Set,
    /// Where hints may lie: those that hints have told of since a poll was sent last, and [`FORGED`]. No part of Perto either.
    pub(super) since: Set,
    /// The highest row read. Only the variant with an id cursor has one.
    pub(super) last: u8,
    /// The event after which the last poll completed. Only the variant that goes by it has one.
    pub(super) completed: u8,
    /// Writers that hints of other keys have told of. Only the variant that believes them has any.
    pub(super) told: Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Tail {
    Idle,
    /// Its cursor means nothing any more: the next poll reads all rows.
    Lost,
    Answered(Answer),
    /// Between rows, where a scope looks that closely.
    Applying(Answer),
    /// The poll is published, the lease not yet extended.
    Completed {
        sent: u8,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Answer {
    pub(super) sent: u8,
    pub(super) epoch: u8,
    pub(super) seen: Seen,
    pub(super) trimmed: Seen,
    /// Writers.
    pub(super) rows: Set,
    /// Read without a cursor.
    pub(super) all: bool,
    /// The snapshot is yet to be read. Only in the variant with two statements.
    pub(super) half: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Reader {
    pub(super) left: u8,
    /// What had become older than the bound when the read began.
    pub(super) floor: u8,
    /// What a read within a shorter time must not miss, in the same count. 0 for all others.
    pub(super) asked: u8,
    /// Whose write it must not miss, by a token.
    pub(super) token: Option<u8>,
    /// What is left to be granted of that.
    pub(super) wish: Wish,
    pub(super) step: Step,
}

/// What a reader asks for beyond the bound, and has not been granted yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wish {
    Nothing,
    /// A poll that was sent since this moment, in the count of [`World::aged`].
    PollSince(u8),
    /// No poll came in time: only what the primary says itself will do.
    Source,
    /// A poll that contains this writer, or a value that does.
    Write(u8),
}

/// The state of things before a read's I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ReadStart {
    pub(super) epoch: u8,
    pub(super) era: u8,
    pub(super) poll: Option<Seen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Idle,
    /// Waits for a poll: for one to be sent, then for that to complete.
    Waiting {
        sent: bool,
    },
    /// Paused in the middle of a hit.
    Hitting {
        lease: Option<u8>,
        era: u8,
        /// The epoch is read before the lease.
        epoch: u8,
        entry: Option<Entry>,
    },
    Missed {
        again: bool,
    },
    /// Has read the epoch, and not the era yet. Only in the variant that reads each once.
    Beginning {
        epoch: u8,
        again: bool,
    },
    /// Has captured where things stand, and has not joined a flight yet.
    ReadStart {
        began: ReadStart,
        again: bool,
    },
    Looking {
        began: ReadStart,
    },
    /// Leads, in its look-up, and is not polled any more.
    Parked,
    Found {
        began: ReadStart,
        holds: Set,
        stamp: Seen,
    },
    Loading {
        began: ReadStart,
        primary: bool,
    },
    Loaded {
        began: ReadStart,
        primary: bool,
        holds: Set,
        stamp: Seen,
        by_primary: bool,
    },
    Aboard {
        leader: u8,
        before: bool,
    },
    Landed {
        outcome: Outcome,
        before: bool,
    },
    /// Holds a lease, and has not judged the value yet.
    Judging {
        outcome: Outcome,
        before: bool,
        lease: Option<u8>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Outcome {
    pub(super) holds: Set,
    pub(super) stamp: Seen,
    pub(super) era: u8,
    pub(super) from: FlightSource,
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) db: Postgres,
    /// What is older than the bound: event `e` once this is `2e`, a poll sent between `e` and `e + 1` once it is `2e + 1`.
    pub(super) aged: u8,
    /// Every value that was ever put there. A look-up may bring any of them, or none: so L2 loses, delays and rolls
    /// back whatever it likes.
    pub(super) l2: [Option<Stored>; FILLS],
    pub(super) instances: [Instance; INSTANCES],
    pub(super) readers: [Reader; READERS],
    /// The writer of a hint whose epoch was compared, and the instance that has not recorded it yet. Only in the variant that
    /// does so in two steps.
    pub(super) checked: Option<(u8, u8)>,
    /// What was served that must not be.
    pub(super) wrong: Option<&'static str>,
}

impl Step {
    /// Whether others may board: its look-up or load is under way.
    pub(super) const fn leads(self) -> bool {
        matches!(
            self,
            Self::Looking { .. }
                | Self::Parked
                | Self::Found { .. }
                | Self::Loading { .. }
                | Self::Loaded { .. }
        )
    }
}

/// States are read in counterexamples only, step by step; see `Model::format_step`.
impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("now", &self.db.now).finish_non_exhaustive()
    }
}
