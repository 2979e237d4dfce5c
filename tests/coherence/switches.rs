//! Tiers that are switched while instances run: what is served meanwhile, and what isn't when they go on again.

use std::time::Duration;

use perto::{StaleWhileLoading, SwitchError, Switching, Tier, TierMode, TroubleKind};

use crate::ring::{BOUND, CACHE, Member, POLL, Ring, eventually, ms, some};

const SOON: u64 = 300;

fn of(tier: Tier, mode: TierMode) -> Switching {
    Switching::of(CACHE, tier, mode)
}

/// Two instances that have key 1 in L1, and in L2.
async fn warm() -> Ring {
    let ring = Ring::of(2).await;
    ring.write(0, 1, "one").await;
    for member in &ring.members {
        assert_eq!(member.fresh(1).await, some("one"));
        assert_eq!(member.tier(1).await, Tier::Local);
        ms(5).await;
    }
    ring
}

fn switch(ring: &Ring, switching: &Switching) {
    ring.sim.postgres.switch(switching).unwrap();
}

async fn loads_again(member: &Member, key: u64) -> bool {
    let before = member.loads();
    member.fresh(key).await;
    member.loads() > before
}

/// By whoever switches, and with Redis dead.
#[tokio::test(start_paused = true)]
async fn l1_off_serves_nothing_from_it_and_holds_nothing_and_on_again_it_begins_empty() {
    let ring = warm().await;
    ring.members.iter().for_each(|member| member.node.remote.faults.cut());
    ring.members.iter().for_each(|member| member.node.bus.faults.cut());
    let [one, other] = &ring.members[..] else { unreachable!() };
    one.perto.switch(of(Tier::Local, TierMode::Off).because("a test")).await.unwrap();
    assert_eq!(one.cached(1), None, "when it returns, it is obeyed here");
    tokio::time::sleep(POLL).await;
    assert_eq!((other.cached(1), other.users.size().0), (None, 0));
    assert_eq!(other.users.get_ref(&1, |_| ()), None);
    for _ in 0..3 {
        assert!(loads_again(other, 1).await, "each read loads");
        assert_eq!(other.cached(1), None);
    }
    let read = other.users.get_many(&[1, 2]).await.unwrap();
    assert!(read.iter().all(|read| read.tier == Tier::Load));
    ring.write_silently(1, "two");
    ms(SOON).await;
    assert_eq!(other.fresh(1).await, some("two"));
    one.perto.switch(of(Tier::Local, TierMode::On)).await.unwrap();
    ms(SOON).await;
    assert_eq!(other.cached(1), None);
    assert_eq!(other.fresh(1).await, some("two"));
    assert_eq!(other.cached(1), Some(some("two")), "it fills again");
    assert!(one.perto.switches().is_empty());
    ring.end().await;
}

