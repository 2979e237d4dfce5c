//! Errors, by what the caller can do about them.
//!
//! Trouble with Redis is never an error of a read: the read goes on to Postgres, and the trouble is counted and
//! shown in [`Health`](crate::Health). Sources are kept as causes and left out of the message. `Debug` has them too, in one line:
//! it is what `main` shows of the error that it returns.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::wire::MAX_KEY_BYTES;

/// The cause of an error, shared by all who waited for the same load.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why a read gave no value.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The loader failed. Nothing was cached; the next read loads again.
    #[error("the loader of cache {cache} failed")]
    Load {
        /// The cache's name.
        cache: Arc<str>,
        /// What the loader returned.
        source: Cause,
    },
    /// The loader panicked. Nothing was cached.
    #[error("the loader of cache {cache} panicked")]
    LoadPanicked {
        /// The cache's name.
        cache: Arc<str>,
    },
    /// The loader brought other keys than it was asked for, while some of those are missing. Nothing of it was cached: a
    /// key that is there under another spelling would be cached as absent.
    #[error(
        "the loader of cache {cache} brought {unasked} keys that were not asked for, while {missing} that were are missing. \
         It must return each key as it was asked for: compare spelling, padding (char(n)) and case (citext); and where it reads \
         more than it was asked for, leave that out"
    )]
    UnaskedKeys {
        /// The cache's name.
        cache: Arc<str>,
        /// Keys that were brought and not asked for.
        unasked: usize,
        /// Keys that were asked for and not brought.
        missing: usize,
    },
    /// The loader brought a key twice, with different values. Nothing of it was cached.
    #[error(
        "the loader of cache {cache} brought {count} keys more than once, with different values. \
         It must return one value a key: look for a join that multiplies rows, or a key that is not unique"
    )]
    AmbiguousKeys {
        /// The cache's name.
        cache: Arc<str>,
        /// Keys with more than one value.
        count: usize,
    },
    /// A key's text is parsed as another key, so no write could evict it. Nothing was loaded.
    #[error(
        "a key of cache {cache} is not what its own text is parsed as: \
         `FromStr` must read back what `Display` writes, and equal keys must have equal texts"
    )]
    KeyNotReadBack {
        /// The cache's name.
        cache: Arc<str>,
    },
    /// The load, or the wait for a free place among the concurrent loads, took longer than the load timeout.
    #[error("a load of cache {cache} took longer than {limit:?}")]
    LoadTimeout {
        /// The cache's name.
        cache: Arc<str>,
        /// The load timeout.
        limit: Duration,
    },
    /// The instance can't vouch for what it holds, and its policy is [`Outage::Fail`](crate::Outage::Fail).
    #[error("the invalidation log has not been read for longer than the bound")]
    Unverified,
    /// [`ReadOptions::at_least`](crate::ReadOptions::at_least) asks for a write that the database doesn't have.
    #[error("the token is ahead of the database")]
    TokenAhead,
    /// Invalidations, cancelled leaders or new epochs outran the read eight times in a row.
    #[error("the read was outrun by changes; try again")]
    Unsettled,
    /// A [view](crate::Perto::view) has read a value that is of no known snapshot of the primary, and so of no moment of the
    /// database: it is computed, or the loader read a replica though it was asked for the primary.
    /// Or the cache is another instance's.
    #[error(
        "values of cache {cache} are read under no known snapshot of the primary, or by another instance: they can be in no view"
    )]
    NoSnapshot {
        /// The cache's name.
        cache: Arc<str>,
    },
    /// The key's text is longer than [`MAX_KEY_BYTES`].
    #[error("a key of cache {cache} is {bytes} bytes long; at most {max} are possible", max = MAX_KEY_BYTES)]
    KeyTooLong {
        /// The cache's name.
        cache: Arc<str>,
        /// The length of the key's text.
        bytes: usize,
    },
    /// The instance has been shut down.
    #[error("the instance is shut down")]
    Closed,
}

impl Error {
    /// Whether the same read may succeed a little later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Load { .. }
                | Self::LoadTimeout { .. }
                | Self::Unverified
                | Self::TokenAhead
                | Self::Unsettled
        )
    }
}

/// Why an invalidation was not recorded.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidateError {
    /// Postgres did not take it. Whether it was recorded is not known if the connection broke.
    #[error("the invalidation could not be recorded in Postgres")]
    Log(#[source] LogError),
    /// A key's text is longer than [`MAX_KEY_BYTES`].
    #[error("a key is {bytes} bytes long; at most {max} are possible", max = MAX_KEY_BYTES)]
    KeyTooLong {
        /// The length of the key's text.
        bytes: usize,
    },
    /// The instance has been shut down.
    #[error("the instance is shut down")]
    Closed,
}

/// Why a tier was not switched.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// No cache of this name is declared here. A topic has no tiers.
    #[error("no cache {cache:?} is declared here; there are: {}", .known.join(", "))]
    UnknownCache {
        /// The name.
        cache: String,
        /// The names of those that are.
        known: Vec<String>,
    },
    /// What makes no sense of it.
    #[error("{0}")]
    Senseless(String),
    /// Postgres did not take it. Whether it was recorded is not known if the connection broke.
    #[error("the switch could not be recorded in Postgres")]
    Log(#[source] LogError),
    /// The instance has been shut down.
    #[error("the instance is shut down")]
    Closed,
}

