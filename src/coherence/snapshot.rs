//! Stamps: Postgres snapshots, and which transactions they contain.
//!
//! A snapshot `(xmin, xmax, xip)` says exactly which transactions a value reflects. Everything here is
//! pure: no clock, no lock, no I/O. See `docs/PROTOCOL.md`, "Stamps", and Postgres'
//! [snapshot functions](https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT).

use std::fmt;

/// Most running transactions that a stamp carries on the wire. More are truncated to a valid lower bound.
pub const MAX_RUNNING: usize = 64;

/// Highest number in a snapshot from outside: a [`Rank`] has 48 bits for it. At a thousand writes a second that lasts
/// nine thousand years.
pub(crate) const MAX_XID: u64 = (1 << 48) - 1;

/// Where a snapshot was taken, as far as the statement that took it could tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// By a server that was not in recovery when it answered, for this statement.
    Primary,
    /// By a hot standby, for an earlier statement of its transaction, or by a statement that did not say.
    Unknown,
}

/// A Postgres snapshot: the set of transactions that a value reflects.
///
/// Made only by [`Snapshot::parse`] and [`Snapshot::new`], which repair what Postgres says where it must not
/// be taken at face value.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    /// Transactions running when the snapshot was taken, ascending, each in `xmin..xmax`.
    xip: Box<[u64]>,
}

impl Snapshot {
    /// A snapshot from its parts, as `pg_current_snapshot()` gives them.
    ///
    /// A snapshot whose first running transaction is not `xmin` comes from a hot standby (its list of running
    /// transactions is always empty) or from a transaction that had written (its own xid is missing). Either
    /// would claim transactions that it does not contain, so it is collapsed to what lies below `xmin`.
    #[must_use]
    pub fn new(xmin: u64, xmax: u64, running: &[u64]) -> Self {
        let ordered = running.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = running.last().is_none_or(|last| *last < xmax);
        if running.first() == Some(&xmin) && ordered && inside {
            Self { xmin, xmax, xip: running.into() }
        } else {
            Self { xmin, xmax: xmin, xip: Box::default() }
        }
    }

    /// The snapshot that contains every transaction below `xid` and no other: an upper bound of every snapshot whose
    /// `xmax` is `xid`, collapsed or not.
    #[must_use]
    pub fn all_below(xid: u64) -> Self {
        Self { xmin: xid, xmax: xid, xip: Box::default() }
    }

    /// Reads Postgres' text form, `xmin:xmax:xip,xip`. `None` where it is anything else.
    ///
    /// ```
    /// use perto::Snapshot;
    /// let stamp = Snapshot::parse("10:14:10,12").unwrap();
    /// assert!(stamp.contains(9) && stamp.contains(11) && stamp.contains(13));
    /// assert!(!stamp.contains(10) && !stamp.contains(12) && !stamp.contains(14));
    /// assert!(Snapshot::parse("10:14").is_none());
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let xmin = parts.next()?.parse().ok()?;
        let xmax = parts.next()?.parse().ok()?;
        let list = parts.next()?;
        if parts.next().is_some() || xmin > xmax || xmax > MAX_XID {
            return None;
        }
        let running: Vec<u64> =
            list.split(',').filter(|xid| !xid.is_empty()).map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self::new(xmin, xmax, &running))
    }

    /// The lowest transaction that may still have been running: all below are contained.
    #[must_use]
    pub const fn xmin(&self) -> u64 {
        self.xmin
    }

    /// The first transaction that had not ended: none from here on is contained.
    #[must_use]
    pub const fn xmax(&self) -> u64 {
        self.xmax
    }

    /// The transactions between that were still running, ascending.
    #[must_use]
    pub const fn running(&self) -> &[u64] {
        &self.xip
    }

    /// Whether this snapshot contains transaction `xid`: a value read under it reflects what `xid` wrote.
    #[must_use]
    pub fn contains(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }

    /// The place in the order of inclusion. Of two snapshots of one primary, the one of the higher rank contains
    /// all that the other contains; equal ranks are the same snapshot.
    #[must_use]
    pub fn rank(&self) -> Rank {
        Rank(self.xmax << 16 | (0xFFFF - self.xip.len().min(0xFFFF) as u64))
    }

    /// The part that goes into L2: at most [`MAX_RUNNING`] running transactions, each within 32 bits of `xmin`.
    /// What is cut off is given up from the first cut transaction on, so the rest stays true.
    #[must_use]
    pub fn for_wire(&self) -> Self {
        self.cut_to(MAX_RUNNING)
    }

    pub(crate) fn cut_to(&self, most: usize) -> Self {
        let fits = |xid: &u64| xid - self.xmin <= u64::from(u32::MAX);
        let keep = self.xip.iter().take(most).take_while(|xid| fits(xid)).count();
        match self.xip.get(keep) {
            Some(first_cut) => Self { xmin: self.xmin, xmax: *first_cut, xip: self.xip[..keep].into() },
            None => self.clone(),
        }
    }

    /// The bytes that the running transactions hold on the heap, for weighing an entry.
    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val::<[u64]>(&self.xip)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (i, xid) in self.xip.iter().enumerate() {
            write!(f, "{}{xid}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({self})")
    }
}

