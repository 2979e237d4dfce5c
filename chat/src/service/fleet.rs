//! The fleet's figures: what all instances have counted, what is wrong with any of them, and which there are. For admins.
//!
//! Each instance writes what it counts into its row, once a second, and answers with the rows of all; its own figures are
//! always of the moment. A reset begins a new generation: an instance that hears of it takes what it has counted so far as
//! nothing, and a reader counts only rows of the last generation. So nothing from before a reset is seen after it, and
//! once the reset's answer says `complete`, everything from then on is counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Service;
use super::access::Admin;
use super::input::Query;
use super::problem::Problem;
use alerts::Alerts;
use metrics::{Metrics, Scope};
use others::{Other, Others};
use redis::Redis;
use report::{Gauge, Repaired, Start};
use requests::Requests;
use rows::Rows;
use writes::Writes;

mod alerts;
mod counts;
mod metrics;
mod others;
mod overview;
mod redis;
mod report;
mod requests;
mod rows;
mod times;
mod upkeep;
mod writes;

pub(super) use alerts::Alert;
pub(super) use counts::{Tallies, Tally};
pub(super) use metrics::RedisMetrics;
pub(super) use overview::Overview;
pub(super) use report::{Audits, Instance, Pools, Report};
pub(super) use times::Spread;
pub(super) use upkeep::run;

/// This instance among the others.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(super) requests: Requests,
    pub(super) writes: Writes,
    start: Start,
    began: Instant,
    rows: Rows,
    others: Others,
    baseline: Mutex<Baseline>,
    repaired: Repaired,
    alerts: Mutex<Alerts>,
    pub(super) redis: Redis,
    /// Of requests, of loads.
    pub(super) gauges: [Gauge; 2],
    /// Something has changed that the others should know at once.
    changed: Notify,
    /// Of the last seconds.
    times: Mutex<times::Recent>,
}

/// From where figures are counted.
#[derive(Debug, Clone, Copy)]
struct Baseline {
    generation: i64,
    since: DateTime<Utc>,
    caches: Tallies,
}

/// Answers that are not older than this will do: whoever asks more often asks us, not Redis and Postgres.
const RECENT: Duration = Duration::from_secs(1);
/// How long a reset waits for the others, who hear of it with their next heartbeat.
const RESET_LIMIT: Duration = Duration::from_secs(4);
const RESET_PAUSE: Duration = Duration::from_millis(100);

/// What to show.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MetricsQuery {
    /// Whose figures.
    #[serde(default)]
    #[param(inline)]
    scope: Scope,
}

/// What a reset has reset.
#[derive(Debug, Serialize, ToSchema)]
struct Reset {
    /// From when this instance counts. The others began between the request and this answer.
    since: DateTime<Utc>,
    /// Whether every instance counts anew. If not, some will once they hear of it; until then they count nothing.
    complete: bool,
    /// Those that have not answered.
    behind: Vec<String>,
}

/// What is wrong.
#[derive(Debug, Serialize, ToSchema)]
struct ActiveAlerts {
    alerts: Vec<Alert>,
    /// How many instances were heard.
    instances: u64,
    /// Whether they are all.
    complete: bool,
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(read_metrics, reset_metrics))
        .routes(routes!(read_alerts))
        .routes(routes!(read_instances))
}

/// What the caches have counted
#[utoipa::path(get, path = "/api/v1/cache/metrics", tag = "cache", params(MetricsQuery), responses((status = 200, body = Metrics)))]
async fn read_metrics(
    State(service): State<Arc<Service>>,
    _: Admin,
    Query(wanted): Query<MetricsQuery>,
) -> Json<Metrics> {
    let fleet = &service.fleet;
    let redis = fleet.redis.info(RECENT);
    let (others, info) = match wanted.scope {
        Scope::Fleet => tokio::join!(fleet.others(&service, RECENT), redis),
        Scope::Instance => (Some(Arc::default()), redis.await),
    };
    let (own, generation) = fleet.own(&service);
    let (mut caches, mut since, mut instances) = (own.caches, own.since, 1);
    let complete = others
        .as_ref()
        .is_some_and(|others| others.iter().all(|other| other.is_counted(generation) && !other.silent));
    for other in others.iter().flat_map(|others| others.iter()) {
        if let Some(report) = other.report.as_ref().filter(|_| other.is_counted(generation)) {
            caches = caches.plus(report.instance.caches);
            since = since.min(report.instance.since);
            instances += 1;
        }
    }
    let redis = RedisMetrics::of(fleet.redis.is_configured(), info);
    Json(Metrics { scope: wanted.scope, instances, complete, since, cache: caches.into(), redis })
}

