//! L2 on a cluster. What is asked goes out in one pipeline a node, and once more where it went to a node that is not the owner any
//! more, or that did not know the script. What fails then is a miss.
//!
//! A node that is dead or silent costs those who ask for its keys one wait, and nobody else anything: each node has a breaker
//! of its own.

use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, join_all, pending};
use futures_util::stream::FuturesUnordered;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::address::Address;
use super::claim;
use super::dial::{self, failed};
use super::lanes::{DISCARD, FILL, INVALIDATE, Lane, Script, millis, told_apart_by};
use super::nodes::{Map, Node, Said};
use super::slots::{epoch, ranges, slot};
use crate::error::{Cause, RemoteError};
use crate::remote::Remote;
use crate::wire::MAX_STORED;

/// How long a node may take to say which slots are whose, connecting included.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(200);
/// How long each node may take where somebody waits until all have answered.
const PING_TIMEOUT: Duration = Duration::from_millis(250);
/// The owners of slots are asked for so often without a reason, and at most a fifth later.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);
/// And with whatever reason no more often than that.
const BETWEEN_REFRESHES: Duration = Duration::from_millis(100);
/// As long as nothing is new, though it is wished: by all who ask for what is on a node that is dead.
const LONGEST_IN_VAIN: Duration = Duration::from_millis(250);
/// Where nobody says it, the next time may be that much later.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Nodes that are asked for them together, and in all.
const ASKED_AT_ONCE: usize = 3;
const MOST_ASKED: usize = 12;
/// How much later than the first of them others may answer, and still be compared with it.
const AFTER_FIRST: Duration = Duration::from_millis(20);
/// How much later than the first node one may answer that is known to be silent, where somebody waits until all have.
const AFTER_FIRST_PING: Duration = Duration::from_millis(50);
/// Fills that may take the time for L2, as on one server.
const FILLS_A_TIMEOUT: usize = 100;
/// So many fills first go where nothing is, as on one server.
const MANY_FILLS: usize = 4;

/// The nodes of a cluster, and what connects them with an app.
pub(crate) struct Cluster {
    address: Address,
    map: watch::Sender<Arc<Map>>,
    /// Somebody has seen that the map is not right.
    wished: Notify,
    /// Whom to ask next.
    next: AtomicUsize,
    /// How long somebody waits for L2.
    timeout: Duration,
}

/// Mostly one.
type Few<T> = smallvec::SmallVec<[T; 1]>;

/// One command, and the slot that it belongs to.
pub(crate) struct Asked {
    slot: u16,
    command: Cmd,
    /// What it runs by its hash.
    script: Option<&'static Script>,
}

impl Asked {
    pub(crate) fn plain(name: &str, command: Cmd) -> Self {
        Self { slot: slot(name), command, script: None }
    }

    fn script(script: &'static Script, key: &str, with: impl FnOnce(&mut Cmd) -> &mut Cmd) -> Self {
        let mut command = script.run(key);
        with(&mut command);
        Self { slot: slot(key), command, script: Some(script) }
    }

    /// With the script's text, for who may not know it.
    fn whole(&self) -> Cmd {
        self.script.map_or_else(|| self.command.clone(), |script| script.whole(&self.command))
    }
}

/// What one command goes out as.
struct Sent {
    /// Which one.
    at: usize,
    /// To who is about to become the owner.
    asking: bool,
    whole: bool,
}

/// What goes out together.
type Batch = (Arc<Node>, Vec<Sent>);

/// Why a command has no answer of use.
enum Fault {
    /// The node has none.
    Node(RemoteError),
    /// There was no time left to ask it: that says nothing of the node.
    Unasked,
    Said(RedisError),
}

fn put(batches: &mut Vec<Batch>, node: &Arc<Node>, sent: Sent) {
    match batches.iter_mut().find(|(to, _)| Arc::ptr_eq(to, node)) {
        Some((_, batch)) => batch.push(sent),
        None => batches.push((Arc::clone(node), vec![sent])),
    }
}

impl Cluster {
    /// Who waits for L2 waits for `timeout`.
    pub(crate) fn new(address: Address, timeout: Duration) -> Arc<Self> {
        let (map, next) = (watch::Sender::default(), AtomicUsize::default());
        Arc::new(Self { address, map, wished: Notify::new(), next, timeout })
    }

