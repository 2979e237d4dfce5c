//! Locks and atomics of what threads share without a lock of their own: the lease and the buckets.
//!
//! In one place because `proofs/` compiles those files with loom's types here, and tries every interleaving.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
