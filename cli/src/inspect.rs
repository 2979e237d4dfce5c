//! `perto inspect CACHE KEY`: what the log, L2 and each instance know of one key, and who would serve what.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use perto::postgres::Watched;
use perto::redis::Address;
use perto::{Clock, InRemote, MAX_KEY_BYTES, Snapshot, SystemClock};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};

use super::columns::{bytes, table, time, wrapped};
use super::connect::{Database, LIMIT, MOST, check_redis, host_and_port};
use super::{http, migrate};
use crate::Product;
use crate::shown::{hash, in_remote, ms};
use judged::Judged;

mod judged;

/// Newest rows of the log that are shown.
const MAX_ROWS: usize = 10;

/// Calls of `SCAN`, each of about a thousand names, to find the apps that a cache is cached for.
const MOST_SCANS: usize = 100;

/// Why nothing is known of what was not found.
const TOO_MANY: &str =
    "Redis has too many names to look at all: name an --instance, or --app and --value-version N.TYPE";

/// See the command's help.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The cache or topic, or a table that is watched for one
    cache: String,
    /// The key's text
    key: String,
    /// An instance of the service to ask, by its URL; may be repeated
    #[arg(long = "instance", value_name = "URL")]
    instances: Vec<String>,
    /// The admin's key, where the instances have one
    #[arg(long, env = "PERTO_ADMIN_KEY", hide_env_values = true, value_name = "KEY")]
    admin_key: Option<String>,
    /// The app whose keys to look for in Redis. Default: the one for which Redis has the cache, where there is one
    #[arg(long)]
    app: Option<String>,
    /// The values' version, or it and their type's fingerprint, as in `1.89abcdef`. Default: whichever Redis has
    #[arg(long, value_name = "N[.TYPE]")]
    value_version: Option<String>,
    /// The schema that holds the log
    #[arg(long, default_value = "perto")]
    schema: String,
    /// For programs
    #[arg(long)]
    json: bool,
    /// URL of Redis or Valkey
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    redis_url: Option<String>,
    #[command(flatten)]
    database: Database,
}

/// What the log says of a key.
struct Log {
    now: Snapshot,
    epoch: Option<u64>,
    /// Rows below are gone.
    horizon: Snapshot,
    /// The newest first.
    rows: Vec<Row>,
    /// What is switched of the cache.
    switches: Vec<perto::Switch>,
    /// How long ago an instance looked after the log. What none of them has seen is newer.
    looked_after: Option<Duration>,
}

struct Row {
    xid: u64,
    whole_cache: bool,
    /// It was visible so long ago, and not a minute earlier: an instance looks each minute.
    seen: Option<Duration>,
}

/// What L2 holds, or why that is not known.
struct Remote {
    place: String,
    holds: Result<InRemote, String>,
    /// The apps for which it holds values of the cache, where that was looked at.
    apps: Apps,
    /// The one that was looked at.
    app: Option<String>,
    /// Which values of the cache were looked at: of which version and which type.
    kind: Option<String>,
    /// Others that it holds of the key: of another release, say.
    others: Vec<String>,
}

/// The apps for which Redis has values of a cache, and which.
type Apps = BTreeMap<String, BTreeSet<String>>;

impl Inspect {
    pub(crate) async fn run(mut self, product: Option<Product>) -> anyhow::Result<()> {
        // Before it stands in any SQL.
        perto::postgres::log(self.database.url()?, &self.schema)?;
        if self.key.len() > MAX_KEY_BYTES {
            bail!("KEY: longer than {MAX_KEY_BYTES} bytes");
        }
        let mut connection = self.database.connect().await?;
        migrate::needs_log(&mut connection, &self.schema, product).await?;
        self.app = self.app.or_else(|| product.map(|product| product.app.to_owned()));
        let watched =
            perto::postgres::watched(&mut connection, &self.schema).await.context("DATABASE_URL")?;
        self.cache = self.cache_of_table(&watched)?.unwrap_or(self.cache);
        let mut log = self.read_log(&mut connection).await?;
        let switches = perto::postgres::switches(&mut connection, &self.schema).await?.into_iter();
        let concerns =
            |switch: &perto::Switch| switch.cache.as_ref().is_none_or(|cache| *cache == self.cache);
        log.switches = switches.filter(concerns).collect();
        let mut instances = Vec::with_capacity(self.instances.len());
        for url in &self.instances {
            // Without what may be a password.
            let place = host_and_port(url, 80).unwrap_or_else(|| "--instance".to_owned());
            instances.push((place, self.ask(url).await));
        }
        let answers = instances.iter().filter_map(|(_, seen)| seen.as_ref().ok());
        let kinds = answers.filter_map(|seen| seen["kind"].as_str());
        let kinds = kinds.filter(|kind| self.is_wanted(kind)).map(str::to_owned).collect();
        let remote = self.read_remote(log.epoch, kinds).await;
        self.app = self.app.or_else(|| remote.app.clone());
        let judged = match &remote.holds {
            Ok(InRemote::Value(value)) => {
                judged::value(self.subject(), value, &watched, &self.schema, &mut connection).await?
            }
            _ => Judged::default(),
        };
        let answered = instances.iter().any(|(_, seen)| seen.is_ok());
        let held = remote.holds.as_ref().is_ok_and(|holds| !matches!(holds, InRemote::Nothing));
        if !answered && !held && log.rows.is_empty() {
            self.is_watched(&watched)?;
        }
        if self.json {
            super::say(&self.document(&log, &remote, &judged, &instances).to_string());
        } else {
            self.lines(&log, &remote, &judged, &instances).iter().for_each(|line| super::say(line));
        }
        Ok(())
    }

