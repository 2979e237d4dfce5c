//! redis-rs with client-side caching: the server tells the connection which keys have changed. Loads are ours to do.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::caching::CacheConfig;
use redis::{IntoConnectionInfo, ProtocolVersion};

use super::hand_rolled::{decode, encode, name};
use crate::bed::{Page, Source};
use crate::peer::{PATIENCE, Peer, Place, RETRIES, TTL};

pub struct Tracking {
    redis: ConnectionManager,
    source: Arc<Source>,
}

impl Peer for Tracking {
    type Answer = Page;
    type Written = ();

    async fn start(Place { source, redis }: Place) -> Result<Self> {
        let info = redis.into_connection_info()?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = redis::Client::open(info.set_redis_settings(settings))?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(RETRIES)
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE))
            .set_cache_config(CacheConfig::new());
        Ok(Self { redis: ConnectionManager::new_with_config(client, config).await?, source })
    }

    async fn get(&self, key: &String) -> Result<Page> {
        let (mut redis, name) = (self.redis.clone(), name(key));
        let found = redis::cmd("GET").arg(&name).query_async::<Option<Bytes>>(&mut redis).await;
        if let Ok(Some(bytes)) = &found {
            return decode(bytes);
        }
        let page = self.source.load(key).await?;
        // While Redis is away there is no use in waiting for it a second time.
        if found.is_ok() {
            let set = redis::cmd("SET").arg(name).arg(encode(&page)?).arg("EX").arg(TTL.as_secs()).to_owned();
            // The value is good without it.
            drop(set.query_async::<()>(&mut redis).await);
        }
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
