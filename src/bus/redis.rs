//! Hints over Redis pub/sub. Publishing shares L2's connection; a subscription has one of its own.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use redis::aio::{PubSubSink, PubSubStream};

use super::{Bus, Subscription};
use crate::error::RemoteError;
use crate::remote::redis::address::Address;
use crate::remote::redis::frames::Waiting;
use crate::remote::redis::{Link, dial, failed};
use crate::wire::MAX_HINT;

const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Longest message, with the name of its channel.
const MAX_MESSAGE: usize = MAX_HINT + 1_024;
/// Bytes of messages that may wait to be taken. With more the subscription is over, and a poll brings what they said.
const MAX_WAITING: usize = 8 << 20;
/// What is sent with each message, besides its channel and itself.
const AROUND: usize = b"*3\r\n$7\r\nmessage\r\n$1\r\n\r\n$1\r\n\r\n".len();

/// The channel of one app on one Redis or Valkey server.
pub(crate) struct RedisBus {
    link: Arc<Link>,
    subscriber: Address,
    /// Whether that is another server's.
    elsewhere: bool,
    channel: String,
}

impl RedisBus {
    pub(crate) fn new(link: Arc<Link>, app: &str) -> Self {
        let subscriber = link.server().clone();
        Self { link, subscriber, elsewhere: false, channel: format!("perto:{app}:bus") }
    }

    /// Subscribes at another address than it publishes to: through a proxy, or at a replica.
    ///
    /// # Errors
    /// If the URL makes no sense.
    pub(crate) fn subscribing_at(mut self, url: &str) -> Result<Self, String> {
        self.subscriber = Address::parse(url)?;
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
                let waiting = Waiting::default();
                let connecting = dial::messages(&self.subscriber, MAX_MESSAGE, waiting.clone(), MAX_WAITING);
                let (mut sink, stream) = connecting.await?.split();
                sink.subscribe(&self.channel).await?;
                Ok(Subscribed { sink, stream, waiting })
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
    waiting: Waiting,
}

impl Subscription for Subscribed {
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, RemoteError>> {
        Box::pin(async move {
            let next = poll_fn(|cx| {
                let next = self.stream.poll_next_unpin(cx);
                if next.is_pending() {
                    self.waiting.none_left();
                }
                next
            });
            let message = next.await.ok_or(RemoteError::Disconnected)?;
            let payload = message.get_payload_bytes();
            self.waiting.taken(AROUND + message.get_channel_name().len() + payload.len());
            Ok(Bytes::copy_from_slice(payload))
        })
    }

    fn ping(&mut self) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(async move {
            // To the client an error is a value like others here.
            let answered = self.sink.ping::<redis::Value>().await.and_then(redis::Value::extract_error);
            match answered.map(drop).map_err(failed) {
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
