//! What may happen next, and what it does.

use std::time::Duration;

use super::scopes::Asks;
use super::state::{
    A, ALL_OF_B, Answer, B, Entry, FILLS, Held, Instance, Mark, Outcome, READERS, ROWS, ReadStart, Reader,
    Rows, Step, Stored, Tail, Token, Value, World,
};
use super::variants::Variant;
use super::{Rowwise, promise};
use crate::coherence::poll::{self, Next, Polled};
use crate::coherence::rules::Bucket;
use crate::coherence::snapshot::{Rank, Snapshot};
use crate::coherence::token;
use crate::coherence::verdict::{Boarded, Demand, Flight, FlightSource, LeaseVerdict, Verdict, Write};
use crate::postgres::{Fate, Seen, Set, WRITERS, Writer, bit, has};

/// One step of somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Begin(u8),
    Commit(u8),
    Abort(u8),
    Trim,
    /// The last so many commits are lost.
    Crash {
        losing: u8,
    },
    TimePasses,
    Hint {
        of: u8,
        row: u8,
        to: u8,
    },
    /// An instance begins to read the log anew.
    Lose(u8),
    Poll(u8),
    Apply(u8),
    ApplyRow {
        of: u8,
        row: u8,
        to: u8,
    },
    Complete(u8),
    Extend(u8),
    Invoke {
        reader: u8,
        /// A write of its own that it has made since its last read.
        wrote: Option<u8>,
    },
    /// No poll comes in time.
    GiveUpPoll(u8),
    /// The next step of a hit, or of what follows a flight.
    Next(u8),
    Join(u8),
    LookUp {
        reader: u8,
        found: Option<u8>,
    },
    Insert(u8),
    Load {
        reader: u8,
        /// As of an event, where it is a replica's.
        replica: Option<u8>,
    },
    Share(u8),
    /// The next step of a view that has all its answers.
    View(u8),
}

pub(super) fn rank(seen: Seen) -> Rank {
    seen.snapshot().rank()
}

const fn row_bit(of: u8, row: u8) -> Rows {
    1 << (of * ROWS as u8 + row)
}

impl Rowwise {
    pub(super) fn possible(&self, world: &World, actions: &mut Vec<Action>) {
        if world.wrong.is_some() {
            return;
        }
        self.of_postgres(world, actions);
        for (i, instance) in (0..).zip(&world.instances).filter(|(i, _)| self.is_read(*i)) {
            self.of_tail(world, i, instance, actions);
            if self.scope.hints && instance.poll.is_some() {
                for of in (0..self.writers()).filter(|of| world.db.epoch_of(*of) == instance.epoch) {
                    if matches!(
                        world.db.writers[usize::from(of)],
                        Writer::Ended { fate: Fate::Committed, .. }
                    ) {
                        let rows = self.rows_of(of, i);
                        actions.extend(rows.map(|row| Action::Hint { of, row, to: i }));
                    }
                }
            }
        }
        for (r, reader) in (0..).zip(&world.readers).take(self.scope.readers.len()) {
            self.of_reader(world, r, reader, actions);
        }
    }

    fn of_postgres(&self, world: &World, actions: &mut Vec<Action>) {
        for k in 0..self.writers() {
            match world.db.writers[usize::from(k)] {
                Writer::Waiting => {
                    // Of writers that are alike, the first goes first.
                    let waits = |other: u8| world.db.writers[usize::from(other)] == Writer::Waiting;
                    if !(0..k).any(|other| waits(other) && self.touches(other) == self.touches(k)) {
                        actions.push(Action::Begin(k));
                    }
                }
                Writer::Running { .. } | Writer::Logged { .. } => {
                    actions.push(Action::Commit(k));
                    actions.extend(self.scope.aborts.then_some(Action::Abort(k)));
                }
                Writer::Ended { .. } => {}
            }
        }
        actions.extend(self.scope.trim.then_some(Action::Trim));
        if self.scope.crash && world.db.crashed_at.is_none() {
            let commits = world.db.writers.iter().filter(|writer| writer.committed_by(world.db.now)).count();
            actions.extend((0..=commits.min(2)).map(|losing| Action::Crash { losing: losing as u8 }));
        }
        if self.scope.time && world.aged <= 2 * world.db.now {
            actions.push(Action::TimePasses);
        }
    }

    fn of_tail(&self, world: &World, i: u8, instance: &Instance, actions: &mut Vec<Action>) {
        match instance.tail {
            Tail::Idle => {
                let idle = instance.lease == Some(world.db.now)
                    && instance.poll == Some(world.db.seen_at(world.db.now))
                    && instance.epoch == world.db.epoch;
                // A poll that brings nothing new changes nothing: it is left out, so that there is an end.
                if !idle || self.is_awaited(world, i) {
                    actions.push(Action::Poll(i));
                }
                if self.scope.recoveries && instance.era == 0 {
                    actions.push(Action::Lose(i));
                }
            }
            Tail::Lost => actions.push(Action::Poll(i)),
            Tail::Answered(_) => actions.push(Action::Apply(i)),
            Tail::Applying(Answer { rows: 0, .. }) => actions.push(Action::Complete(i)),
            Tail::Applying(answer) => {
                for of in 0..self.writers() {
                    let rows = (0..ROWS as u8).filter(|row| answer.rows & row_bit(of, *row) != 0);
                    actions.extend(rows.map(|row| Action::ApplyRow { of, row, to: i }));
                }
            }
            Tail::Completed { .. } => actions.push(Action::Extend(i)),
        }
    }

