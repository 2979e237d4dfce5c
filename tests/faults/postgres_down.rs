//! Postgres cut off, slow, or trimmed past what an instance has read.

use std::time::{Duration, Instant};

use perto::proxy::{Fault, FaultProxy};
use perto::{Error, Event, Freshness, Outage, Recovery, State, Tier};

use crate::support::engines::{moved_to, place_of};
use crate::support::wait::{ends, eventually};
use crate::world::{BOUND, Instance, World, coherent};

/// An instance whose log is behind a proxy. Its loader is not: what it may ask then is its policy.
async fn behind(world: &World, proxy: &FaultProxy, outage: Outage) -> Instance {
    let proxied = moved_to(&world.database, &proxy.address().to_string());
    world.start_with(|perto| perto.postgres(&proxied), |cache| cache.outage(outage)).await
}

/// Cut at `t`, so no poll is sent after it: the lease ends at `t + BOUND` at the latest, and a read that begins later is
/// never fresh. One that is fresh before may be older than the write, which comes after the cut: it is within the bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_log_is_cut_off_nothing_cached_is_served_as_fresh_beyond_the_bound() {
    for fault in [Fault::Cut, Fault::BlackHole, Fault::BlackHoleToClient] {
        let world = World::new().await;
        let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
        let a = behind(&world, &proxy, Outage::ServeStale { max: Duration::from_secs(60) }).await;
        coherent([&a]).await;
        world.put(1, 1).await;
        a.polled().await;
        assert_eq!(a.fresh(1).await, Some(1));

        proxy.set(fault);
        let cut = Instant::now();
        world.put(1, 2).await;
        let written = Instant::now();
        eventually("a read is unverified", async || {
            let began = Instant::now();
            let read = a.read(1).await;
            assert_eq!((read.value(), read.tier), (Some(&1), Tier::Local));
            match read.freshness {
                Freshness::Fresh => {
                    assert!(began - written <= BOUND && began - cut <= BOUND + Duration::from_millis(2));
                    false
                }
                Freshness::Unverified { .. } => true,
                _ => panic!("{read:?}"),
            }
        })
        .await;
        a.becomes(State::Unverified).await;
        let since = |read: perto::Read<i64>| match read.freshness {
            Freshness::Unverified { since } => since,
            _ => panic!("{read:?}"),
        };
        let first = since(a.read(1).await);
        // Held for a tenth of a bound, to see the time grow.
        tokio::time::sleep(BOUND / 10).await;
        assert!(since(a.read(1).await) >= first + BOUND / 20);
        assert!(a.items.stats().unverified >= 2);
        assert_eq!(a.items.get_if_cached(&1).map(|read| read.tier), None, "only fresh values");

        eventually("a failed poll is told", async || {
            a.events().iter().any(|event| matches!(event, Event::PollFailed { .. }))
        })
        .await;

        proxy.set(Fault::None);
        coherent([&a]).await;
        assert_eq!(a.fresh(1).await, Some(2));
        let told = |from, to| Event::State { from, to };
        let events = a.events();
        assert!(
            events.iter().any(|event| matches!(event, Event::State { to: State::Unverified, .. })),
            "{events:?}"
        );
        assert!(!events.contains(&told(State::Unverified, State::Recovering)), "L1 is kept: {events:?}");
        assert!(!events.contains(&Event::Recovered { why: Recovery::NewEpoch }), "{events:?}");
    }
}

/// The server says on which line of its own source code it refused, and the client shows that.
#[tokio::test]
async fn what_postgres_refuses_is_told_without_a_line_of_its_source_code() {
    let world = World::new().await;
    let a = world.start().await;
    coherent([&a]).await;
    let refuses = "begin raise exception 'not now'; end";
    world
        .sql(&format!("create or replace function origin() returns text language plpgsql as $$ {refuses} $$"))
        .await;
    eventually("a failed poll is told", async || {
        a.events().iter().any(|event| {
            let Event::PollFailed { error } = event else { return false };
            assert!(error.contains("not now") && !error.contains("at line"), "{error}");
            true
        })
    })
    .await;
}

