//! Starts at once, starts that fail, and what comes after the end.

use std::time::Duration;

use perto::sim::Sim;
use perto::{Cache, Perto, StartError, Tier};

use crate::ring::{CACHE, Member, Ring, ms, some, spawn};

fn starting(member: &Member) -> tokio::task::JoinHandle<Result<(), StartError>> {
    let perto = member.perto.clone();
    spawn(async move { perto.start().await })
}

#[tokio::test(start_paused = true)]
async fn of_two_starts_at_once_both_fail_where_the_log_cannot_be_read() {
    let sim = Sim::new(1);
    let member = Member::new(&sim, |builder| builder, |cache| cache);
    member.node.log.faults.hang();
    let (one, other) = (starting(&member), starting(&member));
    ms(100).await;
    assert!(!one.is_finished() && !other.is_finished(), "neither says that it has read the log");
    member.node.log.faults.cut();
    for start in [one, other] {
        assert!(matches!(start.await.unwrap(), Err(StartError::Log(_))));
    }
    member.node.log.faults.heal();
    member.perto.start().await.unwrap();
    member.perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_beside_one_that_is_given_up_starts_the_instance() {
    let sim = Sim::new(1);
    let member = Member::new(&sim, |builder| builder, |cache| cache);
    member.node.log.faults.hang();
    let (one, other) = (starting(&member), starting(&member));
    ms(100).await;
    one.abort();
    member.node.log.faults.heal();
    other.await.unwrap().unwrap();
    assert!(member.perto.health().lease_left > Duration::ZERO);
    ms(1_000).await;
    assert!(member.perto.stats().polls > 3, "somebody follows the log");
    member.perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_cache_is_declared_only_while_its_instance_lives() {
    let ring = Ring::of(0).await;
    let perto = ring.sim.node().builder("ring").build().unwrap();
    let (late, later) = (perto.cache::<u64, String>(CACHE), perto.cache::<u64, String>(CACHE));
    let loader = ring.sim.postgres.loader(CACHE);
    perto.shutdown().await;
    let refused = |declared: Result<Cache<u64, String>, StartError>| {
        assert!(matches!(declared, Err(StartError::Closed)), "{declared:?}");
    };
    refused(late.loader(loader.function()));
    drop(perto);
    refused(later.loader(loader.function()));
}

/// The tail of the start that failed had asked for the caches of then.
#[tokio::test(start_paused = true)]
async fn a_cache_that_is_declared_after_a_start_has_failed_misses_no_row() {
    let ring = Ring::of(1).await;
    let node = ring.sim.node();
    let perto = node.builder("ring").build().unwrap();
    let [of_users, of_cities] = [CACHE, "city"].map(|cache| ring.sim.postgres.loader(cache));
    let users: Cache<u64, String> = perto.cache(CACHE).tables(["users"]).loader(of_users.function()).unwrap();
    let read = |cache: &Cache<u64, String>| {
        let cache = cache.clone();
        async move { cache.get(&1).await.unwrap().value().cloned() }
    };
    node.log.watch("users", false);
    assert!(matches!(perto.start().await, Err(StartError::Unwatched(_))), "after its first polls");
    node.log.watch("users", true);
    let cities: Cache<u64, String> = perto.cache("city").loader(of_cities.function()).unwrap();
    perto.start().await.unwrap();
    let late = perto.cache::<u64, String>("late").loader(of_users.function());
    assert!(late.is_err(), "none comes once it has started");
    for (round, name) in ["a", "b", "c"].into_iter().enumerate() {
        for (of, cache) in [(CACHE, &users), ("city", &cities)] {
            ring.sim.postgres.write(of, &1, &name).unwrap();
            // Nobody tells of it, so a poll has to bring it.
            ms(300).await;
            assert_eq!(read(cache).await, some(name), "{of}");
            assert_eq!(cache.get(&1).await.unwrap().tier, Tier::Local);
        }
        assert_eq!(perto.stats().rows, 2 * (round as u64 + 1));
    }
    perto.shutdown().await;
    ring.end().await;
}

#[test]
fn a_retention_that_no_interval_of_postgres_holds_is_refused() {
    let day = Duration::from_hours(24);
    let with = |retention| Sim::new(1).node().builder("ring").retention(retention).build().map(|_: Perto| ());
    with(365 * day).unwrap();
    for much in [366 * day, Duration::MAX] {
        let said = with(much).unwrap_err().to_string();
        assert!(said.starts_with("retention: "), "{said}");
    }
}
