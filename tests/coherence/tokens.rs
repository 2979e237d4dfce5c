//! Tokens: one reads one's own writes, on any instance.

use std::time::Duration;

use perto::{Error, ReadOptions, Tier, Token};

use crate::ring::{CACHE, POLL, Ring, ms, some, text};

#[tokio::test(start_paused = true)]
async fn a_token_reads_ones_own_write_on_any_instance() {
    let ring = Ring::of(2).await;
    let [other, _] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ms(1).await;
    other.fresh(1).await;
    other.node.bus.faults.lose(100);
    let written = ring.write(1, 1, "new").await;
    assert_eq!(other.cached(1), Some(some("old")), "no hint came");
    let token: Token = written.token.to_string().parse().unwrap();
    let read = other.users.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
    assert_eq!(text(&read), some("new"));
    let read = other.users.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
    assert_eq!((text(&read), read.tier), (some("new"), Tier::Local), "from then on it costs nothing");
    let reads = other.users.get_many_with(&[1, 2], ReadOptions::at_least(token)).await.unwrap();
    assert_eq!((text(&reads[0]), text(&reads[1])), (some("new"), None));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_with_a_token_is_not_served_by_a_load_begun_before_the_write() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "old");
    reader.node.bus.faults.lose(100);
    reader.loader.after().close();
    let first = reader.reading(1);
    reader.loader.after().reached_by(1).await;
    let token = ring.write(1, 1, "new").await.token;
    let users = reader.users.clone();
    let joined = crate::ring::spawn(async move { users.get_with(&1, ReadOptions::at_least(token)).await });
    ms(1).await;
    reader.loader.after().open();
    assert_eq!(text(&first.await.unwrap().unwrap()), some("old"));
    assert_eq!(text(&joined.await.unwrap().unwrap()), some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_from_before_a_crash_is_satisfied_by_what_is_fresh() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    let token = ring.write(0, 1, "one").await.token;
    ring.sim.postgres.crash(0);
    tokio::time::sleep(POLL).await;
    member.fresh(1).await;
    let polls = member.perto.stats().polls;
    let read = member.users.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
    assert_eq!(
        (text(&read), read.tier),
        (some("one"), Tier::Local),
        "its write is there, or lost with its epoch"
    );
    assert_eq!(member.perto.stats().polls, polls, "it has lived through that epoch");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_of_an_epoch_that_nobody_knows_costs_one_poll_for_all_who_hold_it() {
    let mut ring = Ring::of(1).await;
    let token = ring.write(0, 1, "one").await.token;
    ring.sim.postgres.crash(0);
    tokio::time::sleep(POLL).await;
    // It has started since, and knows of no other epoch.
    let late = ring.join().await;
    ms(300).await;
    let member = &ring.members[late];
    member.fresh(1).await;
    let (polls, loads) = (member.perto.stats().polls, member.loads());
    let reads: Vec<_> = (0..100)
        .map(|_| {
            let users = member.users.clone();
            crate::ring::spawn(async move { users.get_with(&1, ReadOptions::at_least(token)).await })
        })
        .collect();
    for read in reads {
        let read = read.await.unwrap().unwrap();
        assert_eq!((text(&read), read.tier), (some("one"), Tier::Local));
    }
    let known = member.perto.stats().polls;
    assert!(known <= polls + 2, "one may have been under way");
    member.users.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
    assert_eq!(member.perto.stats().polls, known, "from then on it is known");
    assert_eq!(member.loads(), loads);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn tokens_that_somebody_made_up_cost_few_polls_and_no_loads() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write(0, 1, "one").await;
    ms(300).await;
    member.fresh(1).await;
    let epoch = member.perto.health().epoch;
    for of_this_epoch in [true, false] {
        let (polls, loads, began) = (member.perto.stats().polls, member.loads(), tokio::time::Instant::now());
        for n in 0..200_u64 {
            let of = if of_this_epoch { epoch } else { 77 + n };
            let made_up: Token = format!("{of:016x}-{:x}", 900_000_000 + n).parse().unwrap();
            let read = member.users.get_with(&1, ReadOptions::at_least(made_up)).await;
            match read {
                Err(error) => assert!(of_this_epoch && matches!(error, Error::TokenAhead), "{error}"),
                Ok(read) => assert_eq!((of_this_epoch, read.tier), (false, Tier::Local)),
            }
        }
        let polls = member.perto.stats().polls - polls;
        assert!(
            u128::from(polls) <= began.elapsed().as_millis() / 50 + 2,
            "{polls} in {:?}",
            began.elapsed()
        );
        assert!(member.loads() <= loads + 1, "{of_this_epoch}: {} loads", member.loads() - loads);
    }
    // A true one is served meanwhile.
    let token = ring.write(0, 1, "two").await.token;
    let read = member.users.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
    assert_eq!(text(&read), some("two"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_true_token_waits_for_no_poll_that_made_up_ones_have_asked_for() {
    let ring = Ring::of(2).await;
    let [writer, reader] = &ring.members[..] else { unreachable!() };
    ring.write(0, 1, "one").await;
    ms(300).await;
    let epoch = writer.perto.health().epoch;
    let forging: Vec<_> = ring.members.iter().map(|member| member.users.clone()).collect();
    let forging = crate::ring::spawn(async move {
        for n in 0_u64.. {
            let made_up: Token = format!("{epoch:016x}-{:x}", 900_000_000 + n).parse().unwrap();
            for users in &forging {
                let read = users.get_with(&2, ReadOptions::at_least(made_up));
                let _ahead = tokio::time::timeout(Duration::from_millis(1), read).await;
            }
        }
    });
    ms(1_000).await;
    let polls: Vec<u64> = ring.members.iter().map(|member| member.perto.stats().polls).collect();
    let began = tokio::time::Instant::now();
    for n in 0..40 {
        let value = format!("v{n}");
        let token = ring.write(0, 1, &value).await.token;
        for member in [writer, reader] {
            let asked = tokio::time::Instant::now();
            let read = member.users.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
            assert_eq!(text(&read), some(&value));
            assert!(asked.elapsed() < Duration::from_millis(10), "{:?}", asked.elapsed());
        }
        ms(37).await;
    }
    let most = u64::try_from(began.elapsed().as_millis()).unwrap() / 50 + 2;
    for (member, before) in ring.members.iter().zip(polls) {
        let polls = member.perto.stats().polls - before;
        assert!(polls <= most, "{polls} polls, not {most}");
    }
    forging.abort();
    ring.end().await;
}

/// A token of the epoch before would ask for nothing where that is known to have ended.
#[tokio::test(start_paused = true)]
async fn a_clear_before_a_new_epoch_is_heard_of_is_read_by_its_token_where_it_has_been() {
    let ring = Ring::of(2).await;
    let [clearing, other] = &ring.members[..] else { unreachable!() };
    ring.write(0, 1, "one").await;
    ring.sim.postgres.crash(0);
    other.users.get_with(&1, ReadOptions::latest()).await.unwrap();
    assert_eq!(other.tier(1).await, Tier::Local);
    other.node.bus.faults.lose(100);
    let token = clearing.users.clear().await.unwrap();
    assert_eq!(clearing.perto.stats().recoveries, 1, "it has not heard of the epoch");
    for tier in [Tier::Load, Tier::Local] {
        let read = other.users.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
        assert_eq!((text(&read), read.tier), (some("one"), tier));
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_ahead_of_the_database_is_an_error() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    let mut open = ring.sim.postgres.begin();
    open.put(CACHE, &1_u64, &"not yet").unwrap();
    let ahead: Token = format!("{:016x}-{:x}", member.perto.health().epoch, open.xid()).parse().unwrap();
    let error = member.users.get_with(&1, ReadOptions::at_least(ahead)).await.unwrap_err();
    assert!(matches!(error, Error::TokenAhead) && error.is_retryable());
    open.commit().unwrap();
    let read = member.users.get_with(&1, ReadOptions::at_least(ahead)).await.unwrap();
    assert_eq!(text(&read), some("not yet"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_asks_the_primary_where_the_loader_reads_a_replica_that_lacks_the_write() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "old");
    ring.sim.postgres.replay(0);
    reader.loader.use_replica(true);
    reader.node.bus.faults.lose(100);
    let token = ring.write(1, 1, "new").await.token;
    let read = reader.users.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
    assert_eq!(text(&read), some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn no_text_makes_a_token_panic() {
    for text in
        ["", "-", "1-", "-1", "x-1", "1-x", "11111111111111111-1", "1-11111111111111111", "+1-1", "1-2-3"]
    {
        assert!(text.parse::<Token>().is_err(), "{text:?}");
    }
}

/// Two snapshots may end at the same number, and one of them still lack what the other one has.
#[tokio::test(start_paused = true)]
async fn a_token_of_a_read_asks_for_all_that_the_read_contained() {
    let ring = Ring::of(2).await;
    let [one, other] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "old");
    let mut open = ring.sim.postgres.begin();
    open.put(CACHE, &1_u64, &"new").unwrap();
    ring.write_silently(2, "later");
    assert_eq!(one.fresh(1).await, some("old"));
    open.commit().unwrap();
    other.node.remote.faults.cut();
    let read = other.users.get(&1).await.unwrap();
    assert_eq!(text(&read), some("new"));
    assert_eq!(one.cached(1), Some(some("old")), "no poll came, and no hint");
    let read = one.users.get_with(&1, ReadOptions::at_least(read.token().unwrap())).await.unwrap();
    assert_eq!(text(&read), some("new"));
    ring.end().await;
}
