//! Whether readers were served what the promise allows: judged from what was written and what was read, by whomever.
//!
//! Postgres gives the values of a row one order, so each read is judged by itself, and the work is linear in the
//! history: a read is as stale as the oldest write is old that it misses, when the read began. A write counts from when
//! its commit was acknowledged, which is later than when it became visible: a read is never called staler than it was.
//!
//! Used by `perto replay`, by the simulator's histories and by the chaos runs, and usable for a test of one's own:
//!
//! ```
//! use std::time::Duration;
//! use perto::history::{Answer, History};
//! use perto::{Freshness, Tier};
//!
//! let ms = Duration::from_millis;
//! let mut history = History::new();
//! history.wrote(7, Some(1), ms(0), Some(ms(10)));
//! history.wrote(7, Some(2), ms(90), Some(ms(100)));
//! let mut judge = history.judge(ms(1_000));
//! judge.window("Redis is cut", ms(1_000), ms(3_000));
//! let old = Answer::new(7, Some(1), Freshness::Fresh, Tier::Local, ms(1_500), ms(1_501));
//! judge.read(&old);
//! let report = judge.report();
//! assert_eq!(report.all.worst, ms(1_400));
//! assert_eq!(report.violations.len(), 1);
//! assert_eq!(report.windows[0].over_bound, 1);
//! ```

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use crate::read::{Freshness, StaleCause};

mod answer;
mod report;

pub use answer::Answer;
pub use report::{Report, Violation, Window, Wrong};

/// What became of each key. Keys and values go by numbers, values by one of their own each; `None` is an absent row.
/// Times are on one clock of the caller's choice.
#[derive(Debug, Default)]
pub struct History {
    keys: HashMap<u64, Vec<Version>>,
}

#[derive(Debug, Clone, Copy)]
struct Version {
    value: Option<u64>,
    begun: Duration,
    acked: Option<Duration>,
}

impl History {
    /// Every key is absent from the beginning of time on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `key` became `value`, by a write that began at `begun` and was acknowledged at `acked`; `None` where its outcome
    /// is unknown: it may be read, and need not be. The writes of one key are told in the order in which they took
    /// effect. What a crash or a failover took back is one more write, of what the key was before.
    ///
    /// Returns the place of the write in the history of its key.
    pub fn wrote(&mut self, key: u64, value: Option<u64>, begun: Duration, acked: Option<Duration>) -> usize {
        let versions = self.versions(key);
        versions.push(Version { value, begun, acked });
        versions.len() - 1
    }

    /// What the key is now.
    #[must_use]
    pub fn latest(&self, key: u64) -> Option<u64> {
        self.keys.get(&key).and_then(|versions| versions.last()).and_then(|version| version.value)
    }

    fn versions(&mut self, key: u64) -> &mut Vec<Version> {
        let absent = Version { value: None, begun: Duration::ZERO, acked: Some(Duration::ZERO) };
        self.keys.entry(key).or_insert_with(|| vec![absent])
    }

    /// All has been written: judges reads by a bound.
    #[must_use]
    pub fn judge(self, bound: Duration) -> Judge {
        let keys = self.keys.into_iter().map(|(key, versions)| (key, Timeline::new(versions))).collect();
        Judge {
            bound,
            keys,
            all: Window::new("all", Duration::ZERO, Duration::MAX),
            windows: Vec::new(),
            recent: VecDeque::with_capacity(RECENT),
            violations: Vec::new(),
        }
    }
}

/// The versions of a key, and for each when it had surely been replaced.
#[derive(Debug)]
struct Timeline {
    versions: Vec<Version>,
    /// Ascending: the first acknowledgement of any later write. `MAX` where there is none.
    replaced: Vec<Duration>,
    /// Where each value is: its places, and the earliest moment at which it may have been there again or later.
    places: HashMap<Option<u64>, Vec<(usize, Duration)>>,
}

impl Timeline {
    fn new(versions: Vec<Version>) -> Self {
        let mut replaced = vec![Duration::MAX; versions.len()];
        let mut earliest = Duration::MAX;
        let mut places: HashMap<Option<u64>, Vec<(usize, Duration)>> = HashMap::new();
        for (at, version) in versions.iter().enumerate().rev() {
            replaced[at] = earliest;
            earliest = version.acked.map_or(earliest, |acked| acked.min(earliest));
            let places = places.entry(version.value).or_default();
            // A writer may begin before another and come after it: the least of all later ones keeps this ascending.
            let begun = places.last().map_or(version.begun, |(_, later)| version.begun.min(*later));
            places.push((at, begun));
        }
        places.values_mut().for_each(|places| places.reverse());
        Self { versions, replaced, places }
    }

