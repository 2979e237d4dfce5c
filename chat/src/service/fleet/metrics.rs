//! The document of `/cache/metrics`: in the names that clients of the replaced system read.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::counts::{Tallies, Tally};
use super::redis::{self, Info};

/// Whose figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// Of all instances.
    #[default]
    Fleet,
    /// Of the one that answers.
    Instance,
}

/// Figures of the caches since the last reset. Those of other instances are up to two seconds old.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metrics {
    pub(crate) scope: Scope,
    /// How many instances are counted. One that has ended is not any more; one that was killed is for a minute.
    pub(crate) instances: u64,
    /// Whether they are all: not where Postgres or an instance is silent, or has not heard of a reset yet.
    pub(crate) complete: bool,
    /// From when the oldest of these figures is counted.
    pub(crate) since: DateTime<Utc>,
    pub(crate) cache: CacheMetrics,
    pub(crate) redis: RedisMetrics,
}

/// By cache.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CacheMetrics {
    message_cache: CacheFigures,
    user_cache: CacheFigures,
    company_cache: CacheFigures,
    /// By id and by phone together.
    contact_cache: CacheFigures,
    /// The part of `contactCache` that is by phone.
    contact_by_phone_cache: CacheFigures,
    validation_cache: CacheFigures,
    tool_result_cache: CacheFigures,
    inbox_cache: CacheFigures,
    contact_page_cache: CacheFigures,
    overview_cache: CacheFigures,
    /// Not in `overall`: each request of a tenant looks its key up.
    api_key_cache: CacheFigures,
    /// All but `apiKeyCache`.
    overall: CacheFigures,
}

/// Figures of one cache.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct CacheFigures {
    /// Reads answered from L1 or L2.
    hits: u64,
    /// Reads answered by a load.
    misses: u64,
    /// Hits of all, in percent with two decimals; 0 where there was no read.
    hit_rate: f64,
    /// Hits and misses. Reads that failed are in neither.
    total_requests: u64,
    #[serde(flatten)]
    tally: Tally,
}

/// What Redis says of itself: of the whole server, whoever uses it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RedisMetrics {
    /// Whether `REDIS_URL` is set.
    configured: bool,
    /// Whether it answered in time. Where it didn't, the rest is null.
    up: bool,
    memory: RedisMemory,
    stats: RedisStats,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct RedisMemory {
    used_memory: Option<u64>,
    #[schema(example = "1.05M")]
    used_memory_human: Option<String>,
    /// Of `maxmemory`, or of the machine's where that is not set; in percent with two decimals.
    memory_usage_percent: Option<f64>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct RedisStats {
    connected_clients: Option<u64>,
    /// Keys that were there, of those looked up, since the server's start; in percent with two decimals.
    hit_rate: Option<f64>,
}

impl From<Tallies> for CacheMetrics {
    fn from(caches: Tallies) -> Self {
        Self {
            message_cache: caches.message.into(),
            user_cache: caches.user.into(),
            company_cache: caches.company.into(),
            contact_cache: caches.contacts().into(),
            contact_by_phone_cache: caches.contact_by_phone.into(),
            validation_cache: caches.validation.into(),
            tool_result_cache: caches.tool_result.into(),
            inbox_cache: caches.inbox.into(),
            contact_page_cache: caches.contact_page.into(),
            overview_cache: caches.overview.into(),
            api_key_cache: caches.api_key.into(),
            overall: caches.overall().into(),
        }
    }
}

impl From<Tally> for CacheFigures {
    fn from(tally: Tally) -> Self {
        let (hits, reads) = (tally.counts.hits(), tally.counts.reads());
        Self {
            hits,
            misses: tally.counts.load_hits,
            hit_rate: redis::percent(hits, reads),
            total_requests: reads,
            tally,
        }
    }
}

impl RedisMetrics {
    pub(crate) fn of(configured: bool, info: Option<Info>) -> Self {
        let up = info.is_some();
        let info = info.unwrap_or_default();
        Self {
            configured,
            up,
            memory: RedisMemory {
                used_memory: info.used_memory,
                used_memory_human: info.used_memory_human,
                memory_usage_percent: info.memory_percent,
            },
            stats: RedisStats { connected_clients: info.connected_clients, hit_rate: info.hit_percent },
        }
    }
}
