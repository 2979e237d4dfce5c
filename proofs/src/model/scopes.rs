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
    /// Of numbers that nobody has yet.
    pub(super) forged: bool,
    pub(super) aborts: bool,
    /// Whether leases run out. Without it, what is served is judged by the poll that its lease rests on.
    pub(super) time: bool,
    pub(super) l2: bool,
    /// Running transactions that a stamp keeps in L2.
    pub(super) wire: usize,
    pub(super) trim: bool,
    pub(super) crash: bool,
    /// It has just crashed: the first writer's commit is lost, which all have heard of, and its number is free.
    pub(super) crashed: bool,
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
    /// Readers that are not polled any more while they look into L2.
    pub(super) park: bool,
    /// The second instance is about to start.
    pub(super) cold: bool,
    /// Whether the first reader asks for more than the bound: that a poll was sent in less time than that.
    pub(super) within: bool,
    /// Whether the first reader has the token of a writer.
    pub(super) tokens: bool,
    /// L1 holds nothing at first. Else each instance may or may not hold the value.
    pub(super) empty: bool,
}

const PLAIN: Scope = Scope {
    name: "plain",
    about: "",
    writers: &[true],
    readers: &[(0, 1), (0, 1)],
    bucket: Kind::One,
    hints: false,
    false_hints: false,
    forged: false,
    aborts: false,
    time: false,
    l2: false,
    wire: 64,
    trim: false,
    crash: false,
    crashed: false,
    replica: false,
    old_transactions: false,
    in_writers: false,
    split_hit: false,
    fine: false,
    cancel: false,
    park: false,
    cold: false,
    within: false,
    tokens: false,
    empty: false,
};

const TWO: &[bool] = &[true, true];
const BESIDE: &[bool] = &[true, false];

