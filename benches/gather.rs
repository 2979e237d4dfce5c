//! What comes together goes together: look-ups into L2 and loads of many tasks beside the bare client, in turns in one
//! run. Medians of the rounds' ratios.
//!
//! `make bench ARGS='--bench gather'`, with `-- look_ups`, `-- cold` or `-- start` for a part of it. `ROUNDS` in the environment takes another number of rounds. Prints Markdown.
#![allow(
    missing_docs,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a bench"
)]
#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::missing_panics_doc,
    unreachable_pub,
    dead_code,
    reason = "a bench"
)]

mod setup;

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use perto::{Cache, Tier};
use redis::aio::MultiplexedConnection;
use setup::{Bed, Message, ROWS, report};
use tokio::task::JoinSet;

const ROUNDS: usize = 7;
/// Of each side in each round.
const TURN: Duration = Duration::from_millis(700);
/// Tasks that read what is cached nowhere.
const COLD_TASKS: i64 = 64;
/// Rows of a table that all are read after a start.
const START_ROWS: i64 = 100_000;
/// Reads of one task in a round, each of which is timed.
const ALONE: usize = 3_000;

/// Reads that L2 did not answer.
static ELSEWHERE: AtomicU64 = AtomicU64::new(0);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let bed = Bed::make().await;
    bed.watch().await;
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|word| word == name);
    if wanted("look_ups") {
        look_ups(&bed, rounds).await;
    }
    if wanted("cold") {
        cold(&bed, ROWS, rounds).await;
    }
    if wanted("start") {
        bed.grow(START_ROWS).await;
        cold(&bed, START_ROWS, rounds.div_ceil(2)).await;
    }
    bed.clean_up().await;
}

/// Every row read once, with nothing cached anywhere, by tasks that ask for one at a time.
async fn cold(bed: &Bed, rows: i64, rounds: usize) {
    let sql: &'static str = bed.load_sql().leak();
    let mut both = Vec::new();
    let (mut calls, mut round_trips) = (0, 0);
    for _ in 0..rounds {
        let pool = bed.pool.clone();
        let bare = once(rows, move |id| query_bare(pool.clone(), sql, id)).await;
        bed.forget().await;
        let (perto, cache) = bed.instance::<i64>(256 << 20).await;
        let before = bed.redis_calls().await;
        let ours = once(rows, {
            let cache = cache.clone();
            move |id| get_cold(cache.clone(), id)
        })
        .await;
        calls += cache.stats().loads;
        round_trips += bed.redis_calls().await - before;
        perto.shutdown().await;
        both.push((bare, ours));
    }
    let (bare, ours, ratio) = medians(&both);
    let name = if rows == ROWS { "cold" } else { "start" };
    report(&format!("{name}_tasks{COLD_TASKS}_vs_queries"), &ratios(&both));
    let per_round = rounds as u64;
    println!(
        "\n| {rows} misses by {COLD_TASKS} tasks | single queries | Perto | ratio |\n| --- | ---: | ---: | ---: |"
    );
    println!("| rows a second | {bare:.0} | {ours:.0} | {ratio:.2} × |");
    println!(
        "\n{} calls of the loader and {} commands to Redis a round.",
        calls / per_round,
        round_trips / per_round
    );
}

async fn query_bare(pool: sqlx::PgPool, sql: &'static str, id: i64) {
    let query = sqlx::query_as::<_, (i64, String, String)>(sql).bind(vec![id]);
    black_box(query.fetch_all(&pool).await.expect("query"));
}

async fn get_cold(cache: Cache<i64, Message>, id: i64) {
    black_box(cache.get(&id).await.expect("read"));
}

/// Each row once, in a second.
async fn once<F: Future<Output = ()> + Send + 'static>(
    rows: i64,
    read: impl Fn(i64) -> F + Clone + Send + 'static,
) -> f64 {
    let (began, mut all) = (Instant::now(), JoinSet::new());
    for task in 0..COLD_TASKS {
        let read = read.clone();
        all.spawn(async move {
            for id in (task..rows).step_by(COLD_TASKS as usize) {
                read(id).await;
            }
        });
    }
    all.join_all().await;
    rows as f64 / began.elapsed().as_secs_f64()
}