/// A snapshot's place in the order of inclusion; see [`Snapshot::rank`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Rank(u64);

impl Rank {
    /// The `xmax` of a snapshot of this rank.
    #[must_use]
    pub const fn xmax(self) -> u64 {
        self.0 >> 16
    }

    /// As it is written, in tokens and in L2.
    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    pub(crate) const fn from_number(number: u64) -> Self {
        Self(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standbys_snapshot_is_never_taken_at_face_value() {
        // A standby reports no running transactions though 12 is open on the primary.
        let standby = Snapshot::parse("10:20:").unwrap();
        assert!(standby.contains(9));
        assert!((10..20).all(|xid| !standby.contains(xid)));
    }

    #[test]
    fn a_writers_own_transaction_is_not_contained_in_its_snapshot() {
        // 10 wrote and took the snapshot: it is missing from its own list, which then begins at 12.
        assert!(!Snapshot::parse("10:20:12").unwrap().contains(10));
    }

    #[test]
    fn an_idle_primary_contains_everything_that_ended() {
        let idle = Snapshot::parse("20:20:").unwrap();
        assert!(idle.contains(19) && !idle.contains(20));
    }

    #[test]
    fn rank_orders_snapshots_by_inclusion() {
        let steps = ["10:10:", "10:13:10,11", "10:13:10", "10:15:10,13", "15:15:"]
            .map(|s| Snapshot::parse(s).unwrap());
        for pair in steps.windows(2) {
            assert!(pair[0].rank() < pair[1].rank());
            assert!((0..20).all(|xid| !pair[0].contains(xid) || pair[1].contains(xid)));
        }
    }

    #[test]
    fn a_truncated_stamp_contains_nothing_that_the_whole_one_does_not() {
        let running: Vec<u64> = (0..200).map(|i| 1000 + 2 * i).collect();
        let whole = Snapshot::new(1000, 1500, &running);
        let cut = whole.for_wire();
        assert_eq!(cut.running().len(), MAX_RUNNING);
        assert!((900..1600).all(|xid| !cut.contains(xid) || whole.contains(xid)));
        assert!(cut.contains(1001) && cut.rank() < whole.rank());
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in [
            "",
            "1",
            "1:2",
            "2:1:",
            "a:b:c",
            "1:2:x",
            "1:2:3:4",
            "-1:2:",
            "1:99999999999999999999:",
            "1:281474976710656:",
        ] {
            assert!(Snapshot::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn text_round_trips() {
        for text in ["5:5:", "5:9:5,7", "5:6:5"] {
            assert_eq!(Snapshot::parse(text).unwrap().to_string(), text);
        }
    }
}
