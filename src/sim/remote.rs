//! L2 in memory, by the rules of `src/remote/fill.lua` and `src/remote/invalidate.lua`; the contract's tests run
//! both on the same histories.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::faults::{Dice, Faults};
use crate::error::RemoteError;
use crate::remote::Remote;

/// The way of one instance to L2.
#[derive(Debug)]
pub struct SimRemote {
    server: Arc<Mutex<Server>>,
    /// The faults of this connection.
    pub faults: Faults,
}

/// What a remote held at one time.
#[derive(Debug, Clone)]
pub struct Dump(HashMap<String, Kept>);

#[derive(Debug, Default)]
struct Server {
    values: HashMap<String, Kept>,
    /// On their way. They arrive also if nobody waits for them any more.
    coming: Vec<(Instant, Change)>,
    lookups: u64,
    claims: HashMap<String, Instant>,
}

#[derive(Debug, Clone)]
struct Kept {
    bytes: Bytes,
    until: Instant,
}

#[derive(Debug, Clone)]
enum Change {
    Fill { key: String, value: Bytes, ttl: Duration, put: Arc<AtomicBool> },
    Invalidate { keys: Vec<String>, xid: u64, ttl: Duration },
}

impl SimRemote {
    /// A server of its own.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { server: Arc::default(), faults: Faults::new(seed) }
    }

    /// Another connection to the same server.
    #[must_use]
    pub fn another(&self, seed: u64) -> Self {
        Self { server: Arc::clone(&self.server), faults: Faults::new(seed) }
    }

    /// Drops everything.
    pub fn flush(&self) {
        let mut server = self.settled();
        server.values.clear();
        server.claims.clear();
    }

    /// Keeps what is there, for [`SimRemote::restore`].
    #[must_use]
    pub fn dump(&self) -> Dump {
        Dump(self.settled().values.clone())
    }

    /// Goes back to an earlier content: a failover to a stale replica, or a restart from an old file.
    pub fn restore(&self, dump: &Dump) {
        self.settled().values.clone_from(&dump.0);
    }

    /// Puts any bytes under a key.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>, ttl: Duration) {
        let kept = Kept { bytes: bytes.into(), until: Instant::now() + ttl };
        self.settled().values.insert(key.to_owned(), kept);
    }

    /// Changes one byte of each value.
    pub fn scramble(&self, dice: &mut Dice) {
        let mut server = self.settled();
        let mut keys: Vec<String> = server.values.keys().cloned().collect();
        keys.sort();
        for key in keys {
            if let Some(kept) = server.values.get_mut(&key) {
                let mut bytes = BytesMut::from(&kept.bytes[..]);
                let at = dice.index(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= u8::try_from(1 + dice.below(255)).unwrap_or(1);
                }
                kept.bytes = bytes.freeze();
            }
        }
    }

    /// The keys there are, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.settled().values.keys().cloned().collect();
        keys.sort();
        keys
    }

    /// What lies under a key.
    #[must_use]
    pub fn peek(&self, key: &str) -> Option<Bytes> {
        self.settled().values.get(key).map(|kept| kept.bytes.clone())
    }

    /// Round trips that asked for values, from all connections.
    #[must_use]
    pub fn lookups(&self) -> u64 {
        self.server.lock().lookups
    }

    fn settled(&self) -> parking_lot::MutexGuard<'_, Server> {
        let mut server = self.server.lock();
        server.settle(Instant::now());
        server
    }

    async fn send(&self, change: Change) -> Result<(), RemoteError> {
        self.faults.unless_hung().await?;
        if self.faults.draw_lost() {
            return Ok(());
        }
        let due = Instant::now() + self.faults.draw_delay();
        {
            let mut server = self.server.lock();
            server.coming.push((due, change));
            server.settle(Instant::now());
        }
        tokio::time::sleep_until(due).await;
        drop(self.settled());
        Ok(self.faults.pass().await?)
    }
}

impl Server {
    fn settle(&mut self, now: Instant) {
        // Stable: what is due at one time keeps its order.
        self.coming.sort_by_key(|(due, _)| *due);
        let later = self.coming.partition_point(|(due, _)| *due <= now);
        for (due, change) in self.coming.drain(..later).collect::<Vec<_>>() {
            self.values.retain(|_, kept| kept.until > due);
            match change {
                Change::Fill { key, value, ttl, put } => {
                    put.store(self.fill(key, value, due + ttl), Ordering::Release);
                }
                Change::Invalidate { keys, xid, ttl } => {
                    for key in keys {
                        self.invalidate(key, xid, due + ttl);
                    }
                }
            }
        }
        self.values.retain(|_, kept| kept.until > now);
    }

