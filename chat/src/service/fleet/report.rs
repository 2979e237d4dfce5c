//! What an instance says of itself: its row for the others, and its part of what the fleet is asked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use perto::postgres;
use perto::{InstanceStats, Perto};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::ToSchema;
use uuid::Uuid;

use super::alerts::Alert;
use super::counts::Tallies;
use super::times::Times;
use crate::service::Service;
use crate::service::limits::Limit;
use perto_cli::shown::ms;

/// As it lies in the instance's row. Those of other versions are read for what they have.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) instance: Instance,
    pub(crate) alerts: Vec<Alert>,
    #[serde(default)]
    pub(crate) times: Times,
}

/// One instance. Its counters begin with its start, those of its caches with the last reset.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Instance {
    /// Its name.
    pub(crate) instance: String,
    /// Of this start: two instances of one name are told apart by it.
    pub(crate) id: Uuid,
    /// Where it listens.
    pub(crate) address: String,
    pub(crate) version: String,
    pub(crate) started_at: DateTime<Utc>,
    /// When it was last heard of.
    pub(crate) seen_at: DateTime<Utc>,
    /// `recovering`, `coherent`, `isolated`, `unverified` or `closed`; `silent` where it was not heard of for 5 seconds.
    pub(crate) state: String,
    /// Postgres could not be asked: there may be others that are not shown.
    pub(crate) alone: bool,
    /// How much longer what is cached may be served as fresh, without another poll of the log.
    pub(crate) lease_left_ms: u64,
    /// Whether L2 is used.
    pub(crate) remote_up: bool,
    /// Whether hints are received.
    pub(crate) bus_up: bool,
    polls: u64,
    pub(crate) hints: u64,
    /// What the log had to put right, because hints did not come.
    pub(crate) repairs: u64,
    pub(crate) audits: Audits,
    propagation: Propagation,
    /// From when the caches' figures are counted.
    pub(crate) since: DateTime<Utc>,
    pub(crate) caches: Tallies,
    pub(crate) pool: Pools,
    pub(crate) requests: Requests,
    /// How often each limit has refused, by its name, since the start; without those that have not.
    #[serde(default)]
    pub(crate) refused: BTreeMap<String, u64>,
}

/// Served values that were compared with what the primary says.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Audits {
    #[serde(rename = "5m")]
    five_minutes: Audited,
    #[serde(rename = "1h")]
    hour: Audited,
    #[serde(rename = "1d")]
    day: Audited,
}

/// How much of what was served was right, of what was looked at.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Audited {
    audits: u64,
    violations: u64,
    /// 3.0 is one violation in a thousand audits; without a violation, what so many audits can vouch for.
    nines: f64,
}

/// From a commit on another instance to the eviction here, since the start, by the clocks of both.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Propagation {
    count: u64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Connections to Postgres.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Pools {
    requests: Pool,
    loads: Pool,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pool {
    max: u32,
    size: u32,
    idle: u32,
    in_use: u32,
    /// How often, looking once a second, it had none to give for a tenth of a second.
    exhausted: u64,
}

/// Requests under `/api/v1`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Requests {
    /// Since the start.
    pub(crate) count: u64,
    pub(crate) last_minute: Minute,
}

/// The last minute, and up to five seconds more.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Minute {
    count: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Those that took longer than `--alert-response-time`: 2 seconds.
    slow: u64,
}

/// What is known of the process from its start.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) id: Uuid,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) at: DateTime<Utc>,
}

/// What the log had to put right. What was evicted within the last second is none yet: its hint may come.
#[derive(Debug, Default)]
pub(crate) struct Repaired {
    last: AtomicU64,
    settled: AtomicU64,
    told: AtomicU64,
}

impl Repaired {
    /// To be called once a second.
    pub(crate) fn look(&self, stats: &InstanceStats) -> u64 {
        let now = stats.repairs.saturating_sub(stats.repairs_overtaken);
        let before = self.last.swap(now, Ordering::Relaxed);
        // What was told stays told, also where a hint comes very late; what is repaired after that is told all the same.
        let settled = now.min(before);
        let known = self.settled.swap(settled, Ordering::Relaxed);
        self.told.fetch_add(settled.saturating_sub(known), Ordering::Relaxed);
        self.told()
    }

    pub(crate) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }
}

/// Looks whether a pool has connections to give.
#[derive(Debug)]
pub(crate) struct Gauge {
    pub(crate) what: &'static str,
    pub(crate) pool: PgPool,
    exhausted: AtomicU64,
    unusable: AtomicU64,
}

/// What a look at a pool has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Connection,
    /// All are in use, and nobody gets one.
    None,
    /// Postgres gives none: it has no place, or refuses the role or its password.
    Refusal(String),
}

/// The state of one that says nothing.
pub(crate) const SILENT: &str = "silent";

/// How long nobody gets a connection where there is none.
const NONE_FOR: Duration = Duration::from_millis(100);
/// How much longer a new one may take.
const NO_NEW_FOR: Duration = Duration::from_millis(400);

impl Gauge {
    pub(crate) const fn new(what: &'static str, pool: PgPool) -> Self {
        Self { what, pool, exhausted: AtomicU64::new(0), unusable: AtomicU64::new(0) }
    }

