//! Sentinels: they watch a server and its replicas, and say which of them is to be written to.
//!
//! One of them is listened to at a time, for after a failover by hand the old server may be written to for ten seconds
//! more: who stays there is not heard by who has moved. Which one it is does not matter, as long as it answers. It is asked
//! now and then too, since a message may be lost.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all, select_ok};
use redis::{ErrorKind, RedisError};
use tokio::time::Instant;

use super::address::{Address, Sentinels};
use super::channel::Channel;
use super::dial;
use crate::error::{Cause, RemoteError};

/// How long a Sentinel may take to answer, connecting included. Whoever starts waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);
/// The one that is listened to must answer so often.
const FENCE_INTERVAL: Duration = Duration::from_secs(1);
/// And is asked again so often.
const ASK_INTERVAL: Duration = Duration::from_secs(10);
/// Before they are tried again, once all have been.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest answer or message: two names, two hosts, two ports.
const MOST: usize = 4 << 10;
const SWITCHES: &str = "+switch-master";

#[derive(Debug, thiserror::Error)]
#[error("Sentinel {sentinel} does not say where {name:?} is")]
struct Unnamed {
    sentinel: String,
    name: String,
    source: Cause,
}

/// Where the server is, by the first Sentinel that says it.
///
/// # Errors
/// If none does: what the last one said.
pub(crate) async fn find(server: &Address, sentinels: &Sentinels) -> Result<Address, RemoteError> {
    let asking = sentinels.seeds.iter().map(|sentinel| Box::pin(ask(server, &sentinels.name, sentinel)));
    select_ok(asking).await.map(|(server, _others)| server)
}

/// What each of them says.
pub(crate) async fn ask_all(
    server: &Address,
    sentinels: &Sentinels,
) -> Vec<(String, Result<String, RemoteError>)> {
    let asking = sentinels.seeds.iter().map(async |sentinel| {
        let answer = ask(server, &sentinels.name, sentinel).await;
        (sentinel.place(), answer.map(|server| server.place()))
    });
    join_all(asking).await
}

async fn ask(server: &Address, name: &str, sentinel: &Address) -> Result<Address, RemoteError> {
    let asking = async {
        let mut dialled = dial::commands(sentinel, MOST, ANSWER_TIMEOUT, Some(ANSWER_TIMEOUT)).await?;
        let mut get = redis::cmd("SENTINEL");
        get.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
        let place: Option<(String, u16)> = get.query_async(&mut dialled.connection).await?;
        let unknown = (ErrorKind::InvalidClientConfig, "it watches nothing of that name");
        place.ok_or_else(|| RedisError::from(unknown))
    };
    let source: Cause = match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
        Ok(Ok((host, port))) => return Ok(server.at(host, port)),
        Ok(Err(error)) => Arc::new(error),
        Err(_elapsed) => Arc::new(RemoteError::Timeout),
    };
    let (sentinel, name) = (sentinel.place(), name.to_owned());
    Err(RemoteError::Unusable(Arc::new(Unnamed { sentinel, name, source })))
}

/// Tells where the server is, again and again. Never returns.
pub(super) async fn follow<'a>(
    server: &Address,
    sentinels: &Sentinels,
    tell: impl Fn(Address) -> BoxFuture<'a, ()> + Sync,
) {
    loop {
        for sentinel in &sentinels.seeds {
            listen(server, &sentinels.name, sentinel, &tell).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Listens to one of them until it is of no use.
async fn listen<'a>(
    server: &Address,
    name: &str,
    sentinel: &Address,
    tell: &(impl Fn(Address) -> BoxFuture<'a, ()> + Sync),
) {
    let Ok(mut switches) = Channel::subscribe(sentinel, SWITCHES, MOST).await else { return };
    // From here on no switch is missed. Its answer has what was before.
    let mut asked = None::<Instant>;
    let mut fences = tokio::time::interval(FENCE_INTERVAL);
    fences.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = fences.tick() => {
                if !matches!(tokio::time::timeout(ANSWER_TIMEOUT, switches.ping()).await, Ok(Ok(()))) {
                    return;
                }
                if asked.is_none_or(|asked| asked.elapsed() >= ASK_INTERVAL) {
                    let Ok(named) = ask(server, name, sentinel).await else { return };
                    asked = Some(Instant::now());
                    tell(named).await;
                }
            }
            switch = switches.next() => {
                let Ok(switch) = switch else { return };
                if let Some((host, port)) = switched(&switch, name) {
                    tell(server.at(host, port)).await;
                }
            }
        }
    }
}

/// Where the server of this name is from now on: `name host port host port`, the old place and the new one.
fn switched(message: &[u8], name: &str) -> Option<(String, u16)> {
    match std::str::from_utf8(message).ok()?.split(' ').collect::<Vec<_>>()[..] {
        [of, _, _, host, port] if of == name && !host.is_empty() => {
            Some((host.to_owned(), port.parse().ok()?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_that_of_the_name_and_anything_else_is_none() {
        let switched = |message: &[u8]| switched(message, "main");
        assert_eq!(switched(b"main 10.0.0.1 1 10.0.0.2 2"), Some(("10.0.0.2".to_owned(), 2)));
        for other in [
            &b"other 10.0.0.1 1 10.0.0.2 2"[..],
            b"main 10.0.0.1 1 10.0.0.2 70000",
            b"main 10.0.0.1 1  2",
            b"main 10.0.0.1 1 10.0.0.2",
            b"main 10.0.0.1 1 10.0.0.2 2 3",
            b"\xFF",
            b"",
        ] {
            assert_eq!(switched(other), None, "{other:?}");
        }
    }
}
