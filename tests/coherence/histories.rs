//! Random histories: three instances, writers that commit in any order or not at all, and every fault there is. A
//! checker knows what each key was at each moment, and judges every answer.
//!
//! `PERTO_SEEDS=10000` runs that many histories, `PERTO_SEED=7` one of them, twenty times over: the seed decides
//! what happens and when, but tokio wakes those who wait for one thing in an order of its own.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use perto::sim::{Dice, Dump, Faults, Sim, SimTransaction};
use perto::{Error, Freshness, Outage, Read, ReadOptions, Token};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::ring::{BOUND, CACHE, Member, Ring, ms, spawn, text};

const KEYS: u64 = 5;
const STEPS: usize = 250;
const SEEDS: u64 = 320;
/// In a key's history: from before the first transaction, or lost in a crash.
const GONE: u64 = 0;

#[test]
fn no_history_of_random_faults_shows_a_fresh_value_older_than_the_bound() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds: Vec<u64> = match (number("PERTO_SEED"), number("PERTO_SEEDS")) {
        (Some(seed), _) => vec![seed; 20],
        (None, count) => (1..=count.unwrap_or(SEEDS)).collect(),
    };
    let next = AtomicUsize::new(0);
    let (totals, failed) = (Mutex::new(Totals::default()), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match history(*seed) {
                        Ok(seen) => totals.lock().add(&seen),
                        Err(report) => {
                            next.store(seeds.len(), Ordering::Relaxed);
                            failed.lock().get_or_insert(report);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    assert!(failed.is_none(), "{}", failed.unwrap_or_default());
    let totals = totals.into_inner();
    if seeds.len() as u64 >= SEEDS {
        // Histories in which nothing happens would prove nothing.
        let enough =
            [totals.fresh, totals.local, totals.remote, totals.refused, totals.repairs, totals.crashes];
        assert!(enough.iter().all(|count| *count > 500), "{totals:?}");
    }
}

#[derive(Debug, Default)]
struct Totals {
    fresh: u64,
    unverified: u64,
    stale: u64,
    failed: u64,
    local: u64,
    remote: u64,
    refused: u64,
    repairs: u64,
    crashes: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.fresh += other.fresh;
        self.unverified += other.unverified;
        self.stale += other.stale;
        self.failed += other.failed;
        self.local += other.local;
        self.remote += other.remote;
        self.refused += other.refused;
        self.repairs += other.repairs;
        self.crashes += other.crashes;
    }
}

/// One history; or what happened in it, and the command that replays it.
fn history(seed: u64) -> Result<Totals, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let checker = Arc::new(Mutex::new(Checker::default()));
    let running = Arc::clone(&checker);
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(World::run(seed, running))));
    let mut checker = checker.lock();
    let ran =
        ran.map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panicked".to_owned()));
    // What was wrong first explains a panic later.
    let ran = checker.wrong.take().map_or(ran, Err);
    let mut totals = ran.map_err(|reason| {
        let happened = checker.happened[checker.happened.len().saturating_sub(150)..].join("\n");
        format!("{happened}\n{reason}\nto replay: PERTO_SEED={seed} cargo test --test coherence histories")
    })?;
    (totals.fresh, totals.unverified) = (checker.fresh, checker.unverified);
    (totals.stale, totals.failed) = (checker.stale, checker.failed);
    Ok(totals)
}

/// What every key was at each moment, and whether every answer fits.
#[derive(Default)]
struct Checker {
    began: Option<Instant>,
    /// By key: what it became when, by which transaction. A crash changes keys too: back.
    keys: HashMap<u64, Vec<(Instant, u64, Option<String>)>>,
    epochs: u64,
    happened: Vec<String>,
    wrong: Option<String>,
    fresh: u64,
    unverified: u64,
    stale: u64,
    failed: u64,
}

/// A read as its reader saw it begin.
struct Asked {
    who: usize,
    key: u64,
    began: Instant,
    /// The place in the key's history of a write that the answer must contain, and the epoch of that.
    at_least: Option<(usize, u64)>,
}

