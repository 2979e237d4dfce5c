//! A reader loads the old row and is slow. Meanwhile the row is written, and everybody is told. Then the reader puts what it has
//! loaded into the cache. Do later reads get it?

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Figures, instances, stop, version};
use crate::bed::{Bed, SMALL, key};
use crate::peer::Peer;

const TRIALS: usize = 20;
const LOAD: Duration = Duration::from_millis(50);
const WRITE_AFTER: Duration = Duration::from_millis(20);
pub const WATCHED: Duration = Duration::from_secs(2);

pub async fn measure<P: Peer>() -> Result<Figures> {
    let bed = Bed::make(SMALL, TRIALS).await?;
    // Where others can't be told, the write is the reader's own instance's.
    let all = instances::<P>(&bed, if P::ALONE.is_some() { 1 } else { 3 }).await?;
    let (reader, writer) = (&all[0], &all[if P::ALONE.is_some() { 0 } else { 1 }]);
    bed.source.pause_loads(LOAD);
    let trials: Vec<_> = (0..TRIALS)
        .map(|row| {
            let (reader, writer, third) = (Arc::clone(reader), Arc::clone(writer), all.get(2).cloned());
            tokio::spawn(async move { trial(&*reader, &*writer, third.as_deref(), &key(row)).await })
        })
        .collect();
    let (mut served, mut elsewhere, mut longest) = (0, 0, Some(Duration::ZERO));
    for trial in trials {
        let (stale, third) = trial.await??;
        longest = longest.zip(stale).map(|(longest, stale)| longest.max(stale));
        served += usize::from(stale != Some(Duration::ZERO));
        elsewhere += usize::from(third);
    }
    let two = P::ALONE.is_none();
    stop(all).await;
    bed.clean_up().await?;
    let share = |count: usize| count as f64 / TRIALS as f64;
    let mut figures = Figures::from([
        ("stale_served".to_owned(), Some(share(served))),
        ("stale_longest".to_owned(), longest.map(|longest| longest.as_secs_f64() * 1e3)),
    ]);
    if two {
        figures.insert("stale_elsewhere".to_owned(), Some(share(elsewhere)));
    }
    Ok(figures)
}

/// How long the old value was served after the write had been told and the slow read had ended, and whether a third instance
/// got it then. Nothing is `Some(0)`, and `None` is longer than was watched.
async fn trial<P: Peer>(
    reader: &P,
    writer: &P,
    third: Option<&P>,
    key: &String,
) -> Result<(Option<Duration>, bool)> {
    let write = async {
        tokio::time::sleep(WRITE_AFTER).await;
        let written = writer.update(key).await?;
        writer.tell(key, written).await
    };
    let (read, written) = tokio::join!(version(reader, key), write);
    read?;
    written?;
    // The slow read may still be putting its value into Redis.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let elsewhere = match third {
        Some(third) => version(third, key).await? == 1,
        None => false,
    };
    let (begun, mut reads) = (Instant::now(), 0);
    loop {
        let at = begun.elapsed();
        if version(reader, key).await? > 1 {
            return Ok((Some(if reads == 0 { Duration::ZERO } else { at }), elsewhere));
        }
        if at > WATCHED {
            return Ok((None, elsewhere));
        }
        reads += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