    fn is_awaited(&self, world: &World, i: u8) -> bool {
        (0..self.scope.readers.len() as u8)
            .any(|r| self.instance(world, r) == i && world.reader(r).step == (Step::Waiting { sent: false }))
    }

    fn of_reader(&self, world: &World, r: u8, reader: &Reader, actions: &mut Vec<Action>) {
        let asks = &self.scope.readers[usize::from(r)];
        match reader.step {
            Step::Idle => {
                // Of readers that are alike, the first goes first.
                let alike = |other: u8| {
                    self.scope.readers[usize::from(other)] == *asks && world.reader(other) == reader
                };
                if usize::from(reader.begun) == asks.of().len() || (0..r).any(alike) {
                    return;
                }
                actions.push(Action::Invoke { reader: r, wrote: None });
                if self.is_session(r) {
                    // Its own write ends after its last answer, and after its last write.
                    let own = |k: &u8| match world.db.writers[usize::from(*k)] {
                        Writer::Ended { fate: Fate::Committed, at, .. } => at > reader.answered,
                        _ => false,
                    };
                    let own = (0..self.writers()).filter(own);
                    actions.extend(own.map(|k| Action::Invoke { reader: r, wrote: Some(k) }));
                }
            }
            Step::Waiting { .. } => actions.push(Action::GiveUpPoll(r)),
            Step::Woken
            | Step::Peeked { .. }
            | Step::Leased { .. }
            | Step::EntryRead { .. }
            | Step::SubjectsJudged { .. }
            | Step::Landed { .. }
            | Step::Judging { .. }
            | Step::Judged { .. } => actions.push(Action::Next(r)),
            Step::Missed { .. } => actions.push(Action::Join(r)),
            Step::Looking { .. } => {
                actions.push(Action::LookUp { reader: r, found: None });
                let (_, key) = self.asked(world, r);
                let of_key =
                    |at: &u8| world.l2[usize::from(*at)].is_some_and(|stored| stored.value.key == key);
                let stored = (0..FILLS as u8).filter(of_key);
                actions.extend(stored.map(|at| Action::LookUp { reader: r, found: Some(at) }));
            }
            Step::Found { .. } => actions.push(Action::Insert(r)),
            Step::Loading { primary, .. } => {
                actions.push(Action::Load { reader: r, replica: None });
                if self.scope.replica && !primary {
                    let ats = 0..=world.db.now;
                    actions.extend(ats.map(|at| Action::Load { reader: r, replica: Some(at) }));
                }
            }
            Step::Loaded { .. } => actions.push(Action::Share(r)),
            Step::Aboard { .. } => {}
            Step::Gathered | Step::JudgedBefore | Step::ViewPolled | Step::ViewJudged => {
                actions.push(Action::View(r));
            }
        }
    }

    pub(super) fn take(&self, world: &mut World, action: Action) {
        match action {
            Action::Begin(k) => world.db.begin(k),
            Action::Commit(k) => {
                world.db.end(k, Fate::Committed);
                world.remember();
            }
            Action::Abort(k) => {
                world.db.end(k, Fate::Aborted);
                world.remember();
            }
            Action::Trim => {
                for k in 0..self.writers() {
                    if world.db.writers[usize::from(k)].committed_by(world.db.now) && self.touches(k) != 0 {
                        world.db.gone |= bit(k);
                    }
                }
                world.db.trimmed = world.db.seen_at(world.db.now);
            }
            Action::Crash { losing } => {
                world.db.crash(losing);
                world.remember();
            }
            Action::TimePasses => world.aged += 1,
            Action::Hint { of, row, to } => self.apply(world, to, of, row, None),
            Action::Lose(i) => world.instances[usize::from(i)].lose(),
            Action::Poll(i) => self.poll(world, i),
            Action::Apply(i) => self.answered(world, i),
            Action::ApplyRow { of, row, to } => {
                if let Tail::Applying(answer) = &mut world.instances[usize::from(to)].tail {
                    answer.rows &= !row_bit(of, row);
                    let current = answer.seen;
                    self.apply(world, to, of, row, Some(current));
                }
            }
            Action::Complete(i) => complete(&mut world.instances[usize::from(i)]),
            Action::Extend(i) => self.extend(world, i),
            Action::Invoke { reader, wrote } => self.invoke(world, reader, wrote),
            Action::GiveUpPoll(r) => world.set(r, Step::Missed { again: false }),
            Action::Next(r) => self.next(world, r),
            Action::Join(r) => self.join(world, r),
            Action::LookUp { reader, found } => self.look_up(world, reader, found),
            Action::Insert(r) => {
                if let Step::Found { began: ReadStart { epoch, era, .. }, value } = world.reader(r).step {
                    let outcome = Outcome { value, epoch, era, from: FlightSource::Remote };
                    self.insert(world, r, outcome);
                    self.finish(world, r, outcome);
                }
            }
            Action::Load { reader, replica } => self.load(world, reader, replica),
            Action::Share(r) => self.share(world, r),
            Action::View(r) => self.view(world, r),
        }
    }

    /// The rows of a writer that an instance is told of: those of a cache that it has not declared are not.
    fn rows_of(&self, of: u8, i: u8) -> impl Iterator<Item = u8> + use<> {
        let (touches, declares_b) = (self.touches(of), self.declares_b(i));
        (0..ROWS as u8).filter(move |row| has(touches, *row) && (*row == A || declares_b))
    }

