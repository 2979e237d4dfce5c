//! What the doctor asks Redis. Nothing there is needed for the promise, so little here is wrong: most is only slow.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use perto::redis::Address;
use redis::aio::MultiplexedConnection;

use super::super::columns::{bytes, shell, time};
use super::super::connect::check_redis;
use super::{Finding, limited};
use scripts::Place;

mod scripts;

const OLDEST: (u32, u32) = (6, 2);
/// What a read waits for L2 at most, by default.
const L2_TIMEOUT: Duration = Duration::from_millis(50);
const PINGS: usize = 20;
/// To connect to one node of a cluster.
const NODE_LIMIT: Duration = Duration::from_secs(2);
const MOST_OF_AN_INFO: usize = 64 << 10;
/// A hint has at most 256 KiB; a subscriber must be able to hold some.
const MIN_BUFFER: u64 = 1 << 20;
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(5);

pub(super) async fn look(url: Option<&str>, app: &str) -> Vec<Finding> {
    let Some(url) = url else {
        let found = "REDIS_URL is not set: no L2 and no hints. Each instance loads for itself, and sees what others write \
            by polling every 75 ms: within the bound all the same";
        return vec![Finding::warn("redis", found).mend("REDIS_URL=redis://HOST:6379")];
    };
    let mut place = Place::of(url, app);
    let connecting = async { check_redis(url).await.map_err(anyhow::Error::from) };
    let mut connection = match tokio::time::timeout(super::LIMIT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let said = super::super::one_line(&error);
            let known = scripts::refusal("redis", "it is not used", &place, &said);
            return with_client(vec![known], &place, None);
        }
        Err(_elapsed) => {
            return vec![Finding::wrong("redis", format!("REDIS_URL: no answer within {:?}", super::LIMIT))];
        }
    };
    let found = perto::redis::address(url).is_ok_and(|address| !address.is_one_server());
    if found {
        place.at = connection.server().place();
    }
    // Where it says nothing of itself, everything else can be looked at all the same.
    let (mut findings, info) = match redis::cmd("INFO").query_async::<String>(&mut *connection).await {
        Ok(info) => (of_info(&Info(&info), &place), info),
        Err(error) => {
            let found =
                format!("INFO can't be read, so version, role and memory are not known: {}", said(&error));
            let grant = format!("redis-cli acl setuser {} +info", shell(&place.user()));
            (vec![Finding::warn("redis", found).mend(grant)], String::new())
        }
    };
    if place.is_cluster() {
        findings.extend(limited("nodes", nodes(url)).await);
    } else if found {
        findings.extend(limited("sentinels", async { Ok(vec![sentinels(url).await?]) }).await);
    }
    let ours = connection.server().database();
    let others =
        tokio::time::timeout(super::LIMIT, others(&mut connection.clone(), &Info(&info), ours)).await;
    findings.extend(limited("buffers", async { Ok(vec![buffers(&mut connection.clone()).await]) }).await);
    findings.extend(
        limited("persistence", async { Ok(vec![persistence(&mut connection.clone(), &Info(&info)).await]) })
            .await,
    );
    findings.extend(limited("commands", scripts::commands(&place)).await);
    findings.extend(limited("scripts", scripts::scripts(&place)).await);
    findings.extend(limited("latency", async { Ok(vec![latency(&mut connection.clone()).await?]) }).await);
    findings.extend(limited("clock", async { Ok(vec![clock(&mut connection).await?]) }).await);
    with_client(findings, &place, others.ok().and_then(Result::ok).flatten().as_deref())
}

/// What mends a node that does not answer here.
const UNREACHED: &str = "start them; if they run, let them announce a place that is reached from here (cluster-announce-ip, cluster-announce-hostname)";

