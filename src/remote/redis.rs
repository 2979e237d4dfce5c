//! L2 on Redis or Valkey, and the connections that it shares with the bus: one that somebody waits for, and one for fills.
//! On one connection a look-up would wait behind all the fills of a bulk load.
//!
//! The connection's life is ours: the client's own manager retries for seconds before an operation comes back while
//! Redis is down. Here an operation without a connection fails at once, and only [`Link::ping`] connects.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisError};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::Remote;
use crate::error::RemoteError;
use crate::wire::MAX_STORED;

pub(crate) mod address;
pub(crate) mod channel;
pub(crate) mod dial;
pub(crate) mod frames;
pub(crate) mod sentinels;
#[cfg(feature = "tls")]
mod tls;

use address::Address;
use dial::{Dialled, failed};

const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Limit of one command. Callers wait for less; this only keeps the client from waiting for ever.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(2_000);
/// How long an existing connection may take to answer before another is made.
const PING_TIMEOUT: Duration = Duration::from_millis(200);

/// For how long values are asked for by their first bytes after an answer with whole ones did not come.
const DOUBTED_FOR: Duration = Duration::from_secs(60);
/// So many fills first go where nothing is, which takes a server a tenth of what the script does. After a start that is all of them. Few
/// are mostly of keys that were invalidated, and the script decides about these.
const MANY_FILLS: usize = 4;
/// Longest text in an answer to a fill: the hash of a script, an error.
const MAX_FILL_ANSWER: usize = 64 << 10;
/// Damaged values are told apart by so many bytes: the header with its checksum is among them. Megabytes would have to go back.
const TOLD_APART_BY: usize = 1 << 10;

/// A script of ours, and the hash that servers know it by: the SHA-1 of its text.
struct Script {
    text: &'static str,
    hash: &'static str,
}

const FILL: Script =
    Script { text: include_str!("fill.lua"), hash: "b52a404150c73811636c61fbb7d81d241e8f236f" };
const INVALIDATE: Script =
    Script { text: include_str!("invalidate.lua"), hash: "3ecb94972da0f1d285c00e9c8cd991d216d424b9" };
const DISCARD: Script =
    Script { text: include_str!("discard.lua"), hash: "bb5fb6c670e8568473dade47e1b5bb7a864c54ab" };
const SCRIPTS: [Script; 3] = [FILL, INVALIDATE, DISCARD];

/// A server, as it is known now.
pub(crate) type Server = Arc<Address>;

/// The multiplexed connections for L2 and for publishing.
pub(crate) struct Link {
    address: Address,
    /// The server: the one that the address names, or that Sentinels do. None before they have.
    server: watch::Sender<Option<Server>>,
    connections: RwLock<Option<Connections>>,
    connecting: Mutex<()>,
    /// Whether the last to ask for whole values did not wait until they came.
    given_up: AtomicBool,
    /// When an answer with whole values did not come.
    doubted: parking_lot::Mutex<Option<Instant>>,
    /// A key of the app's that nothing is ever under.
    probe: String,
}

#[derive(Clone)]
struct Connections {
    awaited: Arc<Dialled>,
    fills: Arc<Dialled>,
}

impl Connections {
    async fn answer(self, probe: &str) -> bool {
        let ping = async |mut connection: MultiplexedConnection| {
            let answered = redis::cmd("PING").query_async::<()>(&mut connection).await;
            // One that can't write its dump refuses pings too (`MISCONF`), and is up.
            matches!(answered.map_err(failed), Ok(()) | Err(RemoteError::Refused(_)))
        };
        let answers = async {
            let (mut awaited, fills) = (self.awaited.connection.clone(), self.fills.connection.clone());
            let answered = tokio::join!(ping(awaited.clone()), ping(fills));
            answered == (true, true) && takes_writes(&mut awaited, probe).await.is_ok()
        };
        tokio::time::timeout(PING_TIMEOUT, answers).await.unwrap_or(false)
    }
}

