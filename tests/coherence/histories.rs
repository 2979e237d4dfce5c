//! Random histories: three instances, writers that commit in any order or not at all, and every fault there is. A
//! checker knows what each key was at each moment, and judges every answer.
//!
//! A seed decides all that happens and when: it replays exactly. A history that fails is made smaller before it is shown.
//!
//! `PERTO_SEEDS=10000` runs that many histories, `PERTO_SEED=7` one of them. `make soak` runs as many as fit into an hour.

use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

mod plan;
mod world;

use crate::ring::BOUND;
use plan::Plan;
use world::{Journal, Totals, World};

const STEPS: usize = 250;
const SEEDS: u64 = 2_000;
/// Smaller histories tried after a failure, unless `PERTO_SHRINKS` says otherwise.
const SHRINKS: u64 = 2_000;
/// Lines shown before what was wrong.
const SHOWN: usize = 60;

#[test]
fn no_history_of_random_faults_shows_a_fresh_value_older_than_the_bound() {
    let seeds = match (number("PERTO_SEED"), number("PERTO_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, count) => 1..count.unwrap_or(SEEDS) + 1,
    };
    let enough = seeds.end - seeds.start >= 200;
    let totals = run(seeds, None);
    // Histories in which nothing happens would prove nothing.
    let of_many = [totals.pairs, totals.views, totals.session, totals.switched];
    let seen = [totals.fresh, totals.local, totals.remote, totals.refused, totals.repairs, totals.audits];
    let seen: Vec<_> = seen.into_iter().chain(of_many).collect();
    assert!(!enough || seen.iter().all(|count| *count > 300), "{totals:?}");
    // In half of the histories.
    let in_half = [totals.invalidated, totals.expired, totals.unmodified];
    assert!(!enough || in_half.iter().all(|count| *count > 30), "{totals:?}");
}

/// `PERTO_SOAK_SECONDS` (an hour), from seed `PERTO_SOAK_FROM` (by the clock) on.
#[test]
#[ignore = "runs for an hour: make soak"]
fn soak() {
    let limit = Duration::from_secs(number("PERTO_SOAK_SECONDS").unwrap_or(3_600));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    // Each hour another million.
    let first = number("PERTO_SOAK_FROM").unwrap_or_else(|| now.as_secs() / 3_600 * 1_000_000_000);
    run(first..u64::MAX, Some(limit));
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 1..=60 {
        let [first, second] = [(); 2].map(|()| live(&plan_of(seed)));
        assert_eq!(first.journal.lines.len(), second.journal.lines.len(), "seed {seed}");
        for (at, (one, other)) in first.journal.lines.iter().zip(&second.journal.lines).enumerate() {
            assert_eq!(one, other, "seed {seed}, line {at}");
        }
        assert_eq!(first.journal.totals, second.journal.totals);
    }
}

/// The checker, the faults and the shrinking at work: a reader that flags what is stale as fresh is found out.
#[test]
fn a_history_that_lies_is_caught_and_made_smaller() {
    let mut lies = |plan: &Plan| {
        let mut lived = live(plan);
        for (answer, _) in &mut lived.journal.answers {
            answer.freshness = perto::Freshness::Fresh;
        }
        judge(lived).err()
    };
    let (seed, reason) = (1..=50).find_map(|seed| lies(&plan_of(seed)).map(|reason| (seed, reason))).unwrap();
    assert!(reason.contains("fresh, and stale by"), "{reason}");
    let (smaller, reason) = shrink(seed, 400, &mut lies).unwrap();
    assert!(smaller.steps.len() < plan_of(seed).steps.len(), "{} steps left", smaller.steps.len());
    assert!(reason.contains("fresh, and stale by"), "{reason}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}: {text:?} is no number")))
}

