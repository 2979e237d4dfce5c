//! Whether Redis lets Perto do what it does: each command by itself, and the scripts, on a key and a channel of the doctor's
//! own. The key is removed again, and would be gone after a minute anyway.

use std::time::Duration;

use bytes::Bytes;
use perto::RemoteError;
use perto::redis::Address;
use uuid::Uuid;

use super::super::super::connect::host_and_port;
use super::super::{Finding, Findings};
use super::{said, shell};

/// Of the key.
const LIFE: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of what is put there.
const MOST: usize = 1 << 10;
/// How long a message to ourselves may take.
const ARRIVAL: Duration = Duration::from_secs(2);
/// What the commands and the scripts need, for who makes a user for Perto alone.
const RIGHTS: &str = "+ping +select +get +getrange +mget +set +unlink +evalsha '+script|load' +publish +subscribe +unsubscribe +info";
/// And besides, at each node.
const RIGHTS_IN_A_CLUSTER: &str = " +eval +asking '+cluster|slots' '+cluster|info' +spublish +ssubscribe";

/// Where it looks.
pub(super) struct Place<'a> {
    pub(super) url: &'a str,
    pub(super) app: &'a str,
    /// The server: `host:port`, or a word for it.
    pub(super) at: String,
}

impl<'a> Place<'a> {
    pub(super) fn of(url: &'a str, app: &'a str) -> Self {
        let at = match perto::redis::address(url) {
            Ok(address) if !address.is_one_server() => address.place(),
            _ => host_and_port(url, 6379).unwrap_or_else(|| "REDIS_URL".to_owned()),
        };
        Self { url, app, at }
    }

    pub(super) fn is_cluster(&self) -> bool {
        perto::redis::address(self.url).is_ok_and(|address| address.is_cluster())
    }

    pub(super) fn user(&self) -> String {
        let address = perto::redis::address(self.url).ok();
        address.as_ref().and_then(Address::user).unwrap_or("default").to_owned()
    }

    /// What mends such a refusal. Patterns only where they are what is missing: to one who has all, Redis takes no more.
    fn grant(&self, refused: &str) -> String {
        let keys = if refused.contains("one of the keys") { " '~perto:*'" } else { "" };
        let channels = if refused.contains("one of the channels") { " '&perto:*'" } else { "" };
        let of_cluster = if self.is_cluster() { RIGHTS_IN_A_CLUSTER } else { "" };
        format!("redis-cli acl setuser {}{keys}{channels} {RIGHTS}{of_cluster}", shell(&self.user()))
    }
}