    /// A cache is often called otherwise than its table.
    fn cache_of_table(&self, watched: &[Watched]) -> anyhow::Result<Option<String>> {
        if watched.iter().any(|watched| watched.watch.cache == self.cache) {
            return Ok(None);
        }
        let of_table = |name: &String| {
            *name == self.cache || name.split_once('.').is_some_and(|(_, name)| name == self.cache)
        };
        let mut caches: Vec<&str> = watched
            .iter()
            .filter(|watched| watched.tables.iter().any(of_table))
            .map(|watched| watched.watch.cache.as_str())
            .collect();
        caches.dedup();
        match caches[..] {
            [] => Ok(None),
            [cache] => Ok(Some(cache.to_owned())),
            _ => bail!(
                "CACHE: the table {} is watched for {}: name one of them",
                self.cache,
                caches.join(", ")
            ),
        }
    }

    /// That it is a cache or topic at all, where nobody knows anything of the key: one may be computed, and have no table.
    fn is_watched(&self, watched: &[Watched]) -> anyhow::Result<()> {
        let mut caches: Vec<&str> = watched.iter().map(|watched| watched.watch.cache.as_str()).collect();
        caches.dedup();
        if caches.contains(&self.cache.as_str()) {
            return Ok(());
        }
        let caches = if caches.is_empty() { "none".to_owned() } else { caches.join(", ") };
        bail!(
            "CACHE: nothing is watched for a cache or topic {:?}, and neither Redis nor an instance knows it; watched are: {caches}. Of a \
             cache without tables, ask an instance by --instance",
            self.cache
        )
    }

    fn subject(&self) -> (&str, &str) {
        (&self.cache, &self.key)
    }

    async fn read_log(&self, connection: &mut PgConnection) -> anyhow::Result<Log> {
        let schema = &self.schema;
        let sql = format!(
            "select pg_current_snapshot()::text, \
               pg_snapshot_xmax(coalesce((select trimmed from {schema}.boot), pg_current_snapshot()))::text, \
               {schema}.epoch(), r.xid::text, r.keys is null, \
               extract(epoch from clock_timestamp() - (select min(t.at) from {schema}.tick t \
                 where pg_visible_in_snapshot(r.xid, t.snapshot)))::float8, \
               extract(epoch from clock_timestamp() - (select max(at) from {schema}.tick))::float8 \
             from (select) one left join (select xid, keys from {schema}.invalidation \
               where cache = $1 and (keys is null or $2 = any(keys)) order by xid desc limit {MAX_ROWS}) r on true \
             order by r.xid desc"
        );
        type Found = (String, String, Option<i64>, Option<String>, Option<bool>, Option<f64>, Option<f64>);
        let found: Vec<Found> = sqlx::query_as(AssertSqlSafe(sql))
            .persistent(false)
            .bind(&self.cache)
            .bind(&self.key)
            .fetch_all(connection)
            .await
            .context("DATABASE_URL: the log can't be read")?;
        let (now, horizon, epoch) = match found.first() {
            Some((now, horizon, epoch, ..)) => (Snapshot::parse(now), horizon.parse().ok(), *epoch),
            None => (None, None, None),
        };
        let time = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
        let looked_after = found.first().and_then(|(.., looked_after)| *looked_after).and_then(time);
        let row = |(_, _, _, xid, whole_cache, seen, _): Found| {
            Some(Row { xid: xid?.parse().ok()?, whole_cache: whole_cache?, seen: seen.and_then(time) })
        };
        Ok(Log {
            now: now.context("DATABASE_URL: its snapshot can't be read")?,
            horizon: horizon
                .map(Snapshot::all_below)
                .context("DATABASE_URL: the log's horizon can't be read")?,
            epoch: epoch.map(i64::cast_unsigned),
            rows: found.into_iter().filter_map(row).collect(),
            switches: Vec::new(),
            looked_after,
        })
    }