/// Whether each node of the cluster answers, and what it is.
async fn nodes(url: &str) -> anyhow::Result<Vec<Finding>> {
    let address = perto::redis::address(url)?;
    let (nodes, replicas) =
        match tokio::try_join!(perto::redis::nodes(&address), perto::redis::replicas(&address)) {
            Ok(both) => both,
            Err(error) => return Ok(vec![Finding::wrong("nodes", scripts::chain(&error))]),
        };
    let (masters, replicas) = tokio::join!(
        join_all(nodes.iter().map(|node| node_is(node, "master"))),
        join_all(replicas.iter().map(|node| node_is(node, "slave")))
    );
    let of = |nodes: Vec<Result<String, String>>| {
        let all = nodes.len();
        let (well, ill): (Vec<_>, Vec<_>) = nodes.into_iter().partition(Result::is_ok);
        let texts = |of: Vec<Result<String, String>>| {
            of.into_iter().map(|one| one.unwrap_or_else(|silent| silent)).collect::<Vec<_>>().join("; ")
        };
        (all, ill.len(), texts(well), texts(ill))
    };
    let (all, ill, well, silent) = of(masters);
    let mut findings = vec![if ill == 0 {
        Finding::ok("nodes", format!("all {all} that have slots answer: {well}"))
    } else {
        let rest = if well.is_empty() { String::new() } else { format!(". The others answer: {well}") };
        let found = format!("{ill} of {all} that have slots can't be reached from here: {silent}{rest}");
        Finding::wrong("nodes", found).mend(UNREACHED)
    }];
    let (all, ill, well, silent) = of(replicas);
    findings.push(if all == 0 {
        Finding::ok(
            "replicas",
            "none: what a node had is loaded again when it dies, and L2 has no place for it",
        )
    } else if ill == 0 {
        Finding::ok("replicas", format!("all {all} answer: {well}"))
    } else {
        let found = format!(
            "{ill} of {all} can't be reached from here, now or when they take a master's place: {silent}"
        );
        Finding::warn("replicas", found).mend(UNREACHED)
    });
    Ok(findings)
}

/// One of them, with its version; or why it is not what it should be.
async fn node_is(node: &Address, role: &str) -> Result<String, String> {
    let place = node.place();
    let looked = perto::redis::connect(node, MOST_OF_AN_INFO, NODE_LIMIT).await;
    let mut connection = looked.map_err(|error| format!("{place} ({})", said(&error)))?;
    let info: String = match redis::cmd("INFO").query_async(&mut *connection).await {
        Ok(info) => info,
        Err(_no_right) => return Ok(format!("{place} (its version can't be read)")),
    };
    let info = Info(&info);
    match info.text("role") {
        other if !other.is_empty() && other != role => {
            let is = if other == "master" { "a master" } else { "a replica" };
            Err(format!("{place} (it says that it is {is})"))
        }
        _ => Ok(format!("{place} ({})", name(&info))),
    }
}

/// Whether each Sentinel answers, and names the same server.
async fn sentinels(url: &str) -> anyhow::Result<Finding> {
    let answers = perto::redis::ask_sentinels(&perto::redis::address(url)?).await;
    let mut named: Vec<&str> = Vec::new();
    let mut silent = Vec::new();
    for (sentinel, answer) in &answers {
        match answer {
            Ok(server) if named.contains(&server.as_str()) => {}
            Ok(server) => named.push(server),
            Err(error) => silent.push(format!("{sentinel} ({})", scripts::chain(error))),
        }
    }
    let of = answers.len();
    Ok(match (&named[..], silent.is_empty()) {
        ([server], true) if of < 3 => Finding::warn(
            "sentinels",
            format!("{of} of them, and it takes three to agree on a failover: {server} is not replaced when one of them is down too"),
        )
        .mend("name three Sentinels or more in REDIS_URL, each on a machine of its own"),
        ([server], true) => Finding::ok("sentinels", format!("all {of} name {server}")),
        ([_, _, ..], _) => Finding::wrong(
            "sentinels",
            format!("they name different servers: {}. Instances that listen to different ones don't hear each other", named.join(", ")),
        )
        .mend("let the Sentinels reach each other"),
        _ => Finding::warn("sentinels", format!("not all say where the server is: {}", silent.join("; ")))
            .mend("start it, or take it out of REDIS_URL"),
    })
}

/// Calls of `SCAN`, each of about a thousand names, to find out whether somebody else keeps keys there.
const MOST_SCANS: usize = 20;

