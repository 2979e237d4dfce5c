//! L2: what may replace what. The rules run on random histories too, on both implementations at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use perto::sim::{Dice, SimPostgres, SimRemote};
use perto::{Remote, Snapshot};

use crate::support::wait::PATIENCE;
use crate::{eventually, everywhere, redis_url, unique};

/// Longer than any test, and short enough to leave nothing behind.
const TTL: Duration = Duration::from_secs(30);
/// Numbers of transactions are exact below 2^53.
const HIGH: u64 = (1 << 53) - (1 << 20);

/// More than any value here has.
const MOST: usize = 1 << 20;

struct Tier {
    remote: Arc<dyn Remote>,
    prefix: String,
}

async fn simulated(test: impl AsyncFn(Tier)) {
    test(Tier { remote: Arc::new(SimRemote::new(1)), prefix: unique("perto:contract:") }).await;
}

async fn real(test: impl AsyncFn(Tier)) {
    on(&redis_url(), test).await;
}

async fn on(url: &str, test: impl AsyncFn(Tier)) {
    test(redis(url).await).await;
}

async fn redis(url: &str) -> Tier {
    let prefix = unique("perto:contract:");
    let remote = perto::redis::tiers_within(url, "contract", PATIENCE).unwrap().remote;
    remote.ping().await.unwrap();
    Tier { remote, prefix }
}

everywhere!(
    what_was_filled_is_read_back_in_the_order_of_the_keys,
    a_value_ends_with_its_time,
    a_tombstone_ends_with_its_time,
    an_older_value_never_replaces_a_newer_one,
    fills_that_go_together_are_judged_one_by_one,
    a_tombstone_refuses_what_misses_its_transactions,
    a_tombstone_holds_the_two_highest_transactions,
    a_value_that_contains_the_transaction_survives_its_invalidation,
    many_keys_are_invalidated_at_once,
    garbage_is_replaced,
    what_one_has_claimed_nobody_else_gets_until_it_is_let_go_or_over,
    as_many_running_transactions_as_a_value_may_list_are_heeded,
    operations_may_be_dropped_at_any_point,
    concurrent_operations_leave_no_value_that_misses_a_transaction,
);

/// A value with this stamp, as `wire` lays it out. The rules read nothing but the stamp.
fn value(stamp: &str) -> Bytes {
    let numbers =
        |part: &str| -> Vec<u64> { part.split(',').filter_map(|number| number.parse().ok()).collect() };
    let [xmin, xmax, running] = &stamp.split(':').map(numbers).collect::<Vec<_>>()[..] else {
        unreachable!("{stamp:?} is no stamp")
    };
    // Higher numbers too than a snapshot from outside may have: the scripts must not lose a digit.
    encode(&Snapshot::new(xmin[0], xmax[0], running), "payload")
}

fn encode(stamp: &Snapshot, payload: &str) -> Bytes {
    let stamp = stamp.for_wire();
    let mut bytes = BytesMut::from(&b"P\x04V\0"[..]);
    bytes.put_u8(u8::try_from(stamp.running().len()).unwrap());
    bytes.put_bytes(0, 3);
    bytes.put_u64(stamp.xmin());
    bytes.put_u64(stamp.xmax());
    bytes.put_bytes(0, 16);
    stamp.running().iter().for_each(|xid| bytes.put_u32(u32::try_from(xid - stamp.xmin()).unwrap()));
    bytes.put_slice(payload.as_bytes());
    bytes.freeze()
}

/// What lies under a key, as the rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lies {
    Nothing,
    /// The highest transaction and the next.
    Tombstone(u64, u64),
    Value(Snapshot),
    Garbage,
}

fn read(bytes: Option<&Bytes>) -> Lies {
    let Some(bytes) = bytes else { return Lies::Nothing };
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    match bytes.get(..3) {
        Some(b"P\x04T") => Lies::Tombstone(number(8), number(16)),
        Some(b"P\x04V") => {
            let running = bytes[40..].chunks_exact(4).take(usize::from(bytes[4]));
            let running: Vec<u64> = running
                .map(|four| number(8) + u64::from(u32::from_be_bytes(four.try_into().unwrap())))
                .collect();
            Lies::Value(Snapshot::new(number(8), number(16), &running))
        }
        _ => Lies::Garbage,
    }
}

impl Tier {
    fn key(&self, name: &str) -> String {
        format!("{}:{name}", self.prefix)
    }

    async fn fill(&self, name: &str, stamp: &str) -> bool {
        self.remote.fill(&self.key(name), value(stamp), TTL).await.unwrap()
    }

    async fn invalidate(&self, name: &str, xid: u64) {
        self.remote.invalidate(&[self.key(name)], xid, TTL).await.unwrap();
    }

