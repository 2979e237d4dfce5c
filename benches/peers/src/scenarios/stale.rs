//! A reader loads the old row and is slow. Meanwhile the row is written, and everybody is told. Then the reader puts what it has
//! loaded into the cache. Do later reads get it?

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Figures, instances, stop, version};
use crate::bed::{Bed, SMALL, key};
use crate::peer::Peer;

const TRIALS: usize = 10;
/// How slow the loader is after its query, so that a write and its telling fit in.
const LOAD: Duration = Duration::from_millis(100);
pub const WATCHED: Duration = Duration::from_secs(2);

pub async fn measure<P: Peer>() -> Result<Figures> {
    let bed = Bed::make(SMALL, TRIALS).await?;
    // Where others can't be told, the write is the reader's own instance's.
    let all = instances::<P>(&bed, if P::ALONE.is_some() { 1 } else { 3 }).await?;
    let (reader, writer, third) = (&all[0], all.get(1).unwrap_or(&all[0]), all.get(2));
    bed.source.pause_loads(LOAD);
    let (mut watched, mut elsewhere) = (Vec::new(), 0);
    for row in 0..TRIALS {
        let key = key(row);
        race(&bed, reader, &**writer, &key).await?;
        if let Some(third) = third {
            elsewhere += usize::from(version(&**third, &key).await? == 1);
        }
        let reader = Arc::clone(reader);
        watched.push(tokio::spawn(async move { watch(&*reader, &key).await }));
    }
    let (mut served, mut longest) = (0, Some(Duration::ZERO));
    for watched in watched {
        let stale = watched.await??;
        longest = longest.zip(stale).map(|(longest, stale)| longest.max(stale));
        served += usize::from(stale != Some(Duration::ZERO));
    }
    let share = |count: usize| count as f64 / TRIALS as f64;
    let mut figures = Figures::from([
        ("stale_served".to_owned(), Some(share(served))),
        ("stale_longest".to_owned(), longest.map(|longest| longest.as_secs_f64() * 1e3)),
    ]);
    if third.is_some() {
        figures.insert("stale_elsewhere".to_owned(), Some(share(elsewhere)));
    }
    stop(all).await;
    bed.clean_up().await?;
    Ok(figures)
}

/// A load whose query is answered before a write, and that ends after everybody has been told of the write.
async fn race<P: Peer>(bed: &Bed, reader: &Arc<P>, writer: &P, key: &String) -> Result<()> {
    let before = bed.source.queried();
    let reading = {
        let (reader, key) = (Arc::clone(reader), key.clone());
        tokio::spawn(async move { version(&*reader, &key).await })
    };
    while bed.source.queried() == before {
        ensure!(!reading.is_finished(), "it was cached before");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let written = writer.update(key).await?;
    writer.tell(key, written).await?;
    ensure!(!reading.is_finished(), "the write took longer than the load: too busy a machine");
    reading.await??;
    // The slow reader may still be putting its value into Redis.
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(())
}

/// How long reads get the old value. Not one is `Some(0)`, and `None` is longer than was watched.
async fn watch<P: Peer>(reader: &P, key: &String) -> Result<Option<Duration>> {
    let (begun, mut stale) = (Instant::now(), Duration::ZERO);
    while version(reader, key).await? == 1 {
        stale = begun.elapsed();
        if stale > WATCHED {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(Some(stale))
}
