//! Perto on Postgres: loading rows with their stamps, writing, and installing the log.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{
    Acquire, AssertSqlSafe, Connection as _, Encode, FromRow, PgConnection, Postgres, Row as _, Type,
};

use crate::cache::loader::{Loaded, STAMP_SQL, Stamp};
use crate::cache::topic::Topic;
use crate::cache::{Cache, Key, Value, texts};
use crate::coherence::token::Token;
use crate::coherence::tokens::NO_EPOCH;
use crate::error::{Error, StartError};
use crate::instance::Perto;
use crate::log::postgres::{PostgresLog, Server, url};
use crate::log::{Log, MAX_KEYS_PER_ROW};
use crate::pool;
use crate::shared::Shared;
use crate::trace::{Kind, Span, Trace};
use crate::wire::Change;

mod loaders;

pub use crate::pool::{Lend, Lent, Pool};
pub use loaders::{by_key, by_key_of};

/// The version of sqlx whose types are part of this interface.
pub use sqlx;

pub use crate::log::postgres::rights::{MissingRights, missing_rights};
pub use crate::log::postgres::schema::{
    SchemaVersions, Unfinished, VERSION as SCHEMA_VERSION, finish, migrate, migrate_sql, schema_version,
    unfinished,
};
pub use crate::log::postgres::switches::{switch, switches};
pub use crate::log::postgres::trigger::Watch;
pub use crate::log::postgres::watch::{rewatch, unwatch, watch, watch_sql};
pub use crate::log::postgres::watched::{Fault, FunctionChange, Watched, watched};

/// The invalidation log in `schema`, for [`PertoBuilder::log`](crate::PertoBuilder::log): to wrap it, or to test it.
///
/// No I/O. An instance makes its own from [`PertoBuilder::postgres`](crate::PertoBuilder::postgres).
///
/// # Errors
/// If the URL or the schema's name makes no sense.
pub fn log(url: &str, schema: &str) -> Result<Arc<dyn Log>, StartError> {
    let log = url::options(url)
        .and_then(|options| PostgresLog::new(Server::As(Box::new(options)), schema, true))
        .map_err(|problem| StartError::Setting { setting: "postgres", problem })?;
    Ok(Arc::new(log))
}

/// Reads a URL as [`PertoBuilder::postgres`](crate::PertoBuilder::postgres) does: for a pool of your own.
///
/// sqlx passes over a parameter that it doesn't know, and writes it into the log with its value. Here it is refused, by its
/// name. No I/O but reading `.pgpass`, of which sqlx logs lines that make no sense.
///
/// # Errors
/// What is wrong with the URL, without quoting it.
pub fn options(url: &str) -> Result<sqlx::postgres::PgConnectOptions, StartError> {
    url::options(url).map_err(|problem| StartError::Setting { setting: "postgres", problem })
}

/// A query whose rows come with the stamp of the snapshot that they were read under, in one statement.
///
/// ```no_run
/// # use perto::{Load, Loaded, postgres};
/// # async fn load(pool: sqlx::PgPool, load: Load<i64>) -> Result<Loaded<i64, String>, sqlx::Error> {
/// postgres::query_as::<(i64, String)>("select id, name from users where id = any($1)")
///     .bind(load.keys)
///     .fetch(&pool)
///     .await
///     .map(|rows| rows.by_key(|(id, name)| (id, name)))
/// # }
/// ```
pub fn query_as<R>(sql: &str) -> Query<R> {
    // The outer join brings the stamp also where there is no row: an absence needs one as much as a presence.
    let sql = format!(
        "select q.*, s.perto_stamp from (select {STAMP_SQL} as perto_stamp) s \
         {BEFORE}{sql}{AFTER}"
    );
    Query {
        sql,
        arguments: PgArguments::default(),
        error: None,
        persistent: true,
        row: std::marker::PhantomData,
    }
}

const BEFORE: &str = "left join (select u.*, true as perto_row from (";
const AFTER: &str = "\n) u) q on true";

/// Of one query. What was prepared before a column was altered may not fit, nor what is prepared while the next one is.
const TRIES: usize = 5;

/// A query begun by [`query_as`].
#[must_use = "a query runs when it is fetched"]
pub struct Query<R> {
    sql: String,
    arguments: PgArguments,
    error: Option<sqlx::error::BoxDynError>,
    persistent: bool,
    row: std::marker::PhantomData<fn() -> R>,
}

