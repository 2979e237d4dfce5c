//! Perto's `src/sync.rs`, with loom's types: the lease and the buckets are compiled with these.

pub(crate) use loom::sync::MutexGuard;
pub(crate) use loom::sync::atomic::Ordering;
use loom::sync::{RwLockReadGuard, RwLockWriteGuard};

/// As loom's, but for `fetch_update`: loom loads first there, and of several loads it remembers the last only, so it
/// would miss that another thread's load and this update can change places. Here the update is the first it sees.
#[derive(Debug, Default)]
pub(crate) struct AtomicU64(loom::sync::atomic::AtomicU64);

impl AtomicU64 {
    pub(crate) fn new(value: u64) -> Self {
        Self(loom::sync::atomic::AtomicU64::new(value))
    }

    pub(crate) fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }

    pub(crate) fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }

    pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_add(value, order)
    }

    pub(crate) fn fetch_update(
        &self,
        set: Ordering,
        fetch: Ordering,
        mut update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        let mut expected = 0;
        while let Some(next) = update(expected) {
            match self.0.compare_exchange(expected, next, set, fetch) {
                Ok(before) => return Ok(before),
                Err(now) => expected = now,
            }
        }
        Err(expected)
    }
}

/// As parking_lot's: without poison.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("no thread of a proof panics and goes on")
    }
}

#[derive(Debug)]
pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().expect("no thread of a proof panics and goes on")
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().expect("no thread of a proof panics and goes on")
    }
}
