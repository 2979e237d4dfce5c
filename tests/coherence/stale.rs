//! Stale while loading: who would rather have an old value than wait gets one, flagged with why and since when.

use std::time::Duration;

use futures_util::FutureExt as _;
use perto::{Cache, CacheBuilder, Freshness, Outage, Read, ReadOptions, StaleCause, StaleWhileLoading, Tier};
use tokio::time::Instant;

use crate::ring::{BOUND, Member, POLL, Ring, eventually, ms, some, text};

const GRACE: Duration = Duration::from_secs(10);

async fn ring(cache: impl Fn(CacheBuilder<u64, String>) -> CacheBuilder<u64, String>) -> Ring {
    let mut ring = Ring::of(0).await;
    for _ in 0..2 {
        ring.join_with(|builder| builder, &cache).await;
    }
    ms(300).await;
    ring.write(0, 1, "one").await;
    for member in &ring.members {
        assert_eq!(member.fresh(1).await, some("one"));
    }
    ring
}

fn stale(cache: CacheBuilder<u64, String>) -> CacheBuilder<u64, String> {
    cache.stale_while_loading(StaleWhileLoading::for_up_to(GRACE))
}

async fn get(users: &Cache<u64, String>) -> (Read<String>, Duration) {
    let began = Instant::now();
    (users.get(&1).await.unwrap(), began.elapsed())
}

/// How long ago it was invalidated.
fn invalidated(read: &Read<String>) -> Duration {
    let Freshness::Stale(StaleCause::Invalidated { since }) = read.freshness else { panic!("{read:?}") };
    since
}

