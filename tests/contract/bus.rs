//! The bus, while nothing is wrong with it. (Of one that loses, delays and doubles, nothing is asked.)

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use perto::Bus;
use perto::sim::SimBus;

use crate::support::wait::PATIENCE;
use crate::{everywhere, redis_url, unique};

/// Two connections to one bus, and one to another.
struct Buses {
    one: Arc<dyn Bus>,
    same: Arc<dyn Bus>,
    other: Arc<dyn Bus>,
}

async fn simulated(test: impl AsyncFn(Buses)) {
    let one = SimBus::new(1);
    let same = one.another(2);
    test(Buses { one: Arc::new(one), same: Arc::new(same), other: Arc::new(SimBus::new(3)) }).await;
}

async fn real(test: impl AsyncFn(Buses)) {
    on(&redis_url(), test).await;
}

async fn on(url: &str, test: impl AsyncFn(Buses)) {
    let app = unique("b");
    let bus = async |app: &str| {
        let tiers = perto::redis::tiers_within(url, app, PATIENCE).unwrap();
        tiers.remote.ping().await.unwrap();
        tiers.bus
    };
    test(Buses { one: bus(&app).await, same: bus(&app).await, other: bus(&unique("b")).await }).await;
}

everywhere!(
    every_subscriber_receives_every_message_in_order,
    a_message_goes_to_those_who_are_subscribed,
    another_bus_hears_nothing,
    a_pings_answer_follows_every_earlier_message,
    dropping_a_wait_loses_no_message,
    a_message_may_be_large_or_empty,
);

fn message(number: usize) -> Bytes {
    Bytes::from(number.to_string())
}

async fn every_subscriber_receives_every_message_in_order(buses: Buses) {
    let mut first = buses.one.subscribe().await.unwrap();
    let mut second = buses.same.subscribe().await.unwrap();
    for number in 0..500 {
        buses.one.publish(message(number)).await.unwrap();
    }
    for number in 0..500 {
        assert_eq!(first.next().await.unwrap(), message(number));
        assert_eq!(second.next().await.unwrap(), message(number));
    }
}

async fn a_message_goes_to_those_who_are_subscribed(buses: Buses) {
    buses.one.publish(message(1)).await.unwrap();
    let gone = buses.one.subscribe().await.unwrap();
    drop(gone);
    let mut subscribed = buses.one.subscribe().await.unwrap();
    buses.same.publish(message(2)).await.unwrap();
    assert_eq!(subscribed.next().await.unwrap(), message(2));
}

async fn another_bus_hears_nothing(buses: Buses) {
    let mut other = buses.other.subscribe().await.unwrap();
    buses.one.publish(message(1)).await.unwrap();
    buses.other.publish(message(2)).await.unwrap();
    assert_eq!(other.next().await.unwrap(), message(2));
}

async fn a_pings_answer_follows_every_earlier_message(buses: Buses) {
    let mut subscribed = buses.one.subscribe().await.unwrap();
    for round in 0..50 {
        for number in 0..20 {
            buses.same.publish(message(round * 20 + number)).await.unwrap();
        }
        subscribed.ping().await.unwrap();
        for number in 0..20 {
            let arrived = subscribed.next().now_or_never();
            assert_eq!(arrived.expect("it has arrived").unwrap(), message(round * 20 + number));
        }
    }
}

async fn dropping_a_wait_loses_no_message(buses: Buses) {
    let mut subscribed = buses.one.subscribe().await.unwrap();
    for number in 0..200 {
        assert!(subscribed.next().now_or_never().is_none());
        buses.same.publish(message(number)).await.unwrap();
        // Waits are given up at any point of the message's way.
        let received = loop {
            if let Ok(received) =
                tokio::time::timeout(std::time::Duration::from_micros(50), subscribed.next()).await
            {
                break received.unwrap();
            }
        };
        assert_eq!(received, message(number));
    }
}

async fn a_message_may_be_large_or_empty(buses: Buses) {
    let mut subscribed = buses.one.subscribe().await.unwrap();
    for size in [0, 1, 256 << 10] {
        let message = Bytes::from(vec![0xA5; size]);
        buses.same.publish(message.clone()).await.unwrap();
        assert_eq!(subscribed.next().await.unwrap(), message);
    }
}
