//! What somebody should look at: judged by each instance for itself, once a second, from what it saw of late.
//!
//! [`judge`] is pure: samples in, alerts out. `docs/API.md` has the table of alerts.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use perto::TroubleKind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::requests::Minute;
use crate::service::limits::{Limit, Refused};
use crate::service::settings::AlertSettings;

mod troubles;

pub(crate) use troubles::Lasting;

/// Of hit rates.
const MINUTE: Duration = Duration::from_secs(60);
/// Fewer reads say nothing of a hit rate.
const MIN_READS: u64 = 100;
/// How long a full pool and a lease near its end are remembered: less than that is missed by whoever looks every ten seconds.
const RECENTLY: Duration = Duration::from_secs(10);
/// Of the bound, in percent.
const OLD_LEASE: f64 = 80.0;

const MEMORY: &str = "redis-memory-high";
/// Fewer writes that failed say nothing: one may have met another.
const MIN_FAILED: u64 = 3;
/// Seconds of a minute in which a limit refused: fewer are what limits are for.
const MIN_LIMITED: usize = 10;
/// Heartbeats that could not be written in a row.
const MIN_SILENT: u32 = 3;

/// Those that are judged here; besides them there is one for each kind of trouble, by its name. `docs/API.md` and
/// `docs/OPERATIONS.md` have each of them, and so do the dashboard and Prometheus' rules.
#[cfg(test)]
const NAMES: [&str; 12] = [
    "hit-rate-low",
    MEMORY,
    "postgres-pool-exhausted",
    "postgres-pool-unusable",
    "responses-slow",
    "instance-not-coherent",
    "staleness-near-bound",
    "invalidation-repaired",
    "writes-failing",
    "traces-lost",
    "limit-reached",
    "instance-silent",
];

/// What an instance sees of itself at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// On a clock that only goes forward.
    pub(crate) at: Duration,
    /// Since the start.
    pub(crate) hits: u64,
    /// Since the start.
    pub(crate) reads: u64,
    /// Since the start.
    pub(crate) repairs: u64,
    pub(crate) redis_percent: Option<f64>,
    /// The pools that had no connection to give.
    pub(crate) exhausted: Vec<&'static str>,
    /// The pools whose connections are of no use, and why.
    pub(crate) unusable: Vec<(&'static str, String)>,
    pub(crate) writes: Writes,
    /// Spans that could not be sent, since the start.
    pub(crate) spans_failed: u64,
    /// What each limit has refused, since the start.
    pub(crate) refused: Refused,
    /// By the wall clock, as troubles are told.
    pub(crate) now: SystemTime,
    pub(crate) troubles: Vec<Lasting>,
    pub(crate) responses: Minute,
    pub(crate) state: perto::State,
    /// Age of the lease, in percent of the bound.
    pub(crate) lease_percent: f64,
}

/// Writes as the sample sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Writes {
    /// Requests that write and were answered, since the start.
    pub(crate) done: u64,
    /// Those that failed for no fault of who asked.
    pub(crate) failed: u64,
    /// Heartbeats that could not be written, in a row.
    pub(crate) silent: u32,
    /// Why the last of these could not.
    pub(crate) why: String,
}

/// What is too much.
#[derive(Debug, Clone)]
pub(crate) struct Thresholds {
    pub(crate) settings: AlertSettings,
    /// Without Redis, being isolated is as it should be.
    pub(crate) redis: bool,
}

/// Something to look at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Alert {
    /// Stable, for programs: `hit-rate-low`, `redis-memory-high`, `postgres-pool-exhausted`, `postgres-pool-unusable`,
    /// `responses-slow`, `instance-not-coherent`, `staleness-near-bound`, `invalidation-repaired`, `writes-failing`, `traces-lost`,
    /// `limit-reached`, `instance-silent`, and one for each kind of trouble: `unwatched`, `key-fails`, `keys-differ`, `values-unstorable`,
    /// `log-unreadable`, `log-not-trimmed`, `loads-failing`, `redis-unusable`, `fills-refused`, `hints-refused`,
    /// `hints-not-received`, `hints-untrue`, `switched`, `audit-violation`.
    pub(crate) name: String,
    pub(crate) severity: Severity,
    /// Who says so; of `instance-silent`, who doesn't.
    pub(crate) instance: String,
    pub(crate) since: DateTime<Utc>,
    pub(crate) value: f64,
    pub(crate) threshold: f64,
    pub(crate) unit: Unit,
    /// The same for people.
    pub(crate) detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// It costs time, or soon may.
    Warning,
    /// Answers are refused, or can't be vouched for.
    Critical,
}

