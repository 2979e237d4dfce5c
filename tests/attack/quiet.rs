//! The quiet tenant: a few reads and writes a second of each instance, all the time, each answer written down.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use perto::history::{self, History};
use perto::{Freshness, StaleCause, Tier};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::client::{Answer, Client, Who};

/// Contacts of company 1, by the seed.
pub(crate) const HOT: [u64; 20] =
    [20, 40, 60, 80, 100, 120, 140, 160, 180, 200, 220, 240, 260, 280, 300, 320, 340, 360, 380, 400];
pub(crate) const BOUND: Duration = Duration::from_secs(1);
/// Of each reader; there are two an instance.
const BETWEEN_READS: Duration = Duration::from_millis(20);
/// Of all writes. Each is of another contact.
const BETWEEN_WRITES: Duration = Duration::from_millis(200);
/// Complaints of one stretch that are shown.
const SHOWN: usize = 3;

/// A running tenant.
pub(crate) struct Quiet {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    pub(crate) who: Who,
    instances: Vec<String>,
    /// Whether another instance is asked where one does not listen.
    balanced: bool,
}

struct Shared {
    began: Instant,
    writes: Mutex<Vec<Write>>,
    reads: Mutex<Vec<Seen>>,
    complaints: Mutex<Vec<String>>,
}

#[derive(Debug, Clone, Copy)]
struct Write {
    key: u64,
    version: u64,
    begun: Duration,
    acked: Option<Duration>,
}

/// What one request came to.
#[derive(Debug, Clone, Copy)]
struct Seen {
    begun: Duration,
    ended: Duration,
    /// `None`: it failed.
    answer: Option<history::Answer>,
}

/// What the tenant saw of a stretch of time.
#[derive(Debug, Default)]
pub(crate) struct Sight {
    pub(crate) reads: usize,
    pub(crate) failed: usize,
    pub(crate) flagged: u64,
    pub(crate) from_l1: usize,
    pub(crate) violations: Vec<String>,
    pub(crate) worst: Duration,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) complaints: Vec<String>,
}

impl Quiet {
    pub(crate) async fn begin(instances: &[String], key: &str, balanced: bool) -> Self {
        let who = Who { from: Ipv4Addr::LOCALHOST, key: Some(key.to_owned()) };
        let shared = Arc::new(Shared {
            began: Instant::now(),
            writes: Mutex::default(),
            reads: Mutex::default(),
            complaints: Mutex::default(),
        });
        let mut quiet = Self {
            shared: Arc::clone(&shared),
            tasks: JoinSet::new(),
            who,
            instances: instances.to_vec(),
            balanced,
        };
        let mut writer = Writer { shared, versions: HashMap::new(), clients: quiet.clients() };
        // From now on each value is one that was written here.
        for (at, key) in HOT.into_iter().enumerate() {
            writer.write(key, at).await;
        }
        for reader in 0..2 {
            for (at, client) in quiet.clients().into_iter().enumerate() {
                quiet.tasks.spawn(read(Arc::clone(&quiet.shared), client, at, reader * 7));
            }
        }
        quiet.tasks.spawn(writer.run());
        quiet
    }

    fn clients(&self) -> Vec<Client> {
        let of = |at: usize| {
            let mut to = self.instances.clone();
            to.rotate_left(at);
            to.truncate(if self.balanced { to.len() } else { 1 });
            Client::of_several(to, &self.who)
        };
        (0..self.instances.len()).map(of).collect()
    }

    /// What it has seen since this was asked last.
    pub(crate) fn sight(&self) -> Sight {
        let reads = std::mem::take(&mut *self.shared.reads.lock());
        let mut complaints = std::mem::take(&mut *self.shared.complaints.lock());
        complaints.truncate(SHOWN);
        let mut history = History::new();
        for write in self.shared.writes.lock().iter() {
            history.wrote(write.key, Some(write.version), write.begun, write.acked);
        }
        let mut judge = history.judge(BOUND);
        for seen in &reads {
            match &seen.answer {
                Some(answer) => drop(judge.read(answer)),
                None => judge.failed(seen.begun, seen.ended),
            }
        }
        let report = judge.report();
        let mut took: Vec<Duration> = reads.iter().map(|seen| seen.ended - seen.begun).collect();
        took.sort_unstable();
        let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
        let of_l1 = |seen: &&Seen| seen.answer.is_some_and(|answer| answer.tier == Tier::Local);
        Sight {
            reads: reads.len(),
            failed: reads.iter().filter(|seen| seen.answer.is_none()).count(),
            flagged: report.all.flagged,
            from_l1: reads.iter().filter(of_l1).count(),
            violations: report.violations.iter().map(ToString::to_string).collect(),
            worst: report.all.worst,
            p50: at(50),
            p99: at(99),
            complaints,
        }
    }

