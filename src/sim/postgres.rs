//! Transactions, snapshots and the log, as Postgres has them, in memory.
//!
//! A *moment* is a number of transactions that have ended; it says exactly what is visible. A snapshot's text follows
//! from it as in Postgres: `xmax` is one more than the highest transaction that has *ended*, and those below it
//! that have not are listed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::faults::Down;
use crate::cache::loader::{Loaded, Stamp};
use crate::cache::{Key, Value};
use crate::coherence::snapshot::Snapshot;
use crate::coherence::token::Token;
use crate::log::switch::{NotASwitch, Switch, Switching, TierMode};
use crate::log::{MAX_POLL_BYTES, MAX_POLL_ROWS, Poll, Row};
use crate::wire::{self, Change};

/// The number of the first transaction.
const FIRST: u64 = 1_000;

/// A database: versioned values by cache and key, and the invalidation log. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct SimPostgres(Arc<Mutex<Database>>);

#[derive(Debug)]
struct Database {
    epoch: u64,
    next: u64,
    running: BTreeSet<u64>,
    /// In the order in which they ended, which is not that of their numbers.
    ended: Vec<Ended>,
    ended_at: HashMap<u64, usize>,
    tables: HashMap<String, HashMap<String, Vec<Version>>>,
    log: Vec<Row>,
    trimmed: Snapshot,
    ticks: Vec<(Instant, Snapshot)>,
    /// What the replica shows.
    replayed: usize,
    /// What is switched, by cache and tier. It outlasts a crash.
    switches: BTreeMap<(Option<String>, &'static str), Stands>,
}

/// A switch, and when it ends by itself.
type Stands = (Switch, Option<Instant>);

#[derive(Debug, Clone, Copy)]
struct Ended {
    xid: u64,
    committed: bool,
    /// The highest of all that had ended by then.
    highest: u64,
}

/// In the order of writing: a row is locked until its writer ends.
#[derive(Debug)]
struct Version {
    xid: u64,
    value: Option<Bytes>,
}

/// The transaction can't go on: another open one has written the row (in Postgres, the writer would wait), or the
/// database has crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another transaction holds the row, or the database crashed")]
pub struct Aborted;

/// An open transaction. Dropping it rolls back. It gets its number with its first write, as in Postgres.
#[derive(Debug)]
pub struct SimTransaction {
    database: SimPostgres,
    /// With the epoch: after a crash, the number may be another's.
    xid: Option<(u64, u64)>,
    changes: Vec<Change>,
}

/// A committed transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// For [`ReadOptions::at_least`](crate::ReadOptions::at_least) and [`Perto::announce`](crate::Perto::announce).
    pub token: Token,
    /// The transaction.
    pub xid: u64,
    /// What it invalidated.
    pub changes: Vec<Change>,
}