/// What is there that is not Perto's: others use the server too, and `CONFIG SET` is for all of them.
async fn others(
    connection: &mut MultiplexedConnection,
    info: &Info<'_>,
    ours: i64,
) -> redis::RedisResult<Option<String>> {
    let databases = info.0.lines().filter_map(|line| line.strip_prefix("db")?.split_once(":keys="));
    let another = databases.map(|(number, _)| number).find(|number| **number != ours.to_string());
    if let Some(number) = another {
        return Ok(Some(format!("keys in its database {number}")));
    }
    let mut cursor = 0_u64;
    for _ in 0..MOST_SCANS {
        let mut scan = redis::cmd("SCAN");
        let (next, names): (u64, Vec<Vec<u8>>) =
            scan.arg(cursor).arg("COUNT").arg(1000).query_async(connection).await?;
        if names.iter().any(|name| !name.starts_with(b"perto:")) {
            return Ok(Some("keys that are not Perto's".to_owned()));
        }
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    Ok(None)
}

/// The commands that reach this server. `CONFIG SET` is for all who use it, so where `others` do, it is no advice.
fn with_client(mut findings: Vec<Finding>, at: &Place<'_>, others: Option<&str>) -> Vec<Finding> {
    for finding in &mut findings {
        let is_for_all = |how: &String| how.contains(" config set ");
        if finding.mend.iter().any(is_for_all) {
            let place = &at.at;
            if let Some(what) = others {
                finding.found += &format!(
                    ". Others use {place} too (it has {what}), and a setting would be changed for them as well: what they keep \
                     there may be evicted or lost"
                );
                finding.mend.retain(|how| !is_for_all(how));
                finding.mend.push("point REDIS_URL at a Redis that only Perto uses".to_owned());
            } else {
                finding.found += &format!(". The setting is for all who use {place}");
            }
        }
        for how in &mut finding.mend {
            *how = how.replace("redis-cli ", &client(at));
        }
    }
    findings
}

/// The command that reaches this server, without its password.
fn client(place: &Place<'_>) -> String {
    let by_tls = ["rediss", "valkeys"].iter().any(|by| place.url.starts_with(by));
    let (_, query) = place.url.split_once('?').unwrap_or_default();
    let trusted = query.split('&').find_map(|parameter| parameter.strip_prefix("ssl_ca_certs="));
    let tls = match trusted.filter(|file| !file.contains(['%', '+'])) {
        Some(file) if by_tls => format!("--tls --cacert {} ", shell(file)),
        _ if by_tls => "--tls ".to_owned(),
        _ => String::new(),
    };
    match place.at.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() && !host.contains(' ') => {
            format!("redis-cli -h {} -p {port} {tls}", shell(host))
        }
        _ => "redis-cli ".to_owned(),
    }
}

/// What a server said, which holds no secret, without the client's words for it.
fn said(error: &redis::RedisError) -> String {
    error.detail().map_or_else(|| error.to_string(), str::to_owned)
}

fn of_info(info: &Info<'_>, place: &Place<'_>) -> Vec<Finding> {
    let mut all = vec![version(info, &place.at), mode(info, place.is_cluster())];
    // Any of a cluster's nodes is as good to begin with.
    if !place.is_cluster() {
        all.push(role(info));
    }
    all.push(memory(info));
    all
}

struct Info<'a>(&'a str);

impl<'a> Info<'a> {
    fn text(&self, name: &str) -> &'a str {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or_default()
    }
}

fn name(info: &Info<'_>) -> String {
    match info.text("valkey_version") {
        "" => format!("Redis {}", info.text("redis_version")),
        valkey => format!("Valkey {valkey}"),
    }
}

fn version(info: &Info<'_>, place: &str) -> Finding {
    let name = name(info);
    let mut parts = info.text("redis_version").split('.').map(|part| part.parse::<u32>().unwrap_or_default());
    if (parts.next().unwrap_or_default(), parts.next().unwrap_or_default()) < OLDEST {
        return Finding::wrong("redis", format!("{place}, {name}, is older than 6.2"))
            .mend("upgrade it to Redis 6.2 or Valkey");
    }
    let clients = match info.text("connected_clients") {
        "1" => "1 client".to_owned(),
        clients => format!("{clients} clients"),
    };
    Finding::ok("redis", format!("{place}, {name}, {clients}"))
}