    /// Records an invalidation and evicts.
    fn apply(&self, world: &mut World, to: u8, of: u8, row: u8, current: Option<Seen>) {
        let xid = world.db.xid(of);
        let instance = &mut world.instances[usize::from(to)];
        let (last, current) = (instance.poll.map(Seen::snapshot), current.map(Seen::snapshot));
        instance.known[usize::from(row)].apply(xid.into(), last.as_ref(), current.as_ref());
        let key = row.min(B);
        let held = &mut instance.entries[usize::from(key)];
        // What is invalidated as a whole has another cache epoch.
        if held.is_some_and(|entry| row == ALL_OF_B || !has(entry.value.stamp.contained, xid)) {
            *held = None;
        }
    }

    /// One statement of the tail: the snapshot, the epoch and the rows of declared caches that the cursor does not contain.
    fn poll(&self, world: &mut World, i: u8) {
        let instance = &world.instances[usize::from(i)];
        let all = instance.tail == Tail::Lost;
        let cursor = if all { None } else { instance.poll };
        // Whose caches the rows are asked of.
        let asked = if self.variant == Some(Variant::RowsOfADeclaredCacheLeftOut) { 1 } else { i };
        let mut rows = 0;
        for k in (0..self.writers()).filter(|k| !has(world.db.gone, *k)) {
            if let writer @ Writer::Ended { xid, .. } = world.db.writers[usize::from(k)]
                && writer.committed_by(world.db.now)
                && cursor.is_none_or(|cursor| !has(cursor.contained, xid))
            {
                rows |= self.rows_of(k, asked).map(|row| row_bit(k, row)).sum::<Rows>();
            }
        }
        let (sent, epoch, seen) = (world.db.now, world.db.epoch, world.db.seen_at(world.db.now));
        let answer = Answer { sent, epoch, seen, trimmed: world.db.trimmed, rows, all };
        let instance = &mut world.instances[usize::from(i)];
        instance.tail = Tail::Answered(answer);
        instance.known.iter_mut().for_each(Bucket::sent);
        for r in 0..READERS as u8 {
            if matches!(world.reader(r).step, Step::Waiting { .. }) && self.instance(world, r) == i {
                world.set(r, Step::Waiting { sent: true });
            }
        }
    }

    /// `Tail::step` from the answer on.
    fn answered(&self, world: &mut World, i: u8) {
        let instance = &mut world.instances[usize::from(i)];
        let Tail::Answered(mut answer) = instance.tail else { return };
        let cursor = if answer.all { None } else { instance.poll.map(Seen::snapshot) };
        let (snapshot, trimmed) = (answer.seen.snapshot(), answer.trimmed.snapshot());
        let polled =
            Polled { epoch: answer.epoch.into(), snapshot: &snapshot, trimmed: &trimmed, has_rows: true };
        match poll::next(cursor.as_ref(), instance.epoch.into(), polled) {
            Next::ReadAll(_) => {
                instance.lose();
                return;
            }
            Next::Recover(at) => {
                instance.lease = None;
                instance.era += 1;
                instance.epoch = answer.epoch;
                instance.known = [Bucket::at(at); ROWS];
                instance.poll = None;
            }
            Next::Apply => {}
        }
        for of in (0..self.writers()).filter(|of| !polled.counts(world.db.xid(*of).into())) {
            (0..ROWS as u8).for_each(|row| answer.rows &= !row_bit(of, row));
        }
        world.instances[usize::from(i)].tail = Tail::Applying(answer);
        if !self.scope.pauses {
            for of in 0..self.writers() {
                for row in (0..ROWS as u8).filter(|row| answer.rows & row_bit(of, *row) != 0) {
                    self.apply(world, i, of, row, Some(answer.seen));
                }
            }
            complete(&mut world.instances[usize::from(i)]);
            self.extend(world, i);
        }
    }

    /// The lease rests on the poll, and whoever waited for it goes on.
    fn extend(&self, world: &mut World, i: u8) {
        let instance = &mut world.instances[usize::from(i)];
        let Tail::Completed { sent } = instance.tail else { return };
        instance.lease = Some(sent);
        instance.tail = Tail::Idle;
        for r in 0..READERS as u8 {
            if world.reader(r).step == (Step::Waiting { sent: true }) && self.instance(world, r) == i {
                self.go_on(world, r, Step::Woken);
            }
        }
    }

    /// A poll has completed that was sent after the read began.
    fn after_a_poll(&self, world: &mut World, r: u8) {
        let (i, _) = self.asked(world, r);
        let Some(token) = world.reader(r).token else { return };
        let Instance { epoch, poll, .. } = world.instances[usize::from(i)];
        let reached = poll.map(|poll| (epoch, rank(poll)));
        if token.epoch != epoch {
            // What is fresh from here on has what it stands for, or that was lost.
            let reader = &mut world.readers[usize::from(r)];
            (reader.asks, reader.reached) = (false, reached);
        } else if poll.is_some_and(|poll| !contains(world, poll, token)) {
            // There is no such write.
            return self.fail(world, r);
        } else {
            self.grant(world, r);
        }
        self.take_lease(world, r, None);
    }

