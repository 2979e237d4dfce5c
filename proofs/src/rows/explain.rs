//! Counterexamples that people can read.

use super::Rowwise;
use super::state::{A, B, Mark, Rows, Step, Tail, Token, Value, World};
use super::step::Action;
use crate::postgres::{Names, has};

impl Rowwise {
    /// One step of a counterexample, and what came of it.
    pub(super) fn step(&self, before: &World, action: Action, after: &World) -> String {
        match action {
            Action::Begin(k) => {
                let rows: Vec<&str> = (0..3).filter(|row| has(self.touches(k), *row)).map(row).collect();
                format!("W{k} begins as transaction {}, writes {}", after.db.xid(k), rows.join(" and "))
            }
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
            Action::Hint { of, row: of_row, to } => {
                format!("a hint of W{of} for {} reaches I{to}{}", row(of_row), instance(after, to))
            }
            Action::Lose(i) => format!("I{i} ends the era, will read all rows"),
            Action::Poll(i) => match after.instances[usize::from(i)].tail {
                Tail::Answered(answer) => {
                    format!("I{i} polls: snapshot {}, rows {}", answer.seen, rows(answer.rows))
                }
                _ => format!("I{i} polls"),
            },
            Action::Apply(i) => match after.instances[usize::from(i)].tail {
                Tail::Lost => format!("I{i} finds its cursor void: ends the era, will read all rows"),
                Tail::Applying(answer) if answer.all => {
                    format!("I{i} begins a recovery{}", instance(after, i))
                }
                _ => format!("I{i} applies the poll{}", instance(after, i)),
            },
            Action::ApplyRow { of, row: of_row, to } => {
                format!("I{to} applies the row of W{of} for {}{}", row(of_row), instance(after, to))
            }
            Action::Complete(i) => format!("I{i} publishes the poll"),
            Action::Extend(i) => format!("I{i} extends the lease{}", instance(after, i)),
            Action::Invoke { reader: r, wrote } => {
                let (i, key) = self.asked(after, r);
                let token = match (wrote, before.reader(r).token) {
                    (Some(k), _) => format!(" with the token of W{k} in epoch {}", before.db.epoch_of(k)),
                    (None, Some(Token { epoch, mark: Mark::Write(k) })) => {
                        format!(" with the token of W{k} in epoch {epoch}")
                    }
                    (None, Some(Token { epoch, mark: Mark::Read(rank) })) => {
                        format!(" with the token of a read in epoch {epoch}, xmax {}", rank.xmax())
                    }
                    (None, None) => String::new(),
                };
                format!("R{r} reads {} at I{i}{token}{}", row(key), reader(after, r))
            }
            Action::GiveUpPoll(r) => format!("no poll comes in time for R{r}"),
            Action::Next(r) => match before.reader(r).step {
                Step::Woken => format!("R{r} goes on after the poll{}", reader(after, r)),
                Step::Peeked { .. } => format!("R{r} takes the lease{}", reader(after, r)),
                Step::Leased { .. } => format!("R{r} reads the entry{}", reader(after, r)),
                Step::EntryRead { .. } => format!("R{r} judges what it depends on{}", reader(after, r)),
                Step::SubjectsJudged { .. } => format!("R{r} ends its hit{}", reader(after, r)),
                Step::Landed { .. } => format!("R{r} takes the lease{}", reader(after, r)),
                _ => format!("R{r} judges{}", reader(after, r)),
            },
            Action::Join(r) => format!("R{r} takes a flight{}", reader(after, r)),
            Action::LookUp { reader: r, found } => match found.and_then(|at| before.l2[usize::from(at)]) {
                Some(stored) => {
                    format!("R{r} finds {} in L2{}", value(stored.value), reader(after, r))
                }
                None => format!("R{r} finds nothing in L2"),
            },
            Action::Insert(r) => format!("R{r} offers it to L1"),
            Action::Load { reader: r, replica } => {
                let from =
                    replica.map_or("the primary".to_owned(), |at| format!("a replica as of event {at}"));
                format!("R{r} loads from {from}{}", reader(after, r))
            }
            Action::Share(r) => {
                format!("R{r} lands{}{}", reader(after, r), instance(after, self.asked(after, r).0))
            }
            Action::View(r) => format!("R{r} goes on with its view{}", reader(after, r)),
        }
    }
}

const fn row(row: u8) -> &'static str {
    match row {
        A => "A",
        B => "B",
        _ => "all of B",
    }
}

fn rows(rows: Rows) -> String {
    let all = (0..9u8).filter(|at| rows & 1 << at != 0);
    let names: Vec<String> = all.map(|at| format!("W{} for {}", at / 3, row(at % 3))).collect();
    format!("{{{}}}", names.join(", "))
}

fn value(value: Value) -> String {
    let depends = if value.subjects == 0b11 { " of A and B" } else { "" };
    format!("{}{depends} {} stamp {}", row(value.key), Names(value.holds), value.stamp)
}

fn instance(world: &World, i: u8) -> String {
    let Some(instance) = world.instances.get(usize::from(i)) else { return String::new() };
    let entries: Vec<String> = instance.entries.iter().flatten().map(|entry| value(entry.value)).collect();
    let lease = instance.lease.map_or("no lease".to_owned(), |sent| format!("lease from event {sent}"));
    let held = if entries.is_empty() { "empty".to_owned() } else { entries.join(", ") };
    format!(" -> epoch {}, era {}, L1 {held}, {lease}", instance.epoch, instance.era)
}

fn reader(world: &World, r: u8) -> String {
    match world.reader(r).step {
        Step::Idle => " -> answered".to_owned(),
        Step::Waiting { .. } => " -> waits for a poll".to_owned(),
        Step::Woken => " -> has waited".to_owned(),
        Step::Peeked { .. } | Step::Leased { .. } | Step::EntryRead { .. } | Step::SubjectsJudged { .. } => {
            " -> paused in a hit".to_owned()
        }
        Step::Missed { again: false } => " -> a miss".to_owned(),
        Step::Missed { again: true } => " -> reads again".to_owned(),
        Step::Looking { .. } => " -> leads".to_owned(),
        Step::Found { .. } => " -> accepted".to_owned(),
        Step::Loading { primary: true, .. } => " -> asks for the primary".to_owned(),
        Step::Loading { .. } => " -> loads".to_owned(),
        Step::Loaded { value: of, .. } => format!(" -> {}", value(of)),
        Step::Aboard { leader, .. } => format!(" -> aboard with R{leader}"),
        Step::Landed { outcome, .. } | Step::Judging { outcome, .. } | Step::Judged { outcome, .. } => {
            format!(" -> {} from {:?}", value(outcome.value), outcome.from)
        }
        Step::Gathered => {
            let answers: Vec<String> =
                world.reader(r).answers.iter().flatten().map(|entry| value(entry.value)).collect();
            format!(" -> has all answers: {}", answers.join(", "))
        }
        Step::JudgedBefore => " -> has judged all, waits for a poll".to_owned(),
        Step::ViewPolled => " -> has a poll".to_owned(),
        Step::ViewJudged => " -> has judged all".to_owned(),
    }
}
