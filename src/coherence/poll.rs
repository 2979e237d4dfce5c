//! What a poll of the log means to an instance that has read the log up to a cursor.
//!
//! Pure, as [`super::rules`]: the tail calls it, and so does the model.

use super::snapshot::Snapshot;

/// Why an instance read the log anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recovery {
    /// It started.
    Start,
    /// The database crashed, was promoted or restored.
    NewEpoch,
    /// The log was trimmed past what this instance had read.
    Trimmed,
    /// More rows than one poll brings.
    TooManyRows,
}

/// What a poll brings, but for its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Polled<'a> {
    pub(crate) epoch: u64,
    pub(crate) snapshot: &'a Snapshot,
    /// Every row that has been trimmed is contained in it.
    pub(crate) trimmed: &'a Snapshot,
    /// Whether it brings its rows. Else there were too many.
    pub(crate) has_rows: bool,
}

/// What is to be done with a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// Apply its rows: all that is new since the cursor.
    Apply,
    /// Poll again, without a cursor: its rows were read by one that means nothing any more.
    ReadAll(Recovery),
    /// Forget everything but that the floor contains all invalidations so far. Then apply its rows.
    Recover(&'a Snapshot),
}

/// What is to be done with a poll that was asked for what is new since `cursor`, or for all of the log where there is none.
/// `epoch` is the one that the instance is in.
///
/// Rows that were trimmed are contained in the snapshot they were trimmed by. So that snapshot is the floor of a recovery,
/// and the retained rows are applied above it. Where there are too many of them, the poll's own snapshot is the floor. It
/// contains them all, at the price that nothing older is accepted from L2.
pub(crate) fn next<'a>(cursor: Option<&Snapshot>, epoch: u64, poll: Polled<'a>) -> Next<'a> {
    match cursor {
        None if poll.has_rows => Next::Recover(poll.trimmed),
        None => Next::Recover(poll.snapshot),
        Some(_) if poll.epoch != epoch => Next::ReadAll(Recovery::NewEpoch),
        // The server was set back together with its memory: in all other cases it is another epoch.
        Some(cursor) if poll.snapshot.xmax() < cursor.xmax() => Next::ReadAll(Recovery::NewEpoch),
        Some(cursor) if cursor.rank() < poll.trimmed.rank() => Next::ReadAll(Recovery::Trimmed),
        Some(_) if !poll.has_rows => Next::ReadAll(Recovery::TooManyRows),
        Some(_) => Next::Apply,
    }
}

impl Polled<'_> {
    /// Whether a row of this transaction counts. What was visible to the poll is contained in its snapshot. A row that is not
    /// comes from another cluster, by a dump, and would keep its bucket from being cached until that number is reached.
    pub(crate) fn counts(&self, xid: u64) -> bool {
        self.snapshot.contains(xid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next_of(cursor: Option<&str>, epoch: u64, snapshot: &str, trimmed: &str, has_rows: bool) -> String {
        let [snapshot, trimmed] = [snapshot, trimmed].map(|text| Snapshot::parse(text).unwrap());
        let cursor = cursor.map(|text| Snapshot::parse(text).unwrap());
        let poll = Polled { epoch, snapshot: &snapshot, trimmed: &trimmed, has_rows };
        format!("{:?}", next(cursor.as_ref(), 1, poll))
    }

    #[test]
    fn a_poll_is_applied_where_its_cursor_still_means_something() {
        for (cursor, epoch, snapshot, trimmed, has_rows, then) in [
            (Some("20:20:"), 1, "20:22:20", "10:10:", true, "Apply"),
            (Some("20:20:"), 1, "20:20:", "20:20:", true, "Apply"),
            (Some("20:20:"), 2, "20:22:20", "10:10:", true, "ReadAll(NewEpoch)"),
            (Some("20:20:"), 1, "19:19:", "10:10:", true, "ReadAll(NewEpoch)"),
            (Some("20:20:"), 1, "30:30:", "21:21:", true, "ReadAll(Trimmed)"),
            (Some("20:22:20"), 1, "30:30:", "22:22:", true, "ReadAll(Trimmed)"),
            (Some("20:20:"), 1, "20:22:20", "10:10:", false, "ReadAll(TooManyRows)"),
            (None, 2, "20:22:20", "10:10:", true, "Recover(Snapshot(10:10:))"),
            (None, 2, "20:22:20", "10:10:", false, "Recover(Snapshot(20:22:20))"),
        ] {
            let next = next_of(cursor, epoch, snapshot, trimmed, has_rows);
            assert_eq!(next, then, "{cursor:?} {epoch} {snapshot} {trimmed} {has_rows}");
        }
    }
}
