//! What the log says against a value in L2: of its own key, and of each key that it depends on.

use anyhow::Context;
use perto::postgres::Watched;
use perto::{Dependency, RemoteValue};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use super::super::columns::table;
use crate::shown;

/// What an instance that has read all of the log would say of a value.
#[derive(Default)]
pub(super) struct Judged {
    /// The newest transaction on its own key that it misses.
    own: Option<u64>,
    depends: Vec<On>,
}

/// A key that it depends on.
struct On {
    on: Dependency,
    misses: Option<u64>,
    /// Whether SQL writes invalidate it at all.
    watched: bool,
}

/// Judges a value by all of the log that is there. Its newest rows would not do: a transaction that commits late has a low number.
pub(super) async fn value(
    (cache, key): (&str, &str),
    value: &RemoteValue,
    watched: &[Watched],
    schema: &str,
    connection: &mut PgConnection,
) -> anyhow::Result<Judged> {
    let on = value.depends.iter();
    let (caches, keys): (Vec<&str>, Vec<&str>) =
        std::iter::once((cache, key)).chain(on.map(|on| (on.cache(), on.key()))).unzip();
    let running: Vec<String> = value.stamp.running().iter().map(u64::to_string).collect();
    let sql = format!(
        "select (select i.xid::text from {schema}.invalidation i \
           where i.cache = s.cache and (i.keys is null or s.key = any(i.keys)) \
             and (i.xid >= $3::text::xid8 or i.xid = any($4::text[]::xid8[])) order by i.xid desc limit 1) \
         from unnest($1::text[], $2::text[]) with ordinality s(cache, key, at) order by s.at"
    );
    let missed: Vec<Option<String>> = sqlx::query_scalar(AssertSqlSafe(sql))
        .persistent(false)
        .bind(caches)
        .bind(keys)
        .bind(value.stamp.xmax().to_string())
        .bind(running)
        .fetch_all(connection)
        .await
        .context("DATABASE_URL: the log can't be read")?;
    let mut missed = missed.into_iter().map(|xid| xid.and_then(|xid| xid.parse().ok()));
    let own = missed.next().flatten();
    let is_watched = |on: &Dependency| watched.iter().any(|watched| watched.watch.cache == on.cache());
    let depends = value.depends.iter().zip(missed);
    let depends = depends.map(|(on, misses)| On { on: on.clone(), misses, watched: is_watched(on) });
    Ok(Judged { own, depends: depends.collect() })
}

fn misses(xid: u64) -> String {
    format!("misses transaction {xid}")
}

impl Judged {
    /// Why it is not served. The first of the keys that it depends on, of those that refuse it.
    pub(super) fn why_not(&self) -> Option<String> {
        let of = |on: &On| Some(shown::of(&on.on, &misses(on.misses?)));
        self.own.map(misses).or_else(|| self.depends.iter().find_map(of))
    }

    pub(super) fn put_into(&self, shown: &mut Value) {
        let text = |xid: &Option<u64>| xid.map(|xid| xid.to_string());
        shown["misses"] = text(&self.own).into();
        let depends = self.depends.iter().map(|On { on, misses, watched }| {
            json!({ "cache": on.cache(), "key": on.key(), "misses": text(misses), "watched": watched })
        });
        shown["depends"] = depends.collect();
    }
}

/// What values depend on: of the one in L2, and of those that instances hold. Nothing where nothing depends on anything.
pub(super) fn lines(
    judged: &Judged,
    place: &str,
    instances: &[(String, Result<Value, String>)],
) -> Vec<String> {
    let row = |tier: &str, place: &str, refused: Option<String>, on: String| {
        let served = if refused.is_none() { "yes" } else { "no" };
        let why = refused.map(|why| format!(": {why}")).unwrap_or_default();
        vec![tier.to_owned(), place.to_owned(), served.to_owned(), format!("{on}{why}")]
    };
    let of_remote = |On { on, misses: missed, watched }: &On| {
        let unwatched = if *watched { "" } else { ", for which no table is watched" };
        row("L2", place, missed.map(misses), format!("{} {}{unwatched}", on.cache(), on.key()))
    };
    let mut rows: Vec<Vec<String>> = judged.depends.iter().map(of_remote).collect();
    for seen in instances.iter().filter_map(|(_, seen)| seen.as_ref().ok()) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let place = text(&seen["instance"]);
        for on in seen["l1"]["depends"].as_array().into_iter().flatten() {
            let refused = on["refused"].as_str().map(str::to_owned);
            rows.push(row("L1", &place, refused, format!("{} {}", text(&on["cache"]), text(&on["key"]))));
        }
    }
    if rows.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![String::new()];
    lines.extend(table(&["TIER", "WHERE", "ALLOWS", "WHAT IT DEPENDS ON, AND WHY NOT"], &rows));
    lines.push(String::new());
    lines
}
