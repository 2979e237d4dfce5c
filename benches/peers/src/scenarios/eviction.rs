//! From a write on one instance until another one no longer serves the old value.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;

use super::{Figures, instances, newer, quantile, rest, stop, version};
use crate::bed::{Bed, SMALL, key};
use crate::peer::Peer;

const WRITES: usize = 60;
/// Longer than Perto's bound, and far shorter than any time to live.
pub const WATCHED: Duration = Duration::from_millis(1_500);
/// Rows that are written by SQL alone, all at once.
const BY_HAND: usize = 20;

pub async fn measure<P: Peer>() -> Result<Figures> {
    let bed = Bed::make(SMALL, WRITES + BY_HAND).await?;
    let both = instances::<P>(&bed, 2).await?;
    let (writer, reader) = (&both[0], &both[1]);
    let keys: Vec<String> = (0..WRITES + BY_HAND).map(key).collect();
    for key in &keys {
        version(&**writer, key).await?;
        // The second of these puts it into memory, where the first one found it in Redis.
        version(&**reader, key).await?;
        version(&**reader, key).await?;
    }
    let (mut told, mut whole) = (Vec::new(), Vec::new());
    for key in &keys[..WRITES] {
        let begun = Instant::now();
        let written = writer.update(key).await?;
        let committed = Instant::now();
        let telling = {
            let (writer, key) = (Arc::clone(writer), key.clone());
            tokio::spawn(async move { writer.tell(&key, written).await })
        };
        let seen = newer(&**reader, key, 1, committed + WATCHED).await;
        telling.await??;
        ensure!(version(&**writer, key).await? > 1, "the writer itself serves the old value");
        let Some(seen) = seen else { break };
        told.push(seen.saturating_duration_since(committed));
        whole.push(seen.saturating_duration_since(begun));
    }
    let by_hand = by_hand(&bed, reader, &keys[WRITES..]).await?;
    stop(both).await;
    bed.clean_up().await?;
    // One that was not seen in time: it knows no others.
    let all = told.len() == WRITES;
    let micros = |times: &[Duration], q| all.then(|| quantile(times, q).as_secs_f64() * 1e6);
    Ok(Figures::from([
        ("eviction_p50".to_owned(), micros(&told, 0.5)),
        ("eviction_p90".to_owned(), micros(&told, 0.9)),
        ("write_p50".to_owned(), micros(&whole, 0.5)),
        ("by_hand".to_owned(), by_hand),
    ]))
}

/// Milliseconds from SQL that nobody tells of until the last of its rows is seen.
async fn by_hand<P: Peer>(bed: &Bed, reader: &Arc<P>, keys: &[String]) -> Result<Option<f64>> {
    for key in keys {
        bed.source.update(key).await?;
    }
    let (written, mut last) = (Instant::now(), Some(Duration::ZERO));
    for key in keys {
        let seen = newer(&**reader, key, 1, written + WATCHED).await;
        last = last.zip(seen).map(|(last, seen)| last.max(seen.saturating_duration_since(written)));
    }
    Ok(last.map(|last| last.as_secs_f64() * 1e3))
}

/// From before a `PUBLISH` until a flag is seen that its subscriber sets, under the same polling.
pub async fn bare() -> Result<Figures> {
    let bed = Bed::make(SMALL, 1).await?;
    let client = redis::Client::open(bed.redis.url())?;
    let publisher = bed.redis.connection().await?;
    let mut subscriber = client.get_async_pubsub().await?;
    subscriber.subscribe("bare").await?;
    let mut messages = subscriber.into_on_message();
    let heard = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&heard);
    let listener = tokio::spawn(async move {
        while messages.next().await.is_some() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut times = Vec::new();
    for write in 1..=WRITES as u64 {
        let begun = Instant::now();
        let mut publisher = publisher.clone();
        let telling = tokio::spawn(async move {
            redis::cmd("PUBLISH").arg("bare").arg("x").query_async::<()>(&mut publisher).await
        });
        while heard.load(Ordering::Relaxed) < write {
            rest();
        }
        times.push(begun.elapsed());
        telling.await?.context("PUBLISH")?;
    }
    listener.abort();
    bed.clean_up().await?;
    let micros = |q| Some(quantile(&times, q).as_secs_f64() * 1e6);
    Ok(Figures::from([("eviction_p50".to_owned(), micros(0.5)), ("eviction_p90".to_owned(), micros(0.9))]))
}
