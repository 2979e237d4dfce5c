//! What an instance does by itself, once a second: it looks how it is, and says so in its row. It must go on whatever hangs.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chrono::Utc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::alerts::{Alerts, Lasting, Sample, Thresholds};
use super::counts::Tallies;
use super::others::Others;
use super::redis::Redis;
use super::report::{Found, Gauge, Repaired, Report, Start};
use super::requests::Requests;
use super::rows::{Beat, Rows};
use super::times::Times;
use super::writes::Writes;
use super::{Baseline, Fleet};
use crate::service::dashboard;
use crate::service::database::Database;
use crate::service::settings::Settings;
use crate::service::{Pools, Service};

const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often Redis is asked, where nobody else does.
const REDIS: Duration = Duration::from_secs(5);
/// How long to look whether there are keys.
const LOOK: Duration = Duration::from_millis(500);
/// How often tenants that have been quiet are forgotten.
const SWEEP: Duration = Duration::from_mins(1);
/// Statements a minute that delete what has expired.
const EXPIRIES: usize = 100;

impl Fleet {
    /// # Errors
    /// If the URL of Redis makes no sense.
    pub(crate) fn new(
        settings: &Settings,
        pools: &Pools,
        upkeep: Database,
        redis_url: Option<&str>,
        address: std::net::SocketAddr,
    ) -> anyhow::Result<Self> {
        let (redis, at) = (Redis::new(redis_url)?, Utc::now());
        let thresholds = Thresholds { settings: settings.alerts.clone(), redis: redis.is_configured() };
        Ok(Self {
            requests: Requests::new(settings.alerts.response_time),
            writes: Writes::default(),
            start: Start {
                id: Uuid::new_v4(),
                name: settings.instance.clone(),
                address: address.to_string(),
                at,
            },
            began: Instant::now(),
            rows: Rows::new(upkeep),
            others: Others::default(),
            repaired: Repaired::default(),
            baseline: parking_lot::Mutex::new(Baseline {
                generation: 0,
                since: at,
                caches: Tallies::default(),
            }),
            alerts: parking_lot::Mutex::new(Alerts::new(thresholds)),
            redis,
            gauges: [
                Gauge::new("requests", pools.requests.clone()),
                Gauge::new("loads", pools.loads.clone()),
            ],
            changed: tokio::sync::Notify::new(),
            times: parking_lot::Mutex::default(),
        })
    }
}

/// Runs until the end; then takes the instance's row away.
pub(crate) async fn run(service: Arc<Service>, ending: CancellationToken) {
    let both =
        async { tokio::join!(watch(&service), beat(&service), expire(&service), dashboard::run(&service)) };
    tokio::select! {
        biased;
        () = ending.cancelled() => {}
        _never = Box::pin(both) => {}
    }
    let fleet = &service.fleet;
    if let Err(error) = fleet.rows.leave(fleet.start.id).await {
        let error: &dyn std::error::Error = &error;
        tracing::info!(error, "the instances' rows can't be written: this one will be shown as silent");
    }
}

/// Looks how this instance is. Never returns.
async fn watch(service: &Service) {
    let fleet = &service.fleet;
    let (mut ticks, mut swept) = (ticking(), Instant::now());
    loop {
        ticks.tick().await;
        fleet.requests.turn(Instant::now());
        fleet.times.lock().turn(Times::now(service));
        close(service).await;
        let sample = sample(service).await;
        fleet.alerts.lock().see(sample, &fleet.start.name, Utc::now());
        if swept.elapsed() >= SWEEP {
            swept = Instant::now();
            service.access.sweep();
            service.turns.sweep();
        }
    }
}

/// Where no key was configured at the start, one may be by now.
async fn close(service: &Service) {
    if service.access.is_open() {
        let looking = tokio::time::timeout(LOOK, service.database.has_keys());
        if matches!(looking.await, Ok(Ok(true))) {
            tracing::info!("there is an API key now: from here on every request needs one");
            service.access.close();
        }
    }
}

/// Every wait in it has its own limit, well below a second.
async fn sample(service: &Service) -> Sample {
    let fleet = &service.fleet;
    let (redis, requests, loads) =
        tokio::join!(fleet.redis.info(REDIS), fleet.gauges[0].look(), fleet.gauges[1].look());
    let (mut exhausted, mut unusable) = (Vec::new(), Vec::new());
    for (gauge, found) in fleet.gauges.iter().zip([requests, loads]) {
        match found {
            Found::Connection => {}
            Found::None => exhausted.push(gauge.what),
            Found::Refusal(why) => unusable.push((gauge.what, why)),
        }
    }
    let counts = Tallies::now(service).overall().counts;
    let (health, bound) = (service.perto.health(), service.settings.bound);
    Sample {
        at: fleet.began.elapsed(),
        hits: counts.hits(),
        reads: counts.reads(),
        repairs: fleet.repaired.look(&service.perto.stats()),
        redis_percent: redis.and_then(|info| info.memory_percent),
        exhausted,
        unusable,
        writes: fleet.writes.seen(),
        spans_failed: service.telemetry.spans_failed(),
        refused: service.limits.refused(),
        now: SystemTime::now(),
        troubles: health.troubles.iter().map(Lasting::from).collect(),
        responses: fleet.requests.minute(),
        state: health.state,
        lease_percent: (bound.saturating_sub(health.lease_left)).as_secs_f64() / bound.as_secs_f64() * 100.0,
    }
}

/// Writes the row. Never returns.
async fn beat(service: &Service) {
    let fleet = &service.fleet;
    let (mut ticks, mut silent, mut shared) = (ticking(), false, false);
    loop {
        tokio::select! {
            _at = ticks.tick() => {}
            () = fleet.changed.notified() => {}
        }
        match beat_once(service).await {
            Ok(namesakes) => {
                if namesakes > 0 && !shared {
                    tracing::warn!(
                        instance = fleet.start.name,
                        namesakes,
                        "other instances have the same name, by --instance: give each its own"
                    );
                }
                (silent, shared) = (false, namesakes > 0);
            }
            Err(error) if !silent => {
                tracing::warn!(
                    error = &*error,
                    "the instances' rows can't be written: the others don't hear of this one"
                );
                silent = true;
            }
            Err(_) => {}
        }
    }
}

/// Deletes what has expired, a bounded part of it a minute. Never returns.
async fn expire(service: &Service) {
    let mut minutes = tokio::time::interval(SWEEP);
    minutes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        minutes.tick().await;
        for _ in 0..EXPIRIES {
            match service.fleet.rows.expire().await {
                Ok(deleted) if deleted > 0 => {}
                Ok(_) => break,
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "tool results that have expired can't be deleted");
                    break;
                }
            }
        }
    }
}

pub(crate) async fn beat_once(service: &Service) -> Result<i64, Box<dyn std::error::Error + Send + Sync>> {
    let fleet = &service.fleet;
    let (report, generation) = fleet.report(service);
    let figures = serde_json::to_string::<Report>(&report)?;
    let Start { id, name, at, .. } = &fleet.start;
    let written = fleet.rows.beat(Beat { id: *id, name, started_at: *at, generation, figures }).await;
    fleet.writes.beat(written.as_ref().map(drop));
    let heard = written?;
    if fleet.begin_anew(service, heard.generation) {
        // Whoever made the reset waits for this.
        fleet.changed.notify_one();
    }
    Ok(heard.namesakes)
}

fn ticking() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}
