//! One entry of a cache through all tiers, as this instance sees it: never the value, only what is known of it.

use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use perto::{Cache, InLocal, InRemote, Inspection, Key, Known, Value};
use serde_json::json;

use super::problem::Problem;
use super::{Service, companies};

pub(super) async fn read(
    State(service): State<Arc<Service>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Result<Json<serde_json::Value>, Problem> {
    let Path((cache, key)) = path.map_err(|_rejected| Problem::bad_request("key: can't be read"))?;
    let seen = match cache.as_str() {
        companies::CACHE => inspect(&service.companies, &key).await?,
        _ => return Err(Problem::not_found("there is no such cache")),
    };
    Ok(Json(shown(&service.instance, &cache, &seen)))
}

async fn inspect<K: Key + FromStr, V: Value>(cache: &Cache<K, V>, key: &str) -> Result<Inspection, Problem> {
    let key = key.parse().map_err(|_unreadable| Problem::bad_request("key: is none of this cache"))?;
    Ok(cache.inspect(&key).await?)
}

fn shown(instance: &str, cache: &str, seen: &Inspection) -> serde_json::Value {
    json!({
        "instance": instance,
        "cache": cache,
        "key": seen.key,
        "keyHash": hash(&seen.key),
        "version": seen.version,
        "epoch": format!("{:016x}", seen.health.epoch),
        "state": seen.health.state.to_string(),
        "leaseLeftMs": ms(seen.health.lease_left),
        "poll": seen.poll.as_ref().map(ToString::to_string),
        "known": known(&seen.known),
        "knownOfCache": known(&seen.whole),
        "l1": seen.local.as_ref().map(local),
        "l2": remote(seen),
    })
}

/// As the auditor's event has it in the service's log.
pub(crate) fn hash(key: &str) -> String {
    format!("{:016x}", perto::key_hash(key))
}

pub(crate) fn ms(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Transactions as text: numbers beyond 2^53 don't come through every reader of JSON.
fn known(known: &Known) -> serde_json::Value {
    json!({
        "highest": known.highest.to_string(),
        "lo": known.lo.to_string(),
        "rk": known.rk.xmax().to_string(),
        "transactions": known.xids.iter().map(u64::to_string).collect::<Vec<_>>(),
    })
}

fn local(entry: &InLocal) -> serde_json::Value {
    json!({
        "stamp": entry.stamp.to_string(),
        "leftMs": ms(entry.left),
        "absent": entry.absent,
        "weight": entry.weight,
        "served": entry.refused.is_none(),
        "refused": entry.refused.map(|refused| refused.to_string()),
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

/// What lies in L2, whoever looked.
pub(crate) fn in_remote(holds: &InRemote) -> serde_json::Value {
    match holds {
        InRemote::Nothing => json!({ "is": "nothing" }),
        InRemote::Tombstone(xids) => {
            json!({ "is": "tombstone", "transactions": xids.map(|xid| xid.to_string()) })
        }
        InRemote::Unreadable => json!({ "is": "unreadable" }),
        InRemote::Value(value) => json!({
            "is": "value",
            "stamp": value.stamp.to_string(),
            "ageMs": ms(value.age),
            "leftMs": ms(value.left),
            "bytes": value.bytes,
            "absent": value.absent,
        }),
        _ => json!({ "is": "not used" }),
    }
}
