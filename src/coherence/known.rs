//! What a bucket knows, laid open: for whoever wants to see why a value is refused. Reads go by [`super::rules`] alone.

use std::fmt;

use super::snapshot::{Rank, Snapshot};

/// What an instance knows of the invalidations of a key, or of a whole cache. `docs/PROTOCOL.md`, "The rules".
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Known {
    /// The highest transaction that the log has brought. 0 is none.
    pub highest: u64,
    /// What can't contain every transaction up to here one by one is refused: more hints came than can be told apart.
    pub coarse_up_to: u64,
    /// What ranks lower is refused.
    pub floor: Rank,
    /// Transactions that a value must contain, ascending.
    pub xids: Vec<u64>,
}

/// What a stamp misses of what a bucket knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// This transaction.
    Transaction(u64),
    /// Perhaps one up to here, which the bucket does not tell apart any more.
    UpTo(u64),
    /// Perhaps one below here, that was given up to a poll of the log.
    Before(u64),
}

impl Known {
    /// What a value with this stamp misses. `None`: it is accepted.
    #[must_use]
    pub fn misses(&self, stamp: &Snapshot) -> Option<Missing> {
        if let Some(xid) = self.xids.iter().find(|xid| !stamp.contains(**xid)) {
            Some(Missing::Transaction(*xid))
        } else if stamp.xmin() <= self.coarse_up_to {
            Some(Missing::UpTo(self.coarse_up_to))
        } else if stamp.xmin() <= self.highest && stamp.rank() < self.floor {
            Some(Missing::Before(self.floor.xmax()))
        } else {
            None
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transaction(xid) => write!(f, "misses transaction {xid}"),
            Self::UpTo(xid) => write!(f, "may miss a transaction up to {xid}"),
            Self::Before(xid) => write!(f, "may miss a transaction before {xid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::Bucket;
    use super::*;

    #[test]
    fn what_is_laid_open_says_the_same_as_the_rule() {
        let stamps: Vec<Snapshot> =
            ["5:5:", "10:21:10,15", "12:30:12,20,24", "20:30:20", "31:31:", "9:40:9", "40:40:"]
                .map(|text| Snapshot::parse(text).unwrap())
                .into();
        let polls = [None, Snapshot::parse("10:10:"), Snapshot::parse("22:25:22"), Snapshot::parse("40:40:")];
        let (mut refused, mut reasons) = (0, std::collections::HashSet::new());
        for poll in &polls {
            for floor in [None, Snapshot::parse("11:11:"), Snapshot::parse("20:23:20")] {
                let mut bucket: Bucket = floor.as_ref().map_or_else(Bucket::default, Bucket::at);
                for xid in [20, 15, 24, 12, 29, 30, 11] {
                    for stamp in &stamps {
                        let missing = bucket.known().misses(stamp);
                        assert_eq!(missing.is_none(), bucket.accepts(stamp), "{bucket:?} {stamp}");
                        refused += u32::from(missing.is_some());
                        reasons.extend(missing.map(|missing| std::mem::discriminant(&missing)));
                    }
                    bucket.apply(xid, poll.as_ref(), None);
                }
            }
        }
        assert!(refused > 100 && reasons.len() == 3, "{refused} {}", reasons.len());
    }
}
