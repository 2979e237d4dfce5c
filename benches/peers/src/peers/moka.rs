//! moka alone: one process.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use moka::future::Cache;

use crate::bed::{Page, Source};
use crate::peer::{Peer, Place, TTL};

pub struct Moka {
    cache: Cache<String, Arc<Page>>,
    source: Arc<Source>,
}

impl Peer for Moka {
    type Answer = Arc<Page>;
    type Written = ();

    const ALONE: Option<&'static str> = Some("it lives in one process");

    async fn start(Place { source, .. }: Place) -> Result<Self> {
        Ok(Self { cache: Cache::builder().max_capacity(20_000).time_to_live(TTL).build(), source })
    }

    async fn get(&self, key: &String) -> Result<Arc<Page>> {
        if let Some(page) = self.cache.get(key).await {
            return Ok(page);
        }
        let load = async { self.source.load(key).await.map(Arc::new) };
        self.cache.try_get_with_by_ref(key, load).await.map_err(|why| anyhow!(why))
    }

    fn page(answer: &Arc<Page>) -> Result<&Page> {
        Ok(answer)
    }

    async fn update(&self, key: &String) -> Result<()> {
        self.source.update(key).await
    }

    async fn tell(&self, key: &String, (): ()) -> Result<()> {
        self.cache.invalidate(key).await;
        Ok(())
    }
}