/// What is proven by each `cargo test`.
pub const PROOFS: &[Scope] = &[
    Scope {
        name: "hints",
        about: "two writers of the row, hints in any order, aborts, L2 that brings anything it ever had",
        writers: TWO,
        readers: &[(0, 1), (1, 1)],
        hints: true,
        aborts: true,
        l2: true,
        ..PLAIN
    },
    Scope {
        name: "beside",
        about: "a writer of the row beside another transaction, hints, aborts, joined loads, L2, time",
        writers: BESIDE,
        readers: &[(0, 1), (0, 1)],
        hints: true,
        aborts: true,
        l2: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "joins",
        about: "three readers of one instance, some cancelled or forgotten in their look-up; hints, L2, time",
        readers: &[(0, 1), (0, 1), (0, 1)],
        hints: true,
        time: true,
        l2: true,
        cancel: true,
        park: true,
        ..PLAIN
    },
    Scope {
        name: "false-hints",
        about: "hints before the commit and of what aborts; a bucket with room for two; L2",
        writers: TWO,
        readers: &[(0, 1), (0, 1)],
        bucket: Kind::Two,
        hints: true,
        false_hints: true,
        aborts: true,
        l2: true,
        ..PLAIN
    },
    Scope {
        name: "forged",
        about: "hints of numbers that nobody has yet, beside a transaction; L2",
        writers: BESIDE,
        readers: &[(0, 1), (0, 1)],
        hints: true,
        forged: true,
        l2: true,
        ..PLAIN
    },
    Scope {
        name: "replica",
        about: "loads of a replica that lags behind, asked again of the primary; hints, time",
        writers: BESIDE,
        readers: &[(0, 1), (0, 1)],
        hints: true,
        replica: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "old-transactions",
        about: "loads of the primary in transactions with an old snapshot, or that have written; time",
        writers: BESIDE,
        readers: &[(0, 1), (0, 1)],
        old_transactions: true,
        in_writers: true,
        aborts: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "trim",
        about: "the log trimmed at any moment; one instance about to start; hints, L2",
        readers: &[(0, 1), (1, 1)],
        hints: true,
        trim: true,
        l2: true,
        cold: true,
        ..PLAIN
    },
    Scope {
        name: "replay",
        about: "the log replayed by an instance about to start, beside a transaction that goes on; trim",
        writers: &[true, true, false],
        readers: &[(1, 1)],
        trim: true,
        cold: true,
        empty: true,
        ..PLAIN
    },
    Scope {
        name: "crash",
        about: "a crash that loses any commits, whose numbers are used again; time",
        writers: TWO,
        readers: &[(0, 2)],
        crash: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "epochs",
        about: "two instances just after a crash that lost what they have heard of; L2, hints of either epoch",
        writers: TWO,
        readers: &[(0, 1), (1, 1)],
        crash: true,
        crashed: true,
        hints: true,
        l2: true,
        ..PLAIN
    },
    Scope {
        name: "pauses",
        about: "readers paused within a hit and between the lines of a read, polls row by row; hints, L2, time",
        readers: &[(0, 1), (0, 1)],
        hints: true,
        l2: true,
        time: true,
        split_hit: true,
        fine: true,
        ..PLAIN
    },
    Scope {
        name: "cut-stamps",
        about: "stamps that keep one running transaction in L2, three transactions",
        writers: &[true, false, true],
        readers: &[(0, 1), (1, 1)],
        l2: true,
        wire: 1,
        empty: true,
        ..PLAIN
    },
    Scope {
        name: "within",
        about: "a reader that asks for a poll sent within a shorter time than the bound, or after it began; hints, L2, time",
        writers: BESIDE,
        readers: &[(0, 1), (0, 1)],
        hints: true,
        l2: true,
        time: true,
        within: true,
        ..PLAIN
    },
    Scope {
        name: "tokens",
        about: "a reader with the token of any writer that has committed; hints in any order, L2",
        writers: TWO,
        readers: &[(0, 1), (1, 1)],
        hints: true,
        l2: true,
        tokens: true,
        ..PLAIN
    },
    Scope {
        name: "tokens-crash",
        about: "a token of either epoch beside a crash that loses any commits, whose numbers are used again",
        writers: TWO,
        readers: &[(0, 1)],
        hints: true,
        l2: true,
        crash: true,
        tokens: true,
        ..PLAIN
    },
    Scope {
        name: "asks-pauses",
        about: "a reader that asks for either, paused within a hit and between the lines of a read; polls row by row",
        writers: BESIDE,
        readers: &[(0, 1), (0, 1)],
        hints: true,
        within: true,
        tokens: true,
        split_hit: true,
        fine: true,
        ..PLAIN
    },
];

/// What `make prove` adds.
pub const LARGER: &[Scope] = &[
    Scope {
        name: "epochs-all",
        about: "`epochs` from before the crash on",
        readers: &[(0, 1), (1, 1)],
        crash: true,
        hints: true,
        l2: true,
        time: true,
        empty: true,
        ..PLAIN
    },
    Scope {
        name: "trim-time",
        about: "`trim`, and leases run out",
        readers: &[(0, 1), (1, 1)],
        hints: true,
        trim: true,
        l2: true,
        cold: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "trim-two",
        about: "`trim` with two writers",
        writers: TWO,
        readers: &[(0, 1), (1, 1)],
        trim: true,
        l2: true,
        cold: true,
        ..PLAIN
    },
    Scope {
        name: "crash-joins",
        about: "`crash` with two readers at once",
        writers: TWO,
        readers: &[(0, 1), (0, 1)],
        crash: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "joins-two",
        about: "`joins` with two writers that may abort",
        writers: TWO,
        readers: &[(0, 1), (0, 1), (0, 1)],
        hints: true,
        aborts: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "pauses-two",
        about: "`pauses` with two writers",
        writers: TWO,
        readers: &[(0, 1), (0, 1)],
        hints: true,
        time: true,
        split_hit: true,
        fine: true,
        ..PLAIN
    },
    Scope {
        name: "forged-pauses",
        about: "`forged`, readers paused between the lines of a read, polls row by row",
        writers: BESIDE,
        readers: &[(0, 1), (0, 1)],
        hints: true,
        forged: true,
        l2: true,
        fine: true,
        ..PLAIN
    },
    Scope {
        name: "replica-pauses",
        about: "a replica and old transactions, with readers paused between the lines of a read; L2",
        readers: &[(0, 1), (0, 1)],
        hints: true,
        l2: true,
        replica: true,
        old_transactions: true,
        time: true,
        fine: true,
        ..PLAIN
    },
];

