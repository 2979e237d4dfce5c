//! Values that depend on no row, and caches that stay out of L2.
//!
//! The rule's value is its version and its key: a stale one shows. Whoever changes the version invalidates after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perto::sim::{Node, Sim, SimLoader};
use perto::{
    Cache, CacheBuilder, Change, Freshness, Load, Loaded, Outage, Perto, ReadOptions, State, Tier, Token,
};

use crate::ring::{BOUND, POLL, Ring, eventually, ms, some, spawn};

const CACHE: &str = "rule";

struct Calculator {
    sim: Sim,
    version: Arc<AtomicU64>,
    members: Vec<Member>,
}

struct Member {
    node: Node,
    perto: Perto,
    rules: Cache<u64, u64>,
    /// For its gates: where a load has computed and does not return yet.
    gates: SimLoader,
}

impl Calculator {
    async fn of(count: usize) -> Self {
        let calculator = Self::stopped(count, |cache| cache);
        for member in &calculator.members {
            member.perto.start().await.unwrap();
        }
        // Subscriptions stand.
        ms(300).await;
        calculator
    }

    fn stopped(count: usize, cache: impl Fn(CacheBuilder<u64, u64>) -> CacheBuilder<u64, u64>) -> Self {
        let (sim, version) = (Sim::new(1), Arc::new(AtomicU64::new(1)));
        let member = |_| {
            let (node, gates) = (sim.node(), sim.postgres.loader(CACHE));
            let perto = node.builder("ring").build().unwrap();
            let (rows, version) = (gates.function::<u64, u64>(), Arc::clone(&version));
            let loader = move |load: Load<u64>| {
                let (version, passing) = (version.load(Ordering::SeqCst), rows(load.clone()));
                async move {
                    drop(passing.await);
                    Ok::<_, std::io::Error>(load.keys.into_iter().fold(Loaded::computed(), |loaded, key| {
                        if key == 404 { loaded } else { loaded.with(key, version * 1_000 + key) }
                    }))
                }
            };
            let rules = cache(perto.cache(CACHE)).loader(loader).unwrap();
            Member { node, perto, rules, gates }
        };
        let members = (0..count).map(member).collect();
        Self { sim, version, members }
    }

    /// From now on values are others. Invalidating is next.
    fn change(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    async fn end(self) {
        for member in &self.members {
            assert_eq!(member.rules.flights(), 0, "a flight was leaked");
            member.perto.shutdown().await;
        }
    }
}

impl Member {
    async fn fresh(&self, key: u64) -> (Option<u64>, Tier) {
        self.fresh_with(key, ReadOptions::default()).await
    }

    async fn fresh_with(&self, key: u64, options: ReadOptions) -> (Option<u64>, Tier) {
        let read = self.rules.get_with(&key, options).await.unwrap();
        assert_eq!(read.freshness, Freshness::Fresh);
        (read.value().copied(), read.tier)
    }

