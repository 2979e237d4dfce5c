//! The small worlds that are searched: what each contains.

use super::state::{A, ALL_OF_B, B};
use super::variants::Variant;
use crate::postgres::{Set, bit};

/// A small world.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    pub name: &'static str,
    pub about: &'static str,
    /// The rows that each writer changes.
    pub(super) writers: &'static [Set],
    pub(super) readers: &'static [Asks],
    pub(super) hints: bool,
    pub(super) aborts: bool,
    /// Whether leases run out. Without it, what is served is judged by the poll that its lease rests on.
    pub(super) time: bool,
    pub(super) l2: bool,
    /// Running transactions that a stamp keeps in L2.
    pub(super) wire: usize,
    pub(super) trim: bool,
    pub(super) crash: bool,
    /// An instance may read the log anew, once.
    pub(super) recoveries: bool,
    pub(super) replica: bool,
    /// Readers paused within a hit and between the lines of a read, polls row by row.
    pub(super) pauses: bool,
    /// The second instance has not declared the cache of `B`.
    pub(super) undeclared: bool,
    /// How often a view may begin again.
    pub(super) attempts: u8,
    /// L1 holds nothing at first. Else each instance may or may not hold what is read there.
    pub(super) empty: bool,
}

/// What a reader reads, one after the other: instances and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    Reads(&'static [(u8, u8)]),
    /// Each read with the token of the last.
    Session(&'static [(u8, u8)]),
    View(&'static [(u8, u8)]),
}

impl Asks {
    pub(super) const fn of(self) -> &'static [(u8, u8)] {
        match self {
            Self::Reads(of) | Self::Session(of) | Self::View(of) => of,
        }
    }
}

const OF_A: Set = bit(A);
const OF_B: Set = bit(B);
const OF_BOTH: Set = bit(A) | bit(B);
const OF_ALL_OF_B: Set = bit(ALL_OF_B);
const ELSEWHERE: Set = 0;

const PLAIN: Scope = Scope {
    name: "plain",
    about: "",
    writers: &[OF_B],
    readers: &[Asks::Reads(&[(0, A)]), Asks::Reads(&[(0, A)])],
    hints: false,
    aborts: false,
    time: false,
    l2: false,
    wire: 64,
    trim: false,
    crash: false,
    recoveries: false,
    replica: false,
    pauses: false,
    undeclared: false,
    attempts: 1,
    empty: false,
};