impl SimPostgres {
    /// An empty database.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Database {
            epoch: 1,
            next: FIRST,
            running: BTreeSet::new(),
            ended: Vec::new(),
            ended_at: HashMap::new(),
            tables: HashMap::new(),
            log: Vec::new(),
            trimmed: Snapshot::new(FIRST, FIRST, &[]),
            ticks: Vec::new(),
            replayed: 0,
            switches: BTreeMap::new(),
        })))
    }

    /// Begins a transaction.
    #[must_use]
    pub fn begin(&self) -> SimTransaction {
        SimTransaction { database: self.clone(), xid: None, changes: Vec::new() }
    }

    /// Writes one value in a transaction of its own.
    ///
    /// # Errors
    /// If another open transaction has written the key.
    pub fn write<K: Key, V: Serialize>(&self, cache: &str, key: &K, value: &V) -> Result<Written, Aborted> {
        let mut transaction = self.begin();
        transaction.put(cache, key, value)?;
        transaction.commit()
    }

    /// Removes one value in a transaction of its own.
    ///
    /// # Errors
    /// If another open transaction has written the key.
    pub fn remove<K: Key>(&self, cache: &str, key: &K) -> Result<Written, Aborted> {
        let mut transaction = self.begin();
        transaction.remove(cache, key)?;
        transaction.commit()
    }

    /// What `pg_current_snapshot()` says now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let database = self.0.lock();
        database.snapshot(database.ended.len())
    }

    /// Trims the log of all that the present snapshot contains.
    pub fn trim(&self) {
        let mut database = self.0.lock();
        let horizon = database.snapshot(database.ended.len());
        database.trim_to(horizon);
    }

    /// Rows that the log holds.
    #[must_use]
    pub fn retained(&self) -> usize {
        self.0.lock().log.len()
    }

    /// Crashes and comes back as another epoch: open transactions are gone, and with them the last `losing` commits,
    /// as after a failover to a replica that lagged. The numbers of what is gone are used again. Returns the commits
    /// that are gone.
    pub fn crash(&self, losing: usize) -> Vec<u64> {
        let mut database = self.0.lock();
        let commits = || database.ended.iter().enumerate().filter(|(_, ended)| ended.committed);
        let lost = commits().rev().take(losing).last().map_or(database.ended.len(), |(at, _)| at);
        let gone = commits().filter(|(at, _)| *at >= lost).map(|(_, ended)| ended.xid).collect();
        database.crash(lost);
        gone
    }

    /// Is stopped in order and comes back as another epoch: open transactions are gone, commits and the log are kept.
    pub fn restart(&self) {
        let mut database = self.0.lock();
        let (end, log) = (database.ended.len(), database.log.clone());
        database.crash(end);
        let kept = log.into_iter().filter(|row| database.visible(row.xid, end)).collect();
        database.log = kept;
    }

    /// Lets the replica replay all but the last `behind` ends of transactions. It never goes back.
    pub fn replay(&self, behind: usize) {
        let mut database = self.0.lock();
        database.replayed = database.ended.len().saturating_sub(behind).max(database.replayed);
    }

    pub(super) fn poll(&self, cursor: Option<&Snapshot>, caches: &[&str]) -> (Poll, Arc<[Switch]>) {
        let mut database = self.0.lock();
        let now = Instant::now();
        database.switches.retain(|_, (_, until)| until.is_none_or(|until| now < until));
        let switches = database.switches.values().map(|(switch, _)| switch.clone()).collect();
        (database.poll(cursor, caches), switches)
    }

    /// Switches a tier, as an operator does beside all instances.
    ///
    /// # Errors
    /// What makes no sense of it.
    pub fn switch(&self, switching: &Switching) -> Result<(), NotASwitch> {
        switching.check()?;
        let (switch, lasts) = switching.simulated();
        let of = (switch.cache.clone(), switch.tier.name());
        let mut database = self.0.lock();
        match switch.mode {
            TierMode::On => drop(database.switches.remove(&of)),
            _ => drop(database.switches.insert(of, (switch, lasts.map(|lasts| Instant::now() + lasts)))),
        }
        Ok(())
    }

    /// Remembers the present snapshot, and trims by the newest that is old enough.
    pub(super) fn tick(&self, retention: Duration) {
        let mut database = self.0.lock();
        let now = Instant::now();
        let tick = database.snapshot(database.ended.len());
        database.ticks.push((now, tick));
        let old = database.ticks.iter().rposition(|(at, _)| now.duration_since(*at) >= retention);
        if let Some((_, horizon)) = old.and_then(|old| database.ticks.drain(..=old).next_back()) {
            database.trim_to(horizon);
        }
    }

    /// One statement, that reads any rows: its stamp, and what it has made of them. `None` where the stamp makes no sense, which is a
    /// fault of the simulator.
    pub(super) fn statement<T>(
        &self,
        replica: bool,
        read: impl FnOnce(&Rows<'_>) -> T,
    ) -> Option<(Stamp, T)> {
        let database = self.0.lock();
        let moment = if replica { database.replayed } else { database.ended.len() };
        let stamp = Stamp::parse(&database.stamp_text(moment, replica, None))?;
        Some((stamp, read(&Rows { database: &database, moment })))
    }
}

