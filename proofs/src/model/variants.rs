//! What would go wrong if Perto were built another way. Each must be caught, by a scope of its own.

use super::promise;
use crate::coherence::rules::Bucket;
use crate::coherence::snapshot::{Rank, Snapshot};
use crate::postgres::Seen;

/// One mistake that other caches make, or that Perto might have made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    NoStampCheckOnL2,
    XmaxAboveHighest,
    CoarseForgotten,
    FloorForgotten,
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
    HintNeverForgotten,
    HintForgottenByAnEarlierPoll,
    RowTakenForItsHint,
    SecondHintTakenForTheFirst,
    LogGivenUpToAHint,
    LatestGrantedByAPollInFlight,
    WithinByTheTimeOfCompletion,
    UnpolledServedFromCache,
    TokenCheckedAfterTheEntry,
    TokenGrantedByAHint,
    TokenOfAnotherEpoch,
}

impl Variant {
    pub const ALL: [Self; 37] = [
        Self::NoStampCheckOnL2,
        Self::XmaxAboveHighest,
        Self::CoarseForgotten,
        Self::FloorForgotten,
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
        Self::HintNeverForgotten,
        Self::HintForgottenByAnEarlierPoll,
        Self::RowTakenForItsHint,
        Self::SecondHintTakenForTheFirst,
        Self::LogGivenUpToAHint,
        Self::LatestGrantedByAPollInFlight,
        Self::WithinByTheTimeOfCompletion,
        Self::UnpolledServedFromCache,
        Self::TokenCheckedAfterTheEntry,
        Self::TokenGrantedByAHint,
        Self::TokenOfAnotherEpoch,
    ];