/// Of value and threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    Percent,
    Seconds,
    Times,
}

/// What an alert says besides who and since when.
#[derive(Debug, Clone, PartialEq)]
struct Raised {
    name: &'static str,
    severity: Severity,
    value: f64,
    threshold: f64,
    unit: Unit,
    detail: String,
}

/// What an instance has seen and says of it.
#[derive(Debug)]
pub(crate) struct Alerts {
    thresholds: Thresholds,
    seen: VecDeque<Sample>,
    active: Vec<Alert>,
    /// When the log was told last that one began, and whether it was told that it is over.
    told: HashMap<String, (Duration, bool)>,
}

impl Alerts {
    pub(crate) fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, seen: VecDeque::new(), active: Vec::new(), told: HashMap::new() }
    }

    pub(crate) fn active(&self) -> &[Alert] {
        &self.active
    }

    pub(crate) fn see(&mut self, sample: Sample, instance: &str, now: DateTime<Utc>) {
        let kept = self.thresholds.settings.repaired_for.max(MINUTE);
        while self.seen.front().is_some_and(|first| sample.at.saturating_sub(first.at) > kept) {
            self.seen.pop_front();
        }
        let at = sample.at;
        self.seen.push_back(sample);
        let raised = judge(self.seen.make_contiguous(), &self.thresholds);
        let before = std::mem::take(&mut self.active);
        let alert = |raised: Raised| Alert {
            since: before.iter().find(|alert| alert.name == raised.name).map_or(now, |alert| alert.since),
            name: raised.name.to_owned(),
            severity: raised.severity,
            instance: instance.to_owned(),
            value: (raised.value * 100.0).round() / 100.0,
            threshold: raised.threshold,
            unit: raised.unit,
            detail: raised.detail,
        };
        self.active = raised.into_iter().map(alert).collect();
        self.tell(&before, at);
    }

    /// A line in the log when one begins, and when it is over: once a minute for each. The library tells of troubles.
    fn tell(&mut self, before: &[Alert], at: Duration) {
        let is_trouble = |alert: &&Alert| TroubleKind::ALL.iter().any(|kind| kind.name() == alert.name);
        let was = |alert: &&Alert, all: &[Alert]| all.iter().any(|other| other.name == alert.name);
        for alert in self.active.iter().filter(|alert| !is_trouble(alert) && !was(alert, before)) {
            let told = self.told.get(&alert.name);
            if told.is_none_or(|(last, _)| at.saturating_sub(*last) >= MINUTE) {
                tracing::warn!(alert = alert.name, detail = alert.detail, "alert");
                self.told.insert(alert.name.clone(), (at, false));
            }
        }
        for alert in before.iter().filter(|alert| !was(alert, &self.active)) {
            if let Some((_, over)) = self.told.get_mut(&alert.name).filter(|(_, over)| !over) {
                tracing::info!(alert = alert.name, "alert is over");
                *over = true;
            }
        }
    }
}

/// All instances see one Redis: who saw it first says so for all.
pub(crate) fn once_a_server(alerts: &mut Vec<Alert>) {
    alerts.sort_by(|a, b| (&a.name, a.since, &a.instance).cmp(&(&b.name, b.since, &b.instance)));
    alerts.dedup_by(|later, first| later.name == MEMORY && first.name == MEMORY);
}

/// The samples of the last minutes, the newest last.
fn judge(seen: &[Sample], thresholds: &Thresholds) -> Vec<Raised> {
    let Some(now) = seen.last() else { return Vec::new() };
    let window = Window { seen, now };
    let before = seen.iter().rev().nth(1).map_or(&[][..], |before| &before.troubles);
    let troubles = troubles::raised(before, &now.troubles, now.now);
    let all = [
        window.coherence(thresholds.redis),
        window.staleness(),
        window.pools(),
        window.responses(thresholds.settings.response_time),
        window.hit_rate(thresholds.settings.hit_rate),
        window.memory(thresholds.settings.redis_memory),
        window.repairs(thresholds.settings.repaired_for),
        window.unusable(),
        window.writes(),
        window.traces(),
        window.limits(),
    ];
    all.into_iter().flatten().chain(troubles).collect()
}

