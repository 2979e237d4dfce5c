//! What a worker says of its instance in figures, and what a fault demands of them: a fault that no instance noticed has
//! not taken place.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counters since the start of the instance, and its state.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Stats {
    pub(crate) epoch: u64,
    pub(crate) bus_up: bool,
    pub(crate) poll_errors: u64,
    pub(crate) l2_errors: u64,
    pub(crate) hints: u64,
    pub(crate) hints_published: u64,
    pub(crate) unverified: u64,
    pub(crate) audits: u64,
    pub(crate) audit_violations: u64,
}

/// Of all workers, by number.
pub(crate) type AllStats = BTreeMap<u32, Stats>;

/// What must have come about in an instance between the beginning of a fault and its repair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    pub(crate) what: &'static str,
    pub(crate) met: fn(&Stats, &Stats) -> bool,
}

pub(crate) const L2_FAILED: Demand =
    Demand { what: "an operation on Redis failed", met: |before, after| after.l2_errors > before.l2_errors };
pub(crate) const POLL_FAILED: Demand =
    Demand { what: "a poll failed", met: |before, after| after.poll_errors > before.poll_errors };
pub(crate) const LEASE_ENDED: Demand =
    Demand { what: "an answer was flagged", met: |before, after| after.unverified > before.unverified };
pub(crate) const NEW_EPOCH: Demand =
    Demand { what: "it is in another epoch", met: |before, after| after.epoch != before.epoch };

/// What was demanded of these workers, or of all that lived all the time, and did not come about.
pub(crate) fn unmet(demands: &[Demand], of: Option<u32>, before: &AllStats, after: &AllStats) -> Vec<String> {
    let mut unmet = Vec::new();
    for demand in demands {
        let judged: Vec<_> = before
            .iter()
            .filter(|(number, _)| of.is_none_or(|of| of == **number))
            .filter_map(|(number, was)| Some((*number, was, after.get(number)?)))
            .collect();
        let not_by =
            judged.iter().filter(|(_, was, is)| !(demand.met)(was, is)).map(|(number, _, _)| *number);
        let not_by: Vec<u32> = not_by.collect();
        if judged.is_empty() || !not_by.is_empty() {
            unmet.push(format!("it did not take place: \"{}\" is not so of workers {not_by:?}", demand.what));
        }
    }
    unmet
}
