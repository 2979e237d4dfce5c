//! `perto-chat load`: requests for the demo data of `perto-chat seed`, at a bounded rate and for a bounded time, and how they were
//! answered. For dashboards to have something to show.
//!
//! It is no benchmark (`benches/` has those): each request makes a connection of its own, and when answers are late, fewer are
//! sent. Some keys are asked for much more often than others, as in life.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use perto::Histogram;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::task::TaskTracker;

use super::http::{Request, ask, resolve};
use super::table;

/// Requests under way at once.
const CLIENTS: u32 = 16;

/// See the command's help.
#[derive(Debug, Clone, Args)]
pub(crate) struct LoadGenerator {
    /// The service: an instance, or what balances several
    #[arg(long, default_value = "http://127.0.0.1:8080", value_name = "URL")]
    url: String,
    /// Requests a second, at most
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    /// For how long
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Of a hundred requests, so many write a message
    #[arg(long, default_value_t = 2, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    writes: u32,
    /// Companies that were seeded
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    companies: u32,
    /// Users that were seeded
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    users: u32,
    /// Contacts that were seeded
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    contacts: u32,
    /// Chats that were seeded: one for twenty messages
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    chats: u32,
    /// The admin's key, where the service has one
    #[arg(long, env = "PERTO_ADMIN_KEY", hide_env_values = true, value_name = "KEY")]
    admin_key: Option<String>,
}

/// How one kind of request was answered.
#[derive(Debug, Default)]
struct Answered {
    times: Histogram,
    /// By L1, by L2, by a load.
    tiers: [AtomicU64; 3],
    failed: AtomicU64,
}

const KINDS: [&str; 5] = ["messages", "contact", "user", "company", "new message"];
const TIERS: [&str; 3] = ["l1", "l2", "load"];

impl LoadGenerator {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let at = resolve(&self.url).await.with_context(|| format!("--url: {}", self.url))?;
        let (clients, this) = (self.rate.min(CLIENTS), Arc::new(self));
        let answered: Arc<[Answered; 5]> = Arc::default();
        let (tasks, began) = (TaskTracker::new(), Instant::now());
        for client in 0..clients {
            let (this, answered) = (Arc::clone(&this), Arc::clone(&answered));
            tasks.spawn(async move { this.drive(at, client, clients, began, &answered).await });
        }
        tasks.close();
        tasks.wait().await;
        let rows: Vec<_> = KINDS.iter().zip(&*answered).map(|(kind, answered)| answered.row(kind)).collect();
        let head = ["REQUEST", "ANSWERED", "P50", "P99", "MAX", "L1", "L2", "LOAD", "FAILED"];
        table(&head, &rows).iter().for_each(|line| super::say(line));
        if answered.iter().all(|answered| answered.times.count() == 0) {
            bail!("--url: {} answered nothing", this.url);
        }
        Ok(())
    }

    /// One client after another begins, so that their requests don't come in bursts.
    async fn drive(
        &self,
        at: SocketAddr,
        client: u32,
        clients: u32,
        began: Instant,
        answered: &[Answered; 5],
    ) {
        let every = Duration::from_secs(1) * clients / self.rate;
        let mut ticks = interval_at(began + every * client / clients, every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = began + Duration::from_secs(self.seconds.into());
        let mut dice = Dice(u64::from(client) + 1);
        while ticks.tick().await < end {
            let (kind, path, body) = self.request(&mut dice);
            let key = self.admin_key.as_deref().filter(|key| !key.is_empty());
            let asked = Instant::now();
            let request = Request { path: &path, key, body: body.as_deref(), at: Some(at) };
            let answer = ask(&self.url, &request).await;
            let Some(answer) = answer.ok().filter(|answer| (200..300).contains(&answer.status)) else {
                answered[kind].failed.fetch_add(1, Relaxed);
                continue;
            };
            answered[kind].times.record(asked.elapsed());
            let tier = answer.header("perto-tier").and_then(|tier| TIERS.iter().position(|of| *of == tier));
            if let Some(tier) = tier {
                answered[kind].tiers[tier].fetch_add(1, Relaxed);
            }
        }
    }

    fn request(&self, dice: &mut Dice) -> (usize, String, Option<String>) {
        let chat = |dice: &mut Dice| {
            format!("/api/v1/chats/00000000-0000-4000-8000-{:012x}/messages", dice.skewed(self.chats))
        };
        if dice.roll() * 100.0 < f64::from(self.writes) {
            let body = r#"{"sender": "user", "body": "written by perto-chat load"}"#;
            return (4, chat(dice), Some(body.to_owned()));
        }
        match dice.roll() {
            ..0.6 => (0, format!("{}?limit=20", chat(dice)), None),
            ..0.8 => {
                let contact = dice.skewed(self.contacts);
                // As `perto-chat seed` spreads them.
                let company = contact % self.companies + 1;
                (1, format!("/api/v1/companies/{company}/contacts/{contact}"), None)
            }
            ..0.9 => (2, format!("/api/v1/users/{}", dice.skewed(self.users)), None),
            _ => (3, format!("/api/v1/companies/{}", dice.skewed(self.companies)), None),
        }
    }
}

impl Answered {
    fn row(&self, kind: &str) -> Vec<String> {
        let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1_000.0);
        let times = [self.times.quantile(0.5), self.times.quantile(0.99), self.times.max()].map(ms);
        let counts = self.tiers.iter().chain([&self.failed]).map(|count| count.load(Relaxed).to_string());
        [kind.to_owned(), self.times.count().to_string()].into_iter().chain(times).chain(counts).collect()
    }
}

/// Numbers that are the same each time: splitmix64.
struct Dice(u64);

impl Dice {
    /// From 0 to 1.
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        f64::from(u32::try_from((z ^ (z >> 31)) >> 32).unwrap_or_default()) / f64::from(u32::MAX)
    }

    /// From 1 to `most`; half of them are in the first thirty-second part.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and most")]
    fn skewed(&mut self, most: u32) -> u32 {
        ((self.roll().powi(5) * f64::from(most)) as u32).min(most - 1) + 1
    }
}
