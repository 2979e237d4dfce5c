//! Hints that somebody makes up: what they cost is bounded, in loads, polls and time.

use std::time::Duration;

use perto::{Change, State, Tier, Token, TroubleKind};
use tokio::time::Instant;

use crate::ring::{CACHE, Member, POLL, Ring, eventually, ms, some, text};

/// Who can publish can say anything. As an instance would, so it is applied there too.
async fn forge(forger: &Member, xid: u64, keys: Option<&[u64]>) {
    let token: Token = format!("{:016x}-{xid:x}", forger.perto.health().epoch).parse().unwrap();
    let keys = keys.map(|keys| keys.iter().map(u64::to_string).collect());
    forger.perto.announce(token, &[Change { cache: CACHE.to_owned(), keys }]).await;
}

fn untrue(member: &Member) -> bool {
    member.perto.health().troubles.iter().any(|trouble| trouble.kind == TroubleKind::HintsUntrue)
}

#[tokio::test(start_paused = true)]
async fn a_hint_that_somebody_made_up_is_forgotten_within_two_polls_whatever_it_says() {
    let ring = Ring::of(2).await;
    let [reader, forger] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "one");
    // A transaction that goes on, elsewhere: snapshots keep its number as their first.
    let mut open = ring.sim.postgres.begin();
    open.put("other", &1_u64, &"never").unwrap();
    let running = open.xid();
    ring.write_silently(2, "two");
    ms(300).await;
    let next = ring.sim.postgres.snapshot().xmax();
    for xid in [running, next, next + 900_000_000] {
        for keys in [Some(&[1][..]), None] {
            reader.fresh(1).await;
            let polls = reader.perto.stats().polls;
            forge(forger, xid, keys).await;
            ms(1).await;
            assert_eq!(reader.tier(1).await, Tier::Load, "a hint is a reason to evict");
            eventually("two polls", POLL * 2, || reader.perto.stats().polls >= polls + 2).await;
            reader.fresh(1).await;
            assert_eq!(
                (reader.tier(1).await, reader.fresh(1).await),
                (Tier::Local, some("one")),
                "{xid} {keys:?}"
            );
            // Else it is one of many.
            ms(5_000).await;
        }
    }
    assert!(untrue(reader));
    assert_eq!(reader.perto.stats().hints_untrue, 6);
    assert_eq!(reader.perto.health().state, State::Coherent);
    ms(60_000).await;
    assert!(!untrue(reader), "it was long ago");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn more_of_them_than_a_bucket_has_room_for_close_it_for_two_polls_beside_a_long_transaction() {
    let ring = Ring::of(2).await;
    let [reader, forger] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "one");
    let mut open = ring.sim.postgres.begin();
    open.put("other", &1_u64, &"never").unwrap();
    let next = open.xid() + 1;
    ring.write_silently(2, "two");
    ms(300).await;
    let polls = reader.perto.stats().polls;
    for n in 0..8 {
        forge(forger, next + 10 + n, Some(&[1])).await;
    }
    ms(1).await;
    assert_eq!(reader.perto.stats().coarse, 4, "there is room for four");
    eventually("two polls", POLL, || reader.perto.stats().polls >= polls + 2).await;
    reader.fresh(1).await;
    assert_eq!(reader.tier(1).await, Tier::Local);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_them_leaves_reads_in_l1_and_polls_few() {
    for keys in [Some(&[1][..]), None] {
        let ring = Ring::of(2).await;
        let [reader, forger] = &ring.members[..] else { unreachable!() };
        ring.write_silently(1, "one");
        reader.fresh(1).await;
        let (polls, loads) = (reader.perto.stats().polls, reader.loads());
        let mut from_l1 = 0;
        for n in 0..5_000 {
            forge(forger, 1_000_000 + 77 * n, keys).await;
            from_l1 += u64::from(reader.tier(1).await == Tier::Local);
            ms(1).await;
        }
        let (polls, loads) = (reader.perto.stats().polls - polls, reader.loads() - loads);
        assert!(polls <= 5 * 20, "{polls} polls in five seconds");
        assert!(loads <= 500 && from_l1 >= 4_500, "{loads} loads, {from_l1} from L1");
        assert!(untrue(reader));
        assert_eq!(reader.perto.health().state, State::Isolated, "writes of others are seen by polls");
        // What is true is seen by the next poll meanwhile, and by hints again some time after.
        ring.write(1, 1, "two").await;
        eventually("a poll brings it", Duration::from_millis(80), || reader.cached(1).is_none()).await;
        ms(11_000).await;
        assert_eq!(reader.perto.health().state, State::Coherent);
        assert_eq!(reader.fresh(1).await, some("two"));
        ring.write(1, 1, "three").await;
        ms(1).await;
        assert_eq!(reader.cached(1), None, "hints are believed again");
        let stats = reader.perto.stats();
        assert_eq!((stats.gaps, stats.hints_lost), (0, 0), "what was left aside has come, and is no gap");
        ring.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_true_hint_outlives_the_poll_that_was_under_way_when_it_came() {
    let ring = Ring::of(2).await;
    let [reader, writer] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "old");
    ms(300).await;
    reader.node.log.faults.delay(Duration::from_millis(100), Duration::from_millis(100));
    ms(1_000).await;
    // A load that has read the old value.
    reader.loader.after().close();
    let reading = reader.reading(1);
    reader.loader.after().reached_by(1).await;
    let poll = async || {
        let polls = reader.perto.stats().polls;
        eventually("a poll", POLL * 2, || reader.perto.stats().polls > polls).await;
        Instant::now()
    };
    let (one, next) = (poll().await, poll().await);
    let between = next - one;
    tokio::time::sleep(between - Duration::from_millis(50)).await;
    writer.node.remote.faults.lose(100);
    ring.write(1, 1, "new").await;
    let written = Instant::now();
    // It comes back so soon that it has read the log before the write.
    let back = poll().await;
    assert!(back - written < Duration::from_millis(100), "{:?} of {between:?}", back - written);
    reader.loader.after().open();
    assert_eq!(text(&reading.await.unwrap().unwrap()), some("old"), "it began before the write");
    ms(1).await;
    assert_eq!(reader.cached(1), None, "the hint told of a write that the load misses");
    assert_eq!((reader.fresh(1).await, reader.perto.stats().hints_untrue), (some("new"), 0));
    ring.end().await;
}
