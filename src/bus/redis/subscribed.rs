//! A subscription that is over once hints are published elsewhere: who is left may go on answering.

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::bus::Subscription;
use crate::error::RemoteError;
use crate::remote::redis::channel::{Channel, ShardChannel};

/// A subscription with the place that it is at.
pub(super) struct Subscribed<T> {
    pub(super) heard: Box<dyn Subscription>,
    pub(super) places: watch::Receiver<T>,
    /// Whether it is another place by now.
    pub(super) moves: Box<dyn Fn(&T) -> bool + Send + Sync>,
}

/// Returns once it is another place.
pub(super) async fn moved<T>(
    places: &mut watch::Receiver<T>,
    moves: &(dyn Fn(&T) -> bool + Send + Sync),
) -> RemoteError {
    if places.wait_for(|now| moves(now)).await.is_err() {
        // Nobody is left to say so.
        std::future::pending::<()>().await;
    }
    RemoteError::Disconnected
}

impl<T: Send + Sync + 'static> Subscription for Subscribed<T> {
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, RemoteError>> {
        let Self { heard, places, moves } = self;
        Box::pin(async move {
            tokio::select! {
                biased;
                moved = moved(places, &**moves) => Err(moved),
                next = heard.next() => next,
            }
        })
    }

    fn ping(&mut self) -> BoxFuture<'_, Result<(), RemoteError>> {
        let Self { heard, places, moves } = self;
        Box::pin(async move {
            tokio::select! {
                biased;
                moved = moved(places, &**moves) => Err(moved),
                answered = heard.ping() => answered,
            }
        })
    }
}

impl Subscription for Channel {
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, RemoteError>> {
        Box::pin(self.next())
    }

    fn ping(&mut self) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(self.ping())
    }
}

impl Subscription for ShardChannel {
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, RemoteError>> {
        Box::pin(self.next())
    }

    fn ping(&mut self) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(self.ping())
    }
}

impl<T> fmt::Debug for Subscribed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscribed").field("heard", &self.heard).finish_non_exhaustive()
    }
}
