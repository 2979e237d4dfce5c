//! What the tail evicted because no hint had: told in the traces of the writes, and taken back where a hint comes after all.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::log::Row;
use crate::trace::{Kind, Trace};

/// Writes of one poll that are told of one by one. There may be thousands, after an outage.
const TOLD: usize = 64;

/// Transactions of which the tail evicted something, the newest last: a hint of theirs may still be on its way.
#[derive(Debug, Default)]
pub(crate) struct RecentlyRepaired(Mutex<VecDeque<(u64, u64)>>);

/// Hints come within milliseconds, or never.
const REMEMBERED: usize = 256;

impl RecentlyRepaired {
    pub(crate) fn add(&self, xid: u64) {
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
    pub(crate) fn overtaken(&self, xid: u64) -> u64 {
        let mut recent = self.0.lock();
        let at = recent.iter().rposition(|(known, _)| *known == xid);
        at.and_then(|at| recent.remove(at)).map_or(0, |(_, evicted)| evicted)
    }
}

/// What hints did not bring and a poll did, by the trace that the write is part of: for those who look at it.
#[derive(Default)]
pub(crate) struct Repaired<'a> {
    writes: Vec<(Option<&'a str>, u64)>,
}

impl<'a> Repaired<'a> {
    pub(crate) fn note(&mut self, row: &'a Row) {
        let trace = row.traceparent.as_deref();
        let known = self.writes.iter_mut().find(|(known, _)| *known == trace);
        if let Some((_, evicted)) = known {
            *evicted += 1;
        } else if self.writes.len() < TOLD {
            self.writes.push((trace, 1));
        }
    }

    /// In the trace of the write, and linked to it; a write that has none has a trace of its own.
    pub(crate) fn tell(self) {
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
