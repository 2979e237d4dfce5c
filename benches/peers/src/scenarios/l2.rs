//! What Redis has and the process does not: one read after the other, and by 64 tasks. Each ends with the value in L1, where
//! there is one.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::{Figures, instances, quantile, read_all, stop};
use crate::bed::{Bed, SMALL, key};
use crate::peer::Peer;

const ROWS: usize = 5_000;
/// Instances whose memory is empty, one after the other.
const PASSES: usize = 4;

pub async fn measure<P: Peer>() -> Result<Figures> {
    let bed = Bed::make(SMALL, ROWS).await?;
    let keys = Arc::new((0..ROWS).map(key).collect::<Vec<_>>());
    let fill = instances::<P>(&bed, 1).await?;
    read_all(&fill[0], &keys).await?;
    bed.redis.settle().await?;
    let before = bed.source.loads();

    let mut all = 0.0;
    for _ in 0..PASSES {
        let empty = instances::<P>(&bed, 1).await?;
        all += read_all(&empty[0], &keys).await?.as_secs_f64();
        stop(empty).await;
    }
    let empty = instances::<P>(&bed, 1).await?;
    let mut times = Vec::new();
    for key in keys.iter().take(ROWS / 2) {
        let begun = Instant::now();
        P::page(&empty[0].get(key).await?)?;
        times.push(begun.elapsed());
    }
    ensure!(bed.source.loads() == before, "not all were hits");
    stop(empty).await;
    stop(fill).await;
    bed.clean_up().await?;
    Ok(Figures::from([
        ("l2_p50".to_owned(), Some(quantile(&times, 0.5).as_secs_f64() * 1e6)),
        ("l2_tasks64".to_owned(), Some((PASSES * ROWS) as f64 / all)),
    ]))
}
