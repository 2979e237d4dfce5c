//! The tail: reads the log, applies it, and extends the lease. What the promise rests on.
//!
//! One task per instance polls on a connection of its own: every poll interval while all is well, faster while no
//! hints come, at once when something is in doubt. A poll that fails changes nothing but the time: the lease runs out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::health::{Event, Recovery};
use super::snapshot::Snapshot;
use crate::error::LogError;
use crate::instance::Shared;
use crate::log::{Poll, Row};
use crate::trace::{Kind, Trace};

/// While no hints come, the tail is all there is.
const ISOLATED_INTERVAL: Duration = Duration::from_millis(75);
/// Polls at once are at least this far apart.
const LEAST_INTERVAL: Duration = Duration::from_millis(5);
/// Time between two tries after a failed poll.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Writes of one poll that are told of one by one. There may be thousands, after an outage.
const TOLD: usize = 64;

pub(crate) struct Tail {
    shared: Arc<Shared>,
    /// Of the last poll whose rows have all been applied. New rows are those it does not contain.
    cursor: Option<Snapshot>,
    /// Why there is no cursor, where there is none.
    lost: Recovery,
    failing: bool,
}

impl Tail {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared, cursor: None, lost: Recovery::Start, failing: false }
    }

    /// Polls until the instance is shut down. Never returns.
    pub(crate) async fn run(mut self) {
        loop {
            let pause = match self.poll().await {
                Ok(()) => self.interval(),
                Err(_) => RETRY_INTERVAL.min(self.interval()),
            };
            tokio::select! {
                biased;
                () = self.shared.coherence.doubt.notified() => tokio::time::sleep(LEAST_INTERVAL).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One poll. When it returns `Ok`, every write that was visible when it was called has been applied.
    pub(crate) async fn poll(&mut self) -> Result<(), LogError> {
        let polled = self.step().await;
        match &polled {
            Ok(()) => self.shared.counters.polls.add(1),
            Err(error) => {
                self.shared.counters.poll_errors.add(1);
                if !self.failing {
                    self.shared.signals.send(Event::PollFailed { error: crate::error::chain(error) });
                }
            }
        }
        self.failing = polled.is_err();
        polled
    }

    async fn step(&mut self) -> Result<(), LogError> {
        // Before the poll is sent: what commits after this moment is not vouched for.
        let sent_ms = self.shared.coherence.clock.now_ms();
        let poll = self.read(self.cursor.as_ref()).await?;
        let why = match &self.cursor {
            None => Some(self.lost),
            Some(_) if poll.epoch != self.shared.coherence.epoch() => Some(Recovery::NewEpoch),
            // The server has older files than before.
            Some(cursor) if poll.snapshot.xmax() < cursor.xmax() => Some(Recovery::NewEpoch),
            Some(cursor) if cursor.rank() < poll.trimmed.rank() => Some(Recovery::Trimmed),
            Some(_) if poll.rows.is_none() => Some(Recovery::TooManyRows),
            Some(_) => None,
        };
        let poll = match why {
            None => {
                self.apply(&poll);
                poll
            }
            Some(why) => self.recover(poll, why).await?,
        };
        self.shared.coherence.buckets.complete(poll.snapshot.clone());
        self.cursor = Some(poll.snapshot);
        // Last: who sees this lease sees all that was applied.
        self.shared.coherence.lease.extend(sent_ms, self.shared.coherence.bound);
        self.shared.signals.changed();
        Ok(())
    }

    /// Drops L1 and all knowledge, and takes the log as the only truth.
    ///
    /// Rows that were trimmed are contained in the snapshot they were trimmed by, so that snapshot is the floor and
    /// the retained rows are applied above it. Where there are too many of them, the poll's own snapshot is the
    /// floor: it contains them all, at the price that nothing older is accepted from L2.
    async fn recover(&mut self, mut poll: Poll, why: Recovery) -> Result<Poll, LogError> {
        let shared = Arc::clone(&self.shared);
        if self.cursor.take().is_some() {
            // The rows were read by a cursor that means nothing any more.
            shared.coherence.lease.begin_era();
            self.lost = why;
            shared.signals.changed();
            poll = self.read(None).await?;
        }
        let floor = if poll.rows.is_some() { &poll.trimmed } else { &poll.snapshot };
        let caches = shared.caches();
        shared.coherence.recover(poll.epoch, floor, caches.values().map(|cache| cache.whole()));
        self.apply(&poll);
        shared.counters.recoveries.add(1);
        shared.signals.send(Event::Recovered { why });
        Ok(poll)
    }

    async fn read(&self, cursor: Option<&Snapshot>) -> Result<Poll, LogError> {
        let limit = self.shared.settings.poll_timeout;
        match tokio::time::timeout(limit, self.shared.log.poll(cursor)).await {
            Ok(polled) => polled,
            Err(_elapsed) => Err(LogError::Timeout(limit)),
        }
    }

    fn apply(&self, poll: &Poll) {
        let (caches, mut repaired) = (self.shared.caches(), Repaired::default());
        let rows = poll.rows.as_deref().unwrap_or_default();
        // What was visible to the poll is contained in its snapshot. A row that is not comes from another cluster, by a
        // dump, and would keep its bucket from being cached until that number is reached.
        for row in rows.iter().filter(|row| poll.snapshot.contains(row.xid)) {
            if let Some(cache) = caches.get(row.cache.as_str())
                && cache.apply(row.xid, row.key.as_deref())
            {
                self.shared.counters.repairs.add(1);
                self.shared.repaired.add(row.xid);
                repaired.note(row);
            }
        }
        repaired.tell();
        self.shared.counters.rows.add(rows.len() as u64);
    }

    fn interval(&self) -> Duration {
        let interval = self.shared.settings.poll_interval;
        if self.shared.hints_come() { interval } else { interval.min(ISOLATED_INTERVAL) }
    }
}

/// Transactions of which the tail evicted something, the newest last: a hint of theirs may still be on its way.
#[derive(Debug, Default)]
pub(crate) struct RecentlyRepaired(Mutex<VecDeque<(u64, u64)>>);

/// Hints come within milliseconds, or never.
const REMEMBERED: usize = 256;

impl RecentlyRepaired {
    fn add(&self, xid: u64) {
        let mut recent = self.0.lock();
        // Rows of several transactions come in any order, but in one poll.
        if let Some((_, evicted)) = recent.iter_mut().rev().find(|(known, _)| *known == xid) {
            *evicted += 1;
            return;
        }
        recent.push_back((xid, 1));
        if recent.len() > REMEMBERED {
            recent.pop_front();
        }
    }

    /// How many entries the tail evicted before the hint came. Told once.
    pub(super) fn overtaken(&self, xid: u64) -> u64 {
        let mut recent = self.0.lock();
        let at = recent.iter().rposition(|(known, _)| *known == xid);
        at.and_then(|at| recent.remove(at)).map_or(0, |(_, evicted)| evicted)
    }
}

/// What hints did not bring and a poll did, by the trace that the write is part of: for those who look at it.
#[derive(Default)]
struct Repaired<'a> {
    writes: Vec<(Option<&'a str>, u64)>,
}

impl<'a> Repaired<'a> {
    fn note(&mut self, row: &'a Row) {
        let trace = row.traceparent.as_deref();
        let known = self.writes.iter_mut().find(|(known, _)| *known == trace);
        if let Some((_, evicted)) = known {
            *evicted += 1;
        } else if self.writes.len() < TOLD {
            self.writes.push((trace, 1));
        }
    }

    /// In the trace of the write, and linked to it; a write that has none has a trace of its own.
    fn tell(self) {
        for (traceparent, evicted) in self.writes {
            let written = traceparent.and_then(Trace::remote);
            let trace = written.clone().unwrap_or_else(Trace::root);
            let span = trace.begin(Kind::Consumer, format_args!("repair"));
            if let Some(written) = &written {
                span.link(&written.origin());
            }
            span.number("perto.evicted", evicted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_late_hint_takes_back_is_all_that_was_evicted_of_its_transaction() {
        let recent = RecentlyRepaired::default();
        // As a poll may bring rows of two transactions.
        [7, 8, 7, 8, 7].into_iter().for_each(|xid| recent.add(xid));
        assert_eq!([7, 7, 8, 9].map(|xid| recent.overtaken(xid)), [3, 0, 2, 0]);
        (0..=REMEMBERED as u64).for_each(|xid| recent.add(xid));
        assert_eq!([0, 1].map(|xid| recent.overtaken(xid)), [0, 1], "the oldest is forgotten");
    }
}