    /// Whether values of the cache have such a kind, of the version that was named. Before version 8 of the log no type was part of it.
    fn is_wanted(&self, kind: &str) -> bool {
        let Some(kind) = kind.strip_prefix(&self.cache).and_then(|kind| kind.strip_prefix('.')) else {
            return false;
        };
        let mut parts = kind.split('.');
        let (version, _fingerprint, more) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let wanted = self.value_version.as_deref().and_then(|wanted| wanted.split('.').next());
        more.is_none() && version.parse::<u16>().is_ok() && wanted.is_none_or(|wanted| wanted == version)
    }

    /// What L2 holds of these kinds, or of those that are found there where none is known.
    async fn read_remote(&self, epoch: Option<u64>, told: BTreeSet<String>) -> Remote {
        let Some(url) = self.redis_url.as_deref().filter(|url| !url.is_empty()) else {
            return Remote::unknown("redis".to_owned(), "REDIS_URL is not set");
        };
        let place = perto::redis::address(url).map_or_else(|_| "redis".to_owned(), |address| address.place());
        let Some(epoch) = epoch else {
            return Remote::unknown(place, "no instance has read the log since Postgres was started");
        };
        let reading = async {
            let address = perto::redis::address(url)?;
            let mut connection = check_redis(url).await?;
            let named = self.value_version.as_ref().map(|version| format!("{}.{version}", self.cache));
            let mut kinds = match &named {
                Some(kind) if kind[self.cache.len() + 1..].contains('.') => BTreeSet::from([kind.clone()]),
                _ => told,
            };
            let (app, apps, unseen) = match &self.app {
                Some(app) if !kinds.is_empty() => (app.clone(), Apps::new(), None),
                app => {
                    // A user may lack the right to look.
                    let (apps, unseen) = match self.apps(epoch, &address).await {
                        Ok((apps, true)) => (apps, None),
                        Ok((apps, false)) => (apps, Some(TOO_MANY.to_owned())),
                        Err(error) => (Apps::new(), Some(super::one_line(&error))),
                    };
                    let app = match (app, apps.first_key_value(), apps.len(), &unseen) {
                        (Some(app), ..) | (None, Some((app, _)), 1, _) => app.clone(),
                        (None, None, _, None) => return Ok(Remote::nothing(place.clone())),
                        (None, None, _, Some(why)) => bail!("{why}"),
                        _ => bail!("it has the cache for several apps: name one by --app: {}", listed(&apps)),
                    };
                    if kinds.is_empty() {
                        kinds = apps.get(&app).cloned().unwrap_or_default();
                    }
                    (app, apps, unseen)
                }
            };
            // Without a type it is the name that the release before gave.
            kinds.extend(named);
            let mut found = Vec::new();
            for kind in kinds {
                let name = InRemote::name(&app, epoch, &kind, &self.key);
                let mut place = place.clone();
                if address.is_cluster() {
                    let owner = perto::redis::owner(&address, &name).await?;
                    connection = perto::redis::connect(&owner, MOST, LIMIT).await?;
                    place = format!("{} of {place}", owner.place());
                }
                let bytes: Option<Bytes> = redis::cmd("GET").arg(&name).query_async(&mut *connection).await?;
                found.push((InRemote::decode(&name, bytes.as_ref(), SystemClock.unix_ms()), kind, place));
            }
            // The youngest value, else whatever there is.
            found.sort_by_key(|(holds, ..)| match holds {
                InRemote::Value(value) => value.age,
                InRemote::Nothing => Duration::MAX,
                _ => Duration::MAX - Duration::from_secs(1),
            });
            let mut found = found.into_iter();
            let (holds, kind, place) = match found.next() {
                Some((holds, kind, place)) => (holds, Some(kind), place),
                None => (InRemote::Nothing, None, place.clone()),
            };
            let others = found.filter(|(holds, ..)| !matches!(holds, InRemote::Nothing));
            let others = others.map(|(_, kind, _)| kind).collect();
            let holds = match unseen {
                Some(why) if matches!(holds, InRemote::Nothing) => Err(why),
                _ => Ok(holds),
            };
            anyhow::Ok(Remote { place, holds, apps, app: Some(app), kind, others })
        };
        match reading.await {
            Ok(remote) => remote,
            Err(error) => Remote::unknown(place, &super::one_line(&error)),
        }
    }

