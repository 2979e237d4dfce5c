//! The bare operations that tiers are measured beside.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;

use super::hand_rolled::{decode, encode, name};
use crate::bed::{Page, Source};
use crate::peer::{Peer, Place};

/// A get of `moka::sync`.
pub struct Memory {
    cache: moka::sync::Cache<String, Arc<Page>>,
    source: Arc<Source>,
}

impl Peer for Memory {
    type Answer = Arc<Page>;
    type Written = ();

    async fn start(Place { source, .. }: Place) -> Result<Self> {
        Ok(Self { cache: moka::sync::Cache::new(20_000), source })
    }

    async fn get(&self, key: &String) -> Result<Arc<Page>> {
        if let Some(page) = self.cache.get(key) {
            return Ok(page);
        }
        let page = Arc::new(self.source.load(key).await?);
        self.cache.insert(key.clone(), Arc::clone(&page));
        Ok(page)
    }

    fn page(answer: &Arc<Page>) -> Result<&Page> {
        Ok(answer)
    }

    async fn update(&self, key: &String) -> Result<()> {
        self.source.update(key).await
    }

    async fn tell(&self, key: &String, (): ()) -> Result<()> {
        self.cache.invalidate(key);
        Ok(())
    }
}

/// A `GET` and the decoding of what it brings.
pub struct Client {
    redis: MultiplexedConnection,
    source: Arc<Source>,
}

impl Peer for Client {
    type Answer = Page;
    type Written = ();

    async fn start(Place { source, redis }: Place) -> Result<Self> {
        Ok(Self { redis: redis::Client::open(redis)?.get_multiplexed_async_connection().await?, source })
    }

    async fn get(&self, key: &String) -> Result<Page> {
        let mut redis = self.redis.clone();
        let found = redis::cmd("GET").arg(name(key)).query_async::<Option<Bytes>>(&mut redis).await?;
        if let Some(bytes) = found {
            return decode(&bytes);
        }
        let page = self.source.load(key).await?;
        redis::cmd("SET").arg(name(key)).arg(encode(&page)?).query_async::<()>(&mut redis).await?;
        Ok(page)
    }

    fn page(answer: &Page) -> Result<&Page> {
        Ok(answer)
    }

    async fn update(&self, key: &String) -> Result<()> {
        self.source.update(key).await
    }

    async fn tell(&self, key: &String, (): ()) -> Result<()> {
        Ok(redis::cmd("DEL").arg(name(key)).query_async(&mut self.redis.clone()).await?)
    }
}
