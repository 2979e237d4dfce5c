//! Waiting for what must come, with a limit. The limits are for the patience of whoever runs the tests, on a busy
//! machine: no promise is measured by them.

use std::time::{Duration, Instant};

/// Long enough for anything that comes at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again every few milliseconds until `what` is so.
///
/// # Panics
/// When it is not so within the limit.
pub(crate) async fn eventually_within(limit: Duration, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
}

/// [`eventually_within`] [`PATIENCE`].
pub(crate) async fn eventually(what: &str, is_so: impl AsyncFnMut() -> bool) {
    eventually_within(PATIENCE, what, is_so).await;
}

/// The outcome of something that must end.
///
/// # Panics
/// When it hangs.
pub(crate) async fn ends<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => panic!("hangs: {what}"),
    }
}
