//! What a state of the world is, with two rows.
//!
//! A value is the set of writers that had committed when it was read, be it of its own row or not. What it is made of tells which
//! of them it reflects.

use std::fmt;

use crate::coherence::rules::Bucket;
use crate::coherence::snapshot::Rank;
use crate::coherence::verdict::FlightSource;
use crate::postgres::{Postgres, Seen, Set};

pub(super) const INSTANCES: usize = 2;
pub(super) const READERS: usize = 2;
/// Values that were ever put into L2.
pub(super) const FILLS: usize = 6;
/// Ends of transactions, and a crash.
pub(super) const EVENTS: usize = 5;

/// The row of a key whose value depends on both rows.
pub(super) const A: u8 = 0;
/// The row of a key of another cache, whose value is its own.
pub(super) const B: u8 = 1;
/// All rows of that cache: an invalidation of it as a whole.
pub(super) const ALL_OF_B: u8 = 2;
pub(super) const ROWS: usize = 3;

/// Rows of a poll: a bit for each writer and row.
pub(super) type Rows = u16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Value {
    pub(super) key: u8,
    pub(super) holds: Set,
    pub(super) stamp: Seen,
    /// The rank of the whole snapshot, where the stamp may be less: none where nobody knows.
    pub(super) ceiling: Option<Rank>,
    /// The rows that it depends on.
    pub(super) subjects: Set,
}

/// A value in L1, or an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    pub(super) value: Value,
    pub(super) era: u8,
}

/// A value in L2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Stored {
    pub(super) epoch: u8,
    pub(super) value: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Instance {
    pub(super) epoch: u8,
    pub(super) era: u8,
    /// The event after which the poll it rests on was sent.
    pub(super) lease: Option<u8>,
    pub(super) known: [Bucket<1>; ROWS],
    pub(super) poll: Option<Seen>,
    pub(super) entries: [Option<Entry>; 2],
    pub(super) tail: Tail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Tail {
    Idle,
    /// Its cursor means nothing any more: the next poll reads all rows.
    Lost,
    Answered(Answer),
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
    pub(super) rows: Rows,
    /// Read without a cursor.
    pub(super) all: bool,
}

/// What a read must not be older than.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Token {
    pub(super) epoch: u8,
    pub(super) mark: Mark,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Mark {
    /// The transaction of this writer.
    Write(u8),
    /// All that a snapshot of this rank contains.
    Read(Rank),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Reader {
    /// Reads that have begun.
    pub(super) begun: u8,
    /// What had become older than the bound when the read began.
    pub(super) floor: u8,
    pub(super) token: Option<Token>,
    /// Whether the token asks for more than what is fresh.
    pub(super) asks: bool,
    /// The era in which a poll has granted it.
    pub(super) polled: Option<u8>,
    /// The epoch and the rank of such a poll.
    pub(super) reached: Option<(u8, Rank)>,
    /// All that the session has seen and written. No part of Perto: it is judged by this.
    pub(super) must: Set,
    /// The event after which it was answered last, or its last write. No part of Perto either.
    pub(super) answered: u8,
    /// The answers of a view.
    pub(super) answers: [Option<Entry>; 2],
    /// How often a view has begun again.
    pub(super) again: u8,
    pub(super) step: Step,
}

/// The state of things before a read's I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ReadStart {
    pub(super) epoch: u8,
    pub(super) era: u8,
    pub(super) poll: Option<Seen>,
}

/// A lease, as it was taken, and what was read before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Held {
    pub(super) lease: Option<u8>,
    pub(super) era: u8,
    pub(super) epoch: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Idle,
    /// Waits for a poll: for one to be sent, then for that to complete.
    Waiting {
        sent: bool,
    },
    /// The poll that it has waited for has completed.
    Woken,
    /// Has judged an entry and holds no lease yet. Only in the variant that does so.
    Peeked {
        entry: Option<Entry>,
    },
    /// Holds a lease. The entry is there only where it was read before.
    Leased {
        held: Held,
        entry: Option<Entry>,
    },
    EntryRead {
        held: Held,
        entry: Option<Entry>,
    },
    SubjectsJudged {
        held: Held,
        entry: Entry,
    },
    Missed {
        again: bool,
    },
    Looking {
        began: ReadStart,
    },
    Found {
        began: ReadStart,
        value: Value,
    },
    Loading {
        began: ReadStart,
        primary: bool,
    },
    Loaded {
        began: ReadStart,
        primary: bool,
        value: Value,
        by_primary: bool,
        /// The epoch in which it was read: by when its server was started.
        server: u8,
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
    Judged {
        outcome: Outcome,
        before: bool,
        lease: Option<u8>,
        accepted: bool,
    },
    /// A view has all answers, and no poll that ranks as high.
    Gathered,
    /// Has judged them, and waits for the poll. Only in the variant that does so.
    JudgedBefore,
    ViewPolled,
    ViewJudged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Outcome {
    pub(super) value: Value,
    pub(super) epoch: u8,
    pub(super) era: u8,
    pub(super) from: FlightSource,
}

/// Everything.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) db: Postgres,
    /// Who had committed after each event. No part of Perto: views are judged by it.
    pub(super) moments: [Set; EVENTS],
    /// What is older than the bound: event `e` once this is `2e`, a poll sent between `e` and `e + 1` once it is `2e + 1`.
    pub(super) aged: u8,
    /// Every value that was ever put there. A look-up may bring any of them, or none.
    pub(super) l2: [Option<Stored>; FILLS],
    pub(super) instances: [Instance; INSTANCES],
    pub(super) readers: [Reader; READERS],
    /// What was served that must not be.
    pub(super) wrong: Option<&'static str>,
}

impl Step {
    /// Whether others may board: its look-up or load is under way.
    pub(super) const fn leads(self) -> bool {
        matches!(self, Self::Looking { .. } | Self::Found { .. } | Self::Loading { .. } | Self::Loaded { .. })
    }
}

/// States are read in counterexamples only, step by step.
impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("now", &self.db.now).finish_non_exhaustive()
    }
}