    fn invoke(&self, world: &mut World, r: u8, wrote: Option<u8>) {
        let aged = world.aged;
        let wrote = wrote.map(|k| (k, world.db.epoch_of(k), world.db.writers[usize::from(k)]));
        let view = matches!(self.scope.readers[usize::from(r)], Asks::View(_));
        let reader = &mut world.readers[usize::from(r)];
        if !view || (reader.begun == 0 && reader.again == 0) {
            reader.floor = aged;
        }
        reader.begun += 1;
        if let Some((k, epoch, Writer::Ended { at, .. })) = wrote {
            reader.token = Some(Token { epoch, mark: Mark::Write(k) });
            reader.must |= bit(k);
            reader.answered = at;
        }
        reader.asks = reader.token.is_some();
        self.begin_hit(world, r);
    }

    /// What a hit reads before the entry: the poll, where there is a token, then the lease.
    fn begin_hit(&self, world: &mut World, r: u8) {
        if self.variant == Some(Variant::DependencyJudgedBeforeTheLease) && self.peek(world, r) {
            return;
        }
        if self.variant != Some(Variant::ReadTokenCheckedAfterTheEntry) {
            self.grant(world, r);
        }
        self.take_lease(world, r, None);
    }

    fn take_lease(&self, world: &mut World, r: u8, peeked: Option<Entry>) {
        let late = self.variant == Some(Variant::ReadTokenCheckedAfterTheEntry);
        let (i, key) = self.asked(world, r);
        let Instance { epoch, era, lease, entries, .. } = world.instances[usize::from(i)];
        let held = Held { lease, era, epoch };
        let entry = if late { entries[usize::from(key)] } else { peeked };
        self.go_on(world, r, Step::Leased { held, entry });
    }

    /// Pauses there, or not.
    fn go_on(&self, world: &mut World, r: u8, step: Step) {
        world.set(r, step);
        if !self.scope.pauses {
            self.next(world, r);
        }
    }

    /// Judges the entry before the lease is taken. Whether there is one that is accepted.
    fn peek(&self, world: &mut World, r: u8) -> bool {
        let (i, key) = self.asked(world, r);
        let instance = &world.instances[usize::from(i)];
        let entry = instance.entries[usize::from(key)];
        let accepted = entry.is_some_and(|entry| self.accepts_others(i, instance, entry.value));
        if accepted {
            self.go_on(world, r, Step::Peeked { entry });
        }
        accepted
    }

    /// Whether a token needs nothing any more, because a completed poll contains what it stands for or its epoch has ended.
    fn grant(&self, world: &mut World, r: u8) {
        let (i, _) = self.asked(world, r);
        let Some(token) = world.reader(r).token.filter(|_| world.reader(r).asks) else { return };
        let instance = &world.instances[usize::from(i)];
        let Instance { epoch, era, lease, poll, .. } = *instance;
        let by_xmax = |poll: Seen| match token.mark {
            Mark::Read(rank) if self.variant == Some(Variant::ReadTokenComparedByXmaxAlone) => {
                u64::from(poll.xmax) >= rank.xmax()
            }
            _ => contains(world, poll, token),
        };
        let polled = poll.filter(|poll| lease.is_some() && epoch == token.epoch && by_xmax(*poll));
        let reader = &mut world.readers[usize::from(r)];
        reader.asks = token.epoch >= epoch;
        reader.polled = polled.map(|_| era);
        reader.reached = polled.map(|poll| (epoch, rank(poll)));
    }

    /// What a value of this era must contain, where that is more than what is fresh.
    fn asks_of(&self, world: &World, r: u8, era: u8) -> Option<Token> {
        let reader = world.reader(r);
        let any_era = self.variant == Some(Variant::PollOfAnotherEraGrants) && reader.polled.is_some();
        reader.token.filter(|_| reader.asks && reader.polled != Some(era) && !any_era)
    }

    /// The next step of a hit, or of what follows a flight.
    fn next(&self, world: &mut World, r: u8) {
        let (i, key) = self.asked(world, r);
        let instance = world.instances[usize::from(i)];
        match world.reader(r).step {
            Step::Woken => self.after_a_poll(world, r),
            Step::Peeked { entry } => self.take_lease(world, r, entry),
            Step::Leased { held, entry } => {
                let held_now = instance.entries[usize::from(key)];
                let read = match self.variant {
                    Some(Variant::ReadTokenCheckedAfterTheEntry) => {
                        self.grant(world, r);
                        entry
                    }
                    Some(Variant::DependencyJudgedBeforeTheLease) => {
                        held_now.filter(|now| Some(*now) == entry)
                    }
                    Some(Variant::ClockBeforeDependencies) => held_now.filter(|_| world.valid(held.lease)),
                    _ => held_now,
                };
                let entry = read.filter(|entry| entry.era == held.era);
                self.go_on(world, r, Step::EntryRead { held, entry });
            }
            Step::EntryRead { held, entry } => self.entry_read(world, r, held, entry),
            Step::SubjectsJudged { held, entry } => {
                let across = self.variant == Some(Variant::DependencyJudgedAcrossARecovery);
                let same_era = across || instance.era == held.era;
                let clock = self.variant == Some(Variant::ClockBeforeDependencies) || world.valid(held.lease);
                if same_era && clock {
                    self.serve(world, r, entry, held.epoch, held.lease);
                } else if same_era && held.lease.is_some() && self.is_session(r) {
                    self.flagged(world, r, entry, held.epoch);
                } else {
                    world.set(r, Step::Missed { again: false });
                }
            }
            Step::Landed { outcome, before } => {
                self.go_on(world, r, Step::Judging { outcome, before, lease: instance.lease });
            }
            Step::Judging { outcome, before, lease } => {
                let accepted = match self.variant {
                    Some(Variant::FlightIgnoresDependencies) => {
                        self.accepts(i, &instance, outcome.value, outcome.value.subjects & bit(key))
                    }
                    _ => self.accepts(i, &instance, outcome.value, outcome.value.subjects),
                };
                self.go_on(world, r, Step::Judged { outcome, before, lease, accepted });
            }
            Step::Judged { outcome, before, lease, accepted } => {
                self.judge(world, r, outcome, before, lease, accepted);
            }
            _ => {}
        }
    }