/// Runs the histories of these seeds on all cores, for a limited time.
fn run(seeds: std::ops::Range<u64>, limit: Option<Duration>) -> Totals {
    let (begun, next, stop) = (Instant::now(), AtomicU64::new(seeds.start), AtomicBool::new(false));
    let (totals, failed) = (Mutex::new((Totals::default(), 0_u64)), Mutex::new(None));
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || limit.is_some_and(|limit| begun.elapsed() > limit) {
                return;
            }
            match judge(live(&plan_of(seed))) {
                Ok(seen) => {
                    let mut totals = totals.lock();
                    totals.0.add(&seen);
                    totals.1 += 1;
                    if limit.is_some() && totals.1 % 10_000 == 0 {
                        progress(&totals.0, totals.1, begun.elapsed());
                    }
                }
                Err(reason) => {
                    stop.store(true, Ordering::Relaxed);
                    failed.lock().get_or_insert((seed, reason));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    if let Some((seed, reason)) = failed.into_inner() {
        let (plan, reason) =
            shrink(seed, number("PERTO_SHRINKS").unwrap_or(SHRINKS), &mut |plan| judge(live(plan)).err())
                .unwrap_or((plan_of(seed), reason));
        let steps: Vec<String> =
            plan.steps.iter().map(|step| format!("  {:?}, {:?}", step.what, step.pause)).collect();
        panic!(
            "{reason}\nin {} steps with a time to live of {:?}, stale: {:?}:\n{}\nto replay: PERTO_SEED={seed} cargo test --test coherence no_history",
            steps.len(),
            plan.ttl,
            plan.stale,
            steps.join("\n"),
        );
    }
    let (totals, histories) = totals.into_inner();
    if limit.is_some() {
        progress(&totals, histories, begun.elapsed());
    }
    totals
}

fn progress(totals: &Totals, histories: u64, took: Duration) {
    let rate = histories.checked_div(took.as_secs()).unwrap_or(histories);
    drop(writeln!(
        std::io::stderr(),
        "{histories} histories in {} s, {rate} a second; reads: {} fresh, {} flagged, {} failed; {} crashes; violations: {}",
        took.as_secs(),
        totals.fresh,
        totals.flagged,
        totals.failed,
        totals.crashes,
        totals.violations,
    ));
}

/// What happens by a seed.
fn plan_of(seed: u64) -> Plan {
    tree_of(seed).current()
}

fn tree_of(seed: u64) -> impl ValueTree<Value = Plan> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner =
        TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::default() }, random);
    plan::plans(STEPS).new_tree(&mut runner).expect("plans have no filters")
}

/// The smallest history found that still fails, and why it does.
fn shrink(seed: u64, most: u64, fails: &mut impl FnMut(&Plan) -> Option<String>) -> Option<(Plan, String)> {
    let mut tree = tree_of(seed);
    let mut smallest = fails(&tree.current()).map(|reason| (tree.current(), reason))?;
    for _ in 0..most {
        if !tree.simplify() {
            break;
        }
        match fails(&tree.current()) {
            Some(reason) => smallest = (tree.current(), reason),
            None if tree.complicate() => {}
            None => break,
        }
    }
    Some(smallest)
}

struct Lived {
    journal: Journal,
    panicked: Option<String>,
}

/// Lives through a plan, on virtual time.
fn live(plan: &Plan) -> Lived {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let journal = Arc::new(Mutex::new(runtime.block_on(async { Journal::new() })));
    let running = World::run(plan.clone(), Arc::clone(&journal));
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(running)));
    let panicked = ran.err().map(|panic| match panic.downcast_ref::<String>() {
        Some(text) => text.clone(),
        None => "panicked".to_owned(),
    });
    let journal = std::mem::replace(&mut *journal.lock(), runtime.block_on(async { Journal::new() }));
    Lived { journal, panicked }
}

/// Whether every answer was right; else what was wrong first, and what happened before.
fn judge(lived: Lived) -> Result<Totals, String> {
    let Lived { journal, panicked } = lived;
    let Journal { lines, history, answers, wrong, failed, mut totals, .. } = journal;
    let mut judge = history.judge(BOUND);
    for (answer, _) in &answers {
        judge.read(answer);
    }
    let report = judge.report();
    totals.violations += report.all.violations;
    totals.failed += failed;
    let line_of = |answer: &perto::history::Answer| {
        answers
            .iter()
            .find(|(a, _)| (a.begun, a.key, a.instance) == (answer.begun, answer.key, answer.instance))
    };
    // What was wrong first explains a panic later.
    let first = report.violations.first().map(|violation| {
        (violation.to_string(), line_of(&violation.answer).map_or(lines.len(), |(_, line)| *line))
    });
    let (reason, line) = match (first, wrong, panicked) {
        (Some(first), ..) => first,
        (None, Some(wrong), _) => wrong,
        (None, None, Some(panicked)) => (panicked, lines.len()),
        (None, None, None) => return Ok(totals),
    };
    Err(format!("{}\n{reason}", lines[line.saturating_sub(SHOWN)..line].join("\n")))
}
