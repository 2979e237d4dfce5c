//! The two connections to one server: one that somebody waits for, and one for fills. On one connection a look-up would wait
//! behind all the fills of a bulk load. And the scripts that it is given.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Arg, Cmd, Pipeline};

use super::address::Address;
use super::dial::{self, Dialled, failed};
use crate::error::RemoteError;
use crate::wire::MAX_STORED;

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
/// How long an existing connection may take to answer before another is made.
const PING_TIMEOUT: Duration = Duration::from_millis(200);
/// Longest text in an answer to a fill: the hash of a script, an error.
const MAX_FILL_ANSWER: usize = 64 << 10;
/// Damaged values are told apart by so many bytes: the header with its checksum is among them. Megabytes would have to go back.
const TOLD_APART_BY: usize = 1 << 10;

/// A script of ours, and the hash that servers know it by: the SHA-1 of its text.
pub(super) struct Script {
    text: &'static str,
    hash: &'static str,
}

pub(super) const FILL: Script =
    Script { text: include_str!("../fill.lua"), hash: "85408f93d7b04e61c660c042143052c060266b3e" };
pub(super) const INVALIDATE: Script =
    Script { text: include_str!("../invalidate.lua"), hash: "ce5d3f961abc4372ecc63b7a8612a79db06552ae" };
pub(super) const DISCARD: Script =
    Script { text: include_str!("../discard.lua"), hash: "bb5fb6c670e8568473dade47e1b5bb7a864c54ab" };
const SCRIPTS: [Script; 3] = [FILL, INVALIDATE, DISCARD];

impl Script {
    /// Its run by its hash.
    pub(super) fn run(&self, key: &str) -> Cmd {
        let mut run = redis::cmd("EVALSHA");
        run.arg(self.hash).arg(1).arg(key);
        run
    }

    /// The same run by its text, for a server that does not know it. From then on it does.
    pub(super) fn whole(&self, run: &Cmd) -> Cmd {
        let mut whole = redis::cmd("EVAL");
        whole.arg(self.text);
        for word in run.args_iter().skip(2) {
            if let Arg::Simple(word) = word {
                whole.arg(word);
            }
        }
        whole
    }
}

/// For [`DISCARD`]: how what lies there begins.
pub(super) fn told_apart_by(seen: &[u8]) -> &[u8] {
    &seen[..seen.len().min(TOLD_APART_BY)]
}

/// For `PX`, and the scripts. At least one: none is an error.
pub(super) fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis().max(1)).unwrap_or(u64::MAX)
}

pub(super) async fn load_scripts(connection: &mut MultiplexedConnection) -> Result<(), RemoteError> {
    let mut pipeline = Pipeline::with_capacity(SCRIPTS.len());
    for script in SCRIPTS {
        // Not by the client's own way, which panics where the server has another hash for it.
        pipeline.cmd("SCRIPT").arg("LOAD").arg(script.text).ignore();
    }
    pipeline.query_async(connection).await.map_err(failed)
}

/// Which of the two.
#[derive(Clone, Copy)]
pub(crate) enum Lane {
    Awaited,
    Fills,
}

/// The connections to one server.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    pub(super) awaited: Arc<Dialled>,
    pub(super) fills: Arc<Dialled>,
}

impl Lanes {
    pub(super) async fn connect(server: &Address) -> Result<Self, RemoteError> {
        let connect = |most| dial::commands(server, most, CONNECT_TIMEOUT, None);
        let (awaited, fills) =
            tokio::try_join!(connect(MAX_STORED + 1), connect(MAX_FILL_ANSWER)).map_err(failed)?;
        let lanes = Self { awaited: Arc::new(awaited), fills: Arc::new(fills) };
        let mut awaited = lanes.awaited.connection.clone();
        let loading = load_scripts(&mut awaited);
        tokio::time::timeout(CONNECT_TIMEOUT, loading).await.unwrap_or(Err(RemoteError::Timeout))?;
        Ok(lanes)
    }

    pub(super) fn connection(&self, lane: Lane) -> MultiplexedConnection {
        match lane {
            Lane::Awaited => self.awaited.connection.clone(),
            Lane::Fills => self.fills.connection.clone(),
        }
    }

    /// Whether both answer in time, and what is asked then.
    pub(super) async fn answer(&self, then: impl Future<Output = bool>) -> bool {
        let ping = async |mut connection: MultiplexedConnection| {
            let answered = redis::cmd("PING").query_async::<()>(&mut connection).await;
            // One that can't write its dump refuses pings too (`MISCONF`), and is up.
            matches!(answered.map_err(failed), Ok(()) | Err(RemoteError::Refused(_)))
        };
        let answers = async {
            let (awaited, fills) = (self.awaited.connection.clone(), self.fills.connection.clone());
            tokio::join!(ping(awaited), ping(fills)) == (true, true) && then.await
        };
        tokio::time::timeout(PING_TIMEOUT, answers).await.unwrap_or(false)
    }
}
