//! A hit of L1 beside a bare `moka::sync` get of an `Arc`, each in a process of its own, in turns: medians of the ratios.
//!
//! `make bench ARGS='--bench l1'`. Prints Markdown; with `BENCH_JSON=FILE` also appends a line of JSON for each bar.
#![allow(
    missing_docs,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bench"
)]
#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::missing_panics_doc,
    unreachable_pub,
    dead_code,
    reason = "a bench"
)]

mod setup;

use std::hash::BuildHasher as _;
use std::hint::black_box;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use setup::{Bed, Id, ROWS, bare_moka, median, report, zipf};

/// Rounds. Each runs every configuration once.
const ROUNDS: usize = 7;
const TIME: Duration = Duration::from_millis(1_500);
/// Hits between two looks at whether the time is over.
const BATCH: usize = 1_024;

/// What reads, what it reads (`zipf`: ten thousand keys, `hot`: one), and by how many threads at once.
type Run = (&'static str, &'static str, usize);

/// `clock` is no read: the key is hashed and the clock asked, as by a hit, and nothing is shared. What two threads of the machine are worth.
const RUNS: [Run; 12] = [
    ("moka", "zipf", 1),
    ("get", "zipf", 1),
    ("get_ref", "zipf", 1),
    ("moka", "zipf", 2),
    ("get", "zipf", 2),
    ("get_ref", "zipf", 2),
    ("get", "hot", 1),
    ("get", "hot", 2),
    ("get_ref", "hot", 1),
    ("get_ref", "hot", 2),
    ("clock", "hot", 1),
    ("clock", "hot", 2),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [what, keys, tasks] = arguments.as_slice() {
        let tasks = tasks.parse().expect("TASKS is a number");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
        println!("{}", runtime.block_on(child(what, keys, tasks)));
        return;
    }
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    for round in 0..ROUNDS {
        eprint!("\rround {} of {ROUNDS}", round + 1);
        rounds.push(RUNS.iter().map(apart).collect());
    }
    eprintln!();
    let ratios = |run: Run, of: Run| -> Vec<f64> {
        let at = |run| RUNS.iter().position(|other| *other == run).expect("it was run");
        rounds.iter().map(|round| round[at(run)] / round[at(of)]).collect()
    };
    println!("| Hits | threads | ns a hit | ratio to moka | from, to |\n| --- | ---: | ---: | ---: | ---: |");
    for (at, (what, keys, tasks)) in RUNS.iter().enumerate() {
        let all: Vec<f64> = rounds.iter().map(|round| round[at]).collect();
        print!("| {what}, {keys} | {tasks} | {:.0} ", median(&all));
        if *keys == "zipf" && *what != "moka" {
            let mut ratios = ratios((what, keys, *tasks), ("moka", keys, *tasks));
            ratios.sort_by(f64::total_cmp);
            println!("| {:.2} | {:.2}, {:.2} |", median(&ratios), ratios[0], ratios[ratios.len() - 1]);
        } else {
            println!("| | |");
        }
    }
    let report = |name: &str, samples: &[f64]| {
        println!("{name}: {:.2}", median(samples));
        report(name, samples);
    };
    report("l1_hit_vs_moka", &ratios(("get", "zipf", 1), ("moka", "zipf", 1)));
    report("l1_hit_2tasks_vs_moka", &ratios(("get", "zipf", 2), ("moka", "zipf", 2)));
    // Throughput: half the time a hit where two do twice as many.
    let doubled = |what| -> Vec<f64> {
        ratios((what, "hot", 2), (what, "hot", 1)).iter().map(|ratio| 2.0 / ratio).collect()
    };
    report("l1_hot_key_2tasks_vs_1", &doubled("get"));
    report("l1_hot_key_get_ref_2tasks_vs_1", &doubled("get_ref"));
    report("nothing_shared_2tasks_vs_1", &doubled("clock"));
}

/// Nanoseconds of one hit, measured in another process.
fn apart((what, keys, tasks): &Run) -> f64 {
    let this = std::env::current_exe().expect("this program");
    let output = Command::new(this).args([what, keys, &*tasks.to_string()]).output().expect("start");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

async fn child(what: &str, keys: &str, tasks: usize) -> f64 {
    let all: Vec<String> = (0..ROWS).map(|id| String::from(Id(id))).collect();
    let order: Vec<u16> = match keys {
        "hot" => vec![7; 1 << 16],
        _ => zipf(1 << 16).into_iter().map(|id| id as u16).collect(),
    };
    let keys = |at: usize| &all[usize::from(order[at % order.len()])];
    if what == "moka" {
        let cache = bare_moka::<String>();
        return measured(tasks, |at| drop(black_box(cache.get(keys(at)))));
    }
    if what == "clock" {
        let hasher = std::hash::RandomState::new();
        return measured(tasks, |at| {
            black_box((
                hasher.hash_one(keys(at)),
                rustix::time::clock_gettime(rustix::time::ClockId::Boottime),
            ));
        });
    }
    let bed = Bed::make().await;
    let (perto, cache) = bed.instance::<String>(64 << 20).await;
    cache.get_many(&all).await.expect("load");
    let _size = cache.size();
    let before = cache.stats();
    let took = match what {
        "get" => measured(tasks, |at| drop(black_box(cache.get(keys(at)).now_or_never()))),
        _ => measured(tasks, |at| {
            black_box(cache.get_ref(keys(at), |message| message.map(|message| message.id)));
        }),
    };
    assert_eq!(cache.stats().loads, before.loads, "all are hits");
    perto.shutdown().await;
    bed.clean_up().await;
    took
}

/// Nanoseconds that one call takes where so many threads call at once.
fn measured(tasks: usize, hit: impl Fn(usize) + Sync) -> f64 {
    let (barrier, ended, calls) = (Barrier::new(tasks + 1), AtomicBool::new(false), AtomicU64::new(0));
    let mut took = Duration::ZERO;
    std::thread::scope(|scope| {
        for task in 0..tasks {
            let (barrier, ended, calls, hit) = (&barrier, &ended, &calls, &hit);
            scope.spawn(move || {
                // Not all the same keys at the same time.
                let mut at = task * 9_973;
                (0..50_000).for_each(hit);
                barrier.wait();
                let mut own = 0;
                while !ended.load(Ordering::Relaxed) {
                    (0..BATCH).for_each(|next| hit(at + next));
                    at += BATCH;
                    own += BATCH as u64;
                }
                calls.fetch_add(own, Ordering::Relaxed);
            });
        }
        barrier.wait();
        let begun = Instant::now();
        std::thread::sleep(TIME);
        ended.store(true, Ordering::Relaxed);
        took = begun.elapsed();
    });
    took.as_nanos() as f64 * tasks as f64 / calls.load(Ordering::Relaxed) as f64
}
