//! A subscription to one channel, over a connection of its own: to a server's, or to a shard's in a cluster.

use std::fmt;
use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use redis::aio::{PubSubSink, PubSubStream};
use redis::{PushInfo, PushKind, RedisResult, Value};
use tokio::sync::mpsc;

use super::address::Address;
use super::dial::{self, Dialled, failed};
use super::frames::Waiting;
use crate::error::RemoteError;

const SUBSCRIBE_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Bytes of messages that may wait to be taken. With more the subscription is over.
const MAX_WAITING: usize = 8 << 20;

/// Bytes that a message takes on its way.
fn sent(kind: &str, channel: &str, message: &[u8]) -> usize {
    let text = |length: usize| "$\r\n\r\n".len() + length.to_string().len() + length;
    "*3\r\n".len() + text(kind.len()) + text(channel.len()) + text(message.len())
}

async fn in_time<T>(subscribing: impl Future<Output = RedisResult<T>>) -> Result<T, RemoteError> {
    match tokio::time::timeout(SUBSCRIBE_TIMEOUT, subscribing).await {
        Ok(subscribed) => subscribed.map_err(failed),
        Err(_elapsed) => Err(RemoteError::Timeout),
    }
}

/// What is published on one channel. Dropping it unsubscribes.
pub(crate) struct Channel {
    sink: PubSubSink,
    stream: PubSubStream,
    waiting: Waiting,
}

impl Channel {
    /// No message has more bytes than `most`, with the channel's name.
    ///
    /// # Errors
    /// If the server can't be reached or refuses.
    pub(crate) async fn subscribe(server: &Address, channel: &str, most: usize) -> Result<Self, RemoteError> {
        let login = server.login().await.map_err(failed)?;
        let subscribing = async {
            let waiting = Waiting::default();
            let connecting = dial::messages(server, &login, most, waiting.clone(), MAX_WAITING);
            let (mut sink, stream) = connecting.await?.split();
            sink.subscribe(channel).await?;
            Ok(Self { sink, stream, waiting })
        };
        in_time(subscribing).await
    }

    /// The next message. Dropping the future loses none.
    ///
    /// # Errors
    /// If the subscription broke.
    pub(crate) async fn next(&mut self) -> Result<Bytes, RemoteError> {
        let next = poll_fn(|cx| {
            let next = self.stream.poll_next_unpin(cx);
            if next.is_pending() {
                self.waiting.none_left();
            }
            next
        });
        let message = next.await.ok_or(RemoteError::Disconnected)?;
        let payload = message.get_payload_bytes();
        self.waiting.taken(sent("message", message.get_channel_name(), payload));
        Ok(Bytes::copy_from_slice(payload))
    }

    /// Returns when the server has answered, after all that it had sent before.
    ///
    /// # Errors
    /// If the subscription broke.
    pub(crate) async fn ping(&mut self) -> Result<(), RemoteError> {
        // To the client an error is a value like others here.
        let answered = self.sink.ping::<Value>().await.and_then(Value::extract_error);
        match answered.map(drop).map_err(failed) {
            // An answer like any other: one that can't write its dump refuses pings (`MISCONF`).
            Err(RemoteError::Refused(_)) => Ok(()),
            answered => answered,
        }
    }
}

/// What is published on one channel of a shard, at the node that has its slot.
///
/// Where the slot moves, that node says so and goes on answering pings; and the client takes what it says for the answer to whatever
/// is waited for. So nothing but pings goes over this connection, and it is over then.
pub(crate) struct ShardChannel {
    channel: String,
    dialled: Dialled,
    messages: mpsc::UnboundedReceiver<Bytes>,
    waiting: Waiting,
}

impl ShardChannel {
    /// No message has more bytes than `most`, with the channel's name.
    ///
    /// # Errors
    /// If the node can't be reached or refuses; if the slot is another's.
    pub(crate) async fn subscribe(node: &Address, channel: &str, most: usize) -> Result<Self, RemoteError> {
        let login = node.login().await.map_err(failed)?;
        let subscribing = async {
            let waiting = Waiting::default();
            // As many as may wait by their bytes: with more the connection ends.
            let (sender, messages) = mpsc::unbounded_channel();
            let sender = Mutex::new(Some(sender));
            let hear = move |said: PushInfo| {
                let mut sender = sender.lock();
                match (said.kind, said.data.into_iter().nth(1)) {
                    (PushKind::SMessage, Some(Value::BulkString(message))) => {
                        if let Some(sender) = &*sender {
                            drop(sender.send(message.into()));
                        }
                    }
                    (PushKind::SUnsubscribe | PushKind::Disconnection, _) => *sender = None,
                    _ => {}
                }
                Ok(())
            };
            let dialled = dial::pushes(node, login, most, waiting.clone(), MAX_WAITING, hear).await?;
            let mut subscribe = redis::cmd("SSUBSCRIBE");
            subscribe.arg(channel).query_async::<Value>(&mut dialled.connection.clone()).await?;
            Ok(Self { channel: channel.to_owned(), dialled, messages, waiting })
        };
        in_time(subscribing).await
    }

    /// The next message. Dropping the future loses none.
    ///
    /// # Errors
    /// If the subscription broke, or the slot has moved.
    pub(crate) async fn next(&mut self) -> Result<Bytes, RemoteError> {
        let next = poll_fn(|cx| {
            let next = self.messages.poll_recv(cx);
            if next.is_pending() {
                self.waiting.none_left();
            }
            next
        });
        let message = next.await.ok_or(RemoteError::Disconnected)?;
        self.waiting.taken(sent("smessage", &self.channel, &message));
        Ok(message)
    }

    /// Returns when the node has answered, after all that it had sent before.
    ///
    /// # Errors
    /// If the subscription broke, or the slot has moved.
    pub(crate) async fn ping(&mut self) -> Result<(), RemoteError> {
        let answered = redis::cmd("PING").query_async::<Value>(&mut self.dialled.connection).await;
        match answered.map_err(failed) {
            Ok(Value::SimpleString(pong)) if pong == "PONG" && !self.messages.is_closed() => Ok(()),
            // An answer like any other, as in [`Channel::ping`].
            Err(RemoteError::Refused(_)) if !self.messages.is_closed() => Ok(()),
            Ok(_) => Err(RemoteError::Disconnected),
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for ShardChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardChannel").finish_non_exhaustive()
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else a busy subscription would seem to have more and more waiting.
    #[test]
    fn what_is_taken_is_what_has_come() {
        let long = "x".repeat(1_000);
        for (kind, channel, message, frame) in [
            ("message", "c", "", "*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$0\r\n\r\n".to_owned()),
            (
                "smessage",
                "perto:a:bus",
                "hint",
                ">3\r\n$8\r\nsmessage\r\n$11\r\nperto:a:bus\r\n$4\r\nhint\r\n".to_owned(),
            ),
            ("smessage", "c", &long, format!(">3\r\n$8\r\nsmessage\r\n$1\r\nc\r\n$1000\r\n{long}\r\n")),
        ] {
            assert_eq!(sent(kind, channel, message.as_bytes()), frame.len(), "{frame}");
        }
    }
}
