//! Postgres, as the models have it: transactions in any order, a log that is trimmed, a server that crashes and uses numbers again.
//!
//! Writers are known by their place (`W0`, `W1`), whatever numbers their transactions get: after a crash numbers are used again.
//! Time is counted in *events*: ends of transactions, and a crash.

use std::fmt;

use crate::coherence::snapshot::Snapshot;

pub(crate) const WRITERS: usize = 3;

/// Writers, or transaction numbers: one bit each.
pub(crate) type Set = u8;

pub(crate) const fn bit(n: u8) -> Set {
    1 << n
}

pub(crate) const fn has(set: Set, n: u8) -> bool {
    set & bit(n) != 0
}

/// A [`Snapshot`], small enough to keep by the million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Seen {
    /// Numbers of transactions that it contains.
    pub(crate) contained: Set,
    pub(crate) xmax: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Writer {
    Waiting,
    Running {
        xid: u8,
    },
    /// Its commit record is written, and nobody sees it yet. Only where a variant tells the difference.
    Logged {
        xid: u8,
    },
    Ended {
        xid: u8,
        at: u8,
        fate: Fate,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    Committed,
    Aborted,
    /// Committed, then lost in a crash. Its number counts as ended in the new epoch.
    Undone,
    /// Lost in a crash, and its number is used again.
    Vanished,
}

/// The server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Postgres {
    pub(crate) next: u8,
    pub(crate) epoch: u8,
    /// Events so far.
    pub(crate) now: u8,
    pub(crate) crashed_at: Option<u8>,
    pub(crate) writers: [Writer; WRITERS],
    pub(crate) trimmed: Seen,
    /// Writers whose rows are trimmed.
    pub(crate) gone: Set,
}

impl Postgres {
    /// Nobody has written yet.
    pub(crate) const NEW: Self = Self {
        next: 1,
        epoch: 0,
        now: 0,
        crashed_at: None,
        writers: [Writer::Waiting; WRITERS],
        trimmed: Seen::NOTHING,
        gone: 0,
    };

    pub(crate) fn begin(&mut self, k: u8) {
        self.writers[usize::from(k)] = Writer::Running { xid: self.next };
        self.next += 1;
    }

    /// The epoch in which this writer ended, or runs.
    pub(crate) fn epoch_of(&self, k: u8) -> u8 {
        match self.writers[usize::from(k)] {
            Writer::Ended { fate: Fate::Undone | Fate::Vanished, .. } => 0,
            Writer::Ended { at, .. } => self.crashed_at.is_some_and(|crash| at > crash).into(),
            _ => self.epoch,
        }
    }

    /// What `pg_current_snapshot()` said after this event.
    pub(crate) fn seen_at(&self, moment: u8) -> Seen {
        let ended = |writer: &Writer| match *writer {
            Writer::Ended { fate: Fate::Vanished, .. } => None,
            Writer::Ended { xid, at, .. } if at <= moment => Some(xid),
            _ => None,
        };
        Seen::ended(self.writers.iter().filter_map(ended).fold(0, |set, xid| set | bit(xid)))
    }

    pub(crate) fn xid(&self, k: u8) -> u8 {
        self.writers[usize::from(k)].xid().unwrap_or(0)
    }

    pub(crate) fn end(&mut self, k: u8, fate: Fate) {
        self.now += 1;
        self.writers[usize::from(k)] = Writer::Ended { xid: self.xid(k), at: self.now, fate };
    }

    /// The server comes back as it was before the last `losing` commits, and uses their numbers again.
    pub(crate) fn crash(&mut self, losing: u8) {
        let mut commits: Vec<u8> = self
            .writers
            .iter()
            .filter_map(|writer| match writer {
                Writer::Ended { at, fate: Fate::Committed, .. } => Some(*at),
                _ => None,
            })
            .collect();
        commits.sort_unstable();
        let keep = match losing {
            0 => self.now,
            _ => commits[commits.len() - usize::from(losing)] - 1,
        };
        self.now += 1;
        let next = self.seen_at(keep).xmax;
        for writer in &mut self.writers {
            let Some(xid) = writer.xid() else { continue };
            *writer = match *writer {
                kept @ Writer::Ended { at, .. } if at <= keep => kept,
                Writer::Ended { fate: Fate::Committed, at, .. } if xid >= next => {
                    Writer::Ended { xid, at, fate: Fate::Vanished }
                }
                Writer::Ended { fate: Fate::Committed, .. } => {
                    Writer::Ended { xid, at: self.now, fate: Fate::Undone }
                }
                // What ran, or aborted after that point, was never there. Below `next`, its number has ended.
                _ if xid >= next => Writer::Ended { xid, at: 0, fate: Fate::Vanished },
                _ => Writer::Ended { xid, at: self.now, fate: Fate::Aborted },
            };
        }
        self.next = next;
        self.epoch += 1;
        self.crashed_at = Some(self.now);
        if self.trimmed.xmax > next || self.trimmed.snapshot().rank() > self.seen_at(keep).snapshot().rank() {
            self.trimmed = Seen::NOTHING;
            self.gone = 0;
        }
    }
}

impl Seen {
    pub(crate) const NOTHING: Self = Self { contained: 0, xmax: 1 };

    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let xmax = u8::try_from(snapshot.xmax()).expect("a handful of transactions");
        let contained = (1..xmax).filter(|xid| snapshot.contains(u64::from(*xid))).map(bit).sum();
        Self { contained, xmax }
    }

    /// What Postgres says when these have ended.
    pub(crate) fn ended(contained: Set) -> Self {
        let xmax = (1..8).rev().find(|xid| has(contained, *xid)).map_or(1, |highest| highest + 1);
        Self { contained, xmax }
    }

    pub(crate) fn xmin(self) -> u8 {
        (1..self.xmax).find(|xid| !has(self.contained, *xid)).unwrap_or(self.xmax)
    }

    pub(crate) fn snapshot(self) -> Snapshot {
        let mut running = [0; 8];
        let mut count = 0;
        for xid in (1..self.xmax).filter(|xid| !has(self.contained, *xid)) {
            running[count] = u64::from(xid);
            count += 1;
        }
        Snapshot::new(u64::from(self.xmin()), u64::from(self.xmax), &running[..count])
    }
}

impl Writer {
    pub(crate) const fn xid(self) -> Option<u8> {
        match self {
            Self::Waiting => None,
            Self::Running { xid } | Self::Logged { xid } | Self::Ended { xid, .. } => Some(xid),
        }
    }

    pub(crate) const fn committed_by(self, moment: u8) -> bool {
        matches!(self, Self::Ended { at, fate: Fate::Committed, .. } if at <= moment)
    }

    pub(crate) const fn runs(self) -> bool {
        matches!(self, Self::Running { .. } | Self::Logged { .. })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.snapshot())
    }
}

/// Writers, as people write sets.
pub(crate) struct Names(pub(crate) Set);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = (0..8).filter(|n| has(self.0, *n)).map(|n| format!("W{n}")).collect();
        write!(f, "{{{}}}", names.join(", "))
    }
}
