//! What is sent: names here are what the page reads.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::assets::BUILD;
use super::pace::{Pace, Tiers};
use crate::service::Service;
use crate::service::fleet::{
    Alert, Audits, Instance, Overview, Pools, RedisMetrics, Report, Spread, Tallies,
};
use crate::service::imports::UnderWay;

/// States that one point names at most: of those that are not coherent.
const MAX_STATES: usize = 200;

/// How the fleet is now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Now<'a> {
    at: DateTime<Utc>,
    /// Who says so.
    instance: &'a str,
    version: &'static str,
    /// Of the page's files.
    build: &'static str,
    alone: bool,
    bound_ms: f64,
    /// In percent.
    alert_hit_rate: u32,
    /// From when the caches' figures are counted.
    since: DateTime<Utc>,
    instances: Vec<ShownInstance<'a>>,
    caches: Vec<ShownCache>,
    alerts: &'a [Alert],
    /// What is switched, as this instance knows it.
    switches: Vec<serde_json::Value>,
    redis: &'a RedisMetrics,
    imports: Option<&'a [UnderWay]>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownInstance<'a> {
    name: &'a str,
    id: Uuid,
    address: &'a str,
    version: &'a str,
    started_at: DateTime<Utc>,
    seen_at: DateTime<Utc>,
    state: &'a str,
    /// Since the log was last read to its end.
    lease_age_ms: f64,
    remote_up: bool,
    bus_up: bool,
    hints: u64,
    repairs: u64,
    /// Reads a second by tier, over the last ten seconds.
    reads: Tiers,
    /// Requests a second, the same.
    requests: f64,
    p50_ms: f64,
    p99_ms: f64,
    pool: &'a Pools,
    audits: &'a Audits,
    /// By limits, since the start.
    refused: &'a BTreeMap<String, u64>,
    /// A second, over the last ten seconds.
    refusals: f64,
}

/// Of all instances.
#[derive(Debug, Serialize)]
struct ShownCache {
    name: &'static str,
    /// Reads a second by tier, over the last ten seconds.
    rates: Tiers,
    #[serde(flatten)]
    tally: crate::service::fleet::Tally,
}

/// A moment of the past.
#[derive(Debug, Serialize)]
pub(super) struct Point {
    /// Milliseconds since 1970.
    t: i64,
    /// Reads a second by tier, in the order of the caches; null where there was none.
    reads: Vec<Option<Tiers>>,
    /// p50, p99 of L1, L2, loads in microseconds, of the last ten seconds; null where there was none.
    latency: [Option<[f64; 2]>; 3],
    /// p99, longest in milliseconds, the same.
    staleness: Option<[f64; 2]>,
    /// p50, p99 in milliseconds, the same.
    propagation: Option<[f64; 2]>,
    repairs: u64,
    /// Those that are not coherent, by the beginning of the id and of the state.
    states: BTreeMap<String, char>,
    /// Nobody knows of the others.
    alone: bool,
}

impl<'a> Now<'a> {
    pub(super) fn of(service: &'a Service, seen: &'a Overview, pace: &Pace, at: DateTime<Utc>) -> Self {
        let bound_ms = service.settings.bound.as_secs_f64() * 1e3;
        let instances = seen.reports.iter().map(|report| &report.instance);
        let caches = instances.clone().fold(Tallies::default(), |sum, one| sum.plus(one.caches));
        Self {
            at,
            instance: &service.settings.instance,
            version: env!("CARGO_PKG_VERSION"),
            build: &BUILD,
            alone: seen.alone,
            bound_ms,
            alert_hit_rate: service.settings.alerts.hit_rate,
            since: instances.clone().map(|one| one.since).min().unwrap_or(at),
            instances: instances.map(|one| ShownInstance::of(one, pace, bound_ms)).collect(),
            caches: caches
                .each()
                .into_iter()
                .zip(pace.reads())
                .map(|((name, tally), reads)| ShownCache { name, rates: reads.map(tenths), tally })
                .collect(),
            alerts: &seen.alerts,
            switches: service.perto.switches().iter().map(perto_cli::shown::switch).collect(),
            redis: &seen.redis,
            imports: seen.imports.as_deref(),
        }
    }
}

impl<'a> ShownInstance<'a> {
    fn of(instance: &'a Instance, pace: &Pace, bound_ms: f64) -> Self {
        let rates = pace.rates(instance.id);
        let reads = [0, 1, 2].map(|tier: usize| tenths(rates.reads.iter().map(|tiers| tiers[tier]).sum()));
        let minute = &instance.requests.last_minute;
        Self {
            name: &instance.instance,
            id: instance.id,
            address: &instance.address,
            version: &instance.version,
            started_at: instance.started_at,
            seen_at: instance.seen_at,
            state: &instance.state,
            lease_age_ms: (bound_ms - instance.lease_left_ms as f64).max(0.0),
            remote_up: instance.remote_up,
            bus_up: instance.bus_up,
            hints: instance.hints,
            repairs: instance.repairs,
            reads,
            requests: tenths(rates.requests),
            p50_ms: minute.p50_ms,
            p99_ms: minute.p99_ms,
            pool: &instance.pool,
            audits: &instance.audits,
            refused: &instance.refused,
            refusals: tenths(rates.refused),
        }
    }
}

impl Point {
    pub(super) fn of(seen: &Overview, pace: &mut Pace, at: DateTime<Utc>) -> Self {
        let reads = pace.reads().map(|tiers| {
            let tiers = tiers.map(tenths);
            (tiers != [0.0; 3]).then_some(tiers)
        });
        let live = || seen.reports.iter().filter(|report| !report.instance.is_silent());
        let sum = |of: fn(&Report) -> &Spread| Spread::sum(live().map(of));
        let tiers = [
            sum(|report| &report.times.tiers[0]),
            sum(|report| &report.times.tiers[1]),
            sum(|report| &report.times.tiers[2]),
        ];
        let (staleness, propagation) =
            (sum(|report| &report.times.staleness), sum(|report| &report.times.propagation));
        let off = seen.reports.iter().filter(|report| report.instance.state != "coherent");
        Self {
            t: at.timestamp_millis(),
            reads: reads.into(),
            latency: tiers.map(|tier| pair(&tier, [0.5, 0.99], 1e3)),
            staleness: pair(&staleness, [0.99, 1.0], 1e6),
            propagation: pair(&propagation, [0.5, 0.99], 1e6),
            repairs: pace.repaired(),
            states: off.take(MAX_STATES).map(|report| state(&report.instance)).collect(),
            alone: seen.alone,
        }
    }
}

fn state(instance: &Instance) -> (String, char) {
    let id = instance.id.simple().to_string().chars().take(8).collect();
    (id, instance.state.chars().next().unwrap_or('?'))
}

/// Two quantiles in units of so many nanoseconds.
fn pair(spread: &Spread, quantiles: [f64; 2], unit: f64) -> Option<[f64; 2]> {
    let at = |q| spread.quantile(q).map(|ns| (ns / unit * 1e3).round() / 1e3);
    Some([at(quantiles[0])?, at(quantiles[1])?])
}

fn tenths(rate: f64) -> f64 {
    (rate * 10.0).round() / 10.0
}