#[tokio::test]
async fn an_error_around_what_postgres_says_tells_it_once() {
    #[derive(Debug, thiserror::Error)]
    enum Wrapped {
        #[error("the query failed: {0}")]
        Around(#[from] sqlx::Error),
        #[error(transparent)]
        Bare(sqlx::Error),
    }
    let world = World::new().await;
    let fails = async || sqlx::query("select 1 / 0").execute(&world.pool).await.unwrap_err();
    for (error, told) in [
        (Wrapped::Around(fails().await), "the query failed: division by zero"),
        (Wrapped::Bare(fails().await), "error returned from database: division by zero"),
    ] {
        let told = format!("the loader of cache item failed: {told}");
        let error = Error::Load { cache: "item".into(), source: std::sync::Arc::new(error) };
        assert_eq!(format!("{error:?}"), told);
    }
}

/// What was not written in between is served again without a load: the cursor's replay revalidates it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_what_was_not_written_is_still_cached() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
    let a = behind(&world, &proxy, Outage::default()).await;
    coherent([&a]).await;
    world.sql("insert into items select n, 1 from generate_series(1, 20) n").await;
    a.polled().await;
    for id in 1..=20 {
        a.fresh(id).await;
    }
    proxy.set(Fault::BlackHole);
    world.sql("update items set v = 2 where id <= 10").await;
    a.becomes(State::Unverified).await;
    proxy.set(Fault::None);
    coherent([&a]).await;
    for id in 1..=20 {
        let expected = if id <= 10 { (Some(2), Tier::Load) } else { (Some(1), Tier::Local) };
        assert_eq!(a.fresh_from(id).await, expected, "{id}");
    }
}

/// Stale for as long as the policy says, then a load. Loads come from the primary, first hand: they are fresh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_values_are_served_only_for_as_long_as_the_policy_allows() {
    const MAX: Duration = Duration::from_millis(700);
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
    let a = behind(&world, &proxy, Outage::ServeStale { max: MAX }).await;
    coherent([&a]).await;
    world.put(1, 1).await;
    a.polled().await;
    a.fresh(1).await;
    proxy.set(Fault::Cut);
    world.put(1, 2).await;
    let written = Instant::now();
    eventually("the stale time is over", async || {
        let began = Instant::now();
        let read = a.read(1).await;
        match (read.value(), read.freshness) {
            (Some(1), Freshness::Fresh) => assert!(began - written <= BOUND),
            (Some(1), Freshness::Unverified { since }) => assert!(since <= MAX),
            (Some(2), _) => {
                assert_eq!(read.tier, Tier::Load);
                return true;
            }
            _ => panic!("{read:?}"),
        }
        false
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_pass_through_each_read_of_an_outage_is_a_load() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
    let a = behind(&world, &proxy, Outage::PassThrough).await;
    coherent([&a]).await;
    world.put(1, 1).await;
    a.polled().await;
    a.fresh(1).await;
    proxy.set(Fault::Cut);
    a.becomes(State::Unverified).await;
    for v in 2..=5 {
        world.put(1, v).await;
        let loads = a.loads();
        assert_eq!(a.fresh_from(1).await, (Some(v), Tier::Load), "first hand");
        assert_eq!(a.loads(), loads + 1);
    }
    proxy.set(Fault::None);
    coherent([&a]).await;
    eventually("L1 is used again", async || a.fresh_from(1).await == (Some(5), Tier::Local)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_fail_each_read_of_an_outage_is_an_error_at_once() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
    let a = behind(&world, &proxy, Outage::Fail).await;
    coherent([&a]).await;
    world.put(1, 1).await;
    a.polled().await;
    a.fresh(1).await;
    proxy.set(Fault::BlackHole);
    a.becomes(State::Unverified).await;
    let loads = a.loads();
    for id in [1, 2, 1, 2] {
        assert!(matches!(a.try_read(id).await, Err(Error::Unverified)));
    }
    assert_eq!(a.loads(), loads);
    proxy.set(Fault::None);
    coherent([&a]).await;
    assert_eq!(a.fresh(1).await, Some(1));
}

/// Everything is cut: what is not cached is an error of the loader, within its timeout of 1 s, and nothing hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_postgres_gone_for_loaders_too_reads_fail_and_recover() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
    let proxied = moved_to(&world.database, &proxy.address().to_string());
    let pool = crate::world::pool(&proxied, &world.name);
    let a = world.build_loading(
        |perto| perto.postgres(&proxied),
        |cache| cache.load_timeout(Duration::from_secs(1)),
        move |load| {
            let pool = pool.clone();
            async move { crate::world::read_items(&pool, &load.keys).await }
        },
    );
    a.perto.start().await.unwrap();
    coherent([&a]).await;
    world.put(1, 1).await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(1));
    for (id, fault) in [(2, Fault::Cut), (3, Fault::BlackHole)] {
        proxy.set(fault);
        a.becomes(State::Unverified).await;
        assert!(matches!(a.read(1).await.freshness, Freshness::Unverified { .. }));
        let began = Instant::now();
        let missing = a.try_read(id).await;
        assert!(matches!(missing, Err(Error::Load { .. } | Error::LoadTimeout { .. })), "{missing:?}");
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        proxy.set(Fault::None);
        coherent([&a]).await;
        eventually("loads work again", async || a.try_read(id).await.is_ok()).await;
    }
}

