//! Perto's tiers on Redis or Valkey, each by itself: to wrap them, to test them, or to give an instance one of them.
//!
//! An instance makes both from [`PertoBuilder::redis`](crate::PertoBuilder::redis).

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use ::redis::RedisResult;
use ::redis::aio::MultiplexedConnection;
use futures_util::future::select_ok;

use crate::bus::Bus;
use crate::error::{RemoteError, StartError};
use crate::instance::builder::REMOTE_TIMEOUT;
use crate::remote::Remote;
pub use crate::remote::redis::address::Address;
use crate::remote::redis::cluster::Cluster;
pub use crate::remote::redis::credentials::Credentials;
use crate::remote::redis::dial::{self, Dialled};
use crate::remote::redis::sentinels;
use crate::remote::redis::slots::slot;

/// L2 and the bus of one app, over one connection.
#[derive(Debug, Clone)]
pub struct Tiers {
    /// For [`PertoBuilder::remote`](crate::PertoBuilder::remote). Its [`Remote::ping`] connects both, and its [`Remote::tend`]
    /// follows what Sentinels say.
    pub remote: Arc<dyn Remote>,
    /// For [`PertoBuilder::bus`](crate::PertoBuilder::bus). Publishing fails until there is a connection.
    pub bus: Arc<dyn Bus>,
}

/// Reads a URL as [`PertoBuilder::redis`](crate::PertoBuilder::redis) does: for a connection of your own. Of I/O there is no more
/// than a look at the files that it names.
///
/// # Errors
/// What is wrong with the URL, without quoting it.
pub fn address(url: &str) -> Result<Address, StartError> {
    Address::of_setting(url)
}

/// The tiers of one app on one server or cluster. No I/O.
///
/// # Errors
/// If the URL makes no sense.
pub fn tiers(url: &str, app: &str) -> Result<Tiers, StartError> {
    tiers_within(url, app, REMOTE_TIMEOUT)
}

/// The same for an instance with another [`PertoBuilder::remote_timeout`](crate::PertoBuilder::remote_timeout): for a node of a cluster
/// nobody waits for as long as that.
///
/// # Errors
/// If the URL makes no sense.
pub fn tiers_within(url: &str, app: &str, remote_timeout: Duration) -> Result<Tiers, StartError> {
    Ok(tiers_at(address(url)?, app, remote_timeout))
}

/// The same at an address: for one that [has a password asked for](Address::with_credentials).
#[must_use]
pub fn tiers_at(address: Address, app: &str, remote_timeout: Duration) -> Tiers {
    let (remote, bus) = crate::bus::redis::tiers::tiers(address, app, remote_timeout, None);
    Tiers { remote, bus }
}

/// Where each Sentinel of an address says that the server is, or why it does not: `host:port` of both. Empty for a server's own
/// address.
pub async fn ask_sentinels(address: &Address) -> Vec<(String, Result<String, RemoteError>)> {
    let Some(watching) = address.sentinels() else { return Vec::new() };
    sentinels::ask_all(address, watching).await
}

/// The nodes that have the slots of an address's cluster, or the address itself where it is of none.
///
/// # Errors
/// If no node says which they are.
pub async fn nodes(address: &Address) -> Result<Vec<Address>, RemoteError> {
    if address.cluster().is_none() {
        return Ok(vec![address.clone()]);
    }
    let map = Cluster::new(address.clone(), REMOTE_TIMEOUT).known().await?;
    Ok(map.nodes().iter().map(|node| node.address.clone()).collect())
}

/// The nodes that follow those of [`nodes`] and may take their places. None where it is of no cluster.
///
/// # Errors
/// If no node says which they are.
pub async fn replicas(address: &Address) -> Result<Vec<Address>, RemoteError> {
    if address.cluster().is_none() {
        return Ok(Vec::new());
    }
    Ok(Cluster::new(address.clone(), REMOTE_TIMEOUT).known().await?.replicas.clone())
}

/// That of a cluster's nodes which has a key's slot, or the address itself where it is of none.
///
/// # Errors
/// If no node says which it is.
pub async fn owner(address: &Address, key: &str) -> Result<Address, RemoteError> {
    if address.cluster().is_none() {
        return Ok(address.clone());
    }
    let map = Cluster::new(address.clone(), REMOTE_TIMEOUT).known().await?;
    map.owner(slot(key)).map(|node| node.address.clone()).ok_or(RemoteError::Disconnected)
}

/// A connection of your own for commands. It ends with this.
pub struct Connection {
    dialled: Dialled,
    server: Address,
}

/// Connects to a server, and keeps no answer in memory that has more than `most` bytes of text.
///
/// Behind Sentinels that is the server that they name now. Of a cluster it is the first of the URL's nodes that answers.
/// Longer texts are read as empty ones. Connecting takes no longer than `limit`, and an answer neither.
/// Dropping the future gives the connection up.
///
/// # Errors
/// If the server can't be reached or refuses.
pub async fn connect(server: &Address, most: usize, limit: Duration) -> RedisResult<Connection> {
    if let Some(nodes) = server.cluster() {
        let each = nodes.iter().map(|node| Box::pin(with(node.clone(), most, limit)));
        return select_ok(each).await.map(|(connection, _others)| connection);
    }
    match server.sentinels() {
        None => with(server.clone(), most, limit).await,
        Some(watching) => {
            with(sentinels::find(server, watching).await.map_err(io::Error::other)?, most, limit).await
        }
    }
}

async fn with(server: Address, most: usize, limit: Duration) -> RedisResult<Connection> {
    let dialled = dial::commands(&server, most, limit, Some(limit)).await?;
    Ok(Connection { dialled, server })
}

impl Connection {
    /// The server that it is with.
    #[must_use]
    pub const fn server(&self) -> &Address {
        &self.server
    }
}

impl Deref for Connection {
    type Target = MultiplexedConnection;

    fn deref(&self) -> &MultiplexedConnection {
        &self.dialled.connection
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut MultiplexedConnection {
        &mut self.dialled.connection
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("server", &self.server).finish_non_exhaustive()
    }
}
