//! Several instances under pressure: a key that all miss, one that is written all the time, Postgres that was restarted, and a storm of
//! invalidations. On real engines, in one process.
//!
//! `make bench ARGS='--bench fleet'`, with `-- missing`, `-- hot`, `-- herd` or `-- storm` for a part of it. `SECONDS_EACH` in the
//! environment has each phase take another time. Prints Markdown.
#![allow(missing_docs, clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a bench")]
#![allow(clippy::cast_possible_wrap, clippy::cast_sign_loss, clippy::unwrap_used, reason = "a bench")]
#![allow(clippy::panic, clippy::print_stdout, clippy::missing_panics_doc, reason = "a bench")]
#![allow(clippy::disallowed_methods, clippy::expect_used, unreachable_pub, dead_code, reason = "a bench")]

mod setup;
#[path = "../tests/support/support.rs"]
mod support;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use perto::{
    Cache, CacheBuilder, Change, Freshness, Load, Perto, StaleWhileLoading, State, Tier, Token, postgres,
};
use setup::{Bed, Message, ROWS, median, report, zipf};
use sqlx::{AssertSqlSafe, PgPool};
use support::postgres::PrivatePostgres;
use tokio::task::JoinSet;

const ROUNDS: usize = 7;
const MISSING_INSTANCES: usize = 4;
const MISSING_READS: usize = 1_000;
const MISSING_LOAD: Duration = Duration::from_millis(50);
const HOT_INSTANCES: usize = 8;
const HOT_LOAD: Duration = Duration::from_millis(20);
const HOT_WRITES_A_SECOND: u64 = 20;
/// The longest loop that does nothing: a read without stale values takes a whole load.
const CONTROL: Duration = Duration::from_micros(100);
/// Invalidations a second in a storm, in statements of so many rows.
const STORM: u64 = 10_000;
const STORM_ROWS: i64 = 50;
/// Rows that the storm leaves alone, and that are read meanwhile.
const QUIET: i64 = 1_000;
/// Reads a second of each instance in the herd, of which one in twenty misses.
const HERD_READS: u64 = 400;

type Messages = Cache<i64, Message>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|word| word == name);
    if wanted("missing") {
        missing().await;
    }
    if wanted("hot") {
        hot().await;
    }
    if wanted("storm") {
        storm().await;
    }
    if wanted("herd") {
        for instances in [3, 16] {
            herd(instances).await;
        }
    }
}

fn seconds(default: u64) -> Duration {
    let told = std::env::var("SECONDS_EACH").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(told.unwrap_or(default))
}

/// What a loader counts, and how long it takes beside its query.
#[derive(Debug, Default)]
struct Source {
    takes: Duration,
    keys: AtomicU64,
    failures: AtomicU64,
}