/// What is proven by each `cargo test`.
pub const PROOFS: &[Scope] = &[
    Scope {
        name: "rows",
        about: "a writer of each row, hints, aborts, joined loads, L2, time",
        writers: &[OF_A, OF_B],
        hints: true,
        aborts: true,
        l2: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "rows-whole",
        about: "a writer of both rows and one of the other cache as a whole, whose key is read too; hints, L2",
        writers: &[OF_BOTH, OF_ALL_OF_B],
        readers: &[Asks::Reads(&[(0, A)]), Asks::Reads(&[(0, B)])],
        hints: true,
        l2: true,
        ..PLAIN
    },
    Scope {
        name: "rows-undeclared",
        about: "an instance that has not declared the other cache, beside one that has; hints, L2, time",
        writers: &[OF_BOTH],
        readers: &[Asks::Reads(&[(0, A)]), Asks::Reads(&[(1, A)])],
        hints: true,
        l2: true,
        time: true,
        undeclared: true,
        ..PLAIN
    },
    Scope {
        name: "rows-pauses",
        about: "readers paused within a hit and between the lines of a read, polls row by row; hints, L2, time",
        writers: &[OF_BOTH],
        hints: true,
        l2: true,
        time: true,
        pauses: true,
        ..PLAIN
    },
    Scope {
        name: "rows-hints",
        about: "a writer of one row and one of the other cache as a whole; hints, L2, the log read anew, a reader paused anywhere",
        writers: &[OF_B, OF_ALL_OF_B],
        readers: &[Asks::Reads(&[(0, A), (0, A)])],
        hints: true,
        l2: true,
        recoveries: true,
        pauses: true,
        ..PLAIN
    },
    Scope {
        name: "rows-recoveries",
        about: "the log read anew, and trimmed at any moment, beside a reader paused anywhere; L2",
        writers: &[OF_B, OF_A],
        readers: &[Asks::Reads(&[(0, A)])],
        l2: true,
        trim: true,
        recoveries: true,
        pauses: true,
        ..PLAIN
    },
    Scope {
        name: "rows-crash",
        about: "a crash that loses any commits, whose numbers are used again; a reader paused anywhere, L2",
        writers: &[OF_B, OF_B],
        readers: &[Asks::Reads(&[(0, A)])],
        l2: true,
        crash: true,
        pauses: true,
        ..PLAIN
    },
    Scope {
        name: "sessions",
        about: "a session at two instances beside another transaction; hints, stamps that keep nothing running in L2",
        writers: &[OF_BOTH, ELSEWHERE],
        readers: &[Asks::Session(&[(0, B), (1, A)])],
        hints: true,
        l2: true,
        wire: 0,
        ..PLAIN
    },
    Scope {
        name: "sessions-pauses",
        about: "a session paused anywhere, polls row by row, the log read anew; hints",
        writers: &[OF_B, OF_A],
        readers: &[Asks::Session(&[(0, B), (0, A)])],
        hints: true,
        recoveries: true,
        pauses: true,
        ..PLAIN
    },
    Scope {
        name: "sessions-outage",
        about: "a session that is answered without a lease too, flagged; L2, time",
        writers: &[OF_B, OF_A],
        readers: &[Asks::Session(&[(0, B), (0, A)])],
        l2: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "sessions-replica",
        about: "a session whose loads may be of a replica that lags behind; the log read anew",
        writers: &[OF_B, OF_A],
        readers: &[Asks::Session(&[(0, B), (0, A)])],
        recoveries: true,
        replica: true,
        ..PLAIN
    },
    Scope {
        name: "sessions-crash",
        about: "a session and another reader beside a crash",
        readers: &[Asks::Session(&[(0, B), (1, B)]), Asks::Reads(&[(1, B)])],
        crash: true,
        empty: true,
        ..PLAIN
    },
    Scope {
        name: "views",
        about: "a view beside a writer of both rows and one of either; hints, stamps that keep nothing running in L2",
        writers: &[OF_BOTH, OF_B],
        readers: &[Asks::View(&[(0, A), (0, B)])],
        hints: true,
        l2: true,
        wire: 0,
        ..PLAIN
    },
    Scope {
        name: "views-three",
        about: "a view beside three writers",
        writers: &[OF_A, OF_B, OF_BOTH],
        readers: &[Asks::View(&[(0, A), (0, B)])],
        ..PLAIN
    },
    Scope {
        name: "views-time",
        about: "a view beside a writer of each row; L2, time",
        writers: &[OF_A, OF_B],
        readers: &[Asks::View(&[(0, B), (0, A)])],
        l2: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "views-pauses",
        about: "a view paused anywhere, polls row by row, the log read anew",
        writers: &[OF_A, OF_B],
        readers: &[Asks::View(&[(0, A), (0, B)])],
        recoveries: true,
        pauses: true,
        ..PLAIN
    },
    Scope {
        name: "views-hints",
        about: "a view paused anywhere, polls row by row; hints, L2",
        writers: &[OF_BOTH, OF_B],
        readers: &[Asks::View(&[(0, A), (0, B)])],
        hints: true,
        l2: true,
        wire: 0,
        pauses: true,
        ..PLAIN
    },
    Scope {
        name: "views-replica",
        about: "a view whose loads may be of a replica that lags behind; time",
        writers: &[OF_A, OF_B],
        readers: &[Asks::View(&[(0, A), (0, B)])],
        replica: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "views-crash",
        about: "a view beside a crash that loses any commits, whose numbers are used again",
        writers: &[OF_BOTH, ELSEWHERE],
        readers: &[Asks::View(&[(0, A), (0, B)])],
        crash: true,
        ..PLAIN
    },
    Scope {
        name: "views-crash-pauses",
        about: "`views-crash`, paused anywhere",
        writers: &[OF_BOTH, ELSEWHERE],
        readers: &[Asks::View(&[(0, A), (0, B)])],
        crash: true,
        pauses: true,
        ..PLAIN
    },
];

