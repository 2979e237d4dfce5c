//! An L2 hit in a cluster beside the bare client at the node that has the key, by one task, in turns in one run. Medians of the
//! rounds' ratios.
//!
//! `make bench ARGS='--bench cluster'`. Starts a cluster of its own. `ROUNDS` in the environment takes another number of rounds.
//! Prints Markdown.
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "a bench"
)]
#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    unreachable_pub,
    dead_code,
    reason = "a bench"
)]

mod setup;
#[path = "../tests/support/support.rs"]
mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use perto::{Tier, redis::address, redis::owner};
use redis::aio::MultiplexedConnection;
use setup::{Bed, Message, ROWS, median, report};
use support::cluster::PrivateCluster;

const ROUNDS: usize = 15;
/// Reads of each side in a round, each of which is timed.
const READS: usize = 3_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let cluster = PrivateCluster::start_without_replicas(&[]).await;
    let mut bed = Bed::make().await;
    bed.watch().await;
    let alone = std::mem::replace(&mut bed.redis_url, cluster.url());
    let (perto, cache) = bed.instance::<i64>(0).await;
    let all: Vec<i64> = (0..ROWS).collect();
    // Fills are not awaited.
    while !cache.get_many(&all).await.unwrap().iter().all(|read| read.tier == Tier::Remote) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Who has them is known before.
    let mut connections = Vec::new();
    for node in &cluster.nodes {
        connections.push((node.port(), node.connect().await));
    }
    let cluster_address = address(&bed.redis_url).unwrap();
    let mut bare: Vec<(String, MultiplexedConnection)> = Vec::new();
    for id in 0..1_000 {
        let message = Message { id, author: format!("author {id}"), body: "x".repeat(230) };
        let bytes = bincode::serde::encode_to_vec(message, bincode::config::standard()).unwrap();
        let key = format!("perto:{}:bare:{id}", bed.schema);
        let place = owner(&cluster_address, &key).await.unwrap().place();
        let at = connections.iter().find(|(port, _)| place.ends_with(&format!(":{port}"))).unwrap();
        let mut connection = at.1.clone();
        redis::cmd("SET")
            .arg(&key)
            .arg(bytes)
            .arg("EX")
            .arg(3_600)
            .query_async::<()>(&mut connection)
            .await
            .unwrap();
        bare.push((key, connection));
    }
    let (mut both, mut elsewhere) = (Vec::new(), 0_u64);
    for round in 0..rounds {
        let (mut bares, mut ours) = (Vec::with_capacity(READS), Vec::with_capacity(READS));
        for n in 0..READS {
            let id = (round * READS + n) * 7_919 % 1_000;
            let (key, connection) = &mut bare[id];
            let began = Instant::now();
            let bytes: bytes::Bytes = redis::cmd("GET").arg(&*key).query_async(connection).await.unwrap();
            let message: (Message, usize) =
                bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
            black_box(message);
            bares.push(began.elapsed().as_secs_f64() * 1e6);
            let began = Instant::now();
            let read = cache.get(&(id as i64)).await.unwrap();
            elsewhere += u64::from(read.tier != Tier::Remote);
            black_box(read);
            ours.push(began.elapsed().as_secs_f64() * 1e6);
        }
        both.push((median(&bares), median(&ours)));
    }
    let of = |each: fn(&(f64, f64)) -> f64| both.iter().map(each).collect::<Vec<_>>();
    let ratios = of(|(bare, ours)| ours / bare);
    report("cluster_l2_hit_p50_vs_get", &ratios);
    println!("\n| L2 hits in a cluster | GET + decode | Perto | ratio |\n| --- | ---: | ---: | ---: |");
    let (bare, ours) = (median(&of(|(bare, _)| *bare)), median(&of(|(_, ours)| *ours)));
    println!("| one task, p50 µs | {bare:.1} | {ours:.1} | {:.2} × |", median(&ratios));
    println!("\n{elsewhere} reads were not answered by L2. Ratios of the rounds: {ratios:.2?}");
    perto.shutdown().await;
    bed.redis_url = alone;
    bed.clean_up().await;
}
