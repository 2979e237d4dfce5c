//! Hints over Redis pub/sub. Publishing shares L2's connection; a subscription has one of its own.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Client, IntoConnectionInfo};

use super::{Bus, Subscription};
use crate::error::RemoteError;
use crate::remote::redis::{Link, failed};

const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(1_000);

/// The channel of one app on one Redis or Valkey server.
pub(crate) struct RedisBus {
    link: Arc<Link>,
    subscriber: Client,
    /// Whether that is another server's.
    elsewhere: bool,
    channel: String,
}

impl RedisBus {
    pub(crate) fn new(link: Arc<Link>, app: &str) -> Self {
        let subscriber = link.client().clone();
        Self { link, subscriber, elsewhere: false, channel: format!("perto:{app}:bus") }
    }

    /// Subscribes at another address than it publishes to: through a proxy, or at a replica.
    ///
    /// # Errors
    /// If the URL makes no sense.
    pub(crate) fn subscribing_at(mut self, url: &str) -> Result<Self, String> {
        let info = url.into_connection_info().map_err(|_unusable| "not a Redis URL".to_owned())?;
        self.subscriber = Client::open(info).map_err(|_unusable| "not a usable Redis URL".to_owned())?;
        self.elsewhere = true;
        Ok(self)
    }
}

impl Bus for RedisBus {
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<Option<u64>, RemoteError>> {
        Box::pin(async move {
            let mut connection = self.link.connection()?;
            let publish = redis::cmd("PUBLISH").arg(&self.channel).arg(&message[..]).to_owned();
            let receivers: u64 = publish.query_async(&mut connection).await.map_err(failed)?;
            // A server counts its own subscribers only.
            Ok((!self.elsewhere).then_some(receivers))
        })
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, RemoteError>> {
        Box::pin(async move {
            let subscribing = async {
                let (mut sink, stream) = self.subscriber.get_async_pubsub().await?.split();
                sink.subscribe(&self.channel).await?;
                Ok(Subscribed { sink, stream })
            };
            match tokio::time::timeout(SUBSCRIBE_TIMEOUT, subscribing).await {
                Ok(subscribed) => subscribed.map(|s| Box::new(s) as _).map_err(failed),
                Err(_elapsed) => Err(RemoteError::Timeout),
            }
        })
    }
}

struct Subscribed {
    sink: PubSubSink,
    stream: PubSubStream,
}

impl Subscription for Subscribed {
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, RemoteError>> {
        Box::pin(async move {
            let message = self.stream.next().await.ok_or(RemoteError::Disconnected)?;
            Ok(Bytes::copy_from_slice(message.get_payload_bytes()))
        })
    }

    fn ping(&mut self) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(async move {
            match self.sink.ping::<redis::Value>().await.map(drop).map_err(failed) {
                // An answer like any other: one that can't write its dump refuses pings (`MISCONF`).
                Err(RemoteError::Refused(_)) => Ok(()),
                answered => answered,
            }
        })
    }
}

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBus").field("channel", &self.channel).finish_non_exhaustive()
    }
}

impl fmt::Debug for Subscribed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribed").finish_non_exhaustive()
    }
}
