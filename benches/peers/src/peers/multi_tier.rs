//! multi-tier-cache with the invalidation that its README sets up.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use multi_tier_cache::error::CacheError;
use multi_tier_cache::{
    CacheManager, CacheSerializer, CacheStrategy, InvalidationConfig, L1Cache, L2Cache, MokaCacheConfig,
};

use crate::bed::{Page, Source};
use crate::peer::{Peer, Place, TTL};

pub struct MultiTier {
    manager: CacheManager,
    source: Arc<Source>,
}

impl Peer for MultiTier {
    type Answer = Page;
    type Written = ();

    async fn start(Place { source, redis }: Place) -> Result<Self> {
        let room = MokaCacheConfig { max_capacity: 20_000, time_to_live: TTL, time_to_idle: TTL };
        let (l1, l2) = (Arc::new(L1Cache::new(room)?), Arc::new(L2Cache::with_url(&redis).await?));
        let invalidation = InvalidationConfig::default();
        let mut manager = CacheManager::new_with_invalidation(l1, l2, &redis, invalidation.clone()).await?;
        // The fastest of those that it offers and whose crates are maintained.
        manager.set_serializer(CacheSerializer::MsgPack(Default::default()));
        hears(&manager, &redis, &invalidation.channel).await?;
        Ok(Self { manager, source })
    }

    async fn get(&self, key: &String) -> Result<Page> {
        let load = || async {
            self.source.load(key).await.map_err(|why| CacheError::InternalError(why.to_string()))
        };
        Ok(self.manager.get_or_compute_typed(key, CacheStrategy::Custom(TTL), load).await?)
    }

    fn page(answer: &Page) -> Result<&Page> {
        Ok(answer)
    }

    async fn update(&self, key: &String) -> Result<()> {
        self.source.update(key).await
    }

    async fn tell(&self, key: &String, (): ()) -> Result<()> {
        self.manager.invalidate(key).await.map_err(|why| anyhow!(why))
    }
}

/// Waits until it hears what is said: it subscribes in the background, and doesn't say when.
async fn hears(manager: &CacheManager, redis: &str, channel: &str) -> Result<()> {
    let mut redis = redis::Client::open(redis)?.get_multiplexed_async_connection().await?;
    let nothing = serde_json::json!({ "type": "Remove", "key": "" }).to_string();
    let publish = redis::cmd("PUBLISH").arg(channel).arg(nothing).to_owned();
    for _ in 0..1_000 {
        publish.query_async::<()>(&mut redis).await?;
        if manager.invalidation_stats().is_some_and(|stats| stats.messages_received > 0) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bail!("it does not subscribe")
}