fn mode(info: &Info<'_>, of_cluster: bool) -> Finding {
    match (info.text("redis_mode"), info.text("cluster_enabled") == "1", of_cluster) {
        ("sentinel", ..) => Finding::wrong("mode", "a sentinel, which holds no values")
            .mend("REDIS_URL=redis+sentinel://HOST:26379/NAME follows the server that it watches"),
        (_, true, false) => Finding::wrong("mode", "a node of a cluster: most keys are refused there")
            .mend("REDIS_URL=redis+cluster://HOST:6379 asks each node for its own"),
        (_, false, true) => Finding::wrong("mode", "a server by itself, and no node of a cluster")
            .mend("REDIS_URL=redis://HOST:6379"),
        (_, true, true) => Finding::ok("mode", "a node of a cluster"),
        (_, false, false) => Finding::ok("mode", "a server by itself"),
    }
}

fn role(info: &Info<'_>) -> Finding {
    if info.text("role") == "slave" {
        let primary = format!("{}:{}", info.text("master_host"), info.text("master_port"));
        let found = format!(
            "a replica of {primary}, which can't be written: no L2, and hints reach only those who listen to it"
        );
        return Finding::wrong("role", found).mend(format!("point REDIS_URL at {primary}"));
    }
    Finding::ok("role", "primary")
}

fn memory(info: &Info<'_>) -> Finding {
    let (used, most, policy) =
        (info.number("used_memory"), info.number("maxmemory"), info.text("maxmemory_policy"));
    let lru = "redis-cli config set maxmemory-policy allkeys-lru";
    if most == 0 {
        let found =
            format!("{} used, and no maxmemory: it grows until the machine has none left", bytes(used));
        return Finding::warn("memory", found).mend("redis-cli config set maxmemory 1gb").mend(lru);
    }
    let found = format!("{} of {} used, {policy}", bytes(used), bytes(most));
    match policy {
        "noeviction" if used >= most / 100 * 95 => {
            Finding::wrong("memory", format!("{found}: full, so nothing more is put there; hints still pass"))
                .mend(lru)
        }
        "noeviction" => {
            Finding::warn("memory", format!("{found}: when it is full, nothing more is put there")).mend(lru)
        }
        _ => Finding::ok("memory", found),
    }
}

/// A setting; or why it can't be read.
async fn config(connection: &mut MultiplexedConnection, name: &str) -> Result<String, String> {
    let mut get = redis::cmd("CONFIG");
    match get.arg("GET").arg(name).query_async::<Vec<String>>(connection).await {
        Ok(pair) => pair.get(1).cloned().ok_or_else(|| format!("there is no setting {name}")),
        Err(error) => Err(format!("CONFIG GET {name} can't be read: {}", said(&error))),
    }
}

async fn buffers(connection: &mut MultiplexedConnection) -> Finding {
    match config(connection, "client-output-buffer-limit").await {
        Ok(limits) => buffer(&limits),
        Err(why) => Finding::warn("buffers", why),
    }
}

/// `CLASS HARD SOFT SECONDS`, for each class.
fn buffer(limits: &str) -> Finding {
    let words: Vec<&str> = limits.split_whitespace().skip_while(|word| *word != "pubsub").collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
    let (hard, soft) = (number(1), number(2));
    let mend = "redis-cli config set client-output-buffer-limit 'pubsub 32mb 8mb 60'";
    let least = [hard, soft].into_iter().filter(|limit| *limit > 0).min();
    match least {
        None => Finding::warn(
            "buffers",
            "a subscriber that hangs may take all memory: its output buffer has no limit",
        )
        .mend(mend),
        Some(least) if least < MIN_BUFFER => {
            let found = format!(
                "a subscriber is dropped when {} of hints wait for it: each burst of writes is a gap, and a poll",
                bytes(least)
            );
            Finding::warn("buffers", found).mend(mend)
        }
        Some(_) => Finding::ok(
            "buffers",
            format!("a subscriber may have {} waiting", bytes(if hard > 0 { hard } else { soft })),
        ),
    }
}

