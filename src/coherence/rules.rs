//! The rules that the promise rests on: which values a bucket accepts, how it learns of an invalidation, and when it
//! forgets what only a hint has told.
//!
//! Pure: the same calls give the same answers, whatever the threads, clocks and networks around do. The oracle
//! test below runs them against a set-based truth over random histories.
//!
//! *Invariant.* Every transaction that the log has brought for the bucket is in `xids`, or at most `coarse_up_to`, or contained in every snapshot of
//! rank `floor` and above; and at most `highest`. Every transaction that a hint told of is among those, or in `xids`, or at most
//! `hinted`, until a poll that was sent after the hint came has completed. So a snapshot that passes [`Bucket::accepts`] contains them all.
//!
//! Such a poll has brought whatever was true of the hint: it was published after its commit, so its row was visible. What it
//! did not bring was never true, or is no part of the log. Kept, it would close the bucket until its number is reached.

use super::known::Known;
use super::snapshot::{Rank, Snapshot};

/// Transactions that a bucket remembers one by one.
const REMEMBERED: usize = 4;

/// What an instance knows of the invalidations of the keys that hash to one bucket. 0 is no transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bucket<const ROOM: usize = REMEMBERED> {
    /// Of the log.
    highest: u64,
    /// Of the log.
    floor: Rank,
    /// Of the log.
    coarse_up_to: u64,
    /// Of hints: what was given up of them.
    hinted: u64,
    xids: [u64; ROOM],
    /// Who told of each of `xids`.
    told: [By; ROOM],
    /// Who told of the youngest that `hinted` stands for. `Log` where there is none.
    hinted_told: By,
}

/// Who told of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum By {
    Log,
    /// A hint that came before the poll was sent that is under way.
    OldHint,
    /// A hint that came since.
    Hint,
}

/// What [`Bucket::apply`] had to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Learned {
    /// The bucket stays exact.
    Exactly,
    /// More hints than it can remember: it refuses values that it might accept, until their `xmin` passes or the hints are
    /// forgotten. A poll now confirms the transactions and limits the loss.
    Coarsely,
}

impl<const ROOM: usize> Default for Bucket<ROOM> {
    fn default() -> Self {
        Self {
            highest: 0,
            floor: Rank::default(),
            coarse_up_to: 0,
            hinted: 0,
            xids: [0; ROOM],
            told: [By::Log; ROOM],
            hinted_told: By::Log,
        }
    }
}

impl<const ROOM: usize> Bucket<ROOM> {
    /// A bucket for which every invalidation so far is contained in `floor`.
    pub(crate) fn at(floor: &Snapshot) -> Self {
        Self { highest: floor.xmax().saturating_sub(1), floor: floor.rank(), ..Self::default() }
    }

    /// The highest transaction that it knows. A snapshot with a higher `xmin` is always accepted.
    pub(crate) fn highest(&self) -> u64 {
        self.xids.iter().fold(self.highest.max(self.hinted), |highest, xid| highest.max(*xid))
    }

    /// Whether a value with this stamp reflects every invalidation applied to the bucket.
    pub(crate) fn accepts(&self, stamp: &Snapshot) -> bool {
        self.contains_given_up(stamp) && self.xids.iter().all(|xid| stamp.contains(*xid))
    }

    /// Whether a value with this stamp is what there was at a later moment of the same primary: whether it reflects every invalidation
    /// that the moment contains. Only once a poll has completed that ranks as high as the moment, so that all of them are known.
    pub(crate) fn accepts_at(&self, stamp: &Snapshot, moment: &Snapshot) -> bool {
        self.contains_given_up(stamp)
            && self.xids.iter().all(|xid| stamp.contains(*xid) || !moment.contains(*xid))
    }

    /// Whether a stamp contains all that the bucket has given up, and remembers no more one by one.
    fn contains_given_up(&self, stamp: &Snapshot) -> bool {
        (stamp.xmin() > self.highest || stamp.rank() >= self.floor)
            && stamp.xmin() > self.coarse_up_to.max(self.hinted)
    }