/// Why an instance did not start. Each names the setting to change.
#[derive(Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting makes no sense.
    #[error("{setting}: {problem}")]
    Setting {
        /// The setting's name, as in the builder.
        setting: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// The invalidation log can't be read.
    #[error("the invalidation log in Postgres can't be read")]
    Log(#[source] LogError),
    /// Caches declare tables that are missing or not watched: writes to them would not be seen before the time to live. What each
    /// message says mends it; [`PertoBuilder::allow_unwatched`](crate::PertoBuilder::allow_unwatched) starts all the same.
    #[error("writes would not be seen; {}", listed(.0))]
    Unwatched(Vec<(String, Unwatched)>),
    /// The instance has been shut down.
    #[error("the instance is shut down")]
    Closed,
}

fn listed(unwatched: &[(String, Unwatched)]) -> String {
    let each = |(cache, Unwatched { table, problem, .. }): &(String, Unwatched)| {
        format!("cache {cache} declares table {table:?}: {problem}")
    };
    unwatched.iter().map(each).collect::<Vec<_>>().join("; ")
}

/// Trouble with the invalidation log.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Postgres can't be reached, or broke off.
    #[error("Postgres can't be reached")]
    Unreachable(#[source] Cause),
    /// Postgres did not answer in time.
    #[error("Postgres did not answer within {0:?}")]
    Timeout(Duration),
    /// Postgres refused: a missing right, a wrong password, a missing table.
    #[error("Postgres refused")]
    Refused(#[source] Cause),
    /// The schema is missing or of another version.
    #[error("{0}")]
    Schema(String),
}

/// L2 or the bus can't be used. Reads go on without.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// There is no connection.
    #[error("not connected")]
    Disconnected,
    /// The server did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The server answered, with an error.
    #[error("the server refused")]
    Refused(#[source] Cause),
    /// The server answered that it is of no use as it is: it takes no writes, is loading, or wants another password. The connection is left,
    /// and another one is made by the server's name.
    #[error("the server can't be used")]
    Unusable(#[source] Cause),
    /// The connection broke.
    #[error("the connection broke")]
    Failed(#[source] Cause),
    /// Some of a cluster's nodes can't be used, and the others can: only keys of those are meant.
    #[error("{failed} of {of} keys are on nodes that can't be used")]
    Partial {
        /// Keys for which it was not done.
        failed: usize,
        /// All of them.
        of: usize,
        /// What one of the nodes did.
        source: Cause,
    },
}

impl RemoteError {
    /// Whether the rest goes on as ever: a server that refuses one thing is up.
    pub(crate) const fn leaves_the_rest(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Partial { .. })
    }
}

/// A table that a cache declares, and whose writes the log does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwatched {
    /// As it was declared.
    pub table: String,
    /// What is wrong, and how to mend it.
    pub problem: String,
    /// Another one once it was mended and lost again.
    pub mark: String,
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self))
    }
}

impl fmt::Debug for InvalidateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self))
    }
}

impl fmt::Debug for SwitchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self))
    }
}

impl fmt::Debug for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(self))
    }
}

/// An error and its causes in one line, for logs and events.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let (of_client, of_server) = (cause.to_string(), said(cause));
        next = cause.source().filter(|_| of_server.is_none());
        let shown = of_server.as_ref().unwrap_or(&of_client);
        // What is around it has often said it.
        if let Some(around) = text.strip_suffix(&of_client) {
            text.truncate(around.len());
            text.push_str(shown);
        } else if !text.ends_with(shown) {
            let between = if text.is_empty() { "" } else { ": " };
            text.push_str(between);
            text.push_str(shown);
        }
    }
    text
}

/// What Postgres said, without the client's words around it: that a server refused, and on which line of its own source code.
fn said(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    #[cfg(feature = "postgres")]
    {
        use sqlx::error::DatabaseError;
        let cause = cause.downcast_ref::<Cause>().map_or(cause, |shared| &**shared);
        let of_client = cause.downcast_ref().and_then(sqlx::Error::as_database_error);
        // Some show the client's error as their own, and name its cause.
        let bare = || cause.downcast_ref().map(Box::<dyn DatabaseError>::as_ref);
        of_client.or_else(bare).map(|error| error.message().to_owned())
    }
    #[cfg(not(feature = "postgres"))]
    {
        let _only_of_postgres = cause;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_main_returns_is_shown_as_a_sentence_with_its_causes() {
        let refused: Cause = Arc::new(std::io::Error::other("no such role"));
        let log = LogError::Refused(refused);
        assert_eq!(
            format!("{:?}", StartError::Log(log.clone())),
            "the invalidation log in Postgres can't be read: Postgres refused: no such role"
        );
        assert_eq!(
            format!("{:?}", InvalidateError::Log(log)),
            "the invalidation could not be recorded in Postgres: Postgres refused: no such role"
        );
        let source: Cause = Arc::new(std::io::Error::other("no such column"));
        assert_eq!(
            format!("{:?}", Error::Load { cache: "user".into(), source }),
            "the loader of cache user failed: no such column"
        );
    }
}
