//! The log: nothing that commits is ever missed, in whatever order it does.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use perto::sim::{Dice, SimPostgres, SimTransaction};
use perto::{Change, Log, MAX_POLL_BYTES, MAX_POLL_ROWS, Poll, Row, Snapshot, Switching, Tier, TierMode};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Postgres, Transaction};

use crate::{both, database_url, unique};

const CACHE: &str = "user";
const LIMIT: Duration = Duration::from_secs(10);

/// A log, and a way to write what triggers write.
struct Journal {
    log: Arc<dyn Log>,
    engine: Engine,
}

enum Engine {
    Simulated(SimPostgres),
    Real { pool: PgPool, schema: String },
}

enum Writer {
    Simulated(SimTransaction),
    Real(Transaction<'static, Postgres>, String),
}

async fn simulated(test: impl AsyncFn(&Journal)) {
    let postgres = SimPostgres::new();
    test(&Journal { log: Arc::new(postgres.log(1)), engine: Engine::Simulated(postgres) }).await;
}

async fn real(test: impl AsyncFn(&Journal)) {
    let (url, schema) = (database_url(), unique("ct"));
    let mut connection = PgConnection::connect(&url).await.unwrap();
    perto::postgres::migrate(&mut connection, &schema).await.unwrap();
    let journal = Journal {
        log: perto::postgres::log(&url, &schema).unwrap(),
        engine: Engine::Real { pool: PgPool::connect(&url).await.unwrap(), schema: schema.clone() },
    };
    let tested = AssertUnwindSafe(test(&journal)).catch_unwind().await;
    connection.execute(AssertSqlSafe(format!("drop schema {schema} cascade"))).await.unwrap();
    if let Err(panic) = tested {
        std::panic::resume_unwind(panic);
    }
}

both!(
    the_first_poll_brings_all_that_is_retained,
    a_poll_brings_what_is_new_and_nothing_else,
    rows_of_a_running_transaction_come_once_it_has_committed,
    a_rolled_back_row_never_comes,
    a_transaction_that_commits_behind_later_numbers_is_not_skipped,
    interleaved_transactions_lose_no_row_and_double_none,
    what_is_appended_comes_with_its_number,
    what_is_appended_tells_the_epoch_that_the_database_is_in,
    any_text_may_be_a_key,
    rows_of_other_caches_are_left_out_and_all_else_is_as_if_they_came,
    a_poll_of_no_cache_tells_all_but_rows,
    more_rows_than_a_poll_brings_are_none,
    a_row_without_keys_hides_no_row_behind_the_limit,
    behind_more_rows_of_other_caches_than_a_poll_looks_at_no_row_is_overlooked,
    more_bytes_than_a_poll_brings_are_none,
    what_a_new_epoch_declares_trimmed_is_not_brought,
    trimmed_rows_are_contained_in_the_horizon_and_running_ones_stay,
    the_epoch_is_the_same_for_all_until_the_database_crashes,
    a_poll_may_be_dropped_at_any_point,
    a_poll_tells_what_is_switched_until_it_is_over,
);

impl Journal {
    async fn begin(&self) -> Writer {
        match &self.engine {
            Engine::Simulated(postgres) => Writer::Simulated(postgres.begin()),
            Engine::Real { pool, schema } => Writer::Real(pool.begin().await.unwrap(), schema.clone()),
        }
    }

    /// One row, committed. Returns its transaction.
    async fn write(&self, key: &str) -> u64 {
        let mut writer = self.begin().await;
        let xid = writer.touch(key).await;
        writer.commit().await;
        xid
    }

    /// So many rows of a cache, each of one key.
    async fn bulk_of(&self, cache: &str, rows: usize) {
        match &self.engine {
            Engine::Simulated(postgres) => {
                let mut transaction = postgres.begin();
                (0..rows).for_each(|row| transaction.touch(cache, &row.to_string()));
                transaction.commit().unwrap();
            }
            Engine::Real { pool, schema } => {
                let insert = format!(
                    "insert into {schema}.invalidation (cache, keys) \
                     select '{cache}', array[n::text] from generate_series(1, {rows}) n"
                );
                pool.execute(AssertSqlSafe(insert)).await.unwrap();
            }
        }
    }