    /// Records that transaction `xid` invalidated a key of this bucket. Idempotent, and any order will do.
    ///
    /// `last` is the snapshot of the last poll whose rows have *all* been applied: what it contains, this bucket
    /// has been told already. `current` is the snapshot of the poll that brings this very transaction; a hint has none.
    ///
    /// A transaction may be given up against a snapshot that contains it, for every snapshot of that rank and above does too;
    /// where it is below the snapshot's `xmin`, for every snapshot of a higher `xmin` does.
    /// One that neither contains must not be dropped, even when room is short: it would be forgotten before any poll
    /// brought it. That `current` is not complete yet doesn't matter here, only to what is known.
    pub(crate) fn apply(&mut self, xid: u64, last: Option<&Snapshot>, current: Option<&Snapshot>) -> Learned {
        let by = |xid: u64| [last, current].into_iter().flatten().find(|poll| poll.contains(xid));
        if last.is_some_and(|poll| poll.contains(xid)) {
            return Learned::Exactly;
        }
        let told = if current.is_some() { By::Log } else { By::Hint };
        if told == By::Log {
            self.highest = self.highest.max(xid);
        }
        if let Some(known) = self.place(xid) {
            // The row of a hint: from now on it is the log's. Else it would be forgotten with the hint. A second hint is as good as
            // the first, which may have been made up by somebody who guessed the number.
            if self.told[known] > By::Log {
                self.told[known] = told;
            }
            return Learned::Exactly;
        }
        let free = self.xids.iter().position(|x| *x == 0);
        if let Some(place) = free.or_else(|| self.lowest(|at| by(self.xids[at]).is_some())) {
            self.give_up(self.xids[place], by(self.xids[place]));
            (self.xids[place], self.told[place]) = (xid, told);
            return Learned::Exactly;
        }
        if by(xid).is_some() {
            self.give_up(xid, by(xid));
            return Learned::Exactly;
        }
        // A hint, beside what no completed poll contains. What the log has brought must stay.
        let lower = self.lowest(|at| self.told[at] > By::Log && self.xids[at] < xid);
        let given_up = lower.map_or(xid, |at| std::mem::replace(&mut self.xids[at], xid));
        if let Some(at) = lower {
            self.told[at] = told;
        }
        (self.hinted, self.hinted_told) = (self.hinted.max(given_up), told);
        Learned::Coarsely
    }

    /// Where `xid` is a transaction, and not a free place.
    fn give_up(&mut self, xid: u64, to: Option<&Snapshot>) {
        let Some(poll) = to.filter(|_| xid > 0) else { return };
        self.highest = self.highest.max(xid);
        if xid < poll.xmin() {
            // Whatever ranks as high as the poll has at least its `xmin`, and so have some that are older: `coarse_up_to` refuses less.
            self.coarse_up_to = self.coarse_up_to.max(xid);
        } else {
            self.floor = self.floor.max(poll.rank());
        }
    }

    /// A poll is about to be sent: what hints have told so far is true only if it brings it.
    pub(crate) fn sent(&mut self) {
        for told in self.told.iter_mut().chain([&mut self.hinted_told]) {
            *told = (*told).min(By::OldHint);
        }
    }

    /// All that the poll has brought has been applied. Forgets what it did not bring, though it was hinted at before it was
    /// sent.
    pub(crate) fn forget(&mut self) {
        let given_up = (&mut self.hinted, &mut self.hinted_told);
        let all = self.xids.iter_mut().zip(&mut self.told).chain([given_up]);
        for (xid, told) in all.filter(|(_, told)| **told == By::OldHint) {
            (*xid, *told) = (0, By::Log);
        }
    }

    /// Whether it knows anything by hints alone.
    pub(crate) fn is_hinted(&self) -> bool {
        self.hinted_told > By::Log || self.told.iter().any(|told| *told > By::Log)
    }

    /// Whether this transaction has been applied before, as far as the bucket can still tell.
    pub(crate) fn knows(&self, xid: u64, last: Option<&Snapshot>) -> bool {
        self.place(xid).is_some() || last.is_some_and(|poll| poll.contains(xid))
    }

    /// Laid open, for people.
    pub(crate) fn known(&self) -> Known {
        let mut xids: Vec<u64> = self.xids.iter().copied().filter(|xid| *xid > 0).collect();
        xids.sort_unstable();
        Known {
            highest: self.highest,
            coarse_up_to: self.coarse_up_to.max(self.hinted),
            floor: self.floor,
            xids,
        }
    }

