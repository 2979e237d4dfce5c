//! Hints over Redis pub/sub. Publishing shares L2's connection; a subscription has one of its own.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Bus, Subscription};
use crate::error::RemoteError;
use crate::remote::redis::address::Address;
use crate::remote::redis::channel::Channel;
use crate::remote::redis::dial::failed;
use crate::remote::redis::{Link, Server};
use crate::wire::MAX_HINT;

/// Longest message, with the name of its channel.
const MAX_MESSAGE: usize = MAX_HINT + 1_024;

/// The channel of one app on one Redis or Valkey server.
pub(crate) struct RedisBus {
    link: Arc<Link>,
    /// Another server to subscribe at.
    elsewhere: Option<Address>,
    channel: String,
}

impl RedisBus {
    pub(crate) fn new(link: Arc<Link>, app: &str) -> Self {
        Self { link, elsewhere: None, channel: format!("perto:{app}:bus") }
    }

    /// Subscribes at another address than it publishes to: through a proxy, or at a replica.
    ///
    /// # Errors
    /// If the URL makes no sense.
    pub(crate) fn subscribing_at(mut self, url: &str) -> Result<Self, String> {
        let address = Address::parse(url)?;
        if !address.is_one_server() {
            return Err("not the URL of one server, as hints are received at one".to_owned());
        }
        self.elsewhere = Some(address);
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
            Ok(self.elsewhere.is_none().then_some(receivers))
        })
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, RemoteError>> {
        Box::pin(async move {
            // Before it is known which server that is: one that moves meanwhile is found out.
            let moved = self.link.moves();
            let server = self.link.server().await?;
            let channel =
                Channel::subscribe(self.elsewhere.as_ref().unwrap_or(&server), &self.channel, MAX_MESSAGE)
                    .await?;
            Ok(Box::new(Subscribed { channel, server, moved }) as _)
        })
    }
}

#[derive(Debug)]
struct Subscribed {
    channel: Channel,
    server: Server,
    moved: watch::Receiver<Option<Server>>,
}

/// Once hints are published at another server than this.
async fn moves(from: &Server, moved: &mut watch::Receiver<Option<Server>>) -> RemoteError {
    let another = |now: &Option<Server>| now.as_ref().is_some_and(|now| !Arc::ptr_eq(now, from));
    if moved.wait_for(another).await.is_err() {
        // Nobody is left to say so.
        std::future::pending::<()>().await;
    }
    RemoteError::Disconnected
}

impl Subscription for Subscribed {
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, RemoteError>> {
        let Self { channel, server, moved } = self;
        Box::pin(async move {
            tokio::select! {
                biased;
                moved = moves(server, moved) => Err(moved),
                next = channel.next() => next,
            }
        })
    }

    fn ping(&mut self) -> BoxFuture<'_, Result<(), RemoteError>> {
        let Self { channel, server, moved } = self;
        Box::pin(async move {
            tokio::select! {
                biased;
                // A server that was left may go on answering.
                moved = moves(server, moved) => Err(moved),
                answered = channel.ping() => answered,
            }
        })
    }
}

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBus").field("channel", &self.channel).finish_non_exhaustive()
    }
}
