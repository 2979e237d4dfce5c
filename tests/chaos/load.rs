//! The load of one worker: readers at a pace that nothing slows down, and writers of every kind.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use perto::{Cache, Error, Freshness, Perto, Read, ReadOptions, Tier, Token};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::record::{Flag, Kind, Record, Recorder, now_ns};

/// Rows of the table.
pub(crate) const ROWS: u32 = 100_000;
/// Rows that most reads and all writes of workers go to.
pub(crate) const HOT: u32 = 500;
/// Rows after those, read like them, and written by nobody but the schedule.
pub(crate) const RESERVED: u32 = 16;

/// How long a client waits for its write.
const WRITE_LIMIT: Duration = Duration::from_secs(2);
/// A view misses nothing that a read alone would not: the bound of all workers, unless a run has another one.
const VIEW_WITHIN_MS: u32 = 1_000;
const READERS: u64 = 4;
const TICK: Duration = Duration::from_millis(5);
/// Reads of one reader that wait at a time. More are not begun, and are counted.
const WAITING: usize = 2_048;

/// The value of a row, as it is cached.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) version: u64,
    pub(crate) value: u64,
}

pub(crate) type Pair = (Row, Row);

/// What a read of one row asks for.
#[derive(Debug, Clone, Copy)]
enum Asks {
    Nothing,
    Latest,
    Within,
    /// The row, and by that answer's token the pair.
    Session,
    Pair,
    /// The row, and the pair of its neighbour, at one moment.
    View,
}

/// One worker's instance, and what it writes down.
pub(crate) struct Load {
    pub(crate) perto: Perto,
    pub(crate) rows: Cache<i64, Row>,
    /// Each row with its neighbour, by what it depends on.
    pairs: Cache<i64, Pair>,
    pub(crate) pool: PgPool,
    pub(crate) recorder: Recorder,
    pub(crate) ended: AtomicBool,
    pub(crate) not_begun: AtomicU64,
    pub(crate) first_error: parking_lot::Mutex<Option<String>>,
    /// The next value.
    value: AtomicU64,
}

/// How a write is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// By `Perto::write`.
    Perto,
    /// In a transaction of one's own, announced after the commit.
    Announced,
    /// SQL in a transaction, by somebody who knows nothing of Perto.
    Plain,
    /// One statement of the same.
    Statement,
    /// Rolled back.
    Aborted,
}

/// A small generator, for choices that a seed repeats.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    /// The lower the likelier: a tenth of the rows get a third of the accesses.
    fn skewed(&mut self, n: u32) -> u32 {
        let share = self.below(1 << 20);
        u32::try_from((u64::from(n) * share * share) >> 40).expect("less than n")
    }

    fn read_key(&mut self, cold: u64) -> u32 {
        match self.below(1_000) {
            at if at < cold => u32::try_from(self.below(u64::from(ROWS))).expect("a row"),
            at if at < cold + 80 => HOT + u32::try_from(self.below(u64::from(RESERVED))).expect("a row"),
            _ => self.skewed(HOT),
        }
    }

    fn asks(&mut self) -> Asks {
        match self.below(100) {
            0..=1 => Asks::Latest,
            2..=3 => Asks::Within,
            4..=5 => Asks::Session,
            6..=9 => Asks::Pair,
            10..=11 => Asks::View,
            _ => Asks::Nothing,
        }
    }

    fn how(&mut self) -> How {
        match self.below(20) {
            0..=5 => How::Perto,
            6..=13 => How::Announced,
            14..=15 => How::Plain,
            16..=17 => How::Statement,
            _ => How::Aborted,
        }
    }
}

