//! A log of many rows: a start and a recovery read as much of it as they need, and no bound hurries them.

use std::time::Duration;

use perto::{PertoBuilder, Tier};

use crate::ring::{CACHE, Ring, eventually, ms, some};

const SHORT: Duration = Duration::from_millis(200);

fn short(perto: PertoBuilder) -> PertoBuilder {
    perto.bound(SHORT)
}

impl Ring {
    /// Forty thousand rows.
    fn write_much(&self) {
        for hundred in 0..400_u64 {
            let mut writes = self.sim.postgres.begin();
            (0..100).for_each(|key| writes.touch(CACHE, &(1_000 + hundred * 100 + key).to_string()));
            writes.commit().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_with_a_short_bound_starts_beside_a_long_log() {
    let mut ring = Ring::of(0).await;
    ring.write_silently(1, "one");
    ring.write_much();
    let started = ring.join_with(short, |cache| cache).await;
    let started = &ring.members[started];
    assert_eq!(started.perto.stats().rows, 40_001, "the replay was of all rows");
    assert!(started.perto.health().lease_left > Duration::ZERO, "from the poll after it");
    started.fresh(1).await;
    assert_eq!(started.tier(1).await, Tier::Local);
    ring.end().await;
}

/// As after a pause, or a batch of many statements.
#[tokio::test(start_paused = true)]
async fn an_instance_with_a_short_bound_that_lags_by_many_rows_catches_up() {
    let mut ring = Ring::of(0).await;
    let member = ring.join_with(short, |cache| cache).await;
    ms(300).await;
    ring.write_silently(1, "one");
    ring.write_much();
    let member = &ring.members[member];
    let caught_up =
        || member.perto.stats().rows == 40_001 && member.perto.health().lease_left > Duration::ZERO;
    eventually("it has caught up", Duration::from_secs(3), caught_up).await;
    assert_eq!(member.perto.stats().recoveries, 1, "what it holds is kept");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn after_an_orderly_restart_the_log_from_before_is_not_read_again() {
    let mut ring = Ring::of(0).await;
    for _ in 0..4 {
        ring.join_with(short, |cache| cache).await;
    }
    ring.write_silently(1, "one");
    ring.write_much();
    ms(1_500).await;
    let rows: Vec<u64> = ring.members.iter().map(|member| member.perto.stats().rows).collect();
    ring.sim.postgres.restart();
    assert_eq!(ring.sim.postgres.retained(), 40_001);
    for (member, rows) in ring.members.iter().zip(rows) {
        let recovered =
            || member.perto.stats().recoveries == 2 && member.perto.health().lease_left > Duration::ZERO;
        eventually("it has recovered", SHORT, recovered).await;
        assert_eq!(member.perto.stats().rows, rows);
        assert_eq!(member.fresh(1).await, some("one"));
        assert_eq!(member.tier(1).await, Tier::Local);
    }
    ring.end().await;
}