    fn entry_read(&self, world: &mut World, r: u8, held: Held, entry: Option<Entry>) {
        let (i, _) = self.asked(world, r);
        let instance = &world.instances[usize::from(i)];
        let Some(entry) = entry else {
            match self.asks_of(world, r, instance.era) {
                // Of an epoch that is not known here.
                Some(token) if token.epoch != instance.epoch => world.set(r, Step::Waiting { sent: false }),
                _ => world.set(r, Step::Missed { again: false }),
            }
            return;
        };
        let shown = |token: Token| token.epoch == held.epoch && contains(world, entry.value.stamp, token);
        // Something is there, which the write may not have touched: a poll tells.
        if self.asks_of(world, r, entry.era).is_some_and(|token| !shown(token)) {
            world.set(r, Step::Waiting { sent: false });
            return;
        }
        let judged_before = matches!(
            self.variant,
            Some(Variant::DependencyJudgedAtInsertOnly | Variant::DependencyJudgedBeforeTheLease)
        );
        if judged_before || self.accepts_others(i, instance, entry.value) {
            self.go_on(world, r, Step::SubjectsJudged { held, entry });
        } else {
            // What is refused is removed.
            let held_now = &mut world.instances[usize::from(i)].entries[usize::from(entry.value.key)];
            if *held_now == Some(entry) {
                *held_now = None;
            }
            world.set(r, Step::Missed { again: false });
        }
    }

    /// Whether the buckets of what a value depends on beside its own row accept it. Its own row evicts it.
    fn accepts_others(&self, i: u8, instance: &Instance, value: Value) -> bool {
        self.accepts(i, instance, value, value.subjects & !bit(value.key))
    }

    fn accepts(&self, i: u8, instance: &Instance, value: Value, subjects: Set) -> bool {
        let stamp = value.stamp.snapshot();
        let accepts = |row: u8| instance.known[usize::from(row)].accepts(&stamp);
        [A, B].into_iter().filter(|row| has(subjects, *row)).all(|row| {
            if row == A {
                return accepts(A);
            }
            if !self.declares_b(i) {
                return self.variant == Some(Variant::UndeclaredSubjectIgnored);
            }
            let ignored = self.variant == Some(Variant::WholeCacheOfASubjectIgnored) && value.key != B;
            accepts(B) && (ignored || accepts(ALL_OF_B))
        })
    }

    /// Whether a value is what there was at a moment; at the last poll, where the moment is not known.
    fn is_of(&self, i: u8, instance: &Instance, value: Value, moment: Option<Seen>) -> bool {
        let Some(moment) = moment else { return self.accepts(i, instance, value, value.subjects) };
        if moment == value.stamp {
            return true;
        }
        let (stamp, moment) = (value.stamp.snapshot(), moment.snapshot());
        let of_b = has(value.subjects, B).then_some([B, ALL_OF_B]).into_iter().flatten();
        let mut rows = has(value.subjects, A).then_some(A).into_iter().chain(of_b);
        rows.all(|row| instance.known[usize::from(row)].accepts_at(&stamp, &moment))
    }

    fn join(&self, world: &mut World, r: u8) {
        let Step::Missed { again } = world.reader(r).step else { return };
        let asked = self.asked(world, r);
        let Instance { epoch, era, poll, .. } = world.instances[usize::from(asked.0)];
        let began = ReadStart { epoch, era, poll };
        let mut others = (0..self.scope.readers.len() as u8).filter(|other| *other != r);
        let leads = |other: &u8| world.reader(*other).step.leads() && self.asked(world, *other) == asked;
        let step = match others.find(leads) {
            Some(leader) => Step::Aboard { leader, before: again },
            None if self.scope.l2 => Step::Looking { began },
            None => Step::Loading { began, primary: false },
        };
        world.set(r, step);
    }

    fn look_up(&self, world: &mut World, r: u8, found: Option<u8>) {
        let Step::Looking { began } = world.reader(r).step else { return };
        let (i, key) = self.asked(world, r);
        let instance = &world.instances[usize::from(i)];
        let stored = found.and_then(|at| world.l2[usize::from(at)]).filter(|stored| {
            world.valid(instance.lease)
                && stored.epoch == began.epoch
                && self.write(world, r, stored.value.stamp, began.epoch, began.era) == Write::Contained
                && self.accepts(i, instance, stored.value, stored.value.subjects)
        });
        let step = match stored {
            Some(Stored { value, .. }) => Step::Found { began, value: Value { key, ..value } },
            None => Step::Loading { began, primary: false },
        };
        world.set(r, step);
    }

    /// What a loader brings, and under which stamp.
    fn load(&self, world: &mut World, r: u8, replica: Option<u8>) {
        let Step::Loading { began, primary } = world.reader(r).step else { return };
        let (_, key) = self.asked(world, r);
        let at = replica.unwrap_or(world.db.now);
        let holds: Set =
            (0..self.writers()).filter(|k| world.db.writers[usize::from(*k)].committed_by(at)).map(bit).sum();
        let seen = world.db.seen_at(at);
        // A standby lists no running transactions.
        let stamp = match replica {
            Some(_) => Seen::of(&Snapshot::new(u64::from(seen.xmin()), u64::from(seen.xmax), &[])),
            None => seen,
        };
        let known = replica.is_none() || self.variant == Some(Variant::TokenOfAReadOfAReplica);
        let ceiling = known.then(|| rank(stamp));
        let value = Value { key, holds, stamp, ceiling, subjects: super::subjects(key) };
        let server = world.db.epoch;
        world.set(r, Step::Loaded { began, primary, value, by_primary: replica.is_none(), server });
    }