    fn place(&self, xid: u64) -> Option<usize> {
        self.xids.iter().position(|known| *known == xid)
    }

    fn lowest(&self, of: impl Fn(usize) -> bool) -> Option<usize> {
        (0..ROOM).filter(|at| of(*at)).min_by_key(|at| self.xids[*at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A random database: transactions begin, end and are hinted at in any order.
    struct Oracle {
        seed: u64,
        next: u64,
        running: BTreeSet<u64>,
        touching: Vec<u64>,
        committed: Vec<u64>,
    }

    impl Oracle {
        fn below(&mut self, n: usize) -> usize {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            usize::try_from(self.seed % n as u64).unwrap()
        }

        fn snapshot(&self) -> Snapshot {
            // xmax is the latest *completed* transaction + 1, as in Postgres.
            let xmax = (1..self.next).rev().find(|x| !self.running.contains(x)).map_or(1, |x| x + 1);
            let running: Vec<u64> = self.running.iter().copied().filter(|x| *x < xmax).collect();
            Snapshot::new(running.first().copied().unwrap_or(xmax), xmax, &running)
        }
    }

    #[derive(Default)]
    struct Counts {
        judged: u64,
        right: u64,
        accepted: u64,
        wrong: u64,
        by_xmin: u64,
    }

    #[test]
    fn a_second_hint_is_as_good_as_the_first() {
        let mut bucket: Bucket = Bucket::default();
        let old = Snapshot::all_below(60);
        // Somebody has guessed the number, and the poll that is under way can't bring it yet.
        bucket.apply(90, None, None);
        bucket.sent();
        bucket.apply(90, None, None);
        bucket.forget();
        assert!(!bucket.accepts(&old));
        bucket.sent();
        bucket.forget();
        assert!(bucket.accepts(&old));
    }

    /// One history. `break_it` names a broken variant of the rule, which must accept something wrong.
    fn history(seed: u64, break_it: &str, counts: &mut Counts) {
        let mut db = Oracle {
            seed: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            next: 1,
            running: BTreeSet::new(),
            touching: vec![],
            committed: vec![],
        };
        let width = 1 + db.below(30);
        let keep_one_open = db.below(3) == 0;
        let mut bucket: Bucket = Bucket::default();
        let mut applied = BTreeSet::new();
        let mut poll: Option<Snapshot> = None;
        // The answer of a poll that is under way.
        let mut sent: Option<(Snapshot, Vec<u64>)> = None;
        let mut stamps: Vec<(Snapshot, BTreeSet<u64>, u64)> = vec![];
        for _ in 0..300 {
            match db.below(12) {
                0..=2 if db.running.len() < width => {
                    db.running.insert(db.next);
                    if db.below(3) > 0 {
                        db.touching.push(db.next);
                    }
                    db.next += 1;
                }
                3..=5 if db.running.len() > usize::from(keep_one_open) => {
                    let skip = usize::from(keep_one_open);
                    let at = skip + db.below(db.running.len() - skip);
                    let xid = *db.running.iter().nth(at).unwrap();
                    db.running.remove(&xid);
                    if db.touching.contains(&xid) && db.below(10) > 0 {
                        db.committed.push(xid);
                    }
                }
                // Of late, mostly: what a poll has brought long ago takes no room.
                6..=7 if !db.committed.is_empty() && db.below(4) > 0 => {
                    let recent = db.committed.len().min(12);
                    let at = db.committed.len() - 1 - db.below(recent);
                    let xid = db.committed[at];
                    bucket.apply(xid, poll.as_ref(), None);
                    applied.insert(xid);
                }
                7 | 10 => match sent.take() {
                    None => {
                        bucket.sent();
                        sent = Some((db.snapshot(), db.committed.clone()));
                    }
                    Some((snapshot, rows)) => {
                        for xid in rows {
                            bucket.apply(xid, poll.as_ref(), Some(&snapshot));
                            applied.insert(xid);
                        }
                        if break_it == "forgotten by an earlier poll" {
                            bucket.sent();
                        }
                        bucket.forget();
                        poll = Some(snapshot);
                    }
                },
                // Somebody makes one up, of a number that others may have one day.
                8 if db.below(200) == 0 => {
                    let ahead = 1 + db.below(100) as u64;
                    bucket.apply(db.next + ahead, poll.as_ref(), None);
                }
                8 if db.below(20) == 0 => {
                    // Recovery: forget everything, take a snapshot that contains all that was trimmed as floor, and
                    // replay the rest.
                    let snapshot = db.snapshot();
                    sent = None;
                    let floor = poll.take().filter(|_| db.below(2) == 0).unwrap_or_else(|| snapshot.clone());
                    bucket = Bucket::at(&floor);
                    for xid in db.committed.iter().copied().filter(|xid| !floor.contains(*xid)) {
                        bucket.apply(xid, None, Some(&snapshot));
                    }
                    applied = db.committed.iter().copied().collect();
                    poll = Some(snapshot);
                }
                8 => {
                    let whole = db.snapshot();
                    let stamp = match db.below(3) {
                        0 => whole.for_wire(),
                        1 => Snapshot::new(whole.xmin(), whole.xmax(), &[]),
                        _ => whole,
                    };
                    let ended = (1..db.next).filter(|x| !db.running.contains(x)).collect();
                    stamps.push((stamp, ended, db.next));
                }
                _ if !stamps.is_empty() => {
                    let at = db.below(stamps.len());
                    let (stamp, ended, _) = &stamps[at];
                    let truth = applied.iter().all(|xid| ended.contains(xid));
                    let mut broken = bucket;
                    let accepted = match break_it {
                        "" | "forgotten by an earlier poll" => bucket.accepts(stamp),
                        "no check" => true,
                        "xmax > highest" => stamp.xmax() > bucket.highest(),
                        "coarse_up_to forgotten" => {
                            (broken.coarse_up_to, broken.hinted) = (0, 0);
                            broken.accepts(stamp)
                        }
                        "floor forgotten" => {
                            broken.floor = Rank::default();
                            broken.accepts(stamp)
                        }
                        other => panic!("no such variant: {other}"),
                    };
                    counts.judged += 1;
                    counts.right += u64::from(truth);
                    counts.accepted += u64::from(accepted);
                    counts.wrong += u64::from(accepted && !truth);
                    counts.by_xmin += u64::from(stamp.xmin() > bucket.highest());
                }
                _ => {}
            }
        }
    }

    fn run(break_it: &str) -> Counts {
        let mut counts = Counts::default();
        for seed in 1..=4000 {
            history(seed, break_it, &mut counts);
            if counts.wrong > 0 {
                break;
            }
        }
        counts
    }

    #[test]
    fn a_bucket_never_accepts_a_value_that_misses_an_applied_invalidation() {
        let counts = run("");
        assert_eq!(counts.wrong, 0, "of {} judged", counts.judged);
        assert!(counts.judged > 100_000);
        assert!(counts.accepted > counts.by_xmin, "precise stamps accept more than xmin alone");
        assert!(counts.accepted * 100 > counts.right * 80, "{} of {}", counts.accepted, counts.right);
    }

    #[test]
    fn broken_rules_are_caught_by_the_oracle() {
        for variant in [
            "no check",
            "xmax > highest",
            "coarse_up_to forgotten",
            "floor forgotten",
            "forgotten by an earlier poll",
        ] {
            assert!(run(variant).wrong > 0, "the oracle missed: {variant}");
        }
    }

    #[test]
    fn an_unconfirmed_hint_is_never_dropped_against_the_last_poll() {
        // The poll was before 20..=24 committed. Five hints: one must be given up, by `coarse_up_to`, not by `floor`.
        let poll = Snapshot::parse("10:10:").unwrap();
        let mut bucket: Bucket = Bucket::default();
        let learned: Vec<Learned> = (20..=24).map(|xid| bucket.apply(xid, Some(&poll), None)).collect();
        assert_eq!(learned.last(), Some(&Learned::Coarsely));
        let without_20 = Snapshot::parse("20:25:20").unwrap();
        assert!(!bucket.accepts(&without_20));
        assert!(bucket.accepts(&Snapshot::parse("25:25:").unwrap()));
    }

    #[test]
    fn a_hint_is_forgotten_once_a_poll_has_completed_that_was_sent_after_it_came() {
        let value = Snapshot::parse("40:40:").unwrap();
        let mut bucket: Bucket = Bucket::default();
        bucket.sent();
        // More than there is room for, and far ahead.
        for n in 0..6 {
            bucket.apply(1_000 + n, None, None);
        }
        bucket.forget();
        assert!(!bucket.accepts(&value), "the poll that was under way says nothing of them");
        bucket.sent();
        assert!(bucket.is_hinted());
        bucket.forget();
        assert!(bucket.accepts(&value));
        assert!(!bucket.is_hinted());
        assert_eq!(bucket.known(), Bucket::<4>::default().known());
    }

    #[test]
    fn what_the_log_has_brought_is_never_forgotten_for_a_hint() {
        let (last, current) = (Snapshot::parse("20:20:").unwrap(), Snapshot::parse("30:30:").unwrap());
        let mut bucket: Bucket = Bucket::default();
        bucket.apply(25, Some(&last), None);
        bucket.sent();
        for xid in 24..28 {
            bucket.apply(xid, Some(&last), Some(&current));
        }
        // There is no room left for these.
        for xid in 100..110 {
            bucket.apply(xid, Some(&last), None);
        }
        bucket.forget();
        bucket.sent();
        bucket.forget();
        assert!(bucket.accepts(&Snapshot::parse("28:28:").unwrap()));
        for (xid, without) in (24..28).zip(["24:28:24", "25:28:25", "26:28:26", "27:27:"]) {
            assert!(!bucket.accepts(&Snapshot::parse(without).unwrap()), "forgotten: {xid}");
        }
    }

    #[test]
    fn a_value_loaded_just_after_a_write_is_accepted_beside_a_long_transaction() {
        // 5 has been open for an hour; 20 wrote this key and ended.
        let mut bucket: Bucket = Bucket::default();
        bucket.apply(20, None, None);
        assert!(bucket.accepts(&Snapshot::parse("5:21:5").unwrap()));
        assert!(!bucket.accepts(&Snapshot::parse("5:20:5").unwrap()));
    }

    #[test]
    fn what_a_replay_brings_beside_a_long_transaction_closes_no_bucket() {
        // 5 has been open for an hour. Ten writes of this key are replayed; the poll that brings them contains them all.
        let current = Snapshot::parse("5:40:5").unwrap();
        let mut bucket: Bucket = Bucket::default();
        let learned: Vec<Learned> = (20..30).map(|xid| bucket.apply(xid, None, Some(&current))).collect();
        assert!(learned.iter().all(|learned| *learned == Learned::Exactly));
        assert!(bucket.accepts(&current), "what is loaded from now on");
        assert!(!bucket.accepts(&Snapshot::parse("5:29:5").unwrap()), "what misses the last of them");
        assert!(!bucket.accepts(&Snapshot::parse("5:20:5").unwrap()), "what misses all of them");
    }

    #[test]
    fn what_a_replay_gives_up_refuses_no_older_value_that_contains_it() {
        // 33 is a batch, begun after 20..=29 had ended. 36 is why the bucket can't judge by the highest alone.
        let current = Snapshot::parse("33:40:33").unwrap();
        let mut bucket: Bucket = Bucket::default();
        for xid in (20..30).chain([36]) {
            bucket.apply(xid, None, Some(&current));
        }
        assert!(bucket.accepts(&Snapshot::parse("33:37:33").unwrap()), "loaded before this poll");
        assert!(!bucket.accepts(&Snapshot::parse("33:36:33").unwrap()), "it misses 36");
        assert!(!bucket.accepts(&Snapshot::parse("25:37:25,33").unwrap()), "it misses 25");
    }

    #[test]
    fn hints_have_no_snapshot_that_confirms_them() {
        let poll = Snapshot::parse("5:10:5").unwrap();
        let mut bucket: Bucket = Bucket::default();
        for xid in 20..24 {
            assert_eq!(bucket.apply(xid, Some(&poll), None), Learned::Exactly);
        }
        // Brought by a poll that does not contain the hints before it: it is given up, and they are not.
        let current = Snapshot::parse("5:25:5,20,21,22,23").unwrap();
        assert_eq!(bucket.apply(24, Some(&poll), Some(&current)), Learned::Exactly);
        assert!(!bucket.accepts(&current), "it misses the hints");
        assert!(bucket.accepts(&Snapshot::parse("5:25:5").unwrap()));
        assert!(!bucket.accepts(&Snapshot::parse("5:24:5").unwrap()), "it misses what was given up");
    }
}