/// What `make prove` adds.
pub const LARGER: &[Scope] = &[
    Scope {
        name: "sessions-writers",
        about: "a session beside three writers; L2",
        writers: &[OF_A, OF_B, ELSEWHERE],
        readers: &[Asks::Session(&[(0, B), (1, A)])],
        l2: true,
        wire: 1,
        ..PLAIN
    },
    Scope {
        name: "rows-three",
        about: "three writers, the log read anew; hints, L2, time",
        writers: &[OF_A, OF_B, OF_ALL_OF_B],
        readers: &[Asks::Reads(&[(0, A)])],
        hints: true,
        l2: true,
        recoveries: true,
        time: true,
        ..PLAIN
    },
    Scope {
        name: "rows-two",
        about: "`rows-whole` at two instances",
        writers: &[OF_BOTH, OF_ALL_OF_B],
        readers: &[Asks::Reads(&[(0, A)]), Asks::Reads(&[(1, A)])],
        hints: true,
        l2: true,
        ..PLAIN
    },
    Scope {
        name: "rows-crash-time",
        about: "`rows-crash`, and leases run out",
        writers: &[OF_B, OF_B],
        readers: &[Asks::Reads(&[(0, A)])],
        l2: true,
        crash: true,
        time: true,
        pauses: true,
        ..PLAIN
    },
    Scope {
        name: "sessions-two",
        about: "`sessions` beside another reader",
        writers: &[OF_A, OF_B],
        readers: &[Asks::Session(&[(0, B), (1, A)]), Asks::Reads(&[(0, B)])],
        l2: true,
        wire: 0,
        ..PLAIN
    },
    Scope {
        name: "sessions-replica-two",
        about: "`sessions-replica` at two instances",
        writers: &[OF_B, OF_A],
        readers: &[Asks::Session(&[(0, B), (1, A)])],
        recoveries: true,
        replica: true,
        ..PLAIN
    },
    Scope {
        name: "sessions-crash-pauses",
        about: "`sessions-crash` without the other reader, paused anywhere; L2",
        readers: &[Asks::Session(&[(0, B), (1, B)])],
        l2: true,
        crash: true,
        pauses: true,
        ..PLAIN
    },
    Scope {
        name: "sessions-three",
        about: "a session of three reads",
        writers: &[OF_BOTH, ELSEWHERE],
        readers: &[Asks::Session(&[(0, B), (1, A), (0, A)])],
        ..PLAIN
    },
    Scope {
        name: "sessions-crash-two",
        about: "`sessions-crash` with two writers, whose numbers are used again",
        writers: &[OF_B, ELSEWHERE],
        readers: &[Asks::Session(&[(0, B), (1, B)])],
        crash: true,
        ..PLAIN
    },
    Scope {
        name: "views-pauses-time",
        about: "`views-pauses`, and leases run out",
        writers: &[OF_A, OF_B],
        readers: &[Asks::View(&[(0, A), (0, B)])],
        time: true,
        recoveries: true,
        pauses: true,
        ..PLAIN
    },
    Scope {
        name: "views-beside",
        about: "`views` beside a reader of another instance",
        writers: &[OF_BOTH, ELSEWHERE],
        readers: &[Asks::View(&[(0, A), (0, B)]), Asks::Reads(&[(1, B)])],
        l2: true,
        wire: 0,
        ..PLAIN
    },
    Scope {
        name: "views-crash-time",
        about: "`views-crash`, and leases run out",
        writers: &[OF_BOTH, ELSEWHERE],
        readers: &[Asks::View(&[(0, A), (0, B)])],
        crash: true,
        time: true,
        ..PLAIN
    },
];

