//! How much of what was audited was right, over the last five minutes, hour and day.

use std::collections::VecDeque;
use std::fmt;

use parking_lot::Mutex;

const MINUTE_MS: u64 = 60_000;
const DAY_MINUTES: u64 = 24 * 60;

/// Minutes of audits. A day of them at most.
#[derive(Debug, Default)]
pub(crate) struct Nines(Mutex<VecDeque<Minute>>);

#[derive(Debug, Clone, Copy)]
struct Minute {
    number: u64,
    audits: u64,
    violations: u64,
}

/// What the auditor found over three stretches of time, to the minute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Audits {
    /// The last five minutes.
    pub five_minutes: Audited,
    /// The last hour.
    pub hour: Audited,
    /// The last 24 hours.
    pub day: Audited,
}

/// What the auditor found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Audited {
    /// Served values that were compared with what the primary says.
    pub audits: u64,
    /// Those that differed, without an invalidation that explains it.
    pub violations: u64,
}

impl Audited {
    /// Coherence in nines: 3.0 is one violation in a thousand audits. Without a violation it is what so many audits
    /// can vouch for, as if the next one were wrong; without an audit 0.
    #[must_use]
    pub fn nines(&self) -> f64 {
        if self.audits == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "audits are fewer than 2^53")]
        let (audits, violations) = (self.audits as f64, self.violations.max(1) as f64);
        (audits / violations).log10()
    }

    const fn add(&mut self, minute: Minute) {
        self.audits += minute.audits;
        self.violations += minute.violations;
    }
}

impl fmt::Display for Audited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_least = if self.violations == 0 { "at least " } else { "" };
        write!(f, "{at_least}{:.1} nines ({} wrong of {})", self.nines(), self.violations, self.audits)
    }
}

impl Nines {
    pub(crate) fn add(&self, now_ms: u64, audits: u64, violations: u64) {
        let number = now_ms / MINUTE_MS;
        let mut minutes = self.0.lock();
        match minutes.back_mut() {
            // By a clock that never goes back, read before the lock.
            Some(last) if last.number >= number => {
                last.audits += audits;
                last.violations += violations;
            }
            _ => minutes.push_back(Minute { number, audits, violations }),
        }
        while minutes.front().is_some_and(|first| first.number + DAY_MINUTES <= number) {
            minutes.pop_front();
        }
    }

    pub(crate) fn audits(&self, now_ms: u64) -> Audits {
        let now = now_ms / MINUTE_MS;
        let mut audits = Audits::default();
        for minute in self.0.lock().iter() {
            let within = |minutes: u64| minute.number + minutes > now;
            for (stretch, minutes) in
                [(&mut audits.five_minutes, 5), (&mut audits.hour, 60), (&mut audits.day, DAY_MINUTES)]
            {
                if within(minutes) {
                    stretch.add(*minute);
                }
            }
        }
        audits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nines_are_counted_over_three_stretches_of_time() {
        let nines = Nines::default();
        nines.add(0, 1_000, 1);
        nines.add(30 * MINUTE_MS, 9_000, 0);
        nines.add(58 * MINUTE_MS + 1, 500, 5);
        nines.add(58 * MINUTE_MS + 2, 500, 5);
        let audits = nines.audits(59 * MINUTE_MS);
        assert_eq!(audits.five_minutes, Audited { audits: 1_000, violations: 10 });
        assert_eq!(audits.hour, Audited { audits: 11_000, violations: 11 });
        assert_eq!(audits.day, audits.hour);
        assert_eq!(nines.audits(61 * MINUTE_MS).hour, Audited { audits: 10_000, violations: 10 });
        assert!((audits.five_minutes.nines() - 2.0).abs() < 1e-9);
        nines.add(DAY_MINUTES * MINUTE_MS, 1, 0);
        assert_eq!(nines.audits(DAY_MINUTES * MINUTE_MS).day, Audited { audits: 10_001, violations: 10 });
        assert_eq!(nines.0.lock().len(), 3, "a day of minutes at most");
    }

    #[test]
    fn without_a_violation_nines_are_what_the_audits_can_vouch_for() {
        assert!(Audited::default().nines().abs() < 1e-9);
        let thousand = Audited { audits: 1_000, violations: 0 };
        assert!((thousand.nines() - 3.0).abs() < 1e-9);
        assert_eq!(thousand.to_string(), "at least 3.0 nines (0 wrong of 1000)");
    }
}