    /// How long it takes until every instance answers each hot contact from L1, fresh. `None`: longer than the limit.
    pub(crate) async fn hot_again(&self, limit: Duration) -> Option<Duration> {
        let (began, mut clients) = (Instant::now(), self.clients());
        for client in &mut clients {
            for key in HOT {
                // The writer may be at this one just now: then it is asked again.
                while !is_hot(client, key).await {
                    if began.elapsed() > limit {
                        return None;
                    }
                }
            }
        }
        Some(began.elapsed())
    }
}

async fn is_hot(client: &mut Client, key: u64) -> bool {
    let Ok(answer) = client.get(&path(key)).await else { return false };
    answer.header("perto-tier") == Some("l1") && answer.header("perto-freshness") == Some("fresh")
}

fn path(key: u64) -> String {
    format!("/api/v1/companies/1/contacts/{key}")
}

async fn read(shared: Arc<Shared>, mut client: Client, instance: usize, offset: usize) {
    let mut ticks = interval(BETWEEN_READS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for at in offset.. {
        ticks.tick().await;
        shared.read(&mut client, instance, HOT[at % HOT.len()], None).await;
    }
}

struct Writer {
    shared: Arc<Shared>,
    versions: HashMap<u64, u64>,
    clients: Vec<Client>,
}

impl Writer {
    async fn run(mut self) {
        let mut ticks = interval(BETWEEN_WRITES);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for at in 0_usize.. {
            ticks.tick().await;
            let key = HOT[at % HOT.len()];
            let Some((version, token)) = self.write(key, at).await else { continue };
            // Elsewhere, by the token.
            let other = (at + 1) % self.clients.len();
            let token = Some((version, token));
            self.shared.read(&mut self.clients[other], other, key, token).await;
        }
    }

    /// Returns the version and its token.
    async fn write(&mut self, key: u64, at: usize) -> Option<(u64, String)> {
        let version = self.versions.entry(key).or_default();
        *version += 1;
        let version = *version;
        let body = format!("{{\"name\":\"v{version}\"}}");
        let client = at % self.clients.len();
        let begun = self.shared.began.elapsed();
        let answered = self.clients[client].send("PATCH", &path(key), "", body.as_bytes()).await;
        let ended = self.shared.began.elapsed();
        let token = match &answered {
            Ok(answer) if answer.status == 200 => answer.header("perto-token").map(str::to_owned),
            _ => None,
        };
        let acked = token.is_some().then_some(ended);
        self.shared.writes.lock().push(Write { key, version, begun, acked });
        if token.is_none() {
            self.shared.complain("a write", &answered);
            self.shared.reads.lock().push(Seen { begun, ended, answer: None });
        }
        token.map(|token| (version, token))
    }
}

impl Shared {
    async fn read(&self, client: &mut Client, instance: usize, key: u64, token: Option<(u64, String)>) {
        let headers = token.as_ref().map(|(_, token)| format!("perto-at-least: {token}\r\n"));
        let begun = self.began.elapsed();
        let answered = client.send("GET", &path(key), &headers.unwrap_or_default(), b"").await;
        let ended = self.began.elapsed();
        let answer = answered.as_ref().ok().and_then(|answer| understood(answer, key, begun, ended));
        let answer = answer.map(|answer| history::Answer {
            instance: u32::try_from(instance).unwrap_or_default(),
            // Versions begin with 1, as places in the history of a key do.
            at_least: token.and_then(|(version, _)| usize::try_from(version).ok()),
            ..answer
        });
        if answer.is_none() {
            self.complain("a read", &answered);
        }
        self.reads.lock().push(Seen { begun, ended, answer });
    }

    fn complain(&self, what: &str, answered: &std::io::Result<Answer>) {
        let why = match answered {
            Ok(answer) => format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)),
            Err(error) => error.to_string(),
        };
        self.complaints.lock().push(format!("{what}: {why}"));
    }
}

fn understood(answer: &Answer, key: u64, begun: Duration, ended: Duration) -> Option<history::Answer> {
    let tier = match answer.header("perto-tier")? {
        "l1" => Tier::Local,
        "l2" => Tier::Remote,
        _ => Tier::Load,
    };
    let freshness = match answer.header("perto-freshness")? {
        "fresh" => Freshness::Fresh,
        "stale" => Freshness::Stale(StaleCause::Replica),
        _ => Freshness::Unverified { since: Duration::ZERO },
    };
    let body: serde_json::Value =
        serde_json::from_slice(&answer.body).ok().filter(|_| answer.status == 200)?;
    let version = body["name"].as_str()?.strip_prefix('v')?.parse().ok()?;
    Some(history::Answer::new(key, Some(version), freshness, tier, begun, ended))
}