impl Checker {
    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let now = Instant::now() - self.began.unwrap();
        self.happened.push(format!("{:>6} {what}", now.as_millis()));
    }

    fn became(&mut self, key: u64, xid: u64, value: Option<String>) {
        self.keys.entry(key).or_default().push((Instant::now(), xid, value));
    }

    fn crashed(&mut self, lost: &[u64]) {
        self.epochs += 1;
        for timeline in self.keys.values_mut() {
            let kept = timeline.iter().rev().find(|(_, xid, _)| *xid != GONE && !lost.contains(xid)).cloned();
            let (_, xid, value) = kept.unwrap_or((Instant::now(), GONE, None));
            if timeline.last().is_some_and(|(_, last, _)| lost.contains(last)) {
                timeline.push((Instant::now(), xid, value));
            }
            // Their numbers will be used again.
            for (_, xid, _) in timeline.iter_mut().filter(|(_, xid, _)| lost.contains(xid)) {
                *xid = GONE;
            }
        }
    }

    fn latest(&self, key: u64) -> Option<String> {
        self.keys.get(&key).and_then(|timeline| timeline.last()).and_then(|(_, _, value)| value.clone())
    }

    fn judge(&mut self, asked: &Asked, read: &Read<String>) {
        let (value, now) = (text(read), Instant::now());
        let mut timeline = vec![(self.began.unwrap(), GONE, None)];
        timeline.extend(self.keys.get(&asked.key).cloned().unwrap_or_default());
        let end = |at: usize| timeline.get(at + 1).map(|next| next.0);
        let cutoff = match read.freshness {
            Freshness::Fresh => asked.began.checked_sub(BOUND),
            // No bound; but no value may come from a transaction that never committed.
            _ => None,
        };
        let fits = |at: usize| {
            timeline[at].2 == value
                && end(at).zip(cutoff).is_none_or(|(end, cutoff)| end >= cutoff)
                && asked.at_least.is_none_or(|(least, epochs)| epochs != self.epochs || at > least)
        };
        let right = (0..timeline.len()).any(fits);
        match read.freshness {
            Freshness::Fresh => self.fresh += 1,
            Freshness::Unverified { .. } => self.unverified += 1,
            _ => self.stale += 1,
        }
        let (who, key, tier, freshness) = (asked.who, asked.key, read.tier, read.freshness);
        let ago = (now - asked.began).as_millis();
        self.note(format_args!(
            "{who} read {key}: {value:?} from {tier:?}, {freshness:?}, asked {ago} ms ago"
        ));
        if !right && self.wrong.is_none() {
            let mut reason = format!("instance {who} served {value:?} for key {key}, which was:\n");
            for (at, xid, value) in &timeline {
                let at = (*at - self.began.unwrap()).as_millis();
                writeln!(reason, "  {at:>6} {value:?} by {xid}").unwrap();
            }
            self.note(format_args!("^^^ wrong"));
            self.wrong = Some(reason);
        }
    }
}

struct World {
    dice: Dice,
    ring: Ring,
    /// Instances that were shut down.
    retired: Vec<Member>,
    checker: Arc<Mutex<Checker>>,
    /// Open transactions, with what they have written.
    open: Vec<(SimTransaction, HashMap<u64, Option<String>>)>,
    readers: Vec<JoinHandle<()>>,
    /// The last write that was announced: its key, its token, its place in the key's history, the epochs by then.
    token: Option<(u64, Token, usize, u64)>,
    dump: Option<Dump>,
    values: u64,
    /// Reads that were answered, per instance; none where some reader went away or failed.
    answered: Arc<Mutex<Vec<Option<u64>>>>,
    totals: Totals,
}

impl World {
    async fn run(seed: u64, checker: Arc<Mutex<Checker>>) -> Totals {
        checker.lock().began = Some(Instant::now());
        let dice = Dice::new(seed);
        let ring = Ring { sim: Sim::new(seed), members: Vec::new() };
        let mut world = Self {
            dice,
            ring,
            retired: Vec::new(),
            checker,
            open: Vec::new(),
            readers: Vec::new(),
            token: None,
            dump: None,
            values: 0,
            answered: Arc::default(),
            totals: Totals::default(),
        };
        for _ in 0..3 {
            let member = world.member();
            member.perto.start().await.unwrap();
            world.ring.members.push(member);
            world.answered.lock().push(Some(0));
        }
        for _ in 0..STEPS {
            world.step().await;
            if world.checker.lock().wrong.is_some() {
                break;
            }
        }
        world.settle().await
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.checker.lock().note(what);
    }

    fn member(&mut self) -> Member {
        let outage = match self.dice.below(4) {
            0 => Outage::PassThrough,
            1 => Outage::Fail,
            _ => Outage::default(),
        };
        let ttl = if self.dice.chance(30) { Duration::from_secs(2) } else { Duration::from_mins(30) };
        Member::new(&self.ring.sim, |builder| builder, |cache| cache.outage(outage).ttl(ttl))
    }

    fn any(&mut self) -> usize {
        self.dice.index(self.ring.members.len())
    }

