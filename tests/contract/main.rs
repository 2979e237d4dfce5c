//! The contract of each seam, kept by the simulated and by the real implementation alike: what the other tests show
//! on simulated tiers holds for those that keep it.
//!
//! Redis is at `REDIS_URL`, Postgres at `DATABASE_URL`, else at their usual places on this machine. A test whose
//! engine is absent fails.
#![cfg(all(feature = "redis", feature = "postgres"))]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where it is wrong")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use support::cluster::PrivateCluster;
#[cfg(unix)]
use support::redis::PrivateRedis;
use support::sentinels::Watched;
use tokio::sync::Mutex;

#[cfg(feature = "tls")]
#[path = "../support/front.rs"]
#[expect(dead_code, reason = "other rings use the rest")]
mod front;
#[path = "../support/support.rs"]
#[expect(dead_code, reason = "other rings use the rest")]
mod support;

mod bus;
mod clock;
mod log;
mod remote;
#[cfg(feature = "tls")]
mod secured;

/// Runs each function of a module on both implementations.
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod simulated {
            $(#[tokio::test]
            async fn $name() {
                super::simulated(super::$name).await;
            })*
        }
        mod real {
            $(#[tokio::test]
            async fn $name() {
                super::real(super::$name).await;
            })*
        }
    };
}
pub(crate) use both;

/// Runs each function of a module on other topologies of the real one too.
macro_rules! everywhere {
    ($($name:ident),* $(,)?) => {
        $crate::both!($($name),*);
        mod behind_sentinels {
            $(#[tokio::test]
            async fn $name() {
                let watched = $crate::WATCHED.get($crate::support::sentinels::Watched::start).await;
                super::on(&watched.url(), super::$name).await;
            })*
        }
        #[cfg(unix)]
        mod by_a_unix_socket {
            $(#[tokio::test]
            async fn $name() {
                let redis =
                    $crate::SOCKET.get($crate::support::redis::PrivateRedis::start_with_a_socket).await;
                super::on(&redis.socket_url(), super::$name).await;
            })*
        }
        #[cfg(feature = "tls")]
        mod by_tls {
            $(#[tokio::test]
            async fn $name() {
                let secured = $crate::secured::Secured::start().await;
                super::on(&secured.url(), super::$name).await;
            })*
        }
        mod in_a_cluster {
            $(#[tokio::test]
            async fn $name() {
                let cluster = $crate::CLUSTER.get($crate::support::cluster::PrivateCluster::start).await;
                super::on(&cluster.url(), super::$name).await;
            })*
        }
    };
}
pub(crate) use everywhere;

/// Servers that tests share for as long as one of them runs.
pub(crate) struct SharedBy<T>(Mutex<Weak<T>>);

impl<T> SharedBy<T> {
    pub(crate) async fn get(&self, start: impl AsyncFnOnce() -> T) -> Arc<T> {
        let mut shared = self.0.lock().await;
        if let Some(shared) = shared.upgrade() {
            return shared;
        }
        let started = Arc::new(start().await);
        *shared = Arc::downgrade(&started);
        started
    }
}

pub(crate) static WATCHED: SharedBy<Watched> = SharedBy(Mutex::const_new(Weak::new()));
#[cfg(unix)]
pub(crate) static SOCKET: SharedBy<PrivateRedis> = SharedBy(Mutex::const_new(Weak::new()));
pub(crate) static CLUSTER: SharedBy<PrivateCluster> = SharedBy(Mutex::const_new(Weak::new()));

pub(crate) fn redis_url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_unset| "redis://127.0.0.1:6379".to_owned())
}

pub(crate) fn database_url() -> String {
    let default = || "postgres://postgres@127.0.0.1:5432/postgres".to_owned();
    std::env::var("DATABASE_URL").unwrap_or_else(|_unset| default())
}

/// A name that no other test has, nor an earlier run. At most 20 lower-case letters and digits.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() % (1 << 40);
    let next = NEXT.fetch_add(1, Ordering::Relaxed) & 0xFFF;
    format!("{prefix}{micros:010x}{next:03x}")
}

/// Asks until the answer is yes.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), asking).await.is_ok(), "not within 10 s: {what}");
}