    fn loads(&self) -> u64 {
        self.rules.stats().loads
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_computed_is_cached_like_any_value_and_so_is_that_there_is_none() {
    let calculator = Calculator::of(2).await;
    let [one, other] = &calculator.members[..] else { unreachable!() };
    assert_eq!(one.fresh(7).await, (Some(1_007), Tier::Load));
    assert_eq!(one.fresh(7).await, (Some(1_007), Tier::Local));
    assert_eq!((one.fresh(404).await, one.fresh(404).await), ((None, Tier::Load), (None, Tier::Local)));
    ms(1).await;
    assert_eq!(other.fresh(7).await, (Some(1_007), Tier::Remote), "by its stamp");
    calculator.end().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_clear_what_is_computed_is_fresh_at_once_and_cached_again_after_the_poll_that_it_asks_for() {
    for lost in [false, true] {
        let calculator = Calculator::of(2).await;
        let [one, other] = &calculator.members[..] else { unreachable!() };
        for member in &calculator.members {
            assert_eq!(member.fresh(7).await.0, Some(1_007));
        }
        if lost {
            other.node.bus.faults.lose(100);
        }
        calculator.change();
        let token = one.rules.clear().await.unwrap();
        assert_eq!(one.fresh(7).await, (Some(2_007), Tier::Load), "the last poll lacks the clear");
        let (expected, within) = if lost { (Some(1_007), POLL) } else { (Some(2_007), Duration::ZERO) };
        ms(1).await;
        assert_eq!(other.fresh(7).await.0, expected);
        for member in &calculator.members {
            let read = member.fresh_with(7, ReadOptions::at_least(token)).await;
            assert_eq!(read.0, Some(2_007), "whoever knows of it sees it at once");
        }
        tokio::time::sleep(within).await;
        assert_eq!(other.fresh(7).await.0, Some(2_007));
        for member in &calculator.members {
            // It asks for the poll that lets it in, so none has to be waited for.
            member.fresh(7).await;
            // As often as what hints put in doubt: a key that is invalidated all the time makes nobody poll all the time.
            ms(70).await;
            member.fresh(7).await;
            let cached = member.fresh_with(7, ReadOptions::at_least(token)).await;
            assert_eq!(cached, (Some(2_007), Tier::Local), "cached again");
        }
        calculator.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_computed_before_an_invalidation_outlives_it_nowhere() {
    for lost in [false, true] {
        let calculator = Calculator::of(2).await;
        let [reader, other] = &calculator.members[..] else { unreachable!() };
        reader.node.bus.faults.lose(if lost { 100 } else { 0 });
        reader.gates.after().close();
        let rules = reader.rules.clone();
        let reading = spawn(async move { rules.get(&7).await });
        reader.gates.after().reached_by(1).await;
        calculator.change();
        other.rules.invalidate(&7).await.unwrap();
        // By its hint, or by a poll: one that contains it is no stamp for what was computed before.
        tokio::time::sleep(if lost { POLL } else { Duration::from_millis(5) }).await;
        let rules = reader.rules.clone();
        let joined = spawn(async move { rules.get(&7).await });
        ms(1).await;
        reader.gates.after().open();
        assert_eq!(reading.await.unwrap().unwrap().value(), Some(&1_007), "begun before");
        let joined = joined.await.unwrap().unwrap();
        assert_eq!((joined.value(), joined.freshness), (Some(&2_007), Freshness::Fresh));
        assert_eq!(reader.fresh(7).await.0, Some(2_007));
        tokio::time::sleep(POLL).await;
        for member in &calculator.members {
            assert_eq!(member.fresh(7).await.0, Some(2_007));
        }
        calculator.end().await;
    }
}

/// Were what a hint says in the stamp, the value would outlive the very write that it announced too early.
#[tokio::test(start_paused = true)]
async fn a_hint_before_its_commit_keeps_no_computed_value_alive() {
    let calculator = Calculator::of(1).await;
    let member = &calculator.members[0];
    let mut open = calculator.sim.postgres.begin();
    open.touch(CACHE, "7");
    let epoch = member.perto.health().epoch;
    let token: Token = format!("{epoch:016x}-{:x}", open.xid()).parse().unwrap();
    let change = Change { cache: CACHE.to_owned(), keys: Some(vec!["7".to_owned()]) };
    member.perto.announce(token, &[change]).await;
    assert_eq!(member.fresh(7).await, (Some(1_007), Tier::Load));
    tokio::time::sleep(POLL).await;
    member.fresh(7).await;
    calculator.change();
    open.commit().unwrap();
    tokio::time::sleep(POLL).await;
    assert_eq!(member.fresh(7).await.0, Some(2_007));
    calculator.end().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_poll_what_is_computed_is_fresh_and_not_cached() {
    let calculator = Calculator::stopped(1, |cache| cache.outage(Outage::PassThrough));
    let member = &calculator.members[0];
    let token: Token = "0000000000000001-ffff".parse().unwrap();
    assert_eq!(
        (member.fresh(7).await, member.fresh(7).await),
        ((Some(1_007), Tier::Load), (Some(1_007), Tier::Load))
    );
    assert_eq!(member.fresh_with(7, ReadOptions::at_least(token)).await, (Some(1_007), Tier::Load));
    member.perto.start().await.unwrap();
    member.fresh(7).await;
    assert_eq!(member.fresh(7).await, (Some(1_007), Tier::Local));
    // Nor when the log can't be read any more.
    member.node.log.faults.cut();
    eventually("the lease is over", BOUND * 2, || member.perto.health().state == State::Unverified).await;
    calculator.change();
    assert_eq!(member.fresh(7).await, (Some(2_007), Tier::Load));
    calculator.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_being_computed_in_a_crash_is_dropped() {
    let calculator = Calculator::of(1).await;
    let member = &calculator.members[0];
    member.gates.after().close();
    let rules = member.rules.clone();
    let reading = spawn(async move { rules.get(&7).await });
    member.gates.after().reached_by(1).await;
    calculator.sim.postgres.crash(0);
    tokio::time::sleep(POLL).await;
    calculator.change();
    member.gates.after().open();
    let read = reading.await.unwrap().unwrap();
    assert_eq!((read.value(), read.freshness), (Some(&2_007), Freshness::Fresh), "computed anew");
    ms(1).await;
    assert_eq!(member.loads(), 2);
    calculator.end().await;
}

/// Loaded values as well as computed ones.
#[tokio::test(start_paused = true)]
async fn a_cache_that_is_local_only_leaves_nothing_in_l2_and_asks_it_nothing() {
    let mut ring = Ring { sim: Sim::new(1), members: vec![] };
    for _ in 0..2 {
        ring.join_with(|perto| perto, CacheBuilder::local_only).await;
    }
    ms(300).await;
    ring.write(0, 1, "one").await;
    tokio::time::sleep(POLL).await;
    for member in &ring.members {
        assert_eq!((member.fresh(1).await, member.fresh(2).await), (some("one"), None));
        assert_eq!((member.tier(1).await, member.tier(2).await), (Tier::Local, Tier::Local));
        assert_eq!(member.loads(), 2, "each loads for itself");
        assert!(matches!(member.users.inspect(&1).await.unwrap().remote, perto::InRemote::NotUsed));
    }
    ring.write(0, 1, "two").await;
    ms(1).await;
    assert_eq!(ring.members[1].fresh(1).await, some("two"), "by its hint");
    ring.members[1].users.invalidate(&1).await.unwrap();
    ring.members[1].users.clear().await.unwrap();
    ms(1).await;
    assert_eq!(ring.members[0].cached(1), None);
    assert_eq!(ring.sim.remote.keys(), Vec::<String>::new());
    for member in &ring.members {
        assert_eq!(member.node.remote.lookups(), 0);
    }
    ring.end().await;
}
