//! What a team writes by hand, and writes well: moka, Redis, and a channel that says which keys to drop.
//!
//! One load a key, bounded waiting for Redis, loads instead of errors while Redis is away, one round trip to invalidate, and
//! L1 emptied whenever the subscription was broken, for what was said meanwhile is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use bytes::Bytes;
use futures_util::StreamExt;
use moka::future::Cache;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::bed::{Page, Source};
use crate::peer::{PATIENCE, Peer, Place, RETRIES, TTL};

const CHANNEL: &str = "evict";

pub struct HandRolled {
    l1: Cache<String, Arc<Page>>,
    l2: ConnectionManager,
    /// Says who published: what we have evicted already need not go twice.
    own: String,
    source: Arc<Source>,
    listener: JoinHandle<()>,
}

impl Peer for HandRolled {
    type Answer = Arc<Page>;
    type Written = ();

    async fn start(Place { source, redis }: Place) -> Result<Self> {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let own = format!("{}.{} ", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let client = redis::Client::open(redis)?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(RETRIES)
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let l2 = ConnectionManager::new_with_config(client.clone(), config).await?;
        let l1 = Cache::builder().max_capacity(20_000).time_to_live(TTL).build();
        let (listening, listens) = oneshot::channel();
        let listener = tokio::spawn(listen(client, l1.clone(), own.clone(), listening));
        listens.await?;
        Ok(Self { l1, l2, own, source, listener })
    }

    async fn get(&self, key: &String) -> Result<Arc<Page>> {
        if let Some(page) = self.l1.get(key).await {
            return Ok(page);
        }
        self.l1.try_get_with_by_ref(key, self.fetch(key)).await.map_err(|why| anyhow!(why))
    }

    fn page(answer: &Arc<Page>) -> Result<&Page> {
        Ok(answer)
    }

    async fn update(&self, key: &String) -> Result<()> {
        self.source.update(key).await
    }

    async fn tell(&self, key: &String, (): ()) -> Result<()> {
        self.l1.invalidate(key).await;
        let mut pipeline = redis::pipe();
        pipeline.del(name(key)).publish(CHANNEL, format!("{}{key}", self.own));
        Ok(pipeline.query_async(&mut self.l2.clone()).await?)
    }

    async fn stop(self) {
        self.listener.abort();
    }
}

impl HandRolled {
    async fn fetch(&self, key: &str) -> Result<Arc<Page>> {
        let mut l2 = self.l2.clone();
        let found = redis::cmd("GET").arg(name(key)).query_async::<Option<Bytes>>(&mut l2).await;
        if let Ok(Some(bytes)) = &found {
            return Ok(Arc::new(decode(bytes)?));
        }
        let page = self.source.load(key).await?;
        // While Redis is away there is no use in waiting for it a second time.
        if found.is_ok() {
            let set =
                redis::cmd("SET").arg(name(key)).arg(encode(&page)?).arg("EX").arg(TTL.as_secs()).to_owned();
            // The value is good without it.
            drop(set.query_async::<()>(&mut l2).await);
        }
        Ok(Arc::new(page))
    }
}

/// Drops from L1 what others have changed, for as long as it runs.
async fn listen(
    client: redis::Client,
    l1: Cache<String, Arc<Page>>,
    own: String,
    listening: oneshot::Sender<()>,
) {
    let mut listening = Some(listening);
    loop {
        if let Ok(mut pubsub) = client.get_async_pubsub().await
            && pubsub.subscribe(CHANNEL).await.is_ok()
        {
            // Nobody knows what was said while we did not listen.
            l1.invalidate_all();
            if let Some(listening) = listening.take() {
                // Whoever started this may have gone.
                let _gone = listening.send(());
            }
            let mut messages = pubsub.into_on_message();
            while let Some(message) = messages.next().await {
                if let Ok(said) = message.get_payload::<String>()
                    && !said.starts_with(&own)
                    && let Some((_, key)) = said.split_once(' ')
                {
                    l1.invalidate(key).await;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn name(key: &str) -> String {
    format!("page:{key}")
}

pub fn encode(page: &Page) -> Result<Vec<u8>> {
    Ok(bincode::serde::encode_to_vec(page, bincode::config::standard())?)
}

pub fn decode(bytes: &[u8]) -> Result<Page> {
    Ok(bincode::serde::decode_from_slice(bytes, bincode::config::standard())?.0)
}