    async fn poll(&self, cursor: Option<&Snapshot>) -> Poll {
        self.log.poll(cursor, &[CACHE], LIMIT).await.unwrap()
    }

    async fn rows(&self, cursor: Option<&Snapshot>) -> Vec<Row> {
        self.poll(cursor).await.rows.unwrap()
    }

    async fn restart(&self) {
        match &self.engine {
            Engine::Simulated(postgres) => postgres.restart(),
            // The token is of another start of the server.
            Engine::Real { pool, schema } => {
                pool.execute(AssertSqlSafe(format!("update {schema}.boot set origin = 'before'")))
                    .await
                    .unwrap();
            }
        }
    }

    async fn crash(&self) {
        match &self.engine {
            Engine::Simulated(postgres) => drop(postgres.crash(0)),
            // What a crash leaves of an unlogged table.
            Engine::Real { pool, schema } => {
                pool.execute(AssertSqlSafe(format!("truncate {schema}.boot"))).await.unwrap();
            }
        }
    }
}

impl Writer {
    /// A row for one key; returns the transaction's number.
    async fn touch(&mut self, key: &str) -> u64 {
        match self {
            Self::Simulated(transaction) => {
                transaction.touch(CACHE, key);
                transaction.xid()
            }
            Self::Real(transaction, schema) => {
                let insert = format!(
                    "insert into {schema}.invalidation (cache, keys) values ($1, array[$2]) returning xid::text"
                );
                let xid: String = sqlx::query_scalar(AssertSqlSafe(insert))
                    .bind(CACHE)
                    .bind(key)
                    .fetch_one(&mut **transaction)
                    .await
                    .unwrap();
                xid.parse().unwrap()
            }
        }
    }

    /// So many rows at once.
    async fn bulk(&mut self, rows: usize) {
        match self {
            Self::Simulated(transaction) => {
                (0..rows).for_each(|row| transaction.touch(CACHE, &row.to_string()));
            }
            Self::Real(transaction, schema) => {
                let insert = format!(
                    "insert into {schema}.invalidation (cache, keys) \
                     select '{CACHE}', array_agg(n::text) from generate_series(1, {rows}) n group by n / 500"
                );
                transaction.execute(AssertSqlSafe(insert)).await.unwrap();
            }
        }
    }

    async fn commit(self) {
        match self {
            Self::Simulated(transaction) => drop(transaction.commit().unwrap()),
            Self::Real(transaction, _) => transaction.commit().await.unwrap(),
        }
    }

