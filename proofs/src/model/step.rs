//! What may happen next, and what it does: Postgres, the tail, hints and readers, step by step as the code has them.

use std::time::Duration;

use super::state::{
    Answer, Entry, FILLS, FORGED, INSTANCES, Instance, Outcome, READERS, ReadStart, Reader, Step, Stored,
    Tail, Wish, World,
};
use super::variants::{Known, Variant};
use super::{Perto, promise};
use crate::coherence::poll::{self, Next, Polled};
use crate::coherence::snapshot::Snapshot;
use crate::coherence::token::Token;
use crate::coherence::verdict::{Boarded, Demand, Flight, FlightSource, LeaseVerdict, Verdict, Write};
use crate::postgres::{Fate, Seen, Set, WRITERS, Writer, bit, has};

/// One step of somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Begin(u8),
    Log(u8),
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
        to: u8,
    },
    /// A hint of a number that nobody has yet.
    Forge {
        xid: u8,
        to: u8,
    },
    Record,
    Poll(u8),
    ReadSnapshot(u8),
    Apply(u8),
    ApplyRow {
        of: u8,
        to: u8,
    },
    Complete(u8),
    Extend(u8),
    Invoke {
        reader: u8,
        wish: Wish,
    },
    /// A hint of this writer that names other keys only.
    HintElsewhere {
        of: u8,
        to: u8,
    },
    /// No poll comes in time.
    GiveUpPoll(u8),
    EndHit(u8),
    CaptureBegan(u8),
    Join(u8),
    LookUp {
        reader: u8,
        found: Option<u8>,
    },
    Insert(u8),
    Cancel(u8),
    Park(u8),
    /// Somebody who waits gives up a leader that nobody polls.
    GiveUp(u8),
    Load {
        reader: u8,
        from: Source,
    },
    Share(u8),
    HoldLease(u8),
    Judge(u8),
}

/// Where a load reads, and as of when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Primary,
    /// A transaction of the primary that took its snapshot after this event, and says that it is not a new one.
    OldTransaction(u8),
    Replica(u8),
    /// The connection of this writer, in its transaction.
    Writer(u8),
}

