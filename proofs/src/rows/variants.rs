//! What would go wrong if it were built another way. Each must be caught, by a scope of its own.

use super::promise;

/// One mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    DependencyJudgedAtInsertOnly,
    DependencyLostInL2,
    UndeclaredSubjectIgnored,
    RowsOfADeclaredCacheLeftOut,
    FlightIgnoresDependencies,
    WholeCacheOfASubjectIgnored,
    DependencyJudgedAcrossARecovery,
    DependencyJudgedBeforeTheLease,
    /// No mistake, as it turned out: see [`Variant::HARMLESS`].
    ClockBeforeDependencies,
    ReadTokenComparedByXmaxAlone,
    CutStampTakenAsExact,
    TokenOfAReadOfAReplica,
    TokenForgetsItsWrite,
    ReadTokenCheckedAfterTheEntry,
    PollOfAnotherEraGrants,
    ViewWithoutTheRank,
    ViewJudgedBeforeThePoll,
    ViewAcrossEras,
    ViewOfARefusedValue,
    ViewOfACutStamp,
    CutStampTakenAsTheMoment,
    RestartThatNoLoadTellsOf,
}

impl Variant {
    pub const ALL: [Self; 21] = [
        Self::DependencyJudgedAtInsertOnly,
        Self::DependencyLostInL2,
        Self::UndeclaredSubjectIgnored,
        Self::RowsOfADeclaredCacheLeftOut,
        Self::FlightIgnoresDependencies,
        Self::WholeCacheOfASubjectIgnored,
        Self::DependencyJudgedAcrossARecovery,
        Self::DependencyJudgedBeforeTheLease,
        Self::ReadTokenComparedByXmaxAlone,
        Self::CutStampTakenAsExact,
        Self::TokenOfAReadOfAReplica,
        Self::TokenForgetsItsWrite,
        Self::ReadTokenCheckedAfterTheEntry,
        Self::PollOfAnotherEraGrants,
        Self::ViewWithoutTheRank,
        Self::ViewJudgedBeforeThePoll,
        Self::ViewAcrossEras,
        Self::ViewOfARefusedValue,
        Self::ViewOfACutStamp,
        Self::CutStampTakenAsTheMoment,
        Self::RestartThatNoLoadTellsOf,
    ];

    /// What looked like a mistake, and holds in every scope.
    pub const HARMLESS: [Self; 1] = [Self::ClockBeforeDependencies];

    /// What fails with it, in its smallest world: nothing else counts.
    #[must_use]
    pub const fn breaks(self) -> &'static str {
        match self {
            Self::DependencyJudgedAtInsertOnly
            | Self::DependencyLostInL2
            | Self::UndeclaredSubjectIgnored
            | Self::RowsOfADeclaredCacheLeftOut
            | Self::FlightIgnoresDependencies
            | Self::WholeCacheOfASubjectIgnored
            | Self::DependencyJudgedAcrossARecovery
            | Self::DependencyJudgedBeforeTheLease
            | Self::ClockBeforeDependencies => promise::UNSEEN_BY_ITS_POLL,
            Self::ReadTokenComparedByXmaxAlone
            | Self::CutStampTakenAsExact
            | Self::TokenOfAReadOfAReplica
            | Self::TokenForgetsItsWrite
            | Self::PollOfAnotherEraGrants
            | Self::RestartThatNoLoadTellsOf
            | Self::ReadTokenCheckedAfterTheEntry => promise::BACK_IN_TIME,
            Self::ViewWithoutTheRank
            | Self::ViewJudgedBeforeThePoll
            | Self::ViewAcrossEras
            | Self::ViewOfARefusedValue
            | Self::CutStampTakenAsTheMoment
            | Self::ViewOfACutStamp => promise::OF_NO_MOMENT,
        }
    }
}
