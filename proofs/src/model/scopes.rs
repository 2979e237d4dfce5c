//! The small worlds that are searched: what each contains.

use super::variants::{Kind, Variant};

/// A small world.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    pub name: &'static str,
    pub about: &'static str,
    /// Whether each writer changes the row.
    pub(super) writers: &'static [bool],
    /// Each reader's instance, and how often it reads.
    pub(super) readers: &'static [(u8, u8)],
    pub(super) bucket: Kind,
    pub(super) hints: bool,
    /// Also of transactions that abort, and before they commit.
    pub(super) false_hints: bool,
    pub(super) aborts: bool,
    /// Whether leases run out. Without it, what is served is judged by the poll that its lease rests on.
    pub(super) time: bool,
    pub(super) l2: bool,
    /// Running transactions that a stamp keeps in L2.
    pub(super) wire: usize,
    pub(super) trim: bool,
    pub(super) crash: bool,
    pub(super) replica: bool,
    pub(super) old_transactions: bool,
    /// Loads in the transaction of a writer.
    pub(super) in_writers: bool,
    /// Readers paused within a hit.
    pub(super) split_hit: bool,
    /// A step for each row of a poll, and between the lines of a read.
    pub(super) fine: bool,
    /// Readers cancelled while they look into L2.
    pub(super) cancel: bool,
    /// The second instance is about to start.
    pub(super) cold: bool,
}

const PLAIN: Scope = Scope {
    name: "plain",
    about: "",
    writers: &[true],
    readers: &[(0, 1), (0, 1)],
    bucket: Kind::One,
    hints: false,
    false_hints: false,
    aborts: false,
    time: false,
    l2: false,
    wire: 64,
    trim: false,
    crash: false,
    replica: false,
    old_transactions: false,
    in_writers: false,
    split_hit: false,
    fine: false,
    cancel: false,
    cold: false,
};

const TWO: &[bool] = &[true, true];
const BESIDE: &[bool] = &[true, false];

/// What is proven by each `cargo test`.
pub const PROOFS: &[Scope] = &[Scope {
    name: "hints",
    about: "two writers of the row, hints, aborts, L2 that brings anything it ever had",
    writers: TWO,
    readers: &[(0, 1), (1, 1)],
    hints: true,
    aborts: true,
    l2: true,
    ..PLAIN
}];

impl Variant {
    /// The smallest world in which it goes wrong.
    pub fn scope(self) -> Scope {
        let scope = match self {
            Self::NoStampCheckOnL2 => Scope { l2: true, ..PLAIN },
            Self::XmaxAboveHighest => Scope { writers: BESIDE, ..PLAIN },
            Self::LoForgotten => Scope { writers: TWO, hints: true, ..PLAIN },
            Self::RkForgotten => Scope { l2: true, trim: true, ..PLAIN },
            Self::UnconfirmedHintDroppedAgainstTheLastPoll => Scope { writers: TWO, hints: true, ..PLAIN },
            Self::NoRecheckAtInsert => PLAIN,
            Self::NaiveJoin => PLAIN,
            Self::StandbysSnapshotAtFaceValue => Scope { writers: BESIDE, replica: true, ..PLAIN },
            Self::ReplicasValueServedUnchecked => Scope { replica: true, time: true, ..PLAIN },
            Self::PollKeptAcrossAnEpoch => {
                Scope { writers: TWO, crash: true, l2: true, readers: &[(0, 1), (1, 1)], ..PLAIN }
            }
            Self::EraOfALoadNotCompared => Scope { crash: true, time: true, ..PLAIN },
            Self::AbsenceWithoutAStamp => PLAIN,
            Self::PollOfTwoStatements => PLAIN,
            Self::CachedFromATransactionThatWrote => Scope { in_writers: true, aborts: true, ..PLAIN },
            Self::IdCursor => Scope { writers: TWO, ..PLAIN },
            Self::LeaseLoadedAfterTheValue => Scope { split_hit: true, ..PLAIN },
            Self::HintAppliedOnlyToHeldKeys => Scope { hints: true, ..PLAIN },
            Self::TrimmedByAge => Scope { trim: true, ..PLAIN },
            Self::WalPositionAsStamp => PLAIN,
        };
        Scope { name: "smallest", ..scope }
    }
}
