//! What is measured. Each piece runs in a process of its own, for one peer, and prints its figures.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::bed::{Bed, Page};
use crate::peer::{Peer, Place};

pub mod eviction;
pub mod l1;
pub mod l2;
pub mod outage;
pub mod stale;
pub mod stampede;

/// What one process has measured, by name. `None` is "not within the time that was watched".
pub type Figures = BTreeMap<String, Option<f64>>;

/// Instances that all are at the same Redis.
async fn instances<P: Peer>(bed: &Bed, count: usize) -> Result<Vec<Arc<P>>> {
    let mut instances = Vec::new();
    for _ in 0..count {
        let place = Place { source: Arc::clone(&bed.source), redis: bed.redis.url() };
        instances.push(Arc::new(P::start(place).await?));
    }
    Ok(instances)
}

/// Ends instances that nobody else holds.
async fn stop<P: Peer>(instances: Vec<Arc<P>>) {
    for instance in instances {
        if let Some(instance) = Arc::into_inner(instance) {
            instance.stop().await;
        }
    }
}

/// Reads all keys by 64 tasks. Returns how long it took.
async fn read_all<P: Peer>(peer: &Arc<P>, keys: &Arc<Vec<String>>) -> Result<Duration> {
    const TASKS: usize = 64;
    let begun = Instant::now();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (peer, keys) = (Arc::clone(peer), Arc::clone(keys));
            tokio::spawn(async move {
                for key in keys.iter().skip(task).step_by(TASKS) {
                    P::page(&peer.get(key).await?)?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(begun.elapsed())
}

/// Which write of its row a read shows.
async fn version<P: Peer>(peer: &P, key: &String) -> Result<i64> {
    let answer = peer.get(key).await?;
    P::page(&answer).map(|page: &Page| page.version)
}

/// When the first read began that showed a newer version. `None` if none did until `end`. Not for a worker's thread.
async fn newer<P: Peer>(peer: &P, key: &String, than: i64, end: Instant) -> Option<Instant> {
    loop {
        let begun = Instant::now();
        match version(peer, key).await {
            Ok(version) if version > than => return Some(begun),
            _ if begun > end => return None,
            _ => rest(),
        }
    }
}

/// Leaves the core to others for about 70 µs: who polls without a rest keeps those waiting whom it waits for.
fn rest() {
    std::thread::sleep(Duration::from_micros(10));
}

pub fn quantile(times: &[Duration], q: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[((sorted.len() - 1) as f64 * q) as usize]
}