    fn fill(&mut self, key: String, value: Bytes, until: Instant) -> bool {
        if let (Some(there), Some(new)) =
            (self.values.get(&key).and_then(|kept| Head::read(&kept.bytes)), Head::read(&value))
        {
            let refused = match there.kind {
                b'T' => !(new.a > there.a || (new.a > there.b && new.contains(there.a))),
                b'V' => (new.a, new.b, there.n) <= (there.a, there.b, new.n),
                _ => false,
            };
            if refused {
                return false;
            }
        }
        self.values.insert(key, Kept { bytes: value, until });
        true
    }

    fn invalidate(&mut self, key: String, xid: u64, until: Instant) {
        let (mut hi, mut lo) = (xid, 0);
        match self.values.get(&key).and_then(|kept| Head::read(&kept.bytes)) {
            Some(there) if there.kind == b'V' && there.whole() && there.contains(xid) => return,
            Some(there) if there.kind == b'T' => {
                if xid == there.a || xid <= there.b {
                    return;
                }
                (hi, lo) = (xid.max(there.a), xid.min(there.a));
            }
            _ => {}
        }
        let mut tombstone = BytesMut::from(&b"P\x04T\0\0\0\0\0"[..]);
        tombstone.put_u64(hi);
        tombstone.put_u64(lo);
        tombstone.put_bytes(0, 16);
        self.values.insert(key, Kept { bytes: tombstone.freeze(), until });
    }
}

/// The part of a value that the scripts read.
struct Head<'a> {
    kind: u8,
    n: u8,
    a: u64,
    b: u64,
    running: &'a [u8],
}

impl<'a> Head<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let bytes = &bytes[..bytes.len().min(296)];
        if bytes.len() < 40 || bytes[..2] != *b"P\x04" {
            return None;
        }
        let number = |at: usize| bytes[at..at + 8].iter().fold(0, |n, b| n << 8 | u64::from(*b));
        Some(Self { kind: bytes[2], n: bytes[4], a: number(8), b: number(16), running: &bytes[40..] })
    }

    fn whole(&self) -> bool {
        self.running.len() >= 4 * usize::from(self.n)
    }

    fn contains(&self, xid: u64) -> bool {
        let running = self.running.chunks_exact(4).take(usize::from(self.n));
        let mut running = running.map(|four| self.a + four.iter().fold(0, |n, b| n << 8 | u64::from(*b)));
        xid < self.a || (xid < self.b && !running.any(|running| running == xid))
    }
}

impl Remote for SimRemote {
    fn get<'a>(
        &'a self,
        keys: &'a [String],
        most: usize,
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, RemoteError>> {
        Box::pin(async move {
            self.faults.pass().await?;
            let found = {
                let mut server = self.settled();
                server.lookups += 1;
                let read = |bytes: &Bytes| bytes.slice(..bytes.len().min(most.saturating_add(1)));
                keys.iter().map(|key| server.values.get(key).map(|kept| read(&kept.bytes))).collect()
            };
            self.faults.pass().await?;
            Ok(found)
        })
    }

    fn fill<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, RemoteError>> {
        Box::pin(async move {
            let put = Arc::new(AtomicBool::new(false));
            let ttl = ttl.max(Duration::from_millis(1));
            self.send(Change::Fill { key: key.to_owned(), value, ttl, put: Arc::clone(&put) }).await?;
            Ok(put.load(Ordering::Acquire))
        })
    }

    fn invalidate<'a>(
        &'a self,
        keys: &'a [String],
        xid: u64,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), RemoteError>> {
        let ttl = ttl.max(Duration::from_millis(1));
        Box::pin(self.send(Change::Invalidate { keys: keys.to_vec(), xid, ttl }))
    }

    fn claim<'a>(
        &'a self,
        names: &'a [String],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<bool>, RemoteError>> {
        Box::pin(async move {
            self.faults.pass().await?;
            let claimed = {
                let (mut server, now) = (self.server.lock(), Instant::now());
                server.claims.retain(|_, until| *until > now);
                let mut claim = |name: &String| match server.claims.entry(name.clone()) {
                    Entry::Occupied(_) => false,
                    Entry::Vacant(free) => {
                        free.insert(now + ttl);
                        true
                    }
                };
                names.iter().map(&mut claim).collect::<Vec<bool>>()
            };
            self.faults.pass().await?;
            Ok(claimed)
        })
    }

    fn release<'a>(&'a self, names: &'a [String]) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move {
            self.faults.pass().await?;
            let mut server = self.server.lock();
            server.claims.retain(|name, _| !names.contains(name));
            Ok(())
        })
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(async move { Ok(self.faults.pass().await?) })
    }
}
