//! A thousand reads at once of one key that nobody has: how often is it loaded?

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::{Figures, instances, stop, version};
use crate::bed::{Bed, SMALL, key};
use crate::peer::Peer;

const READS: usize = 1_000;
const LOAD: Duration = Duration::from_millis(50);

pub async fn measure<P: Peer>() -> Result<Figures> {
    let bed = Bed::make(SMALL, 4).await?;
    let mut figures = Figures::new();
    bed.source.pause_loads(LOAD);
    for (row, count) in [1, 4].into_iter().enumerate() {
        let all = instances::<P>(&bed, count).await?;
        let before = bed.source.loads();
        let reads: Vec<_> = (0..READS)
            .map(|read| {
                let (peer, key) = (Arc::clone(&all[read % count]), key(row));
                tokio::spawn(async move { version(&*peer, &key).await })
            })
            .collect();
        for read in reads {
            read.await??;
        }
        figures.insert(format!("stampede_{count}"), Some((bed.source.loads() - before) as f64));
        stop(all).await;
    }
    bed.clean_up().await?;
    Ok(figures)
}
