//! A pool whose connections keep their places no longer than they are of use.
//!
//! A pool of sqlx waits without a limit for each connection that is given back, and gives those out again that have said
//! that they are of no use: prepared statements that no longer fit, a session that may only read.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Acquire, Connection as _, PgConnection, PgPool, Postgres, Transaction};
use tokio_util::task::TaskTracker;

/// Gives a connection for one write: see [`Perto::write`](crate::Perto::write). Implemented by [`sqlx::PgPool`], by [`Pool`], and
/// by a connection of your own.
///
/// Implement it for what lends your connections: to wait for a turn first, or to count them.
pub trait Lend: Send {
    /// What holds the connection. It is dropped after the commit, before the write is announced.
    type Connection: DerefMut<Target = PgConnection> + Send;

    /// Gives a connection, as soon as there is one.
    ///
    /// # Errors
    /// Why there is none.
    fn lend(self) -> impl Future<Output = Result<Self::Connection, sqlx::Error>> + Send;

    /// The write failed on this connection, which may be of no use any more. Called before it is dropped.
    fn doubt(_connection: &mut Self::Connection) {}
}

/// How long a connection may take to say that it is ready, what was given up on it included.
const READY: Duration = Duration::from_secs(1);

/// An [`sqlx::PgPool`], used so that a connection keeps its place no longer than it is of use.
///
/// A connection is given back within a second or closed: where a route is lost, nothing comes and no error, and a pool of sqlx
/// waits for ever. One on which something failed ([`Lent::doubt`]) is looked at first.
#[derive(Debug, Clone)]
pub struct Pool {
    pool: PgPool,
    returns: TaskTracker,
}

impl Pool {
    /// Of a pool. No I/O. Any number of them may share one.
    #[must_use]
    pub fn new(pool: &PgPool) -> Self {
        Self { pool: pool.clone(), returns: TaskTracker::new() }
    }

    /// Options for a pool whose connections are tested before they are given out: within a second, and, where
    /// they are for writes, for whether they may write.
    ///
    /// A session begins as its role and its database say at that moment, and stays so. One that was begun while
    /// `default_transaction_read_only` was on refuses writes when it is long off; such a one is closed once it is a second
    /// old.
    pub fn tested(options: PgPoolOptions, for_writes: bool) -> PgPoolOptions {
        Self::tested_where_idle(options, for_writes, Duration::ZERO)
    }

    /// The same, but for connections that were used less than `idle` ago: whoever gets one must take another where it fails.
    pub(crate) fn tested_where_idle(
        options: PgPoolOptions,
        for_writes: bool,
        idle: Duration,
    ) -> PgPoolOptions {
        // The pool's own test has no limit.
        options.test_before_acquire(false).before_acquire(move |connection, about| {
            Box::pin(async move {
                if about.idle_for < idle {
                    return Ok(true);
                }
                if for_writes && about.age >= READY {
                    return within(may_write(connection)).await;
                }
                within(connection.ping()).await.map(|()| true)
            })
        })
    }

    /// From now on, new ones are opened so.
    pub(crate) fn connects_with(&self, options: PgConnectOptions) {
        self.pool.set_connect_options(options);
    }

    /// A connection that answers and may write, of a pool that does not test all of them.
    ///
    /// # Errors
    /// Those of [`sqlx::Pool::acquire`], or what is wrong with all that there were.
    pub(crate) async fn lend_tested(&self, tries: u32) -> Result<Lent, sqlx::Error> {
        let mut left = tries;
        loop {
            let mut lent = self.lend().await?;
            let tested = within(may_write(&mut lent)).await;
            if left == 0 || matches!(tested, Ok(true)) {
                return tested.map(|_may_write_or_says_why_not| lent);
            }
            lent.doubt();
            left -= 1;
        }
    }

    /// A connection, as soon as there is one.
    ///
    /// # Errors
    /// Those of [`sqlx::Pool::acquire`].
    pub async fn lend(&self) -> Result<Lent, sqlx::Error> {
        let connection = self.pool.acquire().await?;
        Ok(Lent { connection: Some(connection), doubted: false, returns: self.returns.clone() })
    }
}

impl Lend for &PgPool {
    type Connection = Lent;

