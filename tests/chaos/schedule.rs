//! The schedule: one fault after the other under the same load, each until everything is repaired, and then judged.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::faults::{Caused, Fault};
use crate::fleet::{Pace, coherent};
use crate::record::now_ns;
use crate::report::{Line, Report};
use crate::verdict::{Case, judge};
use crate::worker::{LOAD_TIMEOUT, REMOTE_TIMEOUT};
use crate::world::World;

/// How long repairs may take before they count as hanging.
const REPAIRED: Duration = Duration::from_secs(30);
/// What scheduling may add to a read's limits on a busy machine.
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
}

/// Runs it all. Trouble with the run itself is an error; what is wrong with the instances is in the report.
pub(crate) async fn run(plan: &Plan<'_>, folder: &Path, report: &mut Report) -> anyhow::Result<()> {
    let mut world = Box::pin(World::start(folder, plan.pace, plan.workers)).await?;
    let outcome = Box::pin(faults(plan, &mut world, report)).await;
    for worker in std::mem::take(&mut world.workers) {
        report.wrong.extend(worker.stop().await);
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
    let from = now_ns();
    let caused: Caused = (fault.cause)(world, plan.time).await?;
    let healed = now_ns();
    let mut wrong = Vec::new();
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
    let to = now_ns();
    world.cut(&format!("after-{}", fault.name)).await?;
    let mut awake: Vec<u32> = world.workers.iter().map(|worker| worker.number).collect();
    awake.retain(|number| !caused.excused.contains(number));
    let case = Case {
        part,
        from,
        to,
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
    if !fault.nothing_answers && verdict.longest_read > read_limit() {
        let (longest, was) = (verdict.longest_read, &verdict.longest_was);
        wrong.push(format!("a read took {longest:.2?}, longer than {:.2?}: {was}", read_limit()));
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
    Ok(Line { name: fault.name, verdict, coherent_after, seen_after, note, wrong, peak_kib })
}