impl Variant {
    /// The smallest world in which it goes wrong.
    pub fn scope(self) -> Scope {
        let scope = match self {
            Self::DependencyJudgedAtInsertOnly => Scope { readers: &[Asks::Reads(&[(0, A)])], ..PLAIN },
            Self::DependencyLostInL2 => {
                Scope { l2: true, readers: &[Asks::Reads(&[(0, A), (0, A)])], ..PLAIN }
            }
            Self::UndeclaredSubjectIgnored => {
                Scope { l2: true, readers: &[Asks::Reads(&[(1, A)])], undeclared: true, empty: true, ..PLAIN }
            }
            Self::RowsOfADeclaredCacheLeftOut => Scope {
                readers: &[Asks::Reads(&[(0, B)]), Asks::Reads(&[(1, A)])],
                undeclared: true,
                ..PLAIN
            },
            Self::FlightIgnoresDependencies => PLAIN,
            Self::WholeCacheOfASubjectIgnored => {
                Scope { writers: &[OF_ALL_OF_B], readers: &[Asks::Reads(&[(0, A)])], ..PLAIN }
            }
            Self::DependencyJudgedAcrossARecovery => {
                Scope { readers: &[Asks::Reads(&[(0, A)])], recoveries: true, pauses: true, ..PLAIN }
            }
            Self::DependencyJudgedBeforeTheLease => {
                Scope { readers: &[Asks::Reads(&[(0, A)])], pauses: true, ..PLAIN }
            }
            Self::ClockBeforeDependencies => {
                Scope { readers: &[Asks::Reads(&[(0, A)])], time: true, pauses: true, ..PLAIN }
            }
            Self::ReadTokenComparedByXmaxAlone => {
                Scope { writers: &[OF_B, ELSEWHERE], readers: &[Asks::Session(&[(0, B), (1, B)])], ..PLAIN }
            }
            Self::CutStampTakenAsExact => Scope {
                writers: &[OF_B, ELSEWHERE],
                readers: &[Asks::Reads(&[(0, B)]), Asks::Session(&[(0, B), (1, B)])],
                l2: true,
                wire: 0,
                ..PLAIN
            },
            Self::TokenOfAReadOfAReplica => Scope {
                writers: &[OF_B, ELSEWHERE],
                readers: &[Asks::Session(&[(0, B), (1, B)])],
                replica: true,
                ..PLAIN
            },
            Self::TokenForgetsItsWrite => {
                Scope { writers: &[OF_A], readers: &[Asks::Session(&[(0, B), (1, A)])], ..PLAIN }
            }
            Self::ReadTokenCheckedAfterTheEntry => {
                Scope { readers: &[Asks::Session(&[(0, B), (1, B)])], pauses: true, ..PLAIN }
            }
            Self::PollOfAnotherEraGrants => Scope {
                readers: &[Asks::Session(&[(0, B)])],
                replica: true,
                recoveries: true,
                pauses: true,
                ..PLAIN
            },
            Self::ViewWithoutTheRank => {
                Scope { writers: &[OF_BOTH], readers: &[Asks::View(&[(0, A), (0, B)])], attempts: 0, ..PLAIN }
            }
            Self::ViewJudgedBeforeThePoll => {
                Scope { writers: &[OF_BOTH], readers: &[Asks::View(&[(0, A), (0, B)])], attempts: 0, ..PLAIN }
            }
            Self::ViewAcrossEras => Scope {
                writers: &[OF_BOTH],
                readers: &[Asks::View(&[(0, A), (0, B)])],
                recoveries: true,
                pauses: true,
                attempts: 0,
                ..PLAIN
            },
            Self::ViewOfARefusedValue => {
                Scope { writers: &[OF_BOTH], readers: &[Asks::View(&[(0, A), (0, B)])], attempts: 0, ..PLAIN }
            }
            Self::ViewOfACutStamp | Self::CutStampTakenAsTheMoment => Scope {
                writers: &[OF_BOTH, ELSEWHERE],
                readers: &[Asks::Reads(&[(1, B)]), Asks::View(&[(0, A), (0, B)])],
                l2: true,
                wire: 0,
                attempts: 0,
                ..PLAIN
            },
            Self::RestartThatNoLoadTellsOf => Scope {
                readers: &[Asks::Session(&[(0, B), (1, B)]), Asks::Reads(&[(1, B)])],
                crash: true,
                empty: true,
                ..PLAIN
            },
        };
        Scope { name: "smallest", ..scope }
    }
}