    async fn bytes(&self, name: &str) -> Option<Bytes> {
        self.remote.get(&[self.key(name)], MOST).await.unwrap().remove(0)
    }

    async fn lies(&self, name: &str) -> Lies {
        read(self.bytes(name).await.as_ref())
    }
}

async fn what_was_filled_is_read_back_in_the_order_of_the_keys(tier: Tier) {
    assert!(tier.fill("a", "10:10:").await && tier.fill("b", "20:20:").await);
    let names = ["b", "none", "a", "b"].map(|name| tier.key(name));
    let found = tier.remote.get(&names, MOST).await.unwrap();
    assert_eq!(found, [Some(value("20:20:")), None, Some(value("10:10:")), Some(value("20:20:"))]);
    assert_eq!(tier.remote.get(&names[1..2], MOST).await.unwrap(), [None]);
}

async fn a_value_ends_with_its_time(tier: Tier) {
    tier.remote.fill(&tier.key("k"), value("10:10:"), Duration::from_millis(300)).await.unwrap();
    assert_eq!(tier.bytes("k").await, Some(value("10:10:")));
    eventually("its time is over", async || tier.bytes("k").await.is_none()).await;
    // Nothing is left that would refuse an older one.
    assert!(tier.fill("k", "5:5:").await);
    tier.remote.fill(&tier.key("k"), value("11:11:"), Duration::ZERO).await.unwrap();
    eventually("no time at all is a millisecond", async || tier.bytes("k").await.is_none()).await;
}

async fn a_tombstone_ends_with_its_time(tier: Tier) {
    tier.remote.invalidate(&[tier.key("k")], 10, Duration::from_millis(200)).await.unwrap();
    eventually("its time is over", async || tier.fill("k", "5:5:").await).await;
}

async fn an_older_value_never_replaces_a_newer_one(tier: Tier) {
    // In the order of inclusion.
    let stamps = ["10:10:", "10:13:10,11", "10:13:10", "10:15:10,13", "15:15:", "15:15:"];
    assert!(tier.fill("k", stamps[3]).await);
    for older in &stamps[..=3] {
        assert!(!tier.fill("k", older).await, "{older}");
    }
    assert!(tier.fill("k", stamps[4]).await && !tier.fill("k", stamps[5]).await);
    assert_eq!(tier.bytes("k").await, Some(value(stamps[4])));
}

async fn what_one_has_claimed_nobody_else_gets_until_it_is_let_go_or_over(tier: Tier) {
    let names = ["a", "b", "c"].map(|name| tier.key(name));
    let claim = async |names: &[String]| tier.remote.claim(names, TTL).await.unwrap();
    assert_eq!(claim(&names[..1]).await, [true]);
    assert_eq!(claim(&names).await, [false, true, true]);
    tier.remote.release(&names[1..]).await.unwrap();
    tier.remote.release(&names[1..]).await.unwrap();
    assert_eq!(claim(&names).await, [false, true, true]);
    let short = [tier.key("short")];
    assert_eq!(tier.remote.claim(&short, Duration::from_millis(200)).await.unwrap(), [true]);
    eventually("its time is over", async || claim(&short).await == [true]).await;
}

async fn fills_that_go_together_are_judged_one_by_one(tier: Tier) {
    assert!(tier.fill("newer", "20:20:").await);
    tier.invalidate("buried", 10).await;
    let fills = ["newer", "buried", "none", "none"].map(|name| (tier.key(name), value("10:10:"), TTL));
    tier.remote.fill_many(&fills).await.unwrap();
    assert_eq!(tier.bytes("newer").await, Some(value("20:20:")));
    assert_eq!(tier.lies("buried").await, Lies::Tombstone(10, 0));
    assert_eq!(tier.bytes("none").await, Some(value("10:10:")));
    tier.remote.fill_many(&[(tier.key("buried"), value("11:11:"), TTL)]).await.unwrap();
    assert_eq!(tier.bytes("buried").await, Some(value("11:11:")));
}

async fn a_tombstone_refuses_what_misses_its_transactions(tier: Tier) {
    for base in [100, HIGH] {
        let name = base.to_string();
        let at = |stamp: &str| -> String {
            let shift =
                |number: &str| number.parse::<u64>().map_or(String::new(), |n| (base + n).to_string());
            let parts: Vec<String> = stamp
                .split(':')
                .map(|part| part.split(',').map(shift).collect::<Vec<_>>().join(","))
                .collect();
            parts.join(":")
        };
        tier.invalidate(&name, base + 20).await;
        for missing in ["10:10:", "20:20:", "10:21:10,20", "15:30:15,20"] {
            assert!(!tier.fill(&name, &at(missing)).await, "{missing}");
        }
        assert_eq!(tier.lies(&name).await, Lies::Tombstone(base + 20, 0));
        assert!(tier.fill(&name, &at("10:21:10")).await, "beside an older transaction that runs");
    }
}