    /// The end of `run_loader`, and `share`.
    fn share(&self, world: &mut World, r: u8) {
        let Step::Loaded { began, primary, mut value, mut by_primary, server } = world.reader(r).step else {
            return;
        };
        let (i, _) = self.asked(world, r);
        let instance = &world.instances[usize::from(i)];
        if server != instance.epoch && self.variant != Some(Variant::RestartThatNoLoadTellsOf) {
            // A server that the log is not on: its numbers say nothing here.
            (value.stamp, value.ceiling, by_primary) = (Seen { contained: 0, xmax: 0 }, None, false);
        }
        let new = began.poll.is_none_or(|poll| rank(value.stamp) >= rank(poll));
        let from = if by_primary && new {
            FlightSource::Primary
        } else if began.era != instance.era || self.accepts(i, instance, value, value.subjects) {
            FlightSource::Unknown
        } else if primary {
            FlightSource::Behind
        } else {
            world.set(r, Step::Loading { began, primary: true });
            return;
        };
        let outcome = Outcome { value, epoch: began.epoch, era: began.era, from };
        let era = instance.era;
        self.insert(world, r, outcome);
        if self.scope.l2 && era == began.era {
            let stamp = Seen::of(&value.stamp.snapshot().cut_to(self.scope.wire));
            let as_exact =
                matches!(self.variant, Some(Variant::CutStampTakenAsExact | Variant::ViewOfACutStamp));
            let ceiling = if as_exact { value.ceiling.map(|_| rank(stamp)) } else { value.ceiling };
            let lost = self.variant == Some(Variant::DependencyLostInL2);
            let subjects = if lost { bit(value.key) } else { value.subjects };
            let value = Value { stamp, ceiling, subjects, ..value };
            world.fill(Stored { epoch: began.epoch, value });
        }
        self.finish(world, r, outcome);
    }

    /// Into L1, if its own row accepts it. What else it depends on is asked at each hit.
    fn insert(&self, world: &mut World, r: u8, outcome: Outcome) {
        let (i, key) = self.asked(world, r);
        let instance = world.instances[usize::from(i)];
        let Outcome { value, era, .. } = outcome;
        let at_insert_only = self.variant == Some(Variant::DependencyJudgedAtInsertOnly);
        let subjects = if at_insert_only { value.subjects } else { bit(key) };
        if self.accepts(i, &instance, value, subjects) && era == instance.era {
            world.instances[usize::from(i)].entries[usize::from(key)] = Some(Entry { value, era });
        }
    }

    /// Ends a flight: its leader and all aboard have an outcome to judge.
    fn finish(&self, world: &mut World, leader: u8, outcome: Outcome) {
        self.go_on_landed(world, leader, outcome, true);
        for r in 0..READERS as u8 {
            if let Step::Aboard { leader: of, before } = world.reader(r).step
                && of == leader
            {
                self.go_on_landed(world, r, outcome, before);
            }
        }
    }

    /// Others may come in between even where nobody pauses else: who waits is woken later.
    fn go_on_landed(&self, world: &mut World, r: u8, outcome: Outcome, before: bool) {
        world.set(r, Step::Landed { outcome, before });
    }

    /// `Cache::judge`.
    fn judge(
        &self,
        world: &mut World,
        r: u8,
        outcome: Outcome,
        before: bool,
        lease: Option<u8>,
        accepted: bool,
    ) {
        let (i, _) = self.asked(world, r);
        let instance = world.instances[usize::from(i)];
        let Outcome { value, epoch, era, from } = outcome;
        let boarded = if before { Boarded::BeforeTakeOff } else { Boarded::InFlight };
        let flight = Flight { from, boarded };
        let first_hand = flight.is_first_hand();
        let judged = if first_hand {
            LeaseVerdict::Fresh
        } else if !accepted {
            LeaseVerdict::Refused
        } else if world.valid(lease) {
            LeaseVerdict::Fresh
        } else {
            LeaseVerdict::Unverified(Duration::ZERO)
        };
        let same_era = era == instance.era;
        let token = world.reader(r).token.map(|token| (world.token(token), epoch.into()));
        let asked = Demand {
            of_fresh: self.write(world, r, value.stamp, epoch, era),
            // What is stale may miss what a poll has brought to all that is fresh.
            of_stale: Write::of(&value.stamp.snapshot(), token),
            source: false,
        };
        match flight.verdict(judged, same_era, asked) {
            Verdict::ReadAgain => world.set(r, Step::Missed { again: true }),
            Verdict::Fresh => {
                self.serve(world, r, Entry { value, era }, epoch, lease.filter(|_| !first_hand));
            }
            Verdict::Stale | Verdict::Unverified(_) | Verdict::Cached(_) if self.is_session(r) => {
                self.flagged(world, r, Entry { value, era }, epoch);
            }
            // The policy that serves least.
            Verdict::Cached(_) => world.set(r, Step::Missed { again: true }),
            Verdict::TokenUntrue | Verdict::TokenAhead | Verdict::Stale | Verdict::Unverified(_) => {
                self.fail(world, r);
            }
        }
    }

