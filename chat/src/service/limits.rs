//! What the service refuses so that one who asks can't take what others need: each limit by its name, and how often it did.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;

macro_rules! limits {
    ($($(#[$help:meta])* $limit:ident = $name:literal, $status:ident, $title:literal;)*) => {
        /// A limit. Its name is that of the label `perto_limit`, and of the type of the problem that tells of it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Limit { $($(#[$help])* $limit),* }

        impl Limit {
            pub(crate) const ALL: &[Self] = &[$(Self::$limit),*];

            pub(crate) const fn parts(self) -> (&'static str, StatusCode, &'static str) {
                match self { $(Self::$limit => ($name, StatusCode::$status, $title)),* }
            }
        }
    };
}

limits! {
    /// Requests of a company a second.
    Rate = "too-many-requests", TOO_MANY_REQUESTS, "Too much at a time";
    /// Keys that nobody knows.
    UnknownKeys = "too-many-unknown-keys", TOO_MANY_REQUESTS, "Too many keys that nobody knows";
    /// Connections without a valid key. Nobody is told: the oldest is closed.
    Strangers = "too-many-strangers", SERVICE_UNAVAILABLE, "Too many connections without a key";
    /// Connections with a key.
    Connections = "too-many-connections", SERVICE_UNAVAILABLE, "Too many connections";
    /// Connections of one company.
    CompanyConnections = "too-many-connections-of-company", TOO_MANY_REQUESTS, "Too many connections of this company";
    /// Memory for what is sent and received.
    Memory = "memory-full", SERVICE_UNAVAILABLE, "No memory for more at a time";
    /// The share of one company in it.
    CompanyMemory = "memory-of-company-full", TOO_MANY_REQUESTS, "No memory for more of this company at a time";
    /// Imports of a company that are under way.
    Imports = "too-many-imports", TOO_MANY_REQUESTS, "Too many imports of this company are under way";
    /// Memory in Postgres for rejected rows. Nobody is told: more are only counted.
    Rejects = "too-many-rejects", TOO_MANY_REQUESTS, "Too many rejected rows";
}

const COUNT: usize = Limit::ALL.len();

impl Limit {
    pub(crate) const fn name(self) -> &'static str {
        self.parts().0
    }
}

/// How often each limit has refused, since the start.
#[derive(Debug, Default)]
pub(crate) struct Limits([AtomicU64; COUNT]);

/// The same at one moment, in the order of [`Limit::ALL`].
pub(crate) type Refused = [u64; COUNT];

impl Limits {
    pub(crate) fn count(&self, limit: Limit) {
        self.0[limit as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self) -> Refused {
        std::array::from_fn(|at| self.0[at].load(Ordering::Relaxed))
    }
}
