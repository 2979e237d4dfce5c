//! Runs a plan over simulated tiers, and notes all that was written, read and done.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use perto::history::{Answer, History};
use perto::sim::{Dice, Dump, Faults, Sim, SimTransaction};
use perto::{
    Cache, CacheBuilder, Error, Freshness, Load, Perto, Previous, Read, ReadOptions, StaleCause, Switching,
    Tier, TierMode, Token,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::plan::{Asks, Fault, INSTANCES, KEYS, Kind, L2, Loader, Plan, Put, ROWS, Seam, Stale, What};
use crate::ring::{BOUND, CACHE, Member, Ring, ms, spawn};

/// A topic that every other transaction invalidates a key of, and that only one of the instances declares.
const NOISE: &str = "noise";
/// A value that no plan writes.
const GARBAGE: u64 = u64::MAX;

/// What happened.
pub(super) struct Journal {
    began: Instant,
    pub(super) lines: Vec<String>,
    pub(super) history: History,
    /// With the line that tells of it.
    pub(super) answers: Vec<(Answer, usize)>,
    /// What is wrong by itself, whatever was written.
    pub(super) wrong: Option<(String, usize)>,
    pub(super) failed: u64,
    pub(super) totals: Totals,
    /// What all rows were, one commit or crash after the other, and since when.
    states: Vec<(Duration, Rows)>,
    /// Crashes that have lost commits.
    losses: u64,
}

type Rows = [Option<u64>; ROWS];
type Pair = (Option<String>, Option<String>);

/// One client that sends the last token that it got, whichever instance it asks.
#[derive(Debug, Clone, Copy, Default)]
struct Session {
    token: Option<Token>,
    /// The first state that has all that it has seen and written.
    floor: usize,
    losses: u64,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) fresh: u64,
    pub(super) flagged: u64,
    pub(super) invalidated: u64,
    pub(super) expired: u64,
    pub(super) failed: u64,
    pub(super) local: u64,
    pub(super) remote: u64,
    pub(super) refused: u64,
    pub(super) repairs: u64,
    pub(super) crashes: u64,
    pub(super) audits: u64,
    pub(super) violations: u64,
    pub(super) pairs: u64,
    pub(super) views: u64,
    pub(super) session: u64,
    /// Answers while L1 is off.
    pub(super) switched: u64,
    /// Values that loaders were shown and found to be what they were.
    pub(super) unmodified: u64,
}

/// Whether L1 is off for the rows' cache, as an instance knows it.
fn is_off(perto: &Perto) -> bool {
    let is_off = |of: &perto::Switch| of.tier == Tier::Local && of.mode == TierMode::Off;
    perto.switches().iter().any(is_off)
}

impl Totals {
    pub(super) fn add(&mut self, other: &Self) {
        self.fresh += other.fresh;
        self.flagged += other.flagged;
        self.invalidated += other.invalidated;
        self.expired += other.expired;
        self.failed += other.failed;
        self.local += other.local;
        self.remote += other.remote;
        self.refused += other.refused;
        self.repairs += other.repairs;
        self.crashes += other.crashes;
        self.audits += other.audits;
        self.violations += other.violations;
        self.pairs += other.pairs;
        self.views += other.views;
        self.session += other.session;
        self.switched += other.switched;
        self.unmodified += other.unmodified;
    }
}

