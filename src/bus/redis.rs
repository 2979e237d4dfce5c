//! Hints over Redis pub/sub. Publishing shares L2's connection; a subscription has one of its own.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Bus, Subscription};
use crate::error::RemoteError;
use crate::remote::redis::address::Address;
use crate::remote::redis::channel::Channel;
use crate::remote::redis::dial::failed;
use crate::remote::redis::{Link, Server};
use crate::wire::MAX_HINT;

/// Longest message, with the name of its channel.
const MAX_MESSAGE: usize = MAX_HINT + 1_024;

mod cluster;
mod subscribed;
pub(crate) mod tiers;

use subscribed::{Subscribed, moved};

/// The channel of one app on one Redis or Valkey server.
struct RedisBus {
    link: Arc<Link>,
    /// Another server to subscribe at.
    elsewhere: Option<Address>,
    channel: String,
}

impl Bus for RedisBus {
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<Option<u64>, RemoteError>> {
        Box::pin(async move {
            let mut connection = self.link.connection()?;
            let publish = redis::cmd("PUBLISH").arg(&self.channel).arg(&message[..]).to_owned();
            let receivers: u64 = publish.query_async(&mut connection).await.map_err(failed)?;
            // A server counts its own subscribers only.
            Ok(self.elsewhere.is_none().then_some(receivers))
        })
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, RemoteError>> {
        Box::pin(async move {
            // Before it is known which server that is: one that moves meanwhile is found out.
            let mut places = self.link.moves();
            let server = self.link.server().await?;
            let at = self.elsewhere.as_ref().unwrap_or(&server);
            let from = Arc::clone(&server);
            let another =
                move |now: &Option<Server>| now.as_ref().is_some_and(|now| !Arc::ptr_eq(now, &from));
            let channel = tokio::select! {
                biased;
                // Who is left may never answer.
                left = moved(&mut places, &another) => return Err(left),
                channel = Channel::subscribe(at, &self.channel, MAX_MESSAGE) => channel?,
            };
            Ok(Box::new(Subscribed { heard: Box::new(channel), places, moves: Box::new(another) }) as _)
        })
    }
}

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBus").field("channel", &self.channel).finish_non_exhaustive()
    }
}