impl<R> Query<R> {
    /// Binds the next parameter.
    pub fn bind<'a, T: Encode<'a, Postgres> + Type<Postgres> + 'a>(mut self, value: T) -> Self {
        if let Err(error) = sqlx::Arguments::add(&mut self.arguments, value) {
            self.error.get_or_insert(error);
        }
        self
    }

    /// Whether the statement is kept prepared on its connection. Default: on.
    ///
    /// Off for a transaction pooler that doesn't keep them (`PgBouncer` before 1.21; later ones were not tried): the query
    /// then runs in a transaction, of its own unless the connection is in one that sqlx began. Without one the client prepares and runs it
    /// in two steps, which the pooler may give to two servers: it would fail, or run what somebody else prepared.
    pub const fn persistent(mut self, persistent: bool) -> Self {
        self.persistent = persistent;
        self
    }

    /// Runs the query, on a pool, a connection or a transaction. Dropping the future gives it up.
    ///
    /// Up to four times more outside of a transaction where what the connection has prepared no longer fits (`cached plan must not
    /// change result type`: a column was altered), or where a serializable transaction failed. Inside of one the error is
    /// returned, and what was prepared is forgotten all the same, so the next transaction on the connection goes well.
    ///
    /// # Errors
    /// Those of the query, and of rows that are not of type `R`.
    #[expect(
        clippy::manual_async_fn,
        reason = "the compiler does not find out that an `async fn` is Send here"
    )]
    pub fn fetch<'e>(
        mut self,
        place: impl Acquire<'e, Database = Postgres> + Send + 'e,
    ) -> impl Future<Output = Result<Stamped<R>, sqlx::Error>> + Send + 'e
    where
        R: for<'r> FromRow<'r, PgRow> + 'e,
    {
        async move {
            if let Some(error) = self.error.take() {
                return Err(sqlx::Error::Encode(error));
            }
            let span = self.span();
            let mut connection = place.acquire().await?;
            let mut tries = 1..TRIES;
            let rows = loop {
                match self.run(&mut connection).await {
                    Err(error) if pool::passes_when_prepared_anew(&error) => {
                        connection.clear_cached_statements().await?;
                        if connection.is_in_transaction() || tries.next().is_none() {
                            return Err(error);
                        }
                    }
                    rows => break rows?,
                }
            };
            let stamped = Stamped::read(&rows)?;
            span.number("db.response.returned_rows", stamped.rows.len() as u64);
            Ok(stamped)
        }
    }

    async fn run(&self, connection: &mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error> {
        let query = sqlx::query_with(AssertSqlSafe(self.sql.as_str()), self.arguments.clone())
            .persistent(self.persistent);
        if self.persistent || connection.is_in_transaction() {
            return query.fetch_all(connection).await;
        }
        let mut tx = sqlx::Connection::begin(connection).await?;
        let rows = query.fetch_all(&mut *tx).await?;
        tx.commit().await?;
        Ok(rows)
    }

    /// With the statement, and never what is bound to it.
    ///
    /// <https://opentelemetry.io/docs/specs/semconv/database/postgresql/>
    fn span(&self) -> Span {
        let span = Trace::current().begin(Kind::Client, format_args!("SELECT"));
        span.text("db.system.name", "postgresql");
        span.text("db.operation.name", "SELECT");
        let given = self.sql.split_once(BEFORE).and_then(|(_, rest)| rest.strip_suffix(AFTER));
        span.text("db.query.text", given.unwrap_or(&self.sql));
        span
    }
}

/// Rows and the stamp they were read under.
#[derive(Debug, Clone)]
pub struct Stamped<R> {
    /// The stamp.
    pub stamp: Stamp,
    /// The rows.
    pub rows: Vec<R>,
}

impl<R> Stamped<R> {
    fn read(rows: &[PgRow]) -> Result<Self, sqlx::Error>
    where
        R: for<'r> FromRow<'r, PgRow>,
    {
        let text: &str = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("perto_stamp")?;
        let stamp = Stamp::parse(text).ok_or_else(|| sqlx::Error::Decode("not a stamp".into()))?;
        let present =
            |row: &&PgRow| row.try_get::<Option<bool>, _>("perto_row").is_ok_and(|row| row.is_some());
        let rows = rows.iter().filter(present).map(R::from_row).collect::<Result<_, _>>()?;
        Ok(Self { stamp, rows })
    }