impl Perto {
    pub(super) fn possible(&self, world: &World, actions: &mut Vec<Action>) {
        if world.wrong.is_some() {
            return;
        }
        self.of_postgres(world, actions);
        for (i, instance) in (0..).zip(&world.instances).filter(|(i, _)| self.is_read(*i)) {
            self.of_tail(world, i, instance, actions);
            if self.scope.hints {
                let heard = |of: &u8| self.may_be_hinted(world, instance, *of);
                actions.extend((0..self.writers()).filter(heard).map(|of| Action::Hint { of, to: i }));
                if self.variant == Some(Variant::TokenGrantedByAHint) {
                    let elsewhere = |of| Action::HintElsewhere { of, to: i };
                    actions.extend((0..self.writers()).filter(heard).map(elsewhere));
                }
            }
            if self.scope.forged && instance.poll.is_some() {
                // The next one, which a writer will have, and one that nobody will.
                actions.extend([world.db.next, FORGED].map(|xid| Action::Forge { xid, to: i }));
            }
        }
        actions.extend(world.checked.map(|_| Action::Record));
        for (r, reader) in (0..).zip(&world.readers) {
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
                Writer::Running { .. } => {
                    let logs = self.variant == Some(Variant::WalPositionAsStamp);
                    actions.push(if logs { Action::Log(k) } else { Action::Commit(k) });
                    if self.scope.aborts {
                        actions.push(Action::Abort(k));
                    }
                }
                Writer::Logged { .. } => actions.push(Action::Commit(k)),
                Writer::Ended { .. } => {}
            }
        }
        if self.scope.trim {
            actions.push(Action::Trim);
        }
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
                    && instance.epoch == world.db.epoch
                    && !(self.scope.lies() && instance.known.is_hinted());
                // A poll that brings nothing new changes nothing: it is left out, so that there is an end.
                if !idle || self.variant == Some(Variant::PollOfTwoStatements) {
                    actions.push(Action::Poll(i));
                }
            }
            Tail::Lost => actions.push(Action::Poll(i)),
            Tail::Answered(answer) if answer.half => actions.push(Action::ReadSnapshot(i)),
            Tail::Answered(_) => actions.push(Action::Apply(i)),
            Tail::Applying(Answer { rows: 0, .. }) => actions.push(Action::Complete(i)),
            Tail::Applying(answer) => {
                let rows = (0..self.writers()).filter(|of| has(answer.rows, *of));
                actions.extend(rows.map(|of| Action::ApplyRow { of, to: i }));
            }
            Tail::Completed { .. } => actions.push(Action::Extend(i)),
        }
    }

    fn of_reader(&self, world: &World, r: u8, reader: &Reader, actions: &mut Vec<Action>) {
        match reader.step {
            Step::Idle => {
                // Of readers that are alike, the first goes first.
                let alike =
                    |other: u8| self.instance(other) == self.instance(r) && world.reader(other) == reader;
                let asks = r == 0 && (self.scope.within || self.scope.tokens);
                if reader.left > 0 && (asks || !(self.first_alike()..r).any(alike)) {
                    actions.push(Action::Invoke { reader: r, wish: Wish::Nothing });
                }
                if reader.left > 0 && asks {
                    self.wishes(world, r, actions);
                }
            }
            Step::Waiting { .. } => actions.push(Action::GiveUpPoll(r)),
            Step::Aboard { leader, .. } => {
                let parked = world.reader(leader).step == Step::Parked;
                if parked && self.variant != Some(Variant::ParkedLeaderHoldsItsKey) {
                    actions.push(Action::GiveUp(leader));
                }
            }
            Step::Parked => {}
            Step::Hitting { .. } => actions.push(Action::EndHit(r)),
            Step::Missed { .. } | Step::Beginning { .. } if self.scope.fine => {
                actions.push(Action::CaptureBegan(r));
            }
            Step::Missed { .. } | Step::Beginning { .. } | Step::ReadStart { .. } => {
                actions.push(Action::Join(r));
            }
            Step::Looking { .. } => {
                actions.push(Action::LookUp { reader: r, found: None });
                let stored = (0..FILLS as u8).filter(|at| world.l2[usize::from(*at)].is_some());
                actions.extend(stored.map(|at| Action::LookUp { reader: r, found: Some(at) }));
                actions.extend(self.scope.park.then_some(Action::Park(r)));
                actions.extend(self.scope.cancel.then_some(Action::Cancel(r)));
            }
            Step::Found { .. } => {
                actions.push(Action::Insert(r));
                actions.extend(self.scope.cancel.then_some(Action::Cancel(r)));
            }
            Step::Loading { primary, .. } => {
                let mut load = |from| actions.push(Action::Load { reader: r, from });
                load(Source::Primary);
                // Its connection would not outlive a crash.
                let oldest = world.db.crashed_at.unwrap_or(0);
                if self.scope.old_transactions {
                    (oldest..world.db.now).for_each(|at| load(Source::OldTransaction(at)));
                }
                if self.scope.replica && !primary {
                    (0..=world.db.now).for_each(|at| load(Source::Replica(at)));
                }
                if self.scope.in_writers {
                    let runs = |k: &u8| world.db.writers[usize::from(*k)].runs() && self.touches(*k);
                    (0..self.writers()).filter(runs).for_each(|k| load(Source::Writer(k)));
                }
            }
            Step::Loaded { .. } => actions.push(Action::Share(r)),
            Step::Landed { .. } if self.scope.fine => actions.push(Action::HoldLease(r)),
            Step::Landed { .. } | Step::Judging { .. } => actions.push(Action::Judge(r)),
        }
    }

    /// The first reader that is like others: one that asks for more is not.
    fn first_alike(&self) -> u8 {
        (self.scope.within || self.scope.tokens).into()
    }

    fn wishes(&self, world: &World, r: u8, actions: &mut Vec<Action>) {
        let mut invoke = |wish| actions.push(Action::Invoke { reader: r, wish });
        if self.scope.within {
            (world.aged + 1..=2 * world.db.now).for_each(|moment| invoke(Wish::PollSince(moment)));
        }
        if self.scope.tokens {
            // Whoever has a token got it after the commit, whatever became of that since.
            let told = |k: &u8| match world.db.writers[usize::from(*k)] {
                Writer::Ended { fate: Fate::Committed, .. } => true,
                Writer::Ended { fate: Fate::Undone | Fate::Vanished, at, .. } => at > 0,
                _ => false,
            };
            (0..self.writers()).filter(told).for_each(|k| invoke(Wish::Write(k)));
        }
    }

    /// Whether a hint of this writer may arrive there and be believed, be it the first or the tenth time.
    fn may_be_hinted(&self, world: &World, instance: &Instance, of: u8) -> bool {
        let told = match world.db.writers[usize::from(of)] {
            Writer::Waiting => false,
            Writer::Running { .. } | Writer::Logged { .. } => self.scope.false_hints,
            Writer::Ended { fate: Fate::Aborted, .. } => self.scope.false_hints,
            Writer::Ended { fate: Fate::Committed, .. } => true,
            // What only ran before the crash was never told of: `at` is 0.
            Writer::Ended { fate: Fate::Undone | Fate::Vanished, at, .. } => at > 0,
        };
        let any_epoch = self.variant == Some(Variant::EpochOfAHintNotCompared);
        let of_now = any_epoch || world.db.epoch_of(of) == instance.epoch;
        told && self.touches(of) && of_now && instance.poll.is_some()
    }

    pub(super) fn take(&self, world: &mut World, action: Action) {
        match action {
            Action::Begin(k) => {
                world.db.begin(k);
            }
            Action::Log(k) => {
                let xid = world.db.xid(k);
                world.db.writers[usize::from(k)] = Writer::Logged { xid };
            }
            Action::Commit(k) => world.db.end(k, Fate::Committed),
            Action::Abort(k) => world.db.end(k, Fate::Aborted),
            Action::Trim => self.trim(world),
            Action::Crash { losing } => world.db.crash(losing),
            Action::TimePasses => world.aged += 1,
            Action::Hint { of, to } if self.variant == Some(Variant::EpochOfAHintComparedTooEarly) => {
                world.checked = Some((of, to));
            }
            Action::Hint { of, to } => self.apply(world, to, of, None),
            Action::Forge { xid, to } => {
                let instance = &mut world.instances[usize::from(to)];
                instance.known.apply(xid, instance.poll, None);
                instance.since |= bit(FORGED);
                evict(instance, xid);
            }
            Action::Record => {
                if let Some((of, to)) = world.checked.take() {
                    self.apply(world, to, of, None);
                }
            }
            Action::Poll(i) => self.poll(world, i),
            Action::ReadSnapshot(i) => {
                let seen = world.db.seen_at(world.db.now);
                if let Tail::Answered(answer) = &mut world.instances[usize::from(i)].tail {
                    *answer = Answer { seen, half: false, ..*answer };
                }
            }
            Action::Apply(i) => self.answered(world, i),
            Action::ApplyRow { of, to } => {
                if let Tail::Applying(answer) = &mut world.instances[usize::from(to)].tail {
                    answer.rows &= !bit(of);
                    let current = answer.seen;
                    self.apply(world, to, of, Some(current));
                }
            }
            Action::Complete(i) => self.complete(world, i),
            Action::Extend(i) => self.extend(world, i),
            Action::Invoke { reader, wish } => self.invoke(world, reader, wish),
            Action::HintElsewhere { of, to } => world.instances[usize::from(to)].told |= bit(of),
            Action::GiveUpPoll(r) => {
                let reader = &mut world.readers[usize::from(r)];
                if let Wish::PollSince(_) = reader.wish {
                    let cached = self.variant == Some(Variant::UnpolledServedFromCache);
                    reader.wish = if cached { Wish::Nothing } else { Wish::Source };
                }
                world.set(r, Step::Missed { again: false });
            }
            Action::EndHit(r) => self.end_hit(world, r),
            Action::CaptureBegan(r) => {
                let now = began(world.instance_of(self, r));
                let twice = self.variant == Some(Variant::EpochCapturedBeforeTheEra);
                match world.reader(r).step {
                    Step::Missed { again } if twice => {
                        world.set(r, Step::Beginning { epoch: now.epoch, again });
                    }
                    Step::Missed { again } => world.set(r, Step::ReadStart { began: now, again }),
                    Step::Beginning { epoch, again } => {
                        world.set(r, Step::ReadStart { began: ReadStart { epoch, ..now }, again });
                    }
                    _ => {}
                }
            }
            Action::Join(r) => self.join(world, r),
            Action::LookUp { reader, found } => self.look_up(world, reader, found),
            Action::Insert(r) => {
                if let Step::Found { began, holds, stamp } = world.reader(r).step {
                    let outcome = Outcome { holds, stamp, era: began.era, from: FlightSource::Remote };
                    self.insert(world, r, outcome);
                    world.finish(r, outcome);
                }
            }
            Action::Cancel(r) => {
                world.set(r, Step::Idle);
                if self.variant != Some(Variant::WaitersOfACancelledLeaderNotWoken) {
                    world.wake(r, Step::Missed { again: true });
                }
            }
            Action::Park(r) => world.set(r, Step::Parked),
            Action::GiveUp(leader) => {
                world.set(leader, Step::Idle);
                world.wake(leader, Step::Missed { again: true });
            }
            Action::Load { reader, from } => self.load(world, reader, from),
            Action::Share(r) => self.share(world, r),
            Action::HoldLease(r) => {
                if let Step::Landed { outcome, before } = world.reader(r).step {
                    let lease = world.instance_of(self, r).lease;
                    world.set(r, Step::Judging { outcome, before, lease });
                }
            }
            Action::Judge(r) => self.judge(world, r),
        }
    }

    fn trim(&self, world: &mut World) {
        let seen = world.db.seen_at(world.db.now);
        for (k, writer) in (0..).zip(&world.db.writers) {
            if writer.committed_by(world.db.now) && self.touches(k) {
                world.db.gone |= bit(k);
            }
        }
        // By age nobody can tell later what is missing.
        if self.variant != Some(Variant::TrimmedByAge) {
            world.db.trimmed = seen;
        }
    }

    /// Records an invalidation and evicts, as `Applied::apply` does.
    fn apply(&self, world: &mut World, to: u8, of: u8, current: Option<Seen>) {
        let (xid, epoch) = (world.db.xid(of), world.db.epoch_of(of));
        let instance = &mut world.instances[usize::from(to)];
        instance.heard |= bit(of);
        // Of what is true each poll has all, and one of another epoch must close nothing.
        if current.is_none() && self.scope.lies() && epoch == instance.epoch {
            instance.since |= bit(of);
        }
        if self.variant != Some(Variant::HintAppliedOnlyToHeldKeys) || instance.entry.is_some() {
            instance.known.apply(xid, instance.poll, current);
        }
        evict(instance, xid);
    }

    /// Publishes a poll, and forgets what hints had told before it was sent.
    fn complete(&self, world: &mut World, i: u8) {
        let writers = world.db.writers;
        let instance = &mut world.instances[usize::from(i)];
        let Tail::Applying(answer) = instance.tail else { return };
        if self.variant == Some(Variant::HintForgottenByAnEarlierPoll) {
            instance.known.sent();
        }
        if self.variant != Some(Variant::HintNeverForgotten) {
            instance.known.forget();
        }
        let contained =
            |k: &u8| writers[usize::from(*k)].xid().is_some_and(|xid| has(answer.seen.contained, xid));
        let true_by_now: Set = (0..WRITERS as u8).filter(contained).map(bit).sum();
        if self.scope.lies() {
            instance.heard &= true_by_now | instance.since;
        }
        instance.poll = Some(answer.seen);
        instance.tail = Tail::Completed { sent: answer.sent };
    }

    /// One statement of the tail: the snapshot, the epoch and the rows that the cursor does not contain.
    fn poll(&self, world: &mut World, i: u8) {
        let instance = &world.instances[usize::from(i)];
        let all = instance.tail == Tail::Lost;
        let cursor = if all { None } else { instance.poll };
        let mut rows = 0;
        for k in (0..self.writers()).filter(|k| self.touches(*k) && !has(world.db.gone, *k)) {
            if let writer @ Writer::Ended { xid, .. } = world.db.writers[usize::from(k)]
                && writer.committed_by(world.db.now)
            {
                let new = match self.variant {
                    Some(Variant::IdCursor) => xid > instance.last,
                    _ => cursor.is_none_or(|cursor| !has(cursor.contained, xid)),
                };
                rows |= if new { bit(k) } else { 0 };
            }
        }
        let half = self.variant == Some(Variant::PollOfTwoStatements);
        let (sent, epoch, seen) = (world.db.now, world.db.epoch, world.db.seen_at(world.db.now));
        let answer = Answer { sent, epoch, seen, trimmed: world.db.trimmed, rows, all, half };
        let instance = &mut world.instances[usize::from(i)];
        instance.tail = Tail::Answered(answer);
        instance.known.sent();
        instance.since = 0;
        for r in 0..READERS as u8 {
            if self.instance(r) == i && matches!(world.reader(r).step, Step::Waiting { .. }) {
                world.set(r, Step::Waiting { sent: true });
            }
        }
    }

    /// `Tail::step` from the answer on.
    fn answered(&self, world: &mut World, i: u8) {
        let Tail::Answered(mut answer) = world.instances[usize::from(i)].tail else { return };
        let committed =
            |k: u8| matches!(world.db.writers[usize::from(k)], Writer::Ended { fate: Fate::Committed, .. });
        let floor: Set = (0..self.writers())
            .filter(|k| self.touches(*k) && committed(*k) && has(answer.trimmed.contained, world.db.xid(*k)))
            .map(bit)
            .sum();
        let kind = self.kind();
        let instance = &mut world.instances[usize::from(i)];
        let cursor = if answer.all { None } else { instance.poll.map(Seen::snapshot) };
        let (snapshot, trimmed) = (answer.seen.snapshot(), answer.trimmed.snapshot());
        let polled =
            Polled { epoch: answer.epoch.into(), snapshot: &snapshot, trimmed: &trimmed, has_rows: true };
        match poll::next(cursor.as_ref(), instance.epoch.into(), polled) {
            Next::ReadAll(_) => {
                instance.lease = None;
                instance.era += 1;
                instance.tail = Tail::Lost;
                return;
            }
            Next::Recover(at) => {
                instance.lease = None;
                instance.era += 1;
                instance.epoch = answer.epoch;
                instance.known = Known::at(kind, at);
                if self.variant != Some(Variant::PollKeptAcrossAnEpoch) {
                    instance.poll = None;
                }
                instance.heard = floor;
                instance.last = 0;
            }
            Next::Apply => {}
        }
        // Rows of another cluster are left out.
        let counts = |k: &u8| polled.counts(world.db.xid(*k).into());
        answer.rows = (0..self.writers()).filter(|k| has(answer.rows, *k)).filter(counts).map(bit).sum();
        let highest = (0..self.writers()).filter(|k| has(answer.rows, *k)).map(|k| world.db.xid(k)).max();
        let instance = &mut world.instances[usize::from(i)];
        if self.variant == Some(Variant::IdCursor) {
            instance.last = instance.last.max(highest.unwrap_or(0));
        }
        instance.tail = Tail::Applying(answer);
        if !self.scope.fine {
            for of in (0..self.writers()).filter(|of| has(answer.rows, *of)) {
                self.apply(world, i, of, Some(answer.seen));
            }
            self.complete(world, i);
            self.extend(world, i);
        }
    }

    fn invoke(&self, world: &mut World, r: u8, wish: Wish) {
        let floor = world.aged;
        let reader = &mut world.readers[usize::from(r)];
        reader.left -= 1;
        reader.floor = floor;
        reader.wish = wish;
        match wish {
            Wish::PollSince(moment) => reader.asked = moment,
            Wish::Write(k) => reader.token = Some(k),
            Wish::Nothing | Wish::Source => {}
        }
        self.begin_hit(world, r);
    }

    /// What a hit reads before the entry: the poll, where there is a token, then the lease.
    fn begin_hit(&self, world: &mut World, r: u8) {
        if self.variant != Some(Variant::TokenCheckedAfterTheEntry) {
            self.grant(world, r);
        }
        let Instance { epoch, era, lease, entry, .. } = *world.instance_of(self, r);
        let after = matches!(
            self.variant,
            Some(Variant::LeaseLoadedAfterTheValue | Variant::TokenCheckedAfterTheEntry)
        );
        world.set(r, Step::Hitting { lease, era, epoch, entry: if after { entry } else { None } });
        if !self.scope.split_hit {
            self.end_hit(world, r);
        }
    }

    /// `Coherence::asks`: whether a token needs nothing any more, because a completed poll contains its write or its epoch has
    /// ended.
    fn grant(&self, world: &mut World, r: u8) {
        let Wish::Write(k) = world.reader(r).wish else { return };
        let (instance, epoch) = (*world.instance_of(self, r), world.db.epoch_of(k));
        let any_epoch = self.variant == Some(Variant::TokenOfAnotherEpoch);
        let comparable = instance.lease.is_some() && (any_epoch || epoch == instance.epoch);
        let contained = instance.poll.is_some_and(|poll| has(poll.contained, world.db.xid(k)));
        if comparable && contained || has(instance.told, k) || (!any_epoch && epoch < instance.epoch) {
            world.readers[usize::from(r)].wish = Wish::Nothing;
        }
    }

    /// The rest of `Cache::hit`: the entry, and the clock.
    fn end_hit(&self, world: &mut World, r: u8) {
        let Step::Hitting { lease, era, epoch, entry } = world.reader(r).step else { return };
        let instance = *world.instance_of(self, r);
        let (lease, era, entry) = match self.variant {
            Some(Variant::LeaseLoadedAfterTheValue) => (instance.lease, instance.era, entry),
            Some(Variant::TokenCheckedAfterTheEntry) => {
                self.grant(world, r);
                (lease, era, entry)
            }
            _ => (lease, era, instance.entry),
        };
        let entry = entry.filter(|entry| entry.era == era && world.valid(lease));
        let by_completion = self.variant == Some(Variant::WithinByTheTimeOfCompletion);
        let polled = |moment| {
            let sent = if by_completion { lease.map(|_| instance.completed) } else { lease };
            sent.is_some_and(|sent| 2 * sent + 1 > moment)
        };
        match (world.reader(r).wish, entry) {
            (Wish::Write(k), Some(entry))
                if epoch == world.db.epoch_of(k) && has(entry.stamp.contained, world.db.xid(k)) =>
            {
                self.serve(world, r, entry.holds, lease);
            }
            // Something is there, which the write may not have touched: a poll tells. Of an epoch that is not known here, too.
            (Wish::Write(_), Some(_)) => self.wait(world, r),
            (Wish::Write(k), None) if world.db.epoch_of(k) != instance.epoch => self.wait(world, r),
            (Wish::PollSince(moment), _) if !polled(moment) => self.wait(world, r),
            (Wish::Nothing | Wish::PollSince(_), Some(entry)) => self.serve(world, r, entry.holds, lease),
            (Wish::PollSince(_), None) => {
                // As young as the lease is, that poll will do for whatever is judged from here on.
                world.readers[usize::from(r)].wish = Wish::Nothing;
                world.set(r, Step::Missed { again: false });
            }
            (Wish::Nothing | Wish::Write(_) | Wish::Source, _) => world.set(r, Step::Missed { again: false }),
        }
    }

    fn wait(&self, world: &mut World, r: u8) {
        let in_flight = self.variant == Some(Variant::LatestGrantedByAPollInFlight);
        world.set(r, Step::Waiting { sent: in_flight });
    }

    /// The lease rests on the poll, and whoever waited for it goes on.
    fn extend(&self, world: &mut World, i: u8) {
        let now = world.db.now;
        let instance = &mut world.instances[usize::from(i)];
        let Tail::Completed { sent } = instance.tail else { return };
        instance.lease = Some(sent);
        instance.tail = Tail::Idle;
        if self.variant == Some(Variant::WithinByTheTimeOfCompletion) {
            instance.completed = now;
        }
        let polled = *instance;
        for r in 0..READERS as u8 {
            if self.instance(r) != i || world.reader(r).step != (Step::Waiting { sent: true }) {
                continue;
            }
            match world.reader(r).wish {
                // A poll that was sent after the token came, of its epoch, and without it: there is no such write.
                Wish::Write(k)
                    if polled.epoch == world.db.epoch_of(k)
                        && polled.poll.is_some_and(|poll| !has(poll.contained, world.db.xid(k))) =>
                {
                    world.set(r, Step::Idle);
                }
                _ => {
                    world.readers[usize::from(r)].wish = Wish::Nothing;
                    self.begin_hit(world, r);
                }
            }
        }
    }

    fn join(&self, world: &mut World, r: u8) {
        let (began, again) = match world.reader(r).step {
            Step::Missed { again } => (began(world.instance_of(self, r)), again),
            Step::ReadStart { began, again } => (began, again),
            _ => return,
        };
        let mut others = (0..READERS as u8).filter(|other| self.instance(*other) == self.instance(r));
        let step = match others.find(|other| world.reader(*other).step.leads()) {
            Some(leader) => Step::Aboard { leader, before: again },
            None if world.reader(r).wish == Wish::Source => Step::Loading { began, primary: false },
            None if self.scope.l2 || self.scope.cancel => Step::Looking { began },
            None => Step::Loading { began, primary: false },
        };
        world.set(r, step);
    }

    fn look_up(&self, world: &mut World, r: u8, found: Option<u8>) {
        let Step::Looking { began } = world.reader(r).step else { return };
        let instance = world.instance_of(self, r);
        let stored = found.and_then(|at| world.l2[usize::from(at)]).filter(|stored| {
            world.valid(instance.lease)
                && stored.epoch == began.epoch
                && world.is_contained(r, stored.stamp, began.epoch)
                && (self.variant == Some(Variant::NoStampCheckOnL2) || instance.known.accepts(stored.stamp))
        });
        let step = match stored {
            Some(Stored { holds, stamp, .. }) => Step::Found { began, holds, stamp },
            None => Step::Loading { began, primary: false },
        };
        world.set(r, step);
    }

    /// What a loader brings, and under which stamp.
    fn load(&self, world: &mut World, r: u8, from: Source) {
        let Step::Loading { began, primary } = world.reader(r).step else { return };
        let visible = |moment| -> Set {
            let holds = |k: &u8| self.touches(*k) && world.db.writers[usize::from(*k)].committed_by(moment);
            (0..self.writers()).filter(holds).map(bit).sum()
        };
        let (holds, stamp) = match from {
            Source::Primary => (visible(world.db.now), world.db.seen_at(world.db.now)),
            Source::OldTransaction(at) => (visible(at), world.db.seen_at(at)),
            Source::Replica(at) => {
                // A standby lists no running transactions.
                let seen = world.db.seen_at(at);
                let said = Snapshot::new(u64::from(seen.xmin()), u64::from(seen.xmax), &[]);
                let believed = match self.variant {
                    Some(Variant::StandbysSnapshotAtFaceValue) => {
                        Snapshot::all_below(said.xmax().max(seen.xmax.into()))
                    }
                    _ => said,
                };
                (visible(at), Seen::of(&believed))
            }
            Source::Writer(k) => {
                if self.variant != Some(Variant::CachedFromATransactionThatWrote) {
                    // An error, for all who wait.
                    world.set(r, Step::Idle);
                    world.wake(r, Step::Idle);
                    return;
                }
                let mut seen = world.db.seen_at(world.db.now);
                seen.contained |= bit(world.db.xid(k));
                seen.xmax = seen.xmax.max(world.db.xid(k) + 1);
                (visible(world.db.now) | bit(k), seen)
            }
        };
        let stamp = match self.variant {
            Some(Variant::AbsenceWithoutAStamp) if holds == 0 => Seen::of(&Snapshot::all_below(7)),
            Some(Variant::WalPositionAsStamp) => {
                let logged = world.db.writers.iter().filter(|writer| matches!(writer, Writer::Logged { .. }));
                Seen::ended(stamp.contained | logged.filter_map(|writer| writer.xid()).map(bit).sum::<Set>())
            }
            _ => stamp,
        };
        let by_primary = match from {
            Source::Primary | Source::Writer(_) => true,
            Source::OldTransaction(_) => self.variant == Some(Variant::OldTransactionTakenAtItsWord),
            Source::Replica(_) => false,
        };
        world.set(r, Step::Loaded { began, primary, holds, stamp, by_primary });
    }

    /// The end of `run_loader`, and `share`.
    fn share(&self, world: &mut World, r: u8) {
        let Step::Loaded { began, primary, holds, stamp, by_primary } = world.reader(r).step else { return };
        let instance = world.instance_of(self, r);
        let new = began.poll.is_none_or(|poll| stamp.snapshot().rank() >= poll.snapshot().rank());
        let unchecked = self.variant == Some(Variant::ReplicasValueServedUnchecked);
        let from = if (by_primary && new) || unchecked {
            FlightSource::Primary
        } else if began.era != instance.era || instance.known.accepts(stamp) {
            FlightSource::Unknown
        } else if primary {
            FlightSource::Behind
        } else {
            world.set(r, Step::Loading { began, primary: true });
            return;
        };
        let outcome = Outcome { holds, stamp, era: began.era, from };
        let era = instance.era;
        self.insert(world, r, outcome);
        if self.scope.l2 && (era == began.era || self.variant == Some(Variant::EraOfALoadNotCompared)) {
            let stamp = Seen::of(&stamp.snapshot().cut_to(self.scope.wire));
            world.fill(Stored { epoch: began.epoch, holds, stamp });
        }
        world.finish(r, outcome);
    }

    fn insert(&self, world: &mut World, r: u8, outcome: Outcome) {
        let instance = &mut world.instances[usize::from(self.instance(r))];
        let accepted =
            self.variant == Some(Variant::NoRecheckAtInsert) || instance.known.accepts(outcome.stamp);
        let any_era = self.variant == Some(Variant::EraOfALoadNotCompared);
        if accepted && (any_era || outcome.era == instance.era) {
            let Outcome { holds, stamp, .. } = outcome;
            instance.entry = Some(Entry { holds, stamp, era: instance.era });
        }
    }

    /// `Cache::judge`.
    fn judge(&self, world: &mut World, r: u8) {
        let instance = *world.instance_of(self, r);
        let (outcome, before, lease) = match world.reader(r).step {
            Step::Landed { outcome, before } => (outcome, before, instance.lease),
            Step::Judging { outcome, before, lease } => (outcome, before, lease),
            _ => return,
        };
        let Outcome { holds, stamp, era, from } = outcome;
        let boarded = if before { Boarded::BeforeTakeOff } else { Boarded::InFlight };
        let flight = Flight { from, boarded };
        let first_hand = flight.is_first_hand();
        let trusted = (self.variant == Some(Variant::NoStampCheckOnL2) && from == FlightSource::Remote)
            || self.variant == Some(Variant::NaiveJoin);
        let judged = if first_hand {
            LeaseVerdict::Fresh
        } else if !(trusted || instance.known.accepts(stamp)) {
            LeaseVerdict::Refused
        } else if world.valid(lease) {
            LeaseVerdict::Fresh
        } else {
            LeaseVerdict::Unverified(Duration::ZERO)
        };
        let same_era = era == instance.era || self.variant == Some(Variant::EraOfALoadNotCompared);
        let write = Write::of(&stamp.snapshot(), world.token(r, instance.epoch));
        let source = world.reader(r).wish == Wish::Source;
        match flight.verdict(judged, same_era, Demand { of_fresh: write, of_stale: write, source }) {
            Verdict::ReadAgain => world.set(r, Step::Missed { again: true }),
            Verdict::TokenUntrue | Verdict::TokenAhead => world.set(r, Step::Idle),
            Verdict::Fresh => self.serve(world, r, holds, lease.filter(|_| !first_hand)),
            // Flagged.
            Verdict::Stale | Verdict::Unverified(_) => world.set(r, Step::Idle),
            // The policy that serves least.
            Verdict::Cached(_) => world.set(r, Step::Missed { again: true }),
        }
    }

    /// Serves as fresh. `lease` is what that rests on, but for what the primary said itself.
    fn serve(&self, world: &mut World, r: u8, holds: Set, lease: Option<u8>) {
        let Reader { floor, asked, token, .. } = *world.reader(r);
        for (k, writer) in (0..).zip(world.db.writers).filter(|(k, _)| self.touches(*k)) {
            let held = has(holds, k);
            let wrong = match writer {
                Writer::Ended { at, fate: Fate::Committed, .. } if !held && 2 * at <= floor => {
                    Some(promise::OLDER_THAN_THE_BOUND)
                }
                Writer::Ended { at, fate: Fate::Committed, .. } if !held && 2 * at <= asked => {
                    Some(promise::OLDER_THAN_ASKED)
                }
                Writer::Ended { fate: Fate::Committed, .. } if !held && token == Some(k) => {
                    Some(promise::WITHOUT_ITS_WRITE)
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
                Writer::Ended { fate: Fate::Aborted, .. } | Writer::Waiting | Writer::Running { .. }
                    if held =>
                {
                    Some(promise::UNCOMMITTED)
                }
                _ => None,
            };
            world.wrong = world.wrong.or(wrong);
        }
        world.set(r, Step::Idle);
    }
}

