//! A hit in the process's own memory, by one task and by two.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Figures, instances, read_all, stop};
use crate::bed::{Bed, LARGE, SMALL, key, zipf};
use crate::peer::Peer;

const TIME: Duration = Duration::from_millis(300);
/// Hits between two looks at whether the time is over. Then others get their turn: polls, subscribers.
const BATCH: usize = 256;

/// Of values: their name, their messages, and how many there are.
const SIZES: [(&str, usize, usize); 2] = [("small", SMALL, 5_000), ("large", LARGE, 1_000)];

pub async fn measure<P: Peer>(size: &str) -> Result<Figures> {
    let (_, messages, rows) = *SIZES.iter().find(|(name, ..)| *name == size).context("no such size")?;
    let bed = Bed::make(messages, rows).await?;
    let all = instances::<P>(&bed, 1).await?;
    let keys = Arc::new((0..rows).map(key).collect::<Vec<_>>());
    read_all(&all[0], &keys).await?;
    bed.redis.settle().await?;
    // Once more for those that have it in memory only after they have read it from Redis.
    read_all(&all[0], &keys).await?;
    let before = bed.source.loads();
    let mut figures = Figures::new();
    for tasks in [1, 2] {
        let ended = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = (0..tasks)
            .map(|task| {
                let (peer, keys, ended) = (Arc::clone(&all[0]), Arc::clone(&keys), Arc::clone(&ended));
                tokio::spawn(hits(peer, keys, task, ended))
            })
            .collect();
        figures.insert(format!("l1_{size}_{}", tasks.len()), Some(nanoseconds(tasks, &ended).await?));
    }
    ensure!(bed.source.loads() == before, "not all were hits");
    stop(all).await;
    bed.clean_up().await?;
    Ok(figures)
}

/// Returns how many hits there were in which time.
async fn hits<P: Peer>(
    peer: Arc<P>,
    keys: Arc<Vec<String>>,
    task: usize,
    ended: Arc<AtomicBool>,
) -> Result<(u64, Duration)> {
    let order = zipf(keys.len(), 1 << 14);
    // Not all the same keys at the same time.
    let (mut at, mut hits, mut begun) = (task * 9_973, 0, Instant::now());
    let mut warm = false;
    while !ended.load(Ordering::Relaxed) {
        for next in at..at + BATCH {
            let answer = peer.get(&keys[order[next % order.len()]]).await?;
            black_box(P::page(&answer)?.version);
        }
        at += BATCH;
        hits += BATCH as u64;
        if !warm && begun.elapsed() > TIME / 6 {
            (warm, hits, begun) = (true, 0, Instant::now());
        }
        tokio::task::yield_now().await;
    }
    Ok((hits, begun.elapsed()))
}

/// The mean of all tasks' hits, once their time is over.
async fn nanoseconds(
    tasks: Vec<tokio::task::JoinHandle<Result<(u64, Duration)>>>,
    ended: &AtomicBool,
) -> Result<f64> {
    tokio::time::sleep(TIME).await;
    ended.store(true, Ordering::Relaxed);
    let (mut hits, mut took) = (0, Duration::ZERO);
    for task in tasks {
        let (own, time) = task.await??;
        hits += own;
        took += time;
    }
    Ok(took.as_nanos() as f64 / hits as f64)
}