impl Load {
    pub(crate) fn new(
        perto: Perto,
        (rows, pairs): (Cache<i64, Row>, Cache<i64, Pair>),
        pool: PgPool,
        recorder: Recorder,
        worker: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            perto,
            rows,
            pairs,
            pool,
            recorder,
            ended: AtomicBool::new(false),
            not_begun: AtomicU64::new(0),
            first_error: parking_lot::Mutex::default(),
            value: AtomicU64::new(u64::from(worker) << 40 | 1),
        })
    }

    /// Readers and writers, until the load has ended.
    pub(crate) fn start(
        self: &Arc<Self>,
        tasks: &mut JoinSet<()>,
        (reads, cold): (u64, u64),
        writes: u64,
        seed: u64,
    ) {
        for reader in 0..READERS {
            let (load, random) = (Arc::clone(self), Random(seed.wrapping_mul(31) + reader + 1));
            tasks.spawn(async move { load.read_on(reads, cold, random).await });
        }
        for writer in 0..2 {
            let (load, random) = (Arc::clone(self), Random(seed.wrapping_mul(37) + writer + 101));
            tasks.spawn(async move { load.write_on(writes.div_ceil(2), random).await });
        }
        let load = Arc::clone(self);
        tasks.spawn(async move {
            while !load.ended.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                load.recorder.flush();
            }
        });
    }

    /// An open loop: whoever waits for a load keeps nobody else from reading, as with requests from outside.
    async fn read_on(self: Arc<Self>, reads: u64, cold: u64, mut random: Random) {
        let mut waiting = JoinSet::new();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let per_tick = (reads * 5).div_ceil(READERS * 1_000);
        while !self.ended.load(Ordering::Acquire) {
            ticks.tick().await;
            while waiting.try_join_next().is_some() {}
            let mut left = per_tick;
            while left > 0 {
                let many = random.below(200) == 0;
                let keys: Vec<u32> = (0..if many { 10 } else { 1 }).map(|_| random.read_key(cold)).collect();
                left = left.saturating_sub(keys.len() as u64);
                if waiting.len() >= WAITING {
                    self.not_begun.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let (load, asks) = (Arc::clone(&self), random.asks());
                let mut reading = Box::pin(async move { load.read(&keys, asks).await });
                let first = poll_fn(|context| Poll::Ready(reading.as_mut().poll(context)));
                if first.await.is_pending() {
                    waiting.spawn(reading);
                }
            }
        }
        while waiting.join_next().await.is_some() {}
    }

    async fn read(&self, keys: &[u32], asks: Asks) {
        let begun = now_ns();
        match keys {
            [key] if !matches!(asks, Asks::Nothing) => self.read_more(*key, asks, begun).await,
            [key] => {
                let read = self.rows.get(&i64::from(*key)).await;
                let ended = now_ns();
                match read {
                    Ok(read) => self.answered(*key, &read, begun, ended, 0),
                    Err(error) => self.not_answered(*key, &error, begun),
                }
            }
            keys => {
                let ids: Vec<i64> = keys.iter().copied().map(i64::from).collect();
                let read = self.rows.get_many(&ids).await;
                let ended = now_ns();
                match read {
                    Ok(reads) => {
                        keys.iter()
                            .zip(&reads)
                            .for_each(|(key, read)| self.answered(*key, read, begun, ended, 0));
                    }
                    Err(error) => {
                        keys.iter().for_each(|key| self.not_answered(*key, &error, begun));
                    }
                }
            }
        }
    }

    /// A stronger read, or one of several rows.
    async fn read_more(&self, key: u32, asks: Asks, begun: u64) {
        let (id, within) = (i64::from(key), Duration::from_millis(100));
        match asks {
            Asks::Nothing => {}
            Asks::Latest | Asks::Within => {
                let options = if matches!(asks, Asks::Latest) {
                    ReadOptions::latest()
                } else {
                    ReadOptions::within(within)
                };
                let within_ms =
                    options.within.map_or(0, |limit| 1 + u32::try_from(limit.as_millis()).expect("short"));
                match self.rows.get_with(&id, options).await {
                    Ok(read) => {
                        let of = (read.value(), read.freshness, read.tier);
                        self.answered_by(
                            key,
                            of,
                            Record { within_ms, ended: now_ns(), ..Record::new(Kind::Answer, key, begun) },
                        );
                    }
                    Err(error) => self.failed(&error, late(key, begun)),
                }
            }
            Asks::Pair | Asks::Session => {
                let first = match asks {
                    Asks::Session => self.rows.get(&id).await.ok(),
                    _ => None,
                };
                let demanded = first.as_ref().and_then(|read| read.value()).map_or(0, |row| row.value);
                let token = first.and_then(|read| read.token()).filter(|_| demanded > 0);
                let begun = now_ns();
                let options = token.map_or(ReadOptions::default(), ReadOptions::at_least);
                match self.pairs.get_with(&id, options).await {
                    Ok(read) => self.answered_pair(key, &read, begun, token.map_or(0, |_| demanded), 0),
                    Err(error) => self.failed(&error, late(key, begun)),
                }
            }
            Asks::View => {
                let (rows, pairs, other) = (&self.rows, &self.pairs, id ^ 1);
                let seen = self.perto.view(|view| async move {
                    Ok::<_, Error>((view.get(rows, &id).await?, view.get(pairs, &other).await?))
                });
                match seen.await {
                    Ok((row, pair)) => {
                        // The row is in both.
                        assert_eq!(
                            row.value().map(|row| row.value),
                            pair.value().map(|(_, row)| row.value),
                            "a view of {key} is torn"
                        );
                        // As late as several loads may be.
                        self.answered_pair(key ^ 1, &pair, begun, 0, 1 + VIEW_WITHIN_MS);
                    }
                    Err(Error::Unsettled) => {}
                    Err(error) => self.failed(&error, late(key, begun)),
                }
            }
        }
    }

    fn answered_pair(&self, key: u32, read: &Read<Pair>, begun: u64, demanded: u64, within_ms: u32) {
        let ended = now_ns();
        let (one, other) = (read.value().map(|pair| &pair.0), read.value().map(|pair| &pair.1));
        let kind = if demanded == 0 { Kind::Answer } else { Kind::TokenAnswer };
        let first = Record { ended, demanded, within_ms, ..Record::new(kind, key, begun) };
        self.answered_by(key, (one, read.freshness, read.tier), first);
        let second = Record { ended, within_ms, ..Record::new(Kind::Answer, key ^ 1, begun) };
        self.answered_by(key ^ 1, (other, read.freshness, read.tier), second);
    }

    fn answered(&self, key: u32, read: &Read<Row>, begun: u64, ended: u64, demanded: u64) {
        let kind = if demanded == 0 { Kind::Answer } else { Kind::TokenAnswer };
        let record = Record { ended, demanded, ..Record::new(kind, key, begun) };
        self.answered_by(key, (read.value(), read.freshness, read.tier), record);
    }

    fn answered_by(
        &self,
        key: u32,
        (value, freshness, tier): (Option<&Row>, Freshness, Tier),
        record: Record,
    ) {
        let flag = match freshness {
            Freshness::Fresh => Flag::Fresh,
            Freshness::Unverified { .. } => Flag::Unverified,
            _ => Flag::Stale,
        };
        let tier = match tier {
            Tier::Local => 0,
            Tier::Remote => 1,
            Tier::Load => 2,
        };
        // No row is ever deleted: where one is missing, the history has no such value.
        let (version, value) = value.map_or((u64::MAX, u64::MAX), |row| (row.version, row.value));
        self.recorder.read(Record { flag, tier, version, value, key, ..record });
    }

    fn not_answered(&self, key: u32, error: &Error, begun: u64) {
        self.failed(error, Record::new(Kind::NoAnswer, key, begun));
    }

    fn failed(&self, error: &Error, record: Record) {
        if matches!(error, Error::Closed) {
            return;
        }
        self.first_error.lock().get_or_insert_with(|| {
            std::error::Error::source(error)
                .map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
        });
        self.recorder.read(Record { ended: now_ns(), ..record });
    }

    async fn write_on(self: Arc<Self>, writes: u64, mut random: Random) {
        let mut ticks = tokio::time::interval(Duration::from_nanos(1_000_000_000 / writes.max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !self.ended.load(Ordering::Acquire) {
            ticks.tick().await;
            let key = random.skewed(HOT);
            let how = random.how();
            if let Some((value, token)) = self.write(key, how).await {
                self.read_own(key, value, token).await;
            }
        }
    }

    /// A write, with all that is known of its outcome. Returns the value and the token where there is one.
    pub(crate) async fn write(&self, key: u32, how: How) -> Option<(u64, Token)> {
        let value = self.value.fetch_add(1, Ordering::Relaxed);
        let mut record = Record { value, ..Record::new(Kind::Intent, key, now_ns()) };
        self.recorder.write(record);
        let mut written = Written::default();
        let outcome = tokio::time::timeout(WRITE_LIMIT, self.try_write(key, value, how, &mut written)).await;
        (record.version, record.timeline) = written.row.unwrap_or_default();
        record.ended = written.acked;
        record.kind = match outcome {
            _ if written.acked > 0 => Kind::Committed,
            _ if how == How::Aborted || !written.sent => Kind::Undone,
            Ok(Err(error)) if how == How::Statement && is_refused(&error) => Kind::Undone,
            _ => Kind::Unknown,
        };
        self.recorder.write(record);
        Some((value, written.token?))
    }

    async fn try_write(
        &self,
        key: u32,
        value: u64,
        how: How,
        written: &mut Written,
    ) -> Result<(), sqlx::Error> {
        match how {
            How::Perto => {
                let (perto, row, sent) = (&self.perto, &mut written.row, &mut written.sent);
                let writing = perto.write(&self.pool, async |tx| {
                    *row = Some(update(tx, key, value).await?);
                    // From here on it may be committed.
                    *sent = true;
                    Ok::<_, sqlx::Error>(())
                });
                let done = writing.await?;
                written.acked = now_ns();
                written.token = done.token;
            }
            How::Statement => {
                let mut connection = self.pool.acquire().await?;
                written.sent = true;
                written.row = Some(update(&mut connection, key, value).await?);
                written.acked = now_ns();
            }
            How::Announced | How::Plain | How::Aborted => {
                let mut tx = self.pool.begin().await?;
                written.row = Some(update(&mut tx, key, value).await?);
                if how == How::Aborted {
                    return tx.rollback().await;
                }
                let pending = match how {
                    How::Announced => self.perto.pending(&mut tx).await?,
                    _ => None,
                };
                written.sent = true;
                tx.commit().await?;
                written.acked = now_ns();
                if let Some(pending) = pending {
                    written.token = Some(self.perto.announce_pending(pending).await);
                }
            }
        }
        Ok(())
    }

    /// Whoever shows a token reads nothing older than its write.
    async fn read_own(&self, key: u32, written: u64, token: Token) {
        let begun = now_ns();
        let read = self.rows.get_with(&i64::from(key), ReadOptions::at_least(token)).await;
        let ended = now_ns();
        match read {
            Ok(read) => self.answered(key, &read, begun, ended, written),
            Err(error) => self.not_answered(key, &error, begun),
        }
    }
}

/// A read that fails after it waited for polls, or for several loads: that takes longer.
const fn late(key: u32, begun: u64) -> Record {
    Record { within_ms: 1 + VIEW_WITHIN_MS, ..Record::new(Kind::NoAnswer, key, begun) }
}

/// What is known of a write under way.
#[derive(Debug, Default)]
struct Written {
    row: Option<(u64, u32)>,
    /// Whether the server may have been told to commit it.
    sent: bool,
    /// When its commit was acknowledged.
    acked: u64,
    token: Option<Token>,
}

/// Whether the server refused a statement of its own, which then has changed nothing. Where the session or the connection
/// was ended, the commit may have come first.
pub(crate) fn is_refused(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| !code.starts_with("57P") && !code.starts_with("08"))
}

/// The version that the row gets, and the server's timeline.
pub(crate) async fn update(
    connection: &mut sqlx::PgConnection,
    key: u32,
    value: u64,
) -> Result<(u64, u32), sqlx::Error> {
    let (version, timeline): (i64, i32) = sqlx::query_as(UPDATE_ONE)
        .bind(i64::from(key))
        .bind(value.cast_signed())
        .fetch_one(connection)
        .await?;
    Ok((version.cast_unsigned(), timeline.cast_unsigned()))
}

/// The first eight digits of a segment's name are the timeline.
const UPDATE_ONE: &str = "update rows set version = version + 1, value = $2 where id = $1 \
   returning version, ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int";
