//! Redis goes: for one instance, whose connections are cut while others write; and for all, killed and started again empty.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use perto::proxy::{Fault, FaultProxy};
use tokio::time::{sleep, timeout};

use super::{Figures, instances, stop, version};
use crate::bed::{Bed, SMALL, key};
use crate::peer::{Peer, Place};

/// Rows that the reader has in memory.
const HOT: usize = 20;
/// Rows that nobody has read.
const COLD: usize = 10_000;
/// A read that takes longer than this is one that got no answer.
const ANSWERED: Duration = Duration::from_secs(2);
const CUT: Duration = Duration::from_millis(300);
const DEAD: Duration = Duration::from_secs(2);
pub const WATCHED: Duration = Duration::from_secs(3);
/// An old value that was served within so long of the end is served to the end.
const LAST_READS: Duration = Duration::from_millis(200);

/// The reader's connections are cut, another instance writes, and the connections may come back.
pub async fn cut<P: Peer>() -> Result<Figures> {
    let bed = Bed::make(SMALL, HOT).await?;
    let proxy = FaultProxy::start(bed.redis.place()).await?;
    let writers = instances::<P>(&bed, 1).await?;
    let redis = format!("redis://{}", proxy.address());
    let reader = Arc::new(P::start(Place { source: Arc::clone(&bed.source), redis }).await?);
    let keys = warm(&*reader).await?;
    proxy.set(Fault::Cut);
    let mut watched = Vec::new();
    for key in keys {
        watched.push(write(&writers[0], &reader, key).await?);
    }
    sleep(CUT).await;
    proxy.set(Fault::None);
    let figures = seen(watched, "cut").await?;
    stop(vec![reader]).await;
    stop(writers).await;
    bed.clean_up().await?;
    Ok(figures)
}

/// Redis is killed. Half-way to its return the other instance writes.
pub async fn killed<P: Peer>() -> Result<Figures> {
    let mut bed = Bed::make(SMALL, COLD).await?;
    let both = instances::<P>(&bed, 2).await?;
    let (writer, reader) = (&both[0], &both[1]);
    let hot = warm(&**reader).await?;
    bed.redis.kill();
    let end = Instant::now() + DEAD;
    let cold: Vec<_> = (0..8)
        .map(|task| {
            let reader = Arc::clone(reader);
            tokio::spawn(async move {
                let mut reads = Vec::new();
                for row in (HOT + task..COLD).step_by(8).take_while(|_| Instant::now() < end) {
                    reads.push(read(&*reader, &key(row)).await);
                    sleep(Duration::from_millis(5)).await;
                }
                reads
            })
        })
        .collect();
    sleep(DEAD / 2).await;
    let mut watched = Vec::new();
    for key in hot {
        watched.push(write(writer, reader, key).await?);
    }
    let mut reads = Vec::new();
    for task in cold {
        reads.extend(task.await?);
    }
    bed.redis.start().await?;
    let mut figures = seen(watched, "killed").await?;
    reads.sort_unstable_by_key(|read| read.0);
    let failed = reads.iter().filter(|read| !read.1).count();
    let millis = |at: usize| Some(reads[at].0.as_secs_f64() * 1e3);
    figures.insert("killed_cold_failed".to_owned(), Some(failed as f64 / reads.len() as f64));
    figures.insert("killed_cold_p50".to_owned(), millis(reads.len() / 2));
    figures.insert("killed_cold_longest".to_owned(), millis(reads.len() - 1));
    stop(both).await;
    bed.clean_up().await?;
    Ok(figures)
}

/// Puts the hot rows into its memory, and returns their keys.
async fn warm<P: Peer>(reader: &P) -> Result<Vec<String>> {
    let keys: Vec<String> = (0..HOT).map(key).collect();
    for key in &keys {
        version(reader, key).await?;
        version(reader, key).await?;
    }
    Ok(keys)
}

/// How long it took, and whether there was a value.
async fn read<P: Peer>(peer: &P, key: &String) -> (Duration, bool) {
    let begun = Instant::now();
    let read = timeout(ANSWERED, version(peer, key)).await;
    (begun.elapsed(), matches!(read, Ok(Ok(_))))
}

/// Reads of one hot key since it was written: when the old value was served last (`None`: to the end), and how many got no
/// value.
struct Watched {
    stale: Option<Duration>,
    reads: usize,
    failed: usize,
}

/// Writes a key, and watches in a task until when the reader serves the old value.
async fn write<P: Peer>(
    writer: &Arc<P>,
    reader: &Arc<P>,
    key: String,
) -> Result<tokio::task::JoinHandle<Watched>> {
    let written = writer.update(&key).await?;
    let committed = Instant::now();
    let (teller, told) = (Arc::clone(writer), key.clone());
    // With Redis away it may fail or hang. The program has committed, and can do no more about it.
    let telling = tokio::spawn(async move { teller.tell(&told, written).await });
    let reader = Arc::clone(reader);
    Ok(tokio::spawn(async move {
        let mut watched = Watched { stale: Some(Duration::ZERO), reads: 0, failed: 0 };
        while committed.elapsed() < WATCHED {
            let at = committed.elapsed();
            watched.reads += 1;
            match timeout(ANSWERED, version(&*reader, &key)).await {
                // It was old when this read began.
                Ok(Ok(1)) => watched.stale = Some(at),
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => watched.failed += 1,
            }
            sleep(Duration::from_millis(5)).await;
        }
        telling.abort();
        watched.stale = watched.stale.filter(|last| *last + LAST_READS < WATCHED);
        watched
    }))
}

/// The longest of all, and the share of reads that got no value.
async fn seen(tasks: Vec<tokio::task::JoinHandle<Watched>>, what: &str) -> Result<Figures> {
    let (mut longest, mut reads, mut failed) = (Some(Duration::ZERO), 0, 0);
    for task in tasks {
        let watched = task.await?;
        longest = longest.zip(watched.stale).map(|(longest, stale)| longest.max(stale));
        reads += watched.reads;
        failed += watched.failed;
    }
    Ok(Figures::from([
        (format!("{what}_stale"), longest.map(|longest| longest.as_secs_f64() * 1e3)),
        (format!("{what}_hot_failed"), Some(failed as f64 / reads as f64)),
    ]))
}
