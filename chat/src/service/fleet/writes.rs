//! Whether writes succeed: those of requests, and the heartbeat, which an instance writes whoever else does.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{Method, StatusCode};
use parking_lot::Mutex;

use super::alerts;

/// Since the start.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    pub(crate) done: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) beats: AtomicU64,
    pub(crate) beats_failed: AtomicU64,
    /// Heartbeats that failed in a row, and why the last did.
    silent: Mutex<(u32, String)>,
}

impl Writes {
    /// A request was answered. What it could not write for its own fault is done.
    pub(crate) fn answered(&self, method: &str, status: StatusCode) {
        if [Method::POST, Method::PUT, Method::PATCH, Method::DELETE]
            .iter()
            .any(|writes| writes.as_str() == method)
        {
            let outcome = if status.is_server_error() { &self.failed } else { &self.done };
            outcome.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The heartbeat was written, or was not.
    pub(crate) fn beat<E: std::fmt::Display>(&self, written: Result<(), E>) {
        let mut silent = self.silent.lock();
        match written {
            Ok(()) => {
                self.beats.fetch_add(1, Ordering::Relaxed);
                *silent = (0, String::new());
            }
            Err(error) => {
                self.beats_failed.fetch_add(1, Ordering::Relaxed);
                *silent = (silent.0.saturating_add(1), error.to_string());
            }
        }
    }

    pub(crate) fn seen(&self) -> alerts::Writes {
        let (silent, why) = self.silent.lock().clone();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        alerts::Writes { done: count(&self.done), failed: count(&self.failed), silent, why }
    }
}