    /// One row a key.
    pub fn by_key<K, V>(self, split: impl Fn(R) -> (K, V)) -> Loaded<K, V> {
        self.rows.into_iter().fold(Loaded::new(self.stamp), |loaded, row| {
            let (key, value) = split(row);
            loaded.with(key, value)
        })
    }

    /// Any number of rows a key, in their order.
    pub fn grouped<K: Hash + Eq + Clone, V>(self, split: impl Fn(R) -> (K, V)) -> Loaded<K, Vec<V>> {
        let mut groups: std::collections::HashMap<K, Vec<V>> = std::collections::HashMap::new();
        for row in self.rows {
            let (key, value) = split(row);
            groups.entry(key).or_default().push(value);
        }
        groups.into_iter().fold(Loaded::new(self.stamp), |loaded, (key, values)| loaded.with(key, values))
    }
}

/// A write that is committed.
#[derive(Debug, Clone)]
pub struct Written<T> {
    /// What the closure returned.
    pub value: T,
    /// To read it back on any instance; `None` where it changed no watched table.
    pub token: Option<Token>,
}

/// What a transaction will have invalidated once it is committed. See [`Perto::pending`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "announce it after the commit"]
pub struct Pending {
    token: Token,
    changes: Vec<Change>,
}

/// A row of what [`Perto::pending_sql`] selects: `bigint`, `bigint` or null, `text`, `text` or null.
pub type PendingRow = (i64, Option<i64>, String, Option<String>);

impl Pending {
    /// Reads the rows of [`Perto::pending_sql`]; `None` where there are none, for the transaction changed no watched table.
    ///
    /// Where the database has crashed and nobody has polled since, the token is of no epoch, and each read by it waits for a poll.
    #[must_use]
    pub fn from_rows(rows: impl IntoIterator<Item = PendingRow>) -> Option<Self> {
        let mut token = None;
        let mut changes: Vec<Change> = Vec::new();
        for (xid, epoch, cache, key) in rows {
            // The database's own epoch: this instance may not have heard of a new one yet.
            let epoch = epoch.map_or(NO_EPOCH, i64::cast_unsigned);
            token.get_or_insert(Token::of_write(epoch, xid.cast_unsigned()));
            match (changes.iter_mut().find(|change| change.cache == cache), key) {
                (Some(Change { keys: Some(keys), .. }), Some(key)) => keys.push(key),
                (Some(change), None) => change.keys = None,
                (Some(_), Some(_)) => {}
                (None, key) => changes.push(Change { cache, keys: key.map(|key| vec![key]) }),
            }
        }
        for change in &mut changes {
            // Beyond this a hint gets too long, and tombstones too many.
            if change.keys.as_ref().is_some_and(|keys| keys.len() > MAX_KEYS_PER_ROW) {
                change.keys = None;
            }
        }
        token.map(|token| Self { token, changes })
    }
}