/// What a statement sees.
#[derive(Debug)]
pub struct Rows<'a> {
    database: &'a Database,
    moment: usize,
}

impl Rows<'_> {
    /// A row. `None` where there is none.
    ///
    /// # Errors
    /// If a value of another type lies there.
    pub fn get<K: Key, V: Value>(&self, table: &str, key: &K) -> Result<Option<V>, Down> {
        let bytes = self.database.read(table, &key.to_string(), self.moment, None);
        bytes.map(|bytes| wire::decode_payload(&bytes).map_err(|_refused| Down)).transpose()
    }
}

impl Database {
    fn xmax(&self, moment: usize) -> u64 {
        moment.checked_sub(1).and_then(|last| self.ended.get(last)).map_or(FIRST, |ended| ended.highest + 1)
    }

    /// Transactions that had not ended at that moment, and are below its `xmax`.
    fn running(&self, moment: usize) -> Vec<u64> {
        let xmax = self.xmax(moment);
        let later = self.ended[moment..].iter().map(|ended| ended.xid);
        let mut running: Vec<u64> =
            self.running.iter().copied().chain(later).filter(|xid| *xid < xmax).collect();
        running.sort_unstable();
        running
    }

    fn snapshot(&self, moment: usize) -> Snapshot {
        let (running, xmax) = (self.running(moment), self.xmax(moment));
        Snapshot::new(running.first().copied().unwrap_or(xmax), xmax, &running)
    }

    /// What a statement's stamp says; see [`crate::STAMP_SQL`].
    fn stamp_text(&self, moment: usize, standby: bool, own: Option<u64>) -> String {
        let (mut running, xmax) = (self.running(moment), self.xmax(moment));
        let xmin = running.first().copied().unwrap_or(xmax);
        // A standby's list is always empty, and a transaction is missing from its own.
        running.retain(|xid| !standby && Some(*xid) != own);
        let running: Vec<String> = running.iter().map(u64::to_string).collect();
        let origin = if standby { " replica" } else { " primary" };
        let wrote = if own.is_some() { " wrote" } else { " clean" };
        format!("{xmin}:{xmax}:{}{origin}{wrote} {}", running.join(","), self.epoch)
    }

    fn visible(&self, xid: u64, moment: usize) -> bool {
        self.ended_at.get(&xid).is_some_and(|at| *at < moment && self.ended[*at].committed)
    }

    fn read(&self, cache: &str, key: &str, moment: usize, own: Option<u64>) -> Option<Bytes> {
        let versions = self.tables.get(cache)?.get(key)?;
        let visible = |version: &&Version| Some(version.xid) == own || self.visible(version.xid, moment);
        versions.iter().rev().find(visible)?.value.clone()
    }

    fn end(&mut self, xid: u64, committed: bool) {
        self.running.remove(&xid);
        self.ended_at.insert(xid, self.ended.len());
        let highest = self.ended.last().map_or(0, |ended| ended.highest).max(xid);
        self.ended.push(Ended { xid, committed, highest });
        if !committed {
            self.forget(|other| other != xid);
        }
    }

    /// Keeps only what these transactions wrote.
    fn forget(&mut self, keep: impl Fn(u64) -> bool) {
        self.log.retain(|row| keep(row.xid));
        for versions in self.tables.values_mut().flat_map(HashMap::values_mut) {
            versions.retain(|version| keep(version.xid));
        }
    }