    /// The apps for which Redis has values of the cache, of this database, among as many names as are looked at. At each node, where
    /// there are several. And whether all names were looked at.
    async fn apps(&self, epoch: u64, address: &Address) -> anyhow::Result<(Apps, bool)> {
        let (mut all, mut is_all) = (Apps::new(), true);
        for node in perto::redis::nodes(address).await? {
            let mut connection = perto::redis::connect(&node, MOST, LIMIT).await?;
            let (apps, is_all_of_it) = self.apps_at(epoch, &mut connection).await?;
            is_all &= is_all_of_it;
            for (app, kind) in apps {
                all.entry(app).or_default().insert(kind);
            }
        }
        Ok((all, is_all))
    }

    async fn apps_at(
        &self,
        epoch: u64,
        connection: &mut MultiplexedConnection,
    ) -> redis::RedisResult<(BTreeSet<(String, String)>, bool)> {
        let (mut cursor, mut apps) = (0_u64, BTreeSet::new());
        let like = InRemote::name("", epoch, "", "");
        let ours = like.split(':').nth(2);
        for _ in 0..MOST_SCANS {
            let (next, names): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg(&["MATCH", "perto:*", "COUNT", "1000"])
                .query_async(connection)
                .await?;
            let app = |name: &Vec<u8>| {
                let mut parts = std::str::from_utf8(name).ok()?.split(':').skip(1);
                let (app, of, kind) = (parts.next()?, parts.next(), parts.next()?);
                let is_wanted = of == ours && self.is_wanted(kind);
                is_wanted.then(|| (app.to_owned(), kind.to_owned()))
            };
            apps.extend(names.iter().filter_map(app));
            cursor = next;
            if cursor == 0 {
                return Ok((apps, true));
            }
        }
        Ok((apps, false))
    }

    /// Where Redis was looked in vain.
    fn looked(&self, apps: &Apps) -> String {
        let mut said = match &self.app {
            Some(app) => format!(
                "Redis holds nothing of it for the app {app:?}{}: see --app and --value-version.",
                self.value_version
                    .as_ref()
                    .map(|version| format!(" and {version} of the values"))
                    .unwrap_or_default()
            ),
            None => "Redis holds nothing of this cache, for any app.".to_owned(),
        };
        if !apps.is_empty() {
            said += &format!(" It holds values of this cache for: {}.", listed(apps));
        } else {
            said += " Of a topic it never holds any.";
        }
        said
    }

    async fn ask(&self, url: &str) -> Result<Value, String> {
        let path =
            format!("/api/v1/cache/{}/entries/{}", http::segment(&self.cache), http::segment(&self.key));
        let key = self.admin_key.as_deref().filter(|key| !key.is_empty());
        match http::get(url, &path, key).await {
            Ok((200, seen)) => Ok(seen),
            Ok((status, problem)) => {
                Err(format!("answers {status}: {}", problem["detail"].as_str().unwrap_or("no reason")))
            }
            Err(error) => Err(super::one_line(&error)),
        }
    }

    fn document(
        &self,
        log: &Log,
        remote: &Remote,
        judged: &Judged,
        instances: &[(String, Result<Value, String>)],
    ) -> Value {
        let rows = log.rows.iter().map(|row| {
            json!({ "transaction": row.xid.to_string(), "wholeCache": row.whole_cache, "seenMs": row.seen.map(ms) })
        });
        let holds = match &remote.holds {
            Err(why) => json!({ "is": "unknown", "why": why }),
            Ok(holds) => {
                let mut shown = in_remote(holds);
                if matches!(holds, InRemote::Value(_)) {
                    judged.put_into(&mut shown);
                }
                shown
            }
        };
        let instances = instances.iter().map(|(place, seen)| match seen {
            Ok(seen) => json!({ "place": place, "seen": seen }),
            Err(why) => json!({ "place": place, "why": why }),
        });
        json!({
            "cache": self.cache,
            "key": self.key,
            "app": self.app,
            "keyHash": hash(&self.key),
            "snapshot": log.now.to_string(),
            "epoch": log.epoch.map(|epoch| format!("{epoch:016x}")),
            "log": rows.collect::<Vec<_>>(),
            "switches": log.switches.iter().map(crate::shown::switch).collect::<Vec<_>>(),
            "l2": holds,
            "kind": remote.kind,
            "otherKinds": remote.others,
            "instances": instances.collect::<Vec<_>>(),
        })
    }

