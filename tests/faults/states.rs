//! The states of an instance: each is reached, and shown by `health()` and as an event.

use std::time::Duration;

use perto::proxy::{Fault, FaultProxy};
use perto::{Event, Recovery, State};

use crate::support::engines::{moved_to, place_of};
use crate::support::wait::{ends, eventually};
use crate::world::{BOUND, World, coherent};

/// One life, through all of them. (A new epoch's `Recovering` is in `epochs`.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_state_is_shown_by_health_and_as_an_event() {
    let world = World::new().await;
    let (redis, postgres) = (
        FaultProxy::start(place_of(&world.redis)).await.unwrap(),
        FaultProxy::start(place_of(&world.database)).await.unwrap(),
    );
    let a = world.build(
        |perto| {
            perto
                .redis(&moved_to(&world.redis, &redis.address().to_string()))
                .postgres(&moved_to(&world.database, &postgres.address().to_string()))
        },
        |cache| cache,
    );
    let health = a.perto.health();
    assert_eq!((health.state, health.lease_left), (State::Recovering, Duration::ZERO));
    a.perto.start().await.unwrap();
    assert_ne!(a.perto.health().state, State::Recovering, "start has read the log");
    coherent([&a]).await;
    let health = a.perto.health();
    assert!(health.remote_up && health.bus_up && health.epoch != 0);
    assert!(health.lease_left <= BOUND && !health.lease_left.is_zero(), "{health:?}");
    a.tells(Event::Recovered { why: Recovery::Start }).await;

    redis.set(Fault::Cut);
    a.becomes(State::Isolated).await;
    a.tells_of(State::Isolated).await;
    redis.set(Fault::None);
    coherent([&a]).await;

    postgres.set(Fault::Cut);
    a.becomes(State::Unverified).await;
    a.tells_of(State::Unverified).await;
    assert_eq!(a.perto.health().lease_left, Duration::ZERO);
    postgres.set(Fault::None);
    coherent([&a]).await;

    ends("shutdown", a.perto.shutdown()).await;
    assert_eq!(a.perto.health().state, State::Closed);
    eventually("the last event", async || {
        matches!(a.events().last(), Some(Event::State { to: State::Closed, .. }))
    })
    .await;
    let path: Vec<(State, State)> = a
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::State { from, to } => Some((from, to)),
            _ => None,
        })
        .collect();
    assert_eq!(path.first().map(|(from, _)| *from), Some(State::Recovering));
    assert!(path.windows(2).all(|pair| pair[0].1 == pair[1].0), "no change is left out: {path:?}");
    for state in [State::Coherent, State::Isolated, State::Unverified, State::Closed] {
        assert!(path.iter().any(|(_, to)| *to == state), "{state} is not in {path:?}");
    }
}

/// What is wrong at the start is said at the start, with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_does_not_start_without_its_log_and_may_try_again() {
    let world = World::new().await;
    let proxy = FaultProxy::start(place_of(&world.database)).await.unwrap();
    let proxied = moved_to(&world.database, &proxy.address().to_string());
    let no_schema = world.build(|perto| perto.schema("perto_t_nowhere"), |cache| cache);
    let error = no_schema.perto.start().await.unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(source.contains("perto migrate") && source.contains("perto_t_nowhere"), "{source}");

    let a = world.build(|perto| perto.postgres(&proxied), |cache| cache);
    for fault in [Fault::Cut, Fault::BlackHole] {
        proxy.set(fault);
        let started = ends("a start", a.perto.start()).await;
        assert!(matches!(started, Err(perto::StartError::Log(_))), "{started:?}");
        assert_eq!(a.perto.tasks(), 0);
        // Not started, and not useless: the database answers.
        world.put(1, 1).await;
        assert_eq!(a.read(1).await.value(), Some(&1));
    }
    proxy.set(Fault::None);
    a.perto.start().await.unwrap();
    a.becomes(State::Coherent).await;
    assert_eq!(a.fresh(1).await, Some(1));
}