/// Reads and pings are answered by a replica too: one that was demoted a moment ago, for instance.
///
/// # Errors
/// If the server takes no writes from anybody. What it refuses for other reasons is for whoever asks for it to find out.
async fn takes_writes(connection: &mut MultiplexedConnection, probe: &str) -> Result<(), RemoteError> {
    match redis::cmd("UNLINK").arg(probe).query_async::<()>(connection).await.map_err(failed) {
        Err(RemoteError::Refused(_)) => Ok(()),
        taken => taken,
    }
}

impl Link {
    /// # Errors
    /// What is wrong with the URL.
    pub(crate) fn new(url: &str, app: &str) -> Result<Arc<Self>, String> {
        let address = Address::parse(url)?;
        let server = address.is_one_server().then(|| Arc::new(address.clone()));
        Ok(Arc::new(Self {
            address,
            server: watch::Sender::new(server),
            connections: RwLock::default(),
            connecting: Mutex::default(),
            given_up: AtomicBool::default(),
            doubted: parking_lot::Mutex::default(),
            probe: format!("perto:{app}:probe"),
        }))
    }

    /// The server. Where it is not known yet, Sentinels are asked.
    ///
    /// # Errors
    /// If none of them knows.
    pub(crate) async fn server(&self) -> Result<Server, RemoteError> {
        let known = self.server.borrow().clone();
        let (None, Some(sentinels)) = (&known, self.address.sentinels()) else {
            return known.ok_or(RemoteError::Disconnected);
        };
        let found = sentinels::find(&self.address, sentinels).await?;
        // What was heard meanwhile is newer.
        self.server.send_if_modified(|now| now.is_none() && now.replace(Arc::new(found)).is_none());
        let known = self.server.borrow().clone();
        known.ok_or(RemoteError::Disconnected)
    }

    /// Changes when the server does.
    pub(crate) fn moves(&self) -> watch::Receiver<Option<Server>> {
        self.server.subscribe()
    }

    /// Leaves the server if it is another one now, and connects to that: else the next one to need it would go without.
    async fn move_to(&self, server: Address) {
        if self.is_moved_to(server) {
            drop(tokio::time::timeout(CONNECT_TIMEOUT, self.ping()).await);
        }
    }

    fn is_moved_to(&self, server: Address) -> bool {
        let mut connections = self.connections.write();
        let moved = self.server.send_if_modified(|now| {
            let moved = now.as_ref().is_none_or(|now| now.place() != server.place());
            if moved {
                *now = Some(Arc::new(server));
            }
            moved
        });
        if moved {
            *connections = None;
        }
        moved
    }

    pub(crate) fn connection(&self) -> Result<MultiplexedConnection, RemoteError> {
        self.connections().map(|connections| connections.awaited.connection.clone())
    }

    fn connections(&self) -> Result<Connections, RemoteError> {
        self.connections.read().clone().ok_or(RemoteError::Disconnected)
    }

    async fn load_scripts(&self, connection: &mut MultiplexedConnection) -> Result<(), RemoteError> {
        let mut pipeline = Pipeline::with_capacity(SCRIPTS.len());
        for script in SCRIPTS {
            // Not by the client's own way, which panics where the server has another hash for it.
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script.text).ignore();
        }
        pipeline.query_async(connection).await.map_err(failed)
    }

    async fn ping(&self) -> Result<(), RemoteError> {
        let _one_at_a_time = self.connecting.lock().await;
        if let Ok(connections) = self.connections() {
            if connections.answer(&self.probe).await {
                return Ok(());
            }
            *self.connections.write() = None;
        }
        loop {
            let server = self.server().await?;
            let mut moved = self.server.subscribe();
            let another = |now: &Option<Server>| now.as_ref().is_some_and(|now| !Arc::ptr_eq(now, &server));
            let connected = tokio::select! {
                connected = self.connect(&server) => Some(connected?),
                // Who is left may never answer.
                Ok(_) = moved.wait_for(another) => None,
            };
            let mut connections = self.connections.write();
            if connected.is_some() && !another(&self.server.borrow()) {
                *connections = connected;
                return Ok(());
            }
        }
    }

    async fn connect(&self, server: &Address) -> Result<Connections, RemoteError> {
        let connect = |most| dial::commands(server, most, CONNECT_TIMEOUT, RESPONSE_TIMEOUT);
        let (awaited, fills) =
            tokio::try_join!(connect(MAX_STORED + 1), connect(MAX_FILL_ANSWER)).map_err(failed)?;
        let (awaited, fills) = (Arc::new(awaited), Arc::new(fills));
        let mut connection = awaited.connection.clone();
        self.load_scripts(&mut connection).await?;
        takes_writes(&mut connection, &self.probe).await?;
        Ok(Connections { awaited, fills })
    }
}

