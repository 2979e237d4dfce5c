//! Whether a look into L2 is worth its time. A Redis that answers, but later than a load would, makes reads slower than none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// A look-up that is quicker than this is always worth it: it may spare Postgres a load.
const QUICK: Duration = Duration::from_millis(10);
/// How often as long as a load a look-up must take to be too slow.
const SLOWER: u32 = 2;
/// Look-ups before they are judged. One alone may have been the first on its connection.
const LOOK_UPS: u32 = 8;
/// Bytes that one look-up for several reads may bring, on average: far from what would be late within the time for L2.
const BYTES_AT_ONCE: usize = 2 << 20;
/// For so long no read looks into L2. Then one does, to see how it is.
const ASIDE: Duration = Duration::from_secs(1);

/// How long look-ups and loads of one cache take, on average, the newest counted most.
#[derive(Debug, Default)]
pub(super) struct Pace {
    averages: Mutex<Averages>,
    /// Whether L2 is left aside, readable without the lock: mostly it is not, and each read asks.
    aside: AtomicBool,
}

#[derive(Debug, Default)]
struct Averages {
    look_up: Duration,
    /// Since L2 was last found to be slow.
    look_ups: u32,
    load: Option<Duration>,
    /// Of a value that L2 had.
    bytes: usize,
    /// L2 is left aside until then, by the clock of the instance.
    aside_until_ms: Option<u64>,
}

/// L2 is slow: how long a look-up and a load take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slow {
    pub(super) look_up: Duration,
    pub(super) load: Duration,
}

impl Pace {
    /// Whether to look into L2 now. Of those who ask while it is left aside, one a second is sent to see.
    pub(super) fn is_worth_a_look(&self, now_ms: u64) -> bool {
        if !self.aside.load(Ordering::Relaxed) {
            return true;
        }
        let mut averages = self.averages.lock();
        match averages.aside_until_ms {
            None => true,
            Some(until) if now_ms < until => false,
            Some(_) => {
                averages.leave_aside(now_ms);
                true
            }
        }
    }

    /// Of how many keys a look-up for several reads may be: fewer where values are large.
    pub(super) fn keys_at_once(&self, most: usize) -> usize {
        (BYTES_AT_ONCE / self.averages.lock().bytes.max(1)).clamp(1, most)
    }

    /// A look-up has brought values of so many bytes in all.
    pub(super) fn brought(&self, values: usize, bytes: usize) {
        if let Some(average) = bytes.checked_div(values) {
            let mut averages = self.averages.lock();
            // What is large counts at once.
            averages.bytes = average.max((7 * averages.bytes + average) / 8);
        }
    }

    /// A look-up has ended. Says so where L2 is left aside from now on, or still is.
    pub(super) fn looked_up(&self, took: Duration, now_ms: u64) -> Option<Slow> {
        let mut averages = self.averages.lock();
        let aside = averages.aside_until_ms.is_some();
        // What was before says nothing of how it is now.
        averages.look_up = if aside || averages.look_ups == 0 { took } else { newer(averages.look_up, took) };
        averages.look_ups = averages.look_ups.saturating_add(1);
        let (look_up, load) = (averages.look_up, averages.load?);
        let slow = look_up > QUICK && look_up > load * SLOWER;
        if slow && (aside || averages.look_ups >= LOOK_UPS) {
            averages.leave_aside(now_ms);
            self.aside.store(true, Ordering::Relaxed);
            return Some(Slow { look_up, load });
        }
        if aside {
            averages.aside_until_ms = None;
            self.aside.store(false, Ordering::Relaxed);
            averages.look_ups = 1;
        }
        None
    }

    /// How long a load takes, where there was one.
    pub(super) fn load(&self) -> Option<Duration> {
        self.averages.lock().load
    }

    /// A load has ended, the wait for a place included: where Postgres is busy, L2 is worth more.
    pub(super) fn loaded(&self, took: Duration) {
        let mut averages = self.averages.lock();
        averages.load = Some(averages.load.map_or(took, |load| newer(load, took)));
    }
}

impl Averages {
    fn leave_aside(&mut self, now_ms: u64) {
        let aside = u64::try_from(ASIDE.as_millis()).unwrap_or(u64::MAX);
        self.aside_until_ms = Some(now_ms.saturating_add(aside));
    }
}

fn newer(average: Duration, took: Duration) -> Duration {
    average * 7 / 8 + took / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn l2_is_left_aside_while_look_ups_take_much_longer_than_loads_and_one_a_second_sees_how_it_is() {
        let pace = Pace::default();
        pace.loaded(ms(1));
        for look_up in 1..=LOOK_UPS {
            assert!(pace.is_worth_a_look(0));
            assert_eq!(pace.looked_up(ms(40), 0).is_some(), look_up == LOOK_UPS, "{look_up}");
        }
        assert!(!pace.is_worth_a_look(999));
        assert!(pace.is_worth_a_look(1_000) && !pace.is_worth_a_look(1_000), "one is sent");
        assert!(pace.looked_up(ms(40), 1_040).is_some());
        assert!(!pace.is_worth_a_look(2_039));
        assert!(pace.is_worth_a_look(2_040));
        // Quick again.
        assert_eq!(pace.looked_up(ms(1), 2_041), None);
        assert!(pace.is_worth_a_look(2_041) && pace.is_worth_a_look(2_041));
    }

    #[test]
    fn l2_is_used_where_it_is_quick_or_loads_are_slow_or_nothing_was_loaded() {
        for (load, look_up) in [(Some(ms(0)), ms(10)), (Some(ms(20)), ms(40)), (None, ms(49))] {
            let pace = Pace::default();
            load.into_iter().for_each(|load| pace.loaded(load));
            for _ in 0..20 {
                assert_eq!(pace.looked_up(look_up, 0), None);
                assert!(pace.is_worth_a_look(0));
            }
        }
    }

    #[test]
    fn where_loads_become_slow_l2_is_used_again() {
        let pace = Pace::default();
        pace.loaded(ms(1));
        for _ in 0..LOOK_UPS {
            pace.looked_up(ms(40), 0);
        }
        assert!(!pace.is_worth_a_look(1));
        (0..20).for_each(|_| pace.loaded(ms(300)));
        assert!(pace.is_worth_a_look(1_000));
        assert_eq!(pace.looked_up(ms(40), 1_040), None);
        assert!(pace.is_worth_a_look(1_040) && pace.is_worth_a_look(1_040));
    }

    #[test]
    fn large_values_are_looked_up_few_at_once_and_small_ones_by_the_hundred() {
        let pace = Pace::default();
        assert_eq!(pace.keys_at_once(256), 256);
        pace.brought(4, 4 * (100 << 10));
        assert_eq!(pace.keys_at_once(256), 20);
        pace.brought(0, 0);
        pace.brought(1, 16 << 20);
        assert_eq!(pace.keys_at_once(256), 1);
        (0..100).for_each(|_| pace.brought(10, 2_600));
        assert_eq!(pace.keys_at_once(256), 256);
    }
}