async fn persistence(connection: &mut MultiplexedConnection, info: &Info<'_>) -> Finding {
    let (save, appends) = match (config(connection, "save").await, config(connection, "appendonly").await) {
        (Ok(save), Ok(appends)) => (save, appends == "yes"),
        (Err(why), _) | (_, Err(why)) => return Finding::warn("persistence", why),
    };
    if !appends && save.is_empty() {
        return Finding::ok("persistence", "none, as it should be: nothing in it is needed");
    }
    let forked = Duration::from_micros(info.number("latest_fork_usec"));
    let kinds: Vec<&str> = [(appends, "appendonly"), (!save.is_empty(), "save")]
        .into_iter()
        .filter(|(on, _)| *on)
        .map(|(_, kind)| kind)
        .collect();
    let found = format!(
        "{} is on: what is restored is safe and useless, and each fork stops the server (the last one for {})",
        kinds.join(" and "),
        time(forked)
    );
    let mut finding = Finding::warn("persistence", found);
    if appends {
        finding = finding.mend("redis-cli config set appendonly no");
    }
    if !save.is_empty() {
        finding = finding.mend("redis-cli config set save ''");
    }
    finding
}

async fn latency(connection: &mut MultiplexedConnection) -> anyhow::Result<Finding> {
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let began = Instant::now();
        redis::cmd("PING").query_async::<()>(connection).await?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let (median, most) = (times[PINGS / 2], times[PINGS - 1]);
    let found = format!(
        "a ping takes {:.1} ms, at most {:.1} ms, of the {} that a read waits for L2",
        median.as_secs_f64() * 1e3,
        most.as_secs_f64() * 1e3,
        time(L2_TIMEOUT)
    );
    Ok(if median >= L2_TIMEOUT {
        Finding::wrong("latency", format!("{found}: L2 is not used"))
            .mend("use a Redis that is nearer, or raise remote_timeout")
    } else if median >= L2_TIMEOUT / 2 {
        Finding::warn("latency", found).mend("use a Redis that is nearer, or raise remote_timeout")
    } else {
        Finding::ok("latency", found)
    })
}

async fn clock(connection: &mut MultiplexedConnection) -> anyhow::Result<Finding> {
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, micros): (u64, u64) = match redis::cmd("TIME").query_async(connection).await {
        Ok(time) => time,
        // Perto itself never asks for it.
        Err(error) => return Ok(Finding::warn("clock", format!("TIME can't be read: {}", said(&error)))),
    };
    let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(difference((before + after) / 2, Duration::from_secs(seconds) + Duration::from_micros(micros)))
}

fn difference(here: Duration, there: Duration) -> Finding {
    let by = here.abs_diff(there);
    let found = format!("{} apart from here; only how long values live in L2 depends on it", time(by));
    if by > MAX_CLOCK_DIFFERENCE {
        Finding::warn("clock", found).mend("keep the clocks of all machines by NTP")
    } else {
        Finding::ok("clock", found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    /// What no server here can be made to say.
    #[test]
    fn an_old_redis_a_sentinel_and_a_clock_that_is_wrong_are_told_of() {
        let old = Info("redis_version:6.0.16\r\nconnected_clients:1\r\n");
        assert_eq!(version(&old, "").state, State::Wrong);
        assert_eq!(version(&Info("redis_version:6.2.0\r\n"), "").state, State::Ok);
        assert_eq!(version(&Info("redis_version:10.0.0\r\n"), "").state, State::Ok);
        assert_eq!(mode(&Info("redis_mode:sentinel\r\n"), false).state, State::Wrong);
        let hour = Duration::from_hours(1);
        assert_eq!(difference(hour, hour + Duration::from_secs(6)).state, State::Warn);
        assert_eq!(difference(hour + Duration::from_secs(4), hour).state, State::Ok);
    }
}