    /// Whether a value with this stamp contains what the reader's token still asks for.
    fn write(&self, world: &World, r: u8, stamp: Seen, epoch: u8, era: u8) -> Write {
        let asked = self.asks_of(world, r, era).map(|token| (world.token(token), epoch.into()));
        Write::of(&stamp.snapshot(), asked)
    }

    /// Flagged, or an error: a view ends with that.
    fn fail(&self, world: &mut World, r: u8) {
        let asks = &self.scope.readers[usize::from(r)];
        if matches!(asks, Asks::View(_)) {
            world.readers[usize::from(r)].begun = asks.of().len() as u8;
        }
        self.rest(world, r);
    }

    /// Nothing under way. What nobody asks for any more is forgotten.
    fn rest(&self, world: &mut World, r: u8) {
        let asks = &self.scope.readers[usize::from(r)];
        let reader = &mut world.readers[usize::from(r)];
        reader.step = Step::Idle;
        (reader.asks, reader.polled, reader.reached) = (false, None, None);
        if !matches!(asks, Asks::View(_)) || usize::from(reader.begun) == asks.of().len() {
            reader.floor = 0;
        }
        if usize::from(reader.begun) == asks.of().len() {
            *reader = Reader { begun: reader.begun, ..Reader::new() };
        }
    }

    fn is_session(&self, r: u8) -> bool {
        matches!(self.scope.readers[usize::from(r)], Asks::Session(_))
    }

    /// Serves a session by the policy that serves most. The bound does not count, and what the token stands for does.
    fn flagged(&self, world: &mut World, r: u8, entry: Entry, epoch: u8) {
        world.readers[usize::from(r)].floor = 0;
        self.serve(world, r, entry, epoch, None);
    }

    /// Serves as fresh. `lease` is what that rests on, but for what the primary said itself.
    fn serve(&self, world: &mut World, r: u8, entry: Entry, epoch: u8, lease: Option<u8>) {
        let Reader { floor, must, .. } = *world.reader(r);
        let Value { key, holds, .. } = entry.value;
        for (k, writer) in (0..).zip(world.db.writers).filter(|(k, _)| self.concerns(*k, key)) {
            let held = has(holds, k);
            let wrong = match writer {
                Writer::Ended { at, fate: Fate::Committed, .. } if !held && 2 * at <= floor => {
                    Some(promise::OLDER_THAN_THE_BOUND)
                }
                Writer::Ended { fate: Fate::Committed, .. } if !held && has(must, k) => {
                    Some(promise::BACK_IN_TIME)
                }
                Writer::Ended { at, fate: Fate::Committed, .. }
                    if !held && lease.is_some_and(|sent| at <= sent) =>
                {
                    Some(promise::UNSEEN_BY_ITS_POLL)
                }
                Writer::Ended { fate: Fate::Undone | Fate::Vanished, .. }
                    if held && world.db.crashed_at.is_some_and(|crash| 2 * crash <= floor) =>
                {
                    Some(promise::LOST)
                }
                _ => None,
            };
            world.wrong = world.wrong.or(wrong);
        }
        match self.scope.readers[usize::from(r)] {
            Asks::Reads(_) => self.rest(world, r),
            Asks::Session(_) => {
                self.answer_token(world, r, entry.value, epoch);
                self.rest(world, r);
            }
            Asks::View(_) => {
                let reader = &mut world.readers[usize::from(r)];
                reader.answers[usize::from(key)] = Some(entry);
                let all = usize::from(reader.begun) == self.scope.readers[usize::from(r)].of().len();
                world.set(r, if all { Step::Gathered } else { Step::Idle });
            }
        }
    }

    /// The token of an answer: what a later read with it must contain.
    fn answer_token(&self, world: &mut World, r: u8, value: Value, epoch: u8) {
        let now = world.db.now;
        let reader = &mut world.readers[usize::from(r)];
        reader.answered = now;
        // Its own snapshot is not known: the session keeps what it has.
        let Some(own) = value.ceiling else { return };
        let asked = match reader.token {
            _ if self.variant == Some(Variant::TokenForgetsItsWrite) => None,
            Some(Token { epoch, mark: Mark::Read(rank) }) if reader.polled.is_some() => Some((epoch, rank)),
            _ => reader.reached,
        };
        let rank = match asked {
            None => own,
            Some((of, rank)) if of == epoch => own.max(rank),
            // Nobody can compare the two.
            Some(_) => return,
        };
        reader.token = Some(Token { epoch, mark: Mark::Read(rank) });
        reader.must |= value.holds;
    }

