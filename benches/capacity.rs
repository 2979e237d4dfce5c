//! What L1 keeps of recorded traffic, and what its entries take, beside a bare `moka::sync` of as many bytes.
//!
//! `cargo bench --profile dist --features test-util --bench capacity -- TRACE.xz...`: traces of big-endian 32-bit words, as `perto replay`
//! reads them. Prints Markdown; with `BENCH_JSON=FILE` also appends a line of JSON for each bar. In memory, without engines.
#![allow(
    missing_docs,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
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

use std::process::Command;
use std::sync::Arc;

use perto::sim::Sim;
use perto::{Cache, Load, Loaded, Perto, State};
use setup::{Message, median, report};

const ROUNDS: usize = 5;
const ENTRIES: u64 = 100_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    match arguments.as_slice() {
        [what] if what == "moka" => return println!("{}", memory_of_moka()),
        [what] if what == "perto" => return println!("{}", runtime.block_on(memory_of_perto())),
        _ => {}
    }
    let apart = |what: &str| -> f64 {
        let this = std::env::current_exe().expect("this program");
        let output = Command::new(this).arg(what).output().expect("start");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
    };
    let rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (apart("perto"), apart("moka"))).collect();
    let ours: Vec<f64> = rounds.iter().map(|round| round.0).collect();
    let moka: Vec<f64> = rounds.iter().map(|round| round.1).collect();
    let mib = |bytes: &[f64]| median(bytes) / f64::from(1 << 20);
    println!("{ENTRIES} entries of 260 bytes: {:.1} MiB, moka {:.1} MiB", mib(&ours), mib(&moka));
    report("memory_vs_moka", &rounds.iter().map(|round| round.0 / round.1).collect::<Vec<f64>>());

    if !arguments.is_empty() {
        println!("\n| Trace | entries | L1 | moka | points |\n| --- | ---: | ---: | ---: | ---: |");
    }
    for path in &arguments {
        let words = words(path);
        let name = path.rsplit('/').next().unwrap_or(path).split('.').next().unwrap_or(path);
        for entries in [2_000, 10_000, 40_000] {
            let (l1, moka) = runtime.block_on(hit_ratios(&words, entries));
            println!(
                "| {name} | {entries} | {:.2} % | {:.2} % | {:+.2} |",
                100.0 * l1,
                100.0 * moka,
                100.0 * (l1 - moka)
            );
            report(&format!("hit_ratio_vs_moka {name} {entries}"), &[100.0 * (l1 - moka)]);
        }
    }
}

fn words(path: &str) -> Vec<u32> {
    let output = Command::new("xz").args(["-dc", path]).output().expect("xz");
    assert!(output.status.success(), "{path}");
    output
        .stdout
        .chunks_exact(4)
        .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
        .collect()
}

/// One value is loaded for each key, without a database.
async fn instance<K: perto::Key, V: perto::Value>(
    capacity_bytes: u64,
    make: impl Fn(&K) -> V + Send + Sync + 'static,
) -> (Sim, Perto, Cache<K, V>) {
    let sim = Sim::new(7);
    let perto = sim.node().builder("bench").build().expect("settings");
    let make = Arc::new(make);
    let cache = perto
        .cache::<K, V>("values")
        .local_only()
        .capacity_bytes(capacity_bytes)
        .loader(move |load: Load<K>| {
            let make = Arc::clone(&make);
            let with = |loaded: Loaded<K, V>, key: &K| loaded.with(key.clone(), make(key));
            let loaded = load.keys.iter().fold(Loaded::computed(), with);
            async move { Ok::<_, std::io::Error>(loaded) }
        })
        .expect("cache");
    perto.start().await.expect("start");
    while perto.health().state != State::Coherent {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    (sim, perto, cache)
}

/// What one entry weighs in L1.
async fn weight<K: perto::Key, V: perto::Value>(key: K, make: fn(&K) -> V) -> u64 {
    let (_sim, perto, cache) = instance::<K, V>(1 << 20, make).await;
    cache.get(&key).await.expect("read");
    let bytes = cache.size().1;
    perto.shutdown().await;
    bytes
}

/// The share of reads that L1 serves, and moka with room for as many entries.
async fn hit_ratios(words: &[u32], entries: u64) -> (f64, f64) {
    let make = |key: &u32| u64::from(*key);
    let (_sim, perto, cache) = instance::<u32, u64>(weight(1, make).await * entries, make).await;
    for word in words {
        if cache.get_if_cached(word).is_none() {
            cache.get(word).await.expect("read");
        }
    }
    let l1 = cache.stats().l1_hits as f64 / words.len() as f64;
    perto.shutdown().await;
    let moka = moka::sync::Cache::<u32, Arc<u64>>::new(entries);
    let mut hits = 0_u64;
    for word in words {
        match moka.get(word) {
            Some(_) => hits += 1,
            None => moka.insert(*word, Arc::new(u64::from(*word))),
        }
    }
    (l1, hits as f64 / words.len() as f64)
}

fn key(number: u64) -> String {
    format!("{number:024}")
}

fn message(number: u64) -> Message {
    Message { id: number as i64, author: format!("author {number}"), body: "x".repeat(230) }
}

/// Bytes of the process that so many entries take, with room for twice as many. Each key is asked for, put, and asked for once more: what
/// counts uses is allocated by then.
fn memory_of_moka() -> f64 {
    let cache = moka::sync::Cache::<String, Arc<Message>>::new(2 * ENTRIES);
    let before = resident();
    for number in (0..ENTRIES).chain(0..ENTRIES) {
        let key = key(number);
        if cache.get(&key).is_none() {
            cache.insert(key, Arc::new(message(number)));
        }
    }
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), ENTRIES);
    resident() - before
}

/// The same of L1.
async fn memory_of_perto() -> f64 {
    let make = |key: &String| message(key.parse().unwrap_or_default());
    let capacity = 2 * ENTRIES * weight(key(ENTRIES), make).await;
    let (_sim, perto, cache) = instance::<String, Message>(capacity, make).await;
    let before = resident();
    for number in (0..ENTRIES).chain(0..ENTRIES) {
        cache.get(&key(number)).await.expect("read");
    }
    assert_eq!(cache.size().0, ENTRIES);
    assert_eq!(cache.stats().l1_hits, ENTRIES);
    let took = resident() - before;
    perto.shutdown().await;
    took
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    1024.0 * kib
}