    /// What fails with it, in its smallest world: nothing else counts.
    #[must_use]
    pub const fn breaks(self) -> &'static str {
        match self {
            Self::NoStampCheckOnL2
            | Self::XmaxAboveHighest
            | Self::FloorForgotten
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
            | Self::RowTakenForItsHint
            | Self::LogGivenUpToAHint
            | Self::WalPositionAsStamp => promise::UNSEEN_BY_ITS_POLL,
            // The poll that brings the row closes the bucket by itself: only what a hint told is forgotten.
            Self::CoarseForgotten
            | Self::UnconfirmedHintDroppedAgainstTheLastPoll
            | Self::SecondHintTakenForTheFirst
            | Self::HintForgottenByAnEarlierPoll => promise::HELD,
            Self::ReplicasValueServedUnchecked | Self::OldTransactionTakenAtItsWord => {
                promise::OLDER_THAN_THE_BOUND
            }
            Self::EraOfALoadNotCompared | Self::EpochCapturedBeforeTheEra => promise::LOST,
            Self::CachedFromATransactionThatWrote => promise::UNCOMMITTED,
            Self::EpochOfAHintNotCompared
            | Self::EpochOfAHintComparedTooEarly
            | Self::HintNeverForgotten
            | Self::ReplayConfirmsNothing => promise::LIVELY,
            Self::WaitersOfACancelledLeaderNotWoken | Self::ParkedLeaderHoldsItsKey => promise::ANSWERED,
            Self::LatestGrantedByAPollInFlight
            | Self::WithinByTheTimeOfCompletion
            | Self::UnpolledServedFromCache => promise::OLDER_THAN_ASKED,
            Self::TokenCheckedAfterTheEntry | Self::TokenGrantedByAHint | Self::TokenOfAnotherEpoch => {
                promise::WITHOUT_ITS_WRITE
            }
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
    floor: Rank,
    coarse_up_to: u64,
    xid: u64,
    /// How young the hint is that told of `xid`.
    hinted: Hinted,
    /// What was given up of hints, and how young the youngest of them is.
    hinted_lo: u64,
    lo_hinted: Hinted,
    broken: Option<Variant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Hinted {
    No,
    BeforeThePoll,
    SinceThePoll,
}

impl Known {
    pub(super) fn at(kind: Kind, floor: &Snapshot) -> Self {
        match kind {
            Kind::One => Self::One(Bucket::at(floor)),
            Kind::Two => Self::Two(Bucket::at(floor)),
            Kind::Copied(broken) => Self::Copied(Copied {
                highest: floor.xmax().saturating_sub(1),
                floor: floor.rank(),
                coarse_up_to: 0,
                xid: 0,
                hinted: Hinted::No,
                hinted_lo: 0,
                lo_hinted: Hinted::No,
                broken,
            }),
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

    /// A poll is sent.
    pub(super) fn sent(&mut self) {
        match self {
            Self::One(bucket) => bucket.sent(),
            Self::Two(bucket) => bucket.sent(),
            Self::Copied(bucket) => bucket.sent(),
        }
    }

    /// A poll has completed.
    pub(super) fn forget(&mut self) {
        match self {
            Self::One(bucket) => bucket.forget(),
            Self::Two(bucket) => bucket.forget(),
            Self::Copied(bucket) => bucket.forget(),
        }
    }

    pub(super) fn is_hinted(&self) -> bool {
        match self {
            Self::One(bucket) => bucket.is_hinted(),
            Self::Two(bucket) => bucket.is_hinted(),
            Self::Copied(bucket) => bucket.hinted != Hinted::No || bucket.lo_hinted != Hinted::No,
        }
    }
}

impl Copied {
    fn accepts(&self, stamp: &Snapshot) -> bool {
        let coarse_up_to = if self.broken == Some(Variant::CoarseForgotten) {
            0
        } else {
            self.coarse_up_to.max(self.hinted_lo)
        };
        let floor = if self.broken == Some(Variant::FloorForgotten) { Rank::default() } else { self.floor };
        if self.broken == Some(Variant::XmaxAboveHighest) {
            return stamp.xmax() > self.highest.max(self.hinted_lo).max(self.xid);
        }
        stamp.xmin() > coarse_up_to
            && (self.xid == 0 || stamp.contains(self.xid))
            && (stamp.xmin() > self.highest || stamp.rank() >= floor)
    }

    fn apply(&mut self, xid: u64, last: Option<&Snapshot>, current: Option<&Snapshot>) {
        let confirms = current.filter(|_| self.broken != Some(Variant::ReplayConfirmsNothing));
        let by = |xid: u64| [last, confirms].into_iter().flatten().find(|poll| poll.contains(xid));
        if last.is_some_and(|poll| poll.contains(xid)) {
            return;
        }
        let of_the_log = current.is_some();
        let hinted = if of_the_log { Hinted::No } else { Hinted::SinceThePoll };
        if of_the_log {
            self.highest = self.highest.max(xid);
        }
        if xid == self.xid {
            let stays = match self.broken {
                Some(Variant::RowTakenForItsHint) => of_the_log,
                Some(Variant::SecondHintTakenForTheFirst) => !of_the_log,
                _ => false,
            };
            if self.hinted != Hinted::No && !stays {
                self.hinted = hinted;
            }
            return;
        }
        let gives_way = self.broken == Some(Variant::UnconfirmedHintDroppedAgainstTheLastPoll);
        if self.xid == 0 {
            (self.xid, self.hinted) = (xid, hinted);
        } else if let Some(poll) = by(self.xid).or(last.filter(|_| gives_way)) {
            self.give_up(self.xid, poll);
            (self.xid, self.hinted) = (xid, hinted);
        } else if let Some(poll) = by(xid) {
            self.give_up(xid, poll);
        } else {
            let stays = self.hinted == Hinted::No && self.broken != Some(Variant::LogGivenUpToAHint);
            let given_up = if stays { xid } else { self.xid.min(xid) };
            if given_up != xid {
                (self.xid, self.hinted) = (xid, hinted);
            }
            (self.hinted_lo, self.lo_hinted) = (self.hinted_lo.max(given_up), hinted);
        }
    }

    fn sent(&mut self) {
        for hinted in [&mut self.hinted, &mut self.lo_hinted] {
            if *hinted == Hinted::SinceThePoll {
                *hinted = Hinted::BeforeThePoll;
            }
        }
    }

    fn forget(&mut self) {
        if self.hinted == Hinted::BeforeThePoll {
            (self.xid, self.hinted) = (0, Hinted::No);
        }
        if self.lo_hinted == Hinted::BeforeThePoll {
            (self.hinted_lo, self.lo_hinted) = (0, Hinted::No);
        }
    }

    fn give_up(&mut self, xid: u64, poll: &Snapshot) {
        self.highest = self.highest.max(xid);
        if xid < poll.xmin() {
            self.coarse_up_to = self.coarse_up_to.max(xid);
        } else {
            self.floor = self.floor.max(poll.rank());
        }
    }
}