    fn lines(
        &self,
        log: &Log,
        remote: &Remote,
        judged: &Judged,
        instances: &[(String, Result<Value, String>)],
    ) -> Vec<String> {
        let epoch = log.epoch.map_or("none yet".to_owned(), |epoch| format!("{epoch:016x}"));
        let mut lines = vec![
            format!(
                "cache {}, key {}{}: epoch {epoch}, snapshot now {}",
                self.cache,
                self.key,
                self.app.as_ref().map(|app| format!(", app {app}")).unwrap_or_default(),
                log.now
            ),
            format!("The key's hash, as an auditor's event has it: {}.", hash(&self.key)),
        ];
        lines.extend(wrapped(&log.told(), super::columns::WIDTH));
        for switch in &log.switches {
            let of = if switch.cache.is_none() { "Of all caches" } else { "Of the cache" };
            lines.extend(wrapped(&format!("SWITCHED: {of} {switch}."), super::columns::WIDTH));
        }
        lines.push(String::new());
        let mut rows = vec![remote_row(log, remote, judged)];
        for (place, seen) in instances {
            match seen {
                Ok(seen) => rows.extend(instance_rows(seen)),
                Err(why) => rows.push(row(["?", place, "", "", "", "", why])),
            }
        }
        lines.extend(table(
            &["TIER", "WHERE", "STAMP", "AGE", "LEFT", "MAY BE SERVED", "WHY NOT, AND WHAT ELSE"],
            &rows,
        ));
        lines.extend(judged::lines(judged, &remote.place, instances));
        let answers = instances.iter().filter_map(|(_, seen)| seen.as_ref().ok());
        lines.extend(answers.flat_map(|seen| wrapped(&knows(seen), super::columns::WIDTH)));
        if !remote.others.is_empty() {
            let (kind, others) = (remote.kind.as_deref().unwrap_or_default(), remote.others.join(", "));
            let line = format!(
                "L2 is what Redis has for {kind}. It has another for {others}, of a release whose type differs: see --value-version."
            );
            lines.extend(wrapped(&line, super::columns::WIDTH));
        }
        if matches!(remote.holds, Ok(InRemote::Nothing)) {
            lines.extend(wrapped(&self.looked(&remote.apps), super::columns::WIDTH));
        }
        if instances.is_empty() {
            lines.push("L1 is in each process. Name instances by --instance URL, to see what they hold and would serve.".to_owned());
        }
        lines
    }
}

impl Remote {
    fn unknown(place: String, why: &str) -> Self {
        Self { holds: Err(why.to_owned()), ..Self::nothing(place) }
    }

    /// It has the cache for no app, so nothing of the key either.
    fn nothing(place: String) -> Self {
        let (apps, app, kind, others) = (Apps::new(), None, None, Vec::new());
        Self { place, holds: Ok(InRemote::Nothing), apps, app, kind, others }
    }
}

impl Log {
    fn told(&self) -> String {
        if self.rows.is_empty() {
            return format!(
                "The log has no write to it by a transaction from {} on; older rows are gone.",
                self.horizon.xmax()
            );
        }
        let row = |row: &Row| {
            let whole = if row.whole_cache { " (whole cache)" } else { "" };
            let seen = match row.seen {
                Some(seen) => format!("about {} ago", time(seen)),
                // Nobody has looked since it was written.
                None => match self.looked_after {
                    Some(looked_after) => format!("less than {} ago", time(looked_after)),
                    None => "since an instance last ran".to_owned(),
                },
            };
            format!("{}{whole}, {seen}", row.xid)
        };
        let rows: Vec<String> = self.rows.iter().map(row).collect();
        let more = if rows.len() == MAX_ROWS { "; and perhaps more" } else { "" };
        format!("The log's transactions that wrote it, the newest first: {}{more}.", rows.join("; "))
    }
}

