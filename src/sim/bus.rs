//! A bus that loses, doubles, delays and reorders.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::faults::Faults;
use crate::bus::{Bus, Subscription};
use crate::error::RemoteError;

/// The way of one instance to the bus. Its faults decide what it receives, and whether it can send.
///
/// Pings are answered whatever is lost: a server that drops messages says nothing.
#[derive(Debug)]
pub struct SimBus {
    inboxes: Arc<Mutex<Vec<Weak<Inbox>>>>,
    /// The faults of this connection.
    pub faults: Arc<Faults>,
}

#[derive(Debug)]
struct Inbox {
    messages: Mutex<Vec<(Instant, Bytes)>>,
    arrived: Notify,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct Subscribed(Arc<Inbox>);

impl SimBus {
    /// A bus of its own.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { inboxes: Arc::default(), faults: Arc::new(Faults::new(seed)) }
    }

    /// Another connection to the same bus.
    #[must_use]
    pub fn another(&self, seed: u64) -> Self {
        Self { inboxes: Arc::clone(&self.inboxes), faults: Arc::new(Faults::new(seed)) }
    }
}

impl Inbox {
    fn receive(&self, message: &Bytes) {
        if self.faults.is_cut() {
            return;
        }
        let copies = if self.faults.draw_doubled() { 2 } else { 1 };
        for _ in 0..copies {
            if !self.faults.draw_lost() {
                let due = Instant::now() + self.faults.draw_delay();
                self.messages.lock().push((due, message.clone()));
            }
        }
        self.arrived.notify_one();
    }

    /// The message that is due first, or when it will be.
    fn take(&self) -> Result<Bytes, Option<Instant>> {
        let mut messages = self.messages.lock();
        // The first of those due at one time: a bus without faults keeps the order.
        let first = messages.iter().enumerate().min_by_key(|(at, (due, _))| (*due, *at));
        match first.map(|(at, (due, _))| (at, *due)) {
            Some((at, due)) if due <= Instant::now() => Ok(messages.remove(at).1),
            Some((_, due)) => Err(Some(due)),
            None => Err(None),
        }
    }
}

impl Bus for SimBus {
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<Option<u64>, RemoteError>> {
        Box::pin(async move {
            self.faults.unless_hung().await?;
            let inboxes: Vec<_> = {
                let mut inboxes = self.inboxes.lock();
                inboxes.retain(|inbox| inbox.strong_count() > 0);
                inboxes.iter().filter_map(Weak::upgrade).collect()
            };
            inboxes.iter().for_each(|inbox| inbox.receive(&message));
            Ok(u64::try_from(inboxes.len()).ok())
        })
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, RemoteError>> {
        Box::pin(async move {
            self.faults.unless_hung().await?;
            let inbox = Arc::new(Inbox {
                messages: Mutex::default(),
                arrived: Notify::new(),
                faults: Arc::clone(&self.faults),
            });
            self.inboxes.lock().push(Arc::downgrade(&inbox));
            Ok(Box::new(Subscribed(inbox)) as _)
        })
    }
}

impl Subscription for Subscribed {
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, RemoteError>> {
        Box::pin(async move {
            loop {
                let changed = self.0.faults.changed();
                if self.0.faults.is_cut() {
                    return Err(RemoteError::Disconnected);
                }
                let due = if self.0.faults.is_hung() {
                    None
                } else {
                    match self.0.take() {
                        Ok(message) => return Ok(message),
                        Err(due) => due,
                    }
                };
                let due_comes = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = self.0.arrived.notified() => {}
                    () = due_comes => {}
                }
            }
        })
    }

    fn ping(&mut self) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(async move { Ok(self.0.faults.pass().await?) })
    }
}
