//! How instances and commands show what lies in the tiers, as JSON.

use std::time::Duration;

use perto::InRemote;
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
            "absent": value.absent,
        }),
        _ => json!({ "is": "not used" }),
    }
}
