//! Hints: fast when they come, harmless when they don't.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use perto::sim::{Sim, SimBus};
use perto::{Bus, Cache, Event, ReadOptions, RemoteError, State, Subscription, Tier, Token};

use crate::ring::{BOUND, CACHE, POLL, Ring, eventually, ms, some};

#[tokio::test(start_paused = true)]
async fn a_write_is_seen_by_all_at_once() {
    let ring = Ring::of(3).await;
    for (round, value) in ["a", "b", "c"].into_iter().enumerate() {
        ring.write(round, 1, value).await;
        ms(1).await;
        for member in &ring.members {
            assert_eq!(member.fresh(1).await, some(value));
        }
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_hint_is_repaired_within_one_poll() {
    let ring = Ring::of(2).await;
    let [reader, writer] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ms(1).await;
    assert_eq!(reader.fresh(1).await, some("old"));
    assert_eq!(reader.tier(1).await, Tier::Local);
    reader.node.bus.faults.lose(100);
    ring.write(1, 1, "new").await;
    ms(1).await;
    assert_eq!(reader.cached(1), Some(some("old")), "the hint was lost");
    assert_eq!(writer.fresh(1).await, some("new"));
    eventually("the tail evicts it", POLL, || reader.cached(1).is_none()).await;
    assert_eq!(reader.fresh(1).await, some("new"));
    let stats = reader.perto.stats();
    assert_eq!((stats.repairs, stats.repairs_overtaken), (1, 0));
    assert_eq!(reader.perto.health().state, State::Coherent, "a bus that drops silently looks healthy");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_hint_that_a_poll_has_overtaken_leaves_nothing_repaired() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ms(1).await;
    assert_eq!(reader.fresh(1).await, some("old"));
    let far = POLL + POLL / 2;
    reader.node.bus.faults.delay(far, far);
    ring.write(1, 1, "new").await;
    eventually("the tail evicts it", POLL, || reader.cached(1).is_none()).await;
    let stats = reader.perto.stats();
    assert_eq!((stats.repairs, stats.repairs_overtaken, stats.hints_late), (1, 0, 0));
    eventually("the hint comes", far * 2, || reader.perto.stats().hints_late == 1).await;
    assert_eq!(reader.perto.stats().repairs_overtaken, 1);
    ring.end().await;
}

/// Two instances with one log and one channel, and nothing that both declare.
#[tokio::test(start_paused = true)]
async fn what_an_instance_does_not_declare_brings_it_no_rows_and_still_shows_what_was_lost() {
    let ring = Ring::of(1).await;
    let [reader] = &ring.members[..] else { unreachable!() };
    let other = ring.sim.node().builder("ring").build().unwrap();
    let loader = ring.sim.postgres.loader("city").function();
    let cities: Cache<u64, String> = other.cache("city").loader(loader).unwrap();
    other.start().await.unwrap();
    ms(300).await;
    let city = async |name: &str| {
        let written = ring.sim.postgres.write("city", &1, &name).unwrap();
        other.announce(written.token, &written.changes).await;
        written.token
    };
    ring.write_silently(1, "old");
    assert_eq!(reader.fresh(1).await, some("old"));
    ms(300).await;
    let before = reader.perto.stats();
    for round in 0..100 {
        let token = city(&round.to_string()).await;
        ms(10).await;
        // Its position moves on: the token asks for no more than a poll.
        let read = reader.users.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
        assert_eq!((read.tier, read.value().cloned()), (Tier::Local, some("old")));
    }
    let stats = reader.perto.stats();
    assert_eq!((stats.rows, stats.gaps, stats.hints_late), (before.rows, 0, 0));
    assert_eq!((stats.hints, reader.perto.propagation().count()), (before.hints + 100, 0));
    assert_eq!(cities.get(&1).await.unwrap().value().cloned(), some("99"));
    // The number of a hint that was lost is missed, of whatever cache the next one is.
    reader.node.bus.faults.lose(100);
    let lost = ring.write_silently(1, "new");
    other.announce(lost.token, &lost.changes).await;
    reader.node.bus.faults.lose(0);
    city("last").await;
    assert_eq!(reader.cached(1), Some(some("old")));
    eventually("a poll that the gap asks for", Duration::from_millis(80), || reader.cached(1).is_none())
        .await;
    assert_eq!((reader.perto.stats().gaps, reader.perto.stats().rows), (1, before.rows + 1));
    other.shutdown().await;
    ring.end().await;
}

/// Far away: a ping takes longer than the time between two polls, and less than the limit of a fence.
#[tokio::test(start_paused = true)]
async fn hints_are_applied_though_a_fence_takes_longer_than_a_poll_interval() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    let far = Duration::from_millis(300);
    reader.node.bus.faults.delay(far, far);
    for round in 0..20 {
        ring.write(1, 1, &round.to_string()).await;
        ms(200).await;
    }
    ms(1_000).await;
    assert_eq!(reader.perto.stats().hints, 20);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn duplicate_and_reordered_hints_are_harmless() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    reader.node.bus.faults.double(100);
    reader.node.bus.faults.delay(Duration::ZERO, Duration::from_millis(100));
    for round in 0..30 {
        ring.write(1, 1, &round.to_string()).await;
        ms(3).await;
    }
    assert_eq!(reader.fresh(1).await, some("29"), "a load after the last write");
    let loads = reader.loads();
    ms(150).await;
    assert!(reader.perto.stats().hints >= 60, "{:?}", reader.perto.stats());
    assert_eq!(reader.cached(1), Some(some("29")), "late duplicates evict nothing that contains them");
    assert_eq!(reader.loads(), loads);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn hints_that_change_places_are_no_gap() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    reader.node.bus.faults.delay(Duration::ZERO, Duration::from_millis(2));
    for round in 0..200 {
        ring.write(1, 1, &round.to_string()).await;
        ms(1).await;
    }
    ms(10).await;
    let stats = reader.perto.stats();
    assert_eq!((stats.hints, stats.gaps, stats.hints_lost), (200, 0, 0));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_gap_in_a_publishers_sequence_polls_at_once() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ring.write(1, 2, "old").await;
    ms(1).await;
    reader.fresh(1).await;
    // Just after a poll, so that the next would come in 250 ms.
    let polls = reader.perto.stats().polls;
    eventually("a poll", POLL, || reader.perto.stats().polls > polls).await;
    let mut events = reader.perto.events();
    reader.node.bus.faults.lose(100);
    ring.write(1, 1, "new").await;
    ring.write(1, 1, "newer").await;
    reader.node.bus.faults.lose(0);
    assert_eq!(reader.cached(1), Some(some("old")));
    ring.write(1, 2, "new").await;
    eventually("a poll in doubt", Duration::from_millis(10), || reader.cached(1).is_none()).await;
    assert_eq!(reader.fresh(1).await, some("newer"));
    assert_eq!(reader.perto.stats().gaps, 1);
    let mut gaps = Vec::new();
    while let Ok(event) = events.try_recv() {
        gaps.extend(matches!(event, Event::Gap { .. }).then_some(event));
    }
    assert_eq!(gaps, [Event::Gap { lost: 2 }]);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn hints_alone_keep_no_lease() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    reader.fresh(1).await;
    reader.node.log.faults.cut();
    for round in 0..30 {
        ring.write(1, 2, &round.to_string()).await;
        ms(50).await;
    }
    assert_eq!(reader.cached(1), None, "hints came all the time, but none says that none was lost");
    assert_eq!(reader.perto.health().state, State::Unverified);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_absurd_transaction_is_neither_applied_nor_announced() {
    let ring = Ring::of(2).await;
    let [reader, writer] = &ring.members[..] else { unreachable!() };
    let written = ring.write(1, 1, "one").await;
    ms(1).await;
    reader.fresh(1).await;
    let (published, heard) = (writer.perto.stats().hints_published, reader.perto.stats().hints);
    let epoch = writer.perto.health().epoch;
    let absurd: Token = format!("{epoch:016x}-{:x}", 1_u64 << 60).parse().unwrap();
    writer.perto.announce(absurd, &written.changes).await;
    ms(1).await;
    assert_eq!((writer.perto.stats().hints_published, reader.perto.stats().hints), (published, heard));
    writer.fresh(1).await;
    assert_eq!(writer.cached(1), Some(some("one")), "the writer's own bucket is not poisoned");
    assert_eq!(
        reader.cached(1),
        Some(some("one")),
        "believed, it would keep the bucket from being cached for ever"
    );
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn hints_of_another_epoch_are_ignored() {
    let ring = Ring::of(2).await;
    let [reader, writer] = &ring.members[..] else { unreachable!() };
    let written = ring.write(1, 1, "one").await;
    // The writer does not learn of the crash, and goes on to announce what it wrote before.
    writer.node.log.faults.hang();
    ring.sim.postgres.crash(0);
    tokio::time::sleep(POLL * 2).await;
    reader.fresh(1).await;
    let refused = reader.perto.stats().hints_refused;
    ring.announce(1, &written).await;
    ms(1).await;
    assert_eq!(reader.perto.stats().hints_refused, refused + 1);
    assert_eq!(reader.cached(1), Some(some("one")));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn noise_on_the_bus_is_refused_and_counted() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    member.fresh(1).await;
    let noise = [&b""[..], b"PH", b"PH\x01", b"PH\x01\xff\xff\xff\xff", b"PH\x02abc", &[0xff; 300_000]];
    for bytes in noise {
        member.node.bus.publish(Bytes::copy_from_slice(bytes)).await.unwrap();
    }
    ms(1).await;
    assert_eq!(member.perto.stats().hints_refused, noise.len() as u64);
    assert_eq!(member.cached(1), Some(None));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn rows_whose_key_is_none_of_the_caches_clear_it_and_are_counted() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    tokio::time::sleep(POLL).await;
    member.fresh(1).await;
    let mut transaction = ring.sim.postgres.begin();
    transaction.touch(CACHE, "not a number");
    transaction.commit().unwrap();
    eventually("the cache is cleared", POLL, || member.cached(1).is_none()).await;
    assert_eq!(member.users.stats().keys_misread, 1);
    member.fresh(1).await;
    tokio::time::sleep(POLL * 2).await;
    assert_eq!(member.cached(1), Some(some("one")), "once");
    ring.end().await;
}

/// A key whose type can't be trusted in any of its parts: with 13, `Display` fails, and so `to_string` panics.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Unlucky(u64);

impl std::fmt::Display for Unlucky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 13 { Err(std::fmt::Error) } else { self.0.fmt(f) }
    }
}

impl std::str::FromStr for Unlucky {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_can_not_be_written_as_text_ends_no_tail_and_clears_its_cache() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("ring").build().unwrap();
    let users: Cache<Unlucky, String> =
        perto.cache(CACHE).loader(sim.postgres.loader(CACHE).function()).unwrap();
    perto.start().await.unwrap();
    users.get(&Unlucky(7)).await.unwrap();
    assert!(users.get_if_cached(&Unlucky(7)).is_some());
    let mut transaction = sim.postgres.begin();
    transaction.touch(CACHE, "13");
    transaction.commit().unwrap();
    tokio::time::sleep(POLL).await;
    assert!(users.get_if_cached(&Unlucky(7)).is_none(), "nothing of this cache is safe");
    assert_eq!(users.stats().keys_misread, 1);
    tokio::time::sleep(BOUND * 2).await;
    assert_eq!(perto.health().state, State::Coherent, "the tail goes on");
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_written_all_the_time_makes_nobody_poll_more_than_twenty_times_a_second() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    let before = reader.perto.stats().polls;
    for n in 0..400 {
        ring.write(1, 1, &n.to_string()).await;
        ms(5).await;
    }
    let polls = reader.perto.stats().polls - before;
    assert!(reader.perto.stats().coarse > 10, "each asks for a poll");
    assert!(polls <= 2 * 20 + 2, "{polls} polls in two seconds");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_subscription_polls_at_once_and_is_made_again() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ms(1).await;
    reader.fresh(1).await;
    reader.node.bus.faults.cut();
    ring.write(1, 1, "new").await;
    eventually("a poll in doubt", Duration::from_millis(10), || reader.cached(1).is_none()).await;
    assert_eq!(reader.perto.health().state, State::Isolated);
    reader.node.bus.faults.heal();
    eventually("subscribed again", BOUND, || reader.perto.health().state == State::Coherent).await;
    let hints = reader.perto.stats().hints;
    ring.write(1, 1, "newest").await;
    ms(1).await;
    assert_eq!(reader.perto.stats().hints, hints + 1);
    assert_eq!(reader.fresh(1).await, some("newest"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_whole_cache_invalidation_that_races_an_insert_leaves_it_dead_on_arrival() {
    for announced in [true, false] {
        let ring = Ring::of(2).await;
        let [reader, other] = &ring.members[..] else { unreachable!() };
        ring.write_silently(1, "old");
        ring.write_silently(2, "old");
        tokio::time::sleep(POLL).await;
        reader.fresh(2).await;
        reader.loader.after().close();
        let reading = reader.reading(1);
        reader.loader.after().reached_by(1).await;
        let mut bulk = ring.sim.postgres.begin();
        bulk.bulk(CACHE, &[(1_u64, "new"), (2, "new")]).unwrap();
        let written = bulk.commit().unwrap();
        if announced {
            ring.announce(1, &written).await;
            ms(1).await;
        } else {
            tokio::time::sleep(POLL).await;
        }
        assert_eq!(reader.cached(2), None, "every key of the cache is dead");
        reader.loader.after().open();
        reading.await.unwrap().unwrap();
        ms(1).await;
        assert_eq!(reader.cached(1), None);
        for member in [reader, other] {
            assert_eq!((member.fresh(1).await, member.fresh(2).await), (some("new"), some("new")));
        }
        assert_eq!(reader.tier(1).await, Tier::Local, "and it is cached again from then on");
        ring.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_by_hand_reaches_all_and_is_in_the_log() {
    let ring = Ring::of(3).await;
    for member in &ring.members {
        member.fresh(1).await;
        member.fresh(2).await;
    }
    ring.members[2].node.bus.faults.lose(100);
    ring.members[0].users.invalidate(&1).await.unwrap();
    ms(1).await;
    assert_eq!((ring.members[0].cached(1), ring.members[1].cached(1)), (None, None));
    eventually("the log has it", POLL, || ring.members[2].cached(1).is_none()).await;
    assert!(ring.members.iter().all(|member| member.cached(2).is_some()));
    ring.members[0].users.clear().await.unwrap();
    eventually("the log has that too", POLL, || ring.members.iter().all(|member| member.cached(2).is_none()))
        .await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_commits_behind_later_ones_is_not_skipped() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write_silently(1, "old");
    tokio::time::sleep(POLL).await;
    member.fresh(1).await;
    let mut slow = ring.sim.postgres.begin();
    slow.put(CACHE, &1_u64, &"new").unwrap();
    for round in 0..5 {
        ring.write_silently(2, &round.to_string());
        tokio::time::sleep(POLL).await;
    }
    // Five polls have gone past its number: a cursor by number would never come back.
    assert_eq!(member.cached(1), Some(some("old")));
    slow.commit().unwrap();
    eventually("its row is applied", POLL, || member.cached(1).is_none()).await;
    assert_eq!(member.fresh(1).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_rolled_back_write_invalidates_nothing() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write_silently(1, "old");
    tokio::time::sleep(POLL).await;
    member.fresh(1).await;
    let mut transaction = ring.sim.postgres.begin();
    transaction.put(CACHE, &1_u64, &"never").unwrap();
    transaction.rollback();
    tokio::time::sleep(POLL * 2).await;
    assert_eq!(member.cached(1), Some(some("old")));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn five_unconfirmed_writes_to_one_bucket_make_it_coarse_and_never_wrong() {
    let ring = Ring::of(2).await;
    let [reader, writer] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "old");
    let polls = reader.perto.stats().polls;
    eventually("a poll", POLL, || reader.perto.stats().polls > polls).await;
    let mut early = ring.sim.postgres.begin();
    early.put(CACHE, &1_u64, &"new").unwrap();
    for _ in 0..4 {
        let mut touching = ring.sim.postgres.begin();
        touching.touch(CACHE, "1");
        ring.announce(1, &touching.commit().unwrap()).await;
    }
    ms(1).await;
    // Its snapshot contains the four, and not the early one.
    reader.loader.after().close();
    let reading = reader.reading(1);
    reader.loader.after().reached_by(1).await;
    writer.node.remote.faults.lose(100);
    ring.announce(1, &early.commit().unwrap()).await;
    ms(1).await;
    assert_eq!(reader.perto.stats().coarse, 1, "there is room for four");
    ring.sim.remote.flush();
    reader.loader.after().open();
    reading.await.unwrap().unwrap();
    ms(1).await;
    assert_eq!(reader.cached(1), None);
    assert_eq!((reader.fresh(1).await, reader.users.stats().l2_refused), (some("new"), 1));
    ring.end().await;
}

/// As where hints are published at one server and awaited at another one.
#[derive(Debug)]
struct Unheard(Arc<SimBus>, AtomicBool);

impl Bus for Unheard {
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<Option<u64>, RemoteError>> {
        if self.1.load(Ordering::Acquire) {
            return Box::pin(async { Ok(Some(0)) });
        }
        self.0.publish(message)
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, RemoteError>> {
        self.0.subscribe()
    }
}

#[tokio::test(start_paused = true)]
async fn hints_that_nobody_hears_are_a_trouble_until_somebody_does() {
    let mut ring = Ring::of(1).await;
    let node = ring.sim.node();
    let bus = Arc::new(Unheard(Arc::clone(&node.bus), true.into()));
    let given = Arc::clone(&bus);
    let writer = ring.join_with(move |perto| perto.bus(given), |cache| cache).await;
    ms(300).await;
    let kinds = |ring: &Ring| -> Vec<&str> {
        let troubles = ring.members[writer].perto.health().troubles;
        troubles.iter().map(|trouble| trouble.kind.name()).collect()
    };
    assert_eq!(kinds(&ring), [""; 0]);
    ring.write(writer, 1, "a").await;
    // Its connections are made anew, which here takes no time.
    assert_eq!(ring.members[writer].perto.stats().hints_failed, 1, "nobody is told");
    assert_eq!(kinds(&ring), ["hints-refused"]);
    bus.1.store(false, Ordering::Release);
    ms(11_000).await;
    ring.write(writer, 1, "b").await;
    assert_eq!((kinds(&ring), ring.members[writer].perto.health().state), (vec![], State::Coherent));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_look_in_place_is_judged_as_a_read_is() {
    let ring = Ring::of(2).await;
    let [member, writer] = &ring.members[..] else { unreachable!() };
    let look = |key: u64| member.users.get_ref(&key, |name| name.cloned());
    ring.write_silently(1, "old");
    assert_eq!(look(1), None, "it is not held yet");
    assert_eq!((member.fresh(1).await, member.fresh(2).await), (some("old"), None));
    assert_eq!((look(1), look(2)), (Some(some("old")), Some(None)), "what is not there is known too");
    ring.write(1, 1, "new").await;
    ms(1).await;
    assert_eq!(look(1), None, "a hint has evicted it");
    assert_eq!(writer.fresh(1).await, some("new"));
    assert_eq!((member.fresh(1).await, look(1)), (some("new"), Some(some("new"))));
    member.node.log.faults.cut();
    tokio::time::sleep(BOUND + POLL).await;
    assert_eq!((look(1), look(2)), (None, None), "without a lease nothing is fresh");
    ring.end().await;
}
