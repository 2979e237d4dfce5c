//! `perto switch`: a tier of a cache, or of all, off, read-only or on again, on every instance.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use chrono::{DateTime, Utc};
use clap::Args;
use perto::postgres::{self, Watched};
use perto::{Switching, TierMode};
use serde_json::json;

use super::columns::table;
use super::connect::Database;
use super::migrate;
use crate::Product;

/// See [`perto::Perto::switch`].
#[derive(Debug, Args)]
pub struct Switch {
    /// The cache, or '*' for all of them. None: shows what is switched
    #[arg(requires = "tier")]
    cache: Option<String>,
    /// l1: the memory of each process. l2: Redis
    #[arg(requires = "mode")]
    tier: Option<String>,
    /// off: nothing is served from it, nothing comes. read-only: nothing comes. on
    mode: Option<String>,
    /// Why, for whoever finds it
    #[arg(long, value_name = "TEXT", requires = "mode")]
    reason: Option<String>,
    /// End it by itself after so long, like 30m
    #[arg(long = "for", value_name = "TIME", value_parser = super::duration, requires = "mode")]
    lasts: Option<Duration>,
    /// Who does it. Else the role of the database
    #[arg(long, env = "USER", hide_env_values = true, value_name = "NAME")]
    by: Option<String>,
    /// Of a cache for which no table is watched, as one whose values are computed
    #[arg(long, requires = "mode")]
    unwatched: bool,
    /// The schema that holds the log
    #[arg(long, default_value = "perto")]
    schema: String,
    /// For programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: Database,
}

impl Switch {
    pub(crate) async fn run(self, product: Option<Product>) -> anyhow::Result<()> {
        let switching = match (&self.cache, &self.tier, &self.mode) {
            (Some(cache), Some(tier), Some(mode)) => Some(Switching::parse(cache, tier, mode)?),
            _ => None,
        };
        // Before it stands in any SQL.
        postgres::log(self.database.url()?, &self.schema)?;
        let mut connection = self.database.connect().await?;
        migrate::needs_log(&mut connection, &self.schema, product).await?;
        let before = postgres::switches(&mut connection, &self.schema).await?;
        let Some(switching) = switching else {
            self.show(&before);
            return Ok(());
        };
        let switching = self.completed(switching);
        if let Some(cache) = switching.cache().filter(|_| !self.unwatched) {
            let is_switched = before.iter().any(|switch| switch.cache.as_deref() == Some(cache));
            let watched = postgres::watched(&mut connection, &self.schema).await?;
            if !is_switched {
                is_known(cache, &watched)?;
            }
        }
        postgres::switch(&mut connection, &self.schema, &switching).await?;
        let after = postgres::switches(&mut connection, &self.schema).await?;
        if self.json {
            self.show(&after);
        } else {
            let program = product.map_or("perto", |product| product.program);
            said(&switching, &before, &after, program).iter().for_each(|line| super::say(line));
        }
        Ok(())
    }

    fn completed(&self, mut switching: Switching) -> Switching {
        if let Some(reason) = &self.reason {
            switching = switching.because(reason);
        }
        if let Some(by) = &self.by {
            switching = switching.by(by);
        }
        match self.lasts {
            Some(lasts) => switching.lasting(lasts),
            None => switching,
        }
    }

    fn show(&self, switches: &[perto::Switch]) {
        if self.json {
            let all: Vec<_> = switches.iter().map(crate::shown::switch).collect();
            return super::say(&json!({ "switches": all }).to_string());
        }
        if switches.is_empty() {
            return super::say("Nothing is switched: all tiers of all caches are on.");
        }
        let row = |switch: &perto::Switch| {
            vec![
                switch.cache.clone().unwrap_or_else(|| "*".to_owned()),
                switch.tier.to_string(),
                switch.mode.to_string(),
                time(switch.since),
                switch.until.map_or_else(|| "-".to_owned(), time),
                switch.by.clone(),
                switch.reason.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = switches.iter().map(row).collect();
        let head = ["CACHE", "TIER", "IS", "SINCE (UTC)", "UNTIL (UTC)", "BY", "REASON"];
        table(&head, &rows).iter().for_each(|line| super::say(line));
    }
}

/// # Errors
/// Where nothing is watched for such a cache: it would be a slip of the pen, at three in the morning.
fn is_known(cache: &str, watched: &[Watched]) -> anyhow::Result<()> {
    let caches: BTreeSet<&str> = watched.iter().map(|watched| watched.watch.cache.as_str()).collect();
    if caches.contains(cache) {
        return Ok(());
    }
    let caches = match caches.is_empty() {
        true => "none".to_owned(),
        false => caches.into_iter().collect::<Vec<_>>().join(", "),
    };
    bail!(
        "CACHE: nothing is watched for a cache {cache:?}; watched are: {caches}. Of a cache without tables say --unwatched"
    )
}

/// What it does, and what still stands.
fn said(
    switching: &Switching,
    before: &[perto::Switch],
    after: &[perto::Switch],
    program: &str,
) -> Vec<String> {
    let is_it = |switch: &&perto::Switch| {
        switch.cache.as_deref() == switching.cache() && switch.tier == switching.tier()
    };
    let tier = switching.tier();
    let of = switching.cache().map_or_else(|| "of all caches".to_owned(), |cache| format!("of {cache}"));
    let name = switching.cache().unwrap_or("'*'");
    let mut lines = Vec::new();
    match (switching.mode(), before.iter().find(is_it)) {
        (TierMode::On, None) => lines.push(format!("{tier} {of} was not switched: nothing to do")),
        (TierMode::On, Some(_)) => {
            lines
                .push(format!("{tier} {of} is on again: every instance obeys with its next poll of the log"));
        }
        (mode, _) => {
            lines.push(format!("{tier} {of} is {mode}: every instance obeys with its next poll of the log"));
            let until = after.iter().find(is_it).and_then(|switch| switch.until);
            lines.push(match until {
                Some(until) => {
                    format!(
                        "It ends by itself at {} UTC, or by: {program} switch {name} {tier} on",
                        time(until)
                    )
                }
                None => format!("It stands until somebody ends it: {program} switch {name} {tier} on"),
            });
        }
    }
    let concerns = |switch: &&perto::Switch| {
        let same = switching.cache().is_none() || switch.cache.is_none();
        same && !is_it(switch) && switch.tier == switching.tier()
    };
    lines.extend(after.iter().filter(concerns).map(|other| {
        let of = other
            .cache
            .as_deref()
            .map_or_else(|| "all caches".to_owned(), |cache| format!("the cache {cache}"));
        format!("Besides, {tier} of {of} is {}: what is stronger counts", other.mode)
    }));
    lines
}

fn time(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).format("%Y-%m-%d %H:%M:%S").to_string()
}
