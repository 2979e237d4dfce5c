//! What Redis says of itself: by INFO, over a connection of our own, within a limit, and not more often than needed.
//!
//! Of a cluster it is one node.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use perto::redis::{Address, Connection, connect};
use tokio::sync::Mutex;

/// Of connecting, and of an answer.
const LIMIT: Duration = Duration::from_millis(200);
/// Longest answer. A server with many modules says some 20 KiB of itself.
const MOST: usize = 256 << 10;

/// Asks Redis, where there is one.
pub(crate) struct Redis {
    server: Option<Address>,
    asked: Mutex<Asked>,
    last: parking_lot::Mutex<Option<Info>>,
}

#[derive(Default)]
struct Asked {
    connection: Option<Connection>,
    /// The last answer, or that there was none.
    last: Option<(Instant, Option<Info>)>,
}

/// What is of interest.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Info {
    pub(crate) used_memory: Option<u64>,
    pub(crate) used_memory_human: Option<String>,
    pub(crate) memory_percent: Option<f64>,
    pub(crate) connected_clients: Option<u64>,
    pub(crate) hit_percent: Option<f64>,
}

impl Redis {
    /// # Errors
    /// If the URL makes no sense; what is said does not quote it.
    pub(crate) fn new(url: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self {
            server: url.map(perto::redis::address).transpose()?,
            asked: Mutex::default(),
            last: parking_lot::Mutex::default(),
        })
    }

    pub(crate) fn is_configured(&self) -> bool {
        self.server.is_some()
    }

    /// The last answer, none where there was none: this instance asks every five seconds.
    pub(crate) fn last(&self) -> Option<Info> {
        self.last.lock().clone()
    }

    /// An answer that is not older than `age`; none where it can't be had within the limits. Dropped, it leaves a
    /// connection that the next one makes again.
    pub(crate) async fn info(&self, age: Duration) -> Option<Info> {
        let server = self.server.as_ref()?;
        let mut asked = self.asked.lock().await;
        if let Some((at, last)) = &asked.last
            && at.elapsed() < age
        {
            return last.clone();
        }
        // Put back only by an answer: what is left of a broken one must not be asked again.
        let connection = asked.connection.take();
        let answer = ask(server, connection).await;
        let info = answer.as_ref().map(|(_, text)| Info::of(text));
        // One that was demoted is not the one that the URL is of any more.
        asked.connection =
            answer.filter(|(_, text)| !text.contains("role:slave")).map(|(connection, _)| connection);
        asked.last = Some((Instant::now(), info.clone()));
        self.last.lock().clone_from(&info);
        info
    }
}

async fn ask(server: &Address, connection: Option<Connection>) -> Option<(Connection, String)> {
    let mut connection = match connection {
        Some(connection) => connection,
        None => connect(server, MOST, LIMIT).await.ok()?,
    };
    let info = redis::cmd("INFO");
    let text = tokio::time::timeout(LIMIT, info.query_async(&mut *connection)).await.ok()?.ok()?;
    Some((connection, text))
}

impl Info {
    fn of(text: &str) -> Self {
        let said: HashMap<&str, &str> =
            text.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
        let number = |name: &str| said.get(name)?.parse::<u64>().ok();
        let used = number("used_memory");
        let most =
            [number("maxmemory"), number("total_system_memory")].into_iter().flatten().find(|most| *most > 0);
        let (hits, misses) = (number("keyspace_hits"), number("keyspace_misses"));
        Self {
            used_memory: used,
            used_memory_human: said.get("used_memory_human").map(|text| (*text).chars().take(32).collect()),
            memory_percent: used.zip(most).map(|(used, most)| percent(used, most)),
            connected_clients: number("connected_clients"),
            hit_percent: hits.zip(misses).map(|(hits, misses)| percent(hits, hits.saturating_add(misses))),
        }
    }
}

/// With two decimals; nothing of nothing is 0.
#[expect(clippy::cast_precision_loss, reason = "beyond 2^53 nobody reads two decimals")]
pub(crate) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    (part as f64 / whole as f64 * 10_000.0).round() / 100.0
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("configured", &self.is_configured()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_measured_by_the_limit_or_else_by_the_machine() {
        let said = |limit: u64| {
            format!(
                "# Memory\r\nused_memory:250\r\nused_memory_human:250B\r\ntotal_system_memory:1000\r\n\
                 maxmemory:{limit}\r\nconnected_clients:3\r\nkeyspace_hits:2\r\nkeyspace_misses:1\r\n"
            )
        };
        let expected = Info {
            used_memory: Some(250),
            used_memory_human: Some("250B".to_owned()),
            memory_percent: Some(50.0),
            connected_clients: Some(3),
            hit_percent: Some(66.67),
        };
        assert_eq!(Info::of(&said(500)), expected);
        assert_eq!(Info::of(&said(0)).memory_percent, Some(25.0));
    }

    #[test]
    fn what_is_not_said_is_none() {
        for text in ["", "used_memory:-1\r\nmaxmemory:x\r\n:::\r\n\r\n", "used_memory", "\u{0}\u{ffff}"] {
            assert_eq!(Info::of(text), Info::default(), "{text:?}");
        }
        let idle = Info::of("used_memory:9\r\nmaxmemory:0\r\nkeyspace_hits:0\r\nkeyspace_misses:0\r\n");
        assert_eq!((idle.memory_percent, idle.hit_percent), (None, Some(0.0)));
    }
}
