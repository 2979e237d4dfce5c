//! A process that stops at the worst moment and goes on.
//!
//! The key's own `Eq` is called in the middle of L1's look-up, so a test can stop a reader between its steps: it
//! runs on a thread of its own and waits there, while the instance goes on.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use perto::sim::Sim;
use perto::{Freshness, Tier};

use crate::ring::{BOUND, POLL, Ring, ms, some, text};

/// Stops the thread that has armed it, once.
#[derive(Debug, Clone)]
struct Stopping(u64);

struct Stop {
    reached: Sender<()>,
    go_on: Receiver<()>,
}

thread_local! {
    static STOP: Mutex<Option<Stop>> = const { Mutex::new(None) };
}

impl PartialEq for Stopping {
    fn eq(&self, other: &Self) -> bool {
        if let Some(stop) = STOP.with(|stop| stop.lock().take()) {
            stop.reached.send(()).unwrap();
            stop.go_on.recv().unwrap();
        }
        self.0 == other.0
    }
}
impl Eq for Stopping {}
impl Hash for Stopping {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl fmt::Display for Stopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl FromStr for Stopping {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Pauses a reader in the middle of a hit, lets `meanwhile` run, and returns what the reader then serves as fresh.
async fn hit_across(meanwhile: impl AsyncFnOnce(&Sim, &perto::sim::Node)) -> Option<String> {
    let sim = Sim::new(1);
    let node = sim.node();
    let perto = node.builder("ring").build().unwrap();
    let users =
        perto.cache::<Stopping, String>("user").loader(sim.postgres.loader("user").function()).unwrap();
    perto.start().await.unwrap();
    sim.postgres.write("user", &1_u64, &"old").unwrap();
    tokio::time::sleep(POLL).await;
    users.get(&Stopping(1)).await.unwrap();
    assert!(users.get_if_cached(&Stopping(1)).is_some());

    let (reached, is_reached) = channel();
    let (let_go, go_on) = channel();
    let (clock, users_too) = (tokio::runtime::Handle::current(), users.clone());
    let reader = std::thread::spawn(move || {
        // The clock of this thread is the test's.
        let _virtual_time = clock.enter();
        STOP.with(|stop| *stop.lock() = Some(Stop { reached, go_on }));
        users_too.get_if_cached(&Stopping(1)).map(|read| read.value().cloned().unwrap_or_default())
    });
    is_reached.recv_timeout(Duration::from_secs(60)).unwrap();
    meanwhile(&sim, &node).await;
    let_go.send(()).unwrap();
    let served = reader.join().unwrap();
    perto.shutdown().await;
    served
}

#[tokio::test(start_paused = true)]
async fn a_reader_paused_for_a_moment_serves_what_it_found() {
    // Else the tests below would show nothing.
    assert_eq!(hit_across(async |_, _| ms(1).await).await, some("old"));
}

#[tokio::test(start_paused = true)]
async fn a_paused_reader_never_serves_under_a_newer_lease() {
    // It holds the old value in its hands. The row changes, the tail evicts the value and extends the lease. Had the
    // reader not read the lease before the value, it would now find the new lease valid, and serve the old value
    // two seconds after the write.
    let served = hit_across(async |sim, _| {
        sim.postgres.write("user", &1_u64, &"new").unwrap();
        ms(2_000).await;
    });
    assert_eq!(served.await, None);
}

#[tokio::test(start_paused = true)]
async fn a_reader_paused_with_its_whole_process_reads_the_clock_last() {
    // Nothing of the process ran: no poll, no eviction. Only the clock went on.
    let served = hit_across(async |sim, node| {
        sim.postgres.write("user", &1_u64, &"new").unwrap();
        node.clock.jump(BOUND);
    });
    assert_eq!(served.await, None);
}

#[tokio::test(start_paused = true)]
async fn a_reader_paused_across_a_crash_serves_nothing_of_the_old_epoch() {
    let served = hit_across(async |sim, _| {
        sim.postgres.crash(1);
        tokio::time::sleep(POLL + BOUND).await;
    });
    assert_eq!(served.await, None);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_wakes_serves_nothing_before_its_first_poll() {
    let ring = Ring::of(2).await;
    let [sleeper, _] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ms(1).await;
    sleeper.fresh(1).await;
    sleeper.node.hang();
    ring.write(1, 1, "new").await;
    sleeper.node.clock.jump(Duration::from_hours(8));
    assert_eq!(sleeper.cached(1), None);
    let read = sleeper.users.get(&1).await.unwrap();
    assert!(matches!(read.freshness, Freshness::Fresh | Freshness::Unverified { .. }), "{read:?}");
    assert!(read.freshness != Freshness::Fresh || text(&read) == some("new"));
    sleeper.node.heal();
    ms(2_000).await;
    assert_eq!(sleeper.fresh(1).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_wall_clock_costs_lifetime_only() {
    let ring = Ring::of(3).await;
    let [ahead, behind, right] = &ring.members[..] else { unreachable!() };
    ahead.node.clock.jump_wall(Duration::from_hours(100));
    ring.write(0, 1, "one").await;
    ms(1).await;
    assert_eq!(behind.fresh(1).await, some("one"));
    ms(1).await;
    // To the one whose date is wrong, the value is a hundred hours old, and has outlived its time.
    assert_eq!(ahead.fresh(1).await, some("one"));
    assert_eq!((right.fresh(1).await, right.tier(1).await), (some("one"), Tier::Local));
    ring.write(2, 1, "two").await;
    ms(1).await;
    for member in &ring.members {
        assert_eq!(member.fresh(1).await, some("two"));
    }
    ring.end().await;
}