struct Window<'a> {
    seen: &'a [Sample],
    now: &'a Sample,
}

impl Window<'_> {
    fn last(&self, span: Duration) -> impl DoubleEndedIterator<Item = &Sample> {
        let from = self.now.at.saturating_sub(span);
        self.seen.iter().filter(move |sample| sample.at >= from)
    }

    /// What a counter has risen by.
    fn rise(&self, span: Duration, counter: impl Fn(&Sample) -> u64) -> u64 {
        let then = self.last(span).next().map_or(0, &counter);
        counter(self.now).saturating_sub(then)
    }

    /// Seen twice: a connection that is made anew is no reason to wake anybody.
    fn coherence(&self, redis: bool) -> Option<Raised> {
        use perto::State::{Coherent, Isolated, Unverified};
        let wrong = |sample: &&Sample| sample.state != Coherent && (redis || sample.state != Isolated);
        let since = self.seen.iter().rev().take_while(wrong);
        let first = since.clone().last().filter(|_| since.count() >= 2)?;
        let (severity, why) = match self.now.state {
            Isolated => (Severity::Warning, "Redis can't be used: L1 and Postgres answer alone"),
            Unverified => {
                (Severity::Critical, "the log can't be read: what is served is flagged as unverified")
            }
            _ => (Severity::Critical, "the log is read anew: reads go to Postgres"),
        };
        Some(Raised {
            name: "instance-not-coherent",
            severity,
            value: self.now.at.saturating_sub(first.at).as_secs_f64(),
            threshold: 0.0,
            unit: Unit::Seconds,
            detail: format!("this instance is {}; {why}", self.now.state),
        })
    }

    fn staleness(&self) -> Option<Raised> {
        let oldest = self.last(RECENTLY).map(|sample| sample.lease_percent).fold(0.0, f64::max);
        let lapsed = self.last(RECENTLY).any(|sample| sample.state == perto::State::Unverified);
        (lapsed || oldest > OLD_LEASE).then(|| Raised {
            name: "staleness-near-bound",
            severity: if lapsed { Severity::Critical } else { Severity::Warning },
            value: if lapsed { 100.0 } else { oldest },
            threshold: OLD_LEASE,
            unit: Unit::Percent,
            detail: match lapsed {
                true => "the log was not read for longer than the bound".to_owned(),
                false => format!("the log was not read for {oldest:.0} % of the bound"),
            },
        })
    }

    fn pools(&self) -> Option<Raised> {
        let full = || self.last(RECENTLY).filter(|sample| !sample.exhausted.is_empty());
        let which = full().next_back()?.exhausted.join(" and for ");
        let times = u32::try_from(full().count()).unwrap_or(u32::MAX);
        Some(Raised {
            name: "postgres-pool-exhausted",
            severity: Severity::Critical,
            value: times.into(),
            threshold: 0.0,
            unit: Unit::Times,
            detail: format!(
                "all connections for {which} were in use, and others waited: look for slow statements"
            ),
        })
    }

    /// Seen twice: a new connection may take its time.
    fn unusable(&self) -> Option<Raised> {
        let seen = || self.last(RECENTLY).filter(|sample| !sample.unusable.is_empty());
        let times = seen().count();
        let (which, why) = seen().next_back().filter(|_| times >= 2)?.unusable.first()?;
        Some(Raised {
            name: "postgres-pool-unusable",
            severity: Severity::Critical,
            value: f64::from(u32::try_from(times).unwrap_or(u32::MAX)),
            threshold: 0.0,
            unit: Unit::Times,
            detail: format!("Postgres gives no connection for {which}: {why}"),
        })
    }

    /// Of what requests write, and of this instance's own heartbeat: so it is seen where nobody writes, too.
    fn writes(&self) -> Option<Raised> {
        let Writes { silent, why, .. } = &self.now.writes;
        let failed = self.rise(MINUTE, |sample| sample.writes.failed);
        let done = self.rise(MINUTE, |sample| sample.writes.done);
        let many = failed >= MIN_FAILED && failed > done;
        let detail = match (*silent >= MIN_SILENT, many) {
            (true, _) => format!("nothing can be written since {silent} heartbeats: {why}"),
            (false, true) => {
                format!("{failed} of {} writes of the last minute failed: see the log", failed + done)
            }
            (false, false) => return None,
        };
        Some(Raised {
            name: "writes-failing",
            severity: Severity::Critical,
            value: if many { f64::from(u32::try_from(failed).unwrap_or(u32::MAX)) } else { (*silent).into() },
            threshold: 0.0,
            unit: Unit::Times,
            detail,
        })
    }

    fn traces(&self) -> Option<Raised> {
        let lost = self.rise(MINUTE, |sample| sample.spans_failed);
        (lost > 0).then(|| Raised {
            name: "traces-lost",
            severity: Severity::Warning,
            value: f64::from(u32::try_from(lost).unwrap_or(u32::MAX)),
            threshold: 0.0,
            unit: Unit::Times,
            detail: format!("{lost} spans of the last minute could not be sent to the collector"),
        })
    }

    /// Those that refuse in many seconds of a minute, the one that does most first.
    fn limits(&self) -> Option<Raised> {
        let samples: Vec<&Sample> = self.last(MINUTE).collect();
        let limited = |at: usize| {
            let seconds = samples.windows(2).filter(|pair| pair[1].refused[at] > pair[0].refused[at]).count();
            (seconds, Limit::ALL[at].name(), self.rise(MINUTE, |sample| sample.refused[at]))
        };
        let mut limited: Vec<_> =
            (0..Limit::ALL.len()).map(limited).filter(|(seconds, ..)| *seconds >= MIN_LIMITED).collect();
        limited.sort_unstable_by(|a, b| b.cmp(a));
        let (most, ..) = limited.first()?;
        let told = limited.iter().map(|(_, name, times)| format!("{name} {times} times"));
        let told = told.collect::<Vec<_>>().join(", ");
        Some(Raised {
            name: "limit-reached",
            severity: Severity::Warning,
            value: f64::from(u32::try_from(*most).unwrap_or(u32::MAX)),
            threshold: f64::from(u32::try_from(MIN_LIMITED).unwrap_or(u32::MAX)),
            unit: Unit::Seconds,
            detail: format!("limits refused in the last minute: {told}"),
        })
    }

    fn responses(&self, limit: Duration) -> Option<Raised> {
        let Minute { count, slow, p99, .. } = self.now.responses;
        (slow > 0 && slow.saturating_mul(100) > count).then(|| Raised {
            name: "responses-slow",
            severity: Severity::Warning,
            // Found in a bucket: never below what is known of it.
            value: p99.max(limit).as_secs_f64(),
            threshold: limit.as_secs_f64(),
            unit: Unit::Seconds,
            detail: format!("{slow} of {count} responses of the last minute took longer than {limit:?}"),
        })
    }

    fn hit_rate(&self, least: u32) -> Option<Raised> {
        let (hits, reads) =
            (self.rise(MINUTE, |sample| sample.hits), self.rise(MINUTE, |sample| sample.reads));
        let low = u128::from(hits) * 100 < u128::from(reads) * u128::from(least);
        (reads >= MIN_READS && low).then(|| Raised {
            name: "hit-rate-low",
            severity: Severity::Warning,
            value: super::redis::percent(hits, reads),
            threshold: least.into(),
            unit: Unit::Percent,
            detail: format!("{hits} of {reads} reads of the last minute were answered by a cache"),
        })
    }

    fn memory(&self, most: u32) -> Option<Raised> {
        let used = self.now.redis_percent.filter(|used| *used > f64::from(most))?;
        Some(Raised {
            name: MEMORY,
            severity: Severity::Warning,
            value: used,
            threshold: most.into(),
            unit: Unit::Percent,
            detail: format!("Redis uses {used} % of its memory; without room it evicts or refuses"),
        })
    }

    fn repairs(&self, span: Duration) -> Option<Raised> {
        let times = self.rise(span, |sample| sample.repairs);
        (times > 0).then(|| Raised {
            name: "invalidation-repaired",
            severity: Severity::Warning,
            value: f64::from(u32::try_from(times).unwrap_or(u32::MAX)),
            threshold: 0.0,
            unit: Unit::Times,
            detail: "hints did not come and the log had to put it right: a write past the service, or lost messages"
                .to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;
