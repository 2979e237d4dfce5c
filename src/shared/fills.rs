//! Fills of L2: in the background, for nobody waits for them; all that one load brought in one round trip, or nearly.
//!
//! On a connection of their own ([`crate::remote::redis`]), so no look-up waits behind them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Shared;
use super::l2::KEYS_AT_ONCE;
use crate::error::RemoteError;
use crate::health::troubles::TroubleKind;

/// Fills of L2 under way at once; more are dropped and counted.
pub(crate) const MAX_FILLS: usize = 4_096;
/// Fills that are sent together, in one round trip: all that one look-up may have missed.
const FILLS_AT_ONCE: usize = KEYS_AT_ONCE;
/// Their bytes. More take several round trips: others get their turn at the server in between.
const FILL_BYTES_AT_ONCE: usize = 1 << 20;
/// Fills that may take the L2 timeout. More have it several times: that they are many is no trouble of the server's.
const FILLS_A_TIMEOUT: usize = 100;

/// A value on its way to L2: its name, itself and its time to live.
pub(crate) type Fill = (String, Bytes, Duration);

/// Keys that this instance loads for all. Dropped, it lets them go.
pub(crate) struct Claim {
    shared: Arc<Shared>,
    names: Vec<String>,
    /// When it is over. Then the names may be another's.
    until: Instant,
}

impl Claim {
    pub(crate) fn new(shared: &Arc<Shared>, names: Vec<String>, until: Instant) -> Self {
        Self { shared: Arc::clone(shared), names, until }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if Instant::now() < self.until {
            self.shared.remote_release(std::mem::take(&mut self.names));
        }
    }
}

impl Shared {
    /// Fills L2 in the background, with so many values at most: all that one load brought, encoded there too. Drops `held` when that is
    /// done.
    pub(crate) fn remote_fill(
        self: &Arc<Self>,
        count: usize,
        held: impl Send + 'static,
        fills: impl Future<Output = Vec<Fill>> + Send + 'static,
    ) {
        let Some(remote) = self.remote.clone().filter(|_| self.breaker.is_closed()) else { return };
        let places = u32::try_from(count.min(MAX_FILLS)).unwrap_or(u32::MAX);
        if places == 0 {
            return;
        }
        let Ok(places) = Arc::clone(&self.fills).try_acquire_many_owned(places) else {
            return self.counters.fills_dropped.add(count as u64);
        };
        let shared = Arc::clone(self);
        self.spawn(async move {
            let _until_done = (places, held);
            let fills = fills.await;
            let mut rest = &fills[..];
            while !rest.is_empty() {
                let (batch, others) = rest.split_at(at_once(rest));
                rest = others;
                let timeouts = u32::try_from(batch.len().div_ceil(FILLS_A_TIMEOUT)).unwrap_or(u32::MAX);
                let limit = shared.settings.remote_timeout.saturating_mul(timeouts);
                let filled = shared.try_for(limit, remote.fill_many(batch)).await;
                if filled.as_ref().is_err_and(RemoteError::leaves_the_rest) {
                    shared.counters.fills_refused.add(batch.len() as u64);
                }
                shared.signals.judge(TroubleKind::FillsRefused, filled, "every instance loads for itself");
                if !shared.breaker.is_closed() {
                    return;
                }
            }
        });
    }

    /// Lets claims go, in the background. Else they end by themselves.
    pub(crate) fn remote_release(self: &Arc<Self>, names: Vec<String>) {
        // At the end caches are dropped under the lock that a task is begun under.
        if self.is_closed() {
            return;
        }
        let Some(remote) = self.remote.clone().filter(|_| self.breaker.is_closed()) else { return };
        let Ok(place) = Arc::clone(&self.fills).try_acquire_owned() else { return };
        let shared = Arc::clone(self);
        self.spawn(async move {
            let _place = place;
            for names in names.chunks(KEYS_AT_ONCE) {
                shared.guard(remote.release(names)).await;
            }
        });
    }

    /// Removes damaged bytes from L2, in the background.
    pub(crate) fn remote_discard(self: &Arc<Self>, name: String, seen: Bytes) {
        let Some(remote) = self.remote.clone() else { return };
        let Ok(place) = Arc::clone(&self.fills).try_acquire_owned() else { return };
        let shared = Arc::clone(self);
        self.spawn(async move {
            let _place = place;
            shared.guard(remote.discard(&name, seen)).await;
        });
    }
}

/// How many of them go out together. At least one.
fn at_once(fills: &[Fill]) -> usize {
    let mut bytes = 0;
    let within = |(_, value, _): &&Fill| {
        bytes += value.len();
        bytes <= FILL_BYTES_AT_ONCE
    };
    fills.iter().take(FILLS_AT_ONCE).take_while(within).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_go_out_together_up_to_a_number_and_up_to_their_bytes() {
        let fills = |count: usize, bytes: usize| -> Vec<Fill> {
            let value = Bytes::from(vec![0; bytes]);
            (0..count).map(|n| (n.to_string(), value.clone(), Duration::from_secs(1))).collect()
        };
        assert_eq!(at_once(&fills(1_000, 1_000)), 1_000);
        assert_eq!(at_once(&fills(3_000, 10)), 1_000);
        assert_eq!(at_once(&fills(10, 400_000)), 2);
        assert_eq!(at_once(&fills(2, 3_000_000)), 1);
    }
}