impl Perto {
    /// Writes: runs `work` in a transaction, commits it, and has every instance evict what it changed, within about a
    /// millisecond. Where `work` fails, the transaction is rolled back and its error returned.
    ///
    /// Dropping the future before the commit rolls back; after it, the rest is left to the tail of each instance.
    ///
    /// `place` is a pool, a connection of yours, or anything else that can [`Lend`] one.
    ///
    /// A pool's connection on which the write failed is looked at before it is given back. What it has prepared is forgotten, and
    /// it is closed if it may only read: one that was begun before a failover, or under `default_transaction_read_only`. That
    /// takes two round trips that nobody waits for. To have such a connection replaced before it fails a write, make the pool by
    /// [`postgres::Pool::tested`](Pool::tested).
    ///
    /// Behind a transaction pooler that doesn't keep prepared statements, `work` must not keep any: `sqlx::raw_sql`, or
    /// `sqlx::query(..).persistent(false)`. All of it runs on one server, for it is one transaction.
    ///
    /// ```no_run
    /// # async fn rename(perto: perto::Perto, pool: sqlx::PgPool) -> Result<(), sqlx::Error> {
    /// let written = perto
    ///     .write(&pool, async |tx| {
    ///         sqlx::query("update users set name = $1 where id = $2").bind("Ada").bind(7_i64).execute(tx).await
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of `work`, and of the transaction. If the connection breaks during the commit, it is not known whether
    /// it took place; if it did, every instance sees it within the bound. [`sqlx::Error::Configuration`] if the connection is in
    /// a transaction already: a nested one is not committed with its end.
    pub async fn write<L: Lend, T, E: From<sqlx::Error>>(
        &self,
        place: L,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<Written<T>, E> {
        let mut lent = place.lend().await?;
        let written = self.write_on(&mut lent, work).await;
        let (value, pending) = written.inspect_err(|_| L::doubt(&mut lent))?;
        // Whoever waits for it need not wait for Redis.
        drop(lent);
        let token = match pending {
            Some(pending) => Some(self.announce_pending(pending).await),
            None => None,
        };
        Ok(Written { value, token })
    }

    async fn write_on<T, E: From<sqlx::Error>>(
        &self,
        connection: &mut PgConnection,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<(T, Option<Pending>), E> {
        if connection.is_in_transaction() {
            // It would be told of before it is committed.
            return Err(sqlx::Error::Configuration(IN_A_TRANSACTION.into()).into());
        }
        let mut tx = sqlx::Connection::begin(connection).await?;
        let value = work(&mut tx).await?;
        let pending = self.pending(&mut tx).await?;
        commit(tx).await?;
        Ok((value, pending))
    }

    /// What your own transaction has invalidated so far; `None` where it changed no watched table. To be called last,
    /// before its commit; give it to [`Perto::announce_pending`] after. It keeps no prepared statement.
    ///
    /// In a serializable transaction it reads where all writers of watched tables write: such transactions that overlap fail more
    /// often with a serialization failure, and are to be tried again.
    ///
    /// Deferred constraints are checked now, and deferred triggers run (`set constraints all immediate`): what they write
    /// at the commit would be missing from the token and the hint. For the rest of the transaction they stay immediate.
    ///
    /// # Errors
    /// Those of the query, and of a deferred constraint that is violated: the same error that the commit would have given.
    pub async fn pending(&self, connection: &mut PgConnection) -> Result<Option<Pending>, sqlx::Error> {
        let span = Trace::current().begin(Kind::Client, format_args!("SELECT pending"));
        span.text("db.system.name", "postgresql");
        span.text("db.operation.name", "SELECT");
        let trace = span.traceparent().map(|text| format!("'{text}'")).unwrap_or_default();
        // In one round trip, of the simple protocol.
        let sql = format!("set constraints all immediate; {}", self.pending_sql_of(&trace));
        let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut *connection).await?;
        let rows = rows.iter().map(FromRow::from_row).collect::<Result<Vec<PendingRow>, _>>()?;
        let mut pending = Pending::from_rows(rows);
        if let Some(Pending { token, .. }) = &mut pending
            && token.epoch == NO_EPOCH
        {
            token.epoch = self.begun_epoch(connection).await?.cast_unsigned();
        }
        Ok(pending)
    }

    /// The query that asks what a transaction of another client than sqlx has invalidated so far, as [`Perto::pending`] asks for sqlx.
    /// Run it last before the commit, and give its rows to [`Pending::from_rows`]. Give that to [`Perto::announce_pending`]
    /// after the commit. `examples/clients` does so with tokio-postgres, Diesel and `SeaORM`.
    ///
    /// Run `set constraints all immediate` before it. Otherwise deferred triggers run at the commit, and what they write is
    /// missing from the token and the hint.
    #[must_use]
    pub fn pending_sql(&self) -> String {
        self.pending_sql_of("")
    }

    fn pending_sql_of(&self, trace: &str) -> String {
        let schema = &self.shared().settings.schema;
        format!("select xid::bigint, epoch, cache, key from {schema}.pending({trace})")
    }

    /// Nobody has polled since the database crashed: begins the epoch, beside this transaction. One that has a snapshot of its own
    /// can't see it, and its token is of none: whoever reads by that waits for a poll.
    async fn begun_epoch(&self, connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
        let Shared { log, settings, .. } = &**self.shared();
        // The write goes on without it.
        drop(tokio::time::timeout(settings.log_timeout, log.begin_epoch()).await);
        let sql = format!("select {schema}.epoch()", schema = settings.schema);
        let epoch: Option<i64> = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(connection).await?.try_get(0)?;
        Ok(epoch.unwrap_or(NO_EPOCH.cast_signed()))
    }

    /// Applies a transaction that has been committed here, and tells L2 and the other instances.
    ///
    /// Nothing rests on it but speed. Dropping the future leaves the rest to the tail.
    pub async fn announce_pending(&self, pending: Pending) -> Token {
        self.announce(pending.token, &pending.changes).await;
        pending.token
    }
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Invalidates keys in a transaction of yours: committed with what it writes, or rolled back with it. For what no key
    /// expression can say: a value that is made of other rows than those that bear its key.
    ///
    /// Inside of [`Perto::write`], or before [`Perto::pending`], it is part of the token, of the hint and of what is buried in L2,
    /// like what triggers log. More than [`MAX_KEYS_PER_ROW`] keys clear the cache; none do nothing.
    ///
    /// It must be a transaction. Outside of one it is committed at once, before what you write next: a reader in
    /// between caches the old value again.
    ///
    /// The role needs the right to insert these two columns, which those who only write watched tables don't have:
    /// `grant insert (cache, keys) on perto.invalidation to ROLE`. Whoever has it can invalidate any key of any cache, which costs
    /// loads, and can make nothing stale.
    ///
    /// ```no_run
    /// # async fn move_item(perto: perto::Perto, pool: sqlx::PgPool, totals: perto::Cache<i64, i64>) -> Result<(), sqlx::Error> {
    /// perto
    ///     .write(&pool, async |tx| {
    ///         sqlx::query("update orders set user_id = 2 where id = 7").execute(&mut *tx).await?;
    ///         // The totals of both users, made of the items of their orders.
    ///         totals.invalidate_in(tx, &[1, 2]).await
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of the statement, after which Postgres refuses the rest of the transaction; [`sqlx::Error::Configuration`] where
    /// the right is missing; [`sqlx::Error::Encode`] where a key's text is longer than
    /// [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES).
    pub async fn invalidate_in(&self, transaction: &mut PgConnection, keys: &[K]) -> Result<(), sqlx::Error> {
        invalidate_in(&self.0.shared, &self.0.name, self.texts(keys), transaction).await
    }
}

impl<K: Key> Topic<K> {
    /// Invalidates all that depends on these keys in a transaction of yours. As [`Cache::invalidate_in`].
    ///
    /// # Errors
    /// Those of [`Cache::invalidate_in`].
    pub async fn invalidate_in(&self, transaction: &mut PgConnection, keys: &[K]) -> Result<(), sqlx::Error> {
        let core = self.core();
        invalidate_in(&core.shared, &core.name, texts(&core.name, keys), transaction).await
    }
}

async fn invalidate_in(
    shared: &Shared,
    name: &str,
    texts: Result<Vec<String>, Error>,
    transaction: &mut PgConnection,
) -> Result<(), sqlx::Error> {
    let texts = texts.map_err(|error| sqlx::Error::Encode(error.into()))?;
    if texts.is_empty() {
        return Ok(());
    }
    let texts = (texts.len() <= MAX_KEYS_PER_ROW).then_some(texts);
    let schema = &shared.settings.schema;
    let sql = format!("insert into {schema}.invalidation (cache, keys) values ($1, $2)");
    let inserting = sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(name).bind(texts);
    let refused = |error: sqlx::Error| {
        match error.as_database_error().and_then(|error| error.code()) {
            // insufficient_privilege
            Some(code) if code == "42501" => sqlx::Error::Configuration(
                format!(
                    "this role may not invalidate by hand: `grant insert (cache, keys) on {schema}.invalidation` to it"
                )
                .into(),
            ),
            _ => error,
        }
    };
    inserting.execute(transaction).await.map(drop).map_err(refused)
}

const IN_A_TRANSACTION: &str = "the connection is in a transaction already: write in that one, ask `Perto::pending` before \
    its commit, and give the answer to `Perto::announce_pending` after";

async fn commit(tx: sqlx::Transaction<'_, Postgres>) -> Result<(), sqlx::Error> {
    let span = Trace::current().begin(Kind::Client, format_args!("COMMIT"));
    span.text("db.system.name", "postgresql");
    span.text("db.operation.name", "COMMIT");
    tx.commit().await.inspect_err(|error| span.failed(error))
}

impl<R> fmt::Debug for Query<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query").field("sql", &self.sql).finish_non_exhaustive()
    }
}
