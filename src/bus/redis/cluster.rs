//! Hints in a cluster: by sharded pub/sub, at the node that has the slot of the channel's name. Where servers have none, by plain
//! pub/sub at that same node: so a ping's answer follows every earlier message there too.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use redis::Cmd;

use super::subscribed::{Subscribed, moved};
use crate::bus::{Bus, Subscription};
use crate::error::{RemoteError, chain};
use crate::remote::redis::channel::{Channel, ShardChannel};
use crate::remote::redis::cluster::{Asked, Cluster};
use crate::remote::redis::lanes::Lane;
use crate::remote::redis::nodes::{Map, Node};
use crate::remote::redis::slots::slot;

/// How long it may take to hear of the owner of a slot that has moved.
const MOVES_WITHIN: Duration = Duration::from_millis(250);

/// The channel of one app in a cluster.
pub(super) struct ClusterBus {
    cluster: Arc<Cluster>,
    channel: String,
    /// Longest message, with the name of its channel.
    most: usize,
    /// Servers before 7.0 know it not.
    sharded: AtomicBool,
}

impl ClusterBus {
    pub(super) fn new(cluster: Arc<Cluster>, channel: String, most: usize) -> Self {
        Self { cluster, channel, most, sharded: AtomicBool::new(true) }
    }

    async fn send(&self, command: &str, message: &[u8]) -> Result<(), RemoteError> {
        let mut publish = Cmd::new();
        publish.arg(command).arg(&self.channel).arg(message);
        let asked = [Asked::plain(&self.channel, publish)];
        let sent = self.cluster.exchange(Lane::Awaited, &asked, self.cluster.patience()).await;
        self.cluster.outcome(sent.into_iter().filter_map(Result::err).collect(), 1)
    }

    /// Each time it is tried anew: the server may be a newer one than before.
    async fn subscribe_at(&self, node: &Node) -> Result<Box<dyn Subscription>, RemoteError> {
        match ShardChannel::subscribe(&node.address, &self.channel, self.most).await {
            Err(error) if is_unknown(&error) => {
                self.sharded.store(false, Ordering::Relaxed);
                let plain = Channel::subscribe(&node.address, &self.channel, self.most).await?;
                Ok(Box::new(plain))
            }
            Err(error) => Err(error),
            Ok(sharded) => {
                self.sharded.store(true, Ordering::Relaxed);
                Ok(Box::new(sharded))
            }
        }
    }
}

/// Whether a server has no such command.
fn is_unknown(error: &RemoteError) -> bool {
    matches!(error, RemoteError::Refused(why) if chain(&**why).contains("unknown command"))
}

impl Bus for ClusterBus {
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<Option<u64>, RemoteError>> {
        Box::pin(async move {
            if self.sharded.load(Ordering::Relaxed) {
                match self.send("SPUBLISH", &message).await {
                    Err(error) if is_unknown(&error) => self.sharded.store(false, Ordering::Relaxed),
                    sent => return sent.map(|()| None),
                }
            }
            // How many there are is not known: a subscription moves after the slot does.
            self.send("PUBLISH", &message).await.map(|()| None)
        })
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, RemoteError>> {
        Box::pin(async move {
            self.cluster.known().await?;
            let (slot, mut maps) = (slot(&self.channel), self.cluster.maps());
            let owner = |map: &Arc<Map>| map.owner(slot).cloned().ok_or(RemoteError::Disconnected);
            // Once the slot is another node's.
            let moves = |from: &Arc<Node>| {
                let from = Arc::clone(from);
                move |map: &Arc<Map>| map.owner(slot).is_some_and(|owner| !Arc::ptr_eq(owner, &from))
            };
            let mut node = owner(&maps.borrow())?;
            let elsewhere = moves(&node);
            let subscribed = tokio::select! {
                biased;
                // Who is left may never answer.
                left = moved(&mut maps, &elsewhere) => Err(left),
                subscribed = self.subscribe_at(&node) => subscribed,
            };
            let heard = match subscribed {
                Ok(heard) => heard,
                Err(error) => {
                    // Perhaps it is another node's by now.
                    self.cluster.wish();
                    let moving = tokio::time::timeout(MOVES_WITHIN, maps.wait_for(moves(&node)));
                    if !matches!(moving.await, Ok(Ok(_))) {
                        return Err(error);
                    }
                    node = owner(&maps.borrow())?;
                    self.subscribe_at(&node).await?
                }
            };
            Ok(Box::new(Subscribed { heard, places: maps, moves: Box::new(moves(&node)) }) as _)
        })
    }
}

impl fmt::Debug for ClusterBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterBus").field("channel", &self.channel).finish_non_exhaustive()
    }
}
