//! Hints: how instances learn of a write within a millisecond. The seam.
//!
//! A hint may be lost, doubled, reordered or late. None of it matters to the promise: the tail repairs it.

use std::fmt::Debug;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::error::RemoteError;

#[cfg(feature = "redis")]
pub(crate) mod redis;

/// Carries messages from each instance to all.
pub trait Bus: Debug + Send + Sync + 'static {
    /// Sends `message` to all who are subscribed now. Returns how many these were, where that is known: with none, not even
    /// the sender's own subscription, messages go to another server than subscriptions.
    ///
    /// # Errors
    /// If it could not be sent. Nobody retries: the log has it.
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<Option<u64>, RemoteError>>;

    /// Subscribes, over a connection of its own.
    ///
    /// # Errors
    /// If the server can't be reached.
    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, RemoteError>>;
}

/// One subscription. Dropping it unsubscribes.
pub trait Subscription: Debug + Send {
    /// The next message. Dropping the future loses none.
    ///
    /// # Errors
    /// If the subscription broke; messages may be missing.
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, RemoteError>>;

    /// Returns when the server has answered on this very connection: its answer follows every earlier message.
    ///
    /// # Errors
    /// If the subscription broke.
    fn ping(&mut self) -> BoxFuture<'_, Result<(), RemoteError>>;
}