impl Journal {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            lines: Vec::new(),
            history: History::new(),
            answers: Vec::new(),
            wrong: None,
            failed: 0,
            totals: Totals::default(),
            states: vec![(Duration::ZERO, Rows::default())],
            losses: 0,
        }
    }

    /// All rows have become this.
    fn became(&mut self, change: impl FnOnce(&mut Rows)) {
        let mut rows = self.states.last().map(|(_, rows)| *rows).unwrap_or_default();
        change(&mut rows);
        self.states.push((self.now(), rows));
    }

    /// The first state from `from` on in which these rows were so.
    fn was(&self, from: usize, rows: &[(u64, Option<u64>)]) -> Option<usize> {
        let was =
            |(_, state): &(Duration, Rows)| rows.iter().all(|(key, value)| state[index(*key)] == *value);
        self.states[from.min(self.states.len())..].iter().position(was).map(|at| from + at)
    }

    /// Whether these rows were ever so at once, and for how long that is over.
    fn were_at_once(&self, rows: &[(u64, Option<u64>)], begun: Duration) -> Option<Duration> {
        let was =
            |(_, state): &(Duration, Rows)| rows.iter().all(|(key, value)| state[index(*key)] == *value);
        let at = self.states.iter().rposition(was)?;
        Some(self.states.get(at + 1).map_or(Duration::ZERO, |(over, _)| begun.saturating_sub(*over)))
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn note(&mut self, what: fmt::Arguments<'_>) {
        self.lines.push(format!("{:>10.3?} {what}", self.now()));
    }

    fn wrong(&mut self, what: String) {
        self.note(format_args!("^^^ {what}"));
        let line = self.lines.len();
        self.wrong.get_or_insert((what, line));
    }
}

/// The last write that was announced.
#[derive(Clone, Copy)]
struct Announced {
    key: u64,
    token: Token,
    place: usize,
    crashes: u64,
}

/// What a read demanded.
#[derive(Clone, Copy)]
struct Demand {
    at_least: Option<usize>,
    within: Option<Duration>,
}

/// An open transaction, and what it has written.
type Open = (SimTransaction, BTreeMap<u64, Option<u64>>);

pub(super) struct World {
    plan: Plan,
    dice: Dice,
    ring: Ring,
    /// Instances that were shut down.
    retired: Vec<Member>,
    journal: Arc<Mutex<Journal>>,
    open: Vec<Open>,
    readers: Vec<JoinHandle<()>>,
    announced: Option<Announced>,
    dump: Option<Dump>,
    values: u64,
    /// By instance.
    pairs: Vec<Cache<u64, Pair>>,
    session: Arc<tokio::sync::Mutex<Session>>,
    /// By key: the commits that no crash has taken back.
    kept: BTreeMap<u64, Vec<(u64, Option<u64>)>>,
    /// By key: when its last load ended.
    loaded: Arc<Mutex<BTreeMap<u64, Instant>>>,
    /// Reads that were answered, per instance; none where some reader went away or failed.
    answered: Arc<Mutex<Vec<Option<u64>>>>,
    frozen: [Arc<Freezer>; INSTANCES],
}

impl Plan {
    fn declare<V: perto::Value>(&self, who: usize, cache: CacheBuilder<u64, V>) -> CacheBuilder<u64, V> {
        let cache = cache.outage(self.outages[who]).ttl(self.ttl).absent_ttl(self.ttl);
        let cache = if self.fleet_single_flight { cache.fleet_single_flight() } else { cache };
        match self.stale {
            None => cache,
            Some(Stale { while_loading, refresh_ahead, jitter }) => {
                cache.stale_while_loading(while_loading).refresh_ahead(refresh_ahead).ttl_jitter(jitter)
            }
        }
    }
}

impl World {
    pub(super) async fn run(plan: Plan, journal: Arc<Mutex<Journal>>) {
        let mut world = Self {
            dice: Dice::new(plan.seed),
            ring: Ring { sim: Sim::new(plan.seed), members: Vec::new() },
            plan,
            retired: Vec::new(),
            journal,
            open: Vec::new(),
            readers: Vec::new(),
            announced: None,
            dump: None,
            values: 0,
            pairs: Vec::new(),
            session: Arc::default(),
            kept: BTreeMap::new(),
            loaded: Arc::default(),
            answered: Arc::default(),
            frozen: std::array::from_fn(|_| Arc::default()),
        };
        for who in 0..INSTANCES {
            let (member, pairs) = world.member(who);
            member.perto.start().await.unwrap();
            world.ring.members.push(member);
            world.pairs.push(pairs);
            world.answered.lock().push(Some(0));
        }
        for step in std::mem::take(&mut world.plan.steps) {
            world.step(step.what).await;
            tokio::time::sleep(step.pause).await;
        }
        world.settle().await;
    }

    fn note(&self, what: fmt::Arguments<'_>) {
        self.journal.lock().note(what);
    }

