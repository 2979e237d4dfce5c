//! L2 on one Redis or Valkey server, and the connections that it shares with the bus.
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
pub(crate) mod cluster;
pub(crate) mod credentials;
pub(crate) mod dial;
pub(crate) mod frames;
pub(crate) mod lanes;
pub(crate) mod nodes;
pub(crate) mod sentinels;
pub(crate) mod slots;
#[cfg(feature = "tls")]
mod tls;

use address::Address;
use dial::failed;
use lanes::{CONNECT_TIMEOUT, DISCARD, FILL, INVALIDATE, Lane, Lanes, load_scripts, millis, told_apart_by};

/// For how long values are asked for by their first bytes after an answer with whole ones did not come.
const DOUBTED_FOR: Duration = Duration::from_secs(60);
/// So many fills first go where nothing is, which takes a server a tenth of what the script does. After a start that is all of them. Few
/// are mostly of keys that were invalidated, and the script decides about these.
const MANY_FILLS: usize = 4;
/// A server, as it is known now.
pub(crate) type Server = Arc<Address>;

/// The multiplexed connections for L2 and for publishing.
pub(crate) struct Link {
    address: Address,
    /// The server: the one that the address names, or that Sentinels do. None before they have.
    server: watch::Sender<Option<Server>>,
    lanes: RwLock<Option<Lanes>>,
    connecting: Mutex<()>,
    /// Whether the last to ask for whole values did not wait until they came.
    given_up: AtomicBool,
    /// When an answer with whole values did not come.
    doubted: parking_lot::Mutex<Option<Instant>>,
    /// A key of the app's that nothing is ever under.
    probe: String,
}

/// Reads and pings are answered by a replica too: one that was demoted a moment ago, for instance.
///
/// # Errors
/// If the server takes no writes from anybody. What it refuses for other reasons is for whoever asks for it to find out.
async fn takes_writes(connection: &mut MultiplexedConnection, probe: &str) -> Result<(), RemoteError> {
    let unlink = redis::cmd("UNLINK").arg(probe).to_owned();
    match tokio::time::timeout(CONNECT_TIMEOUT, unlink.query_async::<()>(connection)).await {
        Ok(taken) => match taken.map_err(failed) {
            Err(RemoteError::Refused(_)) => Ok(()),
            taken => taken,
        },
        Err(_elapsed) => Err(RemoteError::Timeout),
    }
}

impl Link {
    pub(crate) fn new(address: Address, app: &str) -> Arc<Self> {
        let server = address.is_one_server().then(|| Arc::new(address.clone()));
        Arc::new(Self {
            address,
            server: watch::Sender::new(server),
            lanes: RwLock::default(),
            connecting: Mutex::default(),
            given_up: AtomicBool::default(),
            doubted: parking_lot::Mutex::default(),
            probe: format!("perto:{app}:probe"),
        })
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
        let mut lanes = self.lanes.write();
        let moved = self.server.send_if_modified(|now| {
            let moved = now.as_ref().is_none_or(|now| now.place() != server.place());
            if moved {
                *now = Some(Arc::new(server));
            }
            moved
        });
        if moved {
            *lanes = None;
        }
        moved
    }

    pub(crate) fn connection(&self) -> Result<MultiplexedConnection, RemoteError> {
        self.lane(Lane::Awaited)
    }

    fn lane(&self, lane: Lane) -> Result<MultiplexedConnection, RemoteError> {
        self.lanes.read().as_ref().map(|lanes| lanes.connection(lane)).ok_or(RemoteError::Disconnected)
    }

    fn lanes(&self) -> Result<Lanes, RemoteError> {
        self.lanes.read().clone().ok_or(RemoteError::Disconnected)
    }

    async fn ping(&self) -> Result<(), RemoteError> {
        let _one_at_a_time = self.connecting.lock().await;
        if let Ok(lanes) = self.lanes() {
            let mut awaited = lanes.awaited.connection.clone();
            let takes_writes = async { takes_writes(&mut awaited, &self.probe).await.is_ok() };
            if lanes.answer(takes_writes).await {
                return Ok(());
            }
            *self.lanes.write() = None;
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
            let mut lanes = self.lanes.write();
            if connected.is_some() && !another(&self.server.borrow()) {
                *lanes = connected;
                return Ok(());
            }
        }
    }

    async fn connect(&self, server: &Address) -> Result<Lanes, RemoteError> {
        let lanes = Lanes::connect(server).await?;
        takes_writes(&mut lanes.awaited.connection.clone(), &self.probe).await?;
        Ok(lanes)
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
                load_scripts(&mut connection).await?;
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
        let mut connection = self.link.lane(Lane::Fills)?;
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
            let mut fill = FILL.run(key);
            fill.arg(&value[..]).arg(millis(ttl));
            pipeline.add_command(fill);
        }
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        self.run(&pipeline, self.link.lane(Lane::Fills)?).await
    }
}

/// Succeeds for one, until it is unlinked or over.
fn claim(name: &str, ttl: Duration) -> Cmd {
    redis::cmd("SET").arg(name).arg(1).arg("NX").arg("PX").arg(millis(ttl)).to_owned()
}

/// An answer that is waited for. Dropped, it was given up.
struct Unanswered<'a>(&'a AtomicBool);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
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
            match keys {
                [] => return Ok(Vec::new()),
                [key] => return begins(&mut connection, &[key], most).await,
                _ => {}
            }
            let Some(mut values) = self.whole(&mut connection, keys).await? else {
                return begins(&mut connection, &keys.iter().collect::<Vec<_>>(), most).await;
            };
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

    fn server(&self, _keys: &[String]) -> Option<(String, Option<u16>)> {
        self.link.server.borrow().as_ref().map(|server| server.server())
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
                let mut invalidate = INVALIDATE.run(key);
                invalidate.arg(xid).arg(millis(ttl));
                pipeline.add_command(invalidate);
            }
            self.run(&pipeline, self.link.connection()?).await.map(drop)
        })
    }

    fn claim<'a>(
        &'a self,
        names: &'a [String],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<bool>, RemoteError>> {
        Box::pin(async move {
            let mut pipeline = Pipeline::with_capacity(names.len());
            for name in names {
                pipeline.add_command(claim(name, ttl));
            }
            pipeline.query_async(&mut self.link.connection()?).await.map_err(failed)
        })
    }

    fn release<'a>(&'a self, names: &'a [String]) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move {
            let unlink = redis::cmd("UNLINK").arg(names).to_owned();
            unlink.query_async(&mut self.link.lane(Lane::Fills)?).await.map_err(failed)
        })
    }

    fn discard<'a>(&'a self, key: &'a str, seen: Bytes) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move {
            let mut pipeline = Pipeline::with_capacity(1);
            let mut discard = DISCARD.run(key);
            discard.arg(told_apart_by(&seen));
            pipeline.add_command(discard);
            self.run(&pipeline, self.link.lane(Lane::Fills)?).await.map(drop)
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
        f.debug_struct("Link").field("connected", &self.lanes.read().is_some()).finish_non_exhaustive()
    }
}