    async fn step(&mut self) {
        match self.dice.below(100) {
            0..45 => self.read(),
            45..70 => self.write(),
            70..84 => self.fault(),
            84..88 => self.loader(),
            88..92 => self.remote(),
            92 => self.crash(),
            93 => {
                let (who, by) = (self.any(), self.dice.below(3_000));
                self.note(format_args!("{who}'s clock jumps by {by} ms"));
                self.ring.members[who].node.clock.jump(Duration::from_millis(by));
            }
            94 => {
                self.note(format_args!("the log is trimmed"));
                self.ring.sim.postgres.trim();
            }
            95 => self.restart().await,
            96 => self.invalidate(),
            _ => {
                let behind = self.dice.index(4);
                self.ring.sim.postgres.replay(behind);
            }
        }
        let pause = match self.dice.below(10) {
            0..3 => 0,
            3..8 => self.dice.below(20),
            8 => self.dice.below(150),
            _ => self.dice.below(600),
        };
        tokio::time::sleep(Duration::from_micros(pause * 1_000 + self.dice.below(1_000))).await;
    }

    fn read(&mut self) {
        let who = self.any();
        let users = self.ring.members[who].users.clone();
        let (key, others) = (self.dice.below(KEYS), self.dice.below(KEYS));
        let many = self.dice.chance(15);
        let token = self.token.filter(|_| self.dice.chance(10));
        let patience = if self.dice.chance(15) { self.dice.below(60) } else { 60_000 };
        let (checker, answered) = (Arc::clone(&self.checker), Arc::clone(&self.answered));
        let reading = async move {
            let began = Instant::now();
            let keys: Vec<u64> = match (many, token) {
                (_, Some((key, ..))) => vec![key],
                (true, None) => vec![key, others, (others + 1) % KEYS],
                (false, None) => vec![key],
            };
            let reading = async {
                match (&keys[..], token) {
                    (_, Some((_, token, ..))) => {
                        users.get_many_with(&keys, ReadOptions::at_least(token)).await
                    }
                    ([key], None) => users.get(key).await.map(|read| vec![read]),
                    _ => users.get_many(&keys).await,
                }
            };
            let answer = tokio::time::timeout(Duration::from_millis(patience), reading).await;
            let mut checker = checker.lock();
            let mut answered = answered.lock();
            match answer {
                Ok(Ok(reads)) => {
                    answered[who] = answered[who].map(|count| count + reads.len() as u64);
                    for (key, read) in keys.into_iter().zip(&reads) {
                        let at_least = token.map(|(_, _, at, epochs)| (at, epochs));
                        checker.judge(&Asked { who, key, began, at_least }, read);
                    }
                }
                Ok(Err(error)) => {
                    answered[who] = None;
                    checker.failed += 1;
                    checker.note(format_args!("{who} read {keys:?}: {error}"));
                    if matches!(error, Error::LoadPanicked { .. }) {
                        checker.wrong = Some(error.to_string());
                    }
                }
                Err(_gone) => answered[who] = None,
            }
        };
        self.readers.push(spawn(reading));
    }

    fn write(&mut self) {
        let all = self.open.len();
        let at = match self.dice.below(10) {
            // Some transactions get their number long before they write here, or write elsewhere alone.
            0..3 if all < 4 => {
                let mut transaction = self.ring.sim.postgres.begin();
                transaction.xid();
                self.open.push((transaction, HashMap::new()));
                self.open.len() - 1
            }
            _ if all == 0 => return,
            _ => self.dice.index(all),
        };
        match self.dice.below(10) {
            0..5 => self.put(at),
            5 => {
                let (mut transaction, _) = self.open.swap_remove(at);
                self.note(format_args!("{} rolls back", transaction.xid()));
            }
            _ => {
                self.put(at);
                self.commit(at);
            }
        }
    }

    fn put(&mut self, at: usize) {
        let key = self.dice.below(KEYS);
        self.values += 1;
        let value = (!self.dice.chance(15)).then(|| format!("v{}", self.values));
        let (transaction, written) = &mut self.open[at];
        let put = match &value {
            // The log has a row for the whole cache, and none for the key.
            Some(value) if self.dice.chance(8) => transaction.bulk(CACHE, &[(key, value)]),
            Some(value) => transaction.put(CACHE, &key, value),
            None => transaction.remove(CACHE, &key),
        };
        if put.is_ok() {
            written.insert(key, value);
        }
    }

    fn commit(&mut self, at: usize) {
        let (transaction, values) = self.open.swap_remove(at);
        // A crash has ended it.
        let Ok(written) = transaction.commit() else { return };
        {
            let mut checker = self.checker.lock();
            checker.note(format_args!("{} commits {values:?}", written.xid));
            for (key, value) in &values {
                checker.became(*key, written.xid, value.clone());
                let place = checker.keys[key].len() - 1;
                self.token = Some((*key, written.token, place, checker.epochs));
            }
        }
        if self.dice.chance(60) {
            let who = self.any();
            let perto = self.ring.members[who].perto.clone();
            let late = if self.dice.chance(30) { self.dice.below(400) } else { 0 };
            self.readers.push(spawn(async move {
                ms(late).await;
                perto.announce(written.token, &written.changes).await;
            }));
        }
    }

