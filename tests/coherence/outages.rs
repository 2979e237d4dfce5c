//! What readers get while the log can't be read; start and shutdown.

use std::time::Duration;

use perto::{Error, Freshness, Outage, StartError, State, Tier};

use crate::ring::{BOUND, Member, POLL, Ring, eventually, ms, some, spawn, text};

async fn ring_with(outage: Outage) -> Ring {
    let mut ring = Ring::of(0).await;
    ring.join_with(|builder| builder, |cache| cache.outage(outage)).await;
    ms(300).await;
    ring.write(0, 1, "one").await;
    assert_eq!(ring.members[0].fresh(1).await, some("one"));
    // Just after a poll.
    let polls = ring.members[0].perto.stats().polls;
    eventually("a poll", POLL, || ring.members[0].perto.stats().polls > polls).await;
    ring
}

#[tokio::test(start_paused = true)]
async fn nothing_is_fresh_a_bound_after_the_last_poll_was_sent() {
    let ring = ring_with(Outage::default()).await;
    let member = &ring.members[0];
    member.node.log.faults.cut();
    ms(990).await;
    assert_eq!(member.cached(1), Some(some("one")));
    ms(10).await;
    assert_eq!(member.cached(1), None);
    assert_eq!(member.perto.health().state, State::Unverified);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_serves_what_is_cached_flagged_with_since_when() {
    let ring = ring_with(Outage::ServeStale { max: Duration::from_secs(60) }).await;
    let member = &ring.members[0];
    member.node.log.faults.cut();
    ms(1_000).await;
    let loads = member.loads();
    for _ in 0..3 {
        ms(10_000).await;
        let read = member.users.get(&1).await.unwrap();
        assert_eq!((text(&read), read.tier), (some("one"), Tier::Local));
        let Freshness::Unverified { since } = read.freshness else { panic!("{read:?}") };
        let left = member.perto.health().lease_left;
        assert_eq!(left, Duration::ZERO);
        assert!(since > Duration::from_secs(9) && since <= Duration::from_secs(31), "{since:?}");
    }
    assert_eq!((member.loads(), member.users.stats().unverified), (loads, 3));
    ms(31_000).await;
    assert_eq!(member.tier(1).await, Tier::Load, "the log has been silent for too long");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_may_pass_every_read_through() {
    let ring = ring_with(Outage::PassThrough).await;
    let member = &ring.members[0];
    member.node.log.faults.cut();
    ms(1_100).await;
    let loads = member.loads();
    for value in ["two", "three"] {
        ring.write_silently(1, value);
        assert_eq!(member.fresh(1).await, some(value), "the primary itself answered");
    }
    assert_eq!(member.loads(), loads + 2);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_may_fail_every_read() {
    let ring = ring_with(Outage::Fail).await;
    let member = &ring.members[0];
    member.node.log.faults.cut();
    ms(1_100).await;
    for key in [1, 2] {
        let error = member.users.get(&key).await.unwrap_err();
        assert!(matches!(error, Error::Unverified) && error.is_retryable(), "{error:?}");
    }
    assert_eq!(member.users.flights(), 0);
    member.node.log.faults.heal();
    tokio::time::sleep(POLL).await;
    assert_eq!(member.fresh(1).await, some("one"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_load_during_an_outage_gets_what_the_policy_says() {
    for outage in [Outage::Fail, Outage::PassThrough, Outage::default()] {
        let ring = ring_with(outage).await;
        let member = &ring.members[0];
        ring.write(0, 2, "old").await;
        // A load begins under the lease, and lasts until it is over.
        member.loader.after().close();
        let first = member.reading(2);
        member.loader.after().reached_by(1).await;
        member.node.log.faults.cut();
        ms(1_100).await;
        ring.write_silently(2, "new");
        let joined = member.reading(2);
        ms(1).await;
        member.loader.after().open();
        first.await.unwrap().unwrap();
        match (outage, joined.await.unwrap()) {
            (Outage::Fail, Err(Error::Unverified)) => {}
            (Outage::PassThrough, Ok(read)) => {
                assert_eq!((text(&read), read.freshness), (some("new"), Freshness::Fresh));
            }
            (Outage::ServeStale { .. }, Ok(read)) => {
                assert_eq!(text(&read), some("old"));
                assert!(matches!(read.freshness, Freshness::Unverified { .. }));
            }
            (_, answer) => assert_eq!(format!("{answer:?}"), "", "under {outage:?}"),
        }
        ring.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_cached_is_fresh_again_after_the_first_poll_and_what_changed_is_gone() {
    let ring = ring_with(Outage::default()).await;
    let member = &ring.members[0];
    ring.write(0, 2, "old").await;
    member.fresh(2).await;
    let loads = member.loads();
    member.node.log.faults.cut();
    ms(30_000).await;
    ring.write_silently(2, "new");
    member.node.log.faults.heal();
    ms(60).await;
    assert_eq!((member.fresh(1).await, member.loads()), (some("one"), loads), "kept through the outage");
    assert_eq!(member.fresh(2).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_is_answered_late_gives_no_lease_from_its_arrival() {
    let ring = ring_with(Outage::default()).await;
    let member = &ring.members[0];
    // Half a second there and 0.4 s back: what committed since the statement ran is not in the answer.
    member.node.log.faults.delay(Duration::from_millis(450), Duration::from_millis(450));
    let polls = member.perto.stats().polls;
    eventually("a poll", BOUND * 3, || member.perto.stats().polls > polls).await;
    let left = member.perto.health().lease_left;
    assert!(left <= Duration::from_millis(101), "{left:?}");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_write_during_an_outage_of_hints_and_slow_polls_is_seen_within_the_bound() {
    let ring = ring_with(Outage::PassThrough).await;
    let member = &ring.members[0];
    member.node.bus.faults.lose(100);
    member.node.log.faults.delay(Duration::from_millis(200), Duration::from_millis(300));
    for round in 0..20 {
        let value = round.to_string();
        member.users.get(&1).await.unwrap();
        ring.write_silently(1, &value);
        tokio::time::sleep(BOUND).await;
        assert_eq!(member.fresh(1).await, some(&value));
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn states_follow_what_is_down() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    let state = || member.perto.health().state;
    assert_eq!(state(), State::Coherent);
    member.node.bus.faults.hang();
    eventually("a fence goes unanswered", BOUND, || state() == State::Isolated).await;
    member.node.log.faults.hang();
    eventually("the lease ends", BOUND + POLL, || state() == State::Unverified).await;
    member.node.heal();
    eventually("all is well again", BOUND * 2, || state() == State::Coherent).await;
    member.perto.shutdown().await;
    assert_eq!(state(), State::Closed);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_does_not_start_without_the_log_and_may_try_again() {
    let ring = Ring::of(0).await;
    let member = Member::new(&ring.sim, |builder| builder, |cache| cache);
    member.node.log.faults.cut();
    assert!(matches!(member.perto.start().await, Err(StartError::Log(_))));
    assert_eq!(member.perto.health().state, State::Recovering);
    member.node.log.faults.heal();
    member.perto.start().await.unwrap();
    assert_eq!(member.fresh(1).await, None);
    member.perto.shutdown().await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_was_given_up_may_be_tried_again() {
    // While the log is read for the first time, and after: it asks whether the tables are watched.
    for (after, cut) in [(50, false), (150, false), (250, false), (250, true)] {
        let mut ring = Ring::of(0).await;
        let member = Member::new(&ring.sim, |builder| builder, |cache| cache.tables(["users"]));
        let slow = Duration::from_millis(100);
        member.node.log.faults.delay(slow, slow);
        let perto = member.perto.clone();
        let starting = spawn(async move { perto.start().await });
        ms(after).await;
        if cut {
            member.node.log.faults.cut();
            assert!(starting.await.unwrap().is_err());
        } else {
            starting.abort();
            ms(1).await;
        }
        member.node.heal();
        member.perto.start().await.unwrap();
        ms(500).await;
        assert_eq!(member.perto.health().state, State::Coherent, "after {after} ms");
        ring.members.push(member);
        ring.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_starts_without_redis() {
    let mut ring = Ring::of(0).await;
    let member = Member::new(&ring.sim, |builder| builder, |cache| cache);
    member.node.remote.faults.hang();
    member.node.bus.faults.hang();
    member.perto.start().await.unwrap();
    ring.members.push(member);
    let member = &ring.members[0];
    assert_eq!((member.perto.health().state, member.fresh(1).await), (State::Isolated, None));
    assert_eq!(member.tier(1).await, Tier::Local);
    member.node.heal();
    eventually("it finds Redis", BOUND * 2, || member.perto.health().state == State::Coherent).await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_leaves_no_task_and_ends_what_waits() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    member.loader.before().close();
    let reading = member.reading(1);
    member.loader.before().reached_by(1).await;
    member.perto.shutdown().await;
    assert_eq!(member.perto.tasks(), 0);
    assert!(matches!(reading.await.unwrap(), Err(Error::Closed)));
    assert!(matches!(member.users.get(&2).await, Err(Error::Closed)));
    assert!(member.users.invalidate(&2).await.is_err());
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_while_everything_hangs() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    member.node.hang();
    member.loader.faults().hang();
    let readers = [member.reading(1), member.reading(2)];
    ms(2_000).await;
    let begun = tokio::time::Instant::now();
    member.perto.shutdown().await;
    assert!(begun.elapsed() <= Duration::from_millis(50), "{:?}", begun.elapsed());
    for reader in readers {
        assert!(reader.await.unwrap().is_err());
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_handle_ends_the_tasks() {
    let ring = Ring::of(0).await;
    let member = Member::new(&ring.sim, |builder| builder, |cache| cache);
    member.perto.start().await.unwrap();
    ms(500).await;
    let Member { node, perto, users, .. } = member;
    drop(perto);
    assert!(matches!(users.get(&1).await, Err(Error::Closed)));
    drop(users);
    eventually("its tasks let go of the log", BOUND, || std::sync::Arc::strong_count(&node.log) == 1).await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn polls_come_faster_while_no_hints_do() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    let polls_in_three_seconds = async || {
        let polls = member.perto.stats().polls;
        ms(3_000).await;
        member.perto.stats().polls - polls
    };
    assert_eq!(polls_in_three_seconds().await, 12, "250 ms apart");
    member.node.bus.faults.cut();
    ms(100).await;
    // Some more: a failed subscription puts the log in doubt.
    assert!((40..=50).contains(&polls_in_three_seconds().await), "75 ms apart");
    ring.end().await;
}
