//! What the histories of the workers amount to: put in order, and judged by [`perto::history`].

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use perto::history::{Answer, History};
use perto::{Freshness, StaleCause, Tier};

use crate::record::{Flag, Kind, Record, read_file, reads_file, writes_file};

/// What to judge: the reads of one part of the run, against all writes so far.
pub(crate) struct Case {
    pub(crate) part: String,
    /// While the fault lasted and until it was repaired, in nanoseconds.
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// Workers that lived in it at some time: each has a history.
    pub(crate) lived: Vec<u32>,
    /// Workers of which it says something how long they were silent: alive all the time, and never frozen.
    pub(crate) awake: Vec<u32>,
    pub(crate) bound: Duration,
    /// All that there ever were have lower numbers.
    pub(crate) workers: u32,
    /// By the schedule.
    pub(crate) writes: Vec<Record>,
}

#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) reads: u64,
    pub(crate) flagged: u64,
    pub(crate) failed: u64,
    pub(crate) writes: u64,
    pub(crate) worst: Duration,
    pub(crate) violations: u64,
    pub(crate) described: Vec<String>,
    /// Answer or error.
    pub(crate) longest_read: Duration,
    /// Which one that was.
    pub(crate) longest_was: String,
    /// Of one worker, between two answers.
    pub(crate) longest_silence: Duration,
    /// Commits that a failover took back.
    pub(crate) lost: u64,
    /// Histories that are not there, or empty.
    pub(crate) missing: Vec<String>,
}

pub(crate) fn judge(folder: &Path, case: &Case) -> Verdict {
    let mut verdict = Verdict::default();
    let mut reads: Vec<(u32, Record)> = Vec::new();
    for worker in case.lived.iter().copied() {
        let own = whole(&reads_file(folder, worker, &case.part), &mut verdict.missing);
        if case.awake.contains(&worker) {
            verdict.longest_silence = verdict.longest_silence.max(longest_silence(&own, case));
        }
        reads.extend(own.into_iter().map(|read| (worker, read)));
    }
    reads.sort_unstable_by_key(|(_, read)| read.begun);
    let mut writes = case.writes.clone();
    for worker in 1..case.workers {
        writes.extend(whole(&writes_file(folder, worker), &mut verdict.missing));
    }
    let (history, places) = history(&writes, &reads, case, &mut verdict);
    verdict.writes = writes
        .iter()
        .filter(|write| write.kind == Kind::Committed && (case.from..case.to).contains(&write.ended))
        .count() as u64;
    let mut judge = history.judge(case.bound);
    judge.window(&case.part, Duration::from_nanos(case.from), Duration::from_nanos(case.to));
    for (worker, read) in &reads {
        let (begun, ended) = (Duration::from_nanos(read.begun), Duration::from_nanos(read.ended));
        let inside = read.begun < case.to && read.ended >= case.from;
        if inside
            && read.within_ms == 0
            && case.awake.contains(worker)
            && ended - begun > verdict.longest_read
        {
            verdict.longest_read = ended - begun;
            verdict.longest_was = format!("{:?} of {read:?} on {worker}", read.kind);
        }
        if read.kind == Kind::NoAnswer {
            judge.failed(begun, ended);
            continue;
        }
        let mut answer = Answer::new(
            u64::from(read.key),
            Some(read.value),
            freshness(read.flag),
            [Tier::Local, Tier::Remote, Tier::Load][usize::from(read.tier)],
            begun,
            ended,
        );
        answer.instance = *worker;
        answer.at_least = places.get(&read.demanded).copied().filter(|_| read.kind == Kind::TokenAnswer);
        answer.within = read.within_ms.checked_sub(1).map(|ms| Duration::from_millis(ms.into()));
        judge.read(&answer);
    }
    let report = judge.report();
    verdict.reads = report.all.reads;
    verdict.flagged = report.all.flagged;
    verdict.failed = report.all.failed;
    verdict.worst = report.all.worst;
    verdict.violations = report.all.violations;
    verdict.described = report.violations.iter().map(ToString::to_string).collect();
    verdict
}

