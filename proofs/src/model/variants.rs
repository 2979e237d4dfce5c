//! What would go wrong if Perto were built another way. Each must be caught, by a scope of its own.

use super::promise;
use super::state::Seen;
use crate::coherence::rules::Bucket;
use crate::coherence::snapshot::{Rank, Snapshot};

/// One mistake that other caches make, or that Perto might have made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    NoStampCheckOnL2,
    XmaxAboveHighest,
    LoForgotten,
    RkForgotten,
    UnconfirmedHintDroppedAgainstTheLastPoll,
    NoRecheckAtInsert,
    NaiveJoin,
    StandbysSnapshotAtFaceValue,
    ReplicasValueServedUnchecked,
    PollKeptAcrossAnEpoch,
    EraOfALoadNotCompared,
    AbsenceWithoutAStamp,
    PollOfTwoStatements,
    CachedFromATransactionThatWrote,
    IdCursor,
    LeaseLoadedAfterTheValue,
    HintAppliedOnlyToHeldKeys,
    TrimmedByAge,
    WalPositionAsStamp,
    OldTransactionTakenAtItsWord,
    EpochOfAHintNotCompared,
    WaitersOfACancelledLeaderNotWoken,
    EpochCapturedBeforeTheEra,
    EpochOfAHintComparedTooEarly,
    ReplayConfirmsNothing,
    ParkedLeaderHoldsItsKey,
}

impl Variant {
    pub const ALL: [Self; 26] = [
        Self::NoStampCheckOnL2,
        Self::XmaxAboveHighest,
        Self::LoForgotten,
        Self::RkForgotten,
        Self::UnconfirmedHintDroppedAgainstTheLastPoll,
        Self::NoRecheckAtInsert,
        Self::NaiveJoin,
        Self::StandbysSnapshotAtFaceValue,
        Self::ReplicasValueServedUnchecked,
        Self::PollKeptAcrossAnEpoch,
        Self::EraOfALoadNotCompared,
        Self::AbsenceWithoutAStamp,
        Self::PollOfTwoStatements,
        Self::CachedFromATransactionThatWrote,
        Self::IdCursor,
        Self::LeaseLoadedAfterTheValue,
        Self::HintAppliedOnlyToHeldKeys,
        Self::TrimmedByAge,
        Self::WalPositionAsStamp,
        Self::OldTransactionTakenAtItsWord,
        Self::EpochOfAHintNotCompared,
        Self::WaitersOfACancelledLeaderNotWoken,
        Self::EpochCapturedBeforeTheEra,
        Self::EpochOfAHintComparedTooEarly,
        Self::ReplayConfirmsNothing,
        Self::ParkedLeaderHoldsItsKey,
    ];

    /// What fails with it, in its smallest world: nothing else counts.
    #[must_use]
    pub const fn breaks(self) -> &'static str {
        match self {
            Self::NoStampCheckOnL2
            | Self::XmaxAboveHighest
            | Self::RkForgotten
            | Self::NoRecheckAtInsert
            | Self::NaiveJoin
            | Self::StandbysSnapshotAtFaceValue
            | Self::PollKeptAcrossAnEpoch
            | Self::AbsenceWithoutAStamp
            | Self::PollOfTwoStatements
            | Self::IdCursor
            | Self::LeaseLoadedAfterTheValue
            | Self::HintAppliedOnlyToHeldKeys
            | Self::TrimmedByAge
            | Self::WalPositionAsStamp => promise::UNSEEN_BY_ITS_POLL,
            // The poll that brings the row closes the bucket by itself: only what a hint told is forgotten.
            Self::LoForgotten | Self::UnconfirmedHintDroppedAgainstTheLastPoll => promise::HELD,
            Self::ReplicasValueServedUnchecked | Self::OldTransactionTakenAtItsWord => {
                promise::OLDER_THAN_THE_BOUND
            }
            Self::EraOfALoadNotCompared | Self::EpochCapturedBeforeTheEra => promise::LOST,
            Self::CachedFromATransactionThatWrote => promise::UNCOMMITTED,
            Self::EpochOfAHintNotCompared
            | Self::EpochOfAHintComparedTooEarly
            | Self::ReplayConfirmsNothing => promise::LIVELY,
            Self::WaitersOfACancelledLeaderNotWoken | Self::ParkedLeaderHoldsItsKey => promise::ANSWERED,
        }
    }
}