    /// Stands in line like any other, where there is no idle one.
    pub(crate) async fn look(&self) -> Found {
        let full = || self.pool.size() >= self.max() && self.pool.num_idle() == 0;
        if self.pool.num_idle() > 0 {
            return Found::Connection;
        }
        let pool = postgres::Pool::new(&self.pool);
        let mut lending = std::pin::pin!(pool.lend());
        let mut lent = tokio::time::timeout(NONE_FOR, &mut lending).await;
        if lent.is_err() {
            if full() {
                self.exhausted.fetch_add(1, Ordering::Relaxed);
                return Found::None;
            }
            // There is room, and nothing comes: a pool tries again for as long as Postgres has no place.
            lent = tokio::time::timeout(NO_NEW_FOR, lending).await;
        }
        let why = match lent {
            Ok(Ok(_)) => return Found::Connection,
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "it gives no new one, and says nothing: perhaps it has no place left".to_owned(),
        };
        self.unusable.fetch_add(1, Ordering::Relaxed);
        Found::Refusal(why)
    }

    pub(crate) fn max(&self) -> u32 {
        self.pool.options().get_max_connections()
    }

    /// Idle ones, and those in use.
    pub(crate) fn connections(&self) -> (u32, u32) {
        let size = self.pool.size();
        let idle = u32::try_from(self.pool.num_idle()).unwrap_or(u32::MAX).min(size);
        (idle, size - idle)
    }

    pub(crate) fn exhausted(&self) -> u64 {
        self.exhausted.load(Ordering::Relaxed)
    }

    pub(crate) fn unusable(&self) -> u64 {
        self.unusable.load(Ordering::Relaxed)
    }

    fn shown(&self) -> Pool {
        let (idle, in_use) = self.connections();
        Pool { max: self.max(), size: idle + in_use, idle, in_use, exhausted: self.exhausted() }
    }
}

impl Instance {
    /// Whether it was not heard of for a while.
    pub(crate) fn is_silent(&self) -> bool {
        self.state == SILENT
    }

    pub(crate) fn now(service: &Service, since: DateTime<Utc>, caches: Tallies) -> Self {
        let (fleet, perto) = (&service.fleet, &service.perto);
        let (health, stats, start) = (perto.health(), perto.stats(), &fleet.start);
        let minute = fleet.requests.minute();
        Self {
            instance: start.name.clone(),
            id: start.id,
            address: start.address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: start.at,
            seen_at: Utc::now(),
            state: health.state.to_string(),
            alone: false,
            lease_left_ms: ms(health.lease_left),
            remote_up: health.remote_up,
            bus_up: health.bus_up,
            polls: stats.polls,
            hints: stats.hints,
            repairs: fleet.repaired.told(),
            audits: audits(perto),
            propagation: propagation(perto),
            since,
            caches,
            pool: Pools { requests: fleet.gauges[0].shown(), loads: fleet.gauges[1].shown() },
            requests: Requests {
                count: fleet.requests.count(),
                last_minute: Minute {
                    count: minute.count,
                    p50_ms: precise_ms(minute.p50),
                    p99_ms: precise_ms(minute.p99),
                    slow: minute.slow,
                },
            },
            refused: refused(service),
        }
    }
}

fn refused(service: &Service) -> BTreeMap<String, u64> {
    let all = Limit::ALL.iter().zip(service.limits.refused());
    all.filter(|(_, times)| *times > 0).map(|(limit, times)| (limit.name().to_owned(), times)).collect()
}

fn audits(perto: &Perto) -> Audits {
    let shown = |audited: perto::Audited| Audited {
        audits: audited.audits,
        violations: audited.violations,
        nines: (audited.nines() * 10.0).round() / 10.0,
    };
    let audits = perto.audits();
    Audits { five_minutes: shown(audits.five_minutes), hour: shown(audits.hour), day: shown(audits.day) }
}

fn propagation(perto: &Perto) -> Propagation {
    let times = perto.propagation();
    Propagation {
        count: times.count(),
        p50_ms: precise_ms(times.quantile(0.5)),
        p99_ms: precise_ms(times.quantile(0.99)),
    }
}

/// To the microsecond.
fn precise_ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether all of it is in the other one.
    fn is_within(part: &serde_json::Value, whole: &serde_json::Value) -> bool {
        match part {
            serde_json::Value::Object(fields) => fields
                .iter()
                .all(|(name, field)| whole.get(name).is_some_and(|whole| is_within(field, whole))),
            other => other == whole,
        }
    }

    /// Instances of both releases read each other's rows. A field that is new has a default, and none is left out.
    #[test]
    fn a_row_of_the_release_before_is_read_and_one_of_this_has_all_that_it_needs() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/wire/service/instance.json");
        let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let report: Report = serde_json::from_value(kept.clone()).unwrap();
        assert_eq!(report.instance.caches.user.counts.l1_hits, 7);
        let written = serde_json::to_value(&report).unwrap();
        assert!(is_within(&kept, &written), "{written}");
    }

    #[test]
    fn a_repair_is_told_of_once_no_hint_has_come() {
        let repaired = Repaired::default();
        let look = |repairs, overtaken| {
            let mut stats = InstanceStats::default();
            (stats.repairs, stats.repairs_overtaken) = (repairs, overtaken);
            repaired.look(&stats)
        };
        assert_eq!([look(1, 0), look(1, 1), look(1, 1)], [0, 0, 0], "its hint came");
        assert_eq!([look(3, 1), look(3, 1), look(3, 1)], [0, 2, 2], "none came");
        assert_eq!([look(3, 2), look(3, 2)], [2, 2], "what was told stays told");
        assert_eq!([look(4, 2), look(4, 2)], [2, 3], "and so is the next");
    }
}
