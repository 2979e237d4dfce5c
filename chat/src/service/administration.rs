//! Cache administration: one entry laid open, one key or a whole cache invalidated on every instance. For admins.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use perto::{InRemote, Inspection, Known, Token};
use perto_cli::shown::{hash, in_local, in_remote, ms};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Service;
use super::access::Admin;
use super::answer;
use super::input::PathParams;
use super::problem::Problem;

/// What was invalidated.
#[derive(Debug, Serialize, ToSchema)]
struct Invalidated {
    cache: String,
    /// None for the whole cache.
    key: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct CachePath {
    /// `message`, `company`, `user`, `contact`, `contact_by_phone`, `validation`, `tool_result`, `inbox`, `contact_page`,
    /// `overview` or `api_key`.
    cache: String,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct EntryPath {
    /// `message`, `company`, `user`, `contact`, `contact_by_phone`, `validation`, `tool_result`, `inbox`, `contact_page`,
    /// `overview` or `api_key`.
    cache: String,
    /// As the trigger writes it, like `7` or `7:+351912345678`.
    key: String,
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(read)).routes(routes!(invalidate)).routes(routes!(clear))
}

/// One entry through all tiers, as this instance sees it
///
/// Never the value, only what is known of it.
#[utoipa::path(get, path = "/api/v1/cache/{cache}/entries/{key}", tag = "cache", params(EntryPath),
    responses((status = 200, body = serde_json::Value)))]
async fn read(
    State(service): State<Arc<Service>>,
    _: Admin,
    PathParams(path): PathParams<EntryPath>,
) -> Result<Json<serde_json::Value>, Problem> {
    let seen = service.caches.find(&path.cache)?.inspect(&path.key).ok_or_else(no_key)?.await?;
    Ok(Json(shown(&service.settings.instance, &path.cache, &seen)))
}

/// Invalidates one key on every instance
#[utoipa::path(delete, path = "/api/v1/cache/{cache}/{key}", tag = "cache", params(EntryPath),
    responses((status = 200, body = Invalidated)))]
async fn invalidate(
    State(service): State<Arc<Service>>,
    _: Admin,
    PathParams(path): PathParams<EntryPath>,
) -> Result<Response, Problem> {
    let token = service.caches.find(&path.cache)?.invalidate(&path.key).ok_or_else(no_key)?.await?;
    Ok(done(Invalidated { cache: path.cache, key: Some(path.key) }, token))
}

/// Invalidates a whole cache on every instance
#[utoipa::path(delete, path = "/api/v1/cache/{cache}", tag = "cache", params(CachePath),
    responses((status = 200, body = Invalidated)))]
async fn clear(
    State(service): State<Arc<Service>>,
    _: Admin,
    PathParams(path): PathParams<CachePath>,
) -> Result<Response, Problem> {
    let token = service.caches.find(&path.cache)?.clear().await?;
    Ok(done(Invalidated { cache: path.cache, key: None }, token))
}

fn no_key() -> Problem {
    Problem::bad("key", "is none of this cache")
}

fn done(invalidated: Invalidated, token: Token) -> Response {
    let mut response = Json(invalidated).into_response();
    answer::written(response.headers_mut(), Some(token));
    response
}
fn shown(instance: &str, cache: &str, seen: &Inspection) -> serde_json::Value {
    json!({
        "instance": instance,
        "cache": cache,
        "key": seen.key,
        "keyHash": hash(&seen.key),
        "version": seen.version,
        "kind": seen.kind,
        "epoch": format!("{:016x}", seen.health.epoch),
        "state": seen.health.state.to_string(),
        "leaseLeftMs": ms(seen.health.lease_left),
        "poll": seen.poll.as_ref().map(ToString::to_string),
        "known": known(&seen.known),
        "knownOfCache": known(&seen.whole),
        "l1Mode": seen.local_mode.name(),
        "l2Mode": seen.remote_mode.name(),
        "l1": seen.local.as_ref().map(in_local),
        "l2": remote(seen),
    })
}

/// Transactions as text: numbers beyond 2^53 don't come through every reader of JSON.
fn known(known: &Known) -> serde_json::Value {
    json!({
        "highest": known.highest.to_string(),
        "coarseUpTo": known.coarse_up_to.to_string(),
        "floor": known.floor.xmax().to_string(),
        "transactions": known.xids.iter().map(u64::to_string).collect::<Vec<_>>(),
    })
}

fn remote(seen: &Inspection) -> serde_json::Value {
    let mut shown = in_remote(&seen.remote);
    if matches!(seen.remote, InRemote::Value(_)) {
        shown["served"] = seen.remote_refused.is_none().into();
        shown["refused"] = seen.remote_refused.map(|refused| refused.to_string()).into();
    }
    shown
}