/// A history, which a worker under load always has.
fn whole(file: &Path, missing: &mut Vec<String>) -> Vec<Record> {
    let records = read_file(file);
    match &records {
        Ok(records) if !records.is_empty() => {}
        Ok(_) => missing.push(format!("{} is empty", file.display())),
        Err(error) => missing.push(format!("{}: {error}", file.display())),
    }
    records.unwrap_or_default()
}

fn freshness(flag: Flag) -> Freshness {
    match flag {
        Flag::Fresh => Freshness::Fresh,
        Flag::Unverified => Freshness::Unverified { since: Duration::ZERO },
        Flag::Stale => Freshness::Stale(StaleCause::Replica),
    }
}

fn longest_silence(reads: &[Record], case: &Case) -> Duration {
    let answered = reads.iter().filter(|read| read.kind != Kind::NoAnswer).map(|read| read.ended);
    let mut times: Vec<u64> = answered.filter(|at| (case.from..case.to).contains(at)).collect();
    times.extend([case.from, case.to]);
    times.sort_unstable();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max();
    Duration::from_nanos(longest.unwrap_or(0))
}

/// The history of all keys, and the place of each value in it.
fn history(
    writes: &[Record],
    reads: &[(u32, Record)],
    case: &Case,
    verdict: &mut Verdict,
) -> (History, HashMap<u64, usize>) {
    let mut history = History::new();
    let read: HashSet<u32> = reads.iter().map(|(_, read)| read.key).collect();
    let mut places = HashMap::new();
    for key in read.iter().copied().map(u64::from) {
        // Where it began. A reader may demand that too, and a failover may take the row back to it.
        places.insert(key, history.wrote(key, Some(key), Duration::ZERO, Some(Duration::ZERO)));
    }
    for write in in_order(writes, reads).into_iter().filter(|write| read.contains(&write.key)) {
        let key = u64::from(write.key);
        if write.kind == Kind::Rewound {
            if history.latest(key) == Some(write.value) {
                continue;
            }
            verdict.lost += u64::from((case.from..case.to).contains(&write.ended));
        }
        let acked = (write.kind != Kind::Unknown).then(|| Duration::from_nanos(write.ended));
        let place = history.wrote(key, Some(write.value), Duration::from_nanos(write.begun), acked);
        places.entry(write.value).or_insert(place);
    }
    (history, places)
}

/// Writes that took effect or may have, in the order of the timelines and of the versions.
fn in_order(writes: &[Record], reads: &[(u32, Record)]) -> Vec<Record> {
    let mut outcomes: HashMap<u64, Record> = HashMap::new();
    let mut taken_back = Vec::new();
    for write in writes {
        match write.kind {
            Kind::Rewound => taken_back.push(*write),
            // Whoever died after the intent leaves it at that.
            Kind::Intent => {
                outcomes.entry(write.value).or_insert(Record { kind: Kind::Unknown, ..*write });
            }
            _ => {
                outcomes.insert(write.value, *write);
            }
        }
    }
    let seen: HashMap<u64, u64> = reads.iter().map(|(_, read)| (read.value, read.version)).collect();
    let committed: HashSet<(u32, u32, u64)> = outcomes
        .values()
        .filter(|write| write.kind == Kind::Committed)
        .map(|write| (write.key, write.timeline, write.version))
        .collect();
    let first_timeline = outcomes.values().map(|write| write.timeline).filter(|timeline| *timeline > 0).min();
    let mut ordered: Vec<Record> = outcomes
        .into_values()
        .filter(|write| write.kind != Kind::Undone)
        .filter_map(|mut write| {
            if write.kind == Kind::Unknown {
                // The row itself says which version it became, if anybody read it.
                write.version = seen.get(&write.value).copied().unwrap_or(write.version);
                if write.timeline == 0 {
                    let since = taken_back.iter().filter(|back| back.ended <= write.begun);
                    write.timeline = since.map(|back| back.timeline).max().or(first_timeline)?;
                }
                // It was rolled back where another one became the same version.
                let replaced = committed.contains(&(write.key, write.timeline, write.version));
                if write.version == 0 || replaced {
                    return None;
                }
            }
            Some(write)
        })
        .chain(taken_back.iter().copied())
        .collect();
    ordered.sort_unstable_by_key(|write| (write.key, write.timeline, write.version, write.ended));
    ordered
}