/// What an instance knows of the one key's bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Known {
    /// Perto's own bucket, with room for one transaction, and for two.
    One(Bucket<1>),
    Two(Bucket<2>),
    /// The copy below, for variants inside the bucket.
    Copied(Copied),
}

/// Which bucket a scope has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    One,
    Two,
    Copied(Option<Variant>),
}

/// A bucket with room for one transaction, written once more so that it can be broken.
/// `the_copy_that_is_broken_is_a_copy` shows that, unbroken, it is Perto's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Copied {
    highest: u64,
    lo: u64,
    rk: Rank,
    xid: u64,
    broken: Option<Variant>,
}

impl Known {
    pub(super) fn at(kind: Kind, floor: &Snapshot) -> Self {
        match kind {
            Kind::One => Self::One(Bucket::at(floor)),
            Kind::Two => Self::Two(Bucket::at(floor)),
            Kind::Copied(broken) => {
                let highest = floor.xmax().saturating_sub(1);
                Self::Copied(Copied { highest, lo: 0, rk: floor.rank(), xid: 0, broken })
            }
        }
    }

    pub(super) fn accepts(&self, stamp: Seen) -> bool {
        let stamp = stamp.snapshot();
        match self {
            Self::One(bucket) => bucket.accepts(&stamp),
            Self::Two(bucket) => bucket.accepts(&stamp),
            Self::Copied(bucket) => bucket.accepts(&stamp),
        }
    }

    /// `last` is the last completed poll, `current` the one that brings it.
    pub(super) fn apply(&mut self, xid: u8, last: Option<Seen>, current: Option<Seen>) {
        let (last, current) = (last.map(Seen::snapshot), current.map(Seen::snapshot));
        let (xid, last, current) = (u64::from(xid), last.as_ref(), current.as_ref());
        match self {
            Self::One(bucket) => drop(bucket.apply(xid, last, current)),
            Self::Two(bucket) => drop(bucket.apply(xid, last, current)),
            Self::Copied(bucket) => bucket.apply(xid, last, current),
        }
    }
}

impl Copied {
    fn accepts(&self, stamp: &Snapshot) -> bool {
        let lo = if self.broken == Some(Variant::LoForgotten) { 0 } else { self.lo };
        let rk = if self.broken == Some(Variant::RkForgotten) { Rank::default() } else { self.rk };
        if self.broken == Some(Variant::XmaxAboveHighest) {
            return stamp.xmax() > self.highest;
        }
        stamp.xmin() > self.highest
            || (stamp.xmin() > lo && stamp.rank() >= rk && (self.xid == 0 || stamp.contains(self.xid)))
    }

    fn apply(&mut self, xid: u64, last: Option<&Snapshot>, current: Option<&Snapshot>) {
        let by = |xid: u64| [last, current].into_iter().flatten().find(|poll| poll.contains(xid));
        self.highest = self.highest.max(xid);
        if xid == self.xid || last.is_some_and(|poll| poll.contains(xid)) {
            return;
        }
        let gives_way = self.broken == Some(Variant::UnconfirmedHintDroppedAgainstTheLastPoll);
        if self.xid == 0 {
            self.xid = xid;
        } else if let Some(poll) = by(self.xid).or(last.filter(|_| gives_way)) {
            self.give_up(self.xid, poll);
            self.xid = xid;
        } else if let Some(poll) = by(xid) {
            self.give_up(xid, poll);
        } else {
            self.lo = self.lo.max(self.xid.min(xid));
            self.xid = self.xid.max(xid);
        }
    }

    fn give_up(&mut self, xid: u64, poll: &Snapshot) {
        if xid < poll.xmin() {
            self.lo = self.lo.max(xid);
        } else {
            self.rk = self.rk.max(poll.rank());
        }
    }
}
