//! Tiers of caches that admins put aside in an incident, on every instance.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use perto::{Switching, TierMode};
use perto_cli::shown;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Service;
use super::access::Admin;
use super::input::{Body, PathParams};
use super::problem::{Kind, Problem};

/// What is switched.
#[derive(Debug, Serialize, ToSchema)]
struct Switches {
    /// Each with `cache` (null for all), `tier`, `mode`, `reason`, `by`, `since` and `until` (null: until somebody ends it). Empty
    /// where all is on.
    switches: Vec<serde_json::Value>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct TierPath {
    /// A cache, or `*` for all of them.
    cache: String,
    /// `l1` or `l2`.
    tier: String,
}

/// What a tier is to do.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SwitchTo {
    /// `off`, `read-only` or `on`.
    #[schema(example = "off")]
    mode: String,
    /// Why, for whoever finds it.
    #[schema(max_length = 400, nullable = true)]
    reason: Option<String>,
    /// Who does it.
    #[schema(max_length = 100, nullable = true)]
    by: Option<String>,
    /// After how many seconds it ends by itself.
    #[schema(minimum = 1, maximum = 31_536_000, nullable = true)]
    seconds: Option<u32>,
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(read)).routes(routes!(switch, end))
}

/// What is switched, as this instance knows it
#[utoipa::path(get, path = "/api/v1/cache/switches", tag = "cache", responses((status = 200, body = Switches)))]
async fn read(State(service): State<Arc<Service>>, _: Admin) -> Json<Switches> {
    Json(switches(&service))
}

/// Switches a tier of a cache, or of all, off, read-only or on, on every instance
///
/// Every instance obeys with its next poll of the log, with or without Redis; this one has when it answers. It outlasts restarts.
#[utoipa::path(put, path = "/api/v1/cache/switches/{cache}/{tier}", tag = "cache", params(TierPath), request_body = SwitchTo,
    responses((status = 200, body = Switches)))]
async fn switch(
    State(service): State<Arc<Service>>,
    _: Admin,
    PathParams(path): PathParams<TierPath>,
    Body(to): Body<SwitchTo>,
) -> Result<Json<Switches>, Problem> {
    let mut switching = parsed(&path, &to.mode)?.by(to.by.as_deref().unwrap_or("an admin, over HTTP"));
    if let Some(reason) = &to.reason {
        switching = switching.because(reason);
    }
    if let Some(seconds) = to.seconds {
        switching = switching.lasting(Duration::from_secs(seconds.into()));
    }
    service.perto.switch(switching).await?;
    Ok(Json(switches(&service)))
}

/// Has a tier on again, on every instance
#[utoipa::path(delete, path = "/api/v1/cache/switches/{cache}/{tier}", tag = "cache", params(TierPath),
    responses((status = 200, body = Switches)))]
async fn end(
    State(service): State<Arc<Service>>,
    _: Admin,
    PathParams(path): PathParams<TierPath>,
) -> Result<Json<Switches>, Problem> {
    service.perto.switch(parsed(&path, TierMode::On.name())?).await?;
    Ok(Json(switches(&service)))
}

fn parsed(path: &TierPath, mode: &str) -> Result<Switching, Problem> {
    Switching::parse(&path.cache, &path.tier, mode)
        .map_err(|why| Problem::new(Kind::Invalid, why.to_string()))
}

fn switches(service: &Service) -> Switches {
    Switches { switches: service.perto.switches().iter().map(shown::switch).collect() }
}