/// L2 on one Redis or Valkey server.
#[derive(Debug)]
pub(crate) struct RedisRemote {
    link: Arc<Link>,
}

impl RedisRemote {
    pub(crate) const fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    /// Runs scripts by their hash; loads them and runs them again where the server has forgotten them.
    async fn run(
        &self,
        pipeline: &Pipeline,
        mut connection: MultiplexedConnection,
    ) -> Result<Vec<i64>, RemoteError> {
        match pipeline.query_async(&mut connection).await {
            Err(error) if is_forgotten(&error) => {
                self.link.load_scripts(&mut connection).await?;
                pipeline.query_async(&mut connection).await.map_err(failed)
            }
            answered => answered.map_err(failed),
        }
    }

    /// All values at once, whatever their length: that is half the work for both sides. `None` where it must not be tried.
    ///
    /// A server that is asked for something huge sends it, though nobody keeps it, and all else waits. Whoever asks again finds it by
    /// its first bytes, and has it removed. So for a while after an answer that did not come in time nothing is asked for whole. Who
    /// only went away says nothing of the server.
    async fn whole(
        &self,
        connection: &mut MultiplexedConnection,
        keys: &[String],
    ) -> Result<Option<Vec<Option<Bytes>>>, RemoteError> {
        let Link { doubted, given_up, .. } = &*self.link;
        if doubted.lock().is_some_and(|since| since.elapsed() < DOUBTED_FOR) {
            return Ok(None);
        }
        let unless_answered = Unanswered(given_up);
        let values = redis::cmd("MGET").arg(keys).query_async(connection).await;
        drop(unless_answered);
        given_up.store(false, Ordering::Relaxed);
        if values.as_ref().is_err_and(|error| error.code().is_some()) {
            *doubted.lock() = Some(Instant::now());
        }
        match values {
            // A user that may read single values only.
            Err(error) if error.code() == Some("NOPERM") => Ok(None),
            values => values.map(Some).map_err(failed),
        }
    }

    /// Whether each was put. As the script does where there is nothing.
    async fn fill_empty(&self, fills: &[(String, Bytes, Duration)]) -> Result<Vec<bool>, RemoteError> {
        let mut connection = self.link.connections()?.fills.connection.clone();
        let mut pipeline = Pipeline::with_capacity(fills.len());
        for (key, value, ttl) in fills {
            pipeline.cmd("SET").arg(key).arg(&value[..]).arg("NX").arg("PX").arg(millis(*ttl));
        }
        pipeline.query_async(&mut connection).await.map_err(failed)
    }

    async fn fill_by_script<'a>(
        &self,
        fills: impl Iterator<Item = (&'a str, &'a Bytes, Duration)>,
    ) -> Result<Vec<i64>, RemoteError> {
        let mut pipeline = Pipeline::new();
        for (key, value, ttl) in fills {
            pipeline.cmd("EVALSHA").arg(FILL.hash).arg(1).arg(key).arg(&value[..]).arg(millis(ttl));
        }
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        self.run(&pipeline, self.link.connections()?.fills.connection.clone()).await
    }
}

/// An answer that is waited for. Dropped, it was given up.
struct Unanswered<'a>(&'a AtomicBool);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// At least one: none is an error.
fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis().max(1)).unwrap_or(u64::MAX)
}

/// What lies under keys, but not all of whatever somebody has put there: a client keeps an answer in memory.
async fn begins(
    connection: &mut MultiplexedConnection,
    keys: &[&String],
    most: usize,
) -> Result<Vec<Option<Bytes>>, RemoteError> {
    let last = most.to_string();
    let get = |key: &String| {
        let mut get = Cmd::with_capacity(4, "GETRANGE".len() + key.len() + 1 + last.len());
        get.arg("GETRANGE").arg(key).arg("0").arg(&last);
        get
    };
    let values: Vec<Bytes> = if let [key] = keys {
        vec![get(key).query_async(connection).await.map_err(failed)?]
    } else {
        let mut pipeline = Pipeline::with_capacity(keys.len());
        for key in keys {
            pipeline.add_command(get(key));
        }
        pipeline.query_async(connection).await.map_err(failed)?
    };
    // Nothing there, or a text of no length, which is no value either.
    Ok(values.into_iter().map(|value| Some(value).filter(|value| !value.is_empty())).collect())
}