async fn instance(
    bed: &Bed,
    redis: Option<&str>,
    source: &Arc<Source>,
    cache: impl FnOnce(CacheBuilder<i64, Message>) -> CacheBuilder<i64, Message>,
) -> (Perto, Messages) {
    let mut builder = Perto::builder(&bed.schema).schema(&bed.schema).postgres(&bed.postgres_url);
    if let Some(redis) = redis {
        builder = builder.redis(redis);
    }
    let perto = builder.build().expect("settings");
    let (pool, sql, source) = (bed.pool.clone(), bed.load_sql(), Arc::clone(source));
    let messages = cache(perto.cache("messages"))
        .loader(move |load: Load<i64>| {
            let query = postgres::query_as::<(i64, String, String)>(&sql).bind(load.keys.to_vec());
            let (pool, source) = (pool.clone(), Arc::clone(&source));
            async move {
                source.keys.fetch_add(load.keys.len() as u64, Ordering::Relaxed);
                tokio::time::sleep(source.takes).await;
                let rows = query.fetch(&pool).await.inspect_err(|_| {
                    source.failures.fetch_add(1, Ordering::Relaxed);
                })?;
                Ok::<_, sqlx::Error>(rows.by_key(|(id, author, body)| (id, Message { id, author, body })))
            }
        })
        .expect("cache");
    perto.start().await.expect("start");
    while perto.health().state != State::Coherent && perto.health().state != State::Isolated {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (perto, messages)
}

async fn update(bed: &Bed, pool: &PgPool, ids: std::ops::Range<i64>) -> Result<(), sqlx::Error> {
    let sql = format!("update {}.messages set author = author || '' where id >= $1 and id < $2", bed.schema);
    sqlx::query(AssertSqlSafe(sql)).bind(ids.start).bind(ids.end).execute(pool).await.map(drop)
}

fn quantile(took: &mut [f64], q: f64) -> f64 {
    took.sort_unstable_by(f64::total_cmp);
    took.get(((took.len().max(1) - 1) as f64 * q) as usize).copied().unwrap_or_default()
}

fn most(all: &[f64]) -> f64 {
    all.iter().copied().fold(0.0, f64::max)
}

/// A thousand reads at once of a key that nobody has, on four instances.
async fn missing() {
    println!("\n| 1,000 reads of a missing key, 4 instances, a load of 50 ms | loads | slowest, ms |");
    println!("| --- | ---: | ---: |");
    for (name, shared, redis) in [
        ("each instance for itself", false, true),
        ("single flight for the fleet", true, true),
        ("the same without Redis", true, false),
    ] {
        let bed = Bed::make().await;
        bed.watch().await;
        let source = Arc::new(Source { takes: MISSING_LOAD, ..Source::default() });
        let mut all = Vec::new();
        for _ in 0..MISSING_INSTANCES {
            let cache = |cache: CacheBuilder<_, _>| if shared { cache.fleet_single_flight() } else { cache };
            all.push(instance(&bed, redis.then_some(bed.redis_url.as_str()), &source, cache).await);
        }
        let (mut loads, mut slowest) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS as i64 {
            let before = source.keys.load(Ordering::Relaxed);
            let (began, mut reading) = (Instant::now(), JoinSet::new());
            for n in 0..MISSING_READS {
                let messages = all[n % MISSING_INSTANCES].1.clone();
                reading.spawn(async move { messages.get(&(100 + round)).await.expect("a read") });
            }
            assert!(reading.join_all().await.iter().all(|read| read.value().is_some()));
            slowest.push(began.elapsed().as_secs_f64() * 1e3);
            loads.push((source.keys.load(Ordering::Relaxed) - before) as f64);
        }
        println!("| {name} | {} (at most {}) | {:.1} |", median(&loads), most(&loads), most(&slowest));
        if shared && redis {
            report("fleet_single_flight_loads", &loads);
            report("fleet_single_flight_slowest_ms", &slowest);
        }
        for (perto, _) in all {
            perto.shutdown().await;
        }
        bed.clean_up().await;
    }
}

/// What readers of one instance saw.
#[derive(Default)]
struct Seen {
    /// Each read, in ms.
    took: Vec<f64>,
    flagged: u64,
    /// The longest read that waited for anything: that was polled more than once.
    waited: f64,
    /// After each read, a loop that looks at the clock for as long as that read took, and how much longer it was gone.
    control: Vec<f64>,
}

/// A key that is written 20 times a second and read all the time.
///
/// Eight instances, Redis and Postgres share the cores, and a thread may be put aside by the kernel. So the longest read says little
/// without the longest time for which a loop that does nothing was put aside, in the same tasks and of the same length.
async fn hot() {
    println!(
        "\n| a key written 20 times a second, read by 8 instances, a load of 20 ms | reads | p99, ms | longest, ms | that waited, ms | of a loop that does nothing, ms | stale | loads |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let bed = Bed::make().await;
    bed.watch().await;
    for (name, stale) in [("fresh only", false), ("stale while loading", true)] {
        let source = Arc::new(Source { takes: HOT_LOAD, ..Source::default() });
        let mut all = Vec::new();
        for _ in 0..HOT_INSTANCES {
            let keep = StaleWhileLoading::for_up_to(Duration::from_secs(5));
            let cache = |cache: CacheBuilder<_, _>| match stale {
                true => cache.stale_while_loading(keep).refresh_hot(),
                false => cache,
            };
            all.push(instance(&bed, Some(&bed.redis_url), &source, cache).await);
        }
        for (_, messages) in &all {
            messages.get(&7).await.expect("a read");
        }
        let over = Arc::new(AtomicBool::new(false));
        let mut reading = JoinSet::new();
        for (_, messages) in &all {
            let (messages, over) = (messages.clone(), Arc::clone(&over));
            reading.spawn(async move {
                let mut seen = Seen::default();
                while !over.load(Ordering::Relaxed) {
                    let mut polls = 0;
                    let began = Instant::now();
                    let mut reading = pin!(messages.get(&7));
                    let read = poll_fn(|cx| {
                        polls += 1;
                        reading.as_mut().poll(cx)
                    });
                    let read = read.await.expect("a read");
                    let took = began.elapsed();
                    seen.took.push(took.as_secs_f64() * 1e3);
                    seen.flagged += u64::from(read.freshness != Freshness::Fresh);
                    if polls > 1 {
                        seen.waited = seen.waited.max(took.as_secs_f64() * 1e3);
                    }
                    let (began, long) = (Instant::now(), took.min(CONTROL));
                    while began.elapsed() < long {
                        std::hint::spin_loop();
                    }
                    seen.control.push(began.elapsed().as_secs_f64() * 1e3);
                    // So that eight readers and the rest have two cores between them.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                seen
            });
        }
        let (end, before) = (Instant::now() + seconds(10), source.keys.load(Ordering::Relaxed));
        let mut ticks = tokio::time::interval(Duration::from_millis(1_000 / HOT_WRITES_A_SECOND));
        while Instant::now() < end {
            ticks.tick().await;
            let sql = format!("update {}.messages set author = author || '' where id = 7", bed.schema);
            all[0]
                .0
                .write(&bed.pool, async |tx| sqlx::query(AssertSqlSafe(sql.clone())).execute(tx).await)
                .await
                .expect("a write");
        }
        over.store(true, Ordering::Relaxed);
        let mut seen = Seen::default();
        for one in reading.join_all().await {
            seen.took.extend(one.took);
            seen.flagged += one.flagged;
            seen.waited = seen.waited.max(one.waited);
            seen.control.extend(one.control);
        }
        let [reads, controls] = [&seen.took, &seen.control];
        let (longest, of_control) = (most(reads), most(controls));
        println!(
            "| {name} | {} | {:.2} | {longest:.2} | {:.2} | {of_control:.2} | {:.0} % | {} |",
            reads.len(),
            quantile(&mut reads.clone(), 0.99),
            seen.waited,
            100.0 * seen.flagged as f64 / reads.len() as f64,
            source.keys.load(Ordering::Relaxed) - before
        );
        report(if stale { "hot_stale_longest_ms" } else { "hot_fresh_longest_ms" }, &[longest]);
        for (perto, _) in all {
            perto.shutdown().await;
        }
    }
    bed.clean_up().await;
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

/// An instance on the same log and the same channel, that declares nothing of what is invalidated.
async fn stranger(bed: &Bed) -> Perto {
    let builder = Perto::builder(&bed.schema).schema(&bed.schema).postgres(&bed.postgres_url);
    let perto = builder.redis(&bed.redis_url).build().expect("settings");
    perto.topic::<i64>("others").tables([""; 0]).declare().expect("a topic");
    perto.start().await.expect("start");
    while perto.health().state != State::Coherent {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    perto
}

/// Hints of a committed write, one for each of these keys.
async fn hints(from: &Perto, token: Token, ids: std::ops::Range<i64>) {
    let mut telling = JoinSet::new();
    for id in ids {
        let from = from.clone();
        telling.spawn(async move {
            let keys = Some(vec![id.to_string()]);
            from.announce(token, &[Change { cache: "messages".to_owned(), keys }]).await;
        });
    }
    telling.join_all().await;
}

/// Ten thousand rows a second are updated by hand, then as many are told of by instances, then as many hints come, while others read what
/// nobody touches.
async fn storm() {
    let bed = Bed::make().await;
    bed.watch().await;
    let source = Arc::new(Source::default());
    let stranger = stranger(&bed).await;
    let (one, messages) = instance(&bed, Some(&bed.redis_url), &source, |cache| cache).await;
    let (other, elsewhere) = instance(&bed, Some(&bed.redis_url), &source, |cache| cache).await;
    let all: Vec<i64> = (0..ROWS).collect();
    for cache in [&messages, &elsewhere] {
        cache.get_many(&all).await.expect("a read");
    }
    println!(
        "\n| {STORM} invalidations a second | told of, a second | quiet reads, p50 µs | p99 µs | of them from L1 | memory at first and at most, MiB | where it is not declared: rows | hints |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let token = messages.invalidate(&QUIET).await.expect("an invalidation");
    for name in ["none", "by SQL", "by `invalidate_many`", "by hints of one key"] {
        let before = stranger.stats();
        let over = Arc::new(AtomicBool::new(false));
        let reading = tokio::spawn({
            let (messages, over) = (messages.clone(), Arc::clone(&over));
            async move {
                let (mut took, mut from_l1) = (Vec::new(), 0_u64);
                let mut ids = (0..QUIET).cycle();
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let id = ids.next().unwrap_or_default();
                    let read = messages.get(&id).await.expect("a read");
                    took.push(began.elapsed().as_secs_f64() * 1e6);
                    from_l1 += u64::from(read.tier == Tier::Local);
                    // A thousand a second.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                (took, from_l1)
            }
        });
        let (began, lasts, mut done, mut most) = (Instant::now(), seconds(30), 0_u64, 0.0_f64);
        let (mut first, mut at_first) = (QUIET, resident_mib());
        while began.elapsed() < lasts {
            if name == "none" {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            let ids = first..first + STORM_ROWS;
            first = if ids.end + STORM_ROWS > ROWS { QUIET } else { ids.end };
            match name {
                "by SQL" => update(&bed, &bed.pool, ids).await.expect("an update"),
                "by hints of one key" => hints(&other, token, ids).await,
                _ => {
                    let keys: Vec<i64> = ids.collect();
                    messages.invalidate_many(&keys).await.expect("an invalidation");
                }
            }
            done += STORM_ROWS as u64;
            if began.elapsed() < lasts / 10 {
                at_first = resident_mib();
            }
            most = most.max(resident_mib());
            let due = Duration::from_secs_f64(done as f64 / STORM as f64);
            tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        }
        over.store(true, Ordering::Relaxed);
        let (mut took, from_l1) = reading.await.expect("the reader");
        let stats = stranger.stats();
        println!(
            "| {name} | {:.0} | {:.1} | {:.1} | {:.1} % | {at_first:.0}, {:.0} | {} | {} |",
            done as f64 / began.elapsed().as_secs_f64(),
            quantile(&mut took, 0.5),
            quantile(&mut took, 0.99),
            100.0 * from_l1 as f64 / took.len() as f64,
            most.max(at_first),
            stats.rows - before.rows,
            stats.hints - before.hints
        );
    }
    for perto in [one, other, stranger] {
        perto.shutdown().await;
    }
    bed.clean_up().await;
}

/// Loads before and after Postgres was restarted in order. Who reads tries again.
async fn herd(instances: usize) {
    let mut server = PrivatePostgres::start().await;
    let (url, redis_url) = (server.url("postgres"), std::env::var("REDIS_URL").expect("run `make bench`"));
    let bed = Bed::at(&url, &redis_url).await;
    bed.watch().await;
    println!(
        "\n| {instances} instances, Postgres restarted | keys loaded a second | p99, ms | longest, ms | failed |"
    );
    println!("| --- | ---: | ---: | ---: | ---: |");
    for (name, tamed) in [("as it is", false), ("single flight for the fleet, stale while loading", true)] {
        let source = Arc::new(Source::default());
        let mut all = Vec::new();
        for _ in 0..instances {
            let keep = StaleWhileLoading::for_up_to(Duration::from_secs(30));
            let cache = |cache: CacheBuilder<_, _>| match tamed {
                true => cache.fleet_single_flight().stale_while_loading(keep),
                false => cache,
            };
            all.push(instance(&bed, Some(&bed.redis_url), &source, cache).await);
        }
        let over = Arc::new(AtomicBool::new(false));
        let (began, took) = (Instant::now(), Arc::new(parking_lot::Mutex::new(Vec::<(f64, f64)>::new())));
        let failed = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for (n, (_, messages)) in all.iter().enumerate() {
            for reader in 0..4 {
                let (messages, over, took) = (messages.clone(), Arc::clone(&over), Arc::clone(&took));
                let failed = Arc::clone(&failed);
                tasks.spawn(async move {
                    let mut ids = zipf(20_000);
                    ids.rotate_left(1_000 * reader + 200 * n);
                    let mut ticks = tokio::time::interval(Duration::from_secs(4) / HERD_READS as u32);
                    for id in ids.iter().cycle() {
                        ticks.tick().await;
                        if over.load(Ordering::Relaxed) {
                            return;
                        }
                        let asked = Instant::now();
                        // Who reads tries again, three times.
                        let mut answer = messages.get(id).await;
                        for _ in 0..3 {
                            if answer.is_err() {
                                tokio::time::sleep(Duration::from_millis(100)).await;
                                answer = messages.get(id).await;
                            }
                        }
                        failed.fetch_add(u64::from(answer.is_err()), Ordering::Relaxed);
                        let at = began.elapsed().as_secs_f64();
                        took.lock().push((at, asked.elapsed().as_secs_f64() * 1e3));
                    }
                });
            }
        }
        // Writes keep the share of hits where it is.
        let writing = tokio::spawn({
            let (over, pool, schema) = (Arc::clone(&over), bed.pool.clone(), bed.schema.clone());
            async move {
                let sql = format!("update {schema}.messages set author = author || '' where id = $1");
                let mut ids = zipf(1_000).into_iter().cycle();
                while !over.load(Ordering::Relaxed) {
                    let id = ids.next().unwrap_or_default();
                    drop(sqlx::query(AssertSqlSafe(sql.clone())).bind(id).execute(&pool).await);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
        tokio::time::sleep(seconds(10)).await;
        let mut rates = Vec::new();
        for phase in ["before", "the first second after", "ten seconds after"] {
            if phase == "the first second after" {
                server.stop_in_order();
                server.restart().await;
            }
            let (from, keys) = (began.elapsed().as_secs_f64(), source.keys.load(Ordering::Relaxed));
            let lost = failed.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(if phase == "the first second after" { 1 } else { 9 }))
                .await;
            let lasted = began.elapsed().as_secs_f64() - from;
            let rate = (source.keys.load(Ordering::Relaxed) - keys) as f64 / lasted;
            rates.push(rate);
            let mut of_phase: Vec<f64> =
                took.lock().iter().filter(|(at, _)| *at >= from).map(|(_, took)| *took).collect();
            let longest = of_phase.iter().copied().fold(0.0, f64::max);
            println!(
                "| {name}, {phase} | {rate:.0} | {:.2} | {longest:.0} | {} |",
                quantile(&mut of_phase, 0.99),
                failed.load(Ordering::Relaxed) - lost
            );
        }
        let ten = (rates[1] + 9.0 * rates[2]) / 10.0;
        println!("| {name}, in the ten seconds beside before | {:.2} × | | | |", ten / rates[0]);
        report(&format!("herd_{instances}_loads{}", if tamed { "_tamed" } else { "" }), &[ten / rates[0]]);
        over.store(true, Ordering::Relaxed);
        tasks.join_all().await;
        writing.await.expect("the writer");
        for (perto, _) in all {
            perto.shutdown().await;
        }
    }
    bed.clean_up().await;
}