    fn member(&self, who: usize) -> (Member, Cache<u64, Pair>) {
        let node = self.ring.sim.node();
        let perto = node.builder("ring").audit_rate(if self.plan.audited { 32 } else { 0 }).build().unwrap();
        let loader = self.ring.sim.postgres.loader(CACHE);
        let (loading, loaded) = (loader.clone(), Arc::clone(&self.loaded));
        let conditional = self.plan.conditional;
        let load = move |load: Load<u64>, previous: Previous<u64, String>| {
            let (loading, loaded, keys) = (loading.clone(), Arc::clone(&loaded), load.keys.clone());
            let previous = if conditional { previous } else { Previous::default() };
            async move {
                let rows = loading.load_changed(load, previous).await?;
                let now = Instant::now();
                loaded.lock().extend(keys.into_iter().map(|key| (key, now)));
                Ok::<_, perto::sim::Down>(rows)
            }
        };
        let users = self.plan.declare(who, perto.cache(CACHE)).conditional_loader(load).unwrap();
        let (loading, on) = (loader.clone(), users.clone());
        let load = move |load: Load<u64>| {
            let (loading, on) = (loading.clone(), on.clone());
            async move {
                let pair = |rows: &perto::sim::Rows<'_>, key: &u64| {
                    let (one, other): (Option<String>, _) =
                        (rows.get(CACHE, key)?, rows.get(CACHE, &next(*key))?);
                    // That there is neither is an answer too, and depends on both.
                    Ok((one.is_some() || other.is_some()).then_some((one, other)))
                };
                let loaded = loading.statement(load, pair).await?;
                Ok::<_, perto::sim::Down>(loaded.depends_on(move |key, _| [on.key(key), on.key(&next(*key))]))
            }
        };
        if who == 0 {
            perto.topic::<u64>(NOISE).declare().unwrap();
        }
        let pairs = self.plan.declare(who, perto.cache("pair")).loader(load).unwrap();
        (Member { node, perto, users, loader }, pairs)
    }

    async fn step(&mut self, what: What) {
        match what {
            What::Read { who, keys, asks, patience } => self.read(who, keys, asks, patience),
            What::ReadPair { who, key, asks, patience } => self.read_pair(who, key, asks, patience),
            What::View { who, keys, pair, latest, patience } => self.view(who, keys, pair, latest, patience),
            What::Begin if self.open.len() < 4 => {
                let mut transaction = self.ring.sim.postgres.begin();
                transaction.xid();
                self.open.push((transaction, BTreeMap::new()));
            }
            What::Begin => {}
            What::Put(put) => self.put(&put),
            What::RollBack(transaction) => {
                if let Some(at) = transaction.checked_rem(self.open.len()) {
                    let (mut transaction, _) = self.open.swap_remove(at);
                    self.note(format_args!("{} rolls back", transaction.xid()));
                }
            }
            What::Commit { last, announce } => {
                self.put(&last);
                if let Some(at) = last.transaction.checked_rem(self.open.len()) {
                    self.commit(at, announce);
                }
            }
            What::Invalidate { who, key } => {
                let users = self.ring.members[who].users.clone();
                self.spawn(who, async move { drop(users.invalidate(&key).await) });
            }
            What::Fault { who, seam, fault } => self.fault(who, seam, fault),
            What::Loader { who, loader } => self.loader(who, loader),
            What::L2(change) => self.l2(change),
            What::Switch { all, tier, mode, lasts } => self.switch(all, tier, mode, lasts),
            What::Crash(losing) => self.crash(losing),
            What::Jump { who, by } => {
                self.note(format_args!("{who}'s clock jumps by {by:?}"));
                self.ring.members[who].node.clock.jump(by);
            }
            What::Freeze(who) => self.freeze(who),
            What::Thaw(who) => self.thaw(who),
            What::Restart(who) => self.restart(who).await,
            What::Trim => {
                self.note(format_args!("the log is trimmed"));
                self.ring.sim.postgres.trim();
            }
            What::Replay(behind) => self.ring.sim.postgres.replay(behind),
        }
    }

    /// A task of an instance: it stands still while the instance is frozen.
    fn spawn(&mut self, who: usize, task: impl Future<Output = ()> + Send + 'static) {
        let freezer = Arc::clone(&self.frozen[who]);
        self.readers.push(spawn(async move { freezer.run(task).await }));
    }

    fn read(&mut self, who: usize, mut keys: Vec<u64>, asks: Asks, patience: Duration) {
        let users = self.ring.members[who].users.clone();
        let announced = self.announced.filter(|_| matches!(asks, Asks::Token | Asks::LatestByToken));
        keys.extend(announced.map(|announced| announced.key));
        let within = within(asks);
        let session = Arc::clone(&self.session);
        let (journal, answered, loaded) =
            (Arc::clone(&self.journal), Arc::clone(&self.answered), Arc::clone(&self.loaded));
        let (ttl, audited) = (self.plan.ttl, self.plan.audited);
        let perto = self.ring.members[who].perto.clone();
        self.spawn(who, async move {
            let begun = Instant::now();
            let is_off = is_off(&perto);
            let options = within.map_or(ReadOptions::default(), ReadOptions::within);
            let options = announced.map_or(options, |announced| options.and_at_least(announced.token));
            let mut session = match asks {
                Asks::Session => session.try_lock_owned().ok(),
                _ => None,
            };
            let token = session.as_ref().and_then(|session| session.token);
            let options = token.map_or(options, |token| options.and_at_least(token));
            let reading = async {
                match (&keys[..], asks) {
                    ([key], Asks::Nothing) => users.get(key).await.map(|read| vec![read]),
                    ([key], _) => users.get_with(key, options).await.map(|read| vec![read]),
                    _ => users.get_many_with(&keys, options).await,
                }
            };
            let answer = tokio::time::timeout(patience, reading).await;
            let mut journal = journal.lock();
            let mut answered = answered.lock();
            match answer {
                Ok(Ok(reads)) => {
                    answered[who] = answered[who].map(|count| count + reads.len() as u64);
                    let mut rows = Vec::new();
                    for (key, read) in keys.into_iter().zip(&reads) {
                        // After a crash the write may be gone, and the token with it.
                        let crashes = journal.totals.crashes;
                        let of_key = |a: &Announced| a.crashes == crashes && a.key == key;
                        let at_least = announced.filter(of_key).map(|a| a.place);
                        journal.answer(who, key, begun, Demand { at_least, within }, read);
                        journal.totals.switched += u64::from(is_off);
                        // Two polls are that far apart: it may have been switched twice since.
                        if is_off && read.tier == Tier::Local && begun.elapsed() < Duration::from_millis(5) {
                            journal.wrong(format!("key {key} is from L1, which is off"));
                        }
                        let last = loaded.lock().get(&key).copied();
                        if !audited
                            && read.tier != Tier::Load
                            && !matches!(read.freshness, Freshness::Stale(_))
                            && last.is_none_or(|last| begun > last + ttl + GRAIN)
                        {
                            journal.wrong(format!("key {key} outlived its time to live"));
                        }
                        rows.push([(key, number(read))]);
                    }
                    if let Some(session) = &mut session {
                        let token = Token::of_all(reads.iter().map(Read::token));
                        journal.goes_on(session, &rows, token);
                    }
                }
                Ok(Err(error)) => {
                    answered[who] = None;
                    journal.failed += 1;
                    journal.note(format_args!("{who} read {keys:?}: {error}"));
                    if matches!(error, Error::LoadPanicked { .. }) {
                        journal.wrong(error.to_string());
                    }
                }
                Err(_gone) => answered[who] = None,
            }
        });
    }

    fn read_pair(&mut self, who: usize, key: u64, asks: Asks, patience: Duration) {
        let pairs = self.pairs[who].clone();
        let (journal, session) = (Arc::clone(&self.journal), Arc::clone(&self.session));
        let announced = self.announced.filter(|_| matches!(asks, Asks::Token | Asks::LatestByToken));
        let within = within(asks);
        self.spawn(who, async move {
            let begun = Instant::now();
            let mut session = match asks {
                Asks::Session => session.try_lock_owned().ok(),
                _ => None,
            };
            let mut options = within.map_or(ReadOptions::default(), ReadOptions::within);
            if let Some(token) =
                session.as_ref().and_then(|session| session.token).or(announced.map(|a| a.token))
            {
                options = options.and_at_least(token);
            }
            let answer = tokio::time::timeout(patience, pairs.get_with(&key, options)).await;
            let mut journal = journal.lock();
            let read = match answer {
                Ok(Ok(read)) => read,
                Ok(Err(error)) => {
                    journal.failed += 1;
                    return journal.note(format_args!("{who} read the pair {key}: {error}"));
                }
                Err(_gone) => return,
            };
            journal.totals.pairs += 1;
            let rows = pair_of(key, &read);
            for (at, (key, value)) in rows.into_iter().enumerate() {
                let crashes = journal.totals.crashes;
                let of_key = |a: &Announced| a.crashes == crashes && a.key == key;
                let at_least = announced.filter(of_key).map(|a| a.place);
                let demand = Demand { at_least, within };
                journal.answer_with(who, key, begun, demand, value, (read.freshness, read.tier));
                if at == 1 && journal.was(0, &rows).is_none() {
                    journal.wrong(format!("the rows of the pair {rows:?} were never so at once"));
                }
            }
            if let Some(session) = &mut session {
                journal.goes_on(session, &[rows], read.token());
            }
        });
    }

    fn view(&mut self, who: usize, keys: Vec<u64>, pair: u64, latest: bool, patience: Duration) {
        let (member, pairs) = (&self.ring.members[who], self.pairs[who].clone());
        let (perto, users) = (member.perto.clone(), member.users.clone());
        let (journal, answered) = (Arc::clone(&self.journal), Arc::clone(&self.answered));
        self.spawn(who, async move {
            let begun = Instant::now();
            let options = if latest { ReadOptions::latest() } else { ReadOptions::default() };
            let (all, users, pairs) = (&keys, &users, &pairs);
            let viewing = perto.view_with(options, |view| async move {
                let mut reads = Vec::new();
                for key in all {
                    reads.push(view.get(users, key).await?);
                }
                Ok::<_, Error>((reads, view.get(pairs, &pair).await?))
            });
            let answer = tokio::time::timeout(patience, viewing).await;
            // How often it was tried is not known.
            answered.lock()[who] = None;
            let mut journal = journal.lock();
            let (reads, of_pair) = match answer {
                Ok(Ok(seen)) => seen,
                Ok(Err(error)) => {
                    journal.failed += 1;
                    return journal.note(format_args!("{who} views {keys:?} and the pair {pair}: {error}"));
                }
                Err(_gone) => return,
            };
            journal.totals.views += 1;
            let mut rows: Vec<_> = keys.iter().zip(&reads).map(|(key, read)| (*key, number(read))).collect();
            rows.extend(pair_of(pair, &of_pair));
            journal.note(format_args!("{who} views {rows:?}"));
            let fresh = reads.iter().all(|read| read.freshness == Freshness::Fresh)
                && of_pair.freshness == Freshness::Fresh;
            let limit = if latest { Duration::ZERO } else { BOUND };
            match journal.were_at_once(&rows, begun - journal.began) {
                None => journal.wrong(format!("the rows of the view {rows:?} were never so at once")),
                Some(age) if fresh && age > limit => {
                    journal.wrong(format!(
                        "the rows of the view {rows:?} were so {age:?} ago, which is too long"
                    ));
                }
                Some(_) => {}
            }
        });
    }

    fn put(&mut self, put: &Put) {
        let Some(at) = put.transaction.checked_rem(self.open.len()) else { return };
        let key = put.key;
        self.values += 1;
        let value = self.values;
        let (transaction, written) = &mut self.open[at];
        let (done, value) = match put.kind {
            Kind::Value => (transaction.put(CACHE, &key, &text(value)), Some(value)),
            Kind::Bulk => (transaction.bulk(CACHE, &[(key, text(value))]), Some(value)),
            Kind::Removal => (transaction.remove(CACHE, &key), None),
        };
        if done.is_ok() {
            written.insert(key, value);
        }
    }

    fn commit(&mut self, at: usize, announce: Option<(usize, Duration)>) {
        let (mut transaction, values) = self.open.swap_remove(at);
        if transaction.xid().is_multiple_of(2) {
            transaction.touch(NOISE, "1");
        }
        // A crash has ended it.
        let Ok(written) = transaction.commit() else { return };
        {
            let mut journal = self.journal.lock();
            journal.note(format_args!("{} commits {values:?}", written.xid));
            let now = journal.now();
            journal.became(|rows| values.iter().for_each(|(key, value)| rows[index(*key)] = *value));
            for (key, value) in values {
                let place = journal.history.wrote(key, value, now, Some(now));
                self.kept.entry(key).or_default().push((written.xid, value));
                let crashes = journal.totals.crashes;
                self.announced = Some(Announced { key, token: written.token, place, crashes });
            }
        }
        if announce.is_some()
            && let Ok(mut session) = self.session.try_lock()
        {
            let journal = self.journal.lock();
            *session = Session {
                token: Some(written.token),
                floor: journal.states.len() - 1,
                losses: journal.losses,
            };
        }
        if let Some((who, late)) = announce {
            let perto = self.ring.members[who].perto.clone();
            self.spawn(who, async move {
                tokio::time::sleep(late).await;
                perto.announce(written.token, &written.changes).await;
            });
        }
    }

    fn fault(&self, who: usize, seam: Seam, fault: Fault) {
        if self.frozen[who].is_frozen() {
            return;
        }
        let node = &self.ring.members[who].node;
        let faults: &Faults = match seam {
            Seam::Log => &node.log.faults,
            Seam::Remote => &node.remote.faults,
            Seam::Bus => &node.bus.faults,
        };
        match fault {
            Fault::Cut => faults.cut(),
            Fault::Hang => faults.hang(),
            Fault::Lose(percent) => faults.lose(percent),
            Fault::Double(percent) => faults.double(percent),
            Fault::Delay(most) => faults.delay(Duration::ZERO, most),
            Fault::Heal => faults.heal(),
            Fault::HealAll => node.heal(),
        }
        self.note(format_args!("{who}'s {seam:?}: {fault:?}"));
    }

    fn loader(&self, who: usize, change: Loader) {
        if self.frozen[who].is_frozen() {
            return;
        }
        let loader = &self.ring.members[who].loader;
        match change {
            Loader::CloseAfter => loader.after().close(),
            Loader::CloseBefore => loader.before().close(),
            Loader::Cut => loader.faults().cut(),
            Loader::Delay(most) => loader.faults().delay(Duration::ZERO, most),
            Loader::Replica { heeds_primary } => loader.use_replica(heeds_primary),
            Loader::Primary => loader.use_primary(),
            Loader::Heal => {
                loader.after().open();
                loader.before().open();
                loader.faults().heal();
            }
        }
        self.note(format_args!("{who}'s loader: {change:?}"));
    }

    fn l2(&mut self, change: L2) {
        let remote = &self.ring.sim.remote;
        match (change, &self.dump) {
            (L2::Flush, _) => remote.flush(),
            (L2::Scramble, _) => remote.scramble(&mut self.dice),
            (L2::Restore, Some(dump)) => remote.restore(dump),
            (L2::Dump | L2::Restore, _) => self.dump = Some(remote.dump()),
        }
        self.note(format_args!("L2: {change:?}"));
    }

    fn switch(&self, all: bool, tier: Tier, mode: TierMode, lasts: Option<Duration>) {
        let switching = if all { Switching::of_all(tier, mode) } else { Switching::of(CACHE, tier, mode) };
        let switching = match lasts.filter(|_| mode != TierMode::On) {
            Some(lasts) => switching.lasting(lasts),
            None => switching,
        };
        self.ring.sim.postgres.switch(&switching).unwrap();
        self.note(format_args!("{switching:?}"));
    }

    fn crash(&mut self, losing: usize) {
        let lost = match losing {
            0 => {
                self.ring.sim.postgres.restart();
                Vec::new()
            }
            losing => self.ring.sim.postgres.crash(losing),
        };
        let mut journal = self.journal.lock();
        journal.totals.crashes += 1;
        journal.note(format_args!("Postgres is started again, losing {lost:?}"));
        journal.losses += u64::from(!lost.is_empty());
        let now = journal.now();
        for (key, commits) in &mut self.kept {
            let before = commits.len();
            commits.retain(|(xid, _)| !lost.contains(xid));
            let value = commits.last().and_then(|(_, value)| *value);
            if commits.len() < before && journal.history.latest(*key) != value {
                journal.history.wrote(*key, value, now, Some(now));
            }
        }
        let kept = &self.kept;
        journal.became(|rows| {
            for (key, commits) in kept {
                rows[index(*key)] = commits.last().and_then(|(_, value)| *value);
            }
        });
    }

    /// The process stands still while the world goes on: nothing that it waits for is answered, and nothing of its
    /// own begins.
    fn freeze(&self, who: usize) {
        self.note(format_args!("{who} freezes"));
        self.frozen[who].freeze();
        self.ring.members[who].node.hang();
        self.ring.members[who].loader.faults().hang();
    }

    fn thaw(&self, who: usize) {
        if self.frozen[who].is_frozen() {
            self.note(format_args!("{who} thaws"));
            self.ring.members[who].node.heal();
            self.ring.members[who].loader.faults().heal();
            self.frozen[who].thaw();
        }
    }

    async fn restart(&mut self, who: usize) {
        self.thaw(who);
        self.note(format_args!("{who} restarts"));
        let (member, pairs) = self.member(who);
        if member.perto.start().await.is_ok() {
            let old = std::mem::replace(&mut self.ring.members[who], member);
            self.pairs[who] = pairs;
            self.answered.lock()[who] = None;
            old.perto.shutdown().await;
            self.retired.push(old);
        }
    }

    /// Heals everything; then every instance must show the truth, and come to rest.
    async fn settle(mut self) {
        self.note(format_args!("all heals"));
        self.open.clear();
        for tier in [Tier::Local, Tier::Remote] {
            self.switch(true, tier, TierMode::On, None);
            self.switch(false, tier, TierMode::On, None);
        }
        for (who, member) in self.ring.members.iter().enumerate() {
            self.thaw(who);
            member.node.heal();
            member.loader.use_primary();
            member.loader.faults().heal();
            member.loader.after().open();
            member.loader.before().open();
        }
        for reader in std::mem::take(&mut self.readers) {
            reader.await.unwrap();
        }
        ms(2_500).await;
        for (who, member) in self.ring.members.iter().enumerate() {
            for key in 0..KEYS {
                let read = member.users.get_with(&key, ReadOptions::never_stale()).await.unwrap();
                let truth = self.journal.lock().history.latest(key);
                let shown = (number(&read), read.freshness);
                assert_eq!(shown, (truth, Freshness::Fresh), "instance {who}, key {key}, at rest");
            }
            for key in 0..KEYS {
                let read = self.pairs[who].get_with(&key, ReadOptions::never_stale()).await.unwrap();
                let truth = [key, next(key)].map(|key| (key, self.journal.lock().history.latest(key)));
                let shown = (pair_of(key, &read), read.freshness);
                assert_eq!(shown, (truth, Freshness::Fresh), "instance {who}, pair {key}, at rest");
            }
            let stats = member.users.stats();
            let counted = stats.l1_hits + stats.l2_hits + stats.load_hits;
            // The loads that replace stale values count too.
            if let (Some(answered), None) = (self.answered.lock()[who], self.plan.stale) {
                assert_eq!(counted, answered + KEYS, "instance {who}: {stats:?}");
            }
        }
        for member in std::mem::take(&mut self.ring.members) {
            member.perto.shutdown().await;
            self.retired.push(member);
        }
        for member in std::mem::take(&mut self.retired) {
            self.rest(&member);
        }
    }

    /// What must hold of an instance that was shut down.
    fn rest(&self, member: &Member) {
        let stats = member.users.stats();
        let totals = &mut self.journal.lock().totals;
        totals.local += stats.l1_hits;
        totals.remote += stats.l2_hits;
        totals.refused += stats.l2_refused;
        totals.audits += stats.audits;
        totals.unmodified += stats.keys_unmodified;
        totals.repairs += member.perto.stats().repairs;
        assert_eq!(stats.audit_violations, 0, "the log has every write");
        assert_eq!(member.perto.tasks(), 0, "a task outlived the shutdown");
        assert_eq!(member.users.flights(), 0, "a flight was leaked");
    }
}

