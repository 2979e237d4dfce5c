//! `cached` with its Redis store, and the client-side caching that it offers: its only first tier for async functions.

use std::sync::Arc;

use anyhow::Result;
use cached::{AsyncRedisCache, ConcurrentCachedAsync};

use crate::bed::{Page, Source};
use crate::peer::{Peer, Place, TTL};

pub struct Cached {
    cache: AsyncRedisCache<String, Page>,
    source: Arc<Source>,
}

impl Peer for Cached {
    type Answer = Page;
    type Written = ();

    async fn start(Place { source, redis }: Place) -> Result<Self> {
        let cache = AsyncRedisCache::builder("page")
            .ttl(TTL)
            .connection_string(&redis)
            .connection_manager(true)
            .client_side_caching(true)
            .build()
            .await?;
        Ok(Self { cache, source })
    }

    /// What its macro makes of a function: a look-up, the function, a set; an error of the store is the call's.
    async fn get(&self, key: &String) -> Result<Page> {
        if let Some(page) = self.cache.async_cache_get(key).await? {
            return Ok(page);
        }
        let page = self.source.load(key).await?;
        self.cache.async_cache_set(key.clone(), page.clone()).await?;
        Ok(page)
    }

    fn page(answer: &Page) -> Result<&Page> {
        Ok(answer)
    }

    async fn update(&self, key: &String) -> Result<()> {
        self.source.update(key).await
    }

    async fn tell(&self, key: &String, (): ()) -> Result<()> {
        self.cache.async_cache_delete(key).await?;
        Ok(())
    }
}
