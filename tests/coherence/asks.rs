//! Reads that ask for more than the bound: one poll, shared by all who wait, grants it.

use std::time::Duration;

use perto::{Error, Freshness, Outage, Read, ReadOptions, StaleCause, Tier, Token};
use tokio::time::Instant;

use crate::ring::{BOUND, CACHE, Member, POLL, Ring, eventually, ms, some, spawn, text};

async fn latest(member: &Member, key: u64) -> Read<String> {
    member.users.get_with(&key, ReadOptions::latest()).await.unwrap()
}

fn polls(member: &Member) -> u64 {
    member.perto.stats().polls
}

/// Two members that hold keys 1 and 2.
async fn ring_that_holds_two_keys() -> Ring {
    let ring = Ring::of(2).await;
    for key in [1, 2] {
        ring.write(0, key, "old").await;
    }
    tokio::time::sleep(POLL).await;
    for member in &ring.members {
        for key in [1, 2] {
            member.fresh(key).await;
        }
    }
    ring
}

#[tokio::test(start_paused = true)]
async fn what_a_write_did_not_touch_is_read_from_l1_by_its_token() {
    let ring = ring_that_holds_two_keys().await;
    for member in &ring.members {
        let token = ring.write(0, 1, "new").await.token;
        let by_token =
            async |key: u64| member.users.get_with(&key, ReadOptions::at_least(token)).await.unwrap();
        let (before, loads) = (polls(member), member.loads());
        let untouched = by_token(2).await;
        assert_eq!((text(&untouched), untouched.tier), (some("old"), Tier::Local));
        assert!(polls(member) <= before + 1, "its own poll, at most");
        assert_eq!(member.loads(), loads);
        assert_eq!(text(&by_token(1).await), some("new"));
        let before = polls(member);
        for _ in 0..100 {
            assert_eq!((by_token(2).await.tier, by_token(1).await.tier), (Tier::Local, Tier::Local));
        }
        assert_eq!(polls(member), before, "from then on no more");
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_writes_reads_what_it_does_not_write_from_l1() {
    let ring = ring_that_holds_two_keys().await;
    let reader = &ring.members[1];
    let loads = reader.loads();
    for n in 0..200 {
        let token = ring.write(0, 1, &format!("v{n}")).await.token;
        let read = reader.users.get_with(&2, ReadOptions::at_least(token)).await.unwrap();
        assert_eq!(read.tier, Tier::Local);
        ms(7).await;
    }
    assert_eq!(reader.loads(), loads);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_latest_is_read_though_nobody_was_told_of_it() {
    let ring = ring_that_holds_two_keys().await;
    let reader = &ring.members[1];
    for n in 0..20 {
        let value = format!("v{n}");
        ring.write_silently(1, &value);
        let before = polls(reader);
        let read = latest(reader, 1).await;
        assert_eq!((text(&read), read.freshness), (some(&value), Freshness::Fresh));
        assert!(polls(reader) <= before + 1);
        assert_eq!(latest(reader, 2).await.tier, Tier::Local, "what was not written stays in L1");
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn one_poll_is_shared_by_all_who_wait_for_it() {
    let ring = ring_that_holds_two_keys().await;
    let reader = &ring.members[1];
    let before = polls(reader);
    let reading: Vec<_> = (0..1_000)
        .map(|_| {
            let users = reader.users.clone();
            spawn(async move { users.get_with(&1, ReadOptions::latest()).await })
        })
        .collect();
    for read in reading {
        assert_eq!(read.await.unwrap().unwrap().tier, Tier::Local);
    }
    let polls = polls(reader) - before;
    assert!(polls <= 3, "{polls}");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_was_sent_before_the_read_grants_nothing() {
    let ring = ring_that_holds_two_keys().await;
    let reader = &ring.members[1];
    let slow = Duration::from_millis(100);
    reader.node.log.faults.delay(slow, slow);
    let asking = latest_in_the_background(reader);
    // That poll has seen the database, and its answer is under way.
    ms(150).await;
    ring.write_silently(1, "new");
    let read = latest(reader, 1).await;
    assert_eq!(text(&read), some("new"));
    asking.await.unwrap();
    ring.end().await;
}

fn latest_in_the_background(member: &Member) -> tokio::task::JoinHandle<()> {
    let users = member.users.clone();
    spawn(async move {
        users.get_with(&1, ReadOptions::latest()).await.unwrap();
    })
}

#[tokio::test(start_paused = true)]
async fn however_often_the_latest_is_asked_for_polls_keep_their_distance() {
    let mut ring = Ring::of(1).await;
    let apart = Duration::from_millis(20);
    let slow = ring.join_with(|perto| perto.min_poll_interval(apart), |cache| cache).await;
    ring.write(0, 1, "one").await;
    tokio::time::sleep(POLL).await;
    for (member, apart) in [(&ring.members[0], Duration::from_millis(5)), (&ring.members[slow], apart)] {
        member.fresh(1).await;
        let (before, began) = (polls(member), Instant::now());
        let mut reads = 0_u32;
        while began.elapsed() < Duration::from_secs(1) {
            assert_eq!(latest(member, 1).await.tier, Tier::Local);
            reads += 1;
        }
        let polls = u32::try_from(polls(member) - before).unwrap();
        assert!(apart * polls <= began.elapsed() + apart, "{polls} polls in {:?}", began.elapsed());
        assert!(
            reads + 10 >= polls && reads <= polls + 1,
            "each reader waits for one: {reads} reads, {polls} polls"
        );
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_read_within_a_time_waits_only_where_the_last_poll_was_sent_before() {
    let ring = ring_that_holds_two_keys().await;
    let reader = &ring.members[1];
    let within = async |limit: u64| {
        let before = polls(reader);
        let options = ReadOptions::within(Duration::from_millis(limit));
        let read = reader.users.get_with(&1, options).await.unwrap();
        assert_eq!((read.tier, read.freshness), (Tier::Local, Freshness::Fresh));
        polls(reader) - before
    };
    latest(reader, 1).await;
    ms(50).await;
    assert_eq!(within(60).await, 0);
    assert_eq!(within(50).await, 1, "the clock counts milliseconds: this one may have been sent before");
    assert_eq!(within(5_000).await, 0, "no longer than the bound anyway");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_read_within_a_time_misses_nothing_that_was_visible_before() {
    let ring = ring_that_holds_two_keys().await;
    let reader = &ring.members[1];
    for n in 0..50 {
        let value = format!("v{n}");
        ring.write_silently(1, &value);
        ms(30).await;
        let read = reader.users.get_with(&1, ReadOptions::within(Duration::from_millis(30))).await.unwrap();
        assert_eq!(text(&read), some(&value));
    }
    ring.end().await;
}

/// What a read is answered in an outage, by what it asks for and what the policy says.
#[tokio::test(start_paused = true)]
async fn while_the_log_is_cut_off_a_stronger_read_is_answered_by_the_primary_alone() {
    let max = Duration::from_mins(1);
    for outage in [Outage::PassThrough, Outage::ServeStale { max }, Outage::Fail] {
        let mut ring = Ring::of(1).await;
        let at = ring.join_with(|perto| perto, |cache| cache.outage(outage)).await;
        ring.write(0, 1, "old").await;
        tokio::time::sleep(POLL).await;
        let member = &ring.members[at];
        member.fresh(1).await;
        let token = ring.write(0, 2, "elsewhere").await.token;
        tokio::time::sleep(POLL).await;
        member.node.log.faults.cut();
        // The lease still holds: nobody can tell that no poll will come.
        let (began, read) = (Instant::now(), member.users.get_with(&1, ReadOptions::latest()).await);
        assert!(began.elapsed() <= BOUND + Duration::from_millis(100), "{:?}", began.elapsed());
        check(outage, Asked::Latest, &read);
        tokio::time::sleep(BOUND).await;
        ring.write_silently(1, "new");
        let options = [
            (Asked::Default, ReadOptions::default()),
            (Asked::Token, ReadOptions::at_least(token)),
            (Asked::Within, ReadOptions::within(Duration::from_millis(500))),
            (Asked::Latest, ReadOptions::latest()),
        ];
        for (asked, options) in options {
            let began = Instant::now();
            let read = member.users.get_with(&1, options).await;
            assert!(began.elapsed() < Duration::from_millis(100), "no wait without a lease");
            check(outage, asked, &read);
        }
        ring.end().await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Asked {
    Default,
    Token,
    Within,
    Latest,
}

fn check(outage: Outage, asked: Asked, read: &Result<Read<String>, Error>) {
    let stronger = matches!(asked, Asked::Within | Asked::Latest);
    match (outage, read) {
        (Outage::Fail, Err(Error::Unverified)) => {}
        (Outage::ServeStale { .. }, Ok(read)) if !stronger => {
            assert_eq!(read.tier, Tier::Local, "{asked:?}");
            assert!(matches!(read.freshness, Freshness::Unverified { .. }), "{asked:?}");
        }
        (Outage::PassThrough | Outage::ServeStale { .. }, Ok(read)) => {
            assert_eq!((read.tier, read.freshness), (Tier::Load, Freshness::Fresh), "{asked:?}");
        }
        (outage, other) => panic!("{outage:?}, {asked:?}: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_poll_the_latest_takes_nothing_from_a_load_that_began_before_it() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write(0, 1, "old").await;
    tokio::time::sleep(POLL).await;
    member.node.log.faults.cut();
    tokio::time::sleep(BOUND).await;
    member.loader.after().close();
    let before = member.reading(1);
    eventually("it has read", BOUND, || member.loader.after().waiting() == 1).await;
    ring.write_silently(1, "new");
    let users = member.users.clone();
    let asking = spawn(async move { users.get_with(&1, ReadOptions::latest()).await });
    ms(10).await;
    member.loader.after().open();
    let read = asking.await.unwrap().unwrap();
    assert_eq!((text(&read), read.freshness), (some("new"), Freshness::Fresh));
    before.await.unwrap().unwrap();
    ring.end().await;
}

/// It may be an old primary that somebody's pool still holds on to.
#[tokio::test(start_paused = true)]
async fn without_a_lease_the_latest_of_a_server_that_the_log_was_not_on_is_not_called_fresh() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write(0, 1, "one").await;
    tokio::time::sleep(POLL).await;
    member.node.log.faults.hang();
    ring.sim.postgres.crash(0);
    tokio::time::sleep(BOUND).await;
    assert_eq!(latest(member, 1).await.freshness, Freshness::Stale(StaleCause::Replica));
    // Also where another reader leads, who asks for nothing.
    member.loader.after().close();
    let before = member.reading(1);
    eventually("it has read", BOUND, || member.loader.after().waiting() == 1).await;
    let users = member.users.clone();
    let asking = spawn(async move { users.get_with(&1, ReadOptions::latest()).await });
    ms(10).await;
    member.loader.after().open();
    assert_eq!(asking.await.unwrap().unwrap().freshness, Freshness::Stale(StaleCause::Replica));
    assert_eq!(
        before.await.unwrap().unwrap().freshness,
        Freshness::Fresh,
        "for others the source is all there is"
    );
    ring.end().await;
}

/// The bound is long, the way to the log is silent, and the source is well.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_poll_longer_than_for_a_load_and_a_shutdown_ends_it() {
    let mut ring = Ring::of(1).await;
    let limit = Duration::from_secs(2);
    let at =
        ring.join_with(|perto| perto.bound(Duration::from_mins(1)), |cache| cache.load_timeout(limit)).await;
    ring.write(0, 1, "one").await;
    tokio::time::sleep(POLL).await;
    let member = &ring.members[at];
    member.fresh(1).await;
    member.node.log.faults.hang();
    let began = Instant::now();
    assert_eq!(latest(member, 1).await.tier, Tier::Load);
    assert!(began.elapsed() <= limit + Duration::from_millis(10), "{:?}", began.elapsed());
    let users = member.users.clone();
    let waiting = spawn(async move { users.get_with(&1, ReadOptions::latest()).await });
    ms(1).await;
    let began = Instant::now();
    member.perto.shutdown().await;
    let closed = waiting.await.unwrap();
    assert!(matches!(closed, Err(Error::Closed)), "{closed:?}");
    assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
    ring.end().await;
}

/// Just as the database comes back it must not be asked by all readers of all instances.
#[tokio::test(start_paused = true)]
async fn readers_who_wait_do_not_hurry_polls_that_fail() {
    let ring = ring_that_holds_two_keys().await;
    let member = &ring.members[1];
    member.node.log.faults.cut();
    let (before, began) = (member.perto.stats().poll_errors, Instant::now());
    let asking: Vec<_> = (0..500_u64)
        .map(|n| {
            let users = member.users.clone();
            spawn(async move {
                ms(n).await;
                users.get_with(&1, ReadOptions::latest()).await
            })
        })
        .collect();
    ms(500).await;
    let polls = u128::from(member.perto.stats().poll_errors - before);
    assert!(polls <= began.elapsed().as_millis() / 50 + 2, "{polls} in {:?}", began.elapsed());
    for read in asking {
        read.await.unwrap().unwrap();
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn where_the_source_is_gone_too_the_latest_is_an_error_and_no_old_value() {
    let ring = ring_that_holds_two_keys().await;
    let reader = &ring.members[1];
    reader.node.log.faults.cut();
    reader.loader.faults().cut();
    for _ in 0..2 {
        let read = reader.users.get_with(&1, ReadOptions::latest()).await;
        assert!(matches!(read, Err(Error::Load { .. })), "{read:?}");
        tokio::time::sleep(BOUND).await;
    }
    reader.loader.faults().heal();
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_lags_behind_is_flagged_to_who_asks_for_the_latest_and_refused_by_a_token() {
    let ring = Ring::of(2).await;
    let reader = &ring.members[1];
    ring.write_silently(1, "old");
    ring.sim.postgres.replay(0);
    reader.loader.use_replica(false);
    let token = ring.write(0, 1, "new").await.token;
    tokio::time::sleep(POLL).await;
    let read = latest(reader, 1).await;
    assert_eq!((text(&read), read.freshness), (some("old"), Freshness::Stale(StaleCause::Replica)));
    let refused = reader.users.get_with(&1, ReadOptions::at_least(token)).await;
    assert!(matches!(refused, Err(Error::TokenAhead)), "{refused:?}");
    ring.end().await;
}

/// The buckets know of no write that it misses, for the log tells of none.
#[tokio::test(start_paused = true)]
async fn while_the_log_is_cut_off_a_replica_is_stale_to_who_asks_for_the_latest() {
    let ring = Ring::of(1).await;
    let reader = &ring.members[0];
    ring.write_silently(1, "old");
    ring.sim.postgres.replay(0);
    reader.loader.use_replica(false);
    tokio::time::sleep(POLL).await;
    reader.node.log.faults.cut();
    ring.write_silently(1, "new");
    let read = latest(reader, 1).await;
    assert_eq!((text(&read), read.freshness), (some("old"), Freshness::Stale(StaleCause::Replica)));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_no_poll_contains_is_an_error_for_what_is_cached_too_and_loads_nothing() {
    let ring = ring_that_holds_two_keys().await;
    let reader = &ring.members[1];
    let loads = reader.loads();
    let epoch = reader.perto.health().epoch;
    let made_up: Token = format!("{epoch:016x}-{:x}", 900_000_000_u64).parse().unwrap();
    let many = reader.users.get_many_with(&[1, 2], ReadOptions::at_least(made_up)).await;
    assert!(matches!(many, Err(Error::TokenAhead)), "{many:?}");
    let both = ReadOptions::latest().and_at_least(made_up);
    assert!(matches!(reader.users.get_with(&1, both).await, Err(Error::TokenAhead)));
    assert_eq!(reader.loads(), loads);
    assert_eq!(reader.cached(1), Some(some("old")));
    ring.end().await;
}

/// The database crashes and uses the number again: no poll of before says anything of the new write.
#[tokio::test(start_paused = true)]
async fn a_poll_of_an_epoch_that_has_ended_grants_no_token_of_the_next() {
    let ring = ring_that_holds_two_keys().await;
    let reader = &ring.members[1];
    // Both instances have polled a number that will be used again.
    ring.write_silently(2, "lost");
    tokio::time::sleep(POLL).await;
    reader.fresh(1).await;
    reader.node.log.faults.cut();
    ring.sim.postgres.crash(1);
    let written = ring.sim.postgres.write(CACHE, &1_u64, &"new").unwrap();
    let read = reader.users.get_with(&1, ReadOptions::at_least(written.token)).await.unwrap();
    assert_eq!(text(&read), some("new"));
    reader.node.log.faults.heal();
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_read_that_asks_for_nothing_waits_for_no_poll_and_asks_for_none() {
    let ring = ring_that_holds_two_keys().await;
    let reader = &ring.members[1];
    let before = polls(reader);
    ring.write_silently(1, "new");
    for _ in 0..100 {
        assert_eq!(reader.tier(1).await, Tier::Local);
    }
    assert_eq!(polls(reader), before);
    ring.end().await;
}