fn listed(apps: &Apps) -> String {
    apps.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn row(cells: [&str; 7]) -> Vec<String> {
    cells.map(str::to_owned).into()
}

/// What Redis holds, against what the log says: what an instance that knows all of the log would do.
fn remote_row(log: &Log, remote: &Remote, judged: &Judged) -> Vec<String> {
    let place = remote.place.as_str();
    let value = match &remote.holds {
        Err(why) => return row(["L2", place, "", "", "", "?", why]),
        Ok(InRemote::Value(value)) => value,
        Ok(InRemote::Nothing) => return row(["L2", place, "", "", "", "-", "nothing"]),
        Ok(InRemote::Tombstone(xids)) => {
            let xids: Vec<String> = xids.iter().filter(|xid| **xid > 0).map(u64::to_string).collect();
            let why = format!("a tombstone of transaction {}: no older value gets in", xids.join(", "));
            return row(["L2", place, "", "", "", "-", &why]);
        }
        Ok(_) => return row(["L2", place, "", "", "", "no", "bytes that can't be read"]),
    };
    let what = match value.absent {
        true => "says that there is no such row".to_owned(),
        false => {
            let compressed = if value.compressed { ", compressed" } else { "" };
            format!("{} of {}{compressed}", bytes(value.bytes as u64), value.codec)
        }
    };
    let (served, why) = match judged.why_not() {
        Some(why) => ("no", why),
        None if value.left.is_zero() => ("no", "expired".to_owned()),
        None if value.stamp.rank() < log.horizon.rank() => {
            let why =
                format!("older than what is left of the log, {}: not by who starts now", log.horizon.xmax());
            ("some", why)
        }
        None => ("yes", what),
    };
    row(["L2", place, &value.stamp.to_string(), &time(value.age), &time(value.left), served, &why])
}

/// What an instance has been told.
fn knows(seen: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let bucket = |known: &Value| {
        let xids: Vec<String> = known["transactions"].as_array().into_iter().flatten().map(text).collect();
        let xids = if xids.is_empty() { "none".to_owned() } else { xids.join(", ") };
        let rest = match (text(&known["coarseUpTo"]).as_str(), text(&known["floor"]).as_str()) {
            ("0", "0") => String::new(),
            ("0", floor) => format!(" and all before {floor}"),
            (coarse_up_to, "0") => format!(" and all up to {coarse_up_to}"),
            (coarse_up_to, floor) => format!(" and all up to {coarse_up_to} and before {floor}"),
        };
        format!("{xids}{rest}")
    };
    format!(
        "{} has read the log up to {}. A value must contain, of the key's bucket: {}; of the whole cache: {}.",
        text(&seen["instance"]),
        text(&seen["poll"]),
        bucket(&seen["known"]),
        bucket(&seen["knownOfCache"])
    )
}

/// What an instance holds, and what it thinks of L2.
fn instance_rows(seen: &Value) -> Vec<Vec<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let lasting =
        |value: &Value| value.as_u64().map(|ms| time(Duration::from_millis(ms))).unwrap_or_default();
    let name = text(&seen["instance"]);
    let served = |entry: &Value| if entry["served"] == true { "yes" } else { "no" };
    let mut lease = format!("{}, lease {}", text(&seen["state"]), lasting(&seen["leaseLeftMs"]));
    for (tier, mode) in [("L1", &seen["l1Mode"]), ("L2", &seen["l2Mode"])] {
        if let Some(mode) = mode.as_str().filter(|mode| *mode != "on") {
            lease += &format!(", {tier} switched {mode}");
        }
    }
    let why = |entry: &Value| match entry["refused"].as_str() {
        Some(why) => why.to_owned(),
        None if entry["absent"] == true => "says that there is no such row".to_owned(),
        None => String::new(),
    };
    let joined =
        |parts: [String; 2]| parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    let l1 = &seen["l1"];
    let in_l1 = if l1.is_null() {
        row(["L1", &name, "", "", "", "-", &joined(["nothing".to_owned(), lease])])
    } else {
        let why = joined([why(l1), lease]);
        row(["L1", &name, &text(&l1["stamp"]), "", &lasting(&l1["leftMs"]), served(l1), &why])
    };
    let l2 = &seen["l2"];
    let of_l2 = if l2["is"] == "value" {
        let (stamp, age, left) = (text(&l2["stamp"]), lasting(&l2["ageMs"]), lasting(&l2["leftMs"]));
        row(["L2", &format!("by {name}"), &stamp, &age, &left, served(l2), &why(l2)])
    } else {
        row(["L2", &format!("by {name}"), "", "", "", "-", &text(&l2["is"])])
    };
    vec![in_l1, of_l2]
}