fn began(instance: &Instance) -> ReadStart {
    ReadStart { epoch: instance.epoch, era: instance.era, poll: instance.poll }
}

/// As `Local::evict`: unless it contains the transaction.
fn evict(instance: &mut Instance, xid: u8) {
    if instance.entry.is_some_and(|entry| !has(entry.stamp.contained, xid)) {
        instance.entry = None;
    }
}

impl World {
    /// Whether a lease is still valid by the clock.
    fn valid(&self, lease: Option<u8>) -> bool {
        lease.is_some_and(|sent| 2 * sent + 1 > self.aged)
    }

    pub(super) const fn reader(&self, r: u8) -> &Reader {
        &self.readers[r as usize]
    }

    fn set(&mut self, r: u8, step: Step) {
        let reader = &mut self.readers[usize::from(r)];
        reader.step = step;
        if step == Step::Idle {
            *reader = Reader { floor: 0, asked: 0, token: None, wish: Wish::Nothing, ..*reader };
        }
    }

    /// The token that a reader still asks by, with the epoch that it is compared in.
    fn token(&self, r: u8, epoch: u8) -> Option<(Token, u64)> {
        match self.reader(r).wish {
            Wish::Write(k) => {
                let token = Token::of_write(self.db.epoch_of(k).into(), self.db.xid(k).into());
                Some((token, epoch.into()))
            }
            Wish::Nothing | Wish::PollSince(_) | Wish::Source => None,
        }
    }

    /// Whether a value with this stamp contains what the reader's token asks for, if it has one.
    fn is_contained(&self, r: u8, stamp: Seen, epoch: u8) -> bool {
        Write::of(&stamp.snapshot(), self.token(r, epoch)) == Write::Contained
    }

    pub(super) fn instance_of(&self, model: &Perto, r: u8) -> &Instance {
        &self.instances[usize::from(model.instance(r)) % INSTANCES]
    }

    /// Ends a flight: its leader and all aboard have an outcome to judge.
    fn finish(&mut self, leader: u8, outcome: Outcome) {
        self.set(leader, Step::Landed { outcome, before: true });
        for reader in &mut self.readers {
            if let Step::Aboard { leader: of, before } = reader.step
                && of == leader
            {
                reader.step = Step::Landed { outcome, before };
            }
        }
    }

    /// Ends a flight without an outcome.
    fn wake(&mut self, leader: u8, to: Step) {
        for reader in &mut self.readers {
            if matches!(reader.step, Step::Aboard { leader: of, .. } if of == leader) {
                reader.step = to;
            }
        }
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