    pub(crate) fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map.borrow())
    }

    /// Changes when owners do.
    pub(crate) fn maps(&self) -> watch::Receiver<Arc<Map>> {
        self.map.subscribe()
    }

    /// Has it looked at soon which slots are whose.
    pub(crate) fn wish(&self) {
        self.wished.notify_one();
    }

    /// Who waits for L2 waits no longer than that for a node: or one that is silent would seem to be all of them.
    pub(crate) fn patience(&self) -> Duration {
        self.timeout * 3 / 4
    }

    /// The map. Where there is none yet, nodes are asked for it.
    ///
    /// # Errors
    /// If none says it.
    pub(crate) async fn known(&self) -> Result<Arc<Map>, RemoteError> {
        if self.map().nodes().is_empty() {
            self.refresh().await?;
        }
        Ok(self.map())
    }

    /// An answer to each of `asked`, in order.
    pub(crate) async fn exchange(
        &self,
        lane: Lane,
        asked: &[Asked],
        within: Duration,
    ) -> Vec<Result<Value, RemoteError>> {
        let (map, until) = (self.map(), Instant::now() + within);
        if let [one] = asked
            && let Some(answer) = self.ask_owner(lane, one, &map, until).await
        {
            return vec![answer];
        }
        // Apart, so that what one command needs is small.
        Box::pin(self.exchange_by_node(lane, asked, &map, until)).await
    }

    /// In one pipeline a node, and another one for what is to go elsewhere.
    async fn exchange_by_node(
        &self,
        lane: Lane,
        asked: &[Asked],
        map: &Arc<Map>,
        until: Instant,
    ) -> Vec<Result<Value, RemoteError>> {
        let mut answers: Vec<_> = asked.iter().map(|_| Err(RemoteError::Disconnected)).collect();
        let mut batches = Vec::new();
        for (at, command) in asked.iter().enumerate() {
            match map.owner(command.slot) {
                Some(node) => put(&mut batches, node, Sent { at, asking: false, whole: false }),
                None => self.wish(),
            }
        }
        let mut again = Vec::new();
        for (node, at, answer) in self.send(lane, asked, batches, until).await {
            if let Err(Fault::Said(error)) = &answer
                && let Some((to, asking)) = elsewhere(map, &node, error, &asked[at])
            {
                if Arc::ptr_eq(to, &node) && error.redirect_node().is_some() {
                    node.misplace();
                } else {
                    put(&mut again, to, Sent { at, asking, whole: true });
                }
            }
            answers[at] = answer.map_err(|fault| self.judge(&node, fault));
        }
        for (node, at, answer) in self.send(lane, asked, again, until).await {
            answers[at] = answer.map_err(|fault| self.judge(&node, fault));
        }
        answers
    }

    /// An answer to one command, as most are asked for, by who should have it: without the lists that several take. `None` where there
    /// is more to do than to wait for it.
    async fn ask_owner(
        &self,
        lane: Lane,
        asked: &Asked,
        map: &Map,
        until: Instant,
    ) -> Option<Result<Value, RemoteError>> {
        let node = map.owner(asked.slot)?;
        let mut connection = node.lane(lane)?;
        let answering = asked.command.query_async(&mut connection);
        match tokio::time::timeout_at(until, answering).await.unwrap_or_else(|_elapsed| Err(timed_out())) {
            Ok(answer) => Some(Ok(answer)),
            // It may be for somebody else, or for this one with the script.
            Err(error) if error.code().is_some() => None,
            Err(error) => Some(Err(self.judge(node, Fault::Node(failed(error))))),
        }
    }

    async fn send(
        &self,
        lane: Lane,
        asked: &[Asked],
        batches: Vec<Batch>,
        until: Instant,
    ) -> Vec<(Arc<Node>, usize, Result<Value, Fault>)> {
        let sending = batches.into_iter().map(|batch| send_batch(lane, asked, batch, until));
        join_all(sending).await.into_iter().flatten().collect()
    }

    /// What it means for the node and the map.
    fn judge(&self, node: &Node, fault: Fault) -> RemoteError {
        let error = match fault {
            Fault::Unasked => return RemoteError::Timeout,
            Fault::Node(error) => error,
            Fault::Said(error) => {
                let moved = [ServerErrorKind::Moved, ServerErrorKind::ClusterDown].map(ErrorKind::Server);
                if moved.contains(&error.kind()) {
                    self.wish();
                }
                failed(error)
            }
        };
        if !matches!(error, RemoteError::Refused(_)) {
            node.lose();
            self.wish();
        }
        error
    }

    /// What becomes of the whole where some of it failed. Only with all nodes gone L2 is.
    pub(crate) fn outcome(&self, failures: Vec<RemoteError>, of: usize) -> Result<(), RemoteError> {
        let failed = failures.len();
        let refused = |error: &RemoteError| matches!(error, RemoteError::Refused(_));
        let at = failures.iter().position(|error| !refused(error)).unwrap_or_default();
        match failures.into_iter().nth(at) {
            None => Ok(()),
            Some(error) if refused(&error) || !self.map().nodes().iter().any(|node| node.is_usable()) => {
                Err(error)
            }
            Some(error) => Err(RemoteError::Partial { failed, of, source: Arc::new(error) }),
        }
    }

    /// [`Cluster::exchange`] of what is done or is not.
    async fn run(&self, lane: Lane, asked: &[Asked], within: Duration) -> Result<Vec<Value>, RemoteError> {
        let (mut done, mut failures) = (Vec::with_capacity(asked.len()), Vec::new());
        for answer in self.exchange(lane, asked, within).await {
            match answer {
                Ok(answer) => done.push(answer),
                Err(error) => failures.push(error),
            }
        }
        self.outcome(failures, asked.len())?;
        Ok(done)
    }

    /// Asks which slots are whose: nodes and replicas by turns, then those of the URL. One that knows less than what is known here is
    /// not believed: cut off from the others it would go on saying what was so before. Whether anything is new.
    async fn refresh(&self) -> Result<bool, RemoteError> {
        let map = self.map();
        let mut known: Vec<&Address> =
            map.nodes().iter().map(|node| &node.address).chain(&map.replicas).collect();
        if !known.is_empty() {
            let turn = self.next.fetch_add(1, Ordering::Relaxed) % known.len();
            known.rotate_left(turn);
        }
        known.truncate(MOST_ASKED);
        known.extend(self.address.cluster().into_iter().flatten());
        let mut refused = RemoteError::Disconnected;
        for some in known.chunks(ASKED_AT_ONCE) {
            match newest(some).await {
                Ok(said) if map.next(&said).is_some() => {
                    return Ok(self.map.send_if_modified(|map| {
                        let Some(next) = map.next(&said) else { return false };
                        let moved = !next.is_same(map);
                        *map = Arc::new(next);
                        moved
                    }));
                }
                Ok(_older) => {}
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    /// Looks at intervals which slots are whose, and soon where somebody wishes it. Never returns.
    async fn follow(&self) {
        let apart = u32::try_from(RandomState::new().build_hasher().finish() % 1_000).unwrap_or_default();
        let interval = REFRESH_INTERVAL + REFRESH_INTERVAL / 5_000 * apart;
        let mut pause = BETWEEN_REFRESHES;
        loop {
            let wished = tokio::time::timeout(interval, self.wished.notified()).await.is_ok();
            pause = match self.refresh().await {
                Ok(false) if wished => (pause * 2).min(LONGEST_IN_VAIN),
                Ok(_) => BETWEEN_REFRESHES,
                Err(_nobody_says) => {
                    self.wish();
                    (pause * 2).min(LONGEST_PAUSE)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn tend(&self) {
        let mut maps = self.maps();
        let mut following = pin!(self.follow());
        loop {
            let nodes = maps.borrow_and_update().nodes().to_vec();
            let keeping = async {
                join_all(nodes.iter().map(|node| node.keep(&self.wished))).await;
                pending::<()>().await;
            };
            tokio::select! {
                () = &mut following => {}
                () = keeping => {}
                _ = maps.wait_for(|map| !map.has_same_nodes(&nodes)) => {}
            }
        }
    }

    /// Once each node has answered, or has let its time pass. One that is known to be silent is not waited for again.
    async fn ping(&self) -> Result<(), RemoteError> {
        let map = self.known().await?;
        let (mut mending, mut unknown) = (FuturesUnordered::new(), 0);
        for node in map.nodes() {
            let was_silent = node.is_silent();
            unknown += usize::from(!was_silent);
            mending.push(async move { (was_silent, node.mend_within(PING_TIMEOUT).await) });
        }
        let mut refused = RemoteError::Disconnected;
        let mut answered = None::<Instant>;
        loop {
            let next = match answered {
                Some(first) if unknown == 0 => {
                    tokio::time::timeout_at(first + AFTER_FIRST_PING, mending.next()).await.unwrap_or(None)
                }
                _ => mending.next().await,
            };
            let Some((was_silent, mended)) = next else { break };
            unknown -= usize::from(!was_silent);
            match mended {
                Ok(()) => drop(answered.get_or_insert_with(Instant::now)),
                Err(error) => refused = error,
            }
        }
        if answered.is_some() {
            return Ok(());
        }
        // Perhaps they are elsewhere by now, all of them.
        self.wish();
        Err(refused)
    }
}

/// Where a command is to go instead, and whether with `ASKING`.
fn elsewhere<'m>(
    map: &'m Map,
    node: &'m Arc<Node>,
    error: &RedisError,
    asked: &Asked,
) -> Option<(&'m Arc<Node>, bool)> {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::NoScript) => asked.script.map(|_| (node, false)),
        kind => {
            let (to, _) = error.redirect_node()?;
            Some((map.named(to, node)?, kind == ErrorKind::Server(ServerErrorKind::Ask)))
        }
    }
}

async fn send_batch(
    lane: Lane,
    asked: &[Asked],
    (node, sent): Batch,
    until: Instant,
) -> Vec<(Arc<Node>, usize, Result<Value, Fault>)> {
    if Instant::now() >= until {
        return sent.iter().map(|sent| (Arc::clone(&node), sent.at, Err(Fault::Unasked))).collect();
    }
    let answers = pipeline(lane, asked, &node, &sent, until).await;
    let mut answers = answers.map(Vec::into_iter);
    let each = sent.iter().map(|sent| {
        let answer = match &mut answers {
            // After that of `ASKING`.
            Ok(answers) => {
                answers.nth(usize::from(sent.asking)).unwrap_or_else(|| Err(closed())).map_err(Fault::Said)
            }
            Err(error) => Err(Fault::Node(error.clone())),
        };
        (Arc::clone(&node), sent.at, answer)
    });
    each.collect()
}

async fn pipeline(
    lane: Lane,
    asked: &[Asked],
    node: &Node,
    sent: &[Sent],
    until: Instant,
) -> Result<Vec<RedisResult<Value>>, RemoteError> {
    let mut connection = node.lane(lane).ok_or(RemoteError::Disconnected)?;
    let mut pipeline = Pipeline::with_capacity(sent.len());
    pipeline.ignore_errors();
    for Sent { at, asking, whole } in sent {
        if *asking {
            pipeline.cmd("ASKING");
        }
        let asked = &asked[*at];
        pipeline.add_command(if *whole { asked.whole() } else { asked.command.clone() });
    }
    let answering = tokio::time::timeout_at(until, pipeline.query_async(&mut connection));
    answering.await.unwrap_or_else(|_elapsed| Err(timed_out())).map_err(failed)
}

/// What the newest of those that answer together says.
async fn newest(nodes: &[&Address]) -> Result<Said, RemoteError> {
    let mut asking: FuturesUnordered<_> = nodes.iter().map(|node| said(node)).collect();
    let mut refused = RemoteError::Disconnected;
    let mut newest = None::<Said>;
    let mut until = None::<Instant>;
    loop {
        let next = match until {
            Some(until) => tokio::time::timeout_at(until, asking.next()).await.unwrap_or(None),
            None => asking.next().await,
        };
        match next {
            None => return newest.ok_or(refused),
            Some(Err(error)) => refused = error,
            Some(Ok(said)) => {
                until.get_or_insert_with(|| Instant::now() + AFTER_FIRST);
                if newest.as_ref().is_none_or(|newest| newest.epoch < said.epoch) {
                    newest = Some(said);
                }
            }
        }
    }
}

/// Which slots are whose, by one node, and how much it knows. The latter only where it may be asked for that.
async fn said(node: &Address) -> Result<Said, RemoteError> {
    let asking = async |login| {
        let mut dialled = dial::owners(node, &login).await?;
        let mut both = Pipeline::with_capacity(2);
        both.ignore_errors().cmd("CLUSTER").arg("SLOTS").cmd("CLUSTER").arg("INFO");
        let answers: Vec<RedisResult<Value>> = both.query_async(&mut dialled.connection).await?;
        let mut answers = answers.into_iter();
        let slots = answers.next().unwrap_or_else(|| Err(closed()))?;
        let epoch = answers.next().and_then(Result::ok).as_ref().and_then(epoch);
        match ranges(&slots)[..] {
            [] => Err(RedisError::from((
                ErrorKind::UnexpectedReturnType,
                "no owner of any slot is known there",
            ))),
            _ => Ok(Said { by: node.clone(), slots, epoch }),
        }
    };
    let source: Cause = match node.login().await {
        Err(error) => Arc::new(error),
        Ok(login) => match tokio::time::timeout(ANSWER_TIMEOUT, asking(login)).await {
            Ok(Ok(said)) => return Ok(said),
            Ok(Err(error)) => Arc::new(error),
            Err(_elapsed) => Arc::new(RemoteError::Timeout),
        },
    };
    Err(RemoteError::Unusable(Arc::new(NoOwners { node: node.place(), source })))
}

#[derive(Debug, thiserror::Error)]
#[error("{node} does not say which slots are whose")]
struct NoOwners {
    node: String,
    source: Cause,
}

/// L2 on a cluster.
#[derive(Debug)]
pub(crate) struct ClusterRemote {
    cluster: Arc<Cluster>,
}

impl ClusterRemote {
    pub(crate) const fn new(cluster: Arc<Cluster>) -> Self {
        Self { cluster }
    }

    fn fills<'a>(fills: impl Iterator<Item = (&'a str, &'a Bytes, Duration)>) -> Vec<Asked> {
        let fill = |(key, value, ttl): (&str, &Bytes, Duration)| {
            Asked::script(&FILL, key, |run| run.arg(&value[..]).arg(millis(ttl)))
        };
        fills.map(fill).collect()
    }
}

impl Remote for ClusterRemote {
    fn get<'a>(
        &'a self,
        keys: &'a [String],
        most: usize,
    ) -> BoxFuture<'a, Result<Vec<Option<Bytes>>, RemoteError>> {
        Box::pin(async move {
            let last = most.min(MAX_STORED).to_string();
            let get = |key: &String| {
                let mut get = Cmd::with_capacity(4, "GETRANGE".len() + key.len() + 1 + last.len());
                get.arg("GETRANGE").arg(key).arg("0").arg(&last);
                Asked::plain(key, get)
            };
            let asked: Few<Asked> = keys.iter().map(get).collect();
            let (mut values, mut failures) = (Vec::with_capacity(keys.len()), Vec::new());
            for answer in self.cluster.exchange(Lane::Awaited, &asked, self.cluster.patience()).await {
                values.push(match answer {
                    // Nothing there, or a text of no length, which is no value either.
                    Ok(Value::BulkString(value)) => {
                        Some(Bytes::from(value)).filter(|value| !value.is_empty())
                    }
                    Ok(_) => None,
                    Err(error) => {
                        failures.push(error);
                        None
                    }
                });
            }
            // What the others have is of use all the same.
            if failures.len() == keys.len() {
                self.cluster.outcome(failures, keys.len())?;
            }
            Ok(values)
        })
    }

    fn fill<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<bool, RemoteError>> {
        Box::pin(async move {
            let asked = Self::fills([(key, &value, ttl)].into_iter());
            let done = self.cluster.run(Lane::Fills, &asked, self.cluster.patience()).await?;
            Ok(done == [Value::Int(1)])
        })
    }

    fn fill_many<'a>(
        &'a self,
        fills: &'a [(String, Bytes, Duration)],
    ) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move {
            let until = Instant::now() + self.cluster.patience() * timeouts(fills.len());
            let left = || until.saturating_duration_since(Instant::now());
            let (mut failures, mut rest) = (Vec::new(), Vec::new());
            if fills.len() < MANY_FILLS {
                rest.extend(fills);
            } else {
                // As the script does where there is nothing.
                let set = |(key, value, ttl): &(String, Bytes, Duration)| {
                    let mut set = redis::cmd("SET");
                    set.arg(key).arg(&value[..]).arg("NX").arg("PX").arg(millis(*ttl));
                    Asked::plain(key, set)
                };
                let asked: Vec<Asked> = fills.iter().map(set).collect();
                for (fill, answer) in
                    fills.iter().zip(self.cluster.exchange(Lane::Fills, &asked, left()).await)
                {
                    match answer {
                        Ok(Value::Nil) => rest.push(fill),
                        Ok(_) => {}
                        Err(error) => failures.push(error),
                    }
                }
            }
            let asked = Self::fills(rest.into_iter().map(|(key, value, ttl)| (key.as_str(), value, *ttl)));
            let filled = self.cluster.exchange(Lane::Fills, &asked, left()).await;
            failures.extend(filled.into_iter().filter_map(Result::err));
            self.cluster.outcome(failures, fills.len())
        })
    }

    fn invalidate<'a>(
        &'a self,
        keys: &'a [String],
        xid: u64,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move {
            let bury = |key: &String| Asked::script(&INVALIDATE, key, |run| run.arg(xid).arg(millis(ttl)));
            let asked: Vec<Asked> = keys.iter().map(bury).collect();
            self.cluster.run(Lane::Awaited, &asked, self.cluster.patience()).await.map(drop)
        })
    }

    fn claim<'a>(
        &'a self,
        names: &'a [String],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Vec<bool>, RemoteError>> {
        Box::pin(async move {
            let asked: Vec<Asked> = names.iter().map(|name| Asked::plain(name, claim(name, ttl))).collect();
            let claimed = self.cluster.exchange(Lane::Awaited, &asked, self.cluster.patience()).await;
            // What is on a node that is lost each instance loads for itself.
            Ok(claimed.into_iter().map(|answer| !matches!(answer, Ok(Value::Nil))).collect())
        })
    }

    fn release<'a>(&'a self, names: &'a [String]) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move {
            let unlink = |name: &String| Asked::plain(name, redis::cmd("UNLINK").arg(name).to_owned());
            let asked: Vec<Asked> = names.iter().map(unlink).collect();
            self.cluster.run(Lane::Fills, &asked, self.cluster.patience()).await.map(drop)
        })
    }

    fn discard<'a>(&'a self, key: &'a str, seen: Bytes) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(async move {
            let asked = [Asked::script(&DISCARD, key, |run| run.arg(told_apart_by(&seen)))];
            self.cluster.run(Lane::Fills, &asked, self.cluster.patience()).await.map(drop)
        })
    }

    fn server(&self, keys: &[String]) -> Option<(String, Option<u16>)> {
        let map = self.cluster.map();
        let mut owners = keys.iter().map(|key| map.owner(slot(key)));
        let first = owners.next()??;
        let is_first = |owner: Option<&Arc<Node>>| owner.is_some_and(|owner| Arc::ptr_eq(owner, first));
        owners.all(is_first).then(|| first.address.server())
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), RemoteError>> {
        Box::pin(self.cluster.ping())
    }

    fn tend(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.cluster.tend())
    }
}

/// So often fills may take the time for L2.
fn timeouts(fills: usize) -> u32 {
    u32::try_from(fills.div_ceil(FILLS_A_TIMEOUT)).unwrap_or(u32::MAX)
}

fn timed_out() -> RedisError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

fn closed() -> RedisError {
    io::Error::from(io::ErrorKind::UnexpectedEof).into()
}

impl fmt::Debug for Cluster {
    /// Without the URL: it may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("nodes", &self.map().nodes()).finish_non_exhaustive()
    }
}