    fn crash(&mut self, moment: usize) {
        self.epoch += 1;
        let aborted = self.running(moment);
        self.ended.truncate(moment);
        self.running.clear();
        self.ended_at = self.ended.iter().enumerate().map(|(at, ended)| (ended.xid, at)).collect();
        let kept: BTreeSet<u64> = self.ended.iter().filter(|e| e.committed).map(|e| e.xid).collect();
        self.forget(|xid| kept.contains(&xid));
        for xid in aborted {
            self.end(xid, false);
        }
        self.next = self.xmax(self.ended.len());
        self.replayed = self.replayed.min(self.ended.len());
        // As unlogged tables are.
        self.log.clear();
        self.ticks.clear();
        // In order or not: whoever polls first declares all that came before trimmed.
        self.trimmed = self.snapshot(self.ended.len());
    }

    fn trim_to(&mut self, horizon: Snapshot) {
        if horizon.rank() > self.trimmed.rank() {
            self.log.retain(|row| !horizon.contains(row.xid));
            self.trimmed = horizon;
        }
    }

    fn poll(&self, cursor: Option<&Snapshot>, caches: &[&str]) -> Poll {
        let moment = self.ended.len();
        // As the statement in `log::postgres` says it.
        let new = |xid: u64| {
            cursor.is_none_or(|cursor| xid >= cursor.xmax() || cursor.running().binary_search(&xid).is_ok())
        };
        let sent = |row: &&Row| {
            new(row.xid)
                && self.visible(row.xid, moment)
                && (cursor.is_some() || !self.trimmed.contains(row.xid))
        };
        let mut rows: Vec<&Row> = self.log.iter().filter(sent).take(MAX_POLL_ROWS + 1).collect();
        let seen = rows.len();
        rows.retain(|row| caches.contains(&&*row.cache));
        let bytes: usize =
            rows.iter().map(|row| row.cache.len() + row.key.as_ref().map_or(0, String::len)).sum();
        let fits = seen <= MAX_POLL_ROWS && bytes <= MAX_POLL_BYTES;
        Poll {
            snapshot: self.snapshot(moment),
            epoch: self.epoch,
            server: self.epoch,
            // An upper bound, as there.
            trimmed: Snapshot::all_below(self.trimmed.xmax()),
            rows: fits.then(|| rows.into_iter().cloned().collect()),
        }
    }
}

impl SimTransaction {
    /// The transaction's number.
    pub fn xid(&mut self) -> u64 {
        let (_, xid) = *self.xid.get_or_insert_with(|| {
            let mut database = self.database.0.lock();
            let xid = database.next;
            database.next += 1;
            database.running.insert(xid);
            (database.epoch, xid)
        });
        xid
    }

    /// Writes a value.
    ///
    /// # Errors
    /// If another open transaction has written the key.
    pub fn put<K: Key, V: Serialize>(&mut self, cache: &str, key: &K, value: &V) -> Result<(), Aborted> {
        let key = key.to_string();
        self.change(cache, &key, Some(wire::encode_payload(value).unwrap_or_default()))?;
        self.log(cache, Some(&key));
        Ok(())
    }

    /// Removes a value.
    ///
    /// # Errors
    /// If another open transaction has written the key.
    pub fn remove<K: Key>(&mut self, cache: &str, key: &K) -> Result<(), Aborted> {
        let key = key.to_string();
        self.change(cache, &key, None)?;
        self.log(cache, Some(&key));
        Ok(())
    }

    /// Writes a value where a trigger was dropped: nothing logs it.
    ///
    /// # Errors
    /// If another open transaction has written the key.
    pub fn put_unlogged<K: Key, V: Serialize>(
        &mut self,
        cache: &str,
        key: &K,
        value: &V,
    ) -> Result<(), Aborted> {
        self.change(cache, &key.to_string(), Some(wire::encode_payload(value).unwrap_or_default()))
    }

    /// Writes values as one statement that changes very many rows: the log has one row, for the whole cache.
    ///
    /// # Errors
    /// If another open transaction has written one of the keys. Those before it are written.
    pub fn bulk<K: Key, V: Serialize>(&mut self, cache: &str, values: &[(K, V)]) -> Result<(), Aborted> {
        self.log(cache, None);
        values.iter().try_for_each(|(key, value)| {
            self.change(cache, &key.to_string(), Some(wire::encode_payload(value).unwrap_or_default()))
        })
    }