/// A poll that takes 300 ms extends the lease by what is left of the bound of 1 s: coherent, with less to spare.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_polls_keep_the_promise() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
    let a = behind(&world, &proxy, Outage::default()).await;
    coherent([&a]).await;
    proxy.set(Fault::Delay(Duration::from_millis(150)));
    let until = Instant::now() + 4 * BOUND;
    let mut fresh = 0;
    let mut v = 0;
    while Instant::now() < until {
        v += 1;
        world.put(1, v).await;
        let written = Instant::now();
        loop {
            let began = Instant::now();
            let read = a.read(1).await;
            if read.value() == Some(&v) {
                break;
            }
            if read.freshness == Freshness::Fresh {
                fresh += 1;
                assert!(began - written <= BOUND, "stale for {:?}", began - written);
            }
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    assert!(fresh > 0, "it was never within the bound only");
}

/// Silent for longer than the log is kept (by its ticks, two hours): the rows are gone, so everything cached is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_was_away_for_longer_than_the_log_is_kept_starts_over() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
    let a = behind(&world, &proxy, Outage::default()).await;
    coherent([&a]).await;
    world.put(1, 1).await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(1));

    proxy.set(Fault::BlackHole);
    a.becomes(State::Unverified).await;
    world.put(1, 2).await;
    world.sql("insert into tick (at) values (clock_timestamp() - interval '2 hours')").await;
    let rows = world.count("invalidation").await;
    assert!(rows > 0);
    // Another instance trims when it starts: that is any instance's job.
    let b = world.start().await;
    eventually("the log is trimmed", async || world.count("invalidation").await == 0).await;

    proxy.set(Fault::None);
    a.tells(Event::Recovered { why: Recovery::Trimmed }).await;
    coherent([&a, &b]).await;
    assert_eq!(a.fresh(1).await, Some(2), "no row told so");
    // And from then on as ever.
    world.put(1, 3).await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(3));
    ends("shutdown", a.perto.shutdown()).await;
}

/// A value in L2 from before the trim horizon can't be judged any more: it is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_values_from_before_the_trim_horizon_are_refused_by_those_who_start_later() {
    let world = World::new().await;
    let a = world.start().await;
    coherent([&a]).await;
    world.put(1, 1).await;
    a.polled().await;
    a.gate.close();
    let reading = a.reading(1);
    a.gate.holds(1).await;
    world.put(1, 2).await;
    a.gate.open();
    // The fill of L2 is stale, and the row that would tell is trimmed.
    ends("the held read", reading).await.unwrap().unwrap();
    world.sql("insert into tick (at) values (clock_timestamp() - interval '2 hours')").await;
    let trimmer = world.start().await;
    eventually("the log is trimmed", async || world.count("invalidation").await == 0).await;
    let late = world.start().await;
    assert_eq!(late.fresh_from(1).await, (Some(2), Tier::Load));
    assert_eq!(late.items.stats().l2_refused, 1);
    drop(trimmer);
}