/// A load that began before L1 went off, and ends when it is on again, began when the write was not there.
#[tokio::test(start_paused = true)]
async fn what_was_under_way_while_l1_was_off_brings_nothing_old() {
    let ring = warm().await;
    let member = &ring.members[0];
    switch(&ring, &of(Tier::Local, TierMode::Off));
    ms(SOON).await;
    member.loader.after().close();
    let reading = member.reading(1);
    ms(20).await;
    ring.write_silently(1, "two");
    switch(&ring, &of(Tier::Local, TierMode::On));
    ms(SOON).await;
    member.loader.after().open();
    reading.await.unwrap().unwrap();
    assert_ne!(member.cached(1), Some(some("one")));
    assert_eq!(member.fresh(1).await, some("two"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn l1_read_only_serves_what_it_holds_evicts_what_is_written_and_takes_nothing() {
    let ring = warm().await;
    let member = &ring.members[1];
    ring.write(0, 2, "other").await;
    assert_eq!(member.fresh(2).await, some("other"));
    switch(&ring, &of(Tier::Local, TierMode::ReadOnly));
    ms(SOON).await;
    assert_eq!(member.cached(1), Some(some("one")));
    assert_eq!(member.fresh(3).await, None);
    assert_eq!(member.cached(3), None, "it came while L1 took nothing");
    ring.write_silently(2, "new");
    ms(SOON).await;
    assert_eq!(member.cached(2), None, "evicted as ever");
    assert_eq!(member.fresh(2).await, some("new"));
    switch(&ring, &of(Tier::Local, TierMode::On));
    ms(SOON).await;
    assert_eq!(member.cached(1), Some(some("one")), "it still holds that");
    assert_eq!(member.fresh(2).await, some("new"));
    assert_eq!(member.cached(2), Some(some("new")));
    ring.end().await;
}

/// Old values lie in L2, with no tombstone on them: whoever knows of the writes refuses them by their stamps, and so does one
/// who starts later.
#[tokio::test(start_paused = true)]
async fn l2_off_and_on_again_serves_nothing_that_was_written_by_hand_meanwhile() {
    let mut ring = warm().await;
    for mode in [TierMode::Off, TierMode::ReadOnly] {
        switch(&ring, &of(Tier::Remote, mode));
        ms(SOON).await;
        let (was, stored) = (mode.to_string(), ring.members[1].users.inspect(&1).await.unwrap());
        assert_eq!(matches!(stored.remote, perto::InRemote::NotUsed), mode == TierMode::Off);
        ring.write_silently(1, &was);
        ms(SOON).await;
        assert_eq!(ring.members[0].fresh(1).await, some(&was));
        assert_eq!(ring.members[0].tier(1).await, Tier::Local);
        ms(SOON).await;
        switch(&ring, &of(Tier::Remote, TierMode::On));
        ms(SOON).await;
        let refused = ring.members[1].users.stats().l2_refused;
        assert_eq!(ring.members[1].fresh(1).await, some(&was));
        assert!(ring.members[1].users.stats().l2_refused > refused, "{was}: what lies there is old");
        let late = ring.join().await;
        ms(SOON).await;
        assert_eq!(ring.members[late].fresh(1).await, some(&was));
        ms(SOON).await;
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn l2_off_is_not_asked_and_not_filled_and_read_only_is_asked_and_not_filled() {
    let ring = warm().await;
    let [one, other] = &ring.members[..] else { unreachable!() };
    let l2_hits = || other.users.stats().l2_hits;
    // In L2 alone, for this one.
    ring.write(0, 7, "seven").await;
    assert_eq!(one.fresh(7).await, some("seven"));
    ms(SOON).await;
    for (mode, hits) in [(TierMode::Off, 0), (TierMode::ReadOnly, 1)] {
        switch(&ring, &Switching::of_all(Tier::Remote, mode));
        ms(SOON).await;
        let before = l2_hits();
        switch(&ring, &of(Tier::Local, TierMode::Off));
        ms(SOON).await;
        assert_eq!(other.fresh(7).await, some("seven"));
        assert_eq!(l2_hits() - before, hits, "{mode}");
        // What is loaded now is in no tier.
        let key = 100 + hits;
        assert_eq!(one.fresh(key).await, None);
        ms(SOON).await;
        assert_eq!(other.tier(key).await, Tier::Load, "{mode}");
        switch(&ring, &of(Tier::Local, TierMode::On));
    }
    switch(&ring, &Switching::of_all(Tier::Remote, TierMode::On));
    ms(SOON).await;
    assert_eq!(one.fresh(200).await, None);
    ms(SOON).await;
    assert_eq!(other.tier(200).await, Tier::Remote);
    ring.end().await;
}

/// As hints and tombstones are for others, who may not know of the switch yet.
#[tokio::test(start_paused = true)]
async fn while_all_is_off_hints_go_on_and_tombstones_are_laid() {
    let ring = warm().await;
    for tier in [Tier::Local, Tier::Remote] {
        switch(&ring, &Switching::of_all(tier, TierMode::Off));
    }
    ms(SOON).await;
    let hints = ring.members[1].perto.stats().hints;
    ring.write(0, 1, "two").await;
    ms(20).await;
    assert_eq!(ring.members[1].perto.stats().hints, hints + 1);
    for tier in [Tier::Local, Tier::Remote] {
        switch(&ring, &Switching::of_all(tier, TierMode::On));
    }
    ms(SOON).await;
    let stored = ring.members[1].users.inspect(&1).await.unwrap();
    assert!(matches!(stored.remote, perto::InRemote::Tombstone(_)), "{:?}", stored.remote);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn where_l1_is_switched_nothing_stale_is_served_instead_of_a_load() {
    let mut ring = Ring::of(0).await;
    let stale = StaleWhileLoading::for_up_to(Duration::from_secs(60));
    ring.join_with(|builder| builder, |cache| cache.stale_while_loading(stale).refresh_ahead(BOUND)).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    ms(SOON).await;
    assert_eq!(member.fresh(1).await, some("one"));
    ring.write_silently(1, "two");
    ms(SOON).await;
    for mode in [TierMode::Off, TierMode::ReadOnly] {
        switch(&ring, &of(Tier::Local, mode));
        ms(SOON).await;
        assert_eq!(member.fresh(1).await, some("two"), "{mode}");
        switch(&ring, &of(Tier::Local, TierMode::On));
        ms(SOON).await;
        assert_eq!(member.fresh(1).await, some("two"), "{mode}");
        ring.write_silently(1, "two");
        ms(SOON).await;
    }
    assert_eq!(member.users.stats().stale_answers, 0);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_switch_is_a_trouble_with_who_and_why_until_it_ends_by_itself_or_by_somebody() {
    let ring = warm().await;
    let [one, other] = &ring.members[..] else { unreachable!() };
    let switching = of(Tier::Remote, TierMode::Off).because("Redis is slow").by("ana");
    one.perto.switch(switching.lasting(Duration::from_secs(20))).await.unwrap();
    one.perto.switch(Switching::of_all(Tier::Local, TierMode::ReadOnly)).await.unwrap();
    ms(SOON).await;
    let troubles = other.perto.health().troubles;
    let told = |cache: Option<&str>| {
        let of = |trouble: &&perto::Trouble| {
            trouble.kind == TroubleKind::Switched && trouble.cache.as_deref() == cache
        };
        troubles.iter().find(of).map(|trouble| trouble.detail.clone()).unwrap_or_default()
    };
    for part in ["l2 is off", "by ana", "Redis is slow", "`perto switch user l2 on`", " until "] {
        assert!(told(Some(CACHE)).contains(part), "{troubles:?}");
    }
    assert!(
        told(None).contains("l1 is read-only") && told(None).contains("perto switch '*' l1 on"),
        "{troubles:?}"
    );
    assert_eq!(other.perto.switches().len(), 2);

    one.perto.switch(Switching::of_all(Tier::Local, TierMode::On)).await.unwrap();
    ms(21_000).await;
    let is_over = || {
        ring.members
            .iter()
            .all(|member| member.perto.health().troubles.is_empty() && member.perto.switches().is_empty())
    };
    eventually("it is over", POLL, is_over).await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_switch_outlasts_a_crash_and_concerns_who_starts_later() {
    let mut ring = warm().await;
    switch(&ring, &of(Tier::Local, TierMode::Off));
    ms(SOON).await;
    ring.sim.postgres.crash(0);
    ms(1_500).await;
    let late = ring.join().await;
    for who in [0, late] {
        assert_eq!(ring.members[who].fresh(1).await, some("one"));
        assert_eq!(ring.members[who].cached(1), None, "{who}");
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_an_error_that_says_what_would() {
    let ring = Ring::of(1).await;
    let perto = &ring.members[0].perto;
    let unknown = perto.switch(Switching::of("usr", Tier::Local, TierMode::Off)).await.unwrap_err();
    assert_eq!(unknown.to_string(), "no cache \"usr\" is declared here; there are: user");
    assert!(matches!(unknown, SwitchError::UnknownCache { .. }));
    let load = perto.switch(of(Tier::Load, TierMode::Off)).await.unwrap_err();
    assert!(matches!(load, SwitchError::Senseless(_)), "{load:?}");
    ring.members[0].node.log.faults.cut();
    let cut = perto.switch(of(Tier::Local, TierMode::Off)).await.unwrap_err();
    assert!(matches!(cut, SwitchError::Log(_)), "{cut:?}");
    ring.members[0].node.log.faults.heal();
    perto.shutdown().await;
    let closed = perto.switch(of(Tier::Local, TierMode::Off)).await.unwrap_err();
    assert!(matches!(closed, SwitchError::Closed), "{closed:?}");
}

/// Who waits, waits for as long as ever: a switch stops nobody.
#[tokio::test(start_paused = true)]
async fn stronger_reads_and_views_are_granted_whatever_is_switched() {
    let ring = warm().await;
    for tier in [Tier::Local, Tier::Remote] {
        switch(&ring, &Switching::of_all(tier, TierMode::Off));
    }
    ms(SOON).await;
    let (one, other) = (&ring.members[0], &ring.members[1]);
    let written = ring.write(0, 1, "two").await;
    let options = perto::ReadOptions::at_least(written.token);
    let read = other.users.get_with(&1, options).await.unwrap();
    assert_eq!(read.value().cloned(), some("two"));
    ring.write_silently(1, "three");
    let read = other.users.get_with(&1, perto::ReadOptions::latest()).await.unwrap();
    assert_eq!(read.value().cloned(), some("three"));
    let view = async |view: perto::View| view.get(&one.users, &1).await;
    let read = one.perto.view(view).await.unwrap();
    assert_eq!(read.value().cloned(), some("three"));
    ring.end().await;
}
