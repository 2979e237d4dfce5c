//! The schedule: one fault after the other under the same load, each until everything is repaired, and then judged.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::On;
use crate::faults::{Caused, Fault};
use crate::fleet::{Pace, coherent};
use crate::record::now_ns;
use crate::report::{Line, Report};
use crate::stats::unmet;
use crate::verdict::{Case, judge};
use crate::worker::{LOAD_TIMEOUT, REMOTE_TIMEOUT};
use crate::world::World;

/// How long repairs may take before they count as hanging.
const REPAIRED: Duration = Duration::from_secs(30);
/// What scheduling may add to a read's limits on a busy machine, where three workers, two servers and the schedule share
/// its cores.
pub(crate) const SLACK: Duration = Duration::from_millis(500);
/// What a worker may grow to. L1 is 64 MiB by its own count; the rest is for what waits in outages.
const MEMORY_KIB: u64 = 384 << 10;
/// What a worker may have open more than when it was warm.
const FILES: usize = 24;
/// Quiet time after a repair.
const SETTLE: Duration = Duration::from_millis(300);

/// The longest that a read may take by its settings: L2, then a load, which includes the wait for a place and for a
/// connection.
pub(crate) fn read_limit() -> Duration {
    REMOTE_TIMEOUT + LOAD_TIMEOUT + SLACK
}

pub(crate) struct Plan<'a> {
    pub(crate) faults: Vec<&'a Fault>,
    pub(crate) time: Duration,
    pub(crate) pace: Pace,
    pub(crate) workers: u32,
    pub(crate) on: On,
}

/// Runs it all. Trouble with the run itself is an error; what is wrong with the instances is in the report.
pub(crate) async fn run(plan: &Plan<'_>, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    let mut world = Box::pin(World::start(folder, plan.pace, plan.workers, plan.on)).await?;
    let outcome = Box::pin(faults(plan, &mut world, report)).await;
    for worker in std::mem::take(&mut world.workers) {
        report.wrong.extend(worker.stop().await);
    }
    // Also what those said that were killed.
    for worker in 1..world.next_worker {
        let events = std::fs::read_to_string(folder.join(format!("events-{worker}")))?;
        if let Some(violation) = events.lines().find(|line| line.contains("AuditViolation")) {
            report.wrong.push(format!("worker {worker} said {violation}"));
        }
    }
    if report.audits() == 0 {
        report.wrong.push("no auditor compared anything".to_owned());
    }
    if outcome.is_err() || !report.is_good() {
        for (log, name) in [(world.redis.log(), "redis.log"), (world.postgres.log(), "postgres.log")] {
            drop(std::fs::copy(log, folder.join(name)));
        }
    }
    outcome
}

async fn faults(plan: &Plan<'_>, world: &mut World, report: &mut Report) -> anyhow::Result<()> {
    coherent(&mut world.workers, REPAIRED, &mut String::new()).await?;
    report.begin(&world.programs().await?);
    // Warm.
    tokio::time::sleep(SETTLE * 2).await;
    for fault in &plan.faults {
        let line = one(plan, fault, world).await.with_context(|| format!("during {}", fault.name))?;
        report.add(line);
    }
    Ok(())
}

async fn one(plan: &Plan<'_>, fault: &Fault, world: &mut World) -> anyhow::Result<Line> {
    let part = world.part.clone();
    for worker in &mut world.workers {
        worker.at_first();
    }
    let before = world.stats().await?;
    let from = now_ns();
    let caused: Caused = (fault.cause)(world, plan.time).await?;
    let healed = now_ns();
    let mut wrong: Vec<String> =
        caused.untrue.iter().map(|untrue| format!("it did not take place: {untrue}")).collect();
    let mut waited_for = String::new();
    let coherent_after = match coherent(&mut world.workers, REPAIRED, &mut waited_for).await {
        Ok(at) => Some(Duration::from_nanos(at - healed)),
        Err(error) => {
            wrong.push(format!("{error:#}"));
            None
        }
    };
    let seen_after = match world.probe(REPAIRED).await {
        Ok(after) => Some(after),
        Err(error) => {
            wrong.push(format!("a write after the repair is not seen: {error:#}"));
            None
        }
    };
    tokio::time::sleep(SETTLE).await;
    let after = world.stats().await?;
    wrong.extend(unmet(&caused.demands, caused.demanded_of, &before, &after));
    let to = now_ns();
    world.cut(&format!("after-{}", fault.name)).await?;
    let mut awake: Vec<u32> = world.workers.iter().map(|worker| worker.number).collect();
    // Also those that died in it.
    let mut lived: Vec<u32> = before.keys().chain(after.keys()).copied().collect();
    lived.sort_unstable();
    lived.dedup();
    awake.retain(|number| !caused.excused.contains(number));
    let case = Case {
        part,
        from,
        to,
        lived,
        awake,
        bound: plan.pace.bound,
        workers: world.next_worker,
        writes: world.all_writes(),
    };
    let (folder, judged) = (world.folder.clone(), case.part.clone());
    let verdict = tokio::task::spawn_blocking(move || judge(&folder, &case)).await?;
    for worker in &mut world.workers {
        let (first, now) = (worker.at_first(), worker.usage());
        if now.peak_kib > MEMORY_KIB {
            wrong.push(format!("worker {} has used {} MiB", worker.number, now.peak_kib >> 10));
        }
        if now.files > first.files + FILES {
            wrong.push(format!(
                "worker {} has {} files open, at first {}",
                worker.number, now.files, first.files
            ));
        }
        wrong.extend(worker.panics());
    }
    if verdict.longest_read > read_limit() {
        let (longest, was) = (verdict.longest_read, &verdict.longest_was);
        wrong.push(format!("a read took {longest:.2?}, longer than {:.2?}: {was}", read_limit()));
    }
    wrong.extend(verdict.missing.iter().map(|missing| format!("a history is missing: {missing}")));
    if caused.loses && verdict.lost == 0 {
        wrong.push("it did not take place: no commit was lost".to_owned());
    }
    let mut audits = 0;
    for (number, now) in &after {
        let first = before.get(number).copied().unwrap_or_default();
        audits += now.audits - first.audits;
        let violations = now.audit_violations - first.audit_violations;
        if violations > 0 {
            wrong.push(format!(
                "the auditor of worker {number} found {violations} values that nothing explains"
            ));
        }
    }
    if verdict.reads == 0 || verdict.writes == 0 {
        wrong.push("nothing was read or nothing was written".to_owned());
    }
    if verdict.violations == 0 && wrong.is_empty() {
        // Nothing to be looked at later.
        (1..world.next_worker).for_each(|worker| {
            drop(std::fs::remove_file(crate::record::reads_file(&world.folder, worker, &judged)));
        });
    }
    let peak_kib = world.workers.iter().map(|worker| worker.usage().peak_kib).max().unwrap_or(0);
    let note = format!("{} {waited_for}", caused.note);
    Ok(Line { name: fault.name, verdict, coherent_after, seen_after, note, wrong, peak_kib, audits })
}