async fn a_tombstone_holds_the_two_highest_transactions(tier: Tier) {
    let order = [
        (20, (20, 0)),
        (20, (20, 0)),
        (15, (20, 15)),
        (10, (20, 15)),
        (18, (20, 18)),
        (30, (30, 20)),
        (20, (30, 20)),
    ];
    for (xid, (hi, lo)) in order {
        tier.invalidate("k", xid).await;
        assert_eq!(tier.lies("k").await, Lies::Tombstone(hi, lo), "after {xid}");
    }
    // Contains the highest, but not the next.
    assert!(!tier.fill("k", "20:31:20").await);
    assert!(tier.fill("k", "21:31:21").await);
}

async fn a_value_that_contains_the_transaction_survives_its_invalidation(tier: Tier) {
    assert!(tier.fill("k", "10:20:10,15").await);
    for contained in [5, 9, 11, 14, 19] {
        tier.invalidate("k", contained).await;
        assert_eq!(tier.bytes("k").await, Some(value("10:20:10,15")), "{contained}");
    }
    for missing in [10, 15, 20, 25] {
        tier.remote.fill(&tier.key(&missing.to_string()), value("10:20:10,15"), TTL).await.unwrap();
        tier.invalidate(&missing.to_string(), missing).await;
        assert_eq!(tier.lies(&missing.to_string()).await, Lies::Tombstone(missing, 0));
    }
}

async fn many_keys_are_invalidated_at_once(tier: Tier) {
    let names: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    for name in &names[..10] {
        tier.fill(name, "10:10:").await;
    }
    let keys: Vec<String> = names.iter().map(|name| tier.key(name)).collect();
    tier.remote.invalidate(&keys, 10, TTL).await.unwrap();
    let found = tier.remote.get(&keys, MOST).await.unwrap();
    assert!(found.iter().all(|bytes| read(bytes.as_ref()) == Lies::Tombstone(10, 0)));
}

async fn garbage_is_replaced(tier: Tier) {
    let garbage: [&[u8]; 4] = [
        &[0; 24],
        &[0xFF; 400],
        b"P\x05V of another version, and long enough for all",
        b"P\x04X what kind is this, that is long enough",
    ];
    for (at, bytes) in garbage.iter().enumerate() {
        let [filled, invalidated] = [format!("f{at}"), format!("i{at}")];
        for name in [&filled, &invalidated] {
            assert!(tier.remote.fill(&tier.key(name), Bytes::copy_from_slice(bytes), TTL).await.unwrap());
            assert_eq!(tier.bytes(name).await.as_deref(), Some(*bytes));
        }
        assert!(tier.fill(&filled, "10:10:").await);
        tier.invalidate(&invalidated, 20).await;
        assert_eq!(tier.lies(&invalidated).await, Lies::Tombstone(20, 0));
    }
}

async fn as_many_running_transactions_as_a_value_may_list_are_heeded(tier: Tier) {
    let running: Vec<u64> = (0..perto::MAX_RUNNING as u64).map(|n| 1_000 + 3 * n).collect();
    let stamp = Snapshot::new(1_000, 5_000, &running);
    let last = *running.last().unwrap();
    for (name, xid, stays) in
        [("in", last - 1, true), ("last", last, false), ("first", 1_000, false), ("after", last + 1, true)]
    {
        tier.remote.fill(&tier.key(name), encode(&stamp, "payload"), TTL).await.unwrap();
        tier.invalidate(name, xid).await;
        assert_eq!(tier.lies(name).await == Lies::Value(stamp.clone()), stays, "{name}");
        let tombstone = format!("{name} first");
        tier.invalidate(&tombstone, xid).await;
        assert_eq!(
            tier.remote.fill(&tier.key(&tombstone), encode(&stamp, ""), TTL).await.unwrap(),
            stays,
            "{name}"
        );
    }
}

async fn operations_may_be_dropped_at_any_point(tier: Tier) {
    for number in 0..100_u64 {
        let limit = Duration::from_micros(number);
        let key = [tier.key("k")];
        drop(tokio::time::timeout(limit, tier.remote.get(&key, MOST)).await);
        drop(tokio::time::timeout(limit, tier.remote.fill(&key[0], value("10:10:"), TTL)).await);
        drop(tokio::time::timeout(limit, tier.remote.invalidate(&key, 5, TTL)).await);
    }
    tier.remote.ping().await.unwrap();
    tier.invalidate("k", 200).await;
    assert_eq!(tier.lies("k").await, Lies::Tombstone(200, 0));
    assert!(tier.fill("other", "10:10:").await);
}

