//! Counterexamples that people can read.

use super::Perto;
use super::state::{Step, Tail, Wish, World};
use super::step::{Action, Source};
use crate::postgres::Names;

impl Perto {
    /// One step of a counterexample, and what came of it.
    pub(super) fn step(&self, before: &World, action: Action, after: &World) -> String {
        match action {
            Action::Begin(k) => {
                let touches = if self.touches(k) { "and writes the row" } else { "and writes elsewhere" };
                format!("W{k} begins as transaction {} {touches}", after.db.xid(k))
            }
            Action::Log(k) => format!("W{k} has its commit record written; nobody sees it yet"),
            Action::Commit(k) => format!("W{k} commits"),
            Action::Abort(k) => format!("W{k} aborts"),
            Action::Trim => format!("the log is trimmed; horizon {}", after.db.trimmed),
            Action::Crash { losing } => {
                format!("Postgres crashes, loses {losing} commits, goes on at number {}", after.db.next)
            }
            Action::TimePasses => match before.aged % 2 {
                0 => format!(
                    "time passes: a poll sent after event {} is older than the bound",
                    before.aged / 2
                ),
                _ => format!("time passes: event {} is older than the bound", after.aged / 2),
            },
            Action::Hint { of, to } => format!("a hint of W{of} reaches I{to}{}", instance(after, to)),
            Action::Forge { xid, to } => {
                format!("a hint of {xid}, which nobody has, reaches I{to}{}", instance(after, to))
            }
            Action::Record => format!(
                "the hint is recorded{}",
                before.checked.map(|(_, to)| instance(after, to)).unwrap_or_default()
            ),
            Action::Poll(i) => match after.instances[usize::from(i)].tail {
                Tail::Answered(answer) if answer.half => format!("I{i} reads rows {}", Names(answer.rows)),
                Tail::Answered(answer) => {
                    format!("I{i} polls: snapshot {}, rows {}", answer.seen, Names(answer.rows))
                }
                _ => format!("I{i} polls"),
            },
            Action::ReadSnapshot(i) => match after.instances[usize::from(i)].tail {
                Tail::Answered(answer) => format!("I{i} reads the snapshot {}", answer.seen),
                _ => format!("I{i} reads the snapshot"),
            },
            Action::Apply(i) => match after.instances[usize::from(i)].tail {
                Tail::Lost => format!("I{i} finds its cursor void: ends the era, will read all rows"),
                _ => format!("I{i} applies the poll{}", instance(after, i)),
            },
            Action::ApplyRow { of, to } => format!("I{to} applies the row of W{of}{}", instance(after, to)),
            Action::Complete(i) => format!("I{i} publishes the poll"),
            Action::Extend(i) => format!("I{i} extends the lease{}", instance(after, i)),
            Action::Invoke { reader: r, wish } => {
                let asks = match wish {
                    Wish::Nothing | Wish::Source => String::new(),
                    Wish::PollSince(moment) => format!(", for a poll sent since moment {moment}"),
                    Wish::Write(k) => format!(", by the token of W{k}"),
                };
                format!("R{r} at I{} reads{asks}{}", self.instance(r), reader(after, r))
            }
            Action::HintElsewhere { of, to } => format!("a hint of W{of} for other keys reaches I{to}"),
            Action::GiveUpPoll(r) => format!("no poll comes in time for R{r}"),
            Action::EndHit(r) => format!("R{r} goes on with its hit{}", reader(after, r)),
            Action::CaptureBegan(r) => format!("R{r} captures where things stand"),
            Action::Join(r) => format!("R{r} takes a flight{}", reader(after, r)),
            Action::LookUp { reader: r, found: None } => format!("R{r} finds nothing in L2"),
            Action::LookUp { reader: r, found: Some(at) } => match before.l2[usize::from(at)] {
                Some(stored) => format!(
                    "R{r} finds {} in L2, stamp {}{}",
                    Names(stored.holds),
                    stored.stamp,
                    reader(after, r)
                ),
                None => format!("R{r} finds nothing in L2"),
            },
            Action::Insert(r) => format!("R{r} offers it to L1{}", instance(after, self.instance(r))),
            Action::Cancel(r) => format!("R{r} is cancelled"),
            Action::Park(r) => format!("R{r} is not polled any more"),
            Action::GiveUp(leader) => format!("those who wait for R{leader} give it up"),
            Action::Load { reader: r, from } => {
                let from = match from {
                    Source::Primary => "the primary".to_owned(),
                    Source::OldTransaction(at) => format!("a transaction of the primary as of event {at}"),
                    Source::Replica(at) => format!("a replica as of event {at}"),
                    Source::Writer(k) => format!("the transaction of W{k}"),
                };
                format!("R{r} loads from {from}{}", reader(after, r))
            }
            Action::Share(r) => {
                format!("R{r} lands{}{}", reader(after, r), instance(after, self.instance(r)))
            }
            Action::HoldLease(r) => format!("R{r} takes the lease"),
            Action::Judge(r) => format!("R{r} judges{}", reader(after, r)),
        }
    }
}

fn instance(world: &World, i: u8) -> String {
    let Some(instance) = world.instances.get(usize::from(i)) else { return String::new() };
    let entry = match instance.entry {
        Some(entry) => format!("L1 {} stamp {}", Names(entry.holds), entry.stamp),
        None => "L1 empty".to_owned(),
    };
    let lease = instance.lease.map_or("no lease".to_owned(), |sent| format!("lease from event {sent}"));
    format!(" -> era {}, {entry}, {lease}, {:?}", instance.era, instance.known)
}

fn reader(world: &World, r: u8) -> String {
    match world.reader(r).step {
        Step::Idle => " -> answered".to_owned(),
        Step::Parked => " -> parked".to_owned(),
        Step::Waiting { .. } => " -> waits for a poll".to_owned(),
        Step::Hitting { .. } => " -> paused in a hit".to_owned(),
        Step::Missed { again: false } | Step::Beginning { .. } => " -> a miss".to_owned(),
        Step::Missed { again: true } => " -> reads again".to_owned(),
        Step::ReadStart { .. } | Step::Looking { .. } => " -> leads".to_owned(),
        Step::Found { .. } => " -> accepted".to_owned(),
        Step::Loading { primary, .. } => {
            if primary { " -> asks for the primary" } else { " -> loads" }.to_owned()
        }
        Step::Loaded { holds, stamp, .. } => format!(" -> {}, stamp {stamp}", Names(holds)),
        Step::Aboard { leader, .. } => format!(" -> aboard with R{leader}"),
        Step::Landed { outcome, .. } | Step::Judging { outcome, .. } => {
            format!(" -> {} from {:?}", Names(outcome.holds), outcome.from)
        }
    }
}
