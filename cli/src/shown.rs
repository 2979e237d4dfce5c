//! How instances and commands show what lies in the tiers, as JSON.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use perto::{Dependency, InLocal, InRemote, Switch};
use serde_json::{Value, json};

/// As the auditor's event has it in the service's log.
#[must_use]
pub fn hash(key: &str) -> String {
    format!("{:016x}", perto::key_hash(key))
}

/// Milliseconds.
#[must_use]
pub fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What is switched. No cache: all of them. No `until`: until somebody ends it.
#[must_use]
pub fn switch(switch: &Switch) -> Value {
    let time = |time: SystemTime| DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true);
    json!({
        "cache": switch.cache,
        "tier": switch.tier.to_string(),
        "mode": switch.mode.name(),
        "reason": switch.reason,
        "by": switch.by,
        "since": time(switch.since),
        "until": switch.until.map(time),
    })
}

/// What lies in L2, whoever looked.
#[must_use]
pub fn in_remote(holds: &InRemote) -> Value {
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
            "codec": value.codec,
            "compressed": value.compressed,
            "absent": value.absent,
            "depends": value.depends.iter().map(key).collect::<Vec<_>>(),
        }),
        _ => json!({ "is": "not used" }),
    }
}

/// An entry of L1, and which of the keys that it depends on refuse it.
#[must_use]
pub fn in_local(entry: &InLocal) -> Value {
    let mut refused = entry.refused.map(|refused| refused.to_string());
    let mut depends = Vec::with_capacity(entry.depends.len());
    for on in &entry.depends {
        let why = on.refused.map(|refused| refused.to_string());
        let mut shown = key(&on.on);
        shown["served"] = why.is_none().into();
        shown["refused"] = why.clone().into();
        depends.push(shown);
        refused = refused.or_else(|| Some(of(&on.on, &why?)));
    }
    json!({
        "stamp": entry.stamp.to_string(),
        "leftMs": ms(entry.left),
        "absent": entry.absent,
        "weight": entry.weight,
        "served": refused.is_none(),
        "refused": refused,
        "depends": depends,
    })
}

/// Why a value is refused, where one of the keys that it depends on does it.
pub(crate) fn of(on: &Dependency, why: &str) -> String {
    format!("{} {}: {why}", on.cache(), on.key())
}

fn key(on: &Dependency) -> Value {
    json!({ "cache": on.cache(), "key": on.key() })
}