    /// The last place at which the value may have been read by `ended`.
    fn place(&self, value: Option<u64>, ended: Duration) -> Option<usize> {
        let places = self.places.get(&value)?;
        let after = places.partition_point(|(_, begun)| *begun <= ended);
        after.checked_sub(1).map(|last| places[last].0)
    }
}

/// Answers kept, to show what came before a violation.
const RECENT: usize = 256;
/// Violations described; all are counted.
const DESCRIBED: usize = 100;
/// Writes and reads shown before and after a violation.
const AROUND: usize = 6;

/// Judges answers against a [`History`], one by one, in any order.
#[derive(Debug)]
pub struct Judge {
    bound: Duration,
    keys: HashMap<u64, Timeline>,
    all: Window,
    windows: Vec<Window>,
    recent: VecDeque<Answer>,
    violations: Vec<Violation>,
}

impl Judge {
    /// A stretch of time that the report tells apart. May overlap with others. All windows are told before the reads.
    pub fn window(&mut self, name: &str, from: Duration, to: Duration) {
        self.windows.push(Window::new(name, from, to));
    }

    /// Judges one answer, by the bound or by the shorter one that it demanded; what is stale by choice, by that and what it says. Returns how stale it was, whatever it was flagged as; `None` where that value never was.
    pub fn read(&mut self, answer: &Answer) -> Option<Duration> {
        let place = match self.keys.get(&answer.key) {
            Some(timeline) => timeline.place(answer.value, answer.ended),
            None => answer.value.is_none().then_some(0),
        };
        let replaced = |place: usize| self.keys.get(&answer.key).map_or(Duration::MAX, |t| t.replaced[place]);
        let staleness = place.map(|place| answer.begun.saturating_sub(replaced(place)));
        let fresh = answer.freshness == Freshness::Fresh;
        let bound = answer.within.map_or(self.bound, |within| within.min(self.bound));
        // What is stale by choice says since when.
        let limit = match answer.freshness {
            Freshness::Fresh => Some(bound),
            Freshness::Stale(StaleCause::Invalidated { since } | StaleCause::Expired { since }) => {
                Some(bound.saturating_add(since))
            }
            _ => None,
        };
        let wrong = match (place, staleness) {
            (Some(_), Some(staleness)) if limit.is_some_and(|limit| staleness > limit) => {
                Some(Wrong::OverBound(staleness))
            }
            (Some(place), Some(_)) if answer.at_least.is_some_and(|least| place < least) => {
                Some(Wrong::BehindToken)
            }
            (Some(_), Some(_)) => None,
            _ => Some(Wrong::NeverWas),
        };
        let worst = staleness.filter(|_| fresh).unwrap_or_default();
        for window in self.windows.iter_mut().filter(|window| window.contains(answer.begun)) {
            window.answered.push(answer.ended);
        }
        self.count(answer.begun, |window| {
            window.reads += 1;
            window.fresh += u64::from(fresh);
            window.flagged += u64::from(!fresh);
            window.over_bound += u64::from(matches!(wrong, Some(Wrong::OverBound(_))));
            window.violations += u64::from(wrong.is_some());
            window.worst = window.worst.max(worst);
            window.longest_read = window.longest_read.max(answer.ended.saturating_sub(answer.begun));
        });
        if let Some(wrong) = wrong
            && self.violations.len() < DESCRIBED
        {
            let violation = self.describe(answer, wrong);
            self.violations.push(violation);
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(*answer);
        staleness
    }

    /// A read that ended with an error.
    pub fn failed(&mut self, begun: Duration, ended: Duration) {
        self.count(begun, |window| {
            window.failed += 1;
            window.longest_read = window.longest_read.max(ended.saturating_sub(begun));
        });
    }

    fn count(&mut self, begun: Duration, count: impl Fn(&mut Window)) {
        count(&mut self.all);
        self.windows.iter_mut().filter(|window| window.contains(begun)).for_each(count);
    }

    fn describe(&self, answer: &Answer, wrong: Wrong) -> Violation {
        let windows = self.windows.iter().filter(|window| window.contains(answer.begun));
        let mut lines = Vec::new();
        if let Some(timeline) = self.keys.get(&answer.key) {
            let now = timeline.versions.partition_point(|version| version.begun <= answer.begun);
            let served = timeline.place(answer.value, answer.ended).unwrap_or(now);
            let (first, last) = (served.min(now), served.max(now));
            let shown = first.saturating_sub(AROUND)..(last + AROUND).min(timeline.versions.len());
            for version in &timeline.versions[shown] {
                lines.push((version.begun, version.to_string()));
            }
        }
        let reads = self.recent.iter().rev().filter(|read| read.key == answer.key).take(AROUND);
        lines.extend(reads.map(|read| (read.begun, read.to_string())));
        lines.push((answer.begun, format!("{answer}   <-- {wrong}")));
        lines.sort_by_key(|(at, _)| *at);
        Violation {
            answer: *answer,
            wrong,
            windows: windows.map(|window| window.name.clone()).collect(),
            around: lines.into_iter().map(|(_, line)| line).collect(),
        }
    }

    /// The report. Sorts the times of answers, for the silences.
    #[must_use]
    pub fn report(mut self) -> Report {
        self.windows.iter_mut().for_each(|window| window.answered.sort_unstable());
        Report { all: self.all, windows: self.windows, violations: self.violations }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12.3?} write of {}", self.begun, Shown(self.value))?;
        match self.acked {
            Some(acked) => write!(f, ", acknowledged at {acked:.3?}"),
            None => f.write_str(", outcome unknown"),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>12.3?} read of {} on instance {} from {:?}, {:?}, answered at {:.3?}",
            self.begun,
            Shown(self.value),
            self.instance,
            self.tier,
            self.freshness,
            self.ended
        )
    }
}