    /// The next step of a view that has all its answers.
    fn view(&self, world: &mut World, r: u8) {
        let (i, _) = self.asked(world, r);
        let instance = world.instances[usize::from(i)];
        let reader = *world.reader(r);
        let answers = || reader.answers.iter().flatten();
        let of_this_era = answers().all(|answer| answer.era == instance.era);
        let eras_matter = self.variant != Some(Variant::ViewAcrossEras);
        // One whose own snapshot is not known is in no view.
        let unknown = answers().any(|answer| answer.value.ceiling.is_none());
        let highest = answers().filter_map(|answer| answer.value.ceiling).max();
        // The moment is the newest answer's. One that was cut is not known itself.
        let newest = answers().map(|answer| answer.value).find(|value| value.ceiling == highest);
        let exact = |stamp: &Seen| Some(rank(*stamp)) == highest;
        let as_exact = self.variant == Some(Variant::CutStampTakenAsTheMoment);
        let moment = newest.map(|newest| newest.stamp).filter(|stamp| as_exact || exact(stamp));
        let accepted = self.variant == Some(Variant::ViewOfARefusedValue)
            || answers().all(|Entry { value, .. }| self.is_of(i, &instance, *value, moment));
        let polled = instance.lease.is_some()
            && instance.poll.is_some_and(|poll| {
                self.variant == Some(Variant::ViewWithoutTheRank) || Some(rank(poll)) >= highest
            });
        let before = self.variant == Some(Variant::ViewJudgedBeforeThePoll);
        match reader.step {
            Step::Gathered | Step::JudgedBefore if unknown => self.fail(world, r),
            Step::Gathered | Step::JudgedBefore | Step::ViewPolled if eras_matter && !of_this_era => {
                self.again(world, r);
            }
            Step::Gathered if before && accepted => world.set(r, Step::JudgedBefore),
            Step::Gathered if before => self.again(world, r),
            Step::Gathered if polled => self.view_on(world, r, Step::ViewPolled),
            Step::JudgedBefore if polled => self.view_on(world, r, Step::ViewJudged),
            // Waits.
            Step::Gathered | Step::JudgedBefore => {}
            Step::ViewPolled if accepted => self.view_on(world, r, Step::ViewJudged),
            Step::ViewPolled => self.again(world, r),
            Step::ViewJudged if eras_matter && !of_this_era => self.again(world, r),
            Step::ViewJudged => {
                self.served_view(world, &reader);
                world.readers[usize::from(r)].begun = self.scope.readers[usize::from(r)].of().len() as u8;
                self.rest(world, r);
            }
            _ => {}
        }
    }

    fn view_on(&self, world: &mut World, r: u8, step: Step) {
        world.set(r, step);
        if !self.scope.pauses {
            self.view(world, r);
        }
    }

    fn again(&self, world: &mut World, r: u8) {
        let reader = &mut world.readers[usize::from(r)];
        if reader.again == self.scope.attempts {
            return self.fail(world, r);
        }
        *reader = Reader { again: reader.again + 1, floor: reader.floor, ..Reader::new() };
    }

    /// There is a moment, not older than the bound, that has exactly these answers.
    fn served_view(&self, world: &mut World, reader: &Reader) {
        let concerns = |key: u8| (0..self.writers()).filter(|k| self.concerns(*k, key)).map(bit).sum::<Set>();
        let is_at = |moment: &Set| {
            reader.answers.iter().flatten().all(|Entry { value: Value { key, holds, .. }, .. }| {
                holds & concerns(*key) == moment & concerns(*key)
            })
        };
        let moments = &world.moments[..=usize::from(world.db.now)];
        if !moments.iter().any(is_at) {
            world.wrong = Some(promise::OF_NO_MOMENT);
        } else if !moments[usize::from(reader.floor / 2)..].iter().any(is_at) {
            world.wrong = Some(promise::VIEW_OLDER_THAN_THE_BOUND);
        }
    }
}

/// Publishes a poll, and forgets what hints had told before it was sent.
fn complete(instance: &mut Instance) {
    let Tail::Applying(answer) = instance.tail else { return };
    instance.known.iter_mut().for_each(Bucket::forget);
    instance.poll = Some(answer.seen);
    instance.tail = Tail::Completed { sent: answer.sent };
}

/// Whether a snapshot of the token's epoch contains what it stands for.
fn contains(world: &World, seen: Seen, token: Token) -> bool {
    world.token(token).mark.is_in(&seen.snapshot())
}

impl Instance {
    /// Its cursor means nothing any more: ends the era.
    fn lose(&mut self) {
        self.lease = None;
        self.era += 1;
        self.tail = Tail::Lost;
    }
}

impl Reader {
    pub(super) const fn new() -> Self {
        Self {
            begun: 0,
            floor: 0,
            token: None,
            asks: false,
            polled: None,
            reached: None,
            must: 0,
            answered: 0,
            answers: [None; 2],
            again: 0,
            step: Step::Idle,
        }
    }
}

impl World {
    pub(super) const fn reader(&self, r: u8) -> &Reader {
        &self.readers[r as usize]
    }

    fn set(&mut self, r: u8, step: Step) {
        self.readers[usize::from(r)].step = step;
    }

    /// Whether a lease is still valid by the clock.
    fn valid(&self, lease: Option<u8>) -> bool {
        lease.is_some_and(|sent| 2 * sent + 1 > self.aged)
    }

    /// As Perto has it.
    fn token(&self, token: Token) -> token::Token {
        match token.mark {
            Mark::Write(k) => token::Token::of_write(token.epoch.into(), self.db.xid(k).into()),
            Mark::Read(rank) => token::Token::of_read(token.epoch.into(), rank),
        }
    }

    fn remember(&mut self) {
        let now = self.db.now;
        let committed = |k: &u8| self.db.writers[usize::from(*k)].committed_by(now);
        self.moments[usize::from(now)] = (0..WRITERS as u8).filter(committed).map(bit).sum();
    }

    /// Remembers a value of L2. The order says nothing, so equal contents are one state.
    fn fill(&mut self, stored: Stored) {
        if self.l2.contains(&Some(stored)) {
            return;
        }
        let place = self.l2.iter().position(Option::is_none).expect("a place for each load");
        self.l2[place] = Some(stored);
        self.l2[..=place].sort_unstable();
    }
}