fn is_forgotten(error: &RedisError) -> bool {
    error.code() == Some("NOSCRIPT") || error.to_string().contains("NOSCRIPT")
}

impl Remote for RedisRemote {
    fn get<'a>(
        &'a self,
        keys: &'a [String],
        most: usize,
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, RemoteError>> {
        Box::pin(async move {
            let mut connection = self.link.connection()?;
            let most = most.min(MAX_STORED);
            let names: Vec<&String> = keys.iter().collect();
            let whole = match keys.len() {
                0 | 1 => None,
                _ => self.whole(&mut connection, keys).await?,
            };
            let Some(mut values) = whole else { return begins(&mut connection, &names, most).await };
            // Too much for one answer, or no value of ours: a text of no length comes in its place.
            let cut = |value: &Option<Bytes>| value.as_ref().is_some_and(Bytes::is_empty);
            let (at, again): (Vec<usize>, Vec<&String>) = values
                .iter()
                .zip(keys)
                .enumerate()
                .filter(|(_, (value, _))| cut(value))
                .map(|(at, (_, key))| (at, key))
                .unzip();
            if !again.is_empty() {
                for (at, value) in at.into_iter().zip(begins(&mut connection, &again, most).await?) {
                    values[at] = value;
                }
            }
            for value in values.iter_mut().flatten() {
                value.truncate(most + 1);
            }
            Ok(values)
        })
    }

    fn is_late(&self) {
        // Perhaps behind something huge.
        if self.link.given_up.swap(false, Ordering::Relaxed) {
            *self.link.doubted.lock() = Some(Instant::now());
        }
    }

    fn fill<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, RemoteError>> {
        Box::pin(async move { Ok(self.fill_by_script([(key, &value, ttl)].into_iter()).await? == [1]) })
    }

    fn fill_many<'a>(
        &'a self,
        fills: &'a [(String, Bytes, Duration)],
    ) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move {
            let put = if fills.len() < MANY_FILLS { Vec::new() } else { self.fill_empty(fills).await? };
            let put = put.into_iter().chain(std::iter::repeat(false));
            let left = fills.iter().zip(put).filter(|(_, put)| !put);
            self.fill_by_script(left.map(|((key, value, ttl), _)| (key.as_str(), value, *ttl)))
                .await
                .map(drop)
        })
    }

    fn invalidate<'a>(
        &'a self,
        keys: &'a [String],
        xid: u64,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move {
            let mut pipeline = Pipeline::with_capacity(keys.len());
            for key in keys {
                pipeline.cmd("EVALSHA").arg(INVALIDATE.hash).arg(1).arg(key).arg(xid).arg(millis(ttl));
            }
            self.run(&pipeline, self.link.connection()?).await.map(drop)
        })
    }

    fn discard<'a>(&'a self, key: &'a str, seen: Bytes) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move {
            let mut pipeline = Pipeline::with_capacity(1);
            let begins = &seen[..seen.len().min(TOLD_APART_BY)];
            pipeline.cmd("EVALSHA").arg(DISCARD.hash).arg(1).arg(key).arg(begins);
            self.run(&pipeline, self.link.connections()?.fills.connection.clone()).await.map(drop)
        })
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(self.link.ping())
    }

    fn tend(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            match self.link.address.sentinels() {
                None => std::future::pending().await,
                Some(watching) => {
                    let tell = |server| Box::pin(self.link.move_to(server)) as BoxFuture<'_, ()>;
                    sentinels::follow(&self.link.address, watching, tell).await;
                }
            }
        })
    }
}

impl fmt::Debug for Link {
    /// Without the URL: it may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("connected", &self.connections.read().is_some()).finish_non_exhaustive()
    }
}