    async fn rollback(self) {
        match self {
            Self::Simulated(transaction) => transaction.rollback(),
            Self::Real(transaction, _) => transaction.rollback().await.unwrap(),
        }
    }
}

fn row(xid: u64, key: &str) -> Row {
    Row { xid, cache: CACHE.to_owned(), key: Some(key.to_owned()), traceparent: None, fault: None }
}

async fn the_first_poll_brings_all_that_is_retained(journal: &Journal) {
    let empty = journal.poll(None).await;
    assert_eq!(empty.rows, Some(vec![]));
    let xids = [journal.write("a").await, journal.write("b").await];
    let poll = journal.poll(None).await;
    assert_eq!(poll.rows.unwrap(), [row(xids[0], "a"), row(xids[1], "b")]);
    assert!(xids.iter().all(|xid| poll.snapshot.contains(*xid) && !empty.snapshot.contains(*xid)));
    assert!(xids.iter().all(|xid| !poll.trimmed.contains(*xid)), "nothing of this was trimmed");
    assert!(poll.snapshot.rank() > empty.snapshot.rank() && empty.snapshot.rank() >= poll.trimmed.rank());
}

async fn a_poll_brings_what_is_new_and_nothing_else(journal: &Journal) {
    journal.write("before").await;
    let mut cursor = journal.poll(None).await.snapshot;
    for round in 0..5 {
        assert_eq!(journal.rows(Some(&cursor)).await, []);
        let key = round.to_string();
        let xid = journal.write(&key).await;
        let poll = journal.poll(Some(&cursor)).await;
        assert_eq!(poll.rows.unwrap(), [row(xid, &key)]);
        cursor = poll.snapshot;
    }
}

async fn rows_of_a_running_transaction_come_once_it_has_committed(journal: &Journal) {
    let first = journal.poll(None).await.snapshot;
    let mut writer = journal.begin().await;
    let xid = writer.touch("a").await;
    // Others end above it, so that it is listed as running.
    journal.write("other").await;
    let second = journal.poll(Some(&first)).await;
    assert!(!second.snapshot.contains(xid));
    assert!(second.rows.unwrap().iter().all(|row| row.xid != xid));
    writer.touch("b").await;
    assert!(journal.rows(Some(&second.snapshot)).await.is_empty());
    writer.commit().await;
    let third = journal.poll(Some(&second.snapshot)).await;
    assert!(third.snapshot.contains(xid));
    assert_eq!(third.rows.unwrap(), [row(xid, "a"), row(xid, "b")]);
}

async fn a_rolled_back_row_never_comes(journal: &Journal) {
    let cursor = journal.poll(None).await.snapshot;
    let mut writer = journal.begin().await;
    let xid = writer.touch("a").await;
    journal.write("other").await;
    writer.rollback().await;
    let poll = journal.poll(Some(&cursor)).await;
    assert_eq!(poll.rows.unwrap().len(), 1);
    assert!(poll.snapshot.contains(xid), "it has ended");
    assert_eq!(journal.rows(None).await.len(), 1);
}

async fn a_transaction_that_commits_behind_later_numbers_is_not_skipped(journal: &Journal) {
    let mut cursor = journal.poll(None).await.snapshot;
    let mut slow = journal.begin().await;
    let xid = slow.touch("slow").await;
    for _ in 0..3 {
        let later = journal.write("later").await;
        assert!(later > xid);
        let poll = journal.poll(Some(&cursor)).await;
        assert_eq!(poll.rows.unwrap(), [row(later, "later")]);
        cursor = poll.snapshot;
    }
    slow.commit().await;
    assert_eq!(journal.rows(Some(&cursor)).await, [row(xid, "slow")]);
}

async fn interleaved_transactions_lose_no_row_and_double_none(journal: &Journal) {
    let mut dice = Dice::new(11);
    let first = journal.poll(None).await;
    let (mut cursor, epoch) = (first.snapshot, first.epoch);
    let (mut open, mut committed, mut seen) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let mut overtaken = 0;
    for round in 0..400 {
        match dice.below(5) {
            0 | 1 if open.len() < 8 => {
                let mut writer = journal.begin().await;
                let xid = writer.touch(&round.to_string()).await;
                open.push((xid, writer));
            }
            2 | 3 if !open.is_empty() => {
                let (xid, writer) = open.swap_remove(dice.index(open.len()));
                if dice.chance(20) {
                    writer.rollback().await;
                } else {
                    writer.commit().await;
                    overtaken += u32::from(committed.last().is_some_and(|last| *last > xid));
                    committed.insert(xid);
                }
            }
            _ => {
                let poll = journal.poll(Some(&cursor)).await;
                assert_eq!(poll.epoch, epoch);
                for row in poll.rows.unwrap() {
                    assert!(poll.snapshot.contains(row.xid) && !cursor.contains(row.xid));
                    assert!(seen.insert(row.xid), "{} came twice", row.xid);
                }
                assert_eq!(seen, committed, "round {round}");
                assert!(poll.snapshot.rank() >= cursor.rank());
                cursor = poll.snapshot;
            }
        }
    }
    assert!(overtaken > 20, "{overtaken} commits out of order show something");
}

async fn what_is_appended_comes_with_its_number(journal: &Journal) {
    let cursor = journal.poll(None).await.snapshot;
    let keys = Change { cache: CACHE.to_owned(), keys: Some(vec!["a".to_owned(), "b".to_owned()]) };
    let whole = Change { cache: "other".to_owned(), keys: None };
    let first = journal.log.append(&keys).await.unwrap().xid;
    let second = journal.log.append(&whole).await.unwrap().xid;
    let poll = journal.log.poll(Some(&cursor), &[CACHE, "other"], LIMIT).await.unwrap();
    assert!(first < second && poll.snapshot.contains(second));
    let cleared = Row { xid: second, cache: "other".to_owned(), key: None, traceparent: None, fault: None };
    assert_eq!(poll.rows.unwrap(), [row(first, "a"), row(first, "b"), cleared]);
}

async fn what_is_appended_tells_the_epoch_that_the_database_is_in(journal: &Journal) {
    let clear = Change { cache: CACHE.to_owned(), keys: None };
    let before = journal.log.append(&clear).await.unwrap();
    assert_eq!(journal.poll(None).await.epoch, before.epoch);
    journal.crash().await;
    // Before anybody has polled.
    let after = journal.log.append(&clear).await.unwrap();
    assert_ne!(after.epoch, before.epoch);
    let poll = journal.poll(None).await;
    assert_eq!(poll.epoch, after.epoch);
    assert!(poll.snapshot.contains(after.xid) && after.xid > before.xid);
    assert!(poll.trimmed.contains(after.xid) || poll.rows.unwrap().iter().any(|row| row.xid == after.xid));
}

async fn any_text_may_be_a_key(journal: &Journal) {
    let long = "k".repeat(perto::MAX_KEY_BYTES);
    let keys =
        ["", " ", "NULL", "null", "a,b", "{a}", "\"", "'", "\\", "a\nb", "ключ", "🔑", "$1", "--", &long];
    let cursor = journal.poll(None).await.snapshot;
    let change = Change { cache: CACHE.to_owned(), keys: Some(keys.map(str::to_owned).to_vec()) };
    journal.log.append(&change).await.unwrap();
    let came: Vec<String> = journal.rows(Some(&cursor)).await.into_iter().filter_map(|row| row.key).collect();
    assert_eq!(came, keys);
}

async fn more_rows_than_a_poll_brings_are_none(journal: &Journal) {
    let cursor = journal.poll(None).await.snapshot;
    let mut writer = journal.begin().await;
    writer.bulk(MAX_POLL_ROWS).await;
    writer.commit().await;
    assert_eq!(journal.rows(Some(&cursor)).await.len(), MAX_POLL_ROWS);
    let one_more = journal.write("one more").await;
    let poll = journal.poll(Some(&cursor)).await;
    assert!(poll.rows.is_none() && poll.snapshot.contains(one_more));
    assert!(journal.poll(None).await.rows.is_none());
    assert_eq!(journal.rows(Some(&poll.snapshot)).await, []);
}

/// Each of two instances has the rows of what it declares, in order, and both have the same position.
async fn rows_of_other_caches_are_left_out_and_all_else_is_as_if_they_came(journal: &Journal) {
    let whole = |cache: &str| Change { cache: cache.to_owned(), keys: None };
    let of = |row: &Row| (row.xid, row.cache.clone());
    let mut cursor = journal.poll(None).await.snapshot;
    for round in 0..8 {
        let slow = (round % 2 == 0).then_some(journal.begin().await);
        let mut kept = Vec::new();
        if let Some(mut slow) = slow {
            kept.push((slow.touch("slow").await, CACHE.to_owned()));
            // Committed behind a later one of another cache.
            journal.log.append(&whole("other")).await.unwrap();
            let before = journal.poll(Some(&cursor)).await;
            assert_eq!(before.rows.as_deref(), Some(&[][..]));
            cursor = before.snapshot;
            slow.commit().await;
        }
        let other = journal.log.append(&whole("other")).await.unwrap().xid;
        kept.push((journal.write("a").await, CACHE.to_owned()));
        kept.push((journal.log.append(&whole(CACHE)).await.unwrap().xid, CACHE.to_owned()));
        let poll = journal.poll(Some(&cursor)).await;
        let mut came: Vec<_> = poll.rows.unwrap().iter().map(of).collect();
        came.sort_unstable();
        assert_eq!(came, kept);
        let beside = journal.log.poll(Some(&cursor), &["other", "third"], LIMIT).await.unwrap();
        assert_eq!(beside.rows.unwrap().iter().map(of).collect::<Vec<_>>(), [(other, "other".to_owned())]);
        assert!(poll.snapshot.contains(other), "its position is behind rows that were left out");
        cursor = poll.snapshot;
        assert_eq!(journal.rows(Some(&cursor)).await, []);
    }
    let all = journal.rows(None).await;
    assert!(all.len() == 20 && all.iter().all(|row| row.cache == CACHE), "a replay leaves them out, too");
}

async fn a_poll_of_no_cache_tells_all_but_rows(journal: &Journal) {
    let first = journal.log.poll(None, &[], LIMIT).await.unwrap();
    let xid = journal.write("a").await;
    journal.log.switch(&Switching::of(CACHE, Tier::Remote, TierMode::Off)).await.unwrap();
    let poll = journal.log.poll(Some(&first.snapshot), &[], LIMIT).await.unwrap();
    assert_eq!((poll.rows, poll.epoch), (Some(vec![]), first.epoch));
    assert!(poll.snapshot.contains(xid) && journal.log.switches().len() == 1);
    journal.crash().await;
    assert_ne!(journal.log.poll(Some(&first.snapshot), &[], LIMIT).await.unwrap().epoch, first.epoch);
}

/// It is a row that was looked at, and is none that is brought.
async fn a_row_without_keys_hides_no_row_behind_the_limit(journal: &Journal) {
    let cursor = journal.poll(None).await.snapshot;
    let none = Change { cache: CACHE.to_owned(), keys: Some(Vec::new()) };
    journal.log.append(&none).await.unwrap();
    journal.bulk_of(CACHE, MAX_POLL_ROWS).await;
    let behind = journal.write("behind").await;
    let poll = journal.poll(Some(&cursor)).await;
    assert!(poll.rows.is_none() && poll.snapshot.contains(behind));
    assert!(journal.poll(None).await.rows.is_none());
}

/// A limit that ends the look must not end it silently.
async fn behind_more_rows_of_other_caches_than_a_poll_looks_at_no_row_is_overlooked(journal: &Journal) {
    let cursor = journal.poll(None).await.snapshot;
    journal.bulk_of("other", MAX_POLL_ROWS).await;
    assert_eq!(journal.rows(Some(&cursor)).await, []);
    let xid = journal.write("behind").await;
    let poll = journal.poll(Some(&cursor)).await;
    assert!(poll.rows.is_none() && poll.snapshot.contains(xid));
    assert!(journal.poll(None).await.rows.is_none());
    let next = journal.write("next").await;
    assert_eq!(journal.rows(Some(&poll.snapshot)).await, [row(next, "next")]);
}

async fn more_bytes_than_a_poll_brings_are_none(journal: &Journal) {
    let cursor = journal.poll(None).await.snapshot;
    let long = "k".repeat(1 << 20);
    for _ in 0..MAX_POLL_BYTES >> 20 {
        journal.write(&long).await;
    }
    let poll = journal.poll(Some(&cursor)).await;
    assert!(poll.rows.is_none(), "the names of the caches are more than nothing");
    assert!(journal.poll(None).await.rows.is_none());
    let last = journal.write(&long).await;
    assert_eq!(journal.rows(Some(&poll.snapshot)).await, [row(last, &long)]);
}

async fn what_a_new_epoch_declares_trimmed_is_not_brought(journal: &Journal) {
    let before = journal.write("before").await;
    journal.restart().await;
    let first = journal.poll(None).await;
    assert!(first.trimmed.contains(before) && first.rows.unwrap().is_empty());
    let after = journal.write("after").await;
    assert_eq!(journal.rows(None).await, [row(after, "after")]);
}

async fn trimmed_rows_are_contained_in_the_horizon_and_running_ones_stay(journal: &Journal) {
    let before = journal.poll(None).await;
    let gone = journal.write("gone").await;
    let mut running = journal.begin().await;
    let stays = running.touch("stays").await;
    let also_gone = journal.write("gone too").await;
    journal.log.trim(Duration::from_hours(1)).await.unwrap();
    assert_eq!(journal.rows(None).await.len(), 2, "nothing is an hour old");
    journal.log.trim(Duration::ZERO).await.unwrap();
    running.commit().await;
    let poll = journal.poll(None).await;
    assert_eq!(poll.rows.unwrap(), [row(stays, "stays")]);
    // An upper bound: it may claim what still ran, for that row is there and is applied.
    assert!(poll.trimmed.contains(gone) && poll.trimmed.contains(also_gone));
    assert!(
        before.snapshot.rank() < poll.trimmed.rank(),
        "who has read as far as before has missed something"
    );
    assert!(poll.snapshot.rank() >= poll.trimmed.rank(), "who reads now has not");
}

async fn the_epoch_is_the_same_for_all_until_the_database_crashes(journal: &Journal) {
    let first = journal.poll(None).await;
    assert_eq!(journal.poll(Some(&first.snapshot)).await.epoch, first.epoch);
    journal.write("a").await;
    assert_eq!(journal.poll(None).await.epoch, first.epoch);
    journal.crash().await;
    let after = journal.poll(Some(&first.snapshot)).await;
    assert_ne!(after.epoch, first.epoch);
    assert_eq!(journal.poll(None).await.epoch, after.epoch);
    // Rows from before may stay: they are invalidations like any other.
    let again = journal.poll(None).await;
    let xid = journal.write("b").await;
    assert_eq!(journal.rows(Some(&again.snapshot)).await, [row(xid, "b")]);
}

async fn a_poll_may_be_dropped_at_any_point(journal: &Journal) {
    let mut cursor = journal.poll(None).await.snapshot;
    for round in 0..30_u64 {
        let key = round.to_string();
        let xid = journal.write(&key).await;
        let limit = Duration::from_micros(round * 40);
        drop(tokio::time::timeout(limit, journal.log.poll(Some(&cursor), &[CACHE], LIMIT)).await);
        let poll = journal.poll(Some(&cursor)).await;
        assert_eq!(poll.rows.unwrap(), [row(xid, &key)]);
        cursor = poll.snapshot;
    }
}

/// What one poll tells is what there is until the next one, and outlasts a crash.
async fn a_poll_tells_what_is_switched_until_it_is_over(journal: &Journal) {
    let told = async || {
        journal.poll(None).await;
        let switches = journal.log.switches();
        let said =
            |switch: &perto::Switch| format!("{:?} {} {}", switch.cache.as_deref(), switch.tier, switch.mode);
        switches.iter().map(said).collect::<Vec<_>>()
    };
    assert!(told().await.is_empty());
    let off = Switching::of(CACHE, Tier::Remote, TierMode::Off).because("a \"test\"; of '\\").by("ana");
    journal.log.switch(&off).await.unwrap();
    assert!(journal.log.switches().is_empty(), "no poll has told");
    assert_eq!(told().await, ["Some(\"user\") l2 off"]);
    let switch = journal.log.switches()[0].clone();
    assert_eq!(
        (switch.reason.as_str(), switch.by.as_str(), switch.until),
        ("a \"test\"; of '\\", "ana", None)
    );
    // The last one counts, and each tier is by itself.
    let read_only = Switching::of(CACHE, Tier::Remote, TierMode::ReadOnly).by("bo");
    journal.log.switch(&read_only.lasting(Duration::from_secs(1))).await.unwrap();
    journal.log.switch(&Switching::of_all(Tier::Local, TierMode::Off)).await.unwrap();
    journal.crash().await;
    let all = ["None l1 off", "Some(\"user\") l2 read-only"];
    assert_eq!(told().await, all);
    assert!(journal.log.switches()[1].until.is_some());
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(journal.log.switches().len(), 2, "no poll has told");
    assert_eq!(told().await, &all[..1]);
    journal.log.switch(&Switching::of_all(Tier::Local, TierMode::On)).await.unwrap();
    journal.log.switch(&Switching::of_all(Tier::Local, TierMode::On)).await.unwrap();
    assert!(told().await.is_empty());
    let senseless = Switching::of(CACHE, Tier::Load, TierMode::Off);
    assert!(journal.log.switch(&senseless).await.is_err());
}