    /// Logs the invalidation of a whole cache, without a change.
    pub fn clear(&mut self, cache: &str) {
        self.log(cache, None);
    }

    /// Logs the invalidation of a key without a change, or of a text that is no key.
    pub fn touch(&mut self, cache: &str, key: &str) {
        self.log(cache, Some(key));
    }

    /// Reads within this transaction, its own writes included: what no loader should do once it has written.
    #[must_use]
    pub fn load<K: Key, V: Value>(&self, cache: &str, keys: &[K]) -> Option<Loaded<K, V>> {
        let own = self.xid.map(|(_, xid)| xid);
        let database = self.database.0.lock();
        let moment = database.ended.len();
        let stamp = Stamp::parse(&database.stamp_text(moment, false, own))?;
        let found = |key: &K| {
            let bytes = database.read(cache, &key.to_string(), moment, own)?;
            Some((key.clone(), wire::decode_payload(&bytes).ok()?))
        };
        Some(
            keys.iter()
                .filter_map(found)
                .fold(Loaded::new(stamp), |loaded, (key, value)| loaded.with(key, value)),
        )
    }

    /// Commits: the changes and their log become visible at one moment.
    ///
    /// # Errors
    /// If the database has crashed since the first write.
    pub fn commit(mut self) -> Result<Written, Aborted> {
        let xid = self.xid();
        let token = {
            let mut database = self.database.0.lock();
            if !self.is_open(&database) {
                return Err(Aborted);
            }
            database.end(xid, true);
            Token::of_write(database.epoch, xid)
        };
        Ok(Written { token, xid, changes: std::mem::take(&mut self.changes) })
    }

    /// Rolls back.
    pub fn rollback(self) {
        drop(self);
    }

    fn is_open(&self, database: &Database) -> bool {
        self.xid.is_none_or(|(epoch, xid)| epoch == database.epoch && database.running.contains(&xid))
    }

    fn change(&mut self, cache: &str, key: &str, value: Option<Bytes>) -> Result<(), Aborted> {
        let xid = self.xid();
        {
            let mut database = self.database.0.lock();
            let versions = database.tables.get(cache).and_then(|table| table.get(key));
            let last = versions.and_then(|versions| versions.last()).map(|version| version.xid);
            let locked = last.is_some_and(|last| last != xid && database.running.contains(&last));
            if locked || !self.is_open(&database) {
                return Err(Aborted);
            }
            let table = database.tables.entry(cache.to_owned()).or_default();
            table.entry(key.to_owned()).or_default().push(Version { xid, value });
        }
        Ok(())
    }

    fn log(&mut self, cache: &str, key: Option<&str>) {
        let xid = self.xid();
        let row =
            Row { xid, cache: cache.to_owned(), key: key.map(str::to_owned), traceparent: None, fault: None };
        {
            let mut database = self.database.0.lock();
            if !self.is_open(&database) {
                return;
            }
            database.log.push(row);
        }
        match (self.changes.iter_mut().find(|change| change.cache == cache), key) {
            (Some(Change { keys: Some(keys), .. }), Some(key)) => keys.push(key.to_owned()),
            (Some(change), None) => change.keys = None,
            (Some(_), Some(_)) => {}
            (None, key) => {
                let keys = key.map(|key| vec![key.to_owned()]);
                self.changes.push(Change { cache: cache.to_owned(), keys });
            }
        }
    }
}

impl Drop for SimTransaction {
    fn drop(&mut self) {
        let mut database = self.database.0.lock();
        if let Some((_, xid)) = self.xid
            && self.is_open(&database)
        {
            database.end(xid, false);
        }
    }
}

impl Default for SimPostgres {
    fn default() -> Self {
        Self::new()
    }
}
