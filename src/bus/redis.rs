//! Hints over Redis pub/sub. Publishing shares L2's connection; a subscription has one of its own. And both tiers of a URL.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Bus, Subscription};
use crate::error::{RemoteError, StartError};
use crate::remote::Remote;
use crate::remote::redis::address::Address;
use crate::remote::redis::channel::Channel;
use crate::remote::redis::cluster::{Cluster, ClusterRemote};
use crate::remote::redis::dial::failed;
use crate::remote::redis::{Link, RedisRemote, Server};
use crate::wire::MAX_HINT;

/// Longest message, with the name of its channel.
const MAX_MESSAGE: usize = MAX_HINT + 1_024;

mod cluster;

use cluster::ClusterBus;

pub(crate) type Tiers = (Arc<dyn Remote>, Arc<dyn Bus>);

/// L2 and the bus of one app, over the same connections. Who waits for L2 waits for `timeout`. Hints may be received at another
/// server than they are published at: through a proxy, or at a replica.
///
/// # Errors
/// What is wrong with a URL.
pub(crate) fn tiers(
    url: &str,
    app: &str,
    timeout: Duration,
    subscribe_at: Option<&str>,
) -> Result<Tiers, StartError> {
    let wrong = |setting| move |problem| StartError::Setting { setting, problem };
    let address = Address::parse(url).map_err(wrong("redis"))?;
    let elsewhere = subscribe_at.map(Address::parse).transpose().map_err(wrong("subscribe_at"))?;
    let one_each = address.cluster().is_none() && elsewhere.as_ref().is_none_or(Address::is_one_server);
    if elsewhere.is_some() && !one_each {
        let problem = "hints are received where they are published, but for those of one server".to_owned();
        return Err(wrong("subscribe_at")(problem));
    }
    let channel = format!("perto:{app}:bus");
    if address.cluster().is_some() {
        let cluster = Cluster::new(address, timeout);
        let bus = ClusterBus::new(Arc::clone(&cluster), channel, MAX_MESSAGE);
        return Ok((Arc::new(ClusterRemote::new(cluster)), Arc::new(bus)));
    }
    let link = Link::new(address, app);
    let bus = RedisBus { link: Arc::clone(&link), elsewhere, channel };
    Ok((Arc::new(RedisRemote::new(link)), Arc::new(bus)))
}

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