    fn fault(&mut self) {
        let who = self.any();
        let node = self.ring.members[who].node.clone();
        let (name, faults): (_, &Faults) = match self.dice.below(3) {
            0 => ("log", &node.log.faults),
            1 => ("remote", &node.remote.faults),
            _ => ("bus", &node.bus.faults),
        };
        let most = Duration::from_millis(1 + self.dice.below(700));
        let what = match self.dice.below(9) {
            0 => {
                faults.cut();
                "is cut"
            }
            1 => {
                faults.hang();
                "hangs"
            }
            2 => {
                faults.lose(self.dice.below(101));
                "loses"
            }
            3 => {
                faults.double(50);
                "doubles"
            }
            4 => {
                faults.delay(Duration::ZERO, most);
                "is slow"
            }
            5 => {
                node.heal();
                "heals with the rest"
            }
            _ => {
                faults.heal();
                "heals"
            }
        };
        self.note(format_args!("{who}'s {name} {what}"));
    }

    fn loader(&mut self) {
        let who = self.any();
        let loader = self.ring.members[who].loader.clone();
        let most = Duration::from_millis(self.dice.below(400));
        match self.dice.below(8) {
            0 => loader.after().close(),
            1 => loader.before().close(),
            2 => loader.faults().cut(),
            3 => loader.faults().delay(Duration::ZERO, most),
            4 => loader.use_replica(self.dice.chance(50)),
            5 => loader.use_primary(),
            _ => {
                loader.after().open();
                loader.before().open();
                loader.faults().heal();
            }
        }
    }

    fn remote(&mut self) {
        let remote = &self.ring.sim.remote;
        let what = match (self.dice.below(5), &self.dump) {
            (0, _) => {
                remote.flush();
                "is flushed"
            }
            (1, _) => {
                remote.scramble(&mut self.dice);
                "is scrambled"
            }
            (2 | 3, Some(dump)) => {
                remote.restore(dump);
                "goes back"
            }
            _ => {
                self.dump = Some(remote.dump());
                "is dumped"
            }
        };
        self.note(format_args!("L2 {what}"));
    }

    fn crash(&mut self) {
        let losing = self.dice.index(3);
        let lost = self.ring.sim.postgres.crash(losing);
        self.totals.crashes += 1;
        let mut checker = self.checker.lock();
        checker.note(format_args!("Postgres crashes, losing {lost:?}"));
        checker.crashed(&lost);
    }

    /// A process ends and another takes its place.
    async fn restart(&mut self) {
        let who = self.any();
        self.note(format_args!("{who} restarts"));
        let member = self.member();
        if member.perto.start().await.is_ok() {
            let old = std::mem::replace(&mut self.ring.members[who], member);
            self.answered.lock()[who] = None;
            old.perto.shutdown().await;
            self.retired.push(old);
        }
    }

    fn invalidate(&mut self) {
        let (who, key) = (self.any(), self.dice.below(KEYS));
        let users = self.ring.members[who].users.clone();
        self.readers.push(spawn(async move { drop(users.invalidate(&key).await) }));
    }

    /// What must hold of an instance that was shut down.
    fn rest(&mut self, member: &Member) {
        let stats = member.users.stats();
        self.totals.local += stats.l1_hits;
        self.totals.remote += stats.l2_hits;
        self.totals.refused += stats.l2_refused;
        self.totals.repairs += member.perto.stats().repairs;
        assert_eq!(member.perto.tasks(), 0, "a task outlived the shutdown");
        assert_eq!(member.users.flights(), 0, "a flight was leaked");
    }

    /// Heals everything; then every instance must show the truth, and come to rest.
    async fn settle(mut self) -> Totals {
        self.note(format_args!("all heals"));
        self.open.clear();
        for member in &self.ring.members {
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
                let read = member.users.get(&key).await.unwrap();
                let truth = self.checker.lock().latest(key);
                assert_eq!(
                    (text(&read), read.freshness),
                    (truth, Freshness::Fresh),
                    "instance {who}, key {key}, at rest"
                );
            }
            let stats = member.users.stats();
            let counted = stats.l1_hits + stats.l2_hits + stats.load_hits;
            if let Some(answered) = self.answered.lock()[who] {
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
        self.totals
    }
}
