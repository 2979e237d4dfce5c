//! What an instance does beside serving: the log is trimmed, what was served is audited, and keys are compared with those of rows.
//! None of it ever ends by itself.

use std::sync::Arc;
use std::time::Duration;

use crate::error::LogError;
use crate::health::troubles::TroubleKind;
use crate::shared::Shared;

/// How often somebody looks whether the log wants trimming.
const TRIM_INTERVAL: Duration = Duration::from_secs(60);
/// Between two audits of a cache.
const AUDIT_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks whether there are keys to compare with those of rows.
const COMPARE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn trim(shared: Arc<Shared>) {
    loop {
        // A failed trim is tried again with the next; until then the log is longer.
        let limit = TRIM_INTERVAL;
        let trimmed = tokio::time::timeout(limit, shared.log.trim(shared.settings.retention)).await;
        let trouble = TroubleKind::LogNotTrimmed.anywhere();
        match trimmed.unwrap_or(Err(LogError::Timeout(limit))) {
            Ok(()) => shared.signals.end(&trouble),
            Err(error) => {
                shared.counters.trim_errors.add(1);
                let why = crate::error::chain(&error);
                shared.signals.begin(trouble, &format!("the log grows until it can be trimmed: {why}"));
            }
        }
        tokio::time::sleep(TRIM_INTERVAL).await;
    }
}

pub(super) async fn audit(shared: Arc<Shared>) {
    loop {
        let caches = shared.caches();
        caches.values().for_each(|cache| cache.sample(shared.settings.audit_rate));
        tokio::time::sleep(AUDIT_INTERVAL).await;
        // None waits for another's loader.
        futures_util::future::join_all(caches.values().map(|cache| cache.audit())).await;
    }
}

/// One cache after the other: it takes one connection at a time, and nobody waits for it.
pub(super) async fn compare_keys(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(COMPARE_INTERVAL).await;
        for cache in shared.caches().values() {
            cache.compare_keys().await;
        }
    }
}