impl Scope {
    /// Whether hints tell of what no poll will ever bring.
    pub(super) const fn lies(&self) -> bool {
        self.false_hints || self.forged
    }

    /// The same world with the copy of the bucket that variants break.
    #[must_use]
    pub fn copied(self) -> Self {
        Self { bucket: Kind::Copied(None), ..self }
    }
}

impl Variant {
    /// The smallest world in which it goes wrong.
    pub fn scope(self) -> Scope {
        let scope = match self {
            Self::NoStampCheckOnL2 => Scope { l2: true, ..PLAIN },
            Self::XmaxAboveHighest => Scope { writers: BESIDE, ..PLAIN },
            Self::CoarseForgotten => Scope { writers: TWO, hints: true, ..PLAIN },
            Self::FloorForgotten => Scope { l2: true, trim: true, ..PLAIN },
            Self::UnconfirmedHintDroppedAgainstTheLastPoll => Scope { writers: TWO, hints: true, ..PLAIN },
            Self::NoRecheckAtInsert => PLAIN,
            Self::NaiveJoin => PLAIN,
            Self::StandbysSnapshotAtFaceValue => Scope { writers: BESIDE, replica: true, ..PLAIN },
            Self::ReplicasValueServedUnchecked => Scope { replica: true, time: true, ..PLAIN },
            Self::PollKeptAcrossAnEpoch => {
                let readers = &[(0, 1), (1, 1)];
                Scope { writers: TWO, readers, crashed: true, l2: true, ..PLAIN }
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
            Self::EpochOfAHintNotCompared => Scope { crashed: true, hints: true, ..PLAIN },
            Self::WaitersOfACancelledLeaderNotWoken => Scope { cancel: true, ..PLAIN },
            Self::ParkedLeaderHoldsItsKey => Scope { l2: true, park: true, ..PLAIN },
            Self::EpochCapturedBeforeTheEra => {
                Scope { crashed: true, l2: true, time: true, fine: true, ..PLAIN }
            }
            Self::EpochOfAHintComparedTooEarly => Scope { crash: true, hints: true, ..PLAIN },
            Self::HintNeverForgotten => Scope { hints: true, forged: true, ..PLAIN },
            Self::HintForgottenByAnEarlierPoll => Scope { writers: BESIDE, hints: true, l2: true, ..PLAIN },
            Self::SecondHintTakenForTheFirst => Scope { hints: true, forged: true, l2: true, ..PLAIN },
            Self::RowTakenForItsHint => Scope { hints: true, l2: true, ..PLAIN },
            Self::LogGivenUpToAHint => {
                Scope { writers: TWO, hints: true, forged: true, l2: true, fine: true, ..PLAIN }
            }
            Self::ReplayConfirmsNothing => {
                Scope { writers: &[true, true, false], readers: &[(1, 1)], cold: true, empty: true, ..PLAIN }
            }
            Self::LatestGrantedByAPollInFlight => Scope { writers: BESIDE, within: true, ..PLAIN },
            Self::WithinByTheTimeOfCompletion => Scope { writers: BESIDE, within: true, ..PLAIN },
            Self::UnpolledServedFromCache => Scope { within: true, ..PLAIN },
            Self::TokenCheckedAfterTheEntry => Scope { tokens: true, split_hit: true, ..PLAIN },
            Self::TokenGrantedByAHint => Scope { tokens: true, hints: true, ..PLAIN },
            Self::TokenOfAnotherEpoch => Scope { writers: TWO, tokens: true, crashed: true, ..PLAIN },
            Self::OldTransactionTakenAtItsWord => {
                Scope { readers: &[(0, 1)], old_transactions: true, time: true, ..PLAIN }
            }
        };
        Scope { name: "smallest", ..scope }
    }
}