/// A clock of whole milliseconds ends a time to live up to this much late.
const GRAIN: Duration = Duration::from_millis(2);

impl Journal {
    fn answer(&mut self, who: usize, key: u64, begun: Instant, demand: Demand, read: &Read<String>) {
        self.answer_with(who, key, begun, demand, number(read), (read.freshness, read.tier));
    }

    fn answer_with(
        &mut self,
        who: usize,
        key: u64,
        begun: Instant,
        demand: Demand,
        value: Option<u64>,
        (freshness, tier): (Freshness, Tier),
    ) {
        let answer = Answer {
            instance: u32::try_from(who).unwrap(),
            at_least: demand.at_least,
            within: demand.within,
            ..Answer::new(key, value, freshness, tier, begun - self.began, self.now())
        };
        self.note(format_args!("{who} read {key}:{answer}"));
        self.answers.push((answer, self.lines.len()));
        match freshness {
            Freshness::Fresh => self.totals.fresh += 1,
            Freshness::Stale(StaleCause::Invalidated { .. }) => self.totals.invalidated += 1,
            Freshness::Stale(StaleCause::Expired { .. }) => self.totals.expired += 1,
            _ => self.totals.flagged += 1,
        }
    }

    /// A session has been answered, by its token: never with what is older than anything that it knows of.
    fn goes_on<const N: usize>(
        &mut self,
        session: &mut Session,
        answers: &[[(u64, Option<u64>); N]],
        token: Option<Token>,
    ) {
        self.totals.session += 1;
        // What it has seen may be lost.
        if session.losses != self.losses || session.token.is_none() {
            *session = Session { losses: self.losses, ..Session::default() };
        }
        let floor = session.floor;
        for rows in answers {
            match self.was(floor, rows) {
                // An answer without a token is left out of the promise.
                Some(seen) if token.is_some() => session.floor = session.floor.max(seen),
                Some(_) => {}
                None => self.wrong(format!("a session went back in time: {rows:?}")),
            }
        }
        session.token = token.or(session.token);
    }
}