/// What happened to one key of a database: who wrote it, and what loads read.
struct History {
    writes: Vec<u64>,
    loads: Vec<Snapshot>,
}

fn history(dice: &mut Dice) -> History {
    let postgres = SimPostgres::new();
    let (mut open, mut writes, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..4 + dice.below(30) {
        match dice.below(4) {
            0 => {
                let mut transaction = postgres.begin();
                transaction.xid();
                open.push(transaction);
            }
            1 | 2 if !open.is_empty() => {
                let mut transaction = open.swap_remove(dice.index(open.len()));
                match dice.below(3) {
                    // It wrote the key, and committed; or another; or nothing came of it.
                    0 | 1 if writes.len() < 6 => {
                        writes.push(transaction.xid());
                        transaction.commit().unwrap();
                    }
                    2 => drop(transaction.commit()),
                    _ => transaction.rollback(),
                }
            }
            _ => loads.push(postgres.snapshot()),
        }
    }
    History { writes, loads }
}

/// The operations of a history on L2, in any order, some twice.
fn operations(dice: &mut Dice, history: &History) -> Vec<Result<Snapshot, u64>> {
    let fills = history.loads.iter().map(|stamp| Ok(stamp.clone()));
    let mut all: Vec<_> = fills.chain(history.writes.iter().map(|xid| Err(*xid))).collect();
    for _ in 0..dice.below(4) {
        if !all.is_empty() {
            all.push(all[dice.index(all.len())].clone());
        }
    }
    for at in (1..all.len()).rev() {
        all.swap(at, dice.index(at + 1));
    }
    all
}

fn converged(lies: &Lies, history: &History) -> bool {
    match lies {
        Lies::Value(stamp) => history.writes.iter().all(|xid| stamp.contains(*xid)),
        _ => true,
    }
}

async fn concurrent_operations_leave_no_value_that_misses_a_transaction(tier: Tier) {
    let mut dice = Dice::new(3);
    for round in 0..100 {
        let history = history(&mut dice);
        let name = round.to_string();
        let all = operations(&mut dice, &history).into_iter().map(async |operation| match operation {
            Ok(stamp) => drop(tier.remote.fill(&tier.key(&name), encode(&stamp, ""), TTL).await.unwrap()),
            Err(xid) => tier.invalidate(&name, xid).await,
        });
        futures_util::future::join_all(all).await;
        assert!(converged(&tier.lies(&name).await, &history), "round {round}: {:?}", tier.lies(&name).await);
    }
}

/// The differential test: after each operation both must hold the same bytes.
#[tokio::test]
async fn both_answer_random_histories_alike_and_leave_no_value_that_misses_a_transaction() {
    let (real, simulated) = (redis(&redis_url()).await, SimRemote::new(1));
    let mut dice = Dice::new(7);
    let (mut values, mut tombstones, mut refused) = (0, 0, 0);
    for round in 0..120 {
        let history = history(&mut dice);
        let (name, key) = (round.to_string(), real.key(&round.to_string()));
        // Truncated and collapsed stamps answer alike too, though they need not converge.
        let whole = dice.chance(70);
        for operation in operations(&mut dice, &history) {
            match operation {
                Ok(stamp) => {
                    let cut = match dice.below(3) {
                        _ if whole => stamp,
                        0 => Snapshot::new(stamp.xmin(), stamp.xmax(), &[]),
                        _ => Snapshot::new(
                            stamp.xmin(),
                            stamp.xmax(),
                            &stamp.running()[..stamp.running().len().min(1)],
                        ),
                    };
                    let bytes = encode(&cut, "payload");
                    let put = real.remote.fill(&key, bytes.clone(), TTL).await.unwrap();
                    assert_eq!(simulated.fill(&key, bytes, TTL).await.unwrap(), put, "round {round}: {cut}");
                    refused += u32::from(!put);
                }
                Err(xid) => {
                    real.invalidate(&name, xid).await;
                    simulated.invalidate(std::slice::from_ref(&key), xid, TTL).await.unwrap();
                }
            }
            assert_eq!(simulated.peek(&key), real.bytes(&name).await, "round {round}");
        }
        let lies = real.lies(&name).await;
        assert!(
            !whole || converged(&lies, &history),
            "round {round}: {lies:?}, written by {:?}",
            history.writes
        );
        match lies {
            Lies::Value(_) => values += 1,
            Lies::Tombstone(..) => tombstones += 1,
            _ => {}
        }
    }
    assert!(
        values > 10 && tombstones > 10 && refused > 50,
        "{values} values, {tombstones} tombstones, {refused} refused"
    );
}