/// Has every instance count from zero
#[utoipa::path(delete, path = "/api/v1/cache/metrics", tag = "cache", responses((status = 200, body = Reset)))]
async fn reset_metrics(State(service): State<Arc<Service>>, _: Admin) -> Result<Json<Reset>, Problem> {
    let fleet = &service.fleet;
    let known = fleet.baseline.lock().generation;
    let generation = fleet.others.alone(fleet.rows.reset(known)).await.map_err(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "figures could not be reset");
        Problem::unavailable("the database does not say that it was done; reset again")
    })?;
    fleet.begin_anew(&service, generation);
    let since = fleet.baseline.lock().since;
    let told = fleet.others.alone(upkeep::beat_once(&service)).await.is_ok();
    let began = Instant::now();
    loop {
        let others = fleet.others(&service, Duration::ZERO).await;
        let behind = others.iter().flat_map(|others| others.iter());
        let behind: Vec<&Other> = behind.filter(|other| other.generation < generation).collect();
        // Who is silent won't say anything now either.
        let settled = others.is_some() && behind.iter().all(|other| other.silent);
        if settled || began.elapsed() > RESET_LIMIT {
            let complete = told && others.is_some() && behind.is_empty();
            let behind = behind.into_iter().map(|other| other.name.clone()).collect();
            return Ok(Json(Reset { since, complete, behind }));
        }
        tokio::time::sleep(RESET_PAUSE).await;
    }
}

/// What somebody should look at, on any instance
#[utoipa::path(get, path = "/api/v1/cache/alerts", tag = "cache", responses((status = 200, body = ActiveAlerts)))]
async fn read_alerts(State(service): State<Arc<Service>>, _: Admin) -> Json<ActiveAlerts> {
    let fleet = &service.fleet;
    let others = fleet.others(&service, RECENT).await;
    let (alerts, instances, complete) = fleet.all_alerts(others.as_deref().map(Vec::as_slice));
    Json(ActiveAlerts { alerts, instances, complete })
}

/// The instances, the one that answers first
///
/// One that was not heard of for 5 seconds is shown as `silent`, and after a minute not at all.
#[utoipa::path(get, path = "/api/v1/cache/instances", tag = "cache", responses((status = 200, body = Vec<Instance>)))]
async fn read_instances(State(service): State<Arc<Service>>, _: Admin) -> Json<Vec<Instance>> {
    let fleet = &service.fleet;
    let others = fleet.others(&service, RECENT).await;
    let (mut own, _) = fleet.own(&service);
    own.alone = others.is_none();
    let mut all = vec![own];
    let others = others.iter().flat_map(|others| others.iter());
    all.extend(others.filter_map(|other| Some(other.report.as_ref()?.instance.clone())));
    Json(all)
}

impl Fleet {
    /// What this instance has counted, and in which generation.
    fn own(&self, service: &Service) -> (Instance, i64) {
        // Held meanwhile: what is counted from one baseline must not be said to be counted from the next.
        let baseline = self.baseline.lock();
        let caches = Tallies::now(service).since(baseline.caches);
        (Instance::now(service, baseline.since, caches), baseline.generation)
    }

    fn report(&self, service: &Service) -> (Report, i64) {
        let alerts = self.alerts.lock().active().to_vec();
        let (instance, generation) = self.own(service);
        (Report { instance, alerts, times: self.times.lock().get() }, generation)
    }

    /// Counts from zero, if this generation is new here. Returns whether it was.
    fn begin_anew(&self, service: &Service, generation: i64) -> bool {
        let mut baseline = self.baseline.lock();
        let new = generation > baseline.generation;
        if new {
            *baseline = Baseline { generation, since: Utc::now(), caches: Tallies::now(service) };
        }
        new
    }
}
