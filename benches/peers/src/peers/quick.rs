//! quick_cache alone: one process.

use std::sync::Arc;

use anyhow::Result;
use quick_cache::sync::Cache;

use crate::bed::{Page, Source};
use crate::peer::{Peer, Place};

pub struct Quick {
    cache: Cache<String, Arc<Page>>,
    source: Arc<Source>,
}

impl Peer for Quick {
    type Answer = Arc<Page>;
    type Written = ();

    const ALONE: Option<&'static str> = Some("it lives in one process");

    async fn start(Place { source, .. }: Place) -> Result<Self> {
        Ok(Self { cache: Cache::new(20_000), source })
    }

    async fn get(&self, key: &String) -> Result<Arc<Page>> {
        self.cache.get_or_insert_async(key, async { self.source.load(key).await.map(Arc::new) }).await
    }

    fn page(answer: &Arc<Page>) -> Result<&Page> {
        Ok(answer)
    }

    async fn update(&self, key: &String) -> Result<()> {
        self.source.update(key).await
    }

    async fn tell(&self, key: &String, (): ()) -> Result<()> {
        self.cache.remove(key);
        Ok(())
    }
}