    async fn lend(self) -> Result<Lent, sqlx::Error> {
        Pool::new(self).lend().await
    }

    fn doubt(connection: &mut Lent) {
        connection.doubt();
    }
}

impl Lend for &Pool {
    type Connection = Lent;

    async fn lend(self) -> Result<Lent, sqlx::Error> {
        Pool::lend(self).await
    }

    fn doubt(connection: &mut Lent) {
        connection.doubt();
    }
}

impl<'c> Lend for &'c mut PgConnection {
    type Connection = &'c mut PgConnection;

    async fn lend(self) -> Result<Self, sqlx::Error> {
        Ok(self)
    }
}

impl<'c> Acquire<'c> for &'c Pool {
    type Database = Postgres;
    type Connection = Lent;

    fn acquire(self) -> BoxFuture<'c, Result<Lent, sqlx::Error>> {
        Box::pin(self.lend())
    }

    /// Without the limit. Lend a connection, and begin on that.
    fn begin(self) -> BoxFuture<'c, Result<Transaction<'c, Postgres>, sqlx::Error>> {
        Box::pin(async move { self.pool.begin().await })
    }
}

/// A connection of a [`Pool`], given back within a second or not at all.
#[derive(Debug)]
pub struct Lent {
    /// There until it is dropped.
    connection: Option<PoolConnection<Postgres>>,
    doubted: bool,
    returns: TaskTracker,
}

impl Lent {
    /// Something failed on it. Before it is given back its prepared statements are forgotten, and it is closed if it may not
    /// write or does not answer.
    pub const fn doubt(&mut self) {
        self.doubted = true;
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    #[expect(clippy::expect_used, reason = "it is there until the drop")]
    fn deref(&self) -> &PgConnection {
        self.connection.as_deref().expect("a connection is lent until it is dropped")
    }
}

impl DerefMut for Lent {
    #[expect(clippy::expect_used, reason = "it is there until the drop")]
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_deref_mut().expect("a connection is lent until it is dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if !self.doubted {
            // Dropped before its end, it closes the connection and frees the place.
            self.returns.spawn(tokio::time::timeout(READY, connection.return_to_pool()));
            return;
        }
        self.returns.spawn(async move {
            if matches!(within(is_of_use(&mut connection)).await, Ok(true)) {
                drop(tokio::time::timeout(READY, connection.return_to_pool()).await);
            } else {
                // Without a word to the server, which may not listen.
                drop(connection.detach());
            }
        });
    }
}

/// Whether a connection on which something failed is good for the next one.
async fn is_of_use(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    connection.clear_cached_statements().await?;
    may_write(connection).await
}

async fn may_write(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let sql = sqlx::raw_sql("show transaction_read_only");
    let setting = sqlx::Row::try_get::<String, _>(&sql.fetch_one(connection).await?, 0)?;
    Ok(setting == "off")
}

/// An error closes a connection of a pool without a word to the server.
pub(crate) async fn within<T>(
    asking: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let late = |_elapsed| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    tokio::time::timeout(READY, asking).await.map_err(late)?
}

/// Whether the error says nothing of what was asked, but of the connection: that it, or the server's process behind it, is gone, or that
/// its session may not write.
pub(crate) fn may_pass_elsewhere(error: &sqlx::Error) -> bool {
    match error.as_database_error() {
        // read_only_sql_transaction, admin_shutdown, crash_shutdown, cannot_connect_now, and what poolers say of a server that is lost
        Some(error) => {
            let code = error.code().unwrap_or_default();
            matches!(&*code, "25006" | "57P01" | "57P02" | "57P03") || code.starts_with("08")
        }
        None => matches!(error, sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed),
    }
}

/// Whether the error says that what the connection has prepared is of no use: a column's type was altered, or something in
/// between has forgotten it. Or that the same statement may just be run again.
pub(crate) fn passes_when_prepared_anew(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    match error.code().as_deref() {
        // feature_not_supported is also said of much else.
        Some("0A000") => error.message().contains("cached plan"),
        // invalid_sql_statement_name, duplicate_prepared_statement, serialization_failure
        Some("26000" | "42P05" | "40001") => true,
        _ => false,
    }
}
