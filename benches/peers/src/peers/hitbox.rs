//! hitbox: moka before Redis, with bincode in both, refill, and its guard against many loads of one key.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use hitbox::concurrency::BroadcastConcurrencyManager;
use hitbox::offload::OffloadManager;
use hitbox::policy::{ConcurrencyLimit, PolicyConfig};
use hitbox::{CacheKey, Extractor};
use hitbox_backend::composition::Compose;
use hitbox_backend::composition::policy::RefillPolicy;
use hitbox_backend::format::BincodeFormat;
use hitbox_backend::{Backend, CompositionBackend, PassthroughCompressor};
use hitbox_fn::{Arg, Args, Cache, FnExtractor, cached};
use hitbox_moka::MokaBackend;
use hitbox_redis::{ConnectionMode, RedisBackend};

use crate::bed::{Page, Source};
use crate::peer::{PATIENCE, Peer, Place, RETRIES, TTL};

type Answer = Result<Page, String>;
type Tiers =
    CompositionBackend<MokaBackend<BincodeFormat, PassthroughCompressor>, RedisBackend, OffloadManager>;

#[cached(prefix = "page", skip(source))]
async fn page(source: Arc<Source>, key: String) -> Result<Page, String> {
    source.load(&key).await.map_err(|why| why.to_string())
}

pub struct Hitbox {
    cache: Cache<Tiers, BroadcastConcurrencyManager<Answer>, hitbox_core::DisabledOffload>,
    source: Arc<Source>,
}

impl Peer for Hitbox {
    type Answer = Page;
    type Written = ();

    async fn start(Place { source, redis }: Place) -> Result<Self> {
        let l1 = MokaBackend::builder().max_entries(20_000).value_format(BincodeFormat).build();
        let l2 = RedisBackend::builder()
            .connection(ConnectionMode::single(redis))
            .connection_timeout(PATIENCE)
            .response_timeout(PATIENCE)
            .retries(RETRIES)
            .build()?;
        // It connects at its first use, and each operation takes a copy: of one that is not connected yet, each would connect.
        l2.read(&name("").await).await.map_err(|why| anyhow!(why.to_string()))?;
        let tiers = l1.compose(l2, OffloadManager::with_defaults()).refill(RefillPolicy::Always);
        let one = ConcurrencyLimit::new(1).context("within its bounds")?;
        let policy = PolicyConfig::builder().ttl(TTL).concurrency(one).build();
        let cache = Cache::builder()
            .backend(tiers)
            .policy(policy)
            .concurrency_manager(BroadcastConcurrencyManager::new())
            .build();
        Ok(Self { cache, source })
    }

    async fn get(&self, key: &String) -> Result<Page> {
        page(Arc::clone(&self.source), key.clone()).cache(&self.cache).await.map_err(|why| anyhow!(why))
    }

    fn page(answer: &Page) -> Result<&Page> {
        Ok(answer)
    }

    async fn update(&self, key: &String) -> Result<()> {
        self.source.update(key).await
    }

    /// It has no call for this: the key is made as its macro makes it.
    async fn tell(&self, key: &String, (): ()) -> Result<()> {
        let removed = self.cache.backend().remove(&name(key).await).await;
        removed.map(drop).map_err(|why| anyhow!(why.to_string()))
    }
}

async fn name(key: &str) -> CacheKey {
    let arguments = Args((Arg::new("key", key.to_owned()),));
    FnExtractor::<Args<(Arg<String>,)>>::new("page").get(arguments).await.into_cache_key().1
}