/// A value's number, or that there is none.
struct Shown(Option<u64>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(value) => write!(f, "value {value}"),
            None => f.write_str("nothing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::read::Tier;

    const BOUND: Duration = ms(1_000);

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn fresh(value: Option<u64>, begun: u64) -> Answer {
        Answer::new(7, value, Freshness::Fresh, Tier::Local, ms(begun), ms(begun + 1))
    }

    /// 1 from 10 on, 2 from 100 on, 3 from 5,000 on.
    fn three() -> History {
        let mut history = History::new();
        for (value, at) in [(1, 10), (2, 100), (3, 5_000)] {
            history.wrote(7, Some(value), ms(at - 5), Some(ms(at)));
        }
        history
    }

    fn wrong(history: History, answer: Answer) -> Option<Wrong> {
        let mut judge = history.judge(BOUND);
        judge.read(&answer);
        let report = judge.report();
        assert_eq!(report.all.violations, report.violations.len() as u64);
        report.violations.first().map(|violation| violation.wrong)
    }

    #[test]
    fn a_read_is_as_stale_as_the_oldest_write_that_it_misses() {
        let mut judge = three().judge(BOUND);
        assert_eq!(judge.read(&fresh(Some(3), 5_500)), Some(ms(0)));
        assert_eq!(judge.read(&fresh(Some(2), 5_500)), Some(ms(500)));
        assert_eq!(judge.read(&fresh(Some(1), 600)), Some(ms(500)));
        assert_eq!(judge.read(&fresh(Some(1), 50)), Some(ms(0)));
        assert_eq!(judge.report().all.worst, ms(500));
    }

    #[test]
    fn a_fresh_read_is_wrong_from_just_beyond_the_bound_on() {
        assert_eq!(wrong(three(), fresh(Some(1), 1_100)), None);
        assert_eq!(wrong(three(), fresh(Some(1), 1_101)), Some(Wrong::OverBound(ms(1_001))));
        assert_eq!(wrong(three(), fresh(None, 1_011)), Some(Wrong::OverBound(ms(1_001))));
    }

    #[test]
    fn what_is_flagged_has_no_bound_but_must_have_been_and_what_is_stale_by_choice_has_one() {
        let unverified = Freshness::Unverified { since: ms(1) };
        assert_eq!(wrong(three(), Answer { freshness: unverified, ..fresh(Some(1), 60_000) }), None);
        assert_eq!(
            wrong(
                three(),
                Answer { freshness: Freshness::Stale(StaleCause::Replica), ..fresh(None, 60_000) }
            ),
            None
        );
        let stale = |since| Freshness::Stale(StaleCause::Invalidated { since });
        assert_eq!(wrong(three(), Answer { freshness: stale(ms(500)), ..fresh(Some(1), 1_600) }), None);
        assert_eq!(
            wrong(three(), Answer { freshness: stale(ms(500)), ..fresh(Some(1), 1_601) }),
            Some(Wrong::OverBound(ms(1_501)))
        );
        let never = Answer { freshness: Freshness::Stale(StaleCause::Replica), ..fresh(Some(9), 60_000) };
        assert_eq!(wrong(three(), never), Some(Wrong::NeverWas));
    }

    #[test]
    fn a_value_from_the_future_is_wrong() {
        // The write of 3 began at 4,995.
        assert_eq!(wrong(three(), fresh(Some(3), 4_000)), Some(Wrong::NeverWas));
        let slow = Answer { ended: ms(4_995), ..fresh(Some(3), 4_000) };
        assert_eq!(wrong(three(), slow), None);
    }

    #[test]
    fn a_key_that_nobody_wrote_is_absent() {
        assert_eq!(wrong(three(), Answer { key: 8, ..fresh(None, 1) }), None);
        assert_eq!(wrong(three(), Answer { key: 8, ..fresh(Some(1), 1) }), Some(Wrong::NeverWas));
    }

    #[test]
    fn a_write_of_unknown_outcome_may_be_read_and_need_not_be() {
        let mut history = three();
        history.wrote(7, Some(4), ms(6_000), None);
        assert_eq!(wrong(history, fresh(Some(3), 60_000)), None);
        let mut history = three();
        history.wrote(7, Some(4), ms(6_000), None);
        assert_eq!(wrong(history, fresh(Some(4), 6_001)), None);
        // One that follows replaces both.
        let mut history = three();
        history.wrote(7, Some(4), ms(6_000), None);
        history.wrote(7, Some(5), ms(7_000), Some(ms(7_001)));
        assert_eq!(wrong(history, fresh(Some(3), 8_002)), Some(Wrong::OverBound(ms(1_001))));
    }

    #[test]
    fn acknowledgements_may_come_in_another_order_than_writes() {
        let mut history = History::new();
        history.wrote(7, Some(1), ms(1), Some(ms(900)));
        history.wrote(7, Some(2), ms(2), Some(ms(20)));
        // Whoever has seen 2 acknowledged knows that 1 has been replaced.
        assert_eq!(wrong(history, fresh(Some(1), 1_021)), Some(Wrong::OverBound(ms(1_001))));
    }

    #[test]
    fn a_value_that_comes_back_is_judged_by_its_last_time() {
        let mut history = History::new();
        history.wrote(7, Some(1), ms(10), Some(ms(10)));
        history.wrote(7, None, ms(2_000), Some(ms(2_000)));
        history.wrote(7, Some(2), ms(3_000), Some(ms(3_000)));
        // A crash took 2 back.
        history.wrote(7, None, ms(9_000), Some(ms(9_000)));
        assert_eq!(wrong(history, fresh(None, 60_000)), None);
        let mut history = History::new();
        history.wrote(7, Some(1), ms(10), Some(ms(10)));
        history.wrote(7, None, ms(9_000), Some(ms(9_000)));
        assert_eq!(wrong(history, fresh(None, 2_000)), Some(Wrong::OverBound(ms(1_990))));
    }

    #[test]
    fn a_reader_that_demands_a_write_gets_nothing_older() {
        let mut history = three();
        let place = history.wrote(7, Some(4), ms(6_000), Some(ms(6_001)));
        let demanding = |value| Answer { at_least: Some(place), ..fresh(Some(value), 6_002) };
        assert_eq!(wrong(history, demanding(3)), Some(Wrong::BehindToken));
        let mut history = three();
        history.wrote(7, Some(4), ms(6_000), Some(ms(6_001)));
        assert_eq!(wrong(history, demanding(4)), None);
    }

    #[test]
    fn windows_count_what_began_in_them() {
        let mut judge = three().judge(BOUND);
        judge.window("early", ms(0), ms(1_000));
        judge.window("late", ms(1_000), ms(2_000));
        judge.read(&fresh(Some(2), 200));
        judge.read(&fresh(Some(2), 900));
        judge.read(&fresh(Some(1), 1_500));
        judge.failed(ms(1_600), ms(1_900));
        let report = judge.report();
        let [early, late] = &report.windows[..] else { panic!("{report:?}") };
        assert_eq!((early.reads, early.over_bound, early.failed), (2, 0, 0));
        assert_eq!((late.reads, late.over_bound, late.failed), (1, 1, 1));
        assert_eq!((early.longest_silence(), late.longest_read), (ms(700), ms(300)));
        assert_eq!(report.violations[0].windows, ["late"]);
        assert_eq!(report.all.reads, 3);
    }

    #[test]
    fn a_violation_shows_what_happened_around_it() {
        let mut judge = three().judge(BOUND);
        judge.read(&fresh(Some(2), 200));
        judge.read(&fresh(Some(1), 2_000));
        let shown = judge.report().violations[0].to_string();
        let order = ["stale by 1.900s", "write of value 1", "write of value 2", "read of value 2", "<--"];
        let places: Vec<_> = order.iter().map(|text| shown.find(text)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{shown}");
    }
}