async fn look_ups(bed: &Bed, rounds: usize) {
    let (perto, cache) = bed.instance::<i64>(0).await;
    let all: Vec<i64> = (0..ROWS).collect();
    // Fills are not awaited.
    while !cache.get_many(&all).await.expect("load").iter().all(|read| read.tier == Tier::Remote) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut redis = bed.connection().await;
    for id in 0..ROWS {
        let message = Message { id, author: format!("author {id}"), body: "x".repeat(230) };
        let bytes = bincode::serde::encode_to_vec(message, bincode::config::standard()).expect("encode");
        // A value in a cache has a time to live, which the server looks up with each read.
        let set = redis::cmd("SET").arg(bare_key(bed, id)).arg(bytes).arg("EX").arg(3_600).to_owned();
        set.query_async::<()>(&mut redis).await.expect("SET");
    }
    let keys: &'static [String] = (0..ROWS).map(|id| bare_key(bed, id)).collect::<Vec<_>>().leak();
    println!("\n| L2 hits | GET + decode | Perto | ratio |\n| --- | ---: | ---: | ---: |");
    for tasks in [64, 512] {
        let mut both = Vec::new();
        for _ in 0..rounds {
            let bare = by_tasks(tasks, {
                let redis = redis.clone();
                move |id| get_bare(redis.clone(), &keys[id as usize])
            })
            .await;
            let ours = by_tasks(tasks, {
                let cache = cache.clone();
                move |id| get_l2(cache.clone(), id)
            })
            .await;
            both.push((bare, ours));
        }
        let (bare, ours, ratio) = medians(&both);
        report(&format!("l2_tasks{tasks}_vs_get"), &ratios(&both));
        println!("| {tasks} tasks, a second | {bare:.0} | {ours:.0} | {ratio:.2} × |");
    }
    let mut both = Vec::new();
    for round in 0..rounds {
        let (mut bare, mut ours) = (Vec::with_capacity(ALONE), Vec::with_capacity(ALONE));
        for n in 0..ALONE {
            let id = ((round * ALONE + n) * 7_919) as i64 % ROWS;
            let began = Instant::now();
            get_bare(redis.clone(), &keys[id as usize]).await;
            bare.push(began.elapsed().as_secs_f64() * 1e6);
            let began = Instant::now();
            get_l2(cache.clone(), id).await;
            ours.push(began.elapsed().as_secs_f64() * 1e6);
        }
        both.push((median(&mut bare), median(&mut ours)));
    }
    let (bare, ours, ratio) = medians(&both);
    report("l2_hit_p50_vs_get", &ratios(&both));
    println!("| one task, p50 µs | {bare:.1} | {ours:.1} | {ratio:.2} × |");
    println!("\n{} reads were not answered by L2.", ELSEWHERE.load(Ordering::Relaxed));
    perto.shutdown().await;
}

fn bare_key(bed: &Bed, id: i64) -> String {
    format!("perto:{}:bare:{id}", bed.schema)
}

async fn get_bare(mut redis: MultiplexedConnection, key: &str) {
    let bytes: bytes::Bytes = redis::cmd("GET").arg(key).query_async(&mut redis).await.expect("GET");
    let message: (Message, usize) =
        bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).expect("decode");
    black_box(message);
}

async fn get_l2(cache: Cache<i64, Message>, id: i64) {
    let read = cache.get(&id).await.expect("read");
    ELSEWHERE.fetch_add(u64::from(read.tier != Tier::Remote), Ordering::Relaxed);
    black_box(read);
}

/// How often a second so many tasks do it, each with keys of its own.
async fn by_tasks<F: Future<Output = ()> + Send + 'static>(
    tasks: i64,
    read: impl Fn(i64) -> F + Clone + Send + 'static,
) -> f64 {
    let (began, mut all) = (Instant::now(), JoinSet::new());
    for task in 0..tasks {
        let read = read.clone();
        all.spawn(async move {
            let (mut id, mut done) = (task, 0_u64);
            while began.elapsed() < TURN {
                read(id).await;
                id = (id + tasks) % (ROWS / tasks * tasks);
                done += 1;
            }
            done
        });
    }
    let done: u64 = all.join_all().await.into_iter().sum();
    done as f64 / began.elapsed().as_secs_f64()
}

fn median(all: &mut [f64]) -> f64 {
    all.sort_unstable_by(f64::total_cmp);
    all[all.len() / 2]
}

fn ratios(both: &[(f64, f64)]) -> Vec<f64> {
    both.iter().map(|(bare, ours)| ours / bare).collect()
}

/// Of the bare side, of ours, and of the ratios of the rounds.
fn medians(both: &[(f64, f64)]) -> (f64, f64, f64) {
    let of = |each: fn(&(f64, f64)) -> f64| median(&mut both.iter().map(each).collect::<Vec<_>>());
    (of(|(bare, _)| *bare), of(|(_, ours)| *ours), of(|(bare, ours)| ours / bare))
}
