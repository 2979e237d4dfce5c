//! What every bench reads: rows, their keys, and the order in which they are asked for.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub const ROWS: i64 = 10_000;

/// About 260 bytes encoded: a chat message.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Message {
    pub id: i64,
    pub author: String,
    pub body: String,
}

impl Message {
    pub fn new(id: i64) -> Self {
        Self { id, author: format!("author {id}"), body: "x".repeat(230) }
    }
}

/// A key's number, whatever the key's type.
#[derive(Debug)]
pub struct Id(pub i64);

impl From<Id> for i64 {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl From<Id> for String {
    /// Padded: 24 bytes, like many keys.
    fn from(id: Id) -> Self {
        format!("{:024}", id.0)
    }
}

/// Row numbers by Zipf's law, the same at each run.
pub fn zipf(count: usize) -> Vec<i64> {
    let mut sums = Vec::new();
    let mut sum = 0.0;
    for rank in 1..=ROWS {
        sum += 1.0 / rank as f64;
        sums.push(sum);
    }
    let mut state = 7_u64;
    let mut unit = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    (0..count)
        .map(|_| {
            let drawn = unit() * sum;
            (sums.partition_point(|s| *s < drawn) as i64).wrapping_mul(7_919) % ROWS
        })
        .collect()
}

/// What one would build without Perto for the first tier.
pub fn bare_moka<K: perto::Key + From<Id>>() -> moka::sync::Cache<K, Arc<Message>> {
    let cache = moka::sync::Cache::new(2 * ROWS as u64);
    for id in 0..ROWS {
        cache.insert(K::from(Id(id)), Arc::new(Message::new(id)));
    }
    cache.run_pending_tasks();
    cache
}
