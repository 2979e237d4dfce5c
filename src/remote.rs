//! L2: values shared by all instances. The seam, and the breaker in front of it.
//!
//! Nothing here is needed for the promise. A remote may lose, refuse, double or delay anything, and may come back with
//! old content: what it returns is judged by its stamp like any other value.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use crate::error::RemoteError;
use crate::health::signals::Signals;
use crate::health::troubles::TroubleKind;

#[cfg(feature = "redis")]
pub(crate) mod redis;

/// The second tier. Implementations must be safe to call concurrently, and to drop at any await.
pub trait Remote: Debug + Send + Sync + 'static {
    /// Reads the values of `keys`, in one round trip. One answer a key, in order. Of a value that has more bytes than `most`, which is
    /// none of ours, one more than these is enough.
    ///
    /// # Errors
    /// If the remote can't be used. The caller goes on without.
    fn get<'a>(
        &'a self,
        keys: &'a [String],
        most: usize,
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, RemoteError>>;

    /// The host and the port, or the path of the socket, of the server that has all of `keys`, where that is one: for traces. By default
    /// nobody knows.
    fn server(&self, _keys: &[String]) -> Option<(String, Option<u16>)> {
        None
    }

    /// Is told that an answer to [`Remote::get`] did not come in time. By default that is nothing to it.
    fn is_late(&self) {}

    /// Puts `value` under `key` for `ttl`, unless what is there is newer, or is a tombstone of an invalidation that
    /// the value does not contain. Returns whether it was put.
    ///
    /// # Errors
    /// If the remote can't be used.
    fn fill<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, RemoteError>>;

    /// [`Remote::fill`] for each of `fills`, a key, its value and its time to live, in one round trip. By default each goes
    /// its own way, at the same time. `fills` is never empty.
    ///
    /// # Errors
    /// If the remote can't be used. Some may have been put then.
    fn fill_many<'a>(
        &'a self,
        fills: &'a [(String, Bytes, Duration)],
    ) -> BoxFuture<'a, Result<(), RemoteError>> {
        let each = fills.iter().map(|(key, value, ttl)| self.fill(key, value.clone(), *ttl));
        Box::pin(
            futures_util::future::join_all(each).map(|put| put.into_iter().try_for_each(|put| put.map(drop))),
        )
    }

    /// Puts tombstones for transaction `xid` in place of those values of `keys` that do not contain it, in one round
    /// trip.
    ///
    /// # Errors
    /// If the remote can't be used.
    fn invalidate<'a>(
        &'a self,
        keys: &'a [String],
        xid: u64,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), RemoteError>>;

    /// Removes what is under `key` if it still is `seen`, or what [`Remote::get`] has cut to that: damaged bytes, whose stamp may look newer than any and keep good
    /// values out. By default they stay for their time to live.
    ///
    /// # Errors
    /// If the remote can't be used.
    fn discard<'a>(&'a self, key: &'a str, seen: Bytes) -> BoxFuture<'a, Result<(), RemoteError>> {
        drop((key, seen));
        Box::pin(async { Ok(()) })
    }

    /// Claims each of `names` for `ttl`, in one round trip. For each, whether it was free. By default all always are: each instance loads
    /// for itself.
    ///
    /// # Errors
    /// If the remote can't be used.
    fn claim<'a>(
        &'a self,
        names: &'a [String],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<bool>, RemoteError>> {
        let _nobody_else = ttl;
        Box::pin(std::future::ready(Ok(vec![true; names.len()])))
    }

    /// Lets go what was claimed. By default that ends by itself.
    ///
    /// # Errors
    /// If the remote can't be used.
    fn release<'a>(&'a self, names: &'a [String]) -> BoxFuture<'a, Result<(), RemoteError>> {
        let _end_by_themselves = names;
        Box::pin(async { Ok(()) })
    }

    /// Connects where that is needed, and returns when the server has answered.
    ///
    /// # Errors
    /// If the server did not.
    fn ping(&self) -> BoxFuture<'_, Result<(), RemoteError>>;

    /// Follows the server where it moves by itself. An instance runs it until it ends; so does whoever wraps a remote. By default there is nothing to follow, and it never returns.
    fn tend(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// Closed while the remote answers. Opens at the first trouble, so that an outage costs a read its L2 timeout once, and
/// the reads after it nothing.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    open: AtomicBool,
    opened: Notify,
    /// How often a server was left that said that it is of no use, or that nobody listens to.
    left: AtomicU64,
}

impl Breaker {
    pub(crate) fn is_closed(&self) -> bool {
        !self.open.load(Ordering::Acquire)
    }

    pub(crate) fn trip(&self) {
        if !self.open.swap(true, Ordering::AcqRel) {
            self.opened.notify_one();
        }
    }

    /// As [`Breaker::trip`], and whoever has another connection there leaves it too.
    pub(crate) fn leave(&self) {
        self.left.fetch_add(1, Ordering::AcqRel);
        self.trip();
    }

    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// Pings the remote for as long as the breaker is open, and closes it at the first answer. Never returns.
    pub(crate) async fn mend(&self, remote: &dyn Remote, limit: Duration, signals: &Signals) {
        loop {
            while self.is_closed() {
                self.opened.notified().await;
            }
            signals.changed();
            let mut pause = Duration::from_millis(20);
            while let Err(error) = ping(remote, limit).await {
                let why =
                    format!("reads go on without L2, writes without hints: {}", crate::error::chain(&error));
                signals.begin(TroubleKind::RedisUnusable.anywhere(), &why);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(500));
            }
            self.open.store(false, Ordering::Release);
            signals.end(&TroubleKind::RedisUnusable.anywhere());
            signals.changed();
        }
    }
}

pub(crate) async fn ping(remote: &dyn Remote, limit: Duration) -> Result<(), RemoteError> {
    match tokio::time::timeout(limit, remote.ping()).await {
        Ok(answered) => answered,
        Err(_elapsed) => Err(RemoteError::Timeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breaker_opens_at_the_first_trouble() {
        let breaker = Breaker::default();
        assert!(breaker.is_closed());
        breaker.trip();
        breaker.trip();
        assert!(!breaker.is_closed());
    }
}