/// Each command that Perto sends.
pub(super) async fn commands(place: &Place<'_>) -> Findings {
    let (key, channel) = (format!("perto:{}:doctor", place.app), format!("perto:{}:doctor:bus", place.app));
    let at = perto::redis::owner(&perto::redis::address(place.url)?, &key).await?;
    let mut connection = perto::redis::connect(&at, MOST, CONNECT_LIMIT).await?;
    let mut all = Vec::new();
    for words in [
        &["PING"][..],
        &["GETRANGE", &key, "0", "0"],
        &["MGET", &key],
        // For `perto inspect`.
        &["GET", &key],
        // It does nothing, and can be run by its hash.
        &["SCRIPT", "LOAD", "return 1"],
        &["EVALSHA", "e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "1", &key],
        &["PUBLISH", &channel, ""],
    ] {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        let name = if words[0] == "SCRIPT" { "SCRIPT LOAD" } else { words[0] };
        match command.query_async::<redis::Value>(&mut *connection).await {
            // What could not be loaded can't be run.
            Err(error) if error.code() == Some("NOSCRIPT") => {}
            Err(error) => all.push(format!("{name} ({})", said(&error))),
            Ok(_) => {}
        }
    }
    match hears(place).await {
        Ok(true) => {}
        // It has been said why.
        Ok(false) if all.iter().any(|refused| refused.starts_with("PUBLISH")) => {}
        Ok(false) => {
            let found = format!(
                "what is published does not reach who has subscribed within {ARRIVAL:?}: hints are lost, and polls do their work"
            );
            return Ok(vec![Finding::wrong("commands", found).mend("point REDIS_URL at the server itself")]);
        }
        Err(error) if matches!(error.downcast_ref(), Some(RemoteError::Timeout)) => {
            return Ok(vec![Finding::wrong("commands", "no answer in time to SUBSCRIBE")]);
        }
        Err(error) => all.push(format!("SUBSCRIBE ({})", chain(&*error))),
    }
    if all.is_empty() {
        return Ok(vec![Finding::ok("commands", "each that Perto sends is taken, and messages arrive")]);
    }
    let found = format!("refused to the user {}: {}", place.user(), all.join("; "));
    let grant = place.grant(&found);
    Ok(vec![Finding::wrong("commands", found).mend(grant)])
}

/// Whether a message to ourselves arrives.
async fn hears(place: &Place<'_>) -> anyhow::Result<bool> {
    // That of the app too: a user may have rights to some channels only.
    let _app = perto::redis::tiers(place.url, place.app)?.bus.subscribe().await?;
    let own = perto::redis::tiers(place.url, &format!("{}:doctor", place.app))?;
    own.remote.ping().await?;
    let mut subscribed = own.bus.subscribe().await?;
    if own.bus.publish(Bytes::from_static(b"doctor")).await.is_err() {
        return Ok(false);
    }
    Ok(tokio::time::timeout(ARRIVAL, subscribed.next()).await.is_ok_and(|message| message.is_ok()))
}

/// The scripts that are run on values, by the library itself.
pub(super) async fn scripts(place: &Place<'_>) -> Findings {
    let tiers = perto::redis::tiers(place.url, place.app)?;
    let key = format!("perto:{}:doctor:{}", place.app, Uuid::new_v4());
    let outcome = async {
        tiers.remote.ping().await?;
        let (old, tombstone_of) = (value(1), 5);
        if !tiers.remote.fill(&key, old.clone(), LIFE).await? {
            return Ok(Some("a value was not put where there was none"));
        }
        let keys = std::slice::from_ref(&key);
        if tiers.remote.get(keys, MOST).await?.first() != Some(&Some(old.clone())) {
            return Ok(Some("the value that was put is not what is read"));
        }
        tiers.remote.invalidate(keys, tombstone_of, LIFE).await?;
        if tiers.remote.fill(&key, old, LIFE).await? {
            return Ok(Some("an old value was put over an invalidation"));
        }
        let Some(Some(tombstone)) = tiers.remote.get(keys, MOST).await?.into_iter().next() else {
            return Ok(Some("an invalidation left no tombstone"));
        };
        tiers.remote.discard(&key, tombstone).await?;
        Ok(tiers
            .remote
            .get(keys, MOST)
            .await?
            .first()
            .is_some_and(Option::is_some)
            .then_some("what was discarded is there"))
    };
    let outcome: Result<_, RemoteError> = outcome.await;
    // Wherever it ended, a tombstone that is gone at once leaves nothing behind.
    drop(tiers.remote.invalidate(std::slice::from_ref(&key), 9, Duration::from_millis(1)).await);
    Ok(vec![match outcome {
        Ok(None) => Finding::ok("scripts", "values are put, invalidated and discarded as they should be"),
        Ok(Some(what)) => {
            let found = format!(
                "they don't do what they should: {what}. Something between here and Redis alters what is sent"
            );
            Finding::wrong("scripts", found).mend("point REDIS_URL at the server itself")
        }
        Err(error) => refused(place, &error),
    }])
}

/// A value without a payload, as of a snapshot that contains all transactions below.
fn value(below: u8) -> Bytes {
    let mut header = [0; 40];
    header[..3].copy_from_slice(b"P\x02V");
    (header[15], header[23]) = (below, below);
    Bytes::copy_from_slice(&header)
}

/// What the server says when it takes nothing, and what to do.
const REFUSALS: [(&str, &str, &str); 6] = [
    ("OOM", "its memory is full, and it evicts nothing", "redis-cli config set maxmemory-policy allkeys-lru"),
    ("READONLY", "it is a replica", "point REDIS_URL at the primary"),
    (
        "MISCONF",
        "it can't save what it holds, and takes nothing until it can",
        "redis-cli config set stop-writes-on-bgsave-error no",
    ),
    ("NOREPLICAS", "it has too few replicas", "redis-cli config set min-replicas-to-write 0"),
    ("LOADING", "it reads its dump", "wait until it has"),
    ("MASTERDOWN", "it is a replica that lost its primary", "point REDIS_URL at the primary"),
];

fn refused(place: &Place<'_>, error: &RemoteError) -> Finding {
    refusal("scripts", "nothing is put into L2", place, &chain(error))
}

/// An error and its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        said = format!("{said}: {cause}");
        source = cause.source();
    }
    said
}

/// What the server has said, in words that say what to do.
pub(super) fn refusal(check: &'static str, effect: &str, place: &Place<'_>, said: &str) -> Finding {
    // The client has words of its own for some codes, as `ReadOnly`.
    let upper = said.to_uppercase();
    if let Some((code, why, mend)) = REFUSALS.iter().find(|(code, ..)| upper.contains(code)) {
        return Finding::wrong(check, format!("{effect}: {code}, {why}")).mend(*mend);
    }
    let finding = Finding::wrong(check, format!("{effect}: {said}"));
    // A script that is refused a command says it in its own words.
    let of_rights = ["NOPERM", "PERMISSION", "CAN'T RUN THIS COMMAND", "CAN'T ACCESS"];
    if of_rights.iter().any(|words| upper.contains(words)) {
        finding.mend(place.grant(said))
    } else {
        finding
    }
}
