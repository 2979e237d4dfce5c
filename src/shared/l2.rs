//! L2, within its timeout and behind its breaker.

use std::time::Duration;

use bytes::Bytes;

use super::Shared;
use crate::error::RemoteError;
use crate::trace::{Kind, Span, Trace};
use crate::wire;

/// Keys that are looked up, or buried, in one round trip. More take several: each has the L2 timeout to
/// itself.
pub(crate) const KEYS_AT_ONCE: usize = 1_000;

impl Shared {
    pub(crate) fn remote_usable(&self) -> bool {
        self.remote.is_some() && self.breaker.is_closed()
    }

    pub(crate) fn remote_key(&self, epoch: u64, kind: &str, key: &str) -> String {
        wire::name(&self.app, epoch, kind, key)
    }

    pub(crate) fn claim_name(&self, kind: &str, key: &str) -> String {
        wire::claim_name(&self.app, kind, key)
    }

    /// How long [`Shared::remote_get`] may take.
    pub(crate) fn remote_limit(&self, keys: usize) -> Duration {
        let round_trips = u32::try_from(keys.div_ceil(KEYS_AT_ONCE)).unwrap_or(u32::MAX);
        self.settings.remote_timeout.saturating_mul(round_trips)
    }

    /// Looks into L2. Nothing where it can't be used: trouble costs a read the L2 timeout once, then the
    /// breaker is open.
    pub(crate) async fn remote_get(
        &self,
        names: &[String],
        most: usize,
        trace: &Trace,
    ) -> Vec<Option<Bytes>> {
        match &self.remote {
            Some(remote) if self.breaker.is_closed() => {
                let mut found = Vec::with_capacity(names.len());
                for names in names.chunks(KEYS_AT_ONCE) {
                    let operation = if names.len() == 1 { "GETRANGE" } else { "MGET" };
                    let span = redis_span(trace, Kind::Client, operation, names.len());
                    self.at_server(&span, trace, names);
                    match self.try_for(self.settings.remote_timeout, remote.get(names, most)).await {
                        Ok(values) => {
                            let hits = values.iter().filter(|value| value.is_some()).count();
                            span.number("perto.found", hits as u64);
                            found.extend(values);
                        }
                        Err(error) => {
                            span.failed(&NO_ANSWER);
                            if matches!(error, RemoteError::Timeout) {
                                remote.is_late();
                            }
                            self.counters.l2_errors.add(u64::from(error.leaves_the_rest()));
                            if !matches!(error, RemoteError::Partial { .. }) {
                                break;
                            }
                            // Other nodes have what follows.
                            found.resize(found.len() + names.len(), None);
                        }
                    }
                }
                found
            }
            _ => Vec::new(),
        }
    }

    /// Claims the loads of keys for a while. For each, whether nobody else had; `None` where L2 can't be used.
    pub(crate) async fn remote_claim(
        &self,
        names: &[String],
        lasts: Duration,
        trace: &Trace,
    ) -> Option<Vec<bool>> {
        let mut claimed = Vec::with_capacity(names.len());
        for names in names.chunks(KEYS_AT_ONCE) {
            let remote = self.remote.as_ref().filter(|_| self.breaker.is_closed())?;
            let span = redis_span(trace, Kind::Client, "SET", names.len());
            let of_these = self.guard(remote.claim(names, lasts)).await;
            if of_these.is_none() {
                span.failed(&NO_ANSWER);
            }
            claimed.extend(of_these?);
        }
        Some(claimed)
    }

    /// Which server it is asked of, where that is one.
    pub(super) fn at_server(&self, span: &Span, trace: &Trace, names: &[String]) {
        if !trace.is_recorded() {
            return;
        }
        if let Some((host, port)) = self.remote.as_ref().and_then(|remote| remote.server(names)) {
            span.text("server.address", &host);
            if let Some(port) = port {
                span.number("server.port", u64::from(port));
            }
        }
    }

    /// An operation on Redis within the L2 timeout. Only silence and broken connections open the breaker: a
    /// server that refuses one operation is up, and so are the other nodes of a cluster.
    pub(super) async fn guard<T>(
        &self,
        operation: impl Future<Output = Result<T, RemoteError>>,
    ) -> Option<T> {
        let done = self.try_for(self.settings.remote_timeout, operation).await;
        done.inspect_err(|error| self.counters.l2_errors.add(u64::from(error.leaves_the_rest()))).ok()
    }

    /// The same within a limit, with what went wrong. What was refused is for the caller to count.
    pub(super) async fn try_for<T>(
        &self,
        limit: Duration,
        operation: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        let done = tokio::time::timeout(limit, operation).await.unwrap_or(Err(RemoteError::Timeout));
        match &done {
            Ok(_) => return done,
            Err(error) if error.leaves_the_rest() => return done,
            Err(RemoteError::Unusable(_)) => self.leave_remote(),
            Err(_) => {
                self.breaker.trip();
                self.signals.changed();
            }
        }
        self.counters.l2_errors.add(1);
        done
    }

    pub(super) fn leave_remote(&self) {
        self.breaker.leave();
        self.signals.changed();
    }

    /// Changes when Redis was left for good: whoever has a connection of its own makes another one.
    pub(crate) fn remote_left(&self) -> u64 {
        self.breaker.left()
    }
}

pub(super) const NO_ANSWER: &str = "Redis refused, or did not answer in time";

/// <https://opentelemetry.io/docs/specs/semconv/database/redis/>
pub(super) fn redis_span(trace: &Trace, kind: Kind, operation: &str, commands: usize) -> Span {
    let span = trace.begin(kind, format_args!("{operation}"));
    span.text("db.system.name", "redis");
    span.text("db.operation.name", operation);
    if commands > 1 {
        span.number("db.operation.batch.size", commands as u64);
    }
    span
}