async fn landed(member: &Member) {
    // It has begun.
    ms(2).await;
    eventually("the load has landed", BOUND, || member.users.flights() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn while_its_successor_is_loaded_a_value_is_served_at_once_flagged_with_since_when() {
    let ring = ring(stale).await;
    let reader = &ring.members[1];
    let loads = reader.loads();
    reader.loader.before().close();
    ring.write(0, 1, "two").await;
    ms(5).await;
    for waited in [0, 700] {
        ms(waited).await;
        let (read, took) = get(&reader.users).await;
        assert_eq!((text(&read), read.tier), (some("one"), Tier::Local));
        let since = invalidated(&read);
        assert!(
            since >= ms_of(waited) && since <= ms_of(waited + 10) && took < ms_of(1),
            "{since:?}, {took:?}"
        );
    }
    assert_eq!(reader.loads(), loads + 1, "one load, whoever asks");
    reader.loader.before().open();
    landed(reader).await;
    let read = reader.users.get(&1).await.unwrap();
    assert_eq!((text(&read), read.freshness, read.tier), (some("two"), Freshness::Fresh, Tier::Local));
    assert_eq!(reader.users.stats().stale_answers, 2);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_write_by_hand_is_served_stale_from_the_poll_on_that_tells_of_it() {
    let ring = ring(stale).await;
    let reader = &ring.members[1];
    ring.write_silently(1, "two");
    tokio::time::sleep(POLL).await;
    let (read, _) = get(&reader.users).await;
    assert!(invalidated(&read) <= POLL);
    landed(reader).await;
    assert_eq!(reader.fresh(1).await, some("two"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_load_that_is_quicker_than_the_soft_timeout_is_waited_for_and_a_slower_one_is_not() {
    let soft = ms_of(40);
    let ring = ring(|cache| cache.stale_while_loading(StaleWhileLoading::for_up_to(GRACE).after(soft))).await;
    let reader = &ring.members[1];
    for (value, took_most, delay) in [("two", ms_of(30), 12), ("three", soft + ms_of(2), 500)] {
        reader.loader.faults().delay(ms_of(delay), ms_of(delay));
        ring.write(0, 1, value).await;
        ms(5).await;
        let began = Instant::now();
        // One begins the load, the other comes later.
        let first = reader.reading(1);
        ms(5).await;
        let second = reader.reading(1);
        let [first, second] = [first.await.unwrap().unwrap(), second.await.unwrap().unwrap()];
        assert!(began.elapsed() <= took_most + ms_of(5), "{:?}", began.elapsed());
        for read in [first, second] {
            match value {
                "two" => assert_eq!((text(&read), read.freshness), (some("two"), Freshness::Fresh)),
                _ => assert_eq!((text(&read), invalidated(&read) < ms_of(15)), (some("two"), true)),
            }
        }
    }
    eventually("the load goes on, and lands", BOUND, || reader.cached(1) == Some(some("three"))).await;
    ring.end().await;
}

/// The load of the refresh has read before the last write, of which the second reader's instance has heard.
#[tokio::test(start_paused = true)]
async fn a_refresh_that_others_began_is_no_answer_to_who_knows_of_a_later_write() {
    let ring =
        ring(|cache| cache.stale_while_loading(StaleWhileLoading::for_up_to(GRACE).after(ms_of(400)))).await;
    let reader = &ring.members[1];
    reader.loader.after().close();
    ring.write(0, 1, "two").await;
    ms(5).await;
    let first = reader.reading(1);
    reader.loader.after().reached_by(1).await;
    ring.write(0, 1, "three").await;
    ms(5).await;
    let second = reader.reading(1);
    ms(5).await;
    reader.loader.after().open();
    let [first, second] = [first.await.unwrap().unwrap(), second.await.unwrap().unwrap()];
    assert_eq!((text(&first), first.freshness), (some("two"), Freshness::Fresh), "it began before the write");
    assert!(second.freshness != Freshness::Fresh || text(&second) == some("three"), "{second:?}");
    landed(reader).await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn where_loads_fail_or_hang_nobody_waits_and_the_loader_has_peace_until_grace_is_over() {
    let retry = ms_of(500);
    for hangs in [false, true] {
        let cache = |cache: CacheBuilder<u64, String>| {
            let stale = StaleWhileLoading::for_up_to(GRACE).retry_after(retry);
            cache.stale_while_loading(stale).load_timeout(ms_of(800))
        };
        let ring = ring(cache).await;
        let reader = &ring.members[1];
        match hangs {
            true => reader.loader.faults().hang(),
            false => reader.loader.faults().cut(),
        }
        let calls = reader.loader.calls().len();
        ring.write(0, 1, "two").await;
        ms(5).await;
        for _ in 0..90 {
            ms(100).await;
            let (read, took) = get(&reader.users).await;
            assert!(invalidated(&read) < GRACE && took < ms_of(1), "{took:?}");
        }
        let calls = reader.loader.calls().len() - calls;
        // Nine seconds, and half a second of peace after each that failed.
        let least = if hangs { 6 } else { 12 };
        assert!((least..=19).contains(&calls), "hangs: {hangs}, {calls} calls");
        assert!(reader.users.stats().refresh_errors >= 6);
        ms(1_100).await;
        assert!(reader.users.get(&1).await.is_err(), "grace is over");
        reader.loader.faults().heal();
        landed(reader).await;
        assert_eq!(reader.fresh(1).await, some("two"));
        ring.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_asks_for_more_than_the_bound_never_gets_a_stale_answer() {
    let ring = ring(stale).await;
    let reader = &ring.members[1];
    let asks: [fn(perto::Token) -> ReadOptions; 6] = [
        |_| ReadOptions::within(2 * BOUND),
        ReadOptions::at_least,
        |_| ReadOptions::latest(),
        |_| ReadOptions::within(ms_of(100)),
        |_| ReadOptions::never_stale(),
        |token| ReadOptions::stale_after(Duration::ZERO).and_at_least(token),
    ];
    for (at, options) in asks.into_iter().enumerate() {
        let value = format!("value {at}");
        let written = ring.write(0, 1, &value).await;
        ms(5).await;
        let read = reader.users.get_with(&1, options(written.token)).await.unwrap();
        assert_eq!((text(&read), read.freshness), (Some(value), Freshness::Fresh), "{at}");
    }
    ring.write(0, 1, "in a view").await;
    ms(5).await;
    let users = &reader.users;
    let viewed = reader.perto.view(|view| async move { view.get(users, &1).await }).await.unwrap();
    assert_eq!((text(&viewed), viewed.freshness), (some("in a view"), Freshness::Fresh));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_clear_or_a_recovery_nobody_knows_how_old_a_value_is_and_it_is_not_served() {
    let ring = ring(stale).await;
    let reader = &ring.members[1];
    let evicted = async |value| {
        ring.write(0, 1, value).await;
        ms(5).await;
    };
    evicted("two").await;
    ring.members[0].users.clear().await.unwrap();
    ms(5).await;
    assert_eq!(reader.fresh(1).await, some("two"));
    for (recoveries, value, crashes) in [(1, "three", true), (2, "four", false)] {
        assert_eq!(reader.perto.stats().recoveries, recoveries);
        evicted(value).await;
        if crashes {
            ring.sim.postgres.crash(0);
        } else {
            // It misses rows that are there no more.
            reader.node.log.faults.cut();
            ms(1_500).await;
            ring.write_silently(9, "nine");
            ring.sim.postgres.trim();
            reader.node.log.faults.heal();
        }
        eventually("it has recovered", 4 * BOUND, || reader.perto.stats().recoveries > recoveries).await;
        ms(500).await;
        assert_eq!(reader.fresh(1).await, some(value));
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_log_allows_stale_answers_where_it_allows_cached_ones() {
    let served = [
        (Outage::default(), true),
        (Outage::PassThrough, true),
        (Outage::Fail, false),
        (Outage::ServeStale { max: ms_of(100) }, false),
    ];
    for (outage, is_served) in served {
        let ring = ring(|cache| stale(cache).outage(outage)).await;
        let reader = &ring.members[1];
        reader.loader.faults().cut();
        ring.write(0, 1, "two").await;
        ms(5).await;
        reader.node.log.faults.cut();
        ms(1_500).await;
        match reader.users.get(&1).await {
            Ok(read) => assert!(is_served && invalidated(&read) >= ms_of(1_500), "{outage:?}: {read:?}"),
            Err(error) => assert!(!is_served, "{outage:?}: {error}"),
        }
        landed(reader).await;
        ring.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_evicted_after_an_outage_says_since_when_it_may_have_been_old() {
    let ring = ring(stale).await;
    let reader = &ring.members[1];
    reader.node.bus.faults.cut();
    reader.node.log.faults.cut();
    ms(10).await;
    ring.write_silently(1, "two");
    ms(5_000).await;
    reader.loader.before().close();
    reader.node.log.faults.heal();
    eventually("a poll", BOUND, || {
        reader.cached(1).is_none() && reader.perto.health().lease_left > Duration::ZERO
    })
    .await;
    let (read, _) = get(&reader.users).await;
    let since = invalidated(&read);
    // The lease ended a bound after the last poll.
    assert!(since >= ms_of(3_900), "{since:?}");
    reader.loader.before().open();
    landed(reader).await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_value_whose_time_is_over_is_served_while_it_is_loaded_anew() {
    let ring = ring(|cache| stale(cache).ttl(ms_of(2_000))).await;
    let reader = &ring.members[1];
    ms(2_100).await;
    let (read, _) = get(&reader.users).await;
    let Freshness::Stale(StaleCause::Expired { since }) = read.freshness else { panic!("{read:?}") };
    assert!(since < ms_of(200), "{since:?}");
    landed(reader).await;
    assert_eq!(reader.users.get(&1).await.unwrap().freshness, Freshness::Fresh);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_read_shortly_before_its_end_is_loaded_anew_and_nobody_waits() {
    let ring = ring(|cache| cache.ttl(ms_of(2_000)).refresh_ahead(ms_of(500))).await;
    let reader = &ring.members[1];
    reader.loader.faults().delay(ms_of(100), ms_of(100));
    let (loads, begun) = (reader.loads(), Instant::now());
    for _ in 0..400 {
        ms(20).await;
        let (read, took) = get(&reader.users).await;
        assert_eq!((read.freshness, read.tier), (Freshness::Fresh, Tier::Local));
        assert!(took < ms_of(1), "{took:?}");
    }
    let loads = reader.loads() - loads;
    assert!((4..=6).contains(&loads), "{loads} loads in {:?}", begun.elapsed());
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_value_that_moka_let_go_is_loaded_and_not_served_in_the_form_that_it_had_before() {
    // Two of the large ones find no place together.
    let ring = ring(|cache| stale(cache).capacity_bytes(4_000)).await;
    let reader = &ring.members[1];
    ring.write(0, 1, "two").await;
    ms(5).await;
    reader.users.get(&1).await.unwrap();
    landed(reader).await;
    assert_eq!(reader.fresh(1).await, some("two"));
    let large = "x".repeat(3_000);
    for key in 2..40 {
        ring.write_silently(key, &large);
        for _ in 0..3 {
            reader.users.get(&key).await.unwrap();
        }
        let _size = reader.users.size();
    }
    assert_eq!(reader.cached(1), None, "it found no place");
    assert_eq!(reader.fresh(1).await, some("two"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn of_many_keys_each_is_as_fresh_as_it_can_be() {
    let ring = ring(stale).await;
    let reader = &ring.members[1];
    ring.write(0, 2, "zwei").await;
    reader.users.get(&2).await.unwrap();
    ring.write(0, 3, "drei").await;
    ring.write(0, 1, "two").await;
    ms(5).await;
    let reads = reader.users.get_many(&[1, 2, 3]).await.unwrap();
    let shown: Vec<_> = reads.iter().map(|read| (text(read), read.freshness.eq(&Freshness::Fresh))).collect();
    assert_eq!(shown, [(some("one"), false), (some("zwei"), true), (some("drei"), true)]);
    landed(reader).await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_of_which_nothing_is_left_is_loaded_while_others_wait_for_the_soft_timeout() {
    let soft = ms_of(400);
    let ring = ring(|cache| cache.stale_while_loading(StaleWhileLoading::for_up_to(GRACE).after(soft))).await;
    let reader = &ring.members[1];
    // Each load takes it twice.
    reader.loader.faults().delay(ms_of(150), ms_of(150));
    ring.write(0, 1, "two").await;
    ms(5).await;
    let began = Instant::now();
    let reads = reader.users.get_many(&[1, 77]).await.unwrap();
    assert!(began.elapsed() < ms_of(350), "{:?}", began.elapsed());
    assert_eq!((text(&reads[0]), reads[0].freshness), (some("two"), Freshness::Fresh));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_read_often_is_loaded_anew_before_anybody_asks_and_one_that_nobody_reads_is_not() {
    let ring = ring(|cache| stale(cache).refresh_hot()).await;
    let reader = &ring.members[1];
    for _ in 0..5_000 {
        reader.users.get(&1).await.unwrap();
    }
    for (value, is_hot) in [("two", true), ("three", false)] {
        let loads = reader.loads();
        ring.write(0, 1, value).await;
        ms(50).await;
        assert_eq!(reader.loads() - loads, u64::from(is_hot), "{value}");
        assert_eq!(reader.cached(1).is_some(), is_hot);
    }
    ring.end().await;
}

/// Long after its time is over a write evicts it: that makes it no younger.
#[tokio::test(start_paused = true)]
async fn a_write_brings_no_value_back_whose_time_was_over_before_grace_began() {
    let ring = ring(|cache| stale(cache).ttl(ms_of(2_000))).await;
    let reader = &ring.members[1];
    ms(20_000).await;
    ring.write(0, 1, "two").await;
    ms(5).await;
    assert_eq!(reader.fresh(1).await, some("two"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_due_is_fresh_for_who_takes_nothing_stale_and_has_all_its_grace_after_its_end() {
    let cache = |cache: CacheBuilder<u64, String>| {
        let stale = StaleWhileLoading::for_up_to(ms_of(500));
        cache.stale_while_loading(stale).ttl(ms_of(2_000)).refresh_ahead(ms_of(1_000))
    };
    let ring = ring(cache).await;
    let reader = &ring.members[1];
    reader.loader.faults().cut();
    ms(1_300).await;
    for options in [ReadOptions::default(), ReadOptions::never_stale()] {
        let read = reader.users.get_with(&1, options).await.unwrap();
        assert_eq!((read.freshness, read.tier), (Freshness::Fresh, Tier::Local));
    }
    ms(1_100).await;
    let (read, _) = get(&reader.users).await;
    assert!(matches!(read.freshness, Freshness::Stale(StaleCause::Expired { since }) if since < ms_of(450)));
    landed(reader).await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_loaded_together_does_not_end_together() {
    let ring = ring(|cache| cache.absent_ttl(ms_of(10_000)).ttl_jitter(50)).await;
    let reader = &ring.members[1];
    let keys: Vec<u64> = (100..200).collect();
    reader.users.get_many(&keys).await.unwrap();
    let held = |at: u64| async move {
        ms(at).await;
        keys_held(reader)
    };
    let mut left = vec![held(4_900).await];
    for _ in 0..6 {
        left.push(held(1_000).await);
    }
    assert_eq!((left[0], *left.last().unwrap()), (100, 0), "{left:?}");
    assert!(left.windows(2).skip(1).take(4).all(|two| (5..=40).contains(&(two[0] - two[1]))), "{left:?}");
    ring.end().await;
}

fn keys_held(member: &Member) -> usize {
    (100..200).filter(|key| member.cached(*key).is_some()).count()
}

#[tokio::test(start_paused = true)]
async fn settings_that_make_no_sense_are_refused_by_name() {
    let refused = |cache: fn(CacheBuilder<u64, String>) -> CacheBuilder<u64, String>| {
        let sim = perto::sim::Sim::new(1);
        let perto = sim.node().builder("ring").build().unwrap();
        let loader = sim.postgres.loader("user");
        cache(perto.cache("user")).loader(loader.function()).err().map(|error| error.to_string()).unwrap()
    };
    let zero = |cache: CacheBuilder<u64, String>| {
        cache.stale_while_loading(StaleWhileLoading::for_up_to(Duration::ZERO))
    };
    assert!(refused(zero).contains("stale_while_loading"));
    assert!(refused(|cache| cache.refresh_hot()).contains("refresh_hot"));
    assert!(refused(|cache| cache.ttl(ms_of(100)).refresh_ahead(ms_of(100))).contains("refresh_ahead"));
    assert!(refused(|cache| cache.ttl_jitter(100)).contains("ttl_jitter"));
}

const fn ms_of(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// On threads, for it is about what a read finds between two steps of an eviction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_beside_an_eviction_finds_the_value_before_it_or_the_stale_one_after_it() {
    let ring = ring(stale).await;
    let reader = &ring.members[1];
    for round in 0..300 {
        reader.loader.before().close();
        let reading = tokio::task::spawn_blocking({
            let users = reader.users.clone();
            move || loop {
                // It would wait for a load.
                let read = users.get(&1).now_or_never()?.unwrap();
                if read.freshness != Freshness::Fresh {
                    return Some(());
                }
            }
        });
        let written = ring.write_silently(1, &round.to_string());
        ring.announce(1, &written).await;
        assert!(reading.await.unwrap().is_some(), "round {round}: neither was there");
        reader.loader.before().open();
        while reader.users.get_if_cached(&1).is_none() {
            ms(1).await;
        }
    }
    ring.end().await;
}