fn index(key: u64) -> usize {
    usize::try_from(key).unwrap()
}

/// The other row of a pair.
fn next(key: u64) -> u64 {
    (key + 1) % KEYS
}

fn within(asks: Asks) -> Option<Duration> {
    match asks {
        Asks::Nothing | Asks::Token | Asks::Session => None,
        Asks::Within(limit) => Some(limit),
        Asks::Latest | Asks::LatestByToken => Some(Duration::ZERO),
    }
}

fn text(value: u64) -> String {
    format!("v{value}")
}

fn number(read: &Read<String>) -> Option<u64> {
    read.value().map(|text| number_of(text))
}

fn number_of(text: &str) -> u64 {
    text.strip_prefix('v').and_then(|digits| digits.parse().ok()).unwrap_or(GARBAGE)
}

fn pair_of(key: u64, read: &Read<Pair>) -> [(u64, Option<u64>); 2] {
    let pair = read.value().cloned().unwrap_or_default();
    let number = |text: Option<String>| text.as_deref().map(number_of);
    [(key, number(pair.0)), (next(key), number(pair.1))]
}

/// Keeps tasks from running, as `SIGSTOP` does, wherever they are waiting.
#[derive(Default)]
struct Freezer(Mutex<(bool, Vec<Waker>)>);

impl Freezer {
    fn is_frozen(&self) -> bool {
        self.0.lock().0
    }

    fn freeze(&self) {
        self.0.lock().0 = true;
    }

    fn thaw(&self) {
        let waiting = {
            let mut state = self.0.lock();
            state.0 = false;
            std::mem::take(&mut state.1)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    async fn run(&self, task: impl Future<Output = ()>) {
        let mut task = pin!(task);
        std::future::poll_fn(|context: &mut Context<'_>| {
            {
                let mut state = self.0.lock();
                if state.0 {
                    state.1.push(context.waker().clone());
                    return Poll::Pending;
                }
            }
            task.as_mut().poll(context)
        })
        .await;
    }
}
